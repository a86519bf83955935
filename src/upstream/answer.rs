//! Whether an answer of Rails can be passed on.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};

use super::Error;
use super::pool::{BUFFER, MOST_FIELDS};
use crate::body::Body;
use crate::header::strip_hop_by_hop;

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
        "what came is no answer in HTTP/1.1; does upstream.url lead to Rails, with the right one of http:// \
         and https://?"
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
