//! Refuses what the gateway and Rails could understand differently, before anyone interprets it.
//!
//! The raw framing was judged before hyper saw it (`server::wire`); here is what the parsed
//! request shows: its host, its path, and headers that Rack would read as other headers. Never a
//! redirect: a client that follows one would send its credential again.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::Version;
use http::header::{self, HeaderMap, HeaderName};
use tower::{Layer, Service};

use super::{Answer, NowOr, now};
use crate::authority;
use crate::exchange::Exchange;
use crate::failure::Failure;
use crate::header::via::Pseudonym;
use crate::header::{KAS_JWT, SHARED_SECRET, SHELL_JWT, is_spoofable};
use crate::refusal::Refusal;
use crate::server::wire::REFUSED;

/// Puts [`Hygiene`] in front of a service.
#[derive(Clone, Debug)]
pub struct HygieneLayer {
    root: Arc<str>,
    name: Pseudonym,
}

/// Refuses ambiguous requests, and those that the gateway has sent itself, and drops headers that no client
/// may set.
#[derive(Clone, Debug)]
pub struct Hygiene<S> {
    inner: S,
    /// The relative URL root of Rails.
    root: Arc<str>,
    name: Pseudonym,
}

impl HygieneLayer {
    /// Knows where Rails is mounted, and the gateway's own requests by its name.
    pub fn new(root: &str, name: Pseudonym) -> Self {
        Self { root: root.into(), name }
    }
}

impl<S> Layer<S> for HygieneLayer {
    type Service = Hygiene<S>;

    fn layer(&self, inner: S) -> Hygiene<S> {
        Hygiene { inner, root: Arc::clone(&self.root), name: self.name.clone() }
    }
}

impl<S> Service<Exchange> for Hygiene<S>
where
    S: Service<Exchange, Response = http::Response<crate::body::Body>, Error = Failure>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = NowOr<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange) -> Self::Future {
        match judge(&exchange, &self.root) {
            Ok(()) => {
                let headers = exchange.request.headers_mut();
                // Few requests have passed a proxy before.
                if drop_spoofed(headers) && self.name.is_in(headers) {
                    return now(Answer::Err(Failure::Loop));
                }
                Either::Right(self.inner.call(exchange))
            }
            Err(refusal) => now(Answer::Err(Failure::Refused(refusal))),
        }
    }
}

fn judge(exchange: &Exchange, root: &str) -> Result<(), Refusal> {
    let request = &exchange.request;
    if request.method().as_str() == REFUSED {
        // The gate refused the real request and put this one in its place.
        let label = request.uri().path().trim_start_matches('/');
        return Err(Refusal::from_label(label).unwrap_or(Refusal::RequestLine));
    }
    judge_host(request.headers(), request.version())?;
    judge_repetition(request.headers())?;
    judge_path(below_root(request.uri().path(), root))
}

/// RFC 9112 §3.2: exactly one, and a valid one. A client of HTTP/1.0 may have none: Rails is shown the one of
/// the configuration anyway.
fn judge_host(headers: &HeaderMap, version: Version) -> Result<(), Refusal> {
    let is_repeated =
        headers.len() != headers.keys_len() && headers.get_all(header::HOST).iter().nth(1).is_some();
    let is_valid = match headers.get(header::HOST) {
        Some(host) => !is_repeated && host.to_str().is_ok_and(|host| authority::of_host(host).is_some()),
        None => version == Version::HTTP_10,
    };
    if is_valid { Ok(()) } else { Err(Refusal::Host) }
}

/// What of the path has to have one spelling. Who puts a path behind a URL that ends in a slash sends two there,
/// behind the root as in front of all, and they are one slash from there on.
fn below_root<'p>(path: &'p str, root: &str) -> &'p str {
    let below = path.strip_prefix(root).filter(|below| !root.is_empty() && below.starts_with("//"));
    below.map_or(path, |below| {
        let slashes = below.bytes().take_while(|byte| *byte == b'/').count();
        below.get(slashes.saturating_sub(1)..).unwrap_or(below)
    })
}

/// Headers that decide something here and that Rack would join with a comma.
const SINGLE: [&HeaderName; 5] =
    [&header::CONTENT_TYPE, &header::AUTHORIZATION, &SHARED_SECRET, &SHELL_JWT, &KAS_JWT];

fn judge_repetition(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    let is_repeated = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
    if SINGLE.iter().any(is_repeated) { Err(Refusal::RepeatedHeader) } else { Ok(()) }
}

/// The path must have one spelling (RFC 3986 §6.2.2), or two readers route it differently.
fn judge_path(path: &str) -> Result<(), Refusal> {
    let is_suspect = |pair: &[u8]| matches!(pair, [b'/', b'/' | b'.'] | [b';' | b'%', _]);
    // Most paths are found harmless in one look.
    if path.starts_with('/') && !path.ends_with([';', '%']) && !path.as_bytes().windows(2).any(is_suspect) {
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
/// name with an underscore could shadow a header that was judged here. Whether there is a `Via`.
fn drop_spoofed(headers: &mut HeaderMap) -> bool {
    let mut has_via = false;
    let is_spoofed = |name: &&HeaderName| {
        has_via |= **name == header::VIA;
        name.as_str().as_bytes().contains(&b'_') || is_spoofable(name.as_str())
    };
    let spoofed: Vec<HeaderName> = headers.keys().filter(is_spoofed).cloned().collect();
    for name in spoofed {
        headers.remove(name);
    }
    has_via
}

#[cfg(test)]
mod tests;
