//! Where Rails listens: `upstream.url`, or one `[[upstream.server]]` for each of several, with TLS and how
//! it is known whether they are well.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::document::{Document, Placed, Section};
use super::scalars::{HOUR, MILLISECOND, ZERO, as_u32, duration};
use super::{own_listeners, units};
use crate::server::Endpoint;
use crate::upstream::tls::{self, ClientIdentity, Tls, TrustedAuthorities};
use crate::upstream::{
    EjectionSettings, HealthCheckSettings, MAX_SERVERS, Protocol, UpstreamAddress, UpstreamServerSettings,
    UpstreamTarget, without_zone,
};

const URL: &str = "expected a URL in quotes, such as \"http://127.0.0.1:8080\"";

/// `None` if one is missing or wrong, which is told.
pub(super) fn servers(
    document: &Document<'_>,
    upstream: &mut Section<'_, '_>,
    protocol: Protocol,
    own: &[Endpoint],
) -> Option<Vec<UpstreamServerSettings>> {
    let (has_url, has_servers) = (upstream.has("url"), upstream.has("server"));
    let only = upstream.take("url", url);
    let listed = upstream.sections("server");
    let tls_section = upstream.section("tls");
    let mut found = Vec::new();
    match (has_url, listed) {
        (true, None) if !has_servers => found.push(only.map(|url| (url, false))),
        (false, Some(listed)) if !listed.value.is_empty() => {
            found.extend(listed.value.into_iter().map(|section| server(document, section)));
        }
        (true, listed) => {
            let message = "is for one server; with [[upstream.server]], say it there";
            document.problem(upstream.at(), "upstream.url", message);
            for section in listed.into_iter().flat_map(|listed| listed.value) {
                server(document, section);
            }
        }
        (false, _) => missing(document, upstream.at()),
    }
    let is_complete = !found.is_empty() && found.iter().all(Option::is_some);
    let found: Vec<_> = found.into_iter().flatten().collect();
    let is_plausible = are_plausible(document, &found, own);
    let tls = secured(document, tls_section, &found, protocol);
    let servers = found.into_iter().zip(tls?).map(|((url, is_backup), tls)| UpstreamServerSettings {
        target: url.value,
        tls,
        is_backup,
    });
    (is_complete && is_plausible).then(|| servers.collect())
}

pub(super) fn missing(document: &Document<'_>, at: usize) {
    let message = "is required: where Rails listens, such as \"http://127.0.0.1:8080\"; or a [[upstream.server]] for each of several";
    document.problem(at, "upstream.url", message);
}

fn url(value: &toml::de::DeValue<'_>) -> Result<UpstreamTarget, String> {
    UpstreamTarget::parse(value.as_str().ok_or(URL)?).map_err(|error| error.to_string())
}

fn server(document: &Document<'_>, mut section: Section<'_, '_>) -> Option<(Placed<UpstreamTarget>, bool)> {
    if !section.has("url") {
        document.problem(section.at(), "upstream.server.url", "is required in each [[upstream.server]]");
    }
    let url = section.take("url", url);
    let is_backup = section.flag("backup").is_some_and(|flag| flag.value);
    section.finish();
    Some((url?, is_backup))
}

/// Whether these can be the servers of one GitLab.
fn are_plausible(
    document: &Document<'_>,
    servers: &[(Placed<UpstreamTarget>, bool)],
    own: &[Endpoint],
) -> bool {
    let Some((first, _)) = servers.first() else { return true };
    let mut problems = Vec::new();
    let mut known = HashSet::new();
    for (url, _) in servers {
        if !known.insert(url.value.address.to_string()) {
            problems.push((url, format!("{} is there twice", url.value.address)));
        }
        if url.value.root != first.value.root {
            let message = "all servers are of one GitLab, with the same path behind the host";
            problems.push((url, message.to_owned()));
        }
        if let Some(endpoint) = own_listeners::reached_by(&url.value.address, own) {
            let message = format!(
                "leads back to the gateway's own listener on {endpoint}; name the address of Workhorse or Puma"
            );
            problems.push((url, message));
        }
    }
    if servers.iter().all(|(_, is_backup)| *is_backup) {
        problems.push((first, "one server at least must not be a backup".to_owned()));
    }
    if servers.len() > MAX_SERVERS {
        problems.push((first, format!("there are {} servers, {MAX_SERVERS} may be", servers.len())));
    }
    let is_plausible = problems.is_empty();
    for (url, message) in problems {
        document.problem(url.at, &url.key, message);
    }
    is_plausible
}

/// How each server is connected to. Certificates are read here, so that what is wrong with them is told
/// before anything runs.
fn secured(
    document: &Document<'_>,
    section: Option<Section<'_, '_>>,
    servers: &[(Placed<UpstreamTarget>, bool)],
    protocol: Protocol,
) -> Option<Vec<Option<Tls>>> {
    let at = section.as_ref().map(Section::at);
    let (mut name, mut roots, mut identity) = (None, None, None);
    if let Some(mut section) = section {
        let mut files = Files { document, section: &mut section };
        roots = files.file("ca_file", tls::read_authorities);
        identity = files.identity();
        name = section.text("server_name", "a host name or an IP address", |text| Some(text.to_owned()));
        section.finish();
    }
    if let Some(at) = at
        && !servers.is_empty()
        && servers.iter().all(|(url, _)| !url.value.is_tls)
    {
        let message = "is for a url that begins with https://, and there is none; drop the section";
        document.problem(at, "upstream.tls", message);
    }
    let name = name.as_ref().map(|name| name.value.as_str());
    let mut believed = None;
    let mut secured = Vec::new();
    for (url, _) in servers {
        let UpstreamTarget { is_tls: true, address: UpstreamAddress::Tcp(host, _), .. } = &url.value else {
            secured.push(None);
            continue;
        };
        let tls = believed_by(&mut believed, roots.as_ref()).and_then(|roots| {
            Tls::new(roots, identity.as_ref(), name.unwrap_or(without_zone(host)), protocol)
        });
        let (at, key) = at.map_or((url.at, url.key.as_str()), |at| (at, "upstream.tls"));
        secured.push(Some(tls.map_err(|error| document.problem(at, key, error.to_string())).ok()?));
    }
    Some(secured)
}

/// What the operator named, or what the system trusts, which takes a while to find out.
fn believed_by(
    believed: &mut Option<TrustedAuthorities>,
    named: Option<&TrustedAuthorities>,
) -> Result<TrustedAuthorities, tls::TlsError> {
    let known = match believed.take() {
        Some(known) => known,
        None => named.map_or_else(tls::system_authorities, |named| Ok(named.clone()))?,
    };
    Ok(believed.insert(known).clone())
}

/// The files that `[upstream.tls]` names.
struct Files<'a, 'd, 't> {
    document: &'a Document<'t>,
    section: &'a mut Section<'d, 't>,
}

impl Files<'_, '_, '_> {
    /// `None` if there is no such key, or if the file cannot be used, which is told.
    fn file<T>(
        &mut self,
        key: &'static str,
        load: impl FnOnce(&Path) -> Result<T, tls::TlsError>,
    ) -> Option<T> {
        let file = self
            .section
            .text(key, "the path of a file", |text| (!text.is_empty()).then(|| PathBuf::from(text)))?;
        load(&file.value)
            .map_err(|error| {
                self.document.problem(file.at, &file.key, format!("{} {error}", file.value.display()));
            })
            .ok()
    }

    fn identity(&mut self) -> Option<ClientIdentity> {
        let has = ["certificate_file", "key_file"].map(|key| self.section.has(key));
        if has == [true, false] || has == [false, true] {
            let message = "certificate_file and key_file go together; name both or none";
            self.document.problem(self.section.at(), "upstream.tls", message);
        }
        let chain = self.file("certificate_file", tls::read_certificates);
        let key = self.file("key_file", tls::read_key);
        Some(ClientIdentity { chain: chain?, key: key? })
    }
}

/// How it is known whether servers are well: `[upstream.health]`, `[upstream.ejection]`.
pub(super) fn health(
    document: &Document<'_>,
    upstream: &mut Section<'_, '_>,
    servers: Option<&[UpstreamServerSettings]>,
) -> (HealthCheckSettings, EjectionSettings) {
    let is_alone = servers.is_some_and(|servers| servers.len() == 1);
    if is_alone && upstream.has("ejection") {
        let message = "does nothing while there is one server: there is no other to turn to";
        document.warn(upstream.at(), &upstream.name("ejection"), message);
    }
    let defaults = EjectionSettings::default();
    let slow_start = duration(upstream, "slow_start", defaults.slow_start, ZERO..=HOUR);
    let ejection = upstream.section("ejection").map_or(defaults, |mut section| {
        let failures =
            section.count("failures", 0..1_001).map_or(defaults.failures, |count| as_u32(count.value));
        let pause = duration(&mut section, "pause", defaults.pause, MILLISECOND..=HOUR);
        let longest = duration(&mut section, "longest_pause", defaults.longest_pause, MILLISECOND..=HOUR);
        if longest < pause {
            let message = format!(
                "{} is shorter than the first pause, {}; the default is 60s",
                units::show(longest),
                units::show(pause)
            );
            document.problem(section.at(), "upstream.ejection.longest_pause", message);
        }
        section.finish();
        EjectionSettings { failures, pause, longest_pause: longest, ..defaults }
    });
    let checks = upstream.section("health").map_or_else(HealthCheckSettings::default, checks);
    (checks, EjectionSettings { slow_start, ..ejection })
}

fn checks(mut section: Section<'_, '_>) -> HealthCheckSettings {
    let defaults = HealthCheckSettings::default();
    let path = section.text("path", "a path that begins with a slash, such as \"/-/readiness\"", |text| {
        let is_path = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        (is_path && http::Uri::try_from(text).is_ok()).then(|| text.to_owned())
    });
    let mut count = |key, default| section.count(key, 1..101).map_or(default, |count| as_u32(count.value));
    let healthy_after = count("healthy_after", defaults.healthy_after);
    let unhealthy_after = count("unhealthy_after", defaults.unhealthy_after);
    let checks = HealthCheckSettings {
        path: path.map_or(defaults.path, |path| path.value),
        interval: duration(&mut section, "interval", defaults.interval, ZERO..=HOUR),
        timeout: duration(&mut section, "timeout", defaults.timeout, MILLISECOND..=HOUR),
        healthy_after,
        unhealthy_after,
    };
    section.finish();
    checks
}
