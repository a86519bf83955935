//! The events that are treated differently from others.

use railgate::layer::observe::ACCESS_LOG;
use tracing::{Level, Metadata};

/// The target of events that are never filtered, since nothing from outside causes them.
pub(in crate::cli) const UNLIMITED: &str = "railgate::log";

/// Whether the line may be written some time later: that of a request for which neither gateway nor Rails is at
/// fault.
pub(super) fn is_deferrable(metadata: &Metadata<'_>) -> bool {
    metadata.target() == ACCESS_LOG && *metadata.level() >= Level::INFO
}
