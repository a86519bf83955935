//! One request to Rails for each key, however many callers wait for it (single-flight).
//!
//! The first caller to miss becomes the leader and gets a [`FillGuard`]; the others follow and wait for
//! its outcome. The guard is held by a task of its own, so the fill does not end when the leader
//! hangs up. The outcome is only ever a stored entry or the news that there is none: an answer that could
//! not be stored was meant for the leader alone, and each follower asks Rails by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::entry::Entry;
use super::freshness::{NoStoreReason, Storable};
use super::key::Key;
use super::{Cache, Hit};
use crate::progress::Progress;

/// How a flight ended, for its followers.
#[derive(Clone, Debug)]
pub enum FillOutcome {
    /// The answer is stored, and every follower may have it.
    Stored(Arc<Entry>),
    /// Rails did not answer; asking again at once would not help.
    Failed(FillError),
    /// Rails answered, but not with something that can be shared.
    NotShared,
}

/// Why a flight brought no answer at all, whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillError {
    /// Rails cannot be reached.
    Unreachable,
    /// Rails did not answer in time.
    Timeout,
    /// Rails closed the connection instead of answering, and did so again.
    Broken,
    /// It was not sent, since Rails has as much to do as it may have.
    Busy,
    /// Rails did not answer in time, while it answered others.
    Slow,
}

/// What a caller who missed has to do.
#[derive(Debug)]
pub enum LeaderOrFollower {
    /// Another caller was faster: the entry is there.
    Hit(Hit),
    /// Ask Rails, and complete the fill.
    Leader(FillGuard),
    /// Wait for the leader.
    Follower(FillWaiter),
}

/// The flights under way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    waiters: Mutex<HashMap<Key, FillWaiter>>,
}

impl Flights {
    pub(super) fn lead_or_follow(
        &self,
        key: &Key,
        lookup: impl FnOnce() -> Option<Hit>,
        new_guard: impl FnOnce() -> FillGuard,
    ) -> LeaderOrFollower {
        let mut waiters = self.waiters.lock();
        if let Some(waiter) = waiters.get(key) {
            return LeaderOrFollower::Follower(waiter.clone());
        }
        if let Some(hit) = lookup() {
            return LeaderOrFollower::Hit(hit);
        }
        let guard = new_guard();
        waiters.insert(key.clone(), guard.waiter());
        LeaderOrFollower::Leader(guard)
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

    pub(super) fn len(&self) -> usize {
        self.waiters.lock().len()
    }
}

/// The leader's right, and duty, to ask Rails for one key. Dropping it tells the followers that
/// there is nothing to share.
#[derive(Debug)]
pub struct FillGuard {
    cache: Arc<Cache>,
    key: Key,
    /// When Rails was asked: the age of the answer counts from here.
    requested_at: Instant,
    generation: u64,
    outcome: watch::Sender<Option<FillOutcome>>,
    progress: Arc<Progress>,
}

impl FillGuard {
    pub(super) fn new(cache: Arc<Cache>, key: Key, requested_at: Instant, generation: u64) -> Self {
        let (outcome, progress) = (watch::Sender::new(None), Arc::default());
        Self { cache, key, requested_at, generation, outcome, progress }
    }

    fn waiter(&self) -> FillWaiter {
        FillWaiter { outcome: self.outcome.subscribe(), progress: Arc::clone(&self.progress) }
    }

    /// Stores an answer and shares it with the followers, unless an invalidation came since
    /// Rails was asked.
    pub fn store(
        self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        storable: Storable,
    ) -> Result<(), NoStoreReason> {
        let context = (&self.cache.header_interner, self.generation);
        let entry = Arc::new(Entry::new(status, headers, body, storable, self.requested_at, context));
        if !self.cache.fits_into_store(&self.key, &entry) {
            self.drop_entry();
            return Err(NoStoreReason::TooLarge);
        }
        let mut waiters = self.cache.flights.waiters.lock();
        let is_registered = waiters.get(&self.key).is_some_and(|waiter| self.is_own(waiter));
        if !is_registered || self.cache.generation.load(Ordering::Acquire) != self.generation {
            self.cache.counters.fenced.fetch_add(1, Ordering::Relaxed);
            return Err(NoStoreReason::Fenced);
        }
        self.cache.insert(self.key.clone(), Arc::clone(&entry));
        waiters.remove(&self.key);
        drop(waiters);
        self.outcome.send_replace(Some(FillOutcome::Stored(entry)));
        Ok(())
    }

    /// Rails gave an answer that is not stored, so the entry does not say what Rails says any
    /// more: drops it, unless an invalidation came since Rails was asked, and others may have asked.
    pub fn drop_entry(self) {
        let mut waiters = self.cache.flights.waiters.lock();
        if waiters.get(&self.key).is_some_and(|waiter| self.is_own(waiter)) {
            self.cache.remove(&self.key);
            waiters.remove(&self.key);
        }
    }

    /// When Rails was asked.
    pub fn requested_at(&self) -> Instant {
        self.requested_at
    }

    /// How far the request to Rails has come.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// What Rails is asked for.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Tells the followers that Rails did not answer.
    pub fn fail(self, error: FillError) {
        self.unregister();
        self.outcome.send_replace(Some(FillOutcome::Failed(error)));
    }

    fn is_own(&self, waiter: &FillWaiter) -> bool {
        Arc::ptr_eq(&self.progress, &waiter.progress)
    }

    fn unregister(&self) {
        let mut waiters = self.cache.flights.waiters.lock();
        if waiters.get(&self.key).is_some_and(|waiter| self.is_own(waiter)) {
            waiters.remove(&self.key);
        }
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        self.unregister();
        self.outcome.send_if_modified(|outcome| {
            let is_unset = outcome.is_none();
            outcome.get_or_insert(FillOutcome::NotShared);
            is_unset
        });
    }
}

/// Waits for the outcome of a flight.
#[derive(Clone, Debug)]
pub struct FillWaiter {
    outcome: watch::Receiver<Option<FillOutcome>>,
    progress: Arc<Progress>,
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
            Err(_) => FillOutcome::NotShared,
        }
    }
}
