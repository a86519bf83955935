//! Where spans go, and which requests have any.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::header::{HeaderMap, HeaderValue};

use crate::upstream::UpstreamServerSettings;

/// `[tracing]` of the configuration.
#[derive(Clone, Debug)]
pub struct TracingSettings {
    /// Where spans are sent.
    pub export: Arc<ExportSettings>,
    /// Which part of the traces that begin here are sampled, 0 to 1.
    pub sample_ratio: f64,
    /// How many spans may wait.
    pub queue: usize,
}

/// How spans are exported. Two that are equal export alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSettings {
    /// The collector. The path below which it takes `v1/traces` is the root of its target.
    pub collector: UpstreamServerSettings,
    /// Sent with each request.
    pub headers: CollectorHeaders,
    /// `service.name` of the resource.
    pub service_name: String,
    /// How long one try to send a batch may take.
    pub timeout: Duration,
    /// After how long a batch is sent that is not full.
    pub interval: Duration,
}

/// What the collector wants to see, such as a credential: the values are sensitive, and compared in constant time.
#[derive(Clone, Debug, Default)]
pub struct CollectorHeaders(pub HeaderMap);

impl PartialEq for CollectorHeaders {
    fn eq(&self, other: &Self) -> bool {
        let (Self(one), Self(other)) = (self, other);
        one.len() == other.len()
            && one.keys().all(|name| {
                let (one, other) = (one.get_all(name), other.get_all(name));
                let is_same = |(one, other): (&HeaderValue, &HeaderValue)| {
                    verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
                };
                one.iter().count() == other.iter().count() && one.iter().zip(other).all(is_same)
            })
    }
}

impl Eq for CollectorHeaders {}

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
