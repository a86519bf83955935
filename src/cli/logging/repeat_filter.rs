//! Repeated events are counted instead of written.
//!
//! This concerns events at `WARN` or `ERROR` that are not the line of a request, by callsite. A client that can cause
//! one may cause a million, and they would leave no room in the queue for others.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use railgate::layer::observe::ACCESS_LOG;
use railgate::log::LogCounters;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::events::UNLIMITED;

const WINDOW: Duration = Duration::from_secs(1);
/// Events of one callsite that are written per window: enough to see what it is about.
const MAX_PER_WINDOW: u32 = 5;
const SUPPRESSED: &str = "more lines like one above were left out";
/// Bytes of a message in a report.
const MAX_MESSAGE: usize = 256;

/// Counts events by callsite.
pub(super) struct RepeatFilter {
    counts: Arc<LogCounters>,
    callsites: Mutex<HashMap<Identifier, CallsiteState>>,
}

struct CallsiteState {
    window_start: Instant,
    /// In this window.
    seen: u32,
    /// Not reported yet.
    suppressed: u64,
    metadata: &'static Metadata<'static>,
    /// Of one of the suppressed events.
    message: String,
}

pub(super) struct RepeatFilterLayer(pub(super) Arc<RepeatFilter>);

impl<S: Subscriber> Layer<S> for RepeatFilterLayer {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::WARN
            || metadata.target() == ACCESS_LOG
            || metadata.target() == UNLIMITED
            || self.0.allows(event, Instant::now())
    }
}

impl RepeatFilter {
    pub(super) fn new(counts: Arc<LogCounters>) -> Self {
        Self { counts, callsites: Mutex::default() }
    }

    fn allows(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        let mut callsites = self.callsites.lock();
        let state = callsites.entry(metadata.callsite()).or_insert_with(|| CallsiteState {
            window_start: now,
            seen: 0,
            suppressed: 0,
            metadata,
            message: String::new(),
        });
        if now.saturating_duration_since(state.window_start) >= WINDOW {
            (state.window_start, state.seen) = (now, 0);
        }
        state.seen = state.seen.saturating_add(1);
        if state.seen <= MAX_PER_WINDOW {
            return true;
        }
        if state.suppressed == 0 {
            state.message.clear();
            event.record(&mut MessageVisitor(&mut state.message));
        }
        state.suppressed += 1;
        drop(callsites);
        self.counts.suppressed.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Logs how many events were suppressed, at most once per window and callsite.
    pub(super) fn report(&self, now: Instant) {
        self.report_if(|window_start| now.saturating_duration_since(window_start) >= WINDOW);
    }

    /// The same at once, since the process ends.
    pub(super) fn report_all(&self) {
        self.report_if(|_| true);
    }

    fn report_if(&self, is_time: impl Fn(Instant) -> bool) {
        let mut reports = Vec::new();
        for state in self.callsites.lock().values_mut() {
            if state.suppressed > 0 && is_time(state.window_start) {
                reports.push((state.metadata, std::mem::take(&mut state.suppressed), state.message.clone()));
            }
        }
        // Without the lock, since these are events themselves.
        for (metadata, suppressed, like) in reports {
            let from = metadata.target();
            if *metadata.level() == Level::ERROR {
                tracing::error!(target: UNLIMITED, suppressed, like, from, "{SUPPRESSED}");
            } else {
                tracing::warn!(target: UNLIMITED, suppressed, like, from, "{SUPPRESSED}");
            }
        }
    }
}

/// Records only the message, since other fields differ from event to event.
struct MessageVisitor<'a>(&'a mut String);

impl Visit for MessageVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to memory cannot fail.
            let _ = write!(self.0, "{value:?}");
            self.0.truncate(self.0.floor_char_boundary(MAX_MESSAGE));
        }
    }
}

#[cfg(test)]
mod tests;
