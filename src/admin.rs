//! The admin listener, for operators and their tools: metrics, health, inspecting and purging the
//! cache, and draining servers of Rails. It shows no secret and no cached response, and is meant for
//! loopback or a private network.

mod host;
mod inspect;
mod purge;
mod servers;

use std::convert::Infallible;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::Semaphore;
use tower::Service;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::heartbeat::Heartbeats;
use crate::metrics::{ExpositionFormat, Metrics};
use crate::secret::BearerToken;
use crate::server::{ConnectionHandle, Inbound};
use crate::upstream::UpstreamState;

/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The service of the admin listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/ready` and `/servers`.
    pub upstream: Arc<UpstreamState>,
    /// For `/ready`.
    pub readiness: Arc<Readiness>,
    /// For `/inspect` and `/purge`.
    pub cache: Arc<Cache>,
    /// Only peers on this machine can connect.
    pub is_local_only: bool,
    /// Required for `/inspect`, `/purge` and `/servers`. If `None`, they need no credential, but `is_local_only`.
    pub token: Option<BearerToken>,
    /// The accepted names in `Host` over TCP, in lower case, beside addresses and `localhost`.
    pub hosts: Arc<[String]>,
    /// For `/live`.
    pub heartbeats: Arc<Heartbeats>,
    /// Bounds the work that runs at one time.
    pub permits: OperatorPermits,
}

/// Limits the work for operators at one time. The work runs on threads of its own, so that health, signals and
/// health checks do not wait for it, and cannot use all of the CPU, however many requests there are.
#[derive(Clone, Debug)]
pub struct OperatorPermits {
    metrics: Arc<Semaphore>,
    operations: Arc<Semaphore>,
}

impl Default for OperatorPermits {
    fn default() -> Self {
        Self { metrics: Arc::new(Semaphore::new(1)), operations: Arc::new(Semaphore::new(4)) }
    }
}

/// Whether the gateway accepts requests: secrets loaded, listeners bound, not draining. The state
/// of Rails is not part of it: a gateway that is taken out of rotation because Rails is down
/// cannot answer from memory either.
#[derive(Debug, Default)]
pub struct Readiness {
    ready: AtomicBool,
}

impl Readiness {
    /// Called once the listeners are bound, and when draining begins.
    pub fn set(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

impl Admin {
    async fn handle_query(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if is_health_check(method, path) {
            let health = if path == "/live" { self.liveness() } else { self.readiness() };
            return if health.status() == StatusCode::OK { no_content() } else { health };
        }
        let is_for_operators = matches!(path, "/inspect" | "/purge" | "/servers");
        if !is_for_operators && !matches!(path, "/metrics" | "/live" | "/ready") {
            let message = "404 Not Found: try /metrics, /live, /ready, /servers, /inspect or /purge";
            return json(StatusCode::NOT_FOUND, format!(r#"{{"message":"{message}"}}"#));
        }
        if is_for_operators || !matches!(*method, Method::GET | Method::HEAD) {
            let right = if is_for_operators { "POST" } else { "GET" };
            let message = format!(r#"{{"message":"405 Method Not Allowed: use {right}"}}"#);
            return json(StatusCode::METHOD_NOT_ALLOWED, message);
        }
        match path {
            "/metrics" => {
                let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
                let (metrics, format) = (Arc::clone(&self.metrics), ExpositionFormat::negotiate(accept));
                match self.run_blocking(&self.permits.metrics, move |_| metrics.encode(format)).await {
                    Some(series) => response(StatusCode::OK, format.content_type(), series),
                    None => internal_error(),
                }
            }
            "/live" => self.liveness(),
            _ => self.readiness(),
        }
    }

    /// A web page can make a browser on this machine send requests unnoticed. The browser adds the
    /// page's `Origin` (Fetch §3.2), and does not send JSON to other sites without a preflight.
    fn authorize_operator(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let value = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        if self.token.as_ref().is_some_and(|token| !token.matches_authorization(value(header::AUTHORIZATION)))
        {
            let message = "401 Unauthorized: show the token of admin.token_file as Authorization: Bearer …";
            return Err((StatusCode::UNAUTHORIZED, message));
        }
        if self.token.is_none() && !self.is_local_only {
            let message =
                "403 Forbidden: admin.address can be reached from elsewhere; name an admin.token_file";
            return Err((StatusCode::FORBIDDEN, message));
        }
        if headers.contains_key(header::ORIGIN) {
            return Err((
                StatusCode::FORBIDDEN,
                "403 Forbidden: not for pages in a browser (there is an Origin)",
            ));
        }
        let media_type = value(header::CONTENT_TYPE).split(|b| *b == b';').next().unwrap_or_default();
        if !media_type.trim_ascii().eq_ignore_ascii_case(b"application/json") {
            let message = "415 Unsupported Media Type: send JSON as Content-Type: application/json";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        Ok(())
    }

    async fn handle_operation(
        self,
        path: &str,
        (peer, connection): (Option<IpAddr>, ConnectionHandle),
        headers: &HeaderMap,
        body: Incoming,
    ) -> Response<Full<Bytes>> {
        if let Err((status, message)) = self.authorize_operator(headers) {
            let remote_ip = peer.map(tracing::field::display);
            tracing::warn!(remote_ip, path, status = status.as_u16(), "an operator was refused");
            return json(status, format!(r#"{{"message":"{message}"}}"#));
        }
        if self.token.is_some() {
            connection.trust();
        }
        let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, purge::MAX_BODY).collect()).await;
        let Ok(Ok(body)) = read else {
            let message = "400 Bad Request: the body is incomplete, too slow, or has more than 64 KiB";
            return json(StatusCode::BAD_REQUEST, format!(r#"{{"message":"{message}"}}"#));
        };
        let (body, path) = (body.to_bytes(), path.to_owned());
        let upstream = Arc::clone(&self.upstream);
        let response = self.run_blocking(&self.permits.operations, move |cache| {
            let (status, json) = match (path.as_str(), body.is_empty()) {
                ("/servers", _) => servers::servers(&upstream, &body, peer, Clock::System.now()),
                ("/inspect", true) => (StatusCode::OK, inspect::inspect_all(cache)),
                ("/inspect", false) => inspect::inspect(cache, &body),
                _ => purge::purge(cache, &body),
            };
            (status, json.to_string())
        });
        response.await.map_or_else(internal_error, |(status, body)| json(status, body))
    }

    /// Runs work that may take long on a thread of its own, as soon as there is a permit; `None` if it panics.
    async fn run_blocking<T: Send + 'static>(
        &self,
        permits: &Arc<Semaphore>,
        work: impl FnOnce(&Cache) -> T + Send + 'static,
    ) -> Option<T> {
        // Moved into the work, which goes on if the caller disconnects.
        let permit = Arc::clone(permits).acquire_owned().await.ok()?;
        let working = self.cache.run_blocking(move |cache| {
            let done = work(cache);
            drop(permit);
            done
        });
        working.await.ok()
    }

    /// 503 once a thread hangs: its requests will not be answered, and only a restart helps.
    fn liveness(&self) -> Response<Full<Bytes>> {
        let hanging: Vec<_> = self
            .heartbeats
            .hanging()
            .map(|one| json!({ "thread": one.thread, "silent_s": one.silent_s() }))
            .collect();
        if hanging.is_empty() {
            return json(StatusCode::OK, r#"{"status":"live"}"#.into());
        }
        let body = json!({ "status": "hanging", "threads": hanging });
        json(StatusCode::SERVICE_UNAVAILABLE, body.to_string())
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let (status, state) = if self.readiness.get() {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "draining")
        };
        let failures = self.upstream.consecutive_failures.load(Ordering::Relaxed);
        let answers = self.upstream.responses.load(Ordering::Relaxed);
        let upstream = match (failures, answers) {
            (0, 0) => "unknown",
            (0, _) => "answering",
            _ => "failing",
        };
        let cause = self.upstream.reachability.cause();
        let cause = cause.map_or_else(String::new, |cause| format!(r#","cause":"{}""#, cause.as_str()));
        json(
            status,
            format!(
                r#"{{"status":"{state}","upstream":{{"state":"{upstream}","failures_in_a_row":{failures},"answers":{answers}{cause}}}}}"#
            ),
        )
    }
}

impl Service<Inbound> for Admin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, inbound: Inbound) -> Self::Future {
        if let Some(refusal) = inbound.refusal {
            let body = format!(r#"{{"message":"{}"}}"#, refusal.message());
            return Box::pin(ready(Ok(json(refusal.status(), body))));
        }
        let (client, (head, body)) = ((inbound.peer, inbound.connection), inbound.request.into_parts());
        let admin = self.clone();
        Box::pin(async move {
            let path = head.uri.path();
            let is_open_to_all = matches!(path, "/live" | "/ready") || is_health_check(&head.method, path);
            // A browser cannot connect to a unix socket.
            if client.0.is_some() && !is_open_to_all && !host::is_known(&head.headers, &admin.hosts) {
                let remote_ip = client.0.map(tracing::field::display);
                tracing::warn!(
                    remote_ip,
                    "the admin listener was asked for by a name that is not in admin.hosts"
                );
                return Ok(json(
                    StatusCode::MISDIRECTED_REQUEST,
                    format!(r#"{{"message":"{MISDIRECTED}"}}"#),
                ));
            }
            Ok(match (&head.method, head.uri.path()) {
                (&Method::POST, path @ ("/inspect" | "/purge" | "/servers")) => {
                    admin.handle_operation(path, client, &head.headers, body).await
                }
                (method, path) => admin.handle_query(method, path, &head.headers).await,
            })
        })
    }
}

const MISDIRECTED: &str = "421 Misdirected Request: this listener is asked for by an address, localhost or a name of \
                           admin.hosts; is this one missing there?";

/// The default request of load balancers: `option httpchk` of `HAProxy` sends `OPTIONS / HTTP/1.0`. `/` is answered as
/// `/ready` then.
fn is_health_check(method: &Method, path: &str) -> bool {
    method == Method::OPTIONS && matches!(path, "/" | "/live" | "/ready")
}

fn no_content() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    response
}

fn internal_error() -> Response<Full<Bytes>> {
    json(StatusCode::INTERNAL_SERVER_ERROR, r#"{"message":"500 Internal Server Error"}"#.into())
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    response(status, "application/json", body)
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
