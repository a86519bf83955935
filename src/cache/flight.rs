//! One request to Rails for each key, however many callers wait for it (single-flight).
//!
//! The first caller to miss becomes the leader, and the others follow and wait for its outcome. The outcome is
//! only ever a stored entry or the news that there is none: an answer that could not be stored was for the
//! leader alone, and each follower asks Rails by itself.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::entry::{Entry, Hit};
use super::key::Key;
use crate::progress::Progress;

/// How a flight ended, for its followers.
#[derive(Clone, Debug)]
pub enum FillOutcome {
    /// The answer is stored, and every follower may have it.
    Stored(Arc<Entry>),
    /// Rails did not answer; asking again at once would not help. With the error as it is logged.
    Failed(FillError, Arc<str>),
    /// Rails answered, but not with something that can be shared.
    NotShared,
}

/// Why a flight brought no answer at all, for the leader and the followers alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillError {
    /// Rails cannot be reached.
    Unreachable,
    /// Rails did not answer in time.
    Timeout,
    /// Rails closed the connection instead of answering, and did so again.
    Broken,
    /// It was not sent, since Rails has as much to do as it may have.
    NotSent,
    /// Rails did not answer in time, while it answered others.
    Slow,
}

/// The role of a caller after a cache miss.
#[derive(Debug)]
pub(super) enum FlightRole {
    /// No role: another caller was faster, and the entry is there.
    Hit(Hit),
    Leader(Flight),
    Follower(FillWaiter),
}

/// The flights under way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    waiters: Mutex<HashMap<Key, FillWaiter>>,
}

impl Flights {
    /// Joins the flight for `key`; if there is none, and no entry either, registers a new one of `generation`.
    /// That fences off one of before `joinable_from`.
    pub(super) fn join(
        &self,
        key: &Key,
        (generation, joinable_from): (u64, u64),
        lookup: impl FnOnce() -> Option<Hit>,
    ) -> FlightRole {
        let mut waiters = self.waiters.lock();
        if let Some(waiter) = waiters.get(key).filter(|waiter| waiter.generation >= joinable_from) {
            return FlightRole::Follower(waiter.clone());
        }
        if let Some(hit) = lookup() {
            return FlightRole::Hit(hit);
        }
        let flight = Flight::new(generation);
        waiters.insert(key.clone(), flight.waiter());
        FlightRole::Leader(flight)
    }

    /// Ends the registration of the flight for `key`, so that what it brings is not stored, and runs
    /// `invalidate` before any flight can store.
    pub(super) fn fence_off(&self, key: &Key, invalidate: impl FnOnce()) {
        let mut waiters = self.waiters.lock();
        waiters.remove(key);
        invalidate();
    }

    /// Fences off every flight whose key matches.
    pub(super) fn fence_off_matching(&self, is_match: impl Fn(&Key) -> bool) {
        self.waiters.lock().retain(|key, _| !is_match(key));
    }

    /// Ends the registration of `flight`, and runs `complete` before any other flight for `key` can begin.
    /// `None`, without having run it, if the flight was fenced off.
    pub(super) fn unregister<T>(
        &self,
        key: &Key,
        flight: &Flight,
        complete: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut waiters = self.waiters.lock();
        let is_registered = waiters.get(key).is_some_and(|waiter| flight.is_awaited_by(waiter));
        is_registered.then(|| {
            waiters.remove(key);
            complete()
        })
    }

    pub(super) fn len(&self) -> usize {
        self.waiters.lock().len()
    }
}

/// The leader's end of a flight. Dropping it tells the followers that there is nothing to share.
#[derive(Debug)]
pub(super) struct Flight {
    outcome: watch::Sender<Option<FillOutcome>>,
    progress: Arc<Progress>,
    generation: u64,
}

impl Flight {
    fn new(generation: u64) -> Self {
        Self { outcome: watch::Sender::new(None), progress: Arc::default(), generation }
    }

    fn waiter(&self) -> FillWaiter {
        let (outcome, progress) = (self.outcome.subscribe(), Arc::clone(&self.progress));
        FillWaiter { outcome, progress, generation: self.generation }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    fn is_awaited_by(&self, waiter: &FillWaiter) -> bool {
        Arc::ptr_eq(&self.progress, &waiter.progress)
    }

    /// Tells the followers.
    pub(super) fn end(&self, outcome: FillOutcome) {
        self.outcome.send_replace(Some(outcome));
    }

    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }
}

/// A follower's end of a flight.
#[derive(Clone, Debug)]
pub struct FillWaiter {
    outcome: watch::Receiver<Option<FillOutcome>>,
    progress: Arc<Progress>,
    generation: u64,
}

impl FillWaiter {
    /// How far the leader's request to Rails has come.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Waits for as long as the flight takes, without a limit.
    pub async fn outcome(mut self) -> FillOutcome {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(FillOutcome::NotShared),
            // The leader has dropped its end.
            Err(_) => FillOutcome::NotShared,
        }
    }
}
