//! Refuses requests that the gateway and Rails could understand differently, before they are interpreted.
//!
//! The raw framing was validated before hyper saw it (`server::wire`); this layer validates the parsed
//! request: its host, its path, and headers that Rack would read as other headers. It never
//! redirects: a client that follows would send its credential again.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::Version;
use http::header::{self, HeaderMap, HeaderName};
use tower::{Layer, Service};

use super::{ImmediateOr, immediate};
use crate::authority;
use crate::exchange::Exchange;
use crate::failure::Failure;
use crate::framing::charset;
use crate::header::via::Pseudonym;
use crate::header::{KAS_JWT, SHARED_SECRET, SHELL_JWT, is_spoofable};
use crate::refusal::Refusal;

/// Puts [`Sanitize`] in front of a service.
#[derive(Clone, Debug)]
pub struct SanitizeLayer {
    root: Arc<str>,
    pseudonym: Pseudonym,
}

/// Refuses ambiguous requests, and those that the gateway has sent itself, and removes headers that no client
/// may set.
#[derive(Clone, Debug)]
pub struct Sanitize<S> {
    inner: S,
    root: Arc<str>,
    pseudonym: Pseudonym,
}

impl SanitizeLayer {
    /// `root` is the relative URL root of Rails; `pseudonym` tells the gateway's own requests.
    pub fn new(root: &str, pseudonym: Pseudonym) -> Self {
        Self { root: root.into(), pseudonym }
    }
}

impl<S> Layer<S> for SanitizeLayer {
    type Service = Sanitize<S>;

    fn layer(&self, inner: S) -> Sanitize<S> {
        Sanitize { inner, root: Arc::clone(&self.root), pseudonym: self.pseudonym.clone() }
    }
}

impl<S> Service<Exchange> for Sanitize<S>
where
    S: Service<Exchange, Response = http::Response<crate::body::Body>, Error = Failure>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = ImmediateOr<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, mut exchange: Exchange) -> Self::Future {
        match validate(&exchange, &self.root) {
            Ok(()) => {
                let headers = exchange.request.headers_mut();
                // Few requests have passed another proxy.
                if remove_spoofed(headers) && self.pseudonym.is_in(headers) {
                    return immediate(Err(Failure::Loop));
                }
                Either::Right(self.inner.call(exchange))
            }
            Err(refusal) => immediate(Err(Failure::Refused(refusal))),
        }
    }
}

fn validate(exchange: &Exchange, root: &str) -> Result<(), Refusal> {
    let request = &exchange.request;
    if let Some(refusal) = exchange.refusal {
        return Err(refusal);
    }
    validate_host(request.headers(), request.version())?;
    validate_single_headers(request.headers())?;
    validate_path(below_root(request.uri().path(), root))
}

/// RFC 9112 §3.2: exactly one, and a valid one. A client of HTTP/1.0 may send none: Rails gets the host of
/// the configuration anyway.
fn validate_host(headers: &HeaderMap, version: Version) -> Result<(), Refusal> {
    let is_repeated =
        headers.len() != headers.keys_len() && headers.get_all(header::HOST).iter().nth(1).is_some();
    let is_valid = match headers.get(header::HOST) {
        Some(host) => {
            !is_repeated && host.to_str().is_ok_and(|host| authority::parse_host_header(host).is_some())
        }
        None => version == Version::HTTP_10,
    };
    if is_valid { Ok(()) } else { Err(Refusal::Host) }
}

/// The part of the path that must have one spelling. Clients that append a path to a URL with a trailing slash
/// send two slashes after the root, as they do at the beginning; they are merged into one.
fn below_root<'p>(path: &'p str, root: &str) -> &'p str {
    let below = path.strip_prefix(root).filter(|below| !root.is_empty() && below.starts_with("//"));
    below.map_or(path, |below| {
        let slashes = below.bytes().take_while(|byte| *byte == b'/').count();
        below.get(slashes.saturating_sub(1)..).unwrap_or(below)
    })
}

/// Headers that the gateway interprets, and that Rack would join with a comma.
const SINGLE: [&HeaderName; 5] =
    [&header::CONTENT_TYPE, &header::AUTHORIZATION, &SHARED_SECRET, &SHELL_JWT, &KAS_JWT];

fn validate_single_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    let is_repeated = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
    if SINGLE.iter().any(is_repeated) { Err(Refusal::RepeatedHeader) } else { Ok(()) }
}

/// The path must have one spelling (RFC 3986 §6.2.2), or two readers route it differently.
fn validate_path(path: &str) -> Result<(), Refusal> {
    // Enough for most paths.
    if path.starts_with('/') && !charset::may_be_spelled_otherwise(path.as_bytes()) {
        return Ok(());
    }
    if path.contains("//") {
        return Err(Refusal::EmptySegment);
    }
    if path.contains(';') {
        return Err(Refusal::PathParameter);
    }
    if path.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(Refusal::DotSegment);
    }
    let mut rest = path;
    while let Some((_, escaped)) = rest.split_once('%') {
        let byte = escaped.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) if !is_disguise(byte) => rest = escaped.get(2..).unwrap_or_default(),
            _ => return Err(Refusal::EncodedPath),
        }
    }
    Ok(())
}

/// Characters that never need encoding, that separate, or that end strings in some readers.
fn is_disguise(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~/\\%;?#".contains(&byte) || byte < 0x20 || byte == 0x7f
}

/// Rack turns both `Gitlab_Shared_Secret` and `Gitlab-Shared-Secret` into one variable, so any
/// name with an underscore could shadow a header that the gateway has checked. Returns whether there is a `Via`.
fn remove_spoofed(headers: &mut HeaderMap) -> bool {
    let mut has_via = false;
    let is_spoofed = |name: &&HeaderName| {
        has_via |= **name == header::VIA;
        memchr::memchr(b'_', name.as_str().as_bytes()).is_some() || is_spoofable(name.as_str())
    };
    let spoofed: Vec<HeaderName> = headers.keys().filter(is_spoofed).cloned().collect();
    for name in spoofed {
        headers.remove(name);
    }
    has_via
}

#[cfg(test)]
mod tests;
