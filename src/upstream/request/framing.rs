//! The framing and the target of a request on its way to Rails.

use http::header::{self, HeaderValue};
use http::{Method, Request, Version};
use http_body::Body as _;

use crate::body::Body;
use crate::upstream::connection::target::join_root;
use crate::upstream::error::Error;

/// Frames a request anew, whose target is a path below the relative URL `root`.
pub(super) fn prepare_framing(request: &mut Request<Body>, root: &str) -> Result<(), Error> {
    request.body_mut().drop_trailers();
    if request.body().size_hint().exact().is_none() {
        // hyper takes a GET of unknown length for one without a body, unless this header is set.
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // RFC 9110 §8.6: a method that may have a body says so when it has none.
    let may_have_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    if may_have_body && request.body().size_hint().exact() == Some(0) {
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    *request.version_mut() = Version::HTTP_11;
    let uri = join_root(root, std::mem::take(request.uri_mut()));
    *request.uri_mut() = uri.ok_or(Error::Unusable("no URI for the path"))?;
    Ok(())
}
