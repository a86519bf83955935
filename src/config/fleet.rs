//! `[fleet]`: the Valkey by which several gateways tell each other what to drop.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use super::document::{Document, Located, Section};
use super::key::KeyKind;
use super::scalars::{HOUR, MILLISECOND, SECOND, ZERO, duration};
use super::servers::{TlsFiles, VERSION_1};
use super::{auth, own_listeners, units};
use crate::certificates::{self, TlsError, TrustedAuthorities};
use crate::fleet::address::{ValkeyUrl, sentinel_address};
use crate::fleet::settings::{
    self, FleetSettings, FleetTls, POLL_MARGIN, SharedSettings, ValkeyCredential, ValkeyServers,
};
use crate::secret::Password;
use crate::server::ListenAddress;
use crate::upstream::tls::Tls;
use crate::upstream::{Protocol, UpstreamAddress, without_zone};

/// `own`: the listeners of the gateway.
pub(super) fn fleet(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    own: &[ListenAddress],
) -> Option<Arc<FleetSettings>> {
    let mut section = root.section("fleet")?;
    let has_url = section.has("url");
    let url = url(document, &mut section, own);
    let credential = credential(document, &mut section, ["user", "password_file"]);
    let servers = servers(document, &mut section, (has_url, url.as_ref()));
    let tls = tls(document, &mut section, (url.as_ref(), servers.as_ref()));
    let name = section.string("name", NAME, |text| is_name(text, 0..=64).then(|| text.to_owned()));
    let identity =
        section.string("identity", IDENTITY, |text| is_name(text, 1..=255).then(|| text.to_owned()));
    let poll =
        duration(&mut section, "poll", settings::DEFAULT_POLL, Duration::from_millis(100)..=10 * SECOND);
    let alone_after = alone_after(document, &mut section, poll);
    let alone_ttl = duration(&mut section, "alone_ttl", settings::DEFAULT_ALONE_TTL, ZERO..=HOUR);
    let replicas = section.integer("replicas", 0..17).and_then(|count| u32::try_from(count.value).ok());
    let bus_entries = section.integer("bus_entries", 1_000..10_000_001).map(|count| count.value);
    let shared = section.section("shared").map(shared);
    section.reject_unknown_keys();
    Some(Arc::new(FleetSettings {
        servers: servers?,
        credential,
        tls: tls.ok()?,
        name: name.map_or_else(String::new, |name| name.value),
        identity: identity.map(|identity| identity.value),
        poll,
        alone_after,
        alone_ttl,
        replicas: replicas.unwrap_or_default(),
        bus_entries: bus_entries.unwrap_or(settings::DEFAULT_BUS_ENTRIES),
        shared,
    }))
}

const NAME: &str = "up to 64 letters, digits, \"-\", \"_\", \".\" and \":\"";
const IDENTITY: &str =
    "1 to 255 letters, digits, \"-\", \"_\", \".\" and \":\", such as \"gitlab.example.com\"";

fn is_name(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    length.contains(&text.len()) && text.bytes().all(is_plain)
}

/// No error quotes the value: many of these URLs have a password.
fn url(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    own: &[ListenAddress],
) -> Option<Located<ValkeyUrl>> {
    let url = section.take("url", |value| {
        let text = value.as_str().ok_or("expected a URL in quotes, such as \"redis://10.0.0.5:6379\"")?;
        ValkeyUrl::parse(text).map_err(|error| error.to_string())
    })?;
    if let Some(address) = own_listeners::find_own_listener(&url.value.address, own) {
        let message = format!("leads to the gateway's own listener on {address}; use the address of Valkey");
        document.error(url.offset, &url.key, message);
    }
    Some(url)
}

/// A user, and the file with its password, which is read now only to find mistakes.
fn credential(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    [user_key, file_key]: [&'static str; 2],
) -> ValkeyCredential {
    let user = section.string(user_key, "the name of a user of Valkey", |text| {
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
    });
    let file = section
        .string(file_key, "the path of a file", |text| (!text.is_empty()).then(|| PathBuf::from(text)));
    if let Some(file) = &file {
        auth::load_secret(document, file, "it must hold the password", Password::load);
    }
    if let (Some(user), None) = (&user, &file) {
        document.error(
            user.offset,
            &user.key,
            format!("needs {}: a user has a password", section.name(file_key)),
        );
    }
    ValkeyCredential { user: user.map(|user| user.value), password_file: file.map(|file| file.value) }
}

/// The server of the URL, or the Sentinels.
fn servers(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    (has_url, url): (bool, Option<&Located<ValkeyUrl>>),
) -> Option<ValkeyServers> {
    let [has_sentinels, has_master] = ["sentinels", "master"].map(|key| section.has(key));
    let sentinels = section.take_kind("sentinels", KeyKind::StringList, sentinels);
    let master = section.string(
        "master",
        "the name that the Sentinels have for the master, such as \"mymaster\"",
        |text| is_name(text, 1..=255).then(|| text.to_owned()),
    );
    let has_credential = ["sentinel_user", "sentinel_password_file"].into_iter().find(|key| section.has(key));
    let credential = credential(document, section, ["sentinel_user", "sentinel_password_file"]);
    let error = |key: &str, message: &str| document.error(section.offset(), &section.name(key), message);
    match (has_url, has_sentinels) {
        (false, false) => error("url", MISSING),
        (true, true) => {
            error("url", "is for one server; with sentinels, these say where it is: drop one of the two");
        }
        (false, true) if !has_master => {
            error("master", "is required with sentinels: the name that they have for the master");
        }
        (true, false) => {
            for key in has_master.then_some("master").into_iter().chain(has_credential) {
                error(key, "is for Sentinels, and there are none; drop it");
            }
        }
        (false, true) => {}
    }
    if let Some(url) = url {
        return (!has_sentinels).then(|| ValkeyServers::One(url.value.address.clone()));
    }
    let sentinels = sentinels?;
    check_sentinels(document, &sentinels);
    Some(ValkeyServers::Sentinels { sentinels: sentinels.value, master: master?.value, credential })
}

const MISSING: &str =
    "is required in [fleet]: where Valkey is, such as \"redis://10.0.0.5:6379\"; or sentinels and master";

/// Nor are these quoted.
fn sentinels(value: &DeValue<'_>) -> Result<Vec<UpstreamAddress>, String> {
    let expected = || {
        "expected a list of hosts, perhaps with a port, such as [\"10.0.0.1:26379\", \"10.0.0.2:26379\"], without users or \
         passwords"
            .to_owned()
    };
    let items = value.as_array().ok_or_else(expected)?;
    let address = |item: &toml::Spanned<DeValue<'_>>| sentinel_address(item.get_ref().as_str()?);
    let all: Option<Vec<_>> = items.iter().map(address).collect();
    all.filter(|all| !all.is_empty() && all.len() <= MAX_SENTINELS).ok_or_else(expected)
}

const MAX_SENTINELS: usize = 64;

fn check_sentinels(document: &Document<'_>, sentinels: &Located<Vec<UpstreamAddress>>) {
    let mut known = HashSet::new();
    if let Some(twice) = sentinels.value.iter().find(|address| !known.insert(*address)) {
        document.error(sentinels.offset, &sentinels.key, format!("{twice} is listed twice"));
    } else if sentinels.value.len() == 2 {
        let message =
            "are two: more than half of them have to agree, so that none may fail; list at least three";
        document.warn(sentinels.offset, &sentinels.key, message);
    }
}

/// None of it, or an error that was reported. With a URL, its scheme decides; with Sentinels, the section.
fn tls(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    (url, servers): (Option<&Located<ValkeyUrl>>, Option<&ValkeyServers>),
) -> Result<Option<FleetTls>, ()> {
    let mut files_of = section.section("tls");
    let offset = files_of.as_ref().map(Section::offset);
    let (mut roots, mut identity, mut name) = (None, None, None);
    if let Some(mut tls) = files_of.take() {
        let mut files = TlsFiles { document, section: &mut tls, name: "fleet.tls" };
        roots = files.file("ca_file", certificates::read_authorities);
        if roots.as_ref().is_some_and(TrustedAuthorities::has_version_1) {
            document.warn(files.section.offset(), "fleet.tls.ca_file", VERSION_1);
        }
        identity = files.identity();
        name = tls.string("server_name", "a host name or an IP address", |text| Some(text.to_owned()));
        tls.reject_unknown_keys();
    }
    let is_wanted = url.map_or(offset.is_some(), |url| url.value.is_tls);
    if !is_wanted {
        if let Some(offset) = offset {
            let message = "is for a url that begins with rediss://, or for sentinels; drop the section";
            document.error(offset, "fleet.tls", message);
        }
        return Ok(None);
    }
    let host = match servers.ok_or(())? {
        ValkeyServers::One(UpstreamAddress::Tcp(host, _)) => without_zone(host),
        _ => "valkey",
    };
    let name = name.map(|name| name.value);
    let any_name = name.as_deref().unwrap_or(host);
    let roots = roots.map_or_else(certificates::system_authorities, Ok);
    let made = roots.and_then(|roots| Tls::new(roots, identity.as_ref(), any_name, Protocol::Http1));
    let (offset, key) = offset.map_or_else(
        || url.map_or((section.offset(), "fleet.url"), |url| (url.offset, "fleet.url")),
        |offset| (offset, "fleet.tls"),
    );
    let failed = |error: TlsError| document.error(offset, key, error.to_string());
    Ok(Some(FleetTls::new(made.map_err(failed)?, name)))
}

fn alone_after(document: &Document<'_>, section: &mut Section<'_, '_>, poll: Duration) -> Duration {
    let least = poll + POLL_MARGIN;
    let offset = section.offset();
    let is_given = section.has("alone_after");
    let after = duration(section, "alone_after", settings::DEFAULT_ALONE_AFTER, 600 * MILLISECOND..=HOUR);
    if after < least {
        let message = format!(
            "{} {}is too short: a poll of {} may take half a second more; set at least {}",
            units::format_duration(after),
            if is_given { "" } else { "(the default) " },
            units::format_duration(poll),
            units::format_duration(least),
        );
        document.error(offset, "fleet.alone_after", message);
    }
    after
}

fn shared(mut section: Section<'_, '_>) -> SharedSettings {
    let defaults = SharedSettings::default();
    let settings = SharedSettings {
        ttl: duration(&mut section, "ttl", defaults.ttl, SECOND..=HOUR),
        timeout: duration(&mut section, "timeout", defaults.timeout, MILLISECOND..=SECOND),
        lock: duration(&mut section, "lock", defaults.lock, 500 * MILLISECOND..=60 * SECOND),
        wait: duration(&mut section, "wait", defaults.wait, ZERO..=10 * SECOND),
    };
    section.reject_unknown_keys();
    settings
}
