//! Shapes of families that several collectors have.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::counters::{Counters, Label};
use crate::histogram::{Bounds, Histogram};

/// A family of one series without labels.
pub(super) fn encode_single(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// A family with a counter for each value of a label.
pub(super) fn encode_counters<L: Label>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    label: &str,
    counters: &Counters<L>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in counters.iter() {
        ConstCounter::new(count).encode(family.encode_family(&[(label, value.as_str())])?)?;
    }
    Ok(())
}

/// The same for counters that several owners have, whose names are the values of the first label.
pub(super) fn encode_counters_of_each<'a, L: Label>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    [owner_label, label]: [&str; 2],
    owners: impl IntoIterator<Item = (&'a str, &'a Counters<L>)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (owner, counters) in owners {
        for (value, count) in counters.iter() {
            let labels = [(owner_label, owner), (label, value.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// A family of one histogram without labels.
pub(super) fn encode_histogram<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    histogram: &Histogram<N>,
    bounds: &Bounds<N>,
) -> fmt::Result {
    let (sum, count, buckets) = histogram.snapshot(bounds);
    encoder
        .encode_descriptor(name, help, None, MetricType::Histogram)?
        .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

/// The same for each value of a label.
pub(super) fn encode_histograms<'a, const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    label: &str,
    (histograms, bounds): (impl IntoIterator<Item = (&'a str, &'a Histogram<N>)>, &Bounds<N>),
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (value, histogram) in histograms {
        let (sum, count, buckets) = histogram.snapshot(bounds);
        family
            .encode_family(&[(label, value)])?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}
