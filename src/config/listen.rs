//! `[[listen]]` and `[admin]`: where to listen.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::auth::secret;
use super::document::{Document, Placed, Section};
use crate::secret::AdminToken;
use crate::server::Endpoint;

const DEFAULT_LISTEN: Endpoint =
    Endpoint::Tcp(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8181));
const DEFAULT_ADMIN: Endpoint =
    Endpoint::Tcp(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9181));
const DEFAULT_MODE: u32 = 0o660;
const AN_ADDRESS: &str =
    "an IP address with a port, or unix: and an absolute path, such as \"127.0.0.1:8181\"";

pub(super) fn listen(document: &Document<'_>, root: &mut Section<'_, '_>) -> Vec<Placed<Endpoint>> {
    let Some(sections) = root.sections("listen") else {
        return vec![Placed { value: DEFAULT_LISTEN, key: "listen".to_owned(), at: 0 }];
    };
    if sections.value.is_empty() {
        let message = "is empty, so nobody could connect; drop the key for the default, 127.0.0.1:8181";
        document.problem(sections.at, &sections.key, message);
    }
    let mut endpoints: Vec<Placed<Endpoint>> = Vec::new();
    for mut section in sections.value {
        let Some(endpoint) = endpoint(document, &mut section, None) else {
            section.finish();
            continue;
        };
        section.finish();
        if endpoints.iter().any(|other| other.value.clashes_with(&endpoint.value)) {
            let message = "another [[listen]] has this address already; drop one";
            document.problem(endpoint.at, &endpoint.key, message);
        }
        endpoints.push(endpoint);
    }
    endpoints
}

pub(super) fn admin(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    listen: &[Placed<Endpoint>],
) -> (Endpoint, Option<AdminToken>) {
    let default = || Placed { value: DEFAULT_ADMIN, key: "admin.address".to_owned(), at: 0 };
    let mut section = root.section("admin");
    let given = section.as_mut().and_then(|section| endpoint(document, section, Some(DEFAULT_ADMIN)));
    let token = section.as_mut().and_then(|section| {
        let advice = "write one word into it, such as what `openssl rand -hex 32` prints";
        secret(document, section, ("token_file", advice), AdminToken::load)
    });
    if let Some(section) = section {
        section.finish();
    }
    let endpoint = given.unwrap_or_else(default);
    if let Some(other) = listen.iter().find(|other| other.value.clashes_with(&endpoint.value)) {
        let at = if endpoint.at == 0 { other.at } else { endpoint.at };
        let default = if endpoint.at == 0 { ", its default," } else { "" };
        let message = format!(
            "{}{default} is the address of a [[listen]] already; choose another port",
            endpoint.value
        );
        document.problem(at, &endpoint.key, message);
    }
    (endpoint.value, token.map(|token| token.value))
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
    let address = section.text("address", AN_ADDRESS, endpoint_of);
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
