//! The admin listener, for operators and their tools: metrics, health, a status page, inspecting and purging the
//! cache, and draining servers of Rails. It shows no secret and no cached response, and is meant for
//! loopback or a private network.

mod audit;
mod dispatch;
mod host;
mod inspect;
mod operations;
mod page;
mod purge;
mod reload;
mod servers;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::Span;

pub use self::audit::AUDIT;
pub use self::dispatch::DispatchLayer;
pub use self::operations::{MAX_BODY, Operations, unreadable_body};
pub use self::status::{EventStream, Status};
use crate::cache::Cache;
use crate::fleet::Fleet;
use crate::heartbeat::Heartbeats;
use crate::json_response::{internal_error, json};
use crate::log::LogCounters;
use crate::metrics::{ExpositionFormat, Metrics};
use crate::reload::Reload;
use crate::secret::BearerToken;
use crate::upstream::UpstreamState;

/// What the services of the admin listener work with.
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
    /// For `/purge`: the others drop it, too.
    pub fleet: Fleet,
    /// Who may do what.
    pub access: Arc<ArcSwap<AdminAccess>>,
    /// For `/reload`.
    pub reload: Arc<dyn Reload>,
    /// For `/log`.
    pub log: Arc<LogCounters>,
    /// For `/live`.
    pub heartbeats: Arc<Heartbeats>,
    /// For the status page.
    pub status: Arc<Status>,
    /// Bounds the work that runs at one time.
    pub permits: OperatorPermits,
}

/// Who may use the admin listener, and for what.
#[derive(Clone, Debug)]
pub struct AdminAccess {
    /// Only peers on this machine can connect.
    pub is_local_only: bool,
    /// Required for operations. If `None`, they need no credential, but `is_local_only`.
    pub token: Option<BearerToken>,
    /// The accepted names in `Host` over TCP, in lower case, beside addresses and `localhost`.
    pub hosts: Vec<String>,
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
    async fn scrape(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let (metrics, format) = (Arc::clone(&self.metrics), ExpositionFormat::negotiate(accept));
        let Some(series) = self.run_blocking(&self.permits.metrics, move |_| metrics.encode(format)).await
        else {
            return internal_error();
        };
        let mut response = Response::new(Full::from(series));
        let content_type = HeaderValue::from_static(format.content_type());
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }

    /// The figures of the status page.
    async fn status(&self) -> Response<Full<Bytes>> {
        let access = self.access.load();
        let operators = match (&access.token, access.is_local_only) {
            (Some(_), _) => "token",
            (None, true) => "open",
            (None, false) => "none",
        };
        let status = Arc::clone(&self.status);
        let working =
            self.run_blocking(&self.permits.metrics, move |_| status.document(operators).to_string());
        working.await.map_or_else(internal_error, |document| json(StatusCode::OK, document))
    }

    /// Runs work that may take long on a thread of its own, as soon as there is a permit; `None` if it panics.
    async fn run_blocking<T: Send + 'static>(
        &self,
        permits: &Arc<Semaphore>,
        work: impl FnOnce(&Cache) -> T + Send + 'static,
    ) -> Option<T> {
        // Moved into the work, which goes on if the caller disconnects.
        let permit = Arc::clone(permits).acquire_owned().await.ok()?;
        let span = Span::current();
        let working = self.cache.run_blocking(move |cache| {
            let done = span.in_scope(|| work(cache));
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
