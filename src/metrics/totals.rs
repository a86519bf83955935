//! What all workers have counted together, for the status page.

use std::collections::BTreeMap;

use super::worker::{FailedRequest, HIT_BOUNDS, LAST_FAILED, RequestKey, RequestMetrics};
use super::{AllWorkers, Metrics, sum_by_label};
use crate::histogram::{Histogram, UPSTREAM_BOUNDS};

/// Durations by the upper bounds of their buckets in seconds; not cumulative.
pub type Buckets = Vec<(f64, u64)>;

/// How requests were answered: the labels of `railgate_requests_total` but for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestOutcome {
    /// The id of the endpoint.
    pub route: &'static str,
    /// `2xx` and so on.
    pub status: &'static str,
    /// What the cache did.
    pub cache: &'static str,
}

/// The sum over all workers at one moment.
#[derive(Clone, Debug, Default)]
pub struct RequestTotals {
    /// Requests answered.
    pub requests: BTreeMap<RequestOutcome, u64>,
    /// Requests that are being answered now.
    pub in_flight: i64,
    /// How long answers from memory took.
    pub hits: Buckets,
    /// How long Rails took, by endpoint.
    pub upstream: BTreeMap<&'static str, Buckets>,
    /// Callers refused, by reason.
    pub auth_refusals: BTreeMap<&'static str, u64>,
    /// Requests that ended in the gateway, by reason.
    pub failures: BTreeMap<&'static str, u64>,
    /// The last of them, newest first.
    pub last_failed: Vec<FailedRequest>,
}

impl Metrics {
    /// What all workers have counted until now.
    pub fn request_totals(&self) -> RequestTotals {
        self.workers.sum().into_totals()
    }
}

impl AllWorkers {
    pub(super) fn sum(&self) -> RequestMetrics {
        let mut sum = RequestMetrics::default();
        for worker in &*self.0.lock() {
            worker.add_to(&mut sum);
        }
        sum
    }
}

impl RequestMetrics {
    fn into_totals(self) -> RequestTotals {
        let buckets = |histogram: &Histogram<12>| histogram.snapshot(&UPSTREAM_BOUNDS).2;
        // Each worker has its own in order, so that those of one moment stay in theirs.
        let mut last_failed: Vec<_> = self.last_failed.into_iter().rev().collect();
        last_failed.sort_by_key(|failed| std::cmp::Reverse(failed.at));
        last_failed.truncate(LAST_FAILED);
        RequestTotals {
            requests: sum_by_label(self.requests.iter().map(|(key, count)| (key.outcome(), *count))),
            in_flight: self.in_flight,
            hits: self.hit_duration.snapshot(&HIT_BOUNDS).2,
            upstream: self.upstream_duration.iter().map(|(route, all)| (*route, buckets(all))).collect(),
            auth_refusals: self.auth_refusals.into_iter().collect(),
            failures: self.failures.into_iter().collect(),
            last_failed,
        }
    }
}

impl RequestKey {
    fn outcome(&self) -> RequestOutcome {
        let labels = self.labels();
        RequestOutcome { route: labels.route, status: labels.status, cache: labels.cache }
    }
}
