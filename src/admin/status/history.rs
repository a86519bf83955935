//! Samples of the last fifteen minutes.

use std::collections::VecDeque;
use std::time::Instant;

use serde_json::{Value, json};

use crate::histogram::quantile;
use crate::metrics::{Buckets, MetricSources, RequestTotals};
use crate::route::Class;

/// Fifteen minutes, if one is taken every six seconds. Each takes about 100 bytes.
const MAX_SAMPLES: usize = 150;

/// The samples, and what was counted until the last one.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    last: Option<Counted>,
}

/// What is read at the moment of a sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Levels {
    pub(super) waiting: usize,
    pub(super) connections: usize,
}

impl Levels {
    pub(super) fn read(sources: &MetricSources) -> Self {
        let upstream = &sources.upstream;
        let limits = upstream.limits();
        let queued = Class::ALL.into_iter().map(|class| limits.admission.of(class).waiting());
        let connections = sources.clients.iter().map(|listener| listener.open()).sum();
        Self { waiting: queued.sum::<usize>() + upstream.hold.waiting(), connections }
    }
}

/// Rates are per second, times are in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Since the Unix epoch.
    at: i64,
    levels: Levels,
    rates: [f64; 4],
    hit_ratio: Option<f64>,
    memory: [Option<f64>; 2],
    rails: [Option<f64>; 2],
}

impl Sample {
    pub(super) fn json(&self) -> Value {
        let [requests, hits, errors, refused] = self.rates.map(|rate| (rate * 1000.0).round() / 1000.0);
        let ([hit_p50, hit_p99], [rails_p50, rails_p99]) = (self.memory, self.rails);
        json!({
            "at": self.at,
            "requests": requests,
            "hits": hits,
            "errors": errors,
            "refused": refused,
            "hit_ratio": self.hit_ratio,
            "hit_p50": hit_p50,
            "hit_p99": hit_p99,
            "rails_p50": rails_p50,
            "rails_p99": rails_p99,
            "waiting": self.levels.waiting,
            "connections": self.levels.connections,
        })
    }
}

/// Sums since the start.
#[derive(Clone, Debug, Default)]
struct Counted {
    at: Option<Instant>,
    requests: u64,
    hits: u64,
    cacheable: u64,
    errors: u64,
    refused: u64,
    memory: Buckets,
    rails: Buckets,
}

/// Whether an answer came from memory, by the label of `cache`.
pub(super) fn is_hit(cache: &str) -> bool {
    matches!(cache, "hit" | "stale_while_revalidate" | "stale_if_error")
}

/// Whether the cache could answer such a request, by the same label.
pub(super) fn is_cacheable(cache: &str) -> bool {
    !matches!(cache, "none" | "never" | "bypass")
}

impl Counted {
    fn new(totals: &RequestTotals, now: Instant) -> Self {
        let mut counted = Self { at: Some(now), memory: totals.hits.clone(), ..Self::default() };
        for (outcome, count) in &totals.requests {
            counted.requests += count;
            counted.hits += count * u64::from(is_hit(outcome.cache));
            counted.cacheable += count * u64::from(is_cacheable(outcome.cache));
            counted.errors += count * u64::from(outcome.status == "5xx");
        }
        counted.refused = totals.failures.values().sum();
        for buckets in totals.upstream.values() {
            add(&mut counted.rails, buckets);
        }
        counted
    }
}

fn add(sum: &mut Buckets, buckets: &Buckets) {
    if sum.is_empty() {
        sum.clone_from(buckets);
        return;
    }
    for ((_, sum), (_, count)) in sum.iter_mut().zip(buckets) {
        *sum += count;
    }
}

/// What was counted since `before`.
fn since(now: &Buckets, before: &Buckets) -> Buckets {
    let before = before.iter().map(|(_, count)| *count).chain(std::iter::repeat(0));
    now.iter().zip(before).map(|((bound, count), before)| (*bound, count.saturating_sub(before))).collect()
}

/// Exact up to 2⁵³, which no counter reaches.
#[allow(clippy::cast_precision_loss)]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// The share of `part` in `all`; `None` of nothing.
pub(super) fn ratio(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| float(part) / float(all))
}

impl History {
    /// From the oldest to the latest.
    pub(super) fn samples(&self) -> impl DoubleEndedIterator<Item = &Sample> {
        self.samples.iter()
    }

    /// Adds a sample of what was counted since the last one. The first one is only what others are compared with.
    pub(super) fn add(&mut self, totals: &RequestTotals, levels: Levels, now: Instant, unix_seconds: i64) {
        let counted = Counted::new(totals, now);
        let Some(last) = self.last.replace(counted.clone()) else { return };
        let seconds = last.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        let rate = |now: u64, before: u64| {
            if seconds > 0.0 { float(now.saturating_sub(before)) / seconds } else { 0.0 }
        };
        let (memory, rails) = (since(&counted.memory, &last.memory), since(&counted.rails, &last.rails));
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            at: unix_seconds,
            levels,
            rates: [
                rate(counted.requests, last.requests),
                rate(counted.hits, last.hits),
                rate(counted.errors, last.errors),
                rate(counted.refused, last.refused),
            ],
            hit_ratio: ratio(
                counted.hits.saturating_sub(last.hits),
                counted.cacheable.saturating_sub(last.cacheable),
            ),
            memory: [0.5, 0.99].map(|q| quantile(&memory, q)),
            rails: [0.5, 0.99].map(|q| quantile(&rails, q)),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::metrics::RequestOutcome;

    fn totals(hits: u64, misses: u64, slow: u64) -> RequestTotals {
        let outcome = |cache, status| RequestOutcome { route: "check", status, cache };
        RequestTotals {
            requests: [
                (outcome("hit", "2xx"), hits),
                (outcome("miss_stored", "2xx"), misses),
                (outcome("none", "4xx"), 10 * misses),
                (outcome("never", "5xx"), misses),
            ]
            .into(),
            upstream: [("check", vec![(0.1, misses), (1.0, slow), (f64::INFINITY, 0)])].into(),
            ..RequestTotals::default()
        }
    }

    #[test]
    fn a_sample_says_what_has_happened_since_the_last_one() {
        let (mut history, start) = (History::default(), Clock::System.now());
        let levels = Levels { waiting: 3, connections: 4 };
        history.add(&totals(1_000, 1_000, 1_000), levels, start, 100);
        assert_eq!(history.samples().count(), 0);
        history.add(&totals(1_030, 1_010, 1_010), levels, start + Duration::from_secs(5), 105);
        let sample = history.samples().next().unwrap().json();
        assert_eq!(sample["requests"], 30.0, "{sample}");
        assert_eq!((&sample["hits"], &sample["errors"]), (&json!(6.0), &json!(2.0)));
        assert_eq!((&sample["hit_ratio"], &sample["waiting"]), (&json!(0.75), &json!(3)));
        assert_eq!((&sample["rails_p50"], &sample["hit_p50"]), (&json!(0.1), &Value::Null));
        assert_eq!(sample["at"], 105);
    }

    #[test]
    fn there_are_samples_of_fifteen_minutes_at_most() {
        let (mut history, start) = (History::default(), Clock::System.now());
        let levels = Levels { waiting: 0, connections: 0 };
        for nth in 0..400 {
            history.add(&totals(0, 0, 0), levels, start + Duration::from_secs(6 * nth), 6);
        }
        assert_eq!(history.samples().count(), MAX_SAMPLES);
    }
}
