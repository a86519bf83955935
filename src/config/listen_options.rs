//! What a `[[listen]]` demands of its peers, and what it believes to them: `[listen.tls]`, `allow_peers`,
//! `trusted_proxies`, `proxy_protocol`, `http2`, `accept`.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::accounts;
use super::document::{Document, Located, Section};
use crate::certificates::TlsError;
use crate::clock::Clock;
use crate::server::{
    AcceptedCallers, AllowedPeers, ListenAddress, ListenOptions, Networks, ServerTls, ServerTlsError,
    ServerTlsSettings, TlsVersion, TrustedProxies,
};

/// `address`: that of the listener, if it is valid.
pub(super) fn options(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    address: Option<&ListenAddress>,
) -> ListenOptions {
    let http2 = section.boolean("http2").is_some_and(|flag| flag.value);
    let tls = section.section("tls").and_then(|section| tls(document, section, http2));
    let allow_peers = section.string_list("allow_peers");
    let allow_peers = allow_peers.map(|entries| allowed_peers(document, &entries, address));
    let proxies = section.string_list("trusted_proxies");
    let proxies = proxies.map(|entries| trusted_proxies(document, &entries, address));
    let proxy_protocol = section.boolean("proxy_protocol").filter(|flag| flag.value);
    if let Some(key) = &proxy_protocol {
        let needed = match (address, &proxies) {
            (_, None) => {
                Some("needs trusted_proxies: the proxies whose header is believed, such as [\"10.0.0.7\"]")
            }
            (Some(ListenAddress::Unix { .. }), Some(proxies)) if !proxies.unix => Some(
                "needs \"unix:\" in trusted_proxies here: all peers of a unix socket, or no connection would be accepted",
            ),
            (Some(ListenAddress::Tcp(_)), Some(proxies)) if proxies.networks == Networks::default() => {
                Some("needs an address in trusted_proxies, or no connection would be accepted")
            }
            _ => None,
        };
        if let Some(message) = needed {
            document.error(key.offset, &key.key, message);
        }
    }
    let accept = section.string_list("accept").map(|names| accepted_callers(document, &names));
    ListenOptions {
        tls,
        allow_peers,
        trusted_proxies: proxies.map(Arc::new),
        proxy_protocol: proxy_protocol.is_some(),
        http2,
        accept,
    }
}

fn accepted_callers(document: &Document<'_>, names: &Located<Vec<String>>) -> AcceptedCallers {
    let mut accept = AcceptedCallers::default();
    if names.value.is_empty() {
        let message = "is empty, so every request would be refused; drop the key to accept all callers";
        document.error(names.offset, &names.key, message);
    }
    for name in &names.value {
        match &**name {
            "shell" => accept.shell = true,
            "kas" => accept.kas = true,
            "rails" => accept.rails = true,
            other => {
                let message = format!("unknown caller {other:?}; known are \"shell\", \"kas\" and \"rails\"");
                document.error(names.offset, &names.key, message);
            }
        }
    }
    accept
}

fn allowed_peers(
    document: &Document<'_>,
    entries: &Located<Vec<String>>,
    address: Option<&ListenAddress>,
) -> AllowedPeers {
    let error = |message: String| document.error(entries.offset, &entries.key, message);
    if entries.value.is_empty() {
        error("is empty, so no client could connect; drop the key to let all connect".to_owned());
    }
    let (mut networks, mut users, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for entry in &entries.value {
        let is_process = entry.starts_with("uid:") || entry.starts_with("gid:");
        let outcome = match (entry.split_once(':'), address) {
            (_, Some(ListenAddress::Tcp(_))) if is_process => Err(format!(
                "{entry:?} is for a unix socket; over TCP, peers have addresses, such as \"10.0.0.0/8\""
            )),
            (_, Some(ListenAddress::Unix { .. })) if !is_process => Err(format!(
                "{entry:?} is for TCP; peers of a unix socket are users and groups, such as \"uid:git\""
            )),
            (Some(("uid", name)), _) => accounts::user(name).map(|id| users.push(id)),
            (Some(("gid", name)), _) => accounts::group(name).map(|id| groups.push(id)),
            _ => network(entry).map(|network| networks.push(network)),
        };
        if let Err(message) = outcome {
            error(message);
        }
    }
    AllowedPeers { networks: Networks::new(networks), users, groups }
}

fn trusted_proxies(
    document: &Document<'_>,
    entries: &Located<Vec<String>>,
    address: Option<&ListenAddress>,
) -> TrustedProxies {
    let mut networks = Vec::new();
    let unix = entries.value.iter().any(|entry| entry == "unix:");
    if unix && matches!(address, Some(ListenAddress::Tcp(_))) {
        let message = "\"unix:\" stands for the peers of a unix socket, and this listener has none; drop it";
        document.error(entries.offset, &entries.key, message);
    }
    for entry in entries.value.iter().filter(|entry| *entry != "unix:") {
        match network(entry) {
            Ok(network) if network.prefix_len() == 0 => {
                let message = format!("{entry:?} is everyone: any client could say that it is another one");
                document.warn(entries.offset, &entries.key, message);
                networks.push(network);
            }
            Ok(network) => networks.push(network),
            Err(message) => document.error(entries.offset, &entries.key, message),
        }
    }
    TrustedProxies { networks: Networks::new(networks), unix }
}

/// An address, or a network in CIDR notation.
fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network: IpNet = text.parse().map_err(|_| {
        format!("expected an address or a network, such as \"10.0.0.7\" or \"10.0.0.0/8\", found {text:?}")
    })?;
    let exact = network.trunc();
    if exact == network {
        Ok(without_mapping(network))
    } else {
        Err(format!("{text:?} has bits beyond its prefix; write \"{exact}\""))
    }
}

/// An IPv4 network that is written as one of IPv6, as `[::]` shows its peers, is compared with what it stands for.
fn without_mapping(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else { return network };
    let address = mapped.addr().to_ipv4_mapped();
    let prefix = mapped.prefix_len().checked_sub(MAPPED_PREFIX);
    let unmapped = address.zip(prefix).and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    unmapped.map_or(network, IpNet::V4)
}

/// Of `::ffff:0:0/96`.
const MAPPED_PREFIX: u8 = 96;

/// `[listen.tls]`. Certificates are read here, so that mistakes in them are reported before anything runs.
fn tls(document: &Document<'_>, mut section: Section<'_, '_>, http2: bool) -> Option<ServerTls> {
    let mut file = |key, is_required: bool| {
        let has = section.has(key);
        if is_required && !has {
            document.error(
                section.offset(),
                &section.name(key),
                "is required in [listen.tls]: the path of a file in PEM",
            );
        }
        let file =
            section.string(key, "the path of a file", |text| (!text.is_empty()).then(|| PathBuf::from(text)));
        // `None` once for a value that is missing, once for one that is not there.
        if file.is_some() == has { Some(file) } else { None }
    };
    let (certificate, key, authority) =
        (file("certificate_file", true), file("key_file", true), file("client_ca_file", false));
    let min_version = section.string("min_version", "\"1.2\" or \"1.3\"", |text| match text {
        "1.2" => Some(TlsVersion::Tls12),
        "1.3" => Some(TlsVersion::Tls13),
        _ => None,
    });
    section.reject_unknown_keys();
    let (certificate, key, authority) = (certificate??, key??, authority?);
    let files = [Some(&certificate), Some(&key), authority.as_ref()];
    let settings = ServerTlsSettings {
        certificate_file: certificate.value.clone(),
        key_file: key.value.clone(),
        client_ca_file: authority.as_ref().map(|file| file.value.clone()),
        min_version: min_version.map_or_else(TlsVersion::default, |version| version.value),
        http2,
    };
    match ServerTls::load(settings) {
        Ok(tls) => {
            if let Some(message) = validity_warning(&tls, Clock::System.unix_seconds()) {
                document.warn(
                    certificate.offset,
                    &certificate.key,
                    format!("{} {message}", certificate.value.display()),
                );
            }
            if is_open_to_all(&key.value) {
                let message = format!("{} can be read by every user; chmod o-rwx it", key.value.display());
                document.warn(key.offset, &key.key, message);
            }
            Some(tls)
        }
        Err(error) => {
            let place = files
                .into_iter()
                .flatten()
                .find(|file| file.key.ends_with(error.key))
                .unwrap_or(&certificate);
            document.error(place.offset, &place.key, format!("{error}{}", advice(&error)));
            None
        }
    }
}

fn advice(error: &ServerTlsError) -> &'static str {
    match &error.error {
        TlsError::NotFound(_) | TlsError::NotPem(_) => "; it must be in PEM, which begins with -----BEGIN",
        TlsError::Identity(_) => "; key_file has to be that of the first certificate in certificate_file",
        _ => "",
    }
}

/// How long before its end a warning says that a certificate has to be renewed.
const RENEWAL_DAYS: i64 = 7;
const DAY_S: i64 = 24 * 3_600;

fn validity_warning(tls: &ServerTls, now: i64) -> Option<String> {
    let days = |seconds: i64| seconds / DAY_S;
    let (begin, end) = (tls.not_before(), tls.not_after());
    match () {
        () if now > end => {
            Some(format!("expired {} days ago, so clients will refuse it; renew it", days(now - end)))
        }
        () if now < begin => Some(format!(
            "is not valid yet, but in {} days; is the clock of this machine right?",
            days(begin - now + DAY_S - 1)
        )),
        () if end - now < RENEWAL_DAYS * DAY_S => {
            Some(format!("expires in {} days; renew it", days(end - now)))
        }
        () => None,
    }
}

/// Whether users other than the owner and its group may read it.
fn is_open_to_all(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_compared_as_what_they_stand_for() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:192.0.2.7/128", "192.0.2.7/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(network(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.1/8", "::ffff:10.0.0.1/104", "10.0.0.0/33", "::/129", "fe80::1%eth0", "a"] {
            assert!(network(text).is_err(), "{text}");
        }
    }
}
