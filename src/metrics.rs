//! Every series that the gateway exposes, in one place. Labels come from the route table and from
//! closed enums, so that no caller can make new series.

mod process;
mod sources;

use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use self::sources::Sources;
use crate::exchange::{CacheOutcome, Notes};

/// Labels of `railgate_requests_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    caller: &'static str,
    status: &'static str,
    cache: &'static str,
}

/// A label set of one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// A label set of one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

type Durations = Family<Route, Histogram, fn() -> Histogram>;

/// The series that the stack counts in.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    /// Requests that are being answered now.
    pub in_flight: Gauge,
    hit_duration: Histogram,
    upstream_duration: Durations,
    auth_refusals: Family<Reason, Counter>,
    failures: Family<Reason, Counter>,
    unstored: Family<Reason, Counter>,
    clients_gone: Counter,
}

/// One request, seen to its end.
#[derive(Debug)]
pub struct Seen<'a> {
    /// What the layers noted.
    pub notes: &'a Notes,
    /// The status of the answer, if there was one.
    pub status: Option<StatusCode>,
    /// Whether the client got all of it.
    pub whole: bool,
    /// From the first to the last byte.
    pub took: Duration,
}

/// Upper bounds in seconds: a hit takes microseconds, a `/allowed` may take a minute.
const HIT_BOUNDS: [f64; 9] = [25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 5e-3, 25e-3, 100e-3];
const UPSTREAM_BOUNDS: [f64; 12] =
    [1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1.0, 5.0, 15.0, 60.0];

impl Metrics {
    /// Registers every series; those of `sources` are read when somebody scrapes.
    pub fn new(sources: Sources) -> Self {
        let mut root = Registry::default();
        let registry = root.sub_registry_with_prefix("railgate");
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            in_flight: Gauge::default(),
            hit_duration: Histogram::new(HIT_BOUNDS),
            upstream_duration: Family::new_with_constructor(|| Histogram::new(UPSTREAM_BOUNDS)),
            auth_refusals: Family::default(),
            failures: Family::default(),
            unstored: Family::default(),
            clients_gone: Counter::default(),
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that is running", build);
        registry.register(
            "requests",
            "Requests answered, by route, caller, status class and cache outcome",
            metrics.requests.clone(),
        );
        registry.register(
            "requests_in_flight",
            "Requests that are being answered now",
            metrics.in_flight.clone(),
        );
        registry.register(
            "hit_duration_seconds",
            "From the request's head to the end of an answer from memory",
            metrics.hit_duration.clone(),
        );
        registry.register(
            "upstream_duration_seconds",
            "From sending a request to Rails to the head of its answer, or to the failure to get one",
            metrics.upstream_duration.clone(),
        );
        registry.register("auth_refusals", "Callers not let in, by reason", metrics.auth_refusals.clone());
        registry.register(
            "failures",
            "Requests that ended here without an answer from Rails, by reason",
            metrics.failures.clone(),
        );
        registry.register(
            "cache_unstored",
            "Answers of cacheable endpoints that were not stored, by reason",
            metrics.unstored.clone(),
        );
        registry.register(
            "clients_gone",
            "Clients that left before they had their whole answer",
            metrics.clients_gone.clone(),
        );
        registry.register_collector(Box::new(sources));
        // Every Prometheus client library gives these the same names, without a prefix.
        root.register_collector(Box::new(process::Process));
        metrics.registry = root;
        metrics
    }

    /// Counts one request that has ended.
    pub fn record(&self, seen: &Seen<'_>) {
        let Seen { notes, status, whole, took } = seen;
        let route = notes.route.unwrap_or("none");
        self.requests
            .get_or_create(&RequestLabels {
                route,
                caller: notes.caller.as_str(),
                status: status.map_or("none", class),
                cache: notes.cache.as_str(),
            })
            .inc();
        if notes.cache == CacheOutcome::Hit {
            self.hit_duration.observe(took.as_secs_f64());
        }
        if let Some(upstream) = notes.upstream {
            self.upstream_duration.get_or_create(&Route { route }).observe(upstream.as_secs_f64());
        }
        if let Some(rejection) = notes.rejection {
            self.auth_refusals.get_or_create(&Reason { reason: rejection.as_str() }).inc();
        }
        if let Some(failure) = notes.failure {
            self.failures.get_or_create(&Reason { reason: failure }).inc();
        }
        if let CacheOutcome::Unstored(reason) = notes.cache {
            self.unstored.get_or_create(&Reason { reason: reason.as_str() }).inc();
        }
        if !whole {
            self.clients_gone.inc();
        }
    }

    /// All series in the `OpenMetrics` text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}
