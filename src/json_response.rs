//! Responses of the listeners for operators and for hooks, all of them in JSON.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

/// The value of `Content-Type`.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A response with `body`, which is JSON.
pub fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// A response with a text that needs no escapes in JSON.
pub fn message(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    json(status, format!(r#"{{"message":"{text}"}}"#))
}

/// The response after a panic.
pub fn internal_error() -> Response<Full<Bytes>> {
    message(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error")
}
