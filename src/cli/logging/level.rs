//! Leaves out what is less important than the level that is set now. The audit log is always written.
//!
//! Differs from `tracing_subscriber::reload` in that it takes no lock: places in the code remember the answer until
//! the level changes.

use std::sync::Arc;

use railgate::admin::AUDIT;
use railgate::log::LogCounters;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer};

/// Asks the [`LogSwitch`](railgate::log::LogSwitch).
pub(super) struct LevelLayer(pub(super) Arc<LogCounters>);

/// The least important level that an audit line has.
const AUDIT_LEVEL: Level = Level::INFO;

impl LevelLayer {
    fn is_written(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.0.switch.level() || metadata.target() == AUDIT
    }
}

impl<S: Subscriber> Layer<S> for LevelLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.is_written(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.is_written(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.0.switch.level().max(AUDIT_LEVEL)))
    }
}
