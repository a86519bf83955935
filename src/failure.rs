//! The closed list of every way in which a request can fail here, and what the client is told.
//!
//! Texts are written for the people who read them: GitLab Shell prints the `message` of a JSON
//! answer to whoever runs `git`. They never say why a credential was refused, nor anything about
//! the machine; that is for the log.

use std::fmt;
use std::io;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use crate::auth::Rejection;
use crate::body::{self, Body};
use crate::cache::FillError;
use crate::refusal::Refusal;
use crate::route::Access;
use crate::upstream;

/// In how many seconds to try again (RFC 9110 §10.2.3): a request that comes then waits again, if need be. GitLab
/// Shell sleeps for as long as this says between its three tries, without any limit, and all of them have to fit
/// into the 10 s after which gitlab-sshd gives up.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Whose turn it is to look into a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller's.
    Client,
    /// Rails', or the way there.
    Upstream,
    /// Ours.
    Gateway,
}

/// A request that ends here without an answer from Rails.
#[derive(Debug)]
pub enum Failure {
    /// Malformed, ambiguous or out of bounds; the connection is closed behind the answer.
    Refused(Refusal),
    /// The caller is not let in.
    Unauthorized(Rejection),
    /// Neither is this one, who called what only kas may.
    UnauthorizedKas(Rejection),
    /// The path is outside the internal API.
    OutsideInternalApi,
    /// The request has come here from this gateway.
    Loop,
    /// A credential would have to be looked for in a body that is too large for it.
    BodyTooLarge,
    /// A body that was searched for a credential gave way to others.
    UnverifiedBodiesFull,
    /// The client's body broke off, or its chunks are malformed.
    BodyBrokeOff,
    /// Rails cannot be reached, or its answer is unusable.
    Upstream(upstream::Error),
    /// The same of another caller's request, which this one waited for.
    SharedTrouble(FillError),
    /// A bug: a layer panicked.
    Panicked,
}

impl Failure {
    /// A caller is not let in to what `access` guards. Rails has words of its own for each.
    pub const fn unauthorized(access: Access, rejection: Rejection) -> Self {
        match access {
            Access::Kas => Self::UnauthorizedKas(rejection),
            Access::Shell | Access::Rails => Self::Unauthorized(rejection),
        }
    }

    /// The status that the client gets (RFC 9110 §15.6): 503 if it may be tried again, since it was not
    /// sent or Rails has not read it, 504 if there was no answer in time, 502 if there was none that can be
    /// passed on.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.status(),
            Self::Unauthorized(_) | Self::UnauthorizedKas(_) => StatusCode::UNAUTHORIZED,
            Self::OutsideInternalApi => StatusCode::NOT_FOUND,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyBrokeOff => StatusCode::BAD_REQUEST,
            Self::Upstream(error) => match error {
                // It does not pass: a certificate that is not believed, a socket that may not be opened.
                upstream::Error::Connect(_, error) if !upstream::is_transient(error) => {
                    StatusCode::BAD_GATEWAY
                }
                upstream::Error::Connect(..)
                | upstream::Error::HoldFull(..)
                | upstream::Error::Expires(_)
                | upstream::Error::Shed(_) => StatusCode::SERVICE_UNAVAILABLE,
                upstream::Error::Timeout(_)
                | upstream::Error::Slow(_)
                | upstream::Error::TotalTimeout(_)
                | upstream::Error::Hung(_)
                | upstream::Error::BrokeOff(body::Error::Stalled(_) | body::Error::TooSlow) => {
                    StatusCode::GATEWAY_TIMEOUT
                }
                _ => StatusCode::BAD_GATEWAY,
            },
            Self::UnverifiedBodiesFull | Self::SharedTrouble(FillError::Unreachable | FillError::Busy) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::SharedTrouble(FillError::Timeout | FillError::Slow) => StatusCode::GATEWAY_TIMEOUT,
            Self::SharedTrouble(FillError::Broken) => StatusCode::BAD_GATEWAY,
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
            Self::Upstream(error) => match error {
                upstream::Error::RequestBody(_) | upstream::Error::BodyStalled(_) => "body_broke_off",
                upstream::Error::Connect(_, error) if error.kind() == io::ErrorKind::TimedOut => {
                    "upstream_connect_timeout"
                }
                upstream::Error::Connect(..) => "upstream_unreachable",
                upstream::Error::HoldFull(..) => "hold_full",
                upstream::Error::Expires(_) => "credential_expires",
                upstream::Error::Shed(shed) => shed.as_str(),
                upstream::Error::Timeout(_) | upstream::Error::Slow(_) => "upstream_timeout",
                upstream::Error::BrokeOff(body::Error::Stalled(_)) => "upstream_body_timeout",
                upstream::Error::TotalTimeout(_)
                | upstream::Error::Hung(_)
                | upstream::Error::BrokeOff(body::Error::TooSlow) => "upstream_total_timeout",
                upstream::Error::Broken(error) if error.is_parse_too_large() => "upstream_head_too_large",
                upstream::Error::Broken(error) if error.is_parse() => "upstream_malformed",
                upstream::Error::Broken(_) | upstream::Error::BrokeOff(_) => "upstream_broke_off",
                upstream::Error::Unusable(_) => "upstream_unusable",
                upstream::Error::NeedsWorkhorse(_) => "upstream_needs_workhorse",
            },
            Self::SharedTrouble(FillError::Unreachable) => "upstream_unreachable",
            Self::SharedTrouble(FillError::Timeout | FillError::Slow) => "upstream_timeout",
            Self::SharedTrouble(FillError::Busy) => "upstream_busy",
            Self::SharedTrouble(FillError::Broken) => "upstream_broke_off",
            Self::Panicked => "panicked",
        }
    }

    /// What the client is told.
    pub fn message(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.message(),
            Self::Unauthorized(_) => "401 Unauthorized",
            // What Rails says there today; that of 13 said the same as to others (contract §1.3).
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
            Self::Upstream(upstream::Error::Shed(_) | upstream::Error::HoldFull(..))
            | Self::SharedTrouble(FillError::Busy) => {
                "GitLab is busy at the moment. Please try again shortly."
            }
            Self::Upstream(_) | Self::SharedTrouble(_) => match self.status() {
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

    /// Whose turn it is.
    pub const fn side(&self) -> Side {
        match self {
            Self::Refused(_)
            | Self::Unauthorized(_)
            | Self::UnauthorizedKas(_)
            | Self::OutsideInternalApi
            | Self::BodyTooLarge
            | Self::UnverifiedBodiesFull
            | Self::BodyBrokeOff => Side::Client,
            Self::Upstream(_) | Self::SharedTrouble(_) => Side::Upstream,
            Self::Loop | Self::Panicked => Side::Gateway,
        }
    }

    /// The answer, in the form of Rails' own errors (contract §2.2).
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
        // What is left of the request is not read.
        if matches!(
            self,
            Self::Refused(_) | Self::BodyTooLarge | Self::UnverifiedBodiesFull | Self::BodyBrokeOff
        ) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Failure {}

impl From<upstream::Error> for Failure {
    fn from(error: upstream::Error) -> Self {
        match error {
            upstream::Error::RequestBody(_) | upstream::Error::BodyStalled(_) => Self::BodyBrokeOff,
            error => Self::Upstream(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn every_answer_is_json_with_a_string_message() {
        let mut failures = vec![
            Failure::Unauthorized(Rejection::Wrong),
            Failure::UnauthorizedKas(Rejection::Wrong),
            Failure::OutsideInternalApi,
            Failure::Loop,
            Failure::BodyTooLarge,
            Failure::UnverifiedBodiesFull,
            Failure::BodyBrokeOff,
            Failure::Upstream(upstream::Error::Connect("x".into(), std::io::Error::other("y"))),
            Failure::Upstream(upstream::Error::Timeout(std::time::Duration::from_secs(1))),
            Failure::Upstream(upstream::Error::Slow(std::time::Duration::from_secs(1))),
            Failure::Upstream(upstream::Error::Hung(std::time::Duration::from_secs(1))),
            Failure::Upstream(upstream::Error::Unusable("x")),
            Failure::Upstream(upstream::Error::NeedsWorkhorse("x".into())),
            Failure::Upstream(upstream::Error::Expires("x".into())),
            Failure::Upstream(upstream::Error::HoldFull("x".into(), std::io::Error::other("y"))),
            Failure::Upstream(upstream::Error::Shed(upstream::ShedReason::QueueFull)),
            Failure::Upstream(upstream::Error::BrokeOff(crate::body::Error::TooSlow)),
            Failure::SharedTrouble(FillError::Unreachable),
            Failure::SharedTrouble(FillError::Timeout),
            Failure::SharedTrouble(FillError::Broken),
            Failure::SharedTrouble(FillError::Busy),
            Failure::SharedTrouble(FillError::Slow),
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
            let is_for_later = failure.status() == StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(is_for_later, json["message"].as_str().unwrap().ends_with("again shortly."));
            assert!(!failure.status().is_success() && !failure.status().is_redirection());
        }
    }

    #[tokio::test]
    async fn a_refused_caller_gets_the_answer_of_rails_whatever_the_reason() {
        for rejection in [Rejection::Missing, Rejection::Wrong, Rejection::Expired] {
            for (access, told) in [
                (Access::Shell, r#"{"message":"401 Unauthorized"}"#),
                (Access::Kas, r#"{"message":"KAS JWT authentication invalid"}"#),
            ] {
                let response = Failure::unauthorized(access, rejection).to_response();
                assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, told);
            }
        }
    }
}
