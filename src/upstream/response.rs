//! Which responses of Rails can be passed on.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};

use super::error::Error;
use crate::body::Body;
use crate::header::strip_hop_by_hop;

static WORKHORSE: HeaderName = HeaderName::from_static("gitlab-workhorse");
static WORKHORSE_JWT: HeaderName = HeaderName::from_static("gitlab-workhorse-api-request");

/// Headers by which Rails tells Workhorse, or nginx (`X-Accel-Redirect`), what to send in its place, such as a file
/// from object storage. To any other client the response is an empty success.
fn is_workhorse_instruction(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("gitlab-workhorse-") || matches!(name, "x-sendfile" | "x-accel-redirect")
}

/// Whether a request comes from Workhorse, which says so.
pub(super) fn is_from_workhorse(headers: &HeaderMap) -> bool {
    headers.contains_key(&WORKHORSE) || headers.contains_key(&WORKHORSE_JWT)
}

/// What a client may get of a response, whose framing the connection has judged.
pub(super) fn validate(
    mut response: Response<Body>,
    is_for_workhorse: bool,
) -> Result<Response<Body>, Error> {
    let mut names = response.headers().keys();
    if let Some(name) = names.find(|name| !is_for_workhorse && is_workhorse_instruction(name)) {
        return Err(Error::NeedsWorkhorse(name.as_str().to_owned()));
    }
    strip_hop_by_hop(response.headers_mut());
    // The version belongs to this connection; the client's has its own.
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

/// Whether a proxy reports with this response that Rails is unreachable. Rails itself sends 503 too, in JSON, if
/// Gitaly is unreachable or slow (contract §1.2).
pub(super) fn is_away_response<B>(response: &Response<B>) -> bool {
    let kind = || response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    match response.status() {
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => true,
        StatusCode::SERVICE_UNAVAILABLE => !kind().starts_with(b"application/json"),
        _ => false,
    }
}
