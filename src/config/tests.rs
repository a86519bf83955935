mod files;
mod listeners;
mod mistakes;
mod sections;
mod shipped;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use toml::{Table, Value};

use super::*;
use crate::server::{DEFAULT_OPERATOR_CONNECTIONS, Endpoint, Limits, ListenSettings};
use crate::upstream::UpstreamTarget;
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
        files.write("admin_token", "t0ken\n");
        files.write("upstream_secret", "an0ther\n");
        files.write("hook_token", "h00k\n");
        files.write("hook_signing_token", "whsec_c2VjcmV0\n");
        files.write("gitlab_kas_secret", &STANDARD.encode([7; 32]));
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["gateway".to_owned()]).unwrap();
        files.write("ca.pem", &cert.pem());
        files.write("client.pem", &cert.pem());
        files.write("client.key", &signing_key.serialize_pem());
        files
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    fn parse(&self, text: &str) -> Result<Loaded, Problems> {
        let dir = self.dir.to_str().unwrap();
        let text = text.replace("/var/opt/gitlab/gitlab-rails/etc", dir).replace("/etc/railgate", dir);
        let text = text.replace("/var/lib/railgate", dir);
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

/// The borders of each range, and what lies just beyond them.
#[test]
fn ranges_include_their_borders_and_nothing_beyond() {
    let files = Files::new();
    for (section, key, within, beyond) in [
        ("upstream", "connect_timeout", ["'1ms'", "'1h'"], ["'0ms'", "'3601s'"]),
        ("upstream", "response_timeout", ["'1ms'", "'1h'"], ["'0s'", "'3600001ms'"]),
        ("upstream", "body_timeout", ["'1ms'", "'1h'"], ["'0s'", "'2h'"]),
        ("upstream", "total_timeout", ["'0s'", "'24h'"], ["'25h'", "'x'"]),
        ("upstream", "hold", ["'0s'", "'1h'"], ["'-1s'", "'61m'"]),
        ("upstream", "max_held", ["1", "1_000_000"], ["0", "1_000_001"]),
        ("upstream", "threads", ["1", "100_000"], ["0", "100_001"]),
        ("upstream", "resend_percent", ["0", "100"], ["-1", "101"]),
        ("upstream.classes.access", "concurrency", ["1", "1_000_000"], ["0", "1_000_001"]),
        ("upstream.classes.access", "queue", ["0", "1_000_000"], ["-1", "1_000_001"]),
        ("upstream.classes.access", "queue_timeout", ["'1ms'", "'1h'"], ["'0s'", "'2h'"]),
        ("upstream.classes.access", "response_timeout", ["'1ms'", "'1h'"], ["'0s'", "'2h'"]),
        ("upstream.classes.access", "total_timeout", ["'0s'", "'24h'"], ["'25h'", "1"]),
        ("upstream.classes.access", "hold", ["'0s'", "'1h'"], ["'2h'", "5"]),
        ("upstream", "slow_start", ["'0s'", "'1h'"], ["'2h'", "1"]),
        ("upstream.health", "interval", ["'0s'", "'1h'"], ["'61m'", "'-1s'"]),
        ("upstream.health", "timeout", ["'1ms'", "'1h'"], ["'0s'", "'2h'"]),
        ("upstream.health", "healthy_after", ["1", "100"], ["0", "101"]),
        ("upstream.health", "unhealthy_after", ["1", "100"], ["0", "101"]),
        ("upstream.health", "path", ["'/'", "'/-/readiness?all=1'"], ["'ready'", "'/a b'"]),
        ("upstream.ejection", "failures", ["0", "1000"], ["1001", "-1"]),
        ("upstream.ejection", "pause", ["'1ms'", "'60s'"], ["'0s'", "'2h'"]),
        ("upstream.ejection", "longest_pause", ["'1s'", "'1h'"], ["'0s'", "'2h'"]),
        ("upstream", "idle_timeout", ["'1ms'", "'1h'"], ["'0s'", "'61m'"]),
        ("upstream", "max_connection_age", ["'0s'", "'24h'"], ["'0'", "'25h'"]),
        ("upstream", "max_idle", ["0", "100_000"], ["-1", "100_001"]),
        ("auth.shell", "max_body", ["'0B'", "'1GiB'"], ["'-1B'", "'1048577KiB'"]),
        ("auth.shell", "max_unverified", ["'8MiB'", "'1GiB'"], ["'8191KiB'", "'1025MiB'"]),
        ("cache", "max_entries", ["1", "1_000_000_000"], ["0", "1_000_000_001"]),
        ("cache", "max_negative_entries", ["1", "0x3b9aca00"], ["0", "0x3b9aca01"]),
        ("cache", "max_bytes", ["'1MiB'", "'1024GiB'"], ["'1023KiB'", "'1025GiB'"]),
        ("cache", "max_body", ["'1B'", "'1GiB'"], ["'0B'", "'2GiB'"]),
        ("cache", "wait", ["'0s'", "'1h'"], ["'-1s'", "'2h'"]),
        ("cache.authorized_keys", "ttl", ["'0s'", "'24h'"], ["''", "'25h'"]),
        ("cache.authorized_keys", "negative_ttl", ["'0s'", "'24h'"], ["'s'", "'86401s'"]),
        ("cache.discover", "ttl", ["'0ms'", "'24h'"], ["'1.5s'", "'1d'"]),
        ("cache.discover", "negative_ttl", ["'0m'", "'24h'"], ["'5'", "'25h'"]),
        ("cache.discover", "stale_while_revalidate", ["'0s'", "'1h'"], ["'25h'", "'-1s'"]),
        ("cache.discover", "stale_if_error", ["'30s'", "'168h'"], ["'169h'", "60"]),
        ("cache.check", "ttl", ["'0s'", "'5s'"], ["'5S'", "'25h'"]),
        ("cache", "stale_wait", ["'1s'", "'1h'"], ["'999ms'", "5"]),
        ("cache", "max_refreshes", ["1", "10000"], ["10001", "0"]),
        ("cache", "jitter_percent", ["0", "50"], ["51", "'10%'"]),
        ("cache.shadow", "one_in", ["0", "1_000_000_000"], ["1_000_000_001", "-1"]),
        ("cache.shadow", "max_per_second", ["1", "10_000"], ["0", "10_001"]),
        ("cache.shadow", "slow", ["'1ms'", "'1h'"], ["'0s'", "'2h'"]),
        ("admin", "connections", ["1", "1_000_000"], ["0", "1_000_001"]),
        ("limits", "connections", ["1", "1_000_000"], ["0", "1_000_001"]),
        ("limits", "head", ["'16KiB'", "'64KiB'"], ["'1023B'", "'65KiB'"]),
        ("limits", "headers", ["8", "1_000"], ["7", "1_001"]),
        ("limits", "target", ["'2KiB'", "'63KiB'"], ["'2047B'", "'64KiB'"]),
        ("limits", "first_byte_timeout", ["'1ms'", "'1h'"], ["'0s'", "'2h'"]),
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
            let problems = files.problems(&text(value));
            assert!(problems.is_empty(), "{key} = {value}: {problems:?}");
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
        (
            format!("{LEAST}[cache.discover]\nstale_if_error = '29s'"),
            "cache.discover.stale_if_error: is shorter",
        ),
        (
            format!("{LEAST}[limits]\ndrain_timeout = '61s'\n[upstream.classes.kas]\nhold = '61s'"),
            "upstream.classes.kas.hold: is longer than clients",
        ),
        (
            format!("{LEAST}[upstream.classes.access]\nresponse_timeout = '61s'\ntotal_timeout = '60s'"),
            "upstream.classes.access.response_timeout: is longer than the total_timeout of the class, 1m",
        ),
        (
            LEAST.replace("[auth", "total_timeout = '4h'\n[auth"),
            "upstream.classes.lookup.total_timeout: is longer than gitlab-sshd waits",
        ),
        (
            format!("{LEAST}[upstream.classes.lookup]\ntotal_timeout = '0s'"),
            "upstream.classes.lookup.total_timeout: is longer than gitlab-sshd waits",
        ),
        (
            LEAST.replace("[auth", "hold = '20s'\n[auth"),
            "upstream.classes.lookup.hold: is longer than the total_timeout of the class, 4s",
        ),
        (
            format!("{LEAST}[upstream.classes.lookup]\nhold = '3s'\ntotal_timeout = '2s'"),
            "upstream.classes.lookup.hold: is longer than the total_timeout of the class, 2s",
        ),
        (
            format!("{LEAST}[limits]\ndrain_timeout = '4s'"),
            "limits.drain_timeout: is shorter than upstream.hold",
        ),
        (
            format!("{LEAST}[upstream.ejection]\nfailures = 1"),
            "upstream.ejection: does nothing while there is one",
        ),
        (
            LEAST.replace("[auth", "idle_timeout = '20s'\n[auth"),
            "upstream.idle_timeout: is not shorter than Puma keeps connections",
        ),
        (format!("{LEAST}[cache]\nwait = '3s'"), "cache.wait: is shorter than the response_timeout"),
        (format!("{LEAST}[limits]\nhead = '16383B'"), "limits.head: SSH keys travel in the query"),
        (format!("{LEAST}[limits]\ntarget = '8191B'"), "limits.target: SSH keys travel in the query"),
        (
            format!("{LEAST}[limits]\nhead = '64KiB'\ntarget = '60KiB'"),
            "limits.target: is more than Puma takes unless it was built for it: it needs a PUMA_QUERY_STRING_MAX_LENGTH of \
             61440 and a PUMA_REQUEST_URI_MAX_LENGTH of 62464",
        ),
    ] {
        let warnings = files.warnings(&text);
        assert!(warnings.len() == 1 && warnings[0].contains(told), "{text}\n{warnings:?}");
    }
}

/// A target of which no head could have room is told, too.
#[test]
fn a_target_needs_room_in_the_head() {
    let files = Files::new();
    for (limits, is_told) in [
        ("target = '31KiB'", false),
        ("target = '32KiB'", true),
        ("target = '60KiB'", true),
        ("head = '64KiB'\ntarget = '63KiB'", false),
        ("head = '16KiB'\ntarget = '12KiB'", false),
        ("head = '4KiB'", false),
    ] {
        let warnings = files.warnings(&format!("{LEAST}[limits]\n{limits}"));
        let is_there = warnings.iter().any(|told| told.contains("limits.head: leaves no room"));
        assert_eq!(is_there, is_told, "{limits}: {warnings:?}");
    }
}

#[test]
fn an_upstream_that_is_the_gateway_itself_is_refused() {
    let files = Files::new();
    let own = "[[listen]]\naddress = \"0.0.0.0:8181\"\n[[listen]]\naddress = \"unix:/run/railgate.sock\"\n";
    let own = format!("{own}[hooks]\naddress = \"127.0.0.1:8282\"\ntoken_file = \"DIR/hook_token\"\n");
    for (url, listener) in [
        ("http://127.0.0.1:8181", Some("0.0.0.0:8181")),
        ("http://localhost:8181/gitlab", Some("0.0.0.0:8181")),
        ("http+unix://%2Frun%2Frailgate.sock", Some("unix:/run/railgate.sock")),
        ("http://localhost:9181", Some("127.0.0.1:9181")),
        ("http://127.0.0.1:8282", Some("127.0.0.1:8282")),
        ("http://127.0.0.1:8080", None),
    ] {
        let one = LEAST.replace("http://127.0.0.1:8080", url);
        assert!(one.contains(url), "{one}");
        let several = LEAST.replace(
            "url = \"http://127.0.0.1:8080\"",
            &format!(
                "server = [{{ url = \"http://10.0.0.1\" }}, {{ url = \"{}\" }}]",
                url.replace("/gitlab", "")
            ),
        );
        assert!(several.contains("10.0.0.1"), "{several}");
        for (text, key) in [(one, "upstream.url"), (several, "upstream.server.url")] {
            let problems = files.problems(&format!("{own}{text}"));
            let told =
                listener.map(|own| format!("{key}: leads back to the gateway's own listener on {own}; "));
            assert_eq!(problems.len(), usize::from(told.is_some()), "{url}: {problems:?}");
            assert!(told.is_none_or(|told| problems[0].contains(&told)), "{url}: {problems:?}");
        }
    }
}

/// Those that listen by default, too.
#[test]
fn an_upstream_that_is_a_default_listener_is_refused() {
    let files = Files::new();
    for (port, is_told) in [(8181, true), (9181, true), (8282, false)] {
        let problems = files.problems(&LEAST.replace("8080", &port.to_string()));
        assert_eq!(problems.len(), usize::from(is_told), "{port}: {problems:?}");
    }
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

#[test]
fn hooks_want_a_credential_and_an_address_of_their_own() {
    let files = Files::new();
    let token = "token_file = 'DIR/hook_token'";
    for (section, told) in [
        (token.to_owned(), "test.toml:5: hooks.address: is required"),
        (
            "address = '127.0.0.1:8282'".into(),
            "test.toml:5: hooks.token_file: is required in [hooks], or signing",
        ),
        (format!("address = '127.0.0.1:9181'\n{token}"), "test.toml:6: hooks.address: 127.0.0.1:9181 is the"),
        (format!("address = '127.0.0.1:8181'\n{token}"), "test.toml:6: hooks.address: 127.0.0.1:8181 is the"),
        (
            "address = '127.0.0.1:8282'\nsigning_token_file = 'DIR/hook_token'".into(),
            "test.toml:7: hooks.signing_token_file: DIR/hook_token does not hold `whsec_`",
        ),
    ] {
        let told_is = files.problems(&format!("{LEAST}[hooks]\n{section}"));
        assert!(told_is.len() == 1 && told_is[0].starts_with(told), "{section}\n{told_is:?}");
    }
}
