//! One file with mistakes of all kinds, each with the error that it gives.

use super::*;

/// The errors that an annotated text should give: a comment `#^ …` is for the line above it.
pub(super) fn expected(text: &str) -> Vec<String> {
    let mut line_above = 0;
    let mut expected = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match line.strip_prefix("#^ ") {
            Some(message) => expected.push(format!("test.toml:{line_above}: {message}")),
            None => line_above = index + 1,
        }
    }
    expected
}

const MISTAKES: &str = r#"colour = "red"
#^ colour: unknown key; known here: workers, listen, admin, hooks, upstream, auth, cache, limits, log, upgrade, tracing, fleet

[[listen]]
#^ listen.address: is required: an IP address with a port, unix: and an absolute path, or systemd: and a name, such as "127.0.0.1:8181"
adress = "127.0.0.1:8181"
#^ listen.adress: unknown key; did you mean "address"?

[[listen]]
address = "localhost:8181"
#^ listen.address: expected an IP address with a port, unix: and an absolute path, or systemd: and a name, such as "127.0.0.1:8181", found "localhost:8181"

[[listen]]
address = "unix:run/sock"
#^ listen.address: expected an IP address with a port, unix: and an absolute path, or systemd: and a name, such as "127.0.0.1:8181", found "unix:run/sock"

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
hosts = ["railgate", "railgate:9181"]
#^ admin.hosts: "railgate:9181" is not a host name; list names without a port, such as ["railgate.example"] (addresses and localhost are always accepted)
address = "127.0.0.1:8181"
#^ admin.address: 127.0.0.1:8181 is the address of a [[listen]] already; choose another port

[upgrade]
socket = "upgrade.sock"
#^ upgrade.socket: expected the absolute path of a socket, of at most 107 bytes, found "upgrade.sock"

[upstream]
url = "ftp://rails"
#^ upstream.url: must begin with http://, https:// or http+unix://
host = "a b"
#^ upstream.host: expected a host name, perhaps with a port, found "a b"
connect_timeout = 5
#^ upstream.connect_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found the number 5
response_timeout = "60"
#^ upstream.response_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found "60"
idle_timeout = "2h"
#^ upstream.idle_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found "2h"
idle_timout = "15s"
#^ upstream.idle_timout: unknown key; did you mean "idle_timeout"?
max_idle = "many"
#^ upstream.max_idle: expected a whole number from 0 to 100000, found the string "many"
forward_prefixes = ["/api/v4/geo", "/api/v4/geo/"]
#^ upstream.forward_prefixes: "/api/v4/geo" must name a path between two slashes, such as "/api/v4/geo/"
retries = 3
#^ upstream.retries: unknown key; known here: protocol, url, server, tls, slow_start, ejection, health, host, connect_timeout, response_timeout, body_timeout, total_timeout, hold, max_held, resend_percent, resend_unread, threads, classes, idle_timeout, max_connection_age, max_idle, forward_prefixes, credential, secret_file

[auth]
secret_overlap = "25h"
#^ auth.secret_overlap: expected a duration from 0s to 24h with its unit (ms, s, m, h), such as "60s", found "25h"

[auth.shell]
secret_file = "/nowhere/secret"
#^ auth.shell.secret_file: /nowhere/secret cannot be read: No such file or directory (os error 2); check the path, and that this user may read it
accept = ["jwt", "password"]
#^ auth.shell.accept: unknown credential "password"; known are "jwt" and "shared_secret"
max_body = 1024
#^ auth.shell.max_body: expected a size from 0 to 1073741824 bytes with its unit (B, KiB, MiB, GiB), such as "64KiB", found the number 1024

[auth.kas]
secret_file = "DIR/gitlab_shell_secret"
#^ auth.kas.secret_file: DIR/gitlab_shell_secret is not strict Base64 (standard alphabet, padded, one line); copy the file that GitLab uses
audience = ""
#^ auth.kas.audience: expected the audience of kas tokens, such as "gitlab", found ""

[auth.pages]
#^ auth.pages: unknown key; known here: secret_overlap, kas, shell
secret_file = "DIR/gitlab_shell_secret"

[cache]
max_entries = 0
#^ cache.max_entries: expected a whole number from 1 to 1000000000, found the number 0
max_negative_entries = -1
#^ cache.max_negative_entries: expected a whole number from 1 to 1000000000, found the number -1
max_bytes = "2"
#^ cache.max_bytes: expected a size from 1048576 to 1099511627776 bytes with its unit (B, KiB, MiB, GiB), such as "64KiB", found "2"
max_body = "64KB"
#^ cache.max_body: expected a size from 1 to 1073741824 bytes with its unit (B, KiB, MiB, GiB), such as "64KiB", found "64KB"
snapshot = "cache"
#^ cache.snapshot: expected the absolute path of a file, found "cache"
jitter_percent = 51
#^ cache.jitter_percent: expected a whole number from 0 to 50, found the number 51

[cache.authorized_keys]
tll = "60s"
#^ cache.authorized_keys.tll: unknown key; did you mean "ttl"?

[cache.check]
negative_ttl = "1s"
#^ cache.check.negative_ttl: unknown key; known here: ttl; there are cache.authorized_keys.negative_ttl, cache.discover.negative_ttl

[cache.allowed]
#^ cache.allowed: unknown key; known here: authorized_keys, discover, check, shadow, max_entries, max_negative_entries, max_bytes, max_body, wait, stale_wait, max_refreshes, snapshot, jitter_percent
ttl = "1s"

[limits]
connections = 1e4
#^ limits.connections: expected a whole number from 1 to 1000000, found the number 1e4
head = true
#^ limits.head: expected a size from 1024 to 65536 bytes with its unit (B, KiB, MiB, GiB), such as "64KiB", found a value of type boolean
headers = 5_000
#^ limits.headers: expected a whole number from 8 to 1000, found the number 5000
head_timeout = 1.5
#^ limits.head_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found the number 1.5
idle_timeout = ["75s"]
#^ limits.idle_timeout: expected a duration from 1ms to 1h with its unit (ms, s, m, h), such as "60s", found a value of type array

[log]
format = "xml"
#^ log.format: expected "json" or "pretty", found "xml"
level = "trace"
#^ log.level: expected "error", "warn", "info" or "debug", found "trace"
requests = "yes"
#^ log.requests: expected true or false, found the string "yes"
file = "/var/log/railgate.log"
#^ log.file: unknown key; known here: format, level, requests
"#;

#[test]
fn all_mistakes_are_reported_in_one_run_with_line_and_key() {
    let expected = expected(MISTAKES);
    assert!(expected.len() > 35, "the annotations were not found");
    assert_eq!(Files::new().errors(MISTAKES), expected);
}
