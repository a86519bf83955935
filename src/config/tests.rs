use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use toml::{Table, Value};

use super::*;
use crate::server::{Endpoint, Limits};
use crate::upstream::Target;
use crate::{auth, cache, upstream};

const ANNOTATED: &str = include_str!("../../config/railgate.toml");
const MINIMAL: &str = include_str!("../../config/railgate.minimal.toml");
const README: &str = include_str!("../../README.md");
const KUBERNETES: &str = include_str!("../../deploy/kubernetes.yaml");

/// The least that works; more is written behind it.
const LEAST: &str = "\
[upstream]
url = \"http://127.0.0.1:8080\"
[auth.shell]
secret_file = \"DIR/gitlab_shell_secret\"
";

/// A directory with secrets, `DIR` in the texts of these tests; gone when the test ends.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("railgate-config-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let files = Self { dir };
        files.write("gitlab_shell_secret", "s3cret\n");
        files.write("gitlab_kas_secret", &STANDARD.encode([7; 32]));
        files
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    fn parse(&self, text: &str) -> Result<Loaded, Problems> {
        let dir = self.dir.to_str().unwrap();
        let text = text.replace("/var/opt/gitlab/gitlab-rails/etc", dir).replace("/etc/railgate", dir);
        parse("test.toml", &text.replace("DIR", dir))
    }

    fn load(&self, text: &str) -> Settings {
        let loaded = self.parse(text).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert_eq!(loaded.warnings, [], "{text}");
        loaded.settings
    }

    /// What is said about `text`, a line each.
    fn problems(&self, text: &str) -> Vec<String> {
        let Problems(problems) = self.parse(text).map_or_else(|problems| problems, |_| Problems(vec![]));
        problems.iter().map(|problem| self.told(problem)).collect()
    }

    fn warnings(&self, text: &str) -> Vec<String> {
        let loaded = self.parse(text).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        loaded.warnings.iter().map(|warning| self.told(warning)).collect()
    }

    fn told(&self, problem: &Problem) -> String {
        problem.to_string().replace(self.dir.to_str().unwrap(), "DIR")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn tcp(port: u16) -> Endpoint {
    Endpoint::Tcp(([127, 0, 0, 1], port).into())
}

fn unix(path: &str, mode: u32) -> Endpoint {
    Endpoint::Unix { path: path.into(), mode }
}

/// The annotated file with its commented-out keys put to use. Prose has a space behind the `#`.
fn uncommented() -> String {
    let is_key = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let lines =
        ANNOTATED.lines().map(|line| line.strip_prefix('#').filter(|rest| is_key(rest)).unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn the_annotated_file_says_what_holds_without_it() {
    let files = Files::new();
    let said = files.load(ANNOTATED);
    let unsaid = files.load(MINIMAL);
    assert_eq!(format!("{said:#?}"), format!("{unsaid:#?}"));

    let Settings { workers: _, listen, admin, upstream, forward_prefixes, auth, cache, limits, log } = said;
    assert_eq!((listen, admin), (vec![tcp(8181)], tcp(9181)));
    let url = "http+unix://%2Fvar%2Fopt%2Fgitlab%2Fgitlab-workhorse%2Fsockets%2Fsocket";
    let expected = upstream::Settings::new(Target::parse(url).unwrap());
    assert_eq!(format!("{upstream:?}"), format!("{expected:?}"));
    assert_eq!(forward_prefixes, [""; 0]);
    let auth::Settings { shell_secret, accept_jwt, accept_shared_secret, max_body, kas } = auth;
    assert!(shell_secret.matches(b"s3cret") && accept_jwt && accept_shared_secret && kas.is_none());
    assert_eq!(max_body, auth::DEFAULT_MAX_BODY);
    assert_eq!(cache, cache::Settings::default());
    assert_eq!(limits, Limits::default());
    assert_eq!(log, Log::default());
}

#[test]
fn every_key_of_the_annotated_file_can_be_used() {
    // A mode needs a unix socket.
    let text = uncommented().replace("127.0.0.1:9181", "unix:/run/railgate/admin.sock");
    let settings = Files::new().load(&text);
    assert_eq!(settings.workers, 2);
    assert_eq!(settings.listen, [tcp(8181), unix("/run/railgate/railgate.sock", 0o660)]);
    assert_eq!(settings.admin, unix("/run/railgate/admin.sock", 0o660));
    assert_eq!(settings.upstream.host.as_deref(), Some("gitlab.example.com"));
    assert_eq!(settings.auth.kas.unwrap().audience.as_deref(), Some("gitlab"));
}

/// A key that the reader knows and the file or the README does not mention fails here.
#[test]
fn the_annotated_file_has_every_key_that_the_reader_knows() {
    let mut in_file = BTreeSet::new();
    collect_keys("", &Value::Table(uncommented().parse::<Table>().unwrap()), &mut in_file);
    let mut known = BTreeSet::new();
    ask_for_keys("", &mut known);
    assert!(known.len() > 30, "the reader was misunderstood: {known:?}");
    assert_eq!(in_file, known);
    for key in known {
        assert!(README.contains(&format!("| `{key}` |")), "{key} is not in the table of README.md");
    }
}

fn collect_keys(path: &str, value: &Value, keys: &mut BTreeSet<String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                collect_keys(&join(path, key), value, keys);
            }
        }
        Value::Array(items) if items.first().is_some_and(Value::is_table) => {
            for item in items {
                collect_keys(path, item, keys);
            }
        }
        _ => drop(keys.insert(path.to_owned())),
    }
}

/// Collects the keys below `path` by the reader's own account: a section in which it finds a key
/// that nobody knows lists those that it has. What lists nothing is no section, but a key.
fn ask_for_keys(path: &str, keys: &mut BTreeSet<String>) {
    const NOBODY_KNOWS: &str = "surely_nobody_knows_this_key";
    let headers =
        if path.is_empty() { vec![String::new()] } else { vec![format!("[{path}]"), format!("[[{path}]]")] };
    let lists = headers.iter().find_map(|header| {
        let Problems(problems) = parse("", &format!("{header}\n{NOBODY_KNOWS} = 1")).unwrap_err();
        let unknown = problems.into_iter().find(|problem| problem.key == join(path, NOBODY_KNOWS))?;
        Some(unknown.message.strip_prefix("unknown key; known here: ")?.to_owned())
    });
    match lists {
        Some(list) => list.split(", ").for_each(|key| ask_for_keys(&join(path, key), keys)),
        None => drop(keys.insert(path.to_owned())),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[test]
fn the_minimal_file_is_minimal() {
    let files = Files::new();
    files.load(MINIMAL);
    let mut keys = BTreeSet::new();
    collect_keys("", &Value::Table(MINIMAL.parse::<Table>().unwrap()), &mut keys);
    assert_eq!(keys.iter().collect::<Vec<_>>(), ["auth.shell.secret_file", "upstream.url"]);
    for (at, line) in MINIMAL.lines().enumerate().filter(|(_, line)| line.contains('=')) {
        let rest: Vec<&str> =
            MINIMAL.lines().enumerate().filter(|(other, _)| *other != at).map(|(_, line)| line).collect();
        assert_eq!(files.problems(&rest.join("\n")).len(), 1, "without {line}");
    }
}

#[test]
fn the_file_in_the_kubernetes_example_works() {
    let (_, block) = KUBERNETES.split_once("railgate.toml: |\n").unwrap();
    let lines =
        block.lines().map_while(|line| if line.is_empty() { Some("") } else { line.strip_prefix("    ") });
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let settings = Files::new().load(&text);
    assert!(settings.auth.kas.is_some() && settings.listen.len() == 1, "{text}");
}

/// What should be said about an annotated text: a comment `#^ …` is about the line above it.
fn expected(text: &str) -> Vec<String> {
    let mut line_above = 0;
    let mut expected = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match line.strip_prefix("#^ ") {
            Some(told) => expected.push(format!("test.toml:{line_above}: {told}")),
            None => line_above = index + 1,
        }
    }
    expected
}

const MISTAKES: &str = r#"colour = "red"
#^ colour: unknown key; known here: workers, listen, admin, upstream, auth, cache, limits, log

[[listen]]
#^ listen.address: is required: an IP address with a port, or unix: and an absolute path, such as "127.0.0.1:8181"
adress = "127.0.0.1:8181"
#^ listen.adress: unknown key; did you mean "address"?

[[listen]]
address = "localhost:8181"
#^ listen.address: expected an IP address with a port, or unix: and an absolute path, such as "127.0.0.1:8181", found "localhost:8181"

[[listen]]
address = "unix:run/sock"
#^ listen.address: expected an IP address with a port, or unix: and an absolute path, such as "127.0.0.1:8181", found "unix:run/sock"

[[listen]]
address = "127.0.0.1:8181"
mode = "0660"
#^ listen.mode: only a unix socket has a mode; drop the key

[[listen]]
address = "127.0.0.1:8181"
#^ listen.address: another [[listen]] has this address already; drop one

[[listen]]
address = "unix:/run/sock"
mode = "0999"
#^ listen.mode: expected permission bits in octal and in quotes, such as "0660", found "0999"

[admin]
address = "127.0.0.1:8181"
#^ admin.address: 127.0.0.1:8181 is the address of a [[listen]] already; choose another port

[upstream]
url = "https://rails"
#^ upstream.url: must begin with http:// or http+unix:// (https is not supported yet)
host = "a b"
#^ upstream.host: expected a host name, perhaps with a port, found "a b"
connect_timeout = 5
#^ upstream.connect_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found the bare number 5
response_timeout = "60"
#^ upstream.response_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found "60"
idle_timeout = "2h"
#^ upstream.idle_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found "2h"
idle_timout = "15s"
#^ upstream.idle_timout: unknown key; did you mean "idle_timeout"?
max_idle = "many"
#^ upstream.max_idle: expected a whole number from 0 to 100000, found the text "many"
forward_prefixes = ["/api/v4/geo", "/api/v4/geo/"]
#^ upstream.forward_prefixes: "/api/v4/geo" must name a path between two slashes, such as "/api/v4/geo/"
retries = 3
#^ upstream.retries: unknown key; known here: url, host, connect_timeout, response_timeout, idle_timeout, max_idle, forward_prefixes

[auth.shell]
secret_file = "/nowhere/secret"
#^ auth.shell.secret_file: /nowhere/secret cannot be read: No such file or directory (os error 2); check the path, and that this user may read it
accept = ["jwt", "password"]
#^ auth.shell.accept: unknown credential "password"; known are "jwt" and "shared_secret"
max_body = 1024
#^ auth.shell.max_body: expected a size from 0 to 1073741824 bytes with its unit (B, KiB, MiB, GiB), such as "64KiB", found the bare number 1024

[auth.kas]
secret_file = "DIR/gitlab_shell_secret"
#^ auth.kas.secret_file: DIR/gitlab_shell_secret is not strict Base64 (standard alphabet, padded, one line); copy the file that GitLab uses
audience = ""
#^ auth.kas.audience: expected the audience of kas tokens, such as "gitlab", found ""

[auth.pages]
#^ auth.pages: unknown key; known here: kas, shell
secret_file = "DIR/gitlab_shell_secret"

[cache]
max_entries = 0
#^ cache.max_entries: expected a whole number from 1 to 1000000000, found the bare number 0
max_negative_entries = -1
#^ cache.max_negative_entries: expected a whole number from 1 to 1000000000, found the bare number -1
max_bytes = "2"
#^ cache.max_bytes: expected a size from 1048576 to 1099511627776 bytes with its unit (B, KiB, MiB, GiB), such as "64KiB", found "2"
max_body = "64KB"
#^ cache.max_body: expected a size from 1 to 1073741824 bytes with its unit (B, KiB, MiB, GiB), such as "64KiB", found "64KB"

[cache.authorized_keys]
tll = "60s"
#^ cache.authorized_keys.tll: unknown key; did you mean "ttl"?

[cache.check]
negative_ttl = "1s"
#^ cache.check.negative_ttl: unknown key; known here: ttl

[cache.allowed]
#^ cache.allowed: unknown key; known here: authorized_keys, discover, check, max_entries, max_negative_entries, max_bytes, max_body, wait
ttl = "1s"

[limits]
connections = 1e4
#^ limits.connections: expected a whole number from 1 to 1000000, found the bare number 1e4
head = true
#^ limits.head: expected a size from 1024 to 65536 bytes with its unit (B, KiB, MiB, GiB), such as "64KiB", found a value of type boolean
headers = 5_000
#^ limits.headers: expected a whole number from 8 to 1000, found the bare number 5000
head_timeout = 1.5
#^ limits.head_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found the bare number 1.5
idle_timeout = ["75s"]
#^ limits.idle_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found a value of type array

[log]
format = "xml"
#^ log.format: expected "json" or "pretty", found "xml"
level = "trace"
#^ log.level: expected "error", "warn", "info" or "debug", found "trace"
requests = "yes"
#^ log.requests: expected true or false, found the text "yes"
file = "/var/log/railgate.log"
#^ log.file: unknown key; known here: format, level, requests
"#;

#[test]
fn every_mistake_is_told_in_one_run_with_its_line_and_its_key() {
    let expected = expected(MISTAKES);
    assert!(expected.len() > 35, "the annotations were not found");
    assert_eq!(Files::new().problems(MISTAKES), expected);
}

#[test]
fn a_mistake_has_its_parts() {
    let Problems(problems) = parse("some.toml", "\n[log]\nlevel = 'loud'\n").unwrap_err();
    let expected = Problem {
        file: "some.toml".into(),
        line: Some(3),
        key: "log.level".into(),
        message: "expected \"error\", \"warn\", \"info\" or \"debug\", found \"loud\"".into(),
    };
    assert!(problems.contains(&expected), "{problems:?}");
}

#[test]
fn what_has_no_default_is_asked_for() {
    const URL: &str = "upstream.url: is required: where Rails listens, such as \"http://127.0.0.1:8080\"";
    const SECRET: &str = "auth.shell.secret_file: is required: the file with the secret that GitLab Shell \
                          and Rails share";
    for (text, required) in [
        ("", &[(1, URL), (1, SECRET)][..]),
        ("\n[auth]\n[upstream]\n", &[(2, SECRET), (3, URL)]),
        ("\n[upstream]\nmax_idle = 1\n[auth.shell]\nmax_body = '1KiB'", &[(2, URL), (4, SECRET)]),
        (
            "[auth.kas]\naudience = 'gitlab'\n",
            &[(1, URL), (1, SECRET), (1, "auth.kas.secret_file: is required")],
        ),
    ] {
        let told = Files::new().problems(text);
        assert_eq!(told.len(), required.len(), "{text:?}: {told:?}");
        for (line, required) in required {
            let begin = format!("test.toml:{line}: {required}");
            assert!(told.iter().any(|told| told.starts_with(&begin)), "{begin}\n{told:?}");
        }
    }
}

#[test]
fn secrets_that_cannot_be_used_are_refused() {
    let files = Files::new();
    files.write("empty", "\n");
    files.write("short", &STANDARD.encode([7; 31]));
    for text in [
        r#"[auth.shell]
secret_file = "DIR/empty"
#^ auth.shell.secret_file: DIR/empty is empty; it must hold the secret; copy the file that GitLab uses
"#,
        r#"[auth.shell]
secret_file = "DIR"
#^ auth.shell.secret_file: DIR cannot be read: Is a directory (os error 21); check the path, and that this user may read it
"#,
        r#"[auth.shell]
secret_file = ""
#^ auth.shell.secret_file: expected the path of a file, found ""
"#,
        r#"[auth.shell]
secret_file = "DIR/gitlab_shell_secret"
accept = []
#^ auth.shell.accept: must name "jwt", "shared_secret" or both, or nobody gets in
[auth.kas]
secret_file = "DIR/empty"
#^ auth.kas.secret_file: DIR/empty is empty; it must hold the secret; copy the file that GitLab uses
"#,
        r#"[auth.shell]
secret_file = "DIR/gitlab_shell_secret"
[auth.kas]
secret_file = "DIR/short"
#^ auth.kas.secret_file: DIR/short holds 31 bytes once decoded; a kas secret is exactly 32 bytes in Base64; copy the file that GitLab uses
"#,
        r#"[auth.shell]
secret_file = "DIR/gitlab_shell_secret"
[auth.kas]
secret_file = "DIR/gitlab_shell_secret"
#^ auth.kas.secret_file: DIR/gitlab_shell_secret is not strict Base64 (standard alphabet, padded, one line); copy the file that GitLab uses
"#,
    ] {
        let text = format!("{text}[upstream]\nurl = 'http://127.0.0.1:8080'\n");
        assert_eq!(files.problems(&text), expected(&text), "{text}");
    }
}

#[test]
fn urls_that_lead_nowhere_are_refused() {
    for (url, told) in [
        ("127.0.0.1:8080", "must begin with http:// or http+unix:// (https is not supported yet)"),
        ("http://", "needs a host, as in http://127.0.0.1:8080"),
        ("http://user:pass@rails", "must not hold a user or a password"),
        ("http+unix:///run/gitlab.socket", "needs the socket's absolute path, percent-encoded"),
        ("http://rails/?a=b", "may end in a plain path (the relative URL root), without query"),
    ] {
        let told_so = Files::new().problems(&LEAST.replace("http://127.0.0.1:8080", url));
        let begin = format!("test.toml:2: upstream.url: {told}");
        assert!(told_so.len() == 1 && told_so[0].starts_with(&begin), "{url}: {told_so:?}");
    }
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    for (text, line) in [("[log]\nlevel = \n", 2), ("[log\n", 1), ("\n\n[log]\nlevel = 'info\n", 4)] {
        let told = Files::new().problems(&format!("{text}{LEAST}"));
        assert!(
            told.iter().any(|told| told.starts_with(&format!("test.toml:{line}: "))),
            "{text:?}: {told:?}"
        );
    }
    let twice = Files::new().problems(&format!("{LEAST}secret_file = 'DIR/gitlab_kas_secret'"));
    assert_eq!(twice, ["test.toml:5: duplicate key"]);
}

#[test]
fn the_rest_of_a_broken_file_is_still_read() {
    let told = Files::new().problems(&format!("{LEAST}[log]\nlevel =\nfromat = 'json'\n"));
    assert!(told[0].starts_with("test.toml:6: "), "{told:?}");
    assert_eq!(told.last().unwrap(), "test.toml:7: log.fromat: unknown key; did you mean \"format\"?");
}

#[test]
fn a_file_that_is_not_there_is_told() {
    let problems = load(Path::new("/nowhere/railgate.toml")).unwrap_err().to_string();
    assert!(problems.starts_with("/nowhere/railgate.toml: cannot be read: No such file"), "{problems}");
}

/// The borders of each range, and what lies just beyond them.
#[test]
fn ranges_include_their_borders_and_nothing_beyond() {
    let files = Files::new();
    for (section, key, within, beyond) in [
        ("upstream", "connect_timeout", ["'1ms'", "'1h'"], ["'0ms'", "'3601s'"]),
        ("upstream", "response_timeout", ["'1ms'", "'1h'"], ["'0s'", "'3600001ms'"]),
        ("upstream", "idle_timeout", ["'1ms'", "'1h'"], ["'0s'", "'61m'"]),
        ("upstream", "max_idle", ["0", "100_000"], ["-1", "100_001"]),
        ("auth.shell", "max_body", ["'0B'", "'1GiB'"], ["'-1B'", "'1048577KiB'"]),
        ("cache", "max_entries", ["1", "1_000_000_000"], ["0", "1_000_000_001"]),
        ("cache", "max_negative_entries", ["1", "0x3b9aca00"], ["0", "0x3b9aca01"]),
        ("cache", "max_bytes", ["'1MiB'", "'1024GiB'"], ["'1023KiB'", "'1025GiB'"]),
        ("cache", "max_body", ["'1B'", "'1GiB'"], ["'0B'", "'2GiB'"]),
        ("cache", "wait", ["'0s'", "'1h'"], ["'-1s'", "'2h'"]),
        ("cache.authorized_keys", "ttl", ["'0s'", "'24h'"], ["''", "'25h'"]),
        ("cache.authorized_keys", "negative_ttl", ["'0s'", "'24h'"], ["'s'", "'86401s'"]),
        ("cache.discover", "ttl", ["'0ms'", "'24h'"], ["'1.5s'", "'1d'"]),
        ("cache.discover", "negative_ttl", ["'0m'", "'24h'"], ["'5'", "'25h'"]),
        ("cache.check", "ttl", ["'0s'", "'5s'"], ["'5S'", "'25h'"]),
        ("limits", "connections", ["1", "1_000_000"], ["0", "1_000_001"]),
        ("limits", "head", ["'16KiB'", "'64KiB'"], ["'1023B'", "'65KiB'"]),
        ("limits", "headers", ["8", "1_000"], ["7", "1_001"]),
        ("limits", "head_timeout", ["'1ms'", "'1h'"], ["'0s'", "'2h'"]),
        ("limits", "idle_timeout", ["'1ms'", "'1h'"], ["'0s'", "'2h'"]),
        ("limits", "drain_timeout", ["'0s'", "'1h'"], ["'0'", "'2h'"]),
    ] {
        let text = |value: &str| {
            let line = format!("{key} = {value}\n");
            match section {
                "upstream" => LEAST.replace("[auth.shell]", &format!("{line}[auth.shell]")),
                "auth.shell" => format!("{LEAST}{line}"),
                _ => format!("{LEAST}[{section}]\n{line}"),
            }
        };
        for value in within {
            files.load(&text(value));
        }
        for value in beyond {
            let told = files.problems(&text(value));
            let is_told = |told: &String| told.contains(&format!(": {section}.{key}: expected a "));
            assert!(told.len() == 1 && told.iter().all(is_told), "{key} = {value}: {told:?}");
        }
    }
}

#[test]
fn what_is_allowed_but_hardly_meant_gives_a_warning() {
    let files = Files::new();
    files.write("padded", " s3cret \n");
    let padded = LEAST.replace("gitlab_shell_secret", "padded");
    for (text, told) in [
        (padded, "auth.shell.secret_file: the secret has white space around it"),
        (format!("{LEAST}[cache.check]\nttl = '5001ms'"), "cache.check.ttl: health checks would see"),
        (format!("{LEAST}[limits]\nhead = '16383B'"), "limits.head: SSH keys travel in the query"),
    ] {
        let warnings = files.warnings(&text);
        assert!(warnings.len() == 1 && warnings[0].contains(told), "{text}\n{warnings:?}");
    }
}

#[test]
fn listeners_that_exclude_each_other_are_refused() {
    let files = Files::new();
    let listen = |address: &str| format!("[[listen]]\naddress = \"{address}\"\n");
    let rest = LEAST;
    for (one, two, clash) in [
        ("127.0.0.1:1000", "127.0.0.1:1000", true),
        ("0.0.0.0:1000", "127.0.0.1:1000", true),
        ("[::]:1000", "127.0.0.1:1000", true),
        ("0.0.0.0:1000", "[::1]:1000", false),
        ("127.0.0.1:1000", "127.0.0.2:1000", false),
        ("127.0.0.1:1000", "127.0.0.1:1001", false),
        ("127.0.0.1:0", "127.0.0.1:0", false),
        ("unix:/run/a", "unix:/run/a", true),
        ("unix:/run/a", "unix:/run/b", false),
    ] {
        let text = format!("{}{}{rest}", listen(one), listen(two));
        assert_eq!(files.parse(&text).is_err(), clash, "{one} {two}");
        let text = format!("{}[admin]\naddress = \"{two}\"\n{rest}", listen(one));
        assert_eq!(files.parse(&text).is_err(), clash, "{one} {two} for admin");
    }
    let told = files.problems(&format!("{}{rest}", listen("127.0.0.1:9181")));
    assert_eq!(
        told,
        [
            "test.toml:2: admin.address: 127.0.0.1:9181, its default, is the address of a [[listen]] already; choose another port"
        ]
    );
    let told = files.problems(&format!("listen = []\n{rest}"));
    assert_eq!(
        told,
        [
            "test.toml:1: listen: is empty, so nobody could connect; drop the key for the default, 127.0.0.1:8181"
        ]
    );
    let told = files.problems(&format!("[admin]\nmode = \"0660\"\n{rest}"));
    assert_eq!(told, ["test.toml:2: admin.mode: only a unix socket has a mode; drop the key"]);
}

#[test]
fn listeners_are_read_as_they_are_written() {
    let settings = Files::new().load(&format!(
        "{LEAST}
        [[listen]]
        address = '[::1]:8181'
        [[listen]]
        address = 'unix:/run/railgate/a.sock'
        [[listen]]
        address = 'unix:/run/railgate/b.sock'
        mode = '0600'
        [admin]
        address = 'unix:/run/railgate/admin.sock'
        mode = '0666'"
    ));
    let expected = [
        Endpoint::Tcp("[::1]:8181".parse().unwrap()),
        unix("/run/railgate/a.sock", 0o660),
        unix("/run/railgate/b.sock", 0o600),
    ];
    assert_eq!(settings.listen, expected);
    assert_eq!(settings.admin, unix("/run/railgate/admin.sock", 0o666));
    let too_long = format!("unix:/{}", "a".repeat(107));
    let told = Files::new().problems(&format!("{LEAST}[admin]\naddress = '{too_long}'"));
    assert!(told.len() == 1 && told[0].starts_with("test.toml:6: admin.address: expected an IP"), "{told:?}");
}

#[test]
fn every_choice_can_be_made() {
    let files = Files::new();
    for (word, level) in [
        ("error", tracing::Level::ERROR),
        ("warn", tracing::Level::WARN),
        ("info", tracing::Level::INFO),
        ("debug", tracing::Level::DEBUG),
    ] {
        assert_eq!(files.load(&format!("{LEAST}[log]\nlevel = '{word}'")).log.level, level);
    }
    let log = files.load(&format!("{LEAST}[log]\nformat = 'pretty'\nrequests = false")).log;
    assert_eq!((log.format, log.requests), (LogFormat::Pretty, false));
    for (accept, jwt, shared_secret) in [("'jwt'", true, false), ("'shared_secret'", false, true)] {
        let auth = files.load(&format!("{LEAST}accept = [{accept}]")).auth;
        assert_eq!((auth.accept_jwt, auth.accept_shared_secret), (jwt, shared_secret));
    }
}
