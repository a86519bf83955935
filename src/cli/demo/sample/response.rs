//! Responses of handlers, and the headers that GitLab adds.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::digest::sha256_hex;

/// A status and, unless it is 204, a JSON body.
pub(super) struct SampleResponse {
    status: StatusCode,
    body: Option<Value>,
}

impl SampleResponse {
    /// 200 with this body.
    pub(super) fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body: Some(body) }
    }

    /// 204, which has no body.
    pub(super) fn no_content() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: None }
    }

    /// An error in the form of GitLab's own code.
    pub(super) fn message(status: StatusCode, message: &str) -> Self {
        Self { status, body: Some(json!({ "message": message })) }
    }

    /// An error in the form of its API framework.
    pub(super) fn error(status: StatusCode, error: &str) -> Self {
        Self { status, body: Some(json!({ "error": error })) }
    }

    /// A refusal in the form of `/allowed`.
    pub(super) fn denied(status: StatusCode, message: &str) -> Self {
        Self { status, body: Some(json!({ "status": false, "message": message })) }
    }

    /// A failure in the form of endpoints that always answer 200.
    pub(super) fn unsuccessful(message: &str) -> Self {
        Self::ok(json!({ "success": false, "message": message }))
    }

    /// No credential, or an invalid one.
    pub(super) fn unauthorized() -> Self {
        Self::message(StatusCode::UNAUTHORIZED, "401 Unauthorized")
    }

    /// An exception in Rails.
    pub(super) fn broken() -> Self {
        Self::message(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error")
    }

    /// Adds the headers of the Rails stack.
    pub(super) fn into_response(self, request_id: &str) -> Response<Bytes> {
        let body = self.body.map(|body| Bytes::from(body.to_string()));
        let mut response = Response::new(body.clone().unwrap_or_default());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        for (name, value) in [
            (header::VARY, "Origin"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::X_FRAME_OPTIONS, "SAMEORIGIN"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if body.is_some() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let caching = match (self.status, body) {
            (StatusCode::OK, Some(body)) => {
                let digest = sha256_hex(&body);
                set(headers, "etag", &format!("W/\"{}\"", digest.get(..32).unwrap_or_default()));
                "max-age=0, private, must-revalidate"
            }
            _ => "no-cache",
        };
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
        set(headers, "x-request-id", request_id);
        let meta = json!({ "correlation_id": request_id, "version": "1" });
        set(headers, "x-gitlab-meta", &meta.to_string());
        // Made up: this GitLab has no clock.
        set(headers, "x-runtime", "0.012345");
        response
    }
}

/// Sets a header. An invalid value is left out.
fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
