//! Leaves out what is less important than the level that is set now.
//!
//! Differs from `tracing_subscriber::reload` in that it takes no lock: places in the code remember the answer until
//! the level changes.

use std::sync::Arc;

use railgate::log::LogCounters;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer};

/// Asks the [`LogSwitch`](railgate::log::LogSwitch).
pub(super) struct LevelLayer(pub(super) Arc<LogCounters>);

impl<S: Subscriber> Layer<S> for LevelLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if *metadata.level() <= self.0.switch.level() { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.0.switch.level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.0.switch.level()))
    }
}
