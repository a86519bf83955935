//! Where spans go, and which requests have any.

use std::time::Duration;

use http::header::HeaderMap;

use crate::upstream::UpstreamServerSettings;

/// `[tracing]` of the configuration.
#[derive(Clone, Debug)]
pub struct TracingSettings {
    /// The collector. The path below which it takes `v1/traces` is the root of its target.
    pub collector: UpstreamServerSettings,
    /// Sent with each request; values are sensitive.
    pub headers: HeaderMap,
    /// Which part of the traces that begin here are sampled, 0 to 1.
    pub sample_ratio: f64,
    /// `service.name` of the resource.
    pub service_name: String,
    /// How long one try to send a batch may take.
    pub timeout: Duration,
    /// After how long a batch is sent that is not full.
    pub interval: Duration,
    /// How many spans may wait.
    pub queue: usize,
}

/// Default of `tracing.sample_ratio`.
pub const DEFAULT_SAMPLE_RATIO: f64 = 0.01;
/// Default of `tracing.service_name`.
pub const DEFAULT_SERVICE_NAME: &str = "railgate";
/// Default of `tracing.timeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Default of `tracing.interval`.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
/// Default of `tracing.queue`.
pub const DEFAULT_QUEUE: usize = 2048;
