//! Shapes of families that several collectors have.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};

/// A family of one series without labels.
pub(super) fn encode_single(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
