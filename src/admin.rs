//! The second listener, for operators and their tools: metrics and health. It shows no secret and
//! no cached answer, and is meant for loopback or a private network.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use tower::Service;

use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::server::Inbound;
use crate::server::wire::REFUSED;
use crate::upstream::State;

/// Answers the admin listener's requests.
#[derive(Clone, Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    upstream: Arc<State>,
    readiness: Arc<Readiness>,
}

/// Whether the gateway takes requests: secrets loaded, listeners bound, not draining. The state
/// of Rails is not part of it: a gateway that is taken out of service because Rails is down
/// cannot answer from memory either.
#[derive(Debug, Default)]
pub struct Readiness {
    ready: AtomicBool,
}

impl Readiness {
    /// Says whether the gateway takes requests from now on.
    pub fn set(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

impl Admin {
    /// Shows `metrics`, and the state of `upstream` beside the gateway's own.
    pub fn new(metrics: Arc<Metrics>, upstream: Arc<State>, readiness: Arc<Readiness>) -> Self {
        Self { metrics, upstream, readiness }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method.as_str() == REFUSED {
            let refusal = Refusal::from_label(path.trim_start_matches('/')).unwrap_or(Refusal::RequestLine);
            return json(refusal.status(), format!(r#"{{"message":"{}"}}"#, refusal.message()));
        }
        if !matches!(path, "/metrics" | "/live" | "/ready") {
            return json(
                StatusCode::NOT_FOUND,
                r#"{"message":"404 Not Found: try /metrics, /live or /ready"}"#.into(),
            );
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            return json(
                StatusCode::METHOD_NOT_ALLOWED,
                r#"{"message":"405 Method Not Allowed: use GET"}"#.into(),
            );
        }
        match path {
            "/metrics" => {
                const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                typed(StatusCode::OK, OPENMETRICS, self.metrics.encode())
            }
            "/live" => json(StatusCode::OK, r#"{"status":"live"}"#.into()),
            _ => self.readiness(),
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let (status, word) = if self.readiness.get() {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "draining")
        };
        let failures = self.upstream.failures_in_a_row.load(Ordering::Relaxed);
        let answers = self.upstream.answers.load(Ordering::Relaxed);
        let upstream = match (failures, answers) {
            (0, 0) => "unknown",
            (0, _) => "answering",
            _ => "failing",
        };
        json(
            status,
            format!(
                r#"{{"status":"{word}","upstream":{{"state":"{upstream}","failures_in_a_row":{failures},"answers":{answers}}}}}"#
            ),
        )
    }
}

impl Service<Inbound> for Admin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, inbound: Inbound) -> Self::Future {
        let request = inbound.request;
        ready(Ok(self.answer(request.method(), request.uri().path())))
    }
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    typed(status, "application/json", body)
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
