//! `[upstream]`: where Rails is, and how to talk to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{Document, Placed, Section};
use super::scalars::{DAY, HOUR, MILLISECOND, ZERO, as_usize, duration, optional_duration};
use crate::auth::mint::Wanted;
use crate::authority;
use crate::route::Class;
use crate::secret::ShellSecret;
use crate::upstream::lanes;
use crate::upstream::tls::{self, Identity, Tls};
use crate::upstream::{self, Address, Target};

/// What `[upstream]` says, for more than one room.
pub(super) struct Upstream {
    pub(super) settings: upstream::Settings,
    /// What Rails wants to see of GitLab Shell, if not what the caller has shown.
    pub(super) wanted: Option<Wanted>,
    /// The secret that Rails has, if it is not that of the callers.
    pub(super) secret: Option<ShellSecret>,
    pub(super) forward_prefixes: Vec<String>,
}

pub(super) fn upstream(document: &Document<'_>, root: &mut Section<'_, '_>) -> Option<Upstream> {
    let Some(mut section) = root.section("upstream") else {
        missing(document, 0);
        return None;
    };
    if !section.has("url") {
        missing(document, section.at());
    }
    let target = section.take("url", |value| {
        let text = value.as_str().ok_or("expected a URL in quotes, such as \"http://127.0.0.1:8080\"")?;
        Target::parse(text).map_err(|error| error.to_string())
    });
    let host = section.text("host", "a host name, perhaps with a port", |text| {
        authority::parse(text).map(|_| text.to_owned())
    });
    let tls_section = section.section("tls");
    let tls = tls(document, tls_section, target.as_ref());
    let connect_timeout =
        duration(&mut section, "connect_timeout", upstream::DEFAULT_CONNECT_TIMEOUT, MILLISECOND..=HOUR);
    let response_timeout = optional_duration(&mut section, "response_timeout", MILLISECOND..=HOUR);
    let body_timeout =
        duration(&mut section, "body_timeout", upstream::DEFAULT_BODY_TIMEOUT, MILLISECOND..=HOUR);
    let total_timeout = duration(&mut section, "total_timeout", ZERO, ZERO..=DAY);
    let hold = optional_duration(&mut section, "hold", ZERO..=HOUR);
    let max_held = section
        .count("max_held", 1..1_000_001)
        .map_or(upstream::DEFAULT_MAX_HELD, |count| as_usize(count.value));
    let resend_percent =
        section.count("resend_percent", 0..101).and_then(|count| u8::try_from(count.value).ok());
    let resend_unread = section.flag("resend_unread").is_none_or(|flag| flag.value);
    let classes = classes(&mut section, response_timeout, hold);
    let idle_timeout =
        duration(&mut section, "idle_timeout", upstream::DEFAULT_IDLE_TIMEOUT, MILLISECOND..=HOUR);
    let max_idle = section.count("max_idle", 0..100_001);
    let forward_prefixes = forward_prefixes(document, &mut section);
    let (wanted, secret) = credential(document, &mut section);
    quarrels(document, section.at(), &classes, total_timeout);
    section.finish();
    let settings = upstream::Settings {
        target: target?.value,
        tls,
        host: host.map(|host| host.value),
        connect_timeout,
        body_timeout,
        total_timeout,
        max_held,
        resend_percent: resend_percent.unwrap_or(upstream::DEFAULT_RESEND_PERCENT),
        resend_unread,
        classes,
        idle_timeout,
        max_idle: max_idle.map_or(upstream::DEFAULT_MAX_IDLE, |count| as_usize(count.value)),
    };
    Some(Upstream { settings, wanted, secret, forward_prefixes })
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

fn missing(document: &Document<'_>, at: usize) {
    document.problem(
        at,
        "upstream.url",
        "is required: where Rails listens, such as \"http://127.0.0.1:8080\"",
    );
}

/// As long as anybody who calls waits: sshd ends a login after two minutes, kas far earlier.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings that cannot both have their way.
fn quarrels(
    document: &Document<'_>,
    at: usize,
    classes: &[lanes::Settings; Class::ALL.len()],
    total_timeout: Duration,
) {
    for (class, settings) in Class::ALL.iter().zip(classes) {
        let key = |key: &str| format!("upstream.classes.{}.{key}", class.as_str());
        if settings.hold > PATIENCE {
            let message = "is longer than clients wait; they will have left when Rails is back";
            document.warn(at, &key("hold"), message);
        }
        if !total_timeout.is_zero() && total_timeout < settings.response_timeout {
            let message = "is longer than upstream.total_timeout, which ends a request earlier";
            document.warn(at, &key("response_timeout"), message);
        }
    }
}

/// What a class does not say itself, `[upstream]` says for all.
fn classes(
    upstream: &mut Section<'_, '_>,
    response_timeout: Option<Duration>,
    hold: Option<Duration>,
) -> [lanes::Settings; Class::ALL.len()] {
    let known = upstream::DEFAULT_CLASSES.map(|known| lanes::Settings {
        response_timeout: response_timeout.unwrap_or(known.response_timeout),
        hold: hold.unwrap_or(known.hold),
        ..known
    });
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

fn lane(mut section: Section<'_, '_>, known: lanes::Settings) -> lanes::Settings {
    let settings = lanes::Settings {
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
        hold: duration(&mut section, "hold", known.hold, ZERO..=HOUR),
    };
    section.finish();
    settings
}

/// Certificates are read here, so that what is wrong with them is told before anything runs.
fn tls(
    document: &Document<'_>,
    section: Option<Section<'_, '_>>,
    url: Option<&Placed<Target>>,
) -> Option<Tls> {
    let at = section.as_ref().map(Section::at);
    let (mut name, mut roots, mut identity) = (None, None, None);
    if let Some(mut section) = section {
        let mut files = Files { document, section: &mut section };
        roots = files.file("ca_file", tls::authorities);
        identity = files.identity();
        name = section.text("server_name", "a host name or an IP address", |text| Some(text.to_owned()));
        section.finish();
    }
    let url = url?;
    let Target { is_tls: true, address: Address::Tcp(host, _), .. } = &url.value else {
        if let Some(at) = at {
            let message = "is for an upstream.url that begins with https://; drop the section";
            document.problem(at, "upstream.tls", message);
        }
        return None;
    };
    let name = name.as_ref().map_or(host, |name| &name.value);
    let tls =
        roots.map_or_else(tls::system_authorities, Ok).and_then(|roots| Tls::new(roots, identity, name));
    let (at, key) = at.map_or((url.at, url.key.as_str()), |at| (at, "upstream.tls"));
    tls.map_err(|error| document.problem(at, key, error.to_string())).ok()
}

/// The files that `[upstream.tls]` names.
struct Files<'a, 'd, 't> {
    document: &'a Document<'t>,
    section: &'a mut Section<'d, 't>,
}

impl Files<'_, '_, '_> {
    /// `None` if there is no such key, or if the file cannot be used, which is told.
    fn file<T>(&mut self, key: &'static str, load: impl FnOnce(&Path) -> Result<T, tls::Error>) -> Option<T> {
        let file = self
            .section
            .text(key, "the path of a file", |text| (!text.is_empty()).then(|| PathBuf::from(text)))?;
        load(&file.value)
            .map_err(|error| {
                self.document.problem(file.at, &file.key, format!("{} {error}", file.value.display()));
            })
            .ok()
    }

    fn identity(&mut self) -> Option<Identity> {
        let has = ["certificate_file", "key_file"].map(|key| self.section.has(key));
        if has == [true, false] || has == [false, true] {
            let message = "certificate_file and key_file go together; name both or none";
            self.document.problem(self.section.at(), "upstream.tls", message);
        }
        let chain = self.file("certificate_file", tls::certificates);
        let key = self.file("key_file", tls::key);
        Some(Identity { chain: chain?, key: key? })
    }
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
