//! Where Rails listens: `upstream.url`, or one `[[upstream.server]]` for each of several; `[upstream.tls]`,
//! `[upstream.health]` and `[upstream.ejection]`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::document::{Document, Located, Section};
use super::scalars::{HOUR, MILLISECOND, ZERO, as_u32, duration};
use super::{own_listeners, units};
use crate::certificates::{self, TlsError, TrustedAuthorities};
use crate::server::ListenAddress;
use crate::upstream::tls::{ClientIdentity, Tls};
use crate::upstream::{
    EjectionSettings, HealthCheckSettings, MAX_SERVERS, Protocol, UpstreamAddress, UpstreamServerSettings,
    UpstreamTarget, without_zone,
};

const URL: &str = "expected a URL in quotes, such as \"http://127.0.0.1:8080\"";

/// `None` if one is missing or invalid, which is reported.
pub(super) fn servers(
    document: &Document<'_>,
    upstream: &mut Section<'_, '_>,
    protocol: Protocol,
    own: &[ListenAddress],
) -> Option<Vec<UpstreamServerSettings>> {
    let (has_url, has_servers) = (upstream.has("url"), upstream.has("server"));
    let url = upstream.take("url", parse_url);
    let sections = upstream.section_array("server");
    let tls_section = upstream.section("tls");
    let mut targets = Vec::new();
    match (has_url, sections) {
        (true, None) if !has_servers => targets.push(url.map(|url| (url, false))),
        (false, Some(sections)) if !sections.value.is_empty() => {
            targets.extend(sections.value.into_iter().map(|section| server(document, section)));
        }
        (true, sections) => {
            let message = "is for one server; with [[upstream.server]], set the url in each of those";
            document.error(upstream.offset(), "upstream.url", message);
            for section in sections.into_iter().flat_map(|sections| sections.value) {
                server(document, section);
            }
        }
        (false, _) => missing(document, upstream.offset()),
    }
    let is_complete = !targets.is_empty() && targets.iter().all(Option::is_some);
    let targets: Vec<_> = targets.into_iter().flatten().collect();
    let is_consistent = check_consistency(document, &targets, own);
    for (url, _) in &targets {
        check_zone(document, url);
    }
    let urls: Vec<_> = targets.iter().map(|(url, _)| url.clone()).collect();
    let tls = tls_of_each(document, tls_section, "upstream.tls", &urls, protocol);
    let servers = targets.into_iter().zip(tls?).map(|((url, is_backup), tls)| UpstreamServerSettings {
        target: url.value,
        tls,
        is_backup,
    });
    (is_complete && is_consistent).then(|| servers.collect())
}

pub(super) fn missing(document: &Document<'_>, offset: usize) {
    let message = "is required: where Rails listens, such as \"http://127.0.0.1:8080\"; or a [[upstream.server]] for each of several";
    document.error(offset, "upstream.url", message);
}

fn parse_url(value: &toml::de::DeValue<'_>) -> Result<UpstreamTarget, String> {
    UpstreamTarget::parse(value.as_str().ok_or(URL)?).map_err(|error| error.to_string())
}

fn server(document: &Document<'_>, mut section: Section<'_, '_>) -> Option<(Located<UpstreamTarget>, bool)> {
    if !section.has("url") {
        document.error(section.offset(), "upstream.server.url", "is required in each [[upstream.server]]");
    }
    let url = section.take("url", parse_url);
    let is_backup = section.boolean("backup").is_some_and(|flag| flag.value);
    section.reject_unknown_keys();
    Some((url?, is_backup))
}

/// Whether these can be the servers of one GitLab. If not, the reasons are reported.
fn check_consistency(
    document: &Document<'_>,
    servers: &[(Located<UpstreamTarget>, bool)],
    own: &[ListenAddress],
) -> bool {
    let Some((first, _)) = servers.first() else { return true };
    let mut errors = Vec::new();
    let mut addresses = HashSet::new();
    for (url, _) in servers {
        if !addresses.insert(url.value.address.to_string()) {
            errors.push((url, format!("{} is listed twice", url.value.address)));
        }
        if url.value.root != first.value.root {
            let message = "all servers belong to one GitLab, with the same path behind the host";
            errors.push((url, message.to_owned()));
        }
        if let Some(address) = own_listeners::find_own_listener(&url.value.address, own) {
            let message = format!(
                "leads back to the gateway's own listener on {address}; use the address of Workhorse"
            );
            errors.push((url, message));
        }
    }
    if servers.iter().all(|(_, is_backup)| *is_backup) {
        errors.push((first, "at least one server must not be a backup".to_owned()));
    }
    if servers.len() > MAX_SERVERS {
        errors.push((first, format!("there are {} servers; the most is {MAX_SERVERS}", servers.len())));
    }
    let is_consistent = errors.is_empty();
    for (url, message) in errors {
        document.error(url.offset, &url.key, message);
    }
    is_consistent
}

/// Where Linux lists the interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Warns of an interface that is not there. It may come later, as that of a tunnel does.
fn check_zone(document: &Document<'_>, url: &Located<UpstreamTarget>) {
    let UpstreamAddress::Tcp(host, _) = &url.value.address else { return };
    let Some((_, zone)) = host.split_once('%') else { return };
    let interfaces = Path::new(INTERFACES);
    let is_number = zone.bytes().all(|byte| byte.is_ascii_digit());
    if interfaces.is_dir() && !is_number && !interfaces.join(zone).exists() {
        let message = format!(
            "this machine has no interface {zone}, to which the address belongs; no connection can be made until \
             it has one (see `ip link`)"
        );
        document.warn(url.offset, &url.key, message);
    }
}

/// The TLS settings of each server, by the section of this name. Certificates are read here, so that mistakes in them are reported before
/// anything runs.
pub(super) fn tls_of_each(
    document: &Document<'_>,
    section: Option<Section<'_, '_>>,
    section_name: &str,
    servers: &[Located<UpstreamTarget>],
    protocol: Protocol,
) -> Option<Vec<Option<Tls>>> {
    let offset = section.as_ref().map(Section::offset);
    let (mut name, mut roots, mut identity) = (None, None, None);
    if let Some(mut section) = section {
        let mut files = TlsFiles { document, section: &mut section, name: section_name };
        roots = files.file("ca_file", certificates::read_authorities);
        if roots.as_ref().is_some_and(TrustedAuthorities::has_version_1) {
            document.warn(files.section.offset(), &files.section.name("ca_file"), VERSION_1);
        }
        identity = files.identity();
        name = section.string("server_name", "a host name or an IP address", |text| Some(text.to_owned()));
        section.reject_unknown_keys();
    }
    if let Some(offset) = offset
        && !servers.is_empty()
        && servers.iter().all(|url| !url.value.is_tls)
    {
        let message = "is for a url that begins with https://, and there is none; drop the section";
        document.error(offset, section_name, message);
    }
    let name = name.as_ref().map(|name| name.value.as_str());
    let mut trusted = None;
    let mut settings = Vec::new();
    for url in servers {
        let UpstreamTarget { is_tls: true, address: UpstreamAddress::Tcp(host, _), .. } = &url.value else {
            settings.push(None);
            continue;
        };
        let tls = trusted_roots(&mut trusted, roots.as_ref()).and_then(|roots| {
            Tls::new(roots, identity.as_ref(), name.unwrap_or(without_zone(host)), protocol)
        });
        let (offset, key) = offset.map_or((url.offset, url.key.as_str()), |offset| (offset, section_name));
        settings.push(Some(tls.map_err(|error| document.error(offset, key, error.to_string())).ok()?));
    }
    Some(settings)
}

pub(super) const VERSION_1: &str = "holds a certificate of X.509 version 1. An authority may have one, but if it is the server's own, \
                         no connection can be made; make one of version 3, as with openssl req -x509 -addext \
                         subjectAltName=DNS:HOST";

/// The roots of `ca_file`, or else those of the system, which are read once: that takes a while.
fn trusted_roots(
    cached: &mut Option<TrustedAuthorities>,
    configured: Option<&TrustedAuthorities>,
) -> Result<TrustedAuthorities, TlsError> {
    let roots = match cached.take() {
        Some(roots) => roots,
        None => {
            configured.map_or_else(certificates::system_authorities, |configured| Ok(configured.clone()))?
        }
    };
    Ok(cached.insert(roots).clone())
}

/// The files that a section names.
pub(super) struct TlsFiles<'a, 'd, 't> {
    pub(super) document: &'a Document<'t>,
    pub(super) section: &'a mut Section<'d, 't>,
    pub(super) name: &'a str,
}

impl TlsFiles<'_, '_, '_> {
    /// `None` if there is no such key, or if the file cannot be used, which is reported.
    pub(super) fn file<T>(
        &mut self,
        key: &'static str,
        load: impl FnOnce(&Path) -> Result<T, TlsError>,
    ) -> Option<T> {
        let file = self
            .section
            .string(key, "the path of a file", |text| (!text.is_empty()).then(|| PathBuf::from(text)))?;
        load(&file.value)
            .map_err(|error| {
                self.document.error(file.offset, &file.key, format!("{} {error}", file.value.display()));
            })
            .ok()
    }

    pub(super) fn identity(&mut self) -> Option<ClientIdentity> {
        let has = ["certificate_file", "key_file"].map(|key| self.section.has(key));
        if has == [true, false] || has == [false, true] {
            let message = "certificate_file and key_file go together; name both or none";
            self.document.error(self.section.offset(), self.name, message);
        }
        let chain = self.file("certificate_file", certificates::read_certificates);
        let key = self.file("key_file", certificates::read_key);
        Some(ClientIdentity { chain: chain?, key: key? })
    }
}

/// `[upstream.health]` and `[upstream.ejection]`.
pub(super) fn health(
    document: &Document<'_>,
    upstream: &mut Section<'_, '_>,
    servers: Option<&[UpstreamServerSettings]>,
) -> (HealthCheckSettings, EjectionSettings) {
    let is_only_one = servers.is_some_and(|servers| servers.len() == 1);
    if is_only_one && upstream.has("ejection") {
        let message = "has no effect with one server: there is no other to send requests to";
        document.warn(upstream.offset(), &upstream.name("ejection"), message);
    }
    let defaults = EjectionSettings::default();
    let slow_start = duration(upstream, "slow_start", defaults.slow_start, ZERO..=HOUR);
    let ejection = upstream.section("ejection").map_or(defaults, |mut section| {
        let failures =
            section.integer("failures", 0..1_001).map_or(defaults.failures, |count| as_u32(count.value));
        let pause = duration(&mut section, "pause", defaults.pause, MILLISECOND..=HOUR);
        let longest_pause =
            duration(&mut section, "longest_pause", defaults.longest_pause, MILLISECOND..=HOUR);
        if longest_pause < pause {
            let message = format!(
                "{} is shorter than the first pause, {}; the default is 60s",
                units::format_duration(longest_pause),
                units::format_duration(pause)
            );
            document.error(section.offset(), "upstream.ejection.longest_pause", message);
        }
        section.reject_unknown_keys();
        EjectionSettings { failures, pause, longest_pause, ..defaults }
    });
    let checks = upstream.section("health").map_or_else(HealthCheckSettings::default, health_checks);
    (checks, EjectionSettings { slow_start, ..ejection })
}

fn health_checks(mut section: Section<'_, '_>) -> HealthCheckSettings {
    let defaults = HealthCheckSettings::default();
    let path = section.string("path", "a path that begins with a slash, such as \"/-/readiness\"", |text| {
        let is_plain = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        (is_plain && http::Uri::try_from(text).is_ok()).then(|| text.to_owned())
    });
    let mut count = |key, default| section.integer(key, 1..101).map_or(default, |count| as_u32(count.value));
    let healthy_after = count("healthy_after", defaults.healthy_after);
    let unhealthy_after = count("unhealthy_after", defaults.unhealthy_after);
    let checks = HealthCheckSettings {
        path: path.map_or(defaults.path, |path| path.value),
        interval: duration(&mut section, "interval", defaults.interval, ZERO..=HOUR),
        timeout: duration(&mut section, "timeout", defaults.timeout, MILLISECOND..=HOUR),
        healthy_after,
        unhealthy_after,
    };
    section.reject_unknown_keys();
    checks
}
