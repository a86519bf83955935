//! The closed list of the ways in which a request can fail in the gateway, and the responses to the client.
//!
//! The messages are written for the people who read them: GitLab Shell prints the `message` of a JSON
//! response to the user of `git`. They never say why a credential was refused, nor anything about
//! the machine; that is for the log.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use crate::auth::Rejection;
use crate::body::Body;
use crate::cache::FillError;
use crate::refusal::Refusal;
use crate::route::Access;
use crate::upstream::{self, ErrorKind};

/// Seconds until the client should retry (RFC 9110 §10.2.3); a retry waits again, if it has to. GitLab
/// Shell sleeps for this long between its three tries, without any limit, and all of them have to fit
/// into the 10 s after which gitlab-sshd gives up.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Who is responsible for a failure, and so the level at which it is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureOrigin {
    /// The caller.
    Client,
    /// Rails, or the network between it and the gateway.
    Upstream,
    /// The gateway.
    Gateway,
}

/// The reason why the gateway answers a request itself, with an error.
#[derive(Debug)]
pub enum Failure {
    /// The request is malformed, ambiguous or out of bounds; the connection is closed after the response.
    Refused(Refusal),
    /// The caller has not shown a valid credential.
    Unauthorized(Rejection),
    /// The same at an endpoint of kas, where Rails answers with another message.
    UnauthorizedKas(Rejection),
    /// The path is outside the internal API.
    OutsideInternalApi,
    /// The gateway has sent the request itself.
    Loop,
    /// The body is too large to be searched for a credential.
    BodyTooLarge,
    /// A body that was searched for a credential was evicted for others.
    UnverifiedBodiesFull,
    /// The client's body ended early, or its chunks are malformed.
    BodyBrokeOff,
    /// Rails cannot be reached, or its response is unusable.
    Upstream(upstream::Error),
    /// Another caller's request, which this one waited for, has failed, with this error.
    SharedFill(FillError, Arc<str>),
    /// A layer is not ready for another request. None of the gateway's own limits rejects requests this way.
    Overloaded,
    /// A bug: a layer panicked.
    Panicked,
}

impl Failure {
    /// A rejected credential at an endpoint of `access`. The messages of Rails differ by it.
    pub const fn unauthorized(access: Access, rejection: Rejection) -> Self {
        match access {
            Access::Kas => Self::UnauthorizedKas(rejection),
            Access::Shell | Access::Rails => Self::Unauthorized(rejection),
        }
    }

    /// The status of the response (RFC 9110 §15.6): 503 if another try may soon succeed, 504 if there was no response
    /// in time, 502 if there was none that can be passed on.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.status(),
            Self::Unauthorized(_) | Self::UnauthorizedKas(_) => StatusCode::UNAUTHORIZED,
            Self::OutsideInternalApi => StatusCode::NOT_FOUND,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyBrokeOff => StatusCode::BAD_REQUEST,
            Self::Upstream(error) => match error.kind() {
                ErrorKind::Unreachable
                | ErrorKind::Exhausted
                | ErrorKind::Shed
                | ErrorKind::CredentialExpires => StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Silent
                | ErrorKind::Slow
                | ErrorKind::OutOfTime
                | ErrorKind::BodyStalled
                | ErrorKind::BodyTooSlow => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::BAD_GATEWAY,
            },
            Self::UnverifiedBodiesFull
            | Self::Overloaded
            | Self::SharedFill(FillError::Unreachable | FillError::NotSent, _) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::SharedFill(FillError::Timeout | FillError::Slow, _) => StatusCode::GATEWAY_TIMEOUT,
            Self::SharedFill(FillError::Broken, _) => StatusCode::BAD_GATEWAY,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The label in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.as_str(),
            Self::Unauthorized(_) | Self::UnauthorizedKas(_) => "unauthorized",
            Self::OutsideInternalApi => "outside_internal_api",
            Self::Loop => "loop",
            Self::BodyTooLarge => "body_too_large",
            Self::UnverifiedBodiesFull => "unverified_bodies_full",
            Self::BodyBrokeOff => "body_broke_off",
            Self::Upstream(error) => error.as_str(),
            Self::SharedFill(FillError::Unreachable, _) => "upstream_unreachable",
            Self::SharedFill(FillError::Timeout | FillError::Slow, _) => "upstream_timeout",
            Self::SharedFill(FillError::NotSent, _) => "upstream_busy",
            Self::SharedFill(FillError::Broken, _) => "upstream_broke_off",
            Self::Overloaded => "overloaded",
            Self::Panicked => "panicked",
        }
    }

    /// The `message` of the response.
    pub fn message(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.message(),
            Self::Unauthorized(_) => "401 Unauthorized",
            // As Rails answers today; GitLab 13 answered as at other endpoints (contract §1.3).
            Self::UnauthorizedKas(_) => "KAS JWT authentication invalid",
            Self::OutsideInternalApi => "404 Not Found",
            Self::Loop => {
                "508 Loop Detected: the gateway in front of GitLab leads to itself; tell your administrator."
            }
            Self::BodyTooLarge => {
                "413 Request body too large to look for secret_token in it; send the credential in a header"
            }
            Self::UnverifiedBodiesFull => {
                "The request body did not arrive before its memory was needed. Please try again shortly."
            }
            Self::BodyBrokeOff => "400 Bad Request: the request body is incomplete or malformed",
            Self::Upstream(error) if error.is_overload() => BUSY,
            Self::SharedFill(FillError::NotSent, _) | Self::Overloaded => BUSY,
            Self::Upstream(_) | Self::SharedFill(..) => match self.status() {
                StatusCode::SERVICE_UNAVAILABLE => {
                    "GitLab is not reachable at the moment. Please try again shortly."
                }
                StatusCode::GATEWAY_TIMEOUT => {
                    "GitLab did not answer in time. Please try again; if it persists, tell your administrator."
                }
                _ => {
                    "GitLab gave no usable answer. Please try again; if it persists, tell your administrator."
                }
            },
            Self::Panicked => "500 Internal Server Error",
        }
    }

    /// Who is responsible.
    pub const fn origin(&self) -> FailureOrigin {
        match self {
            Self::Refused(_)
            | Self::Unauthorized(_)
            | Self::UnauthorizedKas(_)
            | Self::OutsideInternalApi
            | Self::BodyTooLarge
            | Self::UnverifiedBodiesFull
            | Self::BodyBrokeOff => FailureOrigin::Client,
            Self::Upstream(_) | Self::SharedFill(..) => FailureOrigin::Upstream,
            Self::Loop | Self::Overloaded | Self::Panicked => FailureOrigin::Gateway,
        }
    }

    /// The response, in the form of Rails' own errors (contract §2.2).
    pub fn to_response(&self) -> Response<Body> {
        let body = format!(r#"{{"message":"{}"}}"#, self.message());
        let mut response = Response::new(Body::from(Bytes::from(body)));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        // The rest of the request is not read.
        if matches!(
            self,
            Self::Refused(_) | Self::BodyTooLarge | Self::UnverifiedBodiesFull | Self::BodyBrokeOff
        ) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

const BUSY: &str = "GitLab is busy at the moment. Please try again shortly.";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Failure {}

impl From<upstream::Error> for Failure {
    fn from(error: upstream::Error) -> Self {
        match error.kind() {
            ErrorKind::RequestBody => Self::BodyBrokeOff,
            _ => Self::Upstream(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::TimeLimit;
    use http_body_util::BodyExt as _;

    fn timeout(limit: TimeLimit, is_silent: bool) -> upstream::Error {
        upstream::Error::Timeout {
            after: std::time::Duration::from_secs(1),
            limit,
            is_silent,
            unreachable: None,
        }
    }

    #[tokio::test]
    async fn every_response_is_json_with_a_string_message() {
        let mut failures = vec![
            Failure::Unauthorized(Rejection::Wrong),
            Failure::UnauthorizedKas(Rejection::Wrong),
            Failure::OutsideInternalApi,
            Failure::Loop,
            Failure::BodyTooLarge,
            Failure::UnverifiedBodiesFull,
            Failure::BodyBrokeOff,
            Failure::Upstream(upstream::Error::Connect("x".into(), std::io::Error::other("y").into())),
            Failure::Upstream(timeout(TimeLimit::Response, true)),
            Failure::Upstream(timeout(TimeLimit::Response, false)),
            Failure::Upstream(timeout(TimeLimit::Total, true)),
            Failure::Upstream(upstream::Error::Unusable("x")),
            Failure::Upstream(upstream::Error::NeedsWorkhorse("x".into())),
            Failure::Upstream(upstream::Error::CredentialExpires("x".into(), None)),
            Failure::Upstream(upstream::Error::HoldFull("x".into(), std::io::Error::other("y").into())),
            Failure::Upstream(upstream::Error::Shed(upstream::ShedReason::QueueFull)),
            Failure::Upstream(upstream::Error::ResponseBody(crate::body::Error::TooSlow)),
            Failure::SharedFill(FillError::Unreachable, "x".into()),
            Failure::SharedFill(FillError::Timeout, "x".into()),
            Failure::SharedFill(FillError::Broken, "x".into()),
            Failure::SharedFill(FillError::NotSent, "x".into()),
            Failure::SharedFill(FillError::Slow, "x".into()),
            Failure::Overloaded,
            Failure::Panicked,
        ];
        failures.extend(Refusal::ALL.iter().map(|refusal| Failure::Refused(*refusal)));
        for failure in failures {
            let response = failure.to_response();
            assert_eq!(response.headers()["content-type"], "application/json");
            assert_eq!(response.headers().get("retry-after").is_some(), failure.status() == 503);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(json["message"], failure.message(), "{failure:?}");
            let is_retryable = failure.status() == StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(is_retryable, json["message"].as_str().unwrap().ends_with("again shortly."));
            assert!(!failure.status().is_success() && !failure.status().is_redirection());
        }
    }

    #[tokio::test]
    async fn a_rejected_caller_gets_the_response_of_rails_whatever_the_reason() {
        for rejection in [Rejection::Missing, Rejection::Wrong, Rejection::Expired] {
            for (access, expected) in [
                (Access::Shell, r#"{"message":"401 Unauthorized"}"#),
                (Access::Kas, r#"{"message":"KAS JWT authentication invalid"}"#),
            ] {
                let response = Failure::unauthorized(access, rejection).to_response();
                assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, expected);
            }
        }
    }
}
