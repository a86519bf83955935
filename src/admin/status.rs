//! The figures of the status page: what is now, and samples of the last fifteen minutes.

mod document;
mod events;
mod fleet;
mod history;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::MissedTickBehavior;

pub use self::events::EventStream;
use self::events::Events;
use self::history::History;
use crate::cache::inspect::AgeCount;
use crate::clock::Clock;
use crate::metrics::Metrics;

/// How often those that listen get the figures.
const EVENT_INTERVAL: Duration = Duration::from_secs(2);

/// One of so many events has a new sample.
const EVENTS_PER_SAMPLE: u64 = 3;

/// How old a count of the entries by age may be: it goes through a part of the cache.
const AGES_INTERVAL: Duration = Duration::from_secs(30);

/// What the status page shows.
#[derive(Debug)]
pub struct Status {
    metrics: Arc<Metrics>,
    started: Instant,
    history: Mutex<History>,
    ages: Mutex<Option<(Instant, Vec<AgeCount>)>>,
    events: Events,
}

impl Status {
    /// Shows what `metrics` counts.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (history, ages) = (Mutex::default(), Mutex::default());
        Self { metrics, started: Clock::System.now(), history, ages, events: Events::default() }
    }

    /// Takes samples, and sends events while a page listens, until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut interval = tokio::time::interval(EVENT_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0_u64;
        loop {
            interval.tick().await;
            let is_sample_due = ticks.is_multiple_of(EVENTS_PER_SAMPLE);
            ticks += 1;
            let has_listeners = self.events.has_listeners();
            if !is_sample_due && !has_listeners {
                continue;
            }
            // On a thread of its own: the runtime of operators must not wait for it.
            let status = Arc::clone(&self);
            let working = self.metrics.sources().cache.run_blocking(move |_| {
                if is_sample_due {
                    status.take_sample();
                }
                has_listeners.then(|| status.event())
            });
            if let Ok(Some(event)) = working.await {
                self.events.send(event);
            }
        }
    }

    /// A stream of events for one more listener; `None` if there are as many as there may be, or while the gateway
    /// drains.
    pub fn listen(&self) -> Option<EventStream> {
        self.events.listen()
    }

    /// Ends all streams.
    pub fn end_events(&self) {
        self.events.end();
    }

    /// All figures and the samples. `operators` says what an operation of the page needs.
    pub fn document(&self, operators: &str) -> Value {
        let mut document = self.figures();
        if let Value::Object(members) = &mut document {
            let history = self.history.lock();
            members.insert("operators".into(), operators.into());
            members.insert("interval_s".into(), (EVENT_INTERVAL.as_secs() * EVENTS_PER_SAMPLE).into());
            members.insert("history".into(), history.samples().map(history::Sample::json).collect());
        }
        document
    }

    /// As an event of a stream.
    fn event(&self) -> Bytes {
        let mut document = self.figures();
        if let (Value::Object(members), Some(sample)) = (&mut document, self.history.lock().samples().last())
        {
            members.insert("sample".into(), sample.json());
        }
        Bytes::from(format!("data: {document}\n\n"))
    }

    fn take_sample(&self) {
        let totals = self.metrics.request_totals();
        let levels = history::Levels::read(self.metrics.sources());
        self.history.lock().add(&totals, levels, Clock::System.now(), Clock::System.unix_seconds());
    }

    fn figures(&self) -> Value {
        let now = Clock::System.now();
        let uptime = now.saturating_duration_since(self.started);
        document::figures(
            self.metrics.sources(),
            &self.metrics.request_totals(),
            &self.ages(now),
            uptime,
            now,
        )
    }

    fn ages(&self, now: Instant) -> Vec<AgeCount> {
        let mut ages = self.ages.lock();
        match &*ages {
            Some((at, counts)) if now.saturating_duration_since(*at) < AGES_INTERVAL => counts.clone(),
            _ => {
                let counts = self.metrics.sources().cache.count_by_age(now);
                *ages = Some((now, counts.clone()));
                counts
            }
        }
    }
}
