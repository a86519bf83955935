//! What one worker has counted. Workers count each for themselves, so that a request waits for no
//! other; a scrape adds them up.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;

use crate::auth::CallerKind;
use crate::exchange::{CacheOutcome, Notes};

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

/// The counts of one worker.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that are being answered now.
    pub in_flight: AtomicI64,
    /// Never waited for, but for the moment in which somebody scrapes.
    counts: Mutex<Counts>,
}

impl Tally {
    /// Counts one request that has ended.
    pub fn record(&self, seen: &Seen<'_>) {
        self.counts.lock().record(seen);
    }

    /// Adds what was counted here to `sum`.
    pub(super) fn add_to(&self, sum: &mut Counts) {
        sum.in_flight += self.in_flight.load(Ordering::Relaxed);
        sum.add(&self.counts.lock());
    }
}

/// A map of small keys that the gateway itself has made.
pub(super) type By<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Counts of one worker, or of all.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: By<Request, u64>,
    pub(super) in_flight: i64,
    pub(super) hit_duration: Histogram<9>,
    pub(super) upstream_duration: By<&'static str, Histogram<12>>,
    pub(super) queue_duration: By<&'static str, Histogram<12>>,
    pub(super) auth_refusals: By<&'static str, u64>,
    pub(super) failures: By<&'static str, u64>,
    pub(super) clients_gone: u64,
}

/// What tells requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request {
    pub(super) route: &'static str,
    pub(super) caller: CallerKind,
    /// The first digit of the status, 0 without an answer.
    pub(super) class: u8,
    pub(super) cache: CacheOutcome,
}

/// How often something took how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Histogram<const N: usize> {
    /// By upper bound; the last for what is beyond all.
    counts: [u64; N],
    beyond: u64,
    sum: Duration,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { counts: [0; N], beyond: 0, sum: Duration::ZERO }
    }
}

impl<const N: usize> Histogram<N> {
    fn observe(&mut self, took: Duration, bounds: &[Duration; N]) {
        let count = bounds.iter().zip(&mut self.counts).find(|(bound, _)| took <= **bound);
        *count.map_or(&mut self.beyond, |(_, count)| count) += 1;
        self.sum += took;
    }

    fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.beyond += other.beyond;
        self.sum += other.sum;
    }

    /// The sum in seconds, the number of observations, and how many fell under each bound only.
    pub(super) fn parts(&self, bounds: &[Duration; N]) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = bounds.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.counts.into_iter().chain([self.beyond])).collect();
        (self.sum.as_secs_f64(), buckets.iter().map(|(_, count)| count).sum(), buckets)
    }
}

/// Upper bounds: a hit takes microseconds, a `/allowed` may take a minute.
pub(super) const HIT_BOUNDS: [Duration; 9] = micros([25, 50, 100, 250, 500, 1_000, 5_000, 25_000, 100_000]);
pub(super) const UPSTREAM_BOUNDS: [Duration; 12] = micros([
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 15_000_000,
    60_000_000,
]);

const fn micros<const N: usize>(counts: [u64; N]) -> [Duration; N] {
    let mut bounds = [Duration::ZERO; N];
    let mut index = 0;
    while index < N {
        #[expect(clippy::indexing_slicing, reason = "known at compile time")]
        {
            bounds[index] = Duration::from_micros(counts[index]);
        }
        index += 1;
    }
    bounds
}

impl Counts {
    fn record(&mut self, seen: &Seen<'_>) {
        let Seen { notes, status, whole, took } = seen;
        let route = notes.route.unwrap_or("none");
        let request =
            Request { route, caller: notes.caller, class: status.map_or(0, class), cache: notes.cache };
        *self.requests.entry(request).or_default() += 1;
        if matches!(notes.cache, CacheOutcome::Hit | CacheOutcome::StaleWhileRevalidate) {
            self.hit_duration.observe(*took, &HIT_BOUNDS);
        }
        if let Some(upstream) = notes.upstream {
            self.upstream_duration.entry(route).or_default().observe(upstream, &UPSTREAM_BOUNDS);
        }
        if let Some(waited) = notes.waited {
            self.queue_duration.entry(route).or_default().observe(waited, &UPSTREAM_BOUNDS);
        }
        if let Some(rejection) = notes.rejection {
            *self.auth_refusals.entry(rejection.as_str()).or_default() += 1;
        }
        if let Some(failure) = notes.failure {
            *self.failures.entry(failure).or_default() += 1;
        }
        self.clients_gone += u64::from(!whole);
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
    }
}

fn add_each<K: Copy + Eq + Hash>(sums: &mut By<K, u64>, counts: &By<K, u64>) {
    for (key, count) in counts {
        *sums.entry(*key).or_default() += count;
    }
}

fn class(status: StatusCode) -> u8 {
    u8::try_from(status.as_u16() / 100).unwrap_or(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(route: &'static str, cache: CacheOutcome) -> Notes {
        Notes { route: Some(route), cache, caller: CallerKind::SharedSecret, ..Notes::default() }
    }

    #[test]
    fn what_workers_counted_adds_up() {
        let tallies = [Tally::default(), Tally::default()];
        for (tally, route, micros) in [(0, "check", 20), (1, "check", 30), (1, "discover", 200_000)] {
            let notes = seen(route, CacheOutcome::Hit);
            let took = Duration::from_micros(micros);
            let status = Some(StatusCode::OK);
            tallies[tally].record(&Seen { notes: &notes, status, whole: micros != 30, took });
            tallies[tally].in_flight.fetch_add(1, Ordering::Relaxed);
        }
        let mut sum = Counts::default();
        for tally in &tallies {
            tally.add_to(&mut sum);
        }
        let count = |route| {
            let request =
                Request { route, caller: CallerKind::SharedSecret, class: 2, cache: CacheOutcome::Hit };
            sum.requests.get(&request).copied()
        };
        assert_eq!((count("check"), count("discover"), count("none")), (Some(2), Some(1), None));
        assert_eq!((sum.in_flight, sum.clients_gone), (3, 1));
        let (seconds, observed, buckets) = sum.hit_duration.parts(&HIT_BOUNDS);
        assert!((seconds - 0.200_05).abs() < 1e-9, "{seconds}");
        assert_eq!(observed, 3);
        assert_eq!(buckets.first(), Some(&(25e-6, 1)));
        assert_eq!(buckets.get(1), Some(&(50e-6, 1)));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1)));
    }

    #[test]
    fn a_bound_is_part_of_its_bucket() {
        let mut histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1), &UPSTREAM_BOUNDS);
        assert_eq!(histogram.parts(&UPSTREAM_BOUNDS).2.first(), Some(&(1e-3, 1)));
    }
}
