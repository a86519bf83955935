//! Every series that the gateway exposes: those of requests here and in `worker`, those of other modules in `sources`.
//! Label values come from the route table and from
//! closed enums, so that no caller can make new series.

mod encode;
mod exemplars;
mod exposition;
mod process;
mod sources;
mod totals;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use self::encode::{encode_histogram, encode_histograms, encode_single};
pub use self::exposition::ExpositionFormat;
pub use self::sources::MetricSources;
pub use self::totals::{Buckets, RequestOutcome, RequestTotals};
pub use self::worker::{FailedRequest, FinishedRequest, WorkerMetrics};
use self::worker::{HIT_BOUNDS, MapBy, RequestKey, RequestMetrics};
use crate::exchange::CacheOutcome;
use crate::histogram::UPSTREAM_BOUNDS;

/// The registry that operators scrape.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    workers: AllWorkers,
    sources: MetricSources,
}

#[derive(Clone, Debug, Default)]
struct AllWorkers(Arc<Mutex<Vec<Arc<WorkerMetrics>>>>);

/// Labels of `railgate_requests_total`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    caller: &'static str,
    status: &'static str,
    cache: &'static str,
}

impl Metrics {
    /// Registers every series; those of `sources` are read at each scrape.
    pub fn new(sources: MetricSources) -> Self {
        let workers = AllWorkers::default();
        let mut root = Registry::default();
        let registry = root.sub_registry_with_prefix("railgate");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that is running", build);
        registry.register_collector(Box::new(workers.clone()));
        registry.register_collector(Box::new(sources.clone()));
        // Every Prometheus client library gives these the same names, without a prefix.
        root.register_collector(Box::new(process::ProcessCollector));
        Self { registry: root, workers, sources }
    }

    /// The counters for one more worker.
    pub fn add_worker(&self) -> Arc<WorkerMetrics> {
        let worker = Arc::default();
        self.workers.0.lock().push(Arc::clone(&worker));
        worker
    }

    /// What is read at each scrape beside the counters of the workers.
    pub fn sources(&self) -> &MetricSources {
        &self.sources
    }

    /// The body of a scrape.
    pub fn encode(&self, format: ExpositionFormat) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        match format {
            ExpositionFormat::OpenMetrics => exemplars::append(text, &self.workers.sum().exemplars),
            ExpositionFormat::Text => format.convert(text),
        }
    }
}

impl Collector for AllWorkers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.sum().encode(&mut encoder)
    }
}

impl RequestMetrics {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "requests",
            "Requests answered, by route, caller, status class and cache outcome",
            None,
            MetricType::Counter,
        )?;
        for (labels, count) in sum_by_label(self.requests.iter().map(|(key, count)| (key.labels(), *count))) {
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let in_flight = ConstGauge::new(self.in_flight);
        encode_single(encoder, "requests_in_flight", "Requests that are being answered now", &in_flight)?;
        self.encode_durations(encoder)?;
        let unstored = self.requests.iter().filter_map(|(key, count)| match key.cache {
            CacheOutcome::Unstored(reason) => Some((reason.as_str(), *count)),
            _ => None,
        });
        let by_reason = |counts: &MapBy<&'static str, u64>| {
            sum_by_label(counts.iter().map(|(reason, count)| (*reason, *count)))
        };
        for (name, help, counts) in [
            (
                "auth_refusals",
                "Requests whose credential was refused, by reason",
                by_reason(&self.auth_refusals),
            ),
            (
                "failures",
                "Requests that ended here without an answer from Rails, by reason",
                by_reason(&self.failures),
            ),
            (
                "cache_unstored",
                "Answers of cacheable endpoints that were not stored, by reason",
                sum_by_label(unstored),
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (reason, count) in counts {
                ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
            }
        }
        let gone = ConstCounter::new(self.clients_gone);
        encode_single(encoder, "clients_gone", "Clients that left before they had their whole answer", &gone)
    }

    fn encode_durations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let hits = (
            "hit_duration_seconds",
            "From the request's head to the end of an answer from memory that is fresh or being renewed",
        );
        encode_histogram(encoder, hits, &self.hit_duration, &HIT_BOUNDS)?;
        let upstream = (
            "upstream_duration_seconds",
            "From sending a request to Rails to the head of its answer, or to the failure to get one",
        );
        let queue = (
            "upstream_queue_seconds",
            "How long requests waited that were not sent at once, for Rails to be back or for their turn",
        );
        for (family, histograms) in [(upstream, &self.upstream_duration), (queue, &self.queue_duration)] {
            let sorted: BTreeMap<_, _> =
                histograms.iter().map(|(route, histogram)| (*route, histogram)).collect();
            encode_histograms(encoder, family, "route", (sorted, &UPSTREAM_BOUNDS))?;
        }
        Ok(())
    }
}

/// Adds up equal labels, in the order of the labels, so that two scrapes show the same order.
fn sum_by_label<L: Ord>(counts: impl Iterator<Item = (L, u64)>) -> BTreeMap<L, u64> {
    let mut sums = BTreeMap::new();
    for (label, count) in counts {
        *sums.entry(label).or_default() += count;
    }
    sums
}

impl RequestKey {
    fn labels(&self) -> RequestLabels {
        let status = match self.status_class {
            0 => "none",
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        RequestLabels { route: self.route, caller: self.caller.as_str(), status, cache: self.cache.as_str() }
    }
}
