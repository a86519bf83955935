//! `[upstream]`: where Rails is, and how to talk to it.

use std::time::Duration;

use super::document::{Document, Section};
use super::scalars::{DAY, HOUR, MILLISECOND, ZERO, as_usize, duration, optional_duration};
use super::servers;
use crate::auth::mint::Wanted;
use crate::authority;
use crate::route::Class;
use crate::secret::ShellSecret;
use crate::server::Endpoint;
use crate::upstream::{self, Protocol};

/// What `[upstream]` says, for more than one room.
pub(super) struct Upstream {
    pub(super) settings: upstream::UpstreamSettings,
    /// What Rails wants to see of GitLab Shell, if not what the caller has shown.
    pub(super) wanted: Option<Wanted>,
    /// The secret that Rails has, if it is not that of the callers.
    pub(super) secret: Option<ShellSecret>,
    pub(super) forward_prefixes: Vec<String>,
}

/// `own`: where the gateway itself listens.
pub(super) fn upstream(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    own: &[Endpoint],
) -> Option<Upstream> {
    let Some(mut section) = root.section("upstream") else {
        servers::missing(document, 0);
        return None;
    };
    let protocol = protocol(&mut section);
    let servers = servers::servers(document, &mut section, protocol, own);
    let (health_checks, ejection) = servers::health(document, &mut section, servers.as_deref());
    let host = section.text("host", "a host name, perhaps with a port", |text| {
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
        .count("max_held", 1..1_000_001)
        .map_or(upstream::DEFAULT_MAX_HELD, |count| as_usize(count.value));
    let resend_percent =
        section.count("resend_percent", 0..101).and_then(|count| u8::try_from(count.value).ok());
    let resend_unread = section.flag("resend_unread").is_none_or(|flag| flag.value);
    let threads = section.count("threads", 1..100_001).map(|count| as_usize(count.value));
    let other = threads.map_or(upstream::OTHER_CONCURRENCY, |threads| {
        upstream::default_other_concurrency(threads, servers.as_deref().unwrap_or_default())
    });
    let classes = classes(&mut section, (response_timeout, total_timeout, hold, other));
    let (idle_timeout, max_connection_age, max_idle) = kept_connections(&mut section);
    let forward_prefixes = forward_prefixes(document, &mut section);
    let (wanted, secret) = credential(document, &mut section);
    check_conflicts(document, section.at(), &classes, (idle_timeout, threads.map(|_| other)));
    section.finish();
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
    Some(Upstream { settings, wanted, secret, forward_prefixes })
}

fn protocol(section: &mut Section<'_, '_>) -> Protocol {
    let protocol = section.text("protocol", "\"http1\" or \"http2\"", |text| match text {
        "http1" => Some(Protocol::Http1),
        "http2" => Some(Protocol::Http2),
        _ => None,
    });
    protocol.map_or_else(Protocol::default, |protocol| protocol.value)
}

/// How long and until which age connections are kept, and how many.
fn kept_connections(section: &mut Section<'_, '_>) -> (Duration, Duration, usize) {
    let idle_timeout = duration(section, "idle_timeout", upstream::DEFAULT_IDLE_TIMEOUT, MILLISECOND..=HOUR);
    let max_age = duration(section, "max_connection_age", upstream::DEFAULT_MAX_CONNECTION_AGE, ZERO..=DAY);
    let max_idle = section.count("max_idle", 0..100_001);
    (idle_timeout, max_age, max_idle.map_or(upstream::DEFAULT_MAX_IDLE, |count| as_usize(count.value)))
}

fn credential(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
) -> (Option<Wanted>, Option<ShellSecret>) {
    let expected = "\"as_presented\", \"jwt\" or \"shared_secret\"";
    let wanted = section.text("credential", expected, |text| match text {
        "as_presented" => Some(None),
        "jwt" => Some(Some(Wanted::Jwt)),
        "shared_secret" => Some(Some(Wanted::SharedSecret)),
        _ => None,
    });
    let is_named = wanted.is_some();
    let wanted = wanted.and_then(|wanted| wanted.value);
    let file = ("secret_file", "copy the file that this GitLab uses");
    let secret = super::auth::secret(document, section, file, ShellSecret::load);
    if let Some(secret) = &secret
        && wanted.is_none()
    {
        let message = if is_named {
            "is of no use while upstream.credential is \"as_presented\": Rails is shown what the caller has shown"
        } else {
            "needs an upstream.credential, \"jwt\" or \"shared_secret\": without it, Rails is shown what the caller has shown"
        };
        document.problem(secret.at, &secret.key, message);
    }
    (wanted, secret.map(|secret| secret.value))
}

/// As long as anybody who calls waits: sshd ends a login after two minutes, kas far earlier.
const PATIENCE: Duration = Duration::from_secs(60);

/// For so long a login waits for a key, tries included.
const SSHD_WAITS: Duration = Duration::from_secs(10);

/// For so long Puma keeps an unused connection (`persistent_timeout`): 5.6.5 for 20 s, 8.0.2 for 65 s. The
/// older one counts.
const PUMA_KEEPS: Duration = Duration::from_secs(20);

/// Settings that cannot both have their way.
fn check_conflicts(
    document: &Document<'_>,
    at: usize,
    classes: &[upstream::ClassSettings; Class::ALL.len()],
    (idle_timeout, other): (Duration, Option<usize>),
) {
    let has = Class::Other.of(classes).concurrency;
    if let Some(most) = other.filter(|most| has > *most) {
        let message = format!(
            "is {has}, more than an eighth of upstream.threads: requests that need no credential may take \
             the threads of Rails from all others; {most} or less is safe"
        );
        document.warn(at, "upstream.classes.other.concurrency", &message);
    }
    if idle_timeout >= PUMA_KEEPS {
        let message =
            "is not shorter than Puma keeps connections (20 s): requests would meet some that just closed";
        document.warn(at, "upstream.idle_timeout", message);
    }
    for (class, settings) in Class::ALL.iter().zip(classes) {
        let key = |key: &str| format!("upstream.classes.{}.{key}", class.as_str());
        if settings.hold > PATIENCE {
            let message = "is longer than clients wait; they will have left when Rails is back";
            document.warn(at, &key("hold"), message);
        }
        let total = settings.total_timeout;
        if *class == Class::Lookup && (total.is_zero() || total > SSHD_WAITS) {
            let message = "is longer than gitlab-sshd waits for a key (10 s, in which it tries three times); 4s is usual";
            document.warn(at, &key("total_timeout"), message);
        }
        if total.is_zero() {
            continue;
        }
        let known = class.of(&upstream::DEFAULT_CLASSES);
        for (name, time, default) in [
            ("response_timeout", settings.response_timeout, known.response_timeout),
            ("hold", settings.hold, known.hold),
        ] {
            // That of look-ups is meant to be shorter than what may be said for all.
            let is_meant =
                *class == Class::Lookup && name == "response_timeout" && total == known.total_timeout;
            if total < time && time != default && !is_meant {
                let message = format!(
                    "is longer than the total_timeout of the class, {}, which ends a request earlier",
                    super::units::show(total)
                );
                document.warn(at, &key(name), &message);
            }
        }
    }
}

/// What a class does not say itself, `[upstream]` says for all.
fn classes(
    upstream: &mut Section<'_, '_>,
    (response_timeout, total_timeout, hold, other): (
        Option<Duration>,
        Option<Duration>,
        Option<Duration>,
        usize,
    ),
) -> [upstream::ClassSettings; Class::ALL.len()] {
    let mut known = upstream::DEFAULT_CLASSES.map(|known| upstream::ClassSettings {
        response_timeout: response_timeout.unwrap_or(known.response_timeout),
        total_timeout: total_timeout.unwrap_or(known.total_timeout),
        hold: hold.unwrap_or(known.hold),
        ..known
    });
    Class::Other.of_mut(&mut known).concurrency = other;
    let Some(mut section) = upstream.section("classes") else { return known };
    let mut classes = known;
    for (class, settings) in Class::ALL.iter().zip(&mut classes) {
        if let Some(section) = section.section(class.as_str()) {
            *settings = lane(section, *settings);
        }
    }
    section.finish();
    classes
}

fn lane(mut section: Section<'_, '_>, known: upstream::ClassSettings) -> upstream::ClassSettings {
    let settings = upstream::ClassSettings {
        concurrency: section
            .count("concurrency", 1..1_000_001)
            .map_or(known.concurrency, |count| as_usize(count.value)),
        queue: section.count("queue", 0..1_000_001).map_or(known.queue, |count| as_usize(count.value)),
        queue_timeout: duration(&mut section, "queue_timeout", known.queue_timeout, MILLISECOND..=HOUR),
        response_timeout: duration(
            &mut section,
            "response_timeout",
            known.response_timeout,
            MILLISECOND..=HOUR,
        ),
        total_timeout: duration(&mut section, "total_timeout", known.total_timeout, ZERO..=DAY),
        hold: duration(&mut section, "hold", known.hold, ZERO..=HOUR),
    };
    section.finish();
    settings
}

fn forward_prefixes(document: &Document<'_>, section: &mut Section<'_, '_>) -> Vec<String> {
    let Some(prefixes) = section.list("forward_prefixes") else { return Vec::new() };
    for prefix in &prefixes.value {
        let is_good = prefix.starts_with('/')
            && prefix.ends_with('/')
            && !prefix.contains("//")
            && !prefix.contains("/.")
            && prefix.len() > 1;
        if !is_good {
            let message =
                format!("{prefix:?} must name a path between two slashes, such as \"/api/v4/geo/\"");
            document.problem(prefixes.at, &prefixes.key, message);
        }
    }
    prefixes.value
}
