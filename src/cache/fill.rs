//! Filling an entry: which caller asks Rails, and how the answer is stored.
//!
//! The leader of a flight gets a [`FillGuard`]. It is held by a task of its own, so the fill does not end when
//! the leader hangs up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::{HeaderMap, StatusCode};
use tokio::sync::OwnedSemaphorePermit;

use super::Cache;
use super::entry::{Entry, Hit};
use super::flight::{FillError, FillOutcome, FillWaiter, Flight, FlightRole};
use super::key::Key;
use super::lifetimes::Freshness;
use super::storable::{NoStoreReason, Storable};
use crate::progress::Progress;

/// The role of a caller after a cache miss, with its task.
#[derive(Debug)]
pub enum LeaderOrFollower {
    /// Another caller was faster: the entry is there.
    Hit(Hit),
    /// Ask Rails, and complete the fill.
    Leader(FillGuard),
    /// Wait for the leader.
    Follower(FillWaiter),
}

/// Whether the caller may refresh a stale answer.
#[derive(Debug)]
pub enum RefreshAttempt {
    /// Ask Rails, complete the fill, then drop the permit.
    Started(FillGuard, OwnedSemaphorePermit),
    /// Another caller is refreshing it, or has done so.
    NotNeeded,
    /// `max_refreshes` are running already.
    LimitReached,
}

impl Cache {
    /// Joins the flight for `key`, or begins it. Looks once more under the lock, so that of any
    /// number of callers who missed, exactly one becomes the leader.
    pub fn lead_or_follow(self: &Arc<Self>, key: &Key, now: Instant) -> LeaderOrFollower {
        match self.flights.join(key, self.trust.begin_flight(), || self.lookup_fresh(key, now)) {
            FlightRole::Hit(hit) => LeaderOrFollower::Hit(hit),
            FlightRole::Follower(waiter) => LeaderOrFollower::Follower(waiter),
            FlightRole::Leader(flight) => LeaderOrFollower::Leader(FillGuard {
                cache: Arc::clone(self),
                key: key.clone(),
                requested_at: now,
                flight,
            }),
        }
    }

    fn lookup_fresh(&self, key: &Key, now: Instant) -> Option<Hit> {
        self.lookup(key, now).filter(|hit| hit.freshness == Freshness::Fresh)
    }

    /// The right to refresh a stale answer: for one caller, unless a flight for it is under way, and not for
    /// too many keys at the same time.
    pub fn try_refresh(self: &Arc<Self>, key: &Key, now: Instant) -> RefreshAttempt {
        let Ok(permit) = Arc::clone(&self.refresh_permits).try_acquire_owned() else {
            return RefreshAttempt::LimitReached;
        };
        match self.lead_or_follow(key, now) {
            LeaderOrFollower::Leader(guard) => RefreshAttempt::Started(guard, permit),
            LeaderOrFollower::Hit(_) | LeaderOrFollower::Follower(_) => RefreshAttempt::NotNeeded,
        }
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
    flight: Flight,
}

impl FillGuard {
    /// Stores an answer and shares it with the followers, unless an invalidation came since
    /// Rails was asked.
    pub fn store(
        self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        storable: Storable,
    ) -> Result<(), NoStoreReason> {
        let requested_at = self.requested_at;
        self.store_older(requested_at, (status, headers, body), storable).map(drop)
    }

    /// The same with an answer for which another gateway has asked Rails, at `requested_at`. Returns the entry.
    pub fn store_older(
        self,
        requested_at: Instant,
        (status, headers, body): (StatusCode, &HeaderMap, &[u8]),
        storable: Storable,
    ) -> Result<Arc<Entry>, NoStoreReason> {
        let context = (&self.cache.header_interner, self.flight.generation());
        let entry = Arc::new(Entry::new(status, headers, body, storable, requested_at, context));
        if !self.cache.fits_into_store(&self.key, &entry) {
            self.drop_entry();
            return Err(NoStoreReason::TooLarge);
        }
        let stored = self.cache.flights.unregister(&self.key, &self.flight, || {
            let is_current = self.cache.trust.is_usable(self.flight.generation());
            if is_current {
                self.cache.insert(self.key.clone(), Arc::clone(&entry));
            }
            is_current
        });
        if stored != Some(true) {
            self.cache.counters.fenced.fetch_add(1, Ordering::Relaxed);
            return Err(NoStoreReason::Fenced);
        }
        self.flight.end(FillOutcome::Stored(Arc::clone(&entry)));
        Ok(entry)
    }

    /// Rails gave an answer that is not stored, so the entry does not say what Rails says any
    /// more: drops it, unless an invalidation came since Rails was asked, and others may have asked.
    pub fn drop_entry(self) {
        self.cache.flights.unregister(&self.key, &self.flight, || self.cache.remove(&self.key));
    }

    /// It was refused with this status in unknown words: [`Cache::doubt`].
    pub fn doubt_entry(self, status: StatusCode, now: Instant) {
        self.cache.doubt(&self.key, status, now);
    }

    /// Tells the followers that Rails did not answer. `text` says in full why, for their log lines.
    pub fn fail(self, error: FillError, text: Arc<str>) {
        self.unregister();
        self.flight.end(FillOutcome::Failed(error, text));
    }

    fn unregister(&self) {
        self.cache.flights.unregister(&self.key, &self.flight, || ());
    }

    /// When Rails was asked.
    pub fn requested_at(&self) -> Instant {
        self.requested_at
    }

    /// How far the request to Rails has come.
    pub fn progress(&self) -> &Arc<Progress> {
        self.flight.progress()
    }

    /// What Rails is asked for.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        self.unregister();
    }
}
