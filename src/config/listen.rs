//! `[[listen]]` and `[admin]`: where to listen.

use std::collections::HashSet;
use std::path::PathBuf;

use super::document::{Document, Placed, Section};
use crate::server::Endpoint;

const DEFAULT_LISTEN: &str = "127.0.0.1:8181";
const DEFAULT_ADMIN: &str = "127.0.0.1:9181";
const DEFAULT_MODE: u32 = 0o660;
const AN_ADDRESS: &str =
    "an IP address with a port, or unix: and an absolute path, such as \"127.0.0.1:8181\"";

pub(super) fn listen(document: &Document<'_>, root: &mut Section<'_, '_>) -> Vec<Placed<Endpoint>> {
    let Some(sections) = root.sections("listen") else {
        return endpoint_of(DEFAULT_LISTEN)
            .map(|value| Placed { value, key: "listen".to_owned(), at: 0 })
            .into_iter()
            .collect();
    };
    let mut seen = HashSet::new();
    let mut endpoints = Vec::new();
    for mut section in sections {
        let (at, name) = (section.at(), section.name("address"));
        if !section.has("address") {
            document.problem(at, &name, format!("is required: {AN_ADDRESS}"));
        }
        let endpoint = endpoint(document, &mut section);
        section.finish();
        let Some(endpoint) = endpoint else { continue };
        if !seen.insert(endpoint.value.to_string()) {
            document.problem(
                endpoint.at,
                &endpoint.key,
                "another [[listen]] has this address already; drop one",
            );
        }
        endpoints.push(endpoint);
    }
    endpoints
}

pub(super) fn admin(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    listen: &[Placed<Endpoint>],
) -> Endpoint {
    let fallback =
        || endpoint_of(DEFAULT_ADMIN).unwrap_or_else(|| Endpoint::Tcp(([127, 0, 0, 1], 9181).into()));
    let Some(mut section) = root.section("admin") else { return fallback() };
    let endpoint = endpoint(document, &mut section);
    section.finish();
    let Some(endpoint) = endpoint else { return fallback() };
    let is_taken = |other: &Placed<Endpoint>| other.value.to_string() == endpoint.value.to_string();
    if listen.iter().any(is_taken) {
        document.problem(
            endpoint.at,
            &endpoint.key,
            "a [[listen]] has this address already; choose another port",
        );
    }
    endpoint.value
}

fn endpoint(document: &Document<'_>, section: &mut Section<'_, '_>) -> Option<Placed<Endpoint>> {
    let address = section.text("address", AN_ADDRESS, endpoint_of);
    let mode = section.text("mode", "permission bits in octal, such as \"0660\"", |text| {
        u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
    });
    let mut address = address?;
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
