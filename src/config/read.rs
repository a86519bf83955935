//! The top level of the file, `[limits]` and `[log]`, and the warnings that concern several sections.

use super::document::{Document, Section};
use super::gateway_config::{AdminSettings, GatewayConfig, LogSettings, SecretSettings};
use super::key::KeyRead;
use super::scalars::{HOUR, MILLISECOND, ZERO, as_usize, duration, size};
use super::{auth, cache, fleet, listen, traces, upstream};
use crate::auth::upstream_credential::UpstreamCredential;
use crate::log::LogFormat;
use crate::route::Class;
use crate::server::{ListenSettings, ServerLimits};

/// Reads the whole file. `None` if something without a default is missing or invalid.
pub(super) fn config(document: &Document<'_>) -> Option<GatewayConfig> {
    let mut root = document.root();
    let workers = workers(&mut root);
    let listen = listen::listen(document, &mut root);
    let admin = listen::admin(document, &mut root, &listen);
    let hooks = listen::hooks(document, &mut root, (&listen, &admin.address));
    let own = listen.iter().map(|listen| &listen.address.value).chain([&admin.address]);
    let own: Vec<_> = own.chain(hooks.iter().map(|hooks| &hooks.address)).cloned().collect();
    let upstream = upstream::upstream(document, &mut root, &own);
    let auth = auth::auth(document, &mut root);
    let cache = cache::cache(document, &mut root);
    if let Some(upstream) = &upstream {
        let lookup = Class::Lookup.of(&upstream.settings.classes);
        if cache.wait < lookup.response_timeout {
            let message = "is shorter than the response_timeout of the class `lookup`: while Rails is slow, every waiting \
                           request would be sent to Rails by itself";
            document.warn(0, "cache.wait", message);
        }
    }
    let limits = limits(document, &mut root);
    let longest_hold =
        upstream.iter().flat_map(|upstream| &upstream.settings.classes).map(|class| class.hold).max();
    if longest_hold.is_some_and(|hold| hold > limits.drain_timeout) {
        let message = "is shorter than upstream.hold: if the gateway stops while Rails is away, waiting requests are dropped";
        document.warn(0, "limits.drain_timeout", message);
    }
    let log = log(&mut root);
    let upgrade_socket = listen::upgrade_socket(document, &mut root, &own);
    let tracing = traces::tracing(document, &mut root, &own);
    let fleet = fleet::fleet(document, &mut root, &own);
    root.reject_unknown_keys();
    let (
        upstream::UpstreamSection { settings: upstream, credential, secret, forward_prefixes },
        (auth, overlap),
    ) = (upstream?, auth?);
    let upstream_credential =
        credential.map(|kind| UpstreamCredential::new(kind, secret.as_ref().unwrap_or(&auth.shell_secret)));
    let listen = listen.into_iter().map(|listen| ListenSettings {
        address: listen.address.value,
        connections: listen.connections.unwrap_or(limits.connections),
        options: listen.options,
    });
    Some(GatewayConfig {
        workers,
        listen: listen.collect(),
        admin,
        hooks,
        upstream,
        upstream_credential,
        forward_prefixes,
        auth,
        secrets: SecretSettings { files: document.secret_files.borrow().clone(), overlap },
        cache,
        limits,
        log,
        upgrade_socket,
        tracing,
        fleet,
    })
}

/// Every key that the reader asks for, in its order.
pub(super) fn keys() -> Vec<KeyRead> {
    let document = Document::description();
    config(&document);
    document.keys()
}

/// Reads only `[admin]`, and of `[[listen]]` what it must not overlap with.
pub(super) fn admin(document: &Document<'_>) -> AdminSettings {
    let mut root = document.root();
    let listen = listen::listen(document, &mut root);
    listen::admin(document, &mut root, &listen)
}

/// By default one for each core that this process may use, by its cgroup and CPU affinity.
fn workers(root: &mut Section<'_, '_>) -> usize {
    let default = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    root.integer("workers", 1..257).map_or_else(default, |count| as_usize(count.value))
}

fn limits(document: &Document<'_>, root: &mut Section<'_, '_>) -> ServerLimits {
    let defaults = ServerLimits::default();
    let Some(mut section) = root.section("limits") else { return defaults };
    let limits = ServerLimits {
        connections: listen::connections(&mut section).unwrap_or(defaults.connections),
        head: size(&mut section, "head", defaults.head, 1024..=64 * 1024),
        headers: section.integer("headers", 8..1_001).map_or(defaults.headers, |count| as_usize(count.value)),
        target: size(&mut section, "target", defaults.target, 2 * 1024..=63 * 1024),
        first_byte_timeout: duration(
            &mut section,
            "first_byte_timeout",
            defaults.first_byte_timeout,
            MILLISECOND..=HOUR,
        ),
        head_timeout: duration(&mut section, "head_timeout", defaults.head_timeout, MILLISECOND..=HOUR),
        idle_timeout: duration(&mut section, "idle_timeout", defaults.idle_timeout, MILLISECOND..=HOUR),
        drain_timeout: duration(&mut section, "drain_timeout", defaults.drain_timeout, ZERO..=HOUR),
    };
    if limits.head < 16 * 1024 {
        let message = "SSH keys travel in the query, and some are long; at least 16KiB is advised";
        document.warn(section.offset(), "limits.head", message);
    }
    check_target(document, section.offset(), &limits);
    section.reject_unknown_keys();
    limits
}

fn check_target(document: &Document<'_>, offset: usize, limits: &ServerLimits) {
    let default = ServerLimits::default().target;
    if limits.target < MIN_ADVISED_TARGET {
        let message = "SSH keys travel in the query, and some are long; at least 8KiB is advised";
        document.warn(offset, "limits.target", message);
    }
    if limits.target > default {
        let message = format!(
            "is more than Puma accepts unless it was built for it: it needs a PUMA_QUERY_STRING_MAX_LENGTH of {} and a \
             PUMA_REQUEST_URI_MAX_LENGTH of {} at least, or answers longer targets with a 400 or not at all; see config/README.md",
            limits.target,
            limits.target + 1024
        );
        document.warn(offset, "limits.target", message);
        if limits.target + HEAD_WITHOUT_TARGET > limits.head {
            let message = "leaves no room for limits.target: heads with such a target would be refused (431); raise it, \
                           or lower limits.target";
            document.warn(offset, "limits.head", message);
        }
    }
}

/// Bytes of a head beside its target, most of them the credential.
const HEAD_WITHOUT_TARGET: usize = 1024;
/// Enough for the longest SSH keys.
const MIN_ADVISED_TARGET: usize = 8 * 1024;

fn log(root: &mut Section<'_, '_>) -> LogSettings {
    let defaults = LogSettings::default();
    let Some(mut section) = root.section("log") else { return defaults };
    let format = section.choice("format", &[("json", LogFormat::Json), ("pretty", LogFormat::Pretty)]);
    let levels = [
        ("error", tracing::Level::ERROR),
        ("warn", tracing::Level::WARN),
        ("info", tracing::Level::INFO),
        ("debug", tracing::Level::DEBUG),
    ];
    let level = section.choice("level", &levels);
    let requests = section.boolean("requests");
    section.reject_unknown_keys();
    LogSettings {
        format: format.map_or(defaults.format, |format| format.value),
        level: level.map_or(defaults.level, |level| level.value),
        requests: requests.map_or(defaults.requests, |requests| requests.value),
    }
}
