//! The names of headers: those that GitLab's components use, and the classes that differ in how they are forwarded.

use http::header::{self, HeaderMap, HeaderName};

/// Base64 of the shell secret (the internal API document, "Authentication").
pub static SHARED_SECRET: HeaderName = HeaderName::from_static("gitlab-shared-secret");
/// The JWT of GitLab Shell and Gitaly, GitLab 15 and later (contract §2.5).
pub static SHELL_JWT: HeaderName = HeaderName::from_static("gitlab-shell-api-request");
/// The JWT of the Kubernetes agent server (contract §2.6).
pub static KAS_JWT: HeaderName = HeaderName::from_static("gitlab-kas-api-request");
/// The correlation id, on requests and responses.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What the cache did (RFC 9211).
pub static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

pub(super) static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Headers that concern one connection only (RFC 9110 §7.6.1 and its older lists).
pub(super) fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Headers by which a client could make Rails, or a server in front of it, see another request
/// than the gateway did: another method, path, scheme, host or peer, or a file to send.
pub fn is_spoofable(name: &str) -> bool {
    matches!(
        name,
        // Puma keeps the protocol's version in the variable that "version" becomes.
        "forwarded"
            | "proxy"
            | "version"
            | "client-ip"
            | "x-accel-mapping"
            | "x-accel-redirect"
            | "x-forwarded-port"
            | "x-forwarded-prefix"
            | "x-forwarded-scheme"
            | "x-forwarded-server"
            | "x-forwarded-ssl"
            | "x-http-method-override"
            | "x-original-url"
            | "x-real-ip"
            | "x-rewrite-url"
            | "x-sendfile"
            | "x-sendfile-type"
    )
}

/// The header names in the values of `list`.
pub(super) fn names_in<'h>(
    headers: &'h HeaderMap,
    list: &HeaderName,
) -> impl Iterator<Item = HeaderName> + use<'h> {
    let values = headers.get_all(list).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
}

pub(super) fn is_end_to_end_always(name: &HeaderName) -> bool {
    [
        &header::HOST,
        &header::CONTENT_LENGTH,
        &header::CONTENT_TYPE,
        &header::AUTHORIZATION,
        &SHARED_SECRET,
        &SHELL_JWT,
        &KAS_JWT,
        &REQUEST_ID,
        &X_FORWARDED_FOR,
    ]
    .contains(&name)
}
