//! Durations counted by upper bound.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in nanoseconds, ascending.
pub type Bounds<const N: usize> = [u64; N];

/// For answers of Rails: a look-up takes milliseconds, a `/allowed` may take a minute.
pub const UPSTREAM_BOUNDS: Bounds<12> = micros([
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 15_000_000,
    60_000_000,
]);

/// Bounds that are given in microseconds.
pub const fn micros<const N: usize>(mut bounds: [u64; N]) -> Bounds<N> {
    let mut rest: &mut [u64] = &mut bounds;
    while let [bound, behind @ ..] = rest {
        *bound *= 1_000;
        rest = behind;
    }
    bounds
}

/// How many durations were within which bound. The bounds are constants that are passed to each method, so
/// that the search compares with constants.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    /// Durations up to each bound, and above the one before: not cumulative.
    counts: [AtomicU64; N],
    /// Durations above the last bound.
    overflow: AtomicU64,
    sum_ns: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        let counts = [const { AtomicU64::new(0) }; N];
        Self { counts, overflow: AtomicU64::new(0), sum_ns: AtomicU64::new(0) }
    }
}

impl<const N: usize> Histogram<N> {
    /// Which bucket a duration belongs to, counted from the lowest.
    pub fn bucket_of(duration: Duration, bounds: &Bounds<N>) -> usize {
        let ns = nanoseconds(duration);
        bounds.iter().position(|bound| ns <= *bound).unwrap_or(N)
    }

    /// Counts a duration, on any thread.
    pub fn observe(&self, duration: Duration, bounds: &Bounds<N>) {
        let ns = nanoseconds(duration);
        let count = bounds.iter().zip(&self.counts).find(|(bound, _)| ns <= **bound);
        count.map_or(&self.overflow, |(_, count)| count).fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Counts a duration without the cost of an atomic addition.
    pub fn observe_mut(&mut self, duration: Duration, bounds: &Bounds<N>) {
        let ns = nanoseconds(duration);
        let count = bounds.iter().zip(&mut self.counts).find(|(bound, _)| ns <= **bound);
        add(count.map_or(&mut self.overflow, |(_, count)| count), 1);
        add(&mut self.sum_ns, ns);
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            add(count, more.load(Ordering::Relaxed));
        }
        add(&mut self.overflow, other.overflow.load(Ordering::Relaxed));
        add(&mut self.sum_ns, other.sum_ns.load(Ordering::Relaxed));
    }

    /// As the exposition wants it: the sum in seconds, how many durations there are, and how many are in each
    /// bucket (its upper bound in seconds; not cumulative).
    pub fn snapshot(&self, bounds: &Bounds<N>) -> (f64, u64, Vec<(f64, u64)>) {
        let seconds = |ns: &u64| Duration::from_nanos(*ns).as_secs_f64();
        let bounds = bounds.iter().map(seconds).chain([f64::INFINITY]);
        let counts = self.counts.iter().chain([&self.overflow]).map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (seconds(&self.sum_ns.load(Ordering::Relaxed)), count, buckets)
    }
}

/// The duration in seconds that the share `q` of those in the buckets of a snapshot does not exceed, estimated as
/// `histogram_quantile` of Prometheus does: evenly spread within a bucket, and no more than the last bound. `None`
/// without any.
#[allow(clippy::cast_precision_loss)] // Exact up to 2⁵³, which no counter reaches.
pub fn quantile(buckets: &[(f64, u64)], q: f64) -> Option<f64> {
    let count: u64 = buckets.iter().map(|(_, count)| count).sum();
    let rank = q * count as f64;
    let (mut below, mut lower) = (0, 0.0);
    for (bound, count) in buckets {
        if bound.is_infinite() {
            return (*count > 0 || below > 0).then_some(lower);
        }
        if *count > 0 && (below + count) as f64 >= rank {
            return Some(lower + (bound - lower) * (rank - below as f64) / *count as f64);
        }
        (below, lower) = (below + count, *bound);
    }
    None
}

fn add(cell: &mut AtomicU64, more: u64) {
    let value = cell.get_mut();
    *value = value.wrapping_add(more);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_part_of_its_bucket() {
        let (shared, mut own) = (Histogram::default(), Histogram::default());
        for us in [1, 1_000, 1_001, 60_000_000, 60_000_001, 3_600_000_000] {
            shared.observe(Duration::from_micros(us), &UPSTREAM_BOUNDS);
            own.observe_mut(Duration::from_micros(us), &UPSTREAM_BOUNDS);
        }
        for histogram in [&shared, &own] {
            let (sum, count, buckets) = histogram.snapshot(&UPSTREAM_BOUNDS);
            assert!((sum - 3_720.002_003).abs() < 1e-9, "{sum}");
            assert_eq!(count, 6);
            let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
            assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
            let bucket = |us| Histogram::bucket_of(Duration::from_micros(us), &UPSTREAM_BOUNDS);
            assert_eq!([1, 1_000, 1_001, 60_000_000, 60_000_001].map(bucket), [0, 0, 1, 11, 12]);
            assert_eq!(buckets.first().map(|(bound, _)| *bound), Some(0.001));
            assert_eq!(buckets.last().map(|(bound, _)| *bound), Some(f64::INFINITY));
        }
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let buckets = [(0.1, 0), (0.2, 10), (0.4, 10), (1.0, 0), (f64::INFINITY, 0)];
        for (q, expected) in [(0.5, 0.2), (0.25, 0.15), (0.75, 0.3), (1.0, 0.4), (0.99, 0.396)] {
            assert!((quantile(&buckets, q).unwrap() - expected).abs() < 1e-9, "{q}");
        }
        assert_eq!(quantile(&[(0.1, 0), (f64::INFINITY, 3)], 0.5), Some(0.1), "no more than the last bound");
        assert_eq!(quantile(&[(0.1, 0), (f64::INFINITY, 0)], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn histograms_add_up() {
        let (mut sum, other) = (Histogram::default(), Histogram::default());
        for ms in [1, 2, 100_000] {
            sum.observe_mut(Duration::from_millis(ms), &UPSTREAM_BOUNDS);
            other.observe(Duration::from_millis(ms), &UPSTREAM_BOUNDS);
        }
        sum.add(&other);
        let (seconds, count, buckets) = sum.snapshot(&UPSTREAM_BOUNDS);
        assert!((seconds - 200.006).abs() < 1e-9, "{seconds}");
        assert_eq!(
            (count, buckets.first(), buckets.last()),
            (6, Some(&(0.001, 2)), Some(&(f64::INFINITY, 2)))
        );
    }
}
