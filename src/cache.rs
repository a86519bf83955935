//! Answers of Rails, kept for as long as the operator allows.
//!
//! [`freshness`] decides what may be stored and for how long, [`key`] under which key; this module
//! keeps it in memory. moka bounds the memory, and nothing else: whether an entry is still usable is
//! read off the entry itself, by the clock that the caller passes in.
//!
//! [`ages`] says what an answer may be used for at which age; [`outage`] knows whether Rails fails.
//!
//! Two fences keep a wrong answer out. A *flight* (one request to Rails for a key that many wait
//! for) may store only while it is registered, and an invalidation or a [`purge`] fences it off; both
//! happen under one lock. A *generation* on every entry makes whatever began before a flush unusable.

pub mod ages;
mod bounds;
mod counts;
pub mod entry;
pub mod flight;
pub mod freshness;
pub mod inspect;
pub mod key;
pub mod outage;
pub mod purge;
pub mod shadow;
pub mod snapshot;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache as Moka;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

pub use self::ages::{Freshness, Lifetime, Lifetimes};
use self::bounds::{StoreLimits, build_store, entry_bytes};
pub use self::counts::{CacheCounters, RefreshOutcome};
use self::entry::HeaderInterner;
pub use self::entry::{Entry, EntryKind};
use self::flight::Flights;
pub use self::flight::{FillError, FillGuard, FillOutcome, FillWaiter, LeaderOrFollower};
pub use self::freshness::NoStoreReason;
pub use self::key::Key;
use self::outage::Outage;
use self::shadow::{Shadow, ShadowSettings};
use crate::clock::Clock;
use crate::route::Caching;

/// Section `[cache]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// The most positive entries.
    pub max_entries: u64,
    /// The most negative entries (unknown keys, `null` users), in addition.
    pub max_negative_entries: u64,
    /// Bytes of memory for all entries, with what is needed beside their bodies. A tenth of it is for
    /// the negative ones.
    pub max_bytes: usize,
    /// Bytes of the largest body that is stored.
    pub max_body: usize,
    /// How long a caller waits for another caller's request to Rails before it sends its own. As long
    /// as Rails has for an answer, or all waiting callers would ask a slow Rails.
    pub wait: Duration,
    /// How long a caller waits for Rails when a stale answer is at hand.
    pub stale_wait: Duration,
    /// How many stale answers may be refreshed in the background at the same time.
    pub max_refreshes: usize,
    /// The file in which the cache survives a restart, if any.
    pub snapshot: Option<PathBuf>,
    /// Which cached answers are compared with Rails.
    pub shadow: ShadowSettings,
    /// How long answers stay usable.
    pub lifetimes: Lifetimes,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            max_negative_entries: 100_000,
            max_bytes: 2 << 30,
            max_body: 64 * 1024,
            wait: Duration::from_secs(60),
            stale_wait: Duration::from_secs(3),
            max_refreshes: 16,
            snapshot: None,
            shadow: ShadowSettings::default(),
            lifetimes: Lifetimes::default(),
        }
    }
}

type Store = Moka<Key, Arc<Entry>, foldhash::fast::RandomState>;

/// The entries, the flights that fill them, and the fences between the two.
#[derive(Debug)]
pub struct Cache {
    positive: Store,
    /// A store of its own: scans for unknown keys must not push out the known ones.
    negative: Store,
    limits: [StoreLimits; 2],
    flights: Flights,
    /// By endpoint.
    outages: [Outage; 3],
    refresh_permits: Arc<Semaphore>,
    shadow: Shadow,
    blocking_tasks: TaskTracker,
    header_interner: HeaderInterner,
    generation: AtomicU64,
    counters: Arc<CacheCounters>,
    /// For expiry dates, which are wall-clock times; callers pass the time for ages.
    clock: Clock,
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

/// A usable entry.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The answer.
    pub entry: Arc<Entry>,
    /// What it may be used for.
    pub freshness: Freshness,
}

impl Cache {
    /// An empty cache on the system clock.
    pub fn new(settings: &CacheSettings) -> Arc<Self> {
        Self::with_clock(settings, Clock::System)
    }

    /// An empty cache on another wall clock than the machine's.
    pub fn with_clock(settings: &CacheSettings, clock: Clock) -> Arc<Self> {
        let counters = Arc::new(CacheCounters::default());
        let negative_bytes = settings.max_bytes as u64 / 10;
        let positive = StoreLimits::new(settings.max_entries, settings.max_bytes as u64 - negative_bytes);
        let negative = StoreLimits::new(settings.max_negative_entries, negative_bytes);
        Arc::new(Self {
            positive: build_store(EntryKind::Positive, positive, &settings.lifetimes, &counters),
            negative: build_store(EntryKind::Negative, negative, &settings.lifetimes, &counters),
            limits: [positive, negative],
            flights: Flights::default(),
            outages: Default::default(),
            refresh_permits: Arc::new(Semaphore::new(settings.max_refreshes)),
            shadow: Shadow::new(settings.shadow),
            blocking_tasks: TaskTracker::new(),
            header_interner: HeaderInterner::default(),
            generation: AtomicU64::new(0),
            counters,
            clock,
        })
    }

    /// The answer for `key`, if there is one that is usable at `now`.
    pub fn lookup(&self, key: &Key, now: Instant) -> Option<Hit> {
        [&self.positive, &self.negative].into_iter().find_map(|store| {
            let entry = store.get(key)?;
            let freshness = self.freshness(&entry, now)?;
            Some(Hit { entry, freshness })
        })
    }

    fn freshness(&self, entry: &Entry, now: Instant) -> Option<Freshness> {
        entry.freshness(now, self.generation()).filter(|_| !self.has_expired(entry))
    }

    /// Whether the expiry date in the answer has passed by the wall clock, so that it must not be served,
    /// however young it is. [`Self::lookup`] has checked it already.
    pub fn has_expired(&self, entry: &Entry) -> bool {
        entry.has_expired(|| self.clock.unix_seconds())
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Joins the flight for `key`, or begins it. Looks once more under the lock, so that of any
    /// number of callers who missed, exactly one becomes the leader.
    pub fn lead_or_follow(self: &Arc<Self>, key: &Key, now: Instant) -> LeaderOrFollower {
        self.flights.lead_or_follow(key, || self.lookup_fresh(key, now), || self.fill_guard(key, now))
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

    fn lookup_fresh(&self, key: &Key, now: Instant) -> Option<Hit> {
        self.lookup(key, now).filter(|hit| hit.freshness == Freshness::Fresh)
    }

    /// The outage state of an endpoint. One endpoint that fails alone says nothing of the others.
    pub fn outage(&self, caching: Caching) -> &Outage {
        let [keys, users, instance] = &self.outages;
        match caching {
            Caching::AuthorizedKeys => keys,
            Caching::Discover => users,
            Caching::Check | Caching::Never => instance,
        }
    }

    /// The comparison of cached answers with Rails.
    pub fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    fn fill_guard(self: &Arc<Self>, key: &Key, now: Instant) -> FillGuard {
        FillGuard::new(Arc::clone(self), key.clone(), now, self.generation())
    }

    /// Drops the answer for `key` and fences off the flight that may be under way for it.
    pub fn invalidate(&self, key: &Key) {
        self.flights.fence_off(key, || self.remove(key));
    }

    fn remove(&self, key: &Key) {
        self.positive.invalidate(key);
        self.negative.invalidate(key);
    }

    /// Drops everything, and every answer that is on its way.
    pub fn invalidate_all(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.positive.invalidate_all();
        self.negative.invalidate_all();
    }

    /// Whether an entry would fit into its store if that were empty.
    fn fits_into_store(&self, key: &Key, entry: &Entry) -> bool {
        let limits = self.limits.get(entry.kind as usize);
        limits.is_some_and(|limits| entry_bytes(key, entry) <= limits.max_weight)
    }

    /// Called by a fill guard, under the lock of its flight.
    fn insert(&self, key: Key, entry: Arc<Entry>) {
        if let Some(stored) = self.counters.stored.get(entry.kind as usize) {
            stored.fetch_add(1, Ordering::Relaxed);
        }
        self.insert_uncounted(key, entry);
    }

    fn insert_uncounted(&self, key: Key, entry: Arc<Entry>) {
        let (store, other) = match entry.kind {
            EntryKind::Positive => (&self.positive, &self.negative),
            EntryKind::Negative => (&self.negative, &self.positive),
        };
        other.invalidate(&key);
        if let Some(bytes) = self.counters.bytes.get(entry.kind as usize) {
            bytes.fetch_add(entry_bytes(&key, &entry), Ordering::Relaxed);
        }
        store.insert(key, entry);
    }

    /// Runs `work` on a blocking thread: going through a million entries takes seconds.
    pub fn run_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (cache, token) = (Arc::clone(self), self.blocking_tasks.token());
        tokio::task::spawn_blocking(move || {
            let result = work(&cache);
            drop(token);
            result
        })
    }

    /// Waits for all of [`Self::run_blocking`], including those whose join handle was dropped.
    pub async fn wait_for_blocking_tasks(&self) {
        self.blocking_tasks.close();
        self.blocking_tasks.wait().await;
    }

    /// Lets moka do its housekeeping, which otherwise waits for the next look-up.
    pub fn run_maintenance(&self) {
        self.positive.run_pending_tasks();
        self.negative.run_pending_tasks();
    }

    /// The approximate number of entries: positive, negative.
    pub fn entry_counts(&self) -> [u64; 2] {
        [self.positive.entry_count(), self.negative.entry_count()]
    }

    /// For the metrics.
    pub fn counters(&self) -> &CacheCounters {
        &self.counters
    }

    /// Counts a refresh that has ended.
    pub fn count_refresh(&self, outcome: RefreshOutcome) {
        if let Some(count) = self.counters.refreshes.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many keys are being filled now.
    pub fn fills_in_flight(&self) -> usize {
        self.flights.len()
    }
}

#[cfg(test)]
mod tests;
