//! Answers that Rails gave, kept for as long as the operator allows.
//!
//! What may be kept and for how long is decided in [`freshness`], under which name in [`key`];
//! here is where they meet memory. moka bounds the memory, and nothing else: whether an entry is
//! still good is read off the entry itself, by the clock that the caller passes in.
//!
//! For how long an answer is good for what is decided in [`ages`]; whether Rails fails, [`outage`] knows.
//!
//! Two fences keep a wrong answer out. A *flight* (one request to Rails for a key that many wait
//! for) may store only while it is registered, and an invalidation or a [`purge`] strikes it off; both
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

pub use self::ages::{Lifetime, Lifetimes, Phase};
use self::bounds::{Bounds, memory, store};
pub use self::counts::{Counts, Refreshed};
use self::entry::Heads;
pub use self::entry::{Entry, Sign};
use self::flight::Flights;
pub use self::flight::{Boarding, Landed, Lease, Trouble, Wait};
pub use self::freshness::NoStore;
pub use self::key::Key;
use self::outage::Outage;
use self::shadow::Shadow;
use crate::clock::Clock;
use crate::route::Caching;

/// What `[cache]` of the configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many positive entries there may be.
    pub max_entries: u64,
    /// How many negative entries (unknown keys, `null` users) there may be beside them.
    pub max_negative_entries: u64,
    /// Bytes of memory for all of them, with what is needed beside their bodies. A tenth of it is for
    /// the negative ones.
    pub max_bytes: usize,
    /// Bytes of the largest body that is kept.
    pub max_body: usize,
    /// How long a caller waits for somebody else's request to Rails before it asks by itself. As
    /// long as Rails has for an answer, or a slow Rails would be asked by the whole crowd.
    pub wait: Duration,
    /// How long a caller waits for Rails when a stale answer is at hand.
    pub stale_wait: Duration,
    /// For how many stale answers Rails may be asked behind the callers' backs at one time.
    pub max_refreshes: usize,
    /// The file in which the cache outlives a restart, if any.
    pub snapshot: Option<PathBuf>,
    /// How many answers are compared with Rails.
    pub shadow: shadow::Settings,
    /// How long answers stay good.
    pub lifetimes: Lifetimes,
}

impl Default for Settings {
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
            shadow: shadow::Settings::default(),
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
    bounds: [Bounds; 2],
    flights: Flights,
    /// By endpoint.
    outages: [Outage; 3],
    refreshes: Arc<Semaphore>,
    shadow: Shadow,
    /// Whoever looks through all entries.
    searches: TaskTracker,
    heads: Heads,
    generation: AtomicU64,
    counts: Arc<Counts>,
    /// For what ends at a time of the wall clock; ages are told by those who ask.
    clock: Clock,
}

/// Whether somebody is to renew a stale answer.
#[derive(Debug)]
pub enum Refresh {
    /// Ask Rails, land the lease, and drop the permit.
    Begun(Lease, OwnedSemaphorePermit),
    /// Somebody does already, or has done.
    Unneeded,
    /// Rails is being asked for as many as it may be.
    TooMany,
}

/// An entry that is good for something.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The answer.
    pub entry: Arc<Entry>,
    /// For what.
    pub phase: Phase,
}

impl Cache {
    /// An empty cache.
    pub fn new(settings: &Settings) -> Arc<Self> {
        Self::with_clock(settings, Clock::System)
    }

    /// The same with another wall clock than the machine's.
    pub fn with_clock(settings: &Settings, clock: Clock) -> Arc<Self> {
        let counts = Arc::new(Counts::default());
        let for_negative = settings.max_bytes as u64 / 10;
        let positive = Bounds::new(settings.max_entries, settings.max_bytes as u64 - for_negative);
        let negative = Bounds::new(settings.max_negative_entries, for_negative);
        Arc::new(Self {
            positive: store(Sign::Positive, positive, &settings.lifetimes, &counts),
            negative: store(Sign::Negative, negative, &settings.lifetimes, &counts),
            bounds: [positive, negative],
            flights: Flights::default(),
            outages: Default::default(),
            refreshes: Arc::new(Semaphore::new(settings.max_refreshes)),
            shadow: Shadow::new(settings.shadow),
            searches: TaskTracker::new(),
            heads: Heads::default(),
            generation: AtomicU64::new(0),
            counts,
            clock,
        })
    }

    /// The answer for `key`, if there is one that is good for anything at `now`.
    pub fn lookup(&self, key: &Key, now: Instant) -> Option<Hit> {
        [&self.positive, &self.negative].into_iter().find_map(|store| {
            let entry = store.get(key)?;
            let phase = self.phase(&entry, now)?;
            Some(Hit { entry, phase })
        })
    }

    fn phase(&self, entry: &Entry, now: Instant) -> Option<Phase> {
        entry.phase(now, self.generation()).filter(|_| !self.has_ended(entry))
    }

    /// Whether what an entry tells of has ended by the wall clock, so that it must not be given, however
    /// young it is: an answer of [`Self::lookup`] has not.
    pub fn has_ended(&self, entry: &Entry) -> bool {
        entry.has_ended(|| self.clock.unix_seconds())
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Joins the flight for `key`, or begins it. Looks once more under the lock, so that of any
    /// number of callers who missed, exactly one is told to ask Rails.
    pub fn board(self: &Arc<Self>, key: &Key, now: Instant) -> Boarding {
        self.flights.board(key, || self.fresh(key, now), || self.lease(key, now))
    }

    /// The right to renew a stale answer: for one caller, as long as nobody asks already, and not for
    /// too many keys at one time.
    pub fn refresh(self: &Arc<Self>, key: &Key, now: Instant) -> Refresh {
        let Ok(permit) = Arc::clone(&self.refreshes).try_acquire_owned() else { return Refresh::TooMany };
        match self.board(key, now) {
            Boarding::Lead(lease) => Refresh::Begun(lease, permit),
            Boarding::Hit(_) | Boarding::Follow(_) => Refresh::Unneeded,
        }
    }

    fn fresh(&self, key: &Key, now: Instant) -> Option<Hit> {
        self.lookup(key, now).filter(|hit| hit.phase == Phase::Fresh)
    }

    /// Whether Rails fails to answer for an endpoint. One that fails alone says nothing of the others.
    pub fn outage(&self, caching: Caching) -> &Outage {
        let [keys, users, instance] = &self.outages;
        match caching {
            Caching::AuthorizedKeys => keys,
            Caching::Discover => users,
            Caching::Check | Caching::Never => instance,
        }
    }

    /// Whether what is kept is what Rails says.
    pub fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    fn lease(self: &Arc<Self>, key: &Key, now: Instant) -> Lease {
        Lease::new(Arc::clone(self), key.clone(), now, self.generation())
    }

    /// Drops the answer for `key` and strikes off the flight that may be under way for it.
    pub fn invalidate(&self, key: &Key) {
        self.flights.strike(key, || self.remove(key));
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
    fn has_room_for(&self, key: &Key, entry: &Entry) -> bool {
        let bounds = self.bounds.get(entry.sign as usize);
        bounds.is_some_and(|bounds| memory(key, entry) <= bounds.capacity)
    }

    /// Called by a lease, under the lock of its flight.
    fn insert(&self, key: Key, entry: Arc<Entry>) {
        if let Some(stored) = self.counts.stored.get(entry.sign as usize) {
            stored.fetch_add(1, Ordering::Relaxed);
        }
        self.put(key, entry);
    }

    fn put(&self, key: Key, entry: Arc<Entry>) {
        let (store, other) = match entry.sign {
            Sign::Positive => (&self.positive, &self.negative),
            Sign::Negative => (&self.negative, &self.positive),
        };
        other.invalidate(&key);
        if let Some(bytes) = self.counts.bytes.get(entry.sign as usize) {
            bytes.fetch_add(memory(&key, &entry), Ordering::Relaxed);
        }
        store.insert(key, entry);
    }

    /// Looks through all entries, or many, on a thread of its own: of a million, it takes seconds.
    pub fn on_a_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (cache, token) = (Arc::clone(self), self.searches.token());
        tokio::task::spawn_blocking(move || {
            let done = work(&cache);
            drop(token);
            done
        })
    }

    /// Waits until nobody does, whoever may have left that began it.
    pub async fn is_quiet(&self) {
        self.searches.close();
        self.searches.wait().await;
    }

    /// Lets moka do its housekeeping, which otherwise waits for the next look-up.
    pub fn upkeep(&self) {
        self.positive.run_pending_tasks();
        self.negative.run_pending_tasks();
    }

    /// How many entries there are, about: positive, negative.
    pub fn entry_counts(&self) -> [u64; 2] {
        [self.positive.entry_count(), self.negative.entry_count()]
    }

    /// What happened to entries so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Counts a refresh that has come to its end.
    pub fn refreshed(&self, how: Refreshed) {
        if let Some(count) = self.counts.refreshes.get(how as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many keys are being asked for right now.
    pub fn flights(&self) -> usize {
        self.flights.len()
    }
}

#[cfg(test)]
mod tests;
