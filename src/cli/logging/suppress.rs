//! The same diagnostic again and again is counted instead of written.
//!
//! A diagnostic is an event at `WARN` or `ERROR` that does not tell of a request; the same is one that
//! comes from the same place in the code. A client that can cause one may cause a million, and they would push
//! everything else out of the queue.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use railgate::layer::observe::ACCESS_LOG;
use railgate::log::Counts;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::UNLIMITED;

const WINDOW: Duration = Duration::from_secs(1);
/// How many of a kind are written in that time: enough to see what it is about.
const MOST: u32 = 5;
const SUPPRESSED: &str = "more lines like one above were left out";
/// Bytes of a message that are told.
const MOST_OF_MESSAGE: usize = 256;

/// Counts diagnostics by place.
pub(super) struct Suppress {
    counts: Arc<Counts>,
    places: Mutex<HashMap<Identifier, Place>>,
}

struct Place {
    begun: Instant,
    /// Since then.
    seen: u32,
    /// Not told yet.
    left_out: u64,
    metadata: &'static Metadata<'static>,
    /// What one of those said that were left out.
    message: String,
}

/// How a `Suppress` is asked.
pub(super) struct SuppressLayer(pub(super) Arc<Suppress>);

impl<S: Subscriber> Layer<S> for SuppressLayer {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::WARN
            || metadata.target() == ACCESS_LOG
            || metadata.target() == UNLIMITED
            || self.0.allows(event, Instant::now())
    }
}

impl Suppress {
    pub(super) fn new(counts: Arc<Counts>) -> Self {
        Self { counts, places: Mutex::default() }
    }

    fn allows(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        let mut places = self.places.lock();
        let place = places.entry(metadata.callsite()).or_insert_with(|| Place {
            begun: now,
            seen: 0,
            left_out: 0,
            metadata,
            message: String::new(),
        });
        if now.saturating_duration_since(place.begun) >= WINDOW {
            (place.begun, place.seen) = (now, 0);
        }
        place.seen = place.seen.saturating_add(1);
        if place.seen <= MOST {
            return true;
        }
        if place.left_out == 0 {
            place.message.clear();
            event.record(&mut Message(&mut place.message));
        }
        place.left_out += 1;
        drop(places);
        self.counts.suppressed.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Says what was left out, of each place once a second.
    pub(super) fn tell(&self, now: Instant) {
        self.tell_if(|begun| now.saturating_duration_since(begun) >= WINDOW);
    }

    /// Says it now, since the process ends.
    pub(super) fn tell_all(&self) {
        self.tell_if(|_| true);
    }

    fn tell_if(&self, is_time: impl Fn(Instant) -> bool) {
        let mut told = Vec::new();
        for place in self.places.lock().values_mut() {
            if place.left_out > 0 && is_time(place.begun) {
                told.push((place.metadata, std::mem::take(&mut place.left_out), place.message.clone()));
            }
        }
        // Without the lock: these are events themselves.
        for (metadata, suppressed, like) in told {
            let from = metadata.target();
            if *metadata.level() == Level::ERROR {
                tracing::error!(target: UNLIMITED, suppressed, like, from, "{SUPPRESSED}");
            } else {
                tracing::warn!(target: UNLIMITED, suppressed, like, from, "{SUPPRESSED}");
            }
        }
    }
}

/// Takes the message alone, since other fields differ from event to event.
struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to memory cannot fail.
            let _ = write!(self.0, "{value:?}");
            self.0.truncate(self.0.floor_char_boundary(MOST_OF_MESSAGE));
        }
    }
}

#[cfg(test)]
mod tests;
