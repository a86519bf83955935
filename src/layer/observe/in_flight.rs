//! A request in flight.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::HeaderValue;
use http::{Method, StatusCode, Uri};

use crate::clock::Clock;
use crate::exchange::SharedRequestInfo;
use crate::header::RequestId;
use crate::metrics::WorkerMetrics;
use crate::trace::Tracer;

/// What is kept of a request until its response is sent.
#[derive(Debug)]
pub(super) struct InFlightRequest {
    pub(super) shared: Arc<Shared>,
    pub(super) info: SharedRequestInfo,
    pub(super) started: Instant,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) user_agent: Option<HeaderValue>,
    pub(super) remote_ip: Option<IpAddr>,
    pub(super) request_id: RequestId,
    pub(super) status: Option<StatusCode>,
    pub(super) sent_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) worker_metrics: Arc<WorkerMetrics>,
    pub(super) clock: Clock,
    /// Whether successful requests are logged too.
    pub(super) logs_all: bool,
    /// Decides which requests are sampled, if any are.
    pub(super) tracer: Option<Tracer>,
}
