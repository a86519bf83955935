//! Whether an answer of Rails can be passed on.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};
use hyper::client::conn::http1;

use super::Error;
use crate::body::Body;
use crate::header::strip_hop_by_hop;

/// Bytes of the largest head of an answer, and of what may wait to be sent to a server that does not read.
pub(super) const BUFFER: u32 = 32 * 1024;

/// Fields of the largest head of an answer. Rails sends about 20, and what is in front of it may add its own.
const MOST_FIELDS: usize = 256;

/// Reads answers over HTTP/1.1. What is odd about a head and has one meaning only is repaired (RFC 9112 §5.1,
/// §5.2): the client gets a head that is written anew.
pub(super) fn reader() -> http1::Builder {
    let buffer = usize::try_from(BUFFER).unwrap_or(usize::MAX);
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(buffer)
        .max_header_size(buffer)
        .max_headers(MOST_FIELDS)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    builder
}

/// Headers by which Rails tells Workhorse what to answer in its place, such as a file from object storage.
/// To any other client the answer is an empty success.
fn is_an_order(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("gitlab-workhorse-") || name == "x-sendfile"
}

/// Whether a request comes from Workhorse, which says so.
pub(super) fn is_from_workhorse(headers: &HeaderMap) -> bool {
    headers.contains_key("gitlab-workhorse") || headers.contains_key("gitlab-workhorse-api-request")
}

/// What has gone wrong with an answer that did not come, and what to do about it.
pub(super) fn why_broken(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        format!(
            "the head of the answer has more than {MOST_FIELDS} fields or {BUFFER} bytes; let Rails, or what \
             stands in front of it, send less"
        )
    } else if error.is_parse_version_h2() {
        "the other side speaks HTTP/2; say so in upstream.protocol".to_owned()
    } else if error.is_parse() {
        "what came is no answer in HTTP/1.1: if it speaks TLS there, upstream.url has to begin with https://, \
         else look at its host and port"
            .to_owned()
    } else {
        "the connection failed before an answer came".to_owned()
    }
}

/// RFC 9112 §6.3: an answer with both framings, which hyper lets through, may be an attempt to
/// make two readers disagree.
pub(super) fn accept(mut answer: Response<Body>, is_for_workhorse: bool) -> Result<Response<Body>, Error> {
    let headers = answer.headers();
    if let Some(name) = headers.keys().find(|name| !is_for_workhorse && is_an_order(name)) {
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
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::Unusable("an upgrade that nobody asked for"));
    }
    strip_hop_by_hop(answer.headers_mut());
    // The version belongs to this connection; the client's has its own.
    *answer.version_mut() = Version::HTTP_11;
    Ok(answer)
}
