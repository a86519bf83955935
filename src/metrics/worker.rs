//! The counters of one worker. Each worker has its own, so that they do not contend; a scrape adds them up.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;

use super::exemplars::{self, BucketKey, Exemplar, ExemplarFamily, Exemplars};
use crate::auth::{CallerKind, Rejection};
use crate::clock::Clock;
use crate::exchange::{CacheOutcome, RequestInfo};
use crate::header::RequestId;
use crate::histogram::{Bounds, Histogram, UPSTREAM_BOUNDS, micros};
use crate::trace_context::TraceId;

/// A request that has ended, for its counters.
#[derive(Debug)]
pub struct FinishedRequest<'a> {
    /// What the layers learned about it.
    pub info: &'a RequestInfo,
    /// Its correlation id.
    pub request_id: &'a RequestId,
    /// `None` if there was no answer.
    pub status: Option<StatusCode>,
    /// False if the client left before it had its whole answer. An answer that Rails broke off is none of its doing.
    pub client_stayed: bool,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
}

/// A request that ended in the gateway. It has nothing that a client has made up, but for the correlation id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRequest {
    /// When it ended, since the Unix epoch.
    pub at: Duration,
    /// The id of the endpoint, or `none`.
    pub route: &'static str,
    /// What the client got; `None` if there was no response.
    pub status: Option<u16>,
    /// Why: the label of the failure.
    pub failure: &'static str,
    /// Why the credential was refused, if it was.
    pub reason: Option<&'static str>,
    /// As in the log.
    pub correlation_id: Box<str>,
}

/// How many of them are kept.
pub(super) const LAST_FAILED: usize = 50;

/// Requests that one worker answers and has answered.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    /// Requests that are being answered now.
    pub in_flight: AtomicI64,
    /// Uncontended, except for the moment of a scrape.
    requests: Mutex<RequestMetrics>,
}

impl WorkerMetrics {
    /// Called once for each request.
    pub fn record(&self, finished: &FinishedRequest<'_>) {
        self.requests.lock().record(finished);
    }

    /// Adds its counters to `sum`.
    pub(super) fn add_to(&self, sum: &mut RequestMetrics) {
        sum.in_flight += self.in_flight.load(Ordering::Relaxed);
        sum.add(&self.requests.lock());
    }
}

/// A map whose keys are few and not chosen by callers, so that a fast hash is safe.
pub(super) type MapBy<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Of one worker, or the sum of all.
#[derive(Debug, Default)]
pub(super) struct RequestMetrics {
    pub(super) requests: MapBy<RequestKey, u64>,
    pub(super) in_flight: i64,
    pub(super) hit_duration: Histogram<9>,
    pub(super) upstream_duration: MapBy<&'static str, Histogram<12>>,
    pub(super) queue_duration: MapBy<&'static str, Histogram<12>>,
    pub(super) auth_refusals: MapBy<&'static str, u64>,
    pub(super) failures: MapBy<&'static str, u64>,
    pub(super) clients_gone: u64,
    pub(super) exemplars: Exemplars,
    /// From the oldest to the latest.
    pub(super) last_failed: VecDeque<FailedRequest>,
}

/// Requests are counted by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    pub(super) route: &'static str,
    pub(super) caller: CallerKind,
    /// The first digit of the status, 0 without an answer.
    pub(super) status_class: u8,
    pub(super) cache: CacheOutcome,
}

/// A hit takes microseconds.
pub(super) const HIT_BOUNDS: Bounds<9> = micros([25, 50, 100, 250, 500, 1_000, 5_000, 25_000, 100_000]);

impl RequestMetrics {
    fn record(&mut self, finished: &FinishedRequest<'_>) {
        let FinishedRequest { info, request_id, status, client_stayed, duration } = finished;
        let route = info.route.unwrap_or("none");
        let key = RequestKey {
            route,
            caller: info.caller,
            status_class: status.map_or(0, status_class),
            cache: info.cache,
        };
        *self.requests.entry(key).or_default() += 1;
        if matches!(info.cache, CacheOutcome::Hit | CacheOutcome::StaleWhileRevalidate) {
            self.hit_duration.observe_mut(*duration, &HIT_BOUNDS);
        }
        if let Some(upstream) = info.upstream_time {
            self.upstream_duration.entry(route).or_default().observe_mut(upstream, &UPSTREAM_BOUNDS);
        }
        if let Some(waited) = info.queue_time {
            self.queue_duration.entry(route).or_default().observe_mut(waited, &UPSTREAM_BOUNDS);
        }
        if let Some(rejection) = info.rejection {
            *self.auth_refusals.entry(rejection.as_str()).or_default() += 1;
        }
        if let Some(failure) = info.failure {
            *self.failures.entry(failure).or_default() += 1;
            self.keep_failed(FailedRequest {
                at: Clock::System.unix_time(),
                route,
                status: status.map(|status| status.as_u16()),
                failure,
                reason: info.rejection.map(Rejection::as_str),
                correlation_id: request_id.as_str().into(),
            });
        }
        self.clients_gone += u64::from(!client_stayed);
        if let Some(trace_id) = info.trace.sampled_id() {
            self.keep_exemplars(info, *duration, trace_id);
        }
    }

    #[cold]
    fn keep_exemplars(&mut self, info: &RequestInfo, duration: Duration, trace_id: TraceId) {
        let (route, at) = (info.route.unwrap_or("none"), Clock::System.unix_time());
        let mut keep = |bucket: BucketKey, value| {
            self.exemplars.insert(bucket, Exemplar { trace_id, value, at });
        };
        if matches!(info.cache, CacheOutcome::Hit | CacheOutcome::StaleWhileRevalidate) {
            keep((ExemplarFamily::Hit, "", Histogram::bucket_of(duration, &HIT_BOUNDS)), duration);
        }
        for (family, value) in
            [(ExemplarFamily::Upstream, info.upstream_time), (ExemplarFamily::Queue, info.queue_time)]
        {
            if let Some(value) = value {
                keep((family, route, Histogram::bucket_of(value, &UPSTREAM_BOUNDS)), value);
            }
        }
    }

    fn keep_failed(&mut self, request: FailedRequest) {
        if self.last_failed.len() == LAST_FAILED {
            self.last_failed.pop_front();
        }
        self.last_failed.push_back(request);
    }

    fn add(&mut self, other: &Self) {
        add_each(&mut self.requests, &other.requests);
        self.hit_duration.add(&other.hit_duration);
        for (route, durations) in &other.upstream_duration {
            self.upstream_duration.entry(*route).or_default().add(durations);
        }
        for (route, durations) in &other.queue_duration {
            self.queue_duration.entry(*route).or_default().add(durations);
        }
        add_each(&mut self.auth_refusals, &other.auth_refusals);
        add_each(&mut self.failures, &other.failures);
        self.clients_gone += other.clients_gone;
        exemplars::add(&mut self.exemplars, &other.exemplars);
        self.last_failed.extend(other.last_failed.iter().cloned());
    }
}

fn add_each<K: Copy + Eq + Hash>(sums: &mut MapBy<K, u64>, counts: &MapBy<K, u64>) {
    for (key, count) in counts {
        *sums.entry(*key).or_default() += count;
    }
}

fn status_class(status: StatusCode) -> u8 {
    u8::try_from(status.as_u16() / 100).unwrap_or(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(route: &'static str, cache: CacheOutcome) -> RequestInfo {
        RequestInfo { route: Some(route), cache, caller: CallerKind::SharedSecret, ..RequestInfo::default() }
    }

    #[test]
    fn the_counters_of_workers_add_up() {
        let workers = [WorkerMetrics::default(), WorkerMetrics::default()];
        for (worker, route, micros) in [(0, "check", 20), (1, "check", 30), (1, "discover", 200_000)] {
            let info = notes(route, CacheOutcome::Hit);
            let duration = Duration::from_micros(micros);
            let status = Some(StatusCode::OK);
            workers[worker].record(&FinishedRequest {
                info: &info,
                request_id: &RequestId::Generated([b'a'; 32]),
                status,
                client_stayed: micros != 30,
                duration,
            });
            workers[worker].in_flight.fetch_add(1, Ordering::Relaxed);
        }
        let mut sum = RequestMetrics::default();
        for worker in &workers {
            worker.add_to(&mut sum);
        }
        let count = |route| {
            let request = RequestKey {
                route,
                caller: CallerKind::SharedSecret,
                status_class: 2,
                cache: CacheOutcome::Hit,
            };
            sum.requests.get(&request).copied()
        };
        assert_eq!((count("check"), count("discover"), count("none")), (Some(2), Some(1), None));
        assert_eq!((sum.in_flight, sum.clients_gone), (3, 1));
        let (seconds, observed, buckets) = sum.hit_duration.snapshot(&HIT_BOUNDS);
        assert!((seconds - 0.200_05).abs() < 1e-9, "{seconds}");
        assert_eq!(observed, 3);
        assert_eq!(buckets.first(), Some(&(25e-6, 1)));
        assert_eq!(buckets.get(1), Some(&(50e-6, 1)));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1)));
    }
}
