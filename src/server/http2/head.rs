//! The rules for the head of a request (RFC 9113 §8.3) beyond those of h2, which refuses malformed pseudo-header
//! fields, fields of a connection, and names in upper case: a request over HTTP/2 must pass whatever one over HTTP/1
//! must, and is the same to the stack.

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Uri, uri};

use super::super::wire::{self, HeadLimits};
use crate::framing::parse_length;
use crate::refusal::Refusal;

/// Bytes of a line beyond its name and value, in HTTP/1.
const LINE_OVERHEAD: usize = 4;
/// The same for a request line with the empty line that ends the head.
const REQUEST_LINE_OVERHEAD: usize = 14;

/// Validates a head, and gives it the form that it has over HTTP/1: the target in origin-form with one leading slash,
/// and the authority as its `Host`.
pub(super) fn to_http1_form(head: &mut Parts, limits: HeadLimits) -> Result<(), Refusal> {
    wire::validate_method(head.method.as_str().as_bytes())?;
    let target = head.uri.path_and_query().map_or("", uri::PathAndQuery::as_str);
    if !target.starts_with('/') {
        return Err(Refusal::NotOriginForm);
    }
    wire::validate_target(target.as_bytes(), limits.target)?;
    set_host(&head.uri, &mut head.headers)?;
    validate_fields(&head.headers, limits.headers)?;
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + LINE_OVERHEAD);
    let line = head.method.as_str().len() + target.len() + REQUEST_LINE_OVERHEAD;
    if line + fields.sum::<usize>() > limits.bytes {
        return Err(Refusal::HeadTooLarge);
    }
    join_cookies(&mut head.headers);
    let slashes = target.bytes().take_while(|byte| *byte == b'/').count();
    let path = target.get(slashes.saturating_sub(1)..).unwrap_or(target);
    let uri = path.parse::<uri::PathAndQuery>().map(Uri::from);
    head.uri = uri.map_err(|_| Refusal::Target)?;
    Ok(())
}

/// A `Host` beside the authority must mean the same: if they differed, readers could pick either (RFC 9113 §8.3.1).
fn set_host(uri: &Uri, headers: &mut HeaderMap) -> Result<(), Refusal> {
    let Some(authority) = uri.authority() else { return Ok(()) };
    let default_port = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return Err(Refusal::NotOriginForm),
    };
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::Host)?;
            headers.insert(header::HOST, host);
            Ok(())
        }
        (Some(host), None)
            if wire::are_same_host(host.as_bytes(), authority.as_str().as_bytes(), default_port) =>
        {
            Ok(())
        }
        _ => Err(Refusal::Host),
    }
}

fn validate_fields(headers: &HeaderMap, max: usize) -> Result<(), Refusal> {
    if headers.len() > max {
        return Err(Refusal::TooManyHeaders);
    }
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    for (name, value) in headers {
        // RFC 9113 §8.2.1: a value neither begins nor ends with a blank.
        let value = value.as_bytes();
        if name.as_str().len() > wire::MAX_HEADER_NAME || is_blank(value.first()) || is_blank(value.last()) {
            return Err(Refusal::HeaderLine);
        }
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        parse_length(length.as_bytes()).ok_or(Refusal::ContentLength)?;
    }
    if lengths.next().is_some() { Err(Refusal::ContentLength) } else { Ok(()) }
}

/// Over HTTP/2, each cookie may have a line of its own (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}
