//! `[[listen]]`, `[admin]` and `[hooks]`: where to listen.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::auth::secret;
use super::document::{Document, Placed, Section, white_space_hint};
use super::scalars::{HOUR, ZERO, as_usize, duration};
use crate::hooks;
use crate::secret::{SigningToken, Token};
use crate::server::{DEFAULT_OPERATOR_CONNECTIONS, Endpoint};
use crate::upstream::MAX_SOCKET_PATH;

const DEFAULT_LISTEN: Endpoint =
    Endpoint::Tcp(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8181));
const DEFAULT_ADMIN: Endpoint =
    Endpoint::Tcp(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9181));
const DEFAULT_MODE: u32 = 0o660;
const AN_ADDRESS: &str =
    "an IP address with a port, or unix: and an absolute path, such as \"127.0.0.1:8181\"";

/// A `[[listen]]`. Without `connections`, `limits.connections` holds.
pub(super) struct Listen {
    pub(super) endpoint: Placed<Endpoint>,
    pub(super) connections: Option<usize>,
}

pub(super) fn listen(document: &Document<'_>, root: &mut Section<'_, '_>) -> Vec<Listen> {
    let Some(sections) = root.sections("listen") else {
        let endpoint = Placed { value: DEFAULT_LISTEN, key: "listen".to_owned(), at: 0 };
        return vec![Listen { endpoint, connections: None }];
    };
    if sections.value.is_empty() {
        let message = "is empty, so no client could connect; drop the key for the default, 127.0.0.1:8181";
        document.problem(sections.at, &sections.key, message);
    }
    let mut all: Vec<Listen> = Vec::new();
    for mut section in sections.value {
        let endpoint = endpoint(document, &mut section, None);
        let connections = connections(&mut section);
        section.finish();
        let Some(endpoint) = endpoint else { continue };
        if all.iter().any(|other| other.endpoint.value.clashes_with(&endpoint.value)) {
            let message = "another [[listen]] has this address already; drop one";
            document.problem(endpoint.at, &endpoint.key, message);
        }
        all.push(Listen { endpoint, connections });
    }
    all
}

/// How many may be open at one time, if the section says.
pub(super) fn connections(section: &mut Section<'_, '_>) -> Option<usize> {
    section.count("connections", 1..1_000_001).map(|count| as_usize(count.value))
}

/// `[admin]`.
pub(super) struct Admin {
    pub(super) endpoint: Endpoint,
    pub(super) connections: usize,
    pub(super) token: Option<Token>,
    pub(super) hosts: Vec<String>,
}

pub(super) fn admin(document: &Document<'_>, root: &mut Section<'_, '_>, listen: &[Listen]) -> Admin {
    let default = || Placed { value: DEFAULT_ADMIN, key: "admin.address".to_owned(), at: 0 };
    let mut section = root.section("admin");
    let given = section.as_mut().and_then(|section| endpoint(document, section, Some(DEFAULT_ADMIN)));
    let token = section.as_mut().and_then(|section| {
        let advice = "write one word into it, such as what `openssl rand -hex 32` prints";
        secret(document, section, ("token_file", advice), Token::load)
    });
    let hosts = section.as_mut().map(|section| hosts(document, section)).unwrap_or_default();
    let connections = section.as_mut().and_then(connections).unwrap_or(DEFAULT_OPERATOR_CONNECTIONS);
    if let Some(section) = section {
        section.finish();
    }
    let endpoint = given.unwrap_or_else(default);
    let mut others = listen.iter().map(|listen| &listen.endpoint);
    if let Some(other) = others.find(|other| other.value.clashes_with(&endpoint.value)) {
        let at = if endpoint.at == 0 { other.at } else { endpoint.at };
        let default = if endpoint.at == 0 { ", its default," } else { "" };
        let message = format!(
            "{}{default} is the address of a [[listen]] already; choose another port",
            endpoint.value
        );
        document.problem(at, &endpoint.key, message);
    }
    Admin { endpoint: endpoint.value, connections, token: token.map(|token| token.value), hosts }
}

/// `admin.hosts`, in lower case.
fn hosts(document: &Document<'_>, section: &mut Section<'_, '_>) -> Vec<String> {
    let Some(given) = section.list("hosts") else { return Vec::new() };
    let name = |text: &String| {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_name = name.split('.').all(|label| {
            let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            !label.is_empty() && label.bytes().all(is_word)
        });
        if !is_name {
            let message = format!(
                "{text:?} is no host name; say names without a port, such as [\"railgate.example\"] (addresses and \
                 localhost are always answered)"
            );
            document.problem(given.at, &given.key, message);
        }
        is_name.then(|| name.to_ascii_lowercase())
    };
    given.value.iter().filter_map(name).collect()
}

/// The endpoint of a section, or `default` if it names no address.
fn endpoint(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    default: Option<Endpoint>,
) -> Option<Placed<Endpoint>> {
    let (at, key) = (section.at(), section.name("address"));
    let is_given = section.has("address");
    if !is_given && default.is_none() {
        document.problem(at, &key, format!("is required: {AN_ADDRESS}"));
    }
    let address = section.take("address", |value| endpoint_of(value.as_str()));
    let mode = section.text("mode", "permission bits in octal and in quotes, such as \"0660\"", |text| {
        u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
    });
    let default = default.filter(|_| !is_given).map(|value| Placed { value, key, at });
    let mut address = address.or(default)?;
    match (&mut address.value, mode) {
        (Endpoint::Unix { mode, .. }, Some(given)) => *mode = given.value,
        (Endpoint::Tcp(_), Some(given)) => {
            document.problem(given.at, &given.key, "only a unix socket has a mode; drop the key");
        }
        (_, None) => {}
    }
    Some(address)
}

fn endpoint_of(text: Option<&str>) -> Result<Endpoint, String> {
    let text = text.ok_or_else(|| format!("expected {AN_ADDRESS}, in quotes"))?;
    let expected = || {
        let hint = white_space_hint(text, |dense| dense != text && endpoint_of(Some(dense)).is_ok());
        format!("expected {AN_ADDRESS}, found {text:?}{}", hint.unwrap_or_default())
    };
    let Some(path) = text.strip_prefix("unix:") else {
        return text.parse().map(Endpoint::Tcp).map_err(|_| expected() + why_no_address(text));
    };
    if !path.starts_with('/') || path.contains('\0') {
        return Err(expected());
    }
    if path.ends_with('/') {
        return Err(format!(
            "{text:?} names a directory; name the socket in it, such as \"{text}railgate.sock\""
        ));
    }
    if path.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "names a socket by {} bytes, and the system takes {MAX_SOCKET_PATH}; choose a shorter path",
            path.len()
        ));
    }
    Ok(Endpoint::Unix { path: PathBuf::from(path), mode: DEFAULT_MODE })
}

/// What is known about an address that is none.
fn why_no_address(text: &str) -> &'static str {
    match text.rsplit_once(':') {
        Some((host, port))
            if is_ip(host) && port.parse::<u16>().is_err() && !port.contains(char::is_whitespace) =>
        {
            "; a port is from 0 to 65535"
        }
        Some((host, _)) if host.contains('%') => "; a zone is a number here, as in \"[fe80::1%2]:8181\"",
        _ if is_ip(text) => "; a port is missing",
        _ => "",
    }
}

fn is_ip(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    bare.map_or_else(|| text.parse::<Ipv4Addr>().is_ok(), |bare| bare.parse::<Ipv6Addr>().is_ok())
}

/// `[hooks]`: where GitLab tells of changes. Without the section, nowhere.
pub(super) fn hooks(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    (listen, admin): (&[Listen], &Endpoint),
) -> Option<hooks::Settings> {
    let mut section = root.section("hooks")?;
    let names_a_token = section.has("token_file") || section.has("signing_token_file");
    let endpoint = endpoint(document, &mut section, None);
    let connections = connections(&mut section).unwrap_or(DEFAULT_OPERATOR_CONNECTIONS);
    let advice = "write one word into it, and the same into GitLab, as the secret token of the System Hook";
    let token = secret(document, &mut section, ("token_file", advice), Token::load);
    let advice = "copy the signing token that GitLab shows for the System Hook";
    let signing_token = secret(document, &mut section, ("signing_token_file", advice), SigningToken::load);
    let settle = duration(&mut section, "settle", DEFAULT_SETTLE, ZERO..=HOUR);
    if !names_a_token {
        let message =
            "is required in [hooks], or signing_token_file: who could not show either, nobody would know";
        document.problem(section.at(), "hooks.token_file", message);
    }
    section.finish();
    let endpoint = endpoint?;
    let mut others = listen.iter().map(|listen| &listen.endpoint.value).chain([admin]);
    if others.any(|other| other.clashes_with(&endpoint.value)) {
        let message =
            format!("{} is the address of another listener already; choose another port", endpoint.value);
        document.problem(endpoint.at, &endpoint.key, message);
    }
    Some(hooks::Settings {
        endpoint: endpoint.value,
        connections,
        token: token.map(|token| token.value),
        signing_token: signing_token.map(|token| token.value),
        settle,
    })
}

/// As long as a read replica lags behind, at most.
const DEFAULT_SETTLE: Duration = Duration::from_secs(5);
