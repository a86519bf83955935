//! Which responses of Rails can be passed on.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};
use hyper::client::conn::http1;

use super::Error;
use crate::body::Body;
use crate::header::strip_hop_by_hop;

/// Bytes of the largest head of a response, and of what may wait to be sent to a server that does not read.
pub(super) const HEAD_BUFFER: u32 = 32 * 1024;

/// Fields of the largest head of a response. Rails sends about 20, and a proxy in front of it may add its own.
const MAX_RESPONSE_FIELDS: usize = 256;

/// Reads responses over HTTP/1.1. Odd spellings with a single meaning are accepted (RFC 9112 §5.1, §5.2): the
/// client gets a head that is written anew.
pub(super) fn http1_builder() -> http1::Builder {
    let buffer = usize::try_from(HEAD_BUFFER).unwrap_or(usize::MAX);
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(buffer)
        .max_header_size(buffer)
        .max_headers(MAX_RESPONSE_FIELDS)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    builder
}

/// Headers by which Rails tells Workhorse what to send in its place, such as a file from object storage.
/// To any other client the response is an empty success.
fn is_workhorse_instruction(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("gitlab-workhorse-") || name == "x-sendfile"
}

/// Whether a request comes from Workhorse, which says so.
pub(super) fn is_from_workhorse(headers: &HeaderMap) -> bool {
    headers.contains_key("gitlab-workhorse") || headers.contains_key("gitlab-workhorse-api-request")
}

/// What has gone wrong on the connection, and what to do about it.
pub(super) fn describe_broken(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        format!(
            "the head of the response has more than {MAX_RESPONSE_FIELDS} fields or {HEAD_BUFFER} bytes; let Rails, or what \
             stands in front of it, send less"
        )
    } else if error.is_parse_version_h2() {
        "the server speaks HTTP/2; set upstream.protocol".to_owned()
    } else if error.is_parse() {
        "the response is not HTTP/1.1: if the server speaks TLS, upstream.url has to begin with https://, \
         else check its host and port"
            .to_owned()
    } else {
        "the connection failed before a response came".to_owned()
    }
}

/// RFC 9112 §6.3: a response with both framings, which hyper lets through, may be an attempt to
/// make two readers disagree.
pub(super) fn validate(
    mut response: Response<Body>,
    is_for_workhorse: bool,
) -> Result<Response<Body>, Error> {
    let headers = response.headers();
    if let Some(name) = headers.keys().find(|name| !is_for_workhorse && is_workhorse_instruction(name)) {
        return Err(Error::NeedsWorkhorse(name.as_str().to_owned()));
    }
    if headers.contains_key(header::CONTENT_LENGTH) && headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Error::Unusable("both Content-Length and Transfer-Encoding"));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if lengths.next().is_some_and(|length| !length.as_bytes().iter().all(u8::is_ascii_digit))
        || lengths.next().is_some()
    {
        return Err(Error::Unusable("Content-Length is repeated or not a number"));
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_odd = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if encodings.next().is_some_and(is_odd) || encodings.next().is_some() {
        return Err(Error::Unusable("Transfer-Encoding is not `chunked` alone"));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::Unusable("an upgrade that was not requested"));
    }
    strip_hop_by_hop(response.headers_mut());
    // The version belongs to this connection; the client's has its own.
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}
