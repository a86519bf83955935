mod admin;
mod all_mistakes;
mod documented;
mod files;
mod fleet;
mod keys;
mod listeners;
mod mistakes;
mod restart;
mod sections;
mod shipped;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use toml::{Table, Value};

use super::*;
use crate::server::{
    DEFAULT_OPERATOR_CONNECTIONS, ListenAddress, ListenOptions, ListenSettings, ServerLimits, SocketOwner,
};
use crate::upstream::UpstreamTarget;
use crate::{auth, cache, upstream};

const ANNOTATED: &str = include_str!("../../config/railgate.toml");
const MINIMAL: &str = include_str!("../../config/railgate.minimal.toml");
const KUBERNETES: &str = include_str!("../../deploy/kubernetes.yaml");

/// The required keys; tests append others.
const BASE: &str = "\
[upstream]
url = \"http://127.0.0.1:8080\"
[auth.shell]
secret_file = \"DIR/gitlab_shell_secret\"
";

/// A directory with secrets, `DIR` in the texts of these tests. It is removed when the test ends.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("railgate-config-{}-{number}", std::process::id()));
        // Readable by this user only, as a folder of secrets is to be.
        fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
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
        files.write("tls.pem", &cert.pem());
        files.write("collector-ca.pem", &cert.pem());
        files.write("valkey-ca.pem", &cert.pem());
        files.write("valkey_password", "v4lkey\n");
        files.write("sentinel_password", "s3ntinel\n");
        files.write(
            "tracing.headers",
            "# For the collector.\n\nAuthorization: Bearer c0llector\r\nX-Scope-OrgID:a\n",
        );
        files.write("tls.key", &signing_key.serialize_pem());
        files.set_mode("tls.key", 0o640);
        files
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The text with the paths of these files.
    fn with_paths(&self, text: &str) -> String {
        let dir = self.dir.to_str().unwrap();
        let text = text.replace("/var/opt/gitlab/gitlab-rails/etc", dir).replace("/etc/railgate", dir);
        text.replace("/var/lib/railgate", dir).replace("DIR", dir)
    }

    fn parse(&self, text: &str) -> Result<LoadedConfig, ConfigError> {
        parse("test.toml", &self.with_paths(text))
    }

    fn load(&self, text: &str) -> GatewayConfig {
        let loaded = self.parse(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert_eq!(loaded.warnings, [], "{text}");
        loaded.config
    }

    fn errors(&self, text: &str) -> Vec<String> {
        let ConfigError(errors) = self.parse(text).map_or_else(|errors| errors, |_| ConfigError(vec![]));
        errors.iter().map(|error| self.shown(error)).collect()
    }

    fn warnings(&self, text: &str) -> Vec<String> {
        let loaded = self.parse(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        loaded.warnings.iter().map(|warning| self.shown(warning)).collect()
    }

    fn shown(&self, diagnostic: &Diagnostic) -> String {
        diagnostic.to_string().replace(self.dir.to_str().unwrap(), "DIR")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn tcp(port: u16) -> ListenAddress {
    ListenAddress::Tcp(([127, 0, 0, 1], port).into())
}

fn unix(path: &str, mode: u32) -> ListenAddress {
    ListenAddress::Unix { path: path.into(), mode, owner: SocketOwner::default() }
}

/// The limits of each range, and values just beyond them.
#[test]
fn ranges_include_their_limits_and_nothing_beyond() {
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
                "upstream" => BASE.replace("[auth.shell]", &format!("{line}[auth.shell]")),
                "auth.shell" => format!("{BASE}{line}"),
                _ => format!("{BASE}[{section}]\n{line}"),
            }
        };
        for value in within {
            let errors = files.errors(&text(value));
            assert!(errors.is_empty(), "{key} = {value}: {errors:?}");
        }
        for value in beyond {
            let errors = files.errors(&text(value));
            let is_expected = |error: &String| error.contains(&format!(": {section}.{key}: expected a "));
            assert!(errors.len() == 1 && errors.iter().all(is_expected), "{key} = {value}: {errors:?}");
        }
    }
}

/// `openssl x509 -req -signkey`, without extensions.
const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIIBIzCBywIUcZ4879rNdbv6PraqhJ7BeNegZZkwCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyOTIzNDAyOFoYDzIxMjYxMTA1MjM0MDI4
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AARrO6LydSZPBzhLe2JhaaYOBm6felyFGqelgfE92z09fDDEACTpDxEuwdzexxh6
LT94pgU2MGImNFUSr+pki+M0MAoGCCqGSM49BAMCA0cAMEQCIGxHRqJX9jDGNrKb
rFV2ZnrsMae1AC/c4koXN256fHWaAiArnqwJi1hxSDBTDTEtl/g05weSzzGNQafu
XkNJKbHk+w==
-----END CERTIFICATE-----
";

#[test]
fn a_secret_that_every_user_can_read_gives_a_warning() {
    let files = Files::new();
    for (folder, file, is_readable) in
        [(0o700, 0o644, false), (0o755, 0o644, true), (0o755, 0o640, false), (0o711, 0o604, true)]
    {
        fs::set_permissions(&files.dir, fs::Permissions::from_mode(folder)).unwrap();
        files.set_mode("gitlab_shell_secret", file);
        let warnings = files.warnings(BASE);
        assert_eq!(warnings.len(), usize::from(is_readable), "{folder:o} {file:o}: {warnings:?}");
        assert!(warnings.iter().all(|one| one.contains("can be read by every user of this machine")));
    }
}

#[test]
fn suspicious_settings_give_a_warning() {
    let files = Files::new();
    files.write("padded", " s3cret \n");
    files.write("version_1.pem", VERSION_1);
    let padded = BASE.replace("gitlab_shell_secret", "padded");
    for (text, expected) in [
        (padded, "auth.shell.secret_file: the secret has white space around it"),
        (format!("{BASE}[cache.check]\nttl = '5001ms'"), "cache.check.ttl: health checks would see"),
        (
            format!("{BASE}[cache.discover]\nstale_if_error = '29s'"),
            "cache.discover.stale_if_error: is shorter",
        ),
        (
            format!("{BASE}[limits]\ndrain_timeout = '61s'\n[upstream.classes.kas]\nhold = '61s'"),
            "upstream.classes.kas.hold: is longer than clients",
        ),
        (
            format!("{BASE}[upstream.classes.access]\nresponse_timeout = '61s'\ntotal_timeout = '60s'"),
            "upstream.classes.access.response_timeout: is longer than the total_timeout of the class, 1m",
        ),
        (
            BASE.replace("[auth", "total_timeout = '4h'\n[auth"),
            "upstream.classes.lookup.total_timeout: is longer than gitlab-sshd waits",
        ),
        (
            format!("{BASE}[upstream.classes.lookup]\ntotal_timeout = '0s'"),
            "upstream.classes.lookup.total_timeout: is longer than gitlab-sshd waits",
        ),
        (
            BASE.replace("[auth", "hold = '20s'\n[auth"),
            "upstream.classes.lookup.hold: is longer than the total_timeout of the class, 4s",
        ),
        (
            format!("{BASE}[upstream.classes.lookup]\nhold = '3s'\ntotal_timeout = '2s'"),
            "upstream.classes.lookup.hold: is longer than the total_timeout of the class, 2s",
        ),
        (
            format!("{BASE}[limits]\ndrain_timeout = '4s'"),
            "limits.drain_timeout: is shorter than upstream.hold",
        ),
        (
            format!("{BASE}[admin]\naddress = '0.0.0.0:9181'"),
            "admin.address: can be reached from other machines, and there is no admin.token_file",
        ),
        (
            format!("{BASE}[upstream.ejection]\nfailures = 1"),
            "upstream.ejection: has no effect with one server",
        ),
        (
            BASE.replace("http://127.0.0.1:8080", "http://[fe80::1%25nowhere0]:8080"),
            "upstream.url: this machine has no interface nowhere0",
        ),
        (
            BASE.replace("http://127.0.0.1", "https://rails")
                + "[upstream.tls]\nca_file = 'DIR/version_1.pem'\n",
            "upstream.tls.ca_file: holds a certificate of X.509 version 1",
        ),
        (
            BASE.replace("[auth", "idle_timeout = '20s'\n[auth"),
            "upstream.idle_timeout: is not shorter than Puma keeps connections",
        ),
        (format!("{BASE}[cache]\nwait = '3s'"), "cache.wait: is shorter than the response_timeout"),
        (format!("{BASE}[limits]\nhead = '16383B'"), "limits.head: SSH keys travel in the query"),
        (format!("{BASE}[limits]\ntarget = '8191B'"), "limits.target: SSH keys travel in the query"),
        (
            format!("{BASE}[limits]\nhead = '64KiB'\ntarget = '60KiB'"),
            "limits.target: is more than Puma accepts unless it was built for it: it needs a PUMA_QUERY_STRING_MAX_LENGTH of \
             61440 and a PUMA_REQUEST_URI_MAX_LENGTH of 62464",
        ),
    ] {
        let warnings = files.warnings(&text);
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{text}\n{warnings:?}");
    }
}

#[test]
fn a_target_that_does_not_fit_into_the_head_gives_a_warning() {
    let files = Files::new();
    for (limits, is_reported) in [
        ("target = '31KiB'", false),
        ("target = '32KiB'", true),
        ("target = '60KiB'", true),
        ("head = '64KiB'\ntarget = '63KiB'", false),
        ("head = '16KiB'\ntarget = '12KiB'", false),
        ("head = '4KiB'", false),
    ] {
        let warnings = files.warnings(&format!("{BASE}[limits]\n{limits}"));
        let has_warning = warnings.iter().any(|warning| warning.contains("limits.head: leaves no room"));
        assert_eq!(has_warning, is_reported, "{limits}: {warnings:?}");
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
        let one = BASE.replace("http://127.0.0.1:8080", url);
        assert!(one.contains(url), "{one}");
        let several = BASE.replace(
            "url = \"http://127.0.0.1:8080\"",
            &format!(
                "server = [{{ url = \"http://10.0.0.1\" }}, {{ url = \"{}\" }}]",
                url.replace("/gitlab", "")
            ),
        );
        assert!(several.contains("10.0.0.1"), "{several}");
        for (text, key) in [(one, "upstream.url"), (several, "upstream.server.url")] {
            let errors = files.errors(&format!("{own}{text}"));
            let expected = listener.map(|own| {
                format!(
                    "{key}: leads back to the gateway's own listener on {own}; use the address of Workhorse"
                )
            });
            assert_eq!(errors.len(), usize::from(expected.is_some()), "{url}: {errors:?}");
            assert!(expected.is_none_or(|expected| errors[0].contains(&expected)), "{url}: {errors:?}");
        }
    }
}

#[test]
fn an_upstream_that_is_a_default_listener_is_refused() {
    let files = Files::new();
    for (port, is_reported) in [(8181, true), (9181, true), (8282, false)] {
        let errors = files.errors(&BASE.replace("8080", &port.to_string()));
        assert_eq!(errors.len(), usize::from(is_reported), "{port}: {errors:?}");
    }
}

#[test]
fn every_choice_is_accepted() {
    let files = Files::new();
    for (word, level) in [
        ("error", tracing::Level::ERROR),
        ("warn", tracing::Level::WARN),
        ("info", tracing::Level::INFO),
        ("debug", tracing::Level::DEBUG),
    ] {
        assert_eq!(files.load(&format!("{BASE}[log]\nlevel = '{word}'")).log.level, level);
    }
    let log = files.load(&format!("{BASE}[log]\nformat = 'pretty'\nrequests = false")).log;
    assert_eq!((log.format, log.requests), (crate::log::LogFormat::Pretty, false));
    for (accept, jwt, shared_secret) in [("'jwt'", true, false), ("'shared_secret'", false, true)] {
        let auth = files.load(&format!("{BASE}accept = [{accept}]")).auth;
        assert_eq!((auth.accept_jwt, auth.accept_shared_secret), (jwt, shared_secret));
    }
}

#[test]
fn hooks_need_a_token_and_an_address_of_their_own() {
    let files = Files::new();
    let token = "token_file = 'DIR/hook_token'";
    for (section, expected) in [
        (token.to_owned(), "test.toml:5: hooks.address: is required"),
        (
            "address = '127.0.0.1:8282'".into(),
            "test.toml:5: hooks.token_file: is required in [hooks], or signing",
        ),
        (format!("address = '127.0.0.1:9181'\n{token}"), "test.toml:6: hooks.address: 127.0.0.1:9181 is the"),
        (format!("address = '127.0.0.1:8181'\n{token}"), "test.toml:6: hooks.address: 127.0.0.1:8181 is the"),
        (
            "address = '127.0.0.1:8282'\nsigning_token_file = 'DIR/hook_token'".into(),
            "test.toml:7: hooks.signing_token_file: DIR/hook_token is not a signing token, `whsec_`",
        ),
    ] {
        let errors = files.errors(&format!("{BASE}[hooks]\n{section}"));
        assert!(errors.len() == 1 && errors[0].starts_with(expected), "{section}\n{errors:?}");
    }
}
