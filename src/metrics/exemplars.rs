//! Exemplars: for each bucket of the durations of requests, the trace of the latest one in it that was sampled.
//!
//! Only `OpenMetrics` has them. The library has no public way to make one for a histogram that is counted elsewhere, so
//! they are appended to the lines that it has written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::trace_context::TraceId;

/// A histogram that has exemplars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ExemplarFamily {
    Hit,
    Upstream,
    Queue,
}

impl ExemplarFamily {
    const ALL: [Self; 3] = [Self::Hit, Self::Upstream, Self::Queue];

    /// What the lines of its buckets begin with.
    const fn bucket(self) -> &'static str {
        match self {
            Self::Hit => "railgate_hit_duration_seconds_bucket{",
            Self::Upstream => "railgate_upstream_duration_seconds_bucket{",
            Self::Queue => "railgate_upstream_queue_seconds_bucket{",
        }
    }
}

/// One request of a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) trace_id: TraceId,
    pub(super) value: Duration,
    /// When it ended, since the Unix epoch.
    pub(super) at: Duration,
}

/// The histogram, its route (empty without one), and which of its buckets.
pub(super) type BucketKey = (ExemplarFamily, &'static str, usize);

/// As many as there are buckets, at most.
pub(super) type Exemplars = BTreeMap<BucketKey, Exemplar>;

/// Keeps the latest of each bucket.
pub(super) fn add(sum: &mut Exemplars, others: &Exemplars) {
    for (bucket, exemplar) in others {
        let latest = sum.entry(*bucket).or_insert(*exemplar);
        if latest.at < exemplar.at {
            *latest = *exemplar;
        }
    }
}

/// Appends them to the lines of their buckets.
pub(super) fn append(open_metrics: String, exemplars: &Exemplars) -> String {
    if exemplars.is_empty() {
        return open_metrics;
    }
    let mut text = String::with_capacity(open_metrics.len() + exemplars.len() * 96);
    // The buckets of a histogram follow one another, from the lowest on.
    let (mut series, mut bucket) = (None, 0);
    for line in open_metrics.lines() {
        text.push_str(line);
        let current = series_of(line);
        bucket = if current.is_some() && current == series { bucket + 1 } else { 0 };
        series = current;
        if let Some((family, route)) = current {
            let found =
                exemplars.iter().find(|((of, to, nth), _)| (*of, *to, *nth) == (family, route, bucket));
            if let Some((_, Exemplar { trace_id, value, at })) = found {
                let (value, at) = (value.as_secs_f64(), at.as_secs_f64());
                // Writing to a String cannot fail.
                let _ = write!(text, " # {{trace_id=\"{trace_id}\"}} {value} {at:.3}");
            }
        }
        text.push('\n');
    }
    text
}

/// The histogram and the route of the line of a bucket.
fn series_of(line: &str) -> Option<(ExemplarFamily, &str)> {
    let family = ExemplarFamily::ALL.into_iter().find(|family| line.starts_with(family.bucket()))?;
    let route = line.split_once("route=\"").and_then(|(_, rest)| rest.split_once('"'));
    Some((family, route.map_or("", |(route, _)| route)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exemplar_is_appended_to_its_bucket_alone() {
        let text = "# TYPE railgate_hit_duration_seconds histogram\n\
                    railgate_hit_duration_seconds_sum 0.5\n\
                    railgate_hit_duration_seconds_bucket{le=\"0.1\"} 0\n\
                    railgate_hit_duration_seconds_bucket{le=\"+Inf\"} 1\n\
                    railgate_upstream_duration_seconds_bucket{le=\"0.1\",route=\"check\"} 1\n\
                    railgate_upstream_duration_seconds_bucket{le=\"+Inf\",route=\"check\"} 1\n\
                    railgate_upstream_duration_seconds_bucket{le=\"0.1\",route=\"discover\"} 1\n\
                    # EOF\n";
        let trace_id = TraceId::random();
        let exemplar =
            |ms, at| Exemplar { trace_id, value: Duration::from_millis(ms), at: Duration::from_millis(at) };
        assert_eq!(append(text.to_owned(), &Exemplars::new()), text);
        let exemplars = Exemplars::from([
            ((ExemplarFamily::Hit, "", 1), exemplar(500, 1_700_000_000_250)),
            ((ExemplarFamily::Upstream, "discover", 0), exemplar(50, 1_700_000_000_000)),
            ((ExemplarFamily::Queue, "discover", 0), exemplar(50, 1_700_000_000_000)),
        ]);
        let expected = text
            .replace(
                "{le=\"+Inf\"} 1",
                &format!("{{le=\"+Inf\"}} 1 # {{trace_id=\"{trace_id}\"}} 0.5 1700000000.250"),
            )
            .replace(
                "\"discover\"} 1",
                &format!("\"discover\"}} 1 # {{trace_id=\"{trace_id}\"}} 0.05 1700000000.000"),
            );
        assert_eq!(append(text.to_owned(), &exemplars), expected);
    }

    #[test]
    fn the_latest_of_all_workers_is_kept() {
        let (first, second) = (TraceId::random(), TraceId::random());
        let one = |trace_id, at| {
            let exemplar = Exemplar { trace_id, value: Duration::ZERO, at: Duration::from_secs(at) };
            Exemplars::from([((ExemplarFamily::Hit, "", 0), exemplar)])
        };
        for (others, expected) in
            [([one(first, 1), one(second, 2)], second), ([one(first, 2), one(second, 1)], first)]
        {
            let mut sum = Exemplars::new();
            for other in &others {
                add(&mut sum, other);
            }
            assert_eq!(sum.values().next().unwrap().trace_id, expected);
        }
    }
}
