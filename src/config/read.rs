//! Which keys there are, and what they are turned into.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{Document, Placed, Section};
use super::{Log, LogFormat, Settings, units};
use crate::cache::Lifetimes;
use crate::secret::{KasSecret, LoadError, ShellSecret};
use crate::server::{Endpoint, Limits};
use crate::upstream::{self, Target};
use crate::{auth, authority, cache};

/// Reads the whole file. `None` if something without a default is missing or wrong.
pub(super) fn settings(document: &Document<'_>) -> Option<Settings> {
    let mut root = document.root();
    let listen = listen(document, &mut root);
    let admin = admin(document, &mut root, &listen);
    let upstream = upstream(document, &mut root);
    let auth = auth(document, &mut root);
    let cache = cache(document, &mut root);
    let limits = limits(document, &mut root);
    let log = log(&mut root);
    root.finish();
    let (upstream, forward_prefixes) = upstream?;
    let listen = listen.into_iter().map(|endpoint| endpoint.value).collect();
    Some(Settings { listen, admin, upstream, forward_prefixes, auth: auth?, cache, limits, log })
}

const DEFAULT_LISTEN: &str = "127.0.0.1:8181";
const DEFAULT_ADMIN: &str = "127.0.0.1:9181";
const DEFAULT_MODE: u32 = 0o660;
const AN_ADDRESS: &str =
    "an IP address with a port, or unix: and an absolute path, such as \"127.0.0.1:8181\"";

fn listen(document: &Document<'_>, root: &mut Section<'_, '_>) -> Vec<Placed<Endpoint>> {
    let Some(sections) = root.sections("listen") else {
        return endpoint_of(DEFAULT_LISTEN)
            .map(|value| Placed { value, key: "listen".to_owned(), at: 0 })
            .into_iter()
            .collect();
    };
    let mut seen = HashSet::new();
    let mut endpoints = Vec::new();
    for mut section in sections {
        let (at, name) = (section.at(), section.name("address"));
        if !section.has("address") {
            document.problem(at, &name, format!("is required: {AN_ADDRESS}"));
        }
        let endpoint = endpoint(document, &mut section);
        section.finish();
        let Some(endpoint) = endpoint else { continue };
        if !seen.insert(endpoint.value.to_string()) {
            document.problem(
                endpoint.at,
                &endpoint.key,
                "another [[listen]] has this address already; drop one",
            );
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn admin(document: &Document<'_>, root: &mut Section<'_, '_>, listen: &[Placed<Endpoint>]) -> Endpoint {
    let fallback =
        || endpoint_of(DEFAULT_ADMIN).unwrap_or_else(|| Endpoint::Tcp(([127, 0, 0, 1], 9181).into()));
    let Some(mut section) = root.section("admin") else { return fallback() };
    let endpoint = endpoint(document, &mut section);
    section.finish();
    let Some(endpoint) = endpoint else { return fallback() };
    let is_taken = |other: &Placed<Endpoint>| other.value.to_string() == endpoint.value.to_string();
    if listen.iter().any(is_taken) {
        document.problem(
            endpoint.at,
            &endpoint.key,
            "a [[listen]] has this address already; choose another port",
        );
    }
    endpoint.value
}

fn endpoint(document: &Document<'_>, section: &mut Section<'_, '_>) -> Option<Placed<Endpoint>> {
    let address = section.text("address", AN_ADDRESS, endpoint_of);
    let mode = section.text("mode", "permission bits in octal, such as \"0660\"", |text| {
        u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
    });
    let mut address = address?;
    match (&mut address.value, mode) {
        (Endpoint::Unix { mode, .. }, Some(given)) => *mode = given.value,
        (Endpoint::Tcp(_), Some(given)) => {
            document.problem(given.at, &given.key, "only a unix socket has a mode; drop the key");
        }
        (_, None) => {}
    }
    Some(address)
}

fn endpoint_of(text: &str) -> Option<Endpoint> {
    match text.strip_prefix("unix:") {
        // 107 bytes and a NUL fit into the kernel's sockaddr_un.
        Some(path) if path.starts_with('/') && path.len() <= 107 => {
            Some(Endpoint::Unix { path: PathBuf::from(path), mode: DEFAULT_MODE })
        }
        Some(_) => None,
        None => text.parse().ok().map(Endpoint::Tcp),
    }
}

fn upstream(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
) -> Option<(upstream::Settings, Vec<String>)> {
    let missing = |at| {
        document.problem(
            at,
            "upstream.url",
            "is required: where Rails listens, such as \"http://127.0.0.1:8080\"",
        );
    };
    let Some(mut section) = root.section("upstream") else {
        missing(0);
        return None;
    };
    let has_url = section.has("url");
    let target = section.take("url", |value| {
        let text = value.as_str().ok_or("expected a URL in quotes, such as \"http://127.0.0.1:8080\"")?;
        Target::parse(text).map_err(|error| error.to_string())
    });
    if !has_url {
        missing(section.at());
    }
    let host = section.text("host", "a host name, perhaps with a port", |text| {
        authority::parse(text).map(|_| text.to_owned())
    });
    let connect_timeout =
        duration(&mut section, "connect_timeout", upstream::DEFAULT_CONNECT_TIMEOUT, MILLISECOND..HOUR);
    let response_timeout =
        duration(&mut section, "response_timeout", upstream::DEFAULT_RESPONSE_TIMEOUT, MILLISECOND..HOUR);
    let idle_timeout =
        duration(&mut section, "idle_timeout", upstream::DEFAULT_IDLE_TIMEOUT, MILLISECOND..HOUR);
    let max_idle = section.count("max_idle", 0..100_001);
    let forward_prefixes = forward_prefixes(document, &mut section);
    section.finish();
    let settings = upstream::Settings {
        target: target?.value,
        host: host.map(|host| host.value),
        connect_timeout,
        response_timeout,
        idle_timeout,
        max_idle: max_idle.map_or(upstream::DEFAULT_MAX_IDLE, as_usize),
    };
    Some((settings, forward_prefixes))
}

fn forward_prefixes(document: &Document<'_>, section: &mut Section<'_, '_>) -> Vec<String> {
    let Some(prefixes) = section.list("forward_prefixes") else { return Vec::new() };
    for prefix in &prefixes.value {
        let is_good =
            prefix.starts_with('/') && prefix.ends_with('/') && !prefix.contains("//") && prefix.len() > 1;
        if !is_good {
            let message = format!("{prefix:?} must begin and end with one slash, such as \"/api/v4/geo/\"");
            document.problem(prefixes.at, &prefixes.key, message);
        }
    }
    prefixes.value
}

fn auth(document: &Document<'_>, root: &mut Section<'_, '_>) -> Option<auth::Settings> {
    let missing = |at| {
        let message = "is required: the file with the secret that GitLab Shell and Rails share, \
                       such as \"/var/opt/gitlab/gitlab-shell/.gitlab_shell_secret\"";
        document.problem(at, "auth.shell.secret_file", message);
    };
    let Some(mut section) = root.section("auth") else {
        missing(0);
        return None;
    };
    let kas = section.section("kas").and_then(|section| kas(document, section));
    let at = section.at();
    let shell = section.section("shell");
    section.finish();
    let Some(mut shell) = shell else {
        missing(at);
        return None;
    };
    let has_file = shell.has("secret_file");
    let secret = secret(document, &mut shell, ShellSecret::load);
    if !has_file {
        missing(shell.at());
    }
    if let Some(secret) = &secret
        && secret.value.has_surrounding_whitespace()
    {
        let message = "the secret has white space around it, which GitLab Shell trims and Rails does not: \
                       tokens will not verify; rewrite the file without it";
        document.warn(secret.at, &secret.key, message);
    }
    let accept = shell.list("accept");
    let (accept_jwt, accept_shared_secret) = accepted(document, accept.as_ref());
    let max_body = size(&mut shell, "max_body", auth::DEFAULT_MAX_BODY, 0..GIBIBYTE);
    shell.finish();
    Some(auth::Settings { shell_secret: secret?.value, accept_jwt, accept_shared_secret, max_body, kas })
}

fn accepted(document: &Document<'_>, accept: Option<&Placed<Vec<String>>>) -> (bool, bool) {
    let Some(accept) = accept else { return (true, true) };
    let has = |name: &str| accept.value.iter().any(|item| item == name);
    for item in &accept.value {
        if item != "jwt" && item != "shared_secret" {
            let message = format!("unknown credential {item:?}; known are \"jwt\" and \"shared_secret\"");
            document.problem(accept.at, &accept.key, message);
        }
    }
    if accept.value.is_empty() {
        document.problem(
            accept.at,
            &accept.key,
            "must name \"jwt\", \"shared_secret\" or both, or nobody gets in",
        );
    }
    (has("jwt"), has("shared_secret"))
}

fn kas(document: &Document<'_>, mut section: Section<'_, '_>) -> Option<auth::Kas> {
    if !section.has("secret_file") {
        document.problem(
            section.at(),
            "auth.kas.secret_file",
            "is required in [auth.kas]; drop the section to refuse kas calls",
        );
    }
    let secret = secret(document, &mut section, KasSecret::load);
    let audience = section.text("audience", "the audience of kas tokens, such as \"gitlab\"", |text| {
        (!text.is_empty()).then(|| text.to_owned())
    });
    section.finish();
    Some(auth::Kas { secret: secret?.value, audience: audience.map(|audience| audience.value) })
}

fn secret<T>(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    load: impl FnOnce(&Path) -> Result<T, LoadError>,
) -> Option<Placed<T>> {
    let file = section
        .text("secret_file", "the path of a file", |text| (!text.is_empty()).then(|| PathBuf::from(text)))?;
    match load(&file.value) {
        Ok(value) => Some(Placed { value, key: file.key, at: file.at }),
        Err(error) => {
            let advice = match &error {
                LoadError::Unreadable(_) => "; check the path, and that this user may read it",
                _ => "; copy the file that GitLab uses",
            };
            document.problem(file.at, &file.key, format!("{} {error}{advice}", file.value.display()));
            None
        }
    }
}

fn cache(document: &Document<'_>, root: &mut Section<'_, '_>) -> cache::Settings {
    let defaults = cache::Settings::default();
    let Some(mut section) = root.section("cache") else { return defaults };
    let known = defaults.lifetimes;
    let of = |section: Option<Section<'_, '_>>, ttl: Duration, negative: Option<Duration>| {
        let Some(mut section) = section else { return (ttl, negative.unwrap_or_default()) };
        let ttl = duration(&mut section, "ttl", ttl, ZERO..DAY);
        let negative = negative.map(|negative| duration(&mut section, "negative_ttl", negative, ZERO..DAY));
        section.finish();
        (ttl, negative.unwrap_or_default())
    };
    let (authorized_keys, authorized_keys_negative) =
        of(section.section("authorized_keys"), known.authorized_keys, Some(known.authorized_keys_negative));
    let (discover, discover_negative) =
        of(section.section("discover"), known.discover, Some(known.discover_negative));
    let check_section = section.section("check");
    let check_at = check_section.as_ref().map_or(0, Section::at);
    let (check, _) = of(check_section, known.check, None);
    if check > Duration::from_secs(5) {
        document.warn(
            check_at,
            "cache.check.ttl",
            "health checks would see a state that is gone; 1s or 2s is usual",
        );
    }
    let settings = cache::Settings {
        max_entries: section
            .count("max_entries", 1..1_000_000_001)
            .map_or(defaults.max_entries, |count| count.value),
        max_negative_entries: section
            .count("max_negative_entries", 1..1_000_000_001)
            .map_or(defaults.max_negative_entries, |count| count.value),
        max_body: size(&mut section, "max_body", defaults.max_body, 1..GIBIBYTE),
        wait: duration(&mut section, "wait", defaults.wait, ZERO..HOUR),
        lifetimes: Lifetimes {
            authorized_keys,
            authorized_keys_negative,
            discover,
            discover_negative,
            check,
        },
    };
    section.finish();
    settings
}

fn limits(document: &Document<'_>, root: &mut Section<'_, '_>) -> Limits {
    let defaults = Limits::default();
    let Some(mut section) = root.section("limits") else { return defaults };
    let limits = Limits {
        connections: section.count("connections", 1..1_000_001).map_or(defaults.connections, as_usize),
        head: size(&mut section, "head", defaults.head, 1024..1024 * 1024),
        headers: section.count("headers", 8..1_001).map_or(defaults.headers, as_usize),
        head_timeout: duration(&mut section, "head_timeout", defaults.head_timeout, MILLISECOND..HOUR),
        idle_timeout: duration(&mut section, "idle_timeout", defaults.idle_timeout, MILLISECOND..HOUR),
        drain_timeout: duration(&mut section, "drain_timeout", defaults.drain_timeout, ZERO..HOUR),
    };
    if limits.head < 16 * 1024 {
        let message = "SSH keys travel in the query, and some are long; at least 16KiB is advised";
        document.warn(section.at(), "limits.head", message);
    }
    section.finish();
    limits
}

fn log(root: &mut Section<'_, '_>) -> Log {
    let defaults = Log::default();
    let Some(mut section) = root.section("log") else { return defaults };
    let format = section.text("format", "\"json\" or \"pretty\"", |text| match text {
        "json" => Some(LogFormat::Json),
        "pretty" => Some(LogFormat::Pretty),
        _ => None,
    });
    let level = section.text("level", "\"error\", \"warn\", \"info\" or \"debug\"", |text| match text {
        "error" => Some(tracing::Level::ERROR),
        "warn" => Some(tracing::Level::WARN),
        "info" => Some(tracing::Level::INFO),
        "debug" => Some(tracing::Level::DEBUG),
        _ => None,
    });
    let requests = section.flag("requests");
    section.finish();
    Log {
        format: format.map_or(defaults.format, |format| format.value),
        level: level.map_or(defaults.level, |level| level.value),
        requests: requests.map_or(defaults.requests, |requests| requests.value),
    }
}

const ZERO: Duration = Duration::ZERO;
const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
const GIBIBYTE: usize = 1 << 30;

fn duration(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Duration,
    range: Range<Duration>,
) -> Duration {
    let expected = format!(
        "a duration from {:?} to {:?} with its unit (ms, s, m, h), such as \"60s\"",
        range.start, range.end
    );
    let within = |duration: &Duration| (range.start..=range.end).contains(duration);
    section
        .text(key, &expected, |text| units::duration(text).filter(within))
        .map_or(default, |placed| placed.value)
}

fn size(section: &mut Section<'_, '_>, key: &'static str, default: usize, range: Range<usize>) -> usize {
    let expected = format!(
        "a size from {} to {} bytes with its unit (B, KiB, MiB, GiB), such as \"64KiB\"",
        range.start, range.end
    );
    let within = |size: &usize| (range.start..=range.end).contains(size);
    section
        .text(key, &expected, |text| units::size(text).filter(within))
        .map_or(default, |placed| placed.value)
}

fn as_usize(count: Placed<u64>) -> usize {
    usize::try_from(count.value).unwrap_or(usize::MAX)
}
