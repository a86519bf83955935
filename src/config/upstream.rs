//! `[upstream]`: where Rails is, and how requests are sent to it.

use std::time::Duration;

use super::document::{Document, Section};
use super::scalars::{DAY, HOUR, MILLISECOND, ZERO, as_usize, duration, optional_duration};
use super::servers;
use crate::auth::upstream_credential::UpstreamCredentialKind;
use crate::authority;
use crate::route::Class;
use crate::secret::ShellSecret;
use crate::server::ListenAddress;
use crate::upstream::{self, Protocol};

pub(super) struct UpstreamSection {
    pub(super) settings: upstream::UpstreamSettings,
    /// What Rails is shown in place of the caller's credential.
    pub(super) credential: Option<UpstreamCredentialKind>,
    /// The secret of Rails, if it is not that of the callers.
    pub(super) secret: Option<ShellSecret>,
    pub(super) forward_prefixes: Vec<String>,
}

/// `own`: the listeners of the gateway.
pub(super) fn upstream(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    own: &[ListenAddress],
) -> Option<UpstreamSection> {
    let Some(mut section) = root.section("upstream") else {
        servers::missing(document, 0);
        return None;
    };
    let protocol = protocol(&mut section);
    let servers = servers::servers(document, &mut section, protocol, own);
    let (health_checks, ejection) = servers::health(document, &mut section, servers.as_deref());
    let host = section.string("host", "a host name, perhaps with a port", |text| {
        authority::parse(text).map(|_| text.to_owned())
    });
    let connect_timeout =
        duration(&mut section, "connect_timeout", upstream::DEFAULT_CONNECT_TIMEOUT, MILLISECOND..=HOUR);
    let response_timeout = optional_duration(&mut section, "response_timeout", MILLISECOND..=HOUR);
    let body_timeout =
        duration(&mut section, "body_timeout", upstream::DEFAULT_BODY_TIMEOUT, MILLISECOND..=HOUR);
    let total_timeout = optional_duration(&mut section, "total_timeout", ZERO..=DAY);
    let hold = optional_duration(&mut section, "hold", ZERO..=HOUR);
    let max_held = section
        .integer("max_held", 1..1_000_001)
        .map_or(upstream::DEFAULT_MAX_HELD, |count| as_usize(count.value));
    let resend_percent =
        section.integer("resend_percent", 0..101).and_then(|count| u8::try_from(count.value).ok());
    let resend_unread = section.boolean("resend_unread").is_none_or(|flag| flag.value);
    let threads = section.integer("threads", 1..100_001).map(|count| as_usize(count.value));
    let other = upstream::default_other_concurrency(threads, servers.as_deref().unwrap_or_default());
    let classes = classes(&mut section, (response_timeout, total_timeout, hold, other));
    let (idle_timeout, max_connection_age, max_idle) = idle_connections(&mut section);
    let forward_prefixes = forward_prefixes(document, &mut section);
    let (credential, secret) = credential(document, &mut section);
    check_conflicts(document, section.offset(), &classes, (idle_timeout, threads.map(|_| other.0)));
    section.reject_unknown_keys();
    let settings = upstream::UpstreamSettings {
        servers: servers?,
        protocol,
        health_checks,
        ejection,
        load_decay: upstream::DEFAULT_LOAD_DECAY,
        host: host.map(|host| host.value),
        connect_timeout,
        body_timeout,
        max_held,
        resend_percent: resend_percent.unwrap_or(upstream::DEFAULT_RESEND_PERCENT),
        resend_unread,
        classes,
        idle_timeout,
        max_connection_age,
        max_idle,
    };
    Some(UpstreamSection { settings, credential, secret, forward_prefixes })
}

fn protocol(section: &mut Section<'_, '_>) -> Protocol {
    let protocol = section.choice("protocol", &[("http1", Protocol::Http1), ("http2", Protocol::Http2)]);
    protocol.map_or_else(Protocol::default, |protocol| protocol.value)
}

/// How long unused connections are kept, until which age, and how many.
fn idle_connections(section: &mut Section<'_, '_>) -> (Duration, Duration, usize) {
    let idle_timeout = duration(section, "idle_timeout", upstream::DEFAULT_IDLE_TIMEOUT, MILLISECOND..=HOUR);
    let max_age = duration(section, "max_connection_age", upstream::DEFAULT_MAX_CONNECTION_AGE, ZERO..=DAY);
    let max_idle = section.integer("max_idle", 0..100_001);
    (idle_timeout, max_age, max_idle.map_or(upstream::DEFAULT_MAX_IDLE, |count| as_usize(count.value)))
}

fn credential(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
) -> (Option<UpstreamCredentialKind>, Option<ShellSecret>) {
    let kinds = [
        ("as_presented", None),
        ("jwt", Some(UpstreamCredentialKind::Jwt)),
        ("shared_secret", Some(UpstreamCredentialKind::SharedSecret)),
    ];
    let credential = section.choice("credential", &kinds);
    let has_key = credential.is_some();
    let kind = credential.and_then(|credential| credential.value);
    let file = ("secret_file", "copy the file that this GitLab uses");
    let secret = super::auth::secret(document, section, file, ShellSecret::load);
    if let Some(secret) = &secret
        && kind.is_none()
    {
        let message = if has_key {
            "has no effect while upstream.credential is \"as_presented\": Rails gets the caller's credential"
        } else {
            "needs an upstream.credential, \"jwt\" or \"shared_secret\": without it, Rails gets the caller's credential"
        };
        document.error(secret.offset, &secret.key, message);
    }
    (kind, secret.map(|secret| secret.value))
}

/// No caller waits longer: sshd ends a login after two minutes, kas a request far earlier.
const LONGEST_CLIENT_WAIT: Duration = Duration::from_secs(60);

/// How long gitlab-sshd waits for a key, retries included.
const SSHD_KEY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long Puma keeps an unused connection (`persistent_timeout`): 5.6.5 for 20 s, 8.0.2 for 65 s. The
/// shorter one counts.
const PUMA_PERSISTENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Warns of settings of which one makes another useless or harmful.
fn check_conflicts(
    document: &Document<'_>,
    offset: usize,
    classes: &[upstream::ClassSettings; Class::ALL.len()],
    (idle_timeout, advised_other_concurrency): (Duration, Option<usize>),
) {
    let concurrency = Class::Other.of(classes).concurrency;
    if let Some(advised) = advised_other_concurrency.filter(|advised| concurrency > *advised) {
        let message = format!(
            "is {concurrency}, more than an eighth of upstream.threads: requests that need no credential may take \
             the threads of Rails from all others; {advised} or less is safe"
        );
        document.warn(offset, "upstream.classes.other.concurrency", &message);
    }
    if idle_timeout >= PUMA_PERSISTENT_TIMEOUT {
        let message =
            "is not shorter than Puma keeps connections (20 s): some would be used just as Puma closes them";
        document.warn(offset, "upstream.idle_timeout", message);
    }
    for (class, settings) in Class::ALL.iter().zip(classes) {
        let key = |key: &str| format!("upstream.classes.{}.{key}", class.as_str());
        if settings.hold > LONGEST_CLIENT_WAIT {
            let message = "is longer than clients wait; they will have left when Rails is back";
            document.warn(offset, &key("hold"), message);
        }
        let total = settings.total_timeout;
        if *class == Class::Lookup && (total.is_zero() || total > SSHD_KEY_TIMEOUT) {
            let message = "is longer than gitlab-sshd waits for a key (10 s, in which it tries three times); 4s is usual";
            document.warn(offset, &key("total_timeout"), message);
        }
        if total.is_zero() {
            continue;
        }
        let defaults = class.of(&upstream::DEFAULT_CLASSES);
        for (name, time, default) in [
            ("response_timeout", settings.response_timeout, defaults.response_timeout),
            ("hold", settings.hold, defaults.hold),
        ] {
            // The total_timeout of look-ups is by default shorter than a response_timeout that is set for all classes.
            let is_intended =
                *class == Class::Lookup && name == "response_timeout" && total == defaults.total_timeout;
            if total < time && time != default && !is_intended {
                let message = format!(
                    "is longer than the total_timeout of the class, {}, which ends a request earlier",
                    super::units::format_duration(total)
                );
                document.warn(offset, &key(name), &message);
            }
        }
    }
}

/// What is not set for a class is what `[upstream]` sets for all.
fn classes(
    upstream: &mut Section<'_, '_>,
    (response_timeout, total_timeout, hold, other_concurrency): (
        Option<Duration>,
        Option<Duration>,
        Option<Duration>,
        (usize, usize),
    ),
) -> [upstream::ClassSettings; Class::ALL.len()] {
    let mut classes = upstream::DEFAULT_CLASSES.map(|default| upstream::ClassSettings {
        response_timeout: response_timeout.unwrap_or(default.response_timeout),
        total_timeout: total_timeout.unwrap_or(default.total_timeout),
        hold: hold.unwrap_or(default.hold),
        ..default
    });
    let other = Class::Other.of_mut(&mut classes);
    (other.concurrency, other.sustained_concurrency) = other_concurrency;
    let Some(mut section) = upstream.section("classes") else { return classes };
    for (class, settings) in Class::ALL.iter().zip(&mut classes) {
        if let Some(section) = section.section(class.as_str()) {
            *settings = class_settings(section, *settings);
        }
    }
    section.reject_unknown_keys();
    classes
}

fn class_settings(mut section: Section<'_, '_>, default: upstream::ClassSettings) -> upstream::ClassSettings {
    // A configured number holds in the long run, too.
    let (concurrency, sustained_concurrency) = section
        .integer("concurrency", 1..1_000_001)
        .map(|count| as_usize(count.value))
        .map_or((default.concurrency, default.sustained_concurrency), |count| (count, count));
    let settings = upstream::ClassSettings {
        concurrency,
        sustained_concurrency,
        queue: section.integer("queue", 0..1_000_001).map_or(default.queue, |count| as_usize(count.value)),
        queue_timeout: duration(&mut section, "queue_timeout", default.queue_timeout, MILLISECOND..=HOUR),
        response_timeout: duration(
            &mut section,
            "response_timeout",
            default.response_timeout,
            MILLISECOND..=HOUR,
        ),
        total_timeout: duration(&mut section, "total_timeout", default.total_timeout, ZERO..=DAY),
        hold: duration(&mut section, "hold", default.hold, ZERO..=HOUR),
    };
    section.reject_unknown_keys();
    settings
}

fn forward_prefixes(document: &Document<'_>, section: &mut Section<'_, '_>) -> Vec<String> {
    let Some(prefixes) = section.string_list("forward_prefixes") else { return Vec::new() };
    for prefix in &prefixes.value {
        let is_valid = prefix.starts_with('/')
            && prefix.ends_with('/')
            && !prefix.contains("//")
            && !prefix.contains("/.")
            && prefix.len() > 1;
        if !is_valid {
            let message =
                format!("{prefix:?} must name a path between two slashes, such as \"/api/v4/geo/\"");
            document.error(prefixes.offset, &prefixes.key, message);
        }
    }
    prefixes.value
}
