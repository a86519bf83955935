//! Answers of Rails, kept for as long as the operator allows.
//!
//! [`storable`] decides what may be stored and for how long, [`Key`] under which key; this module
//! keeps it in memory. moka bounds the memory, and nothing else: whether an entry is still usable is
//! read off the entry itself, by the clock that the caller passes in.
//!
//! [`Lifetimes`] say what an answer may be used for at which age; [`outage`] knows whether Rails fails.
//!
//! Two fences keep a wrong answer out. A *flight* (one request to Rails for a key that many wait
//! for) may store only while it is registered, and an invalidation or a [`purge`] fences it off; both
//! happen under one lock. A *generation* on every entry makes whatever began before a flush unusable, and what
//! began before a purge may have been missed doubted (`trust`).

mod compact;
mod counters;
mod entry;
pub mod fill;
mod flight;
mod headers;
pub mod inspect;
mod key;
mod kind;
mod lifetimes;
pub mod outage;
pub mod purge;
pub mod refusal;
mod settings;
pub mod shadow;
pub mod snapshot;
pub mod storable;
mod store;
mod trust;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

pub use self::counters::{CacheCounters, RefreshOutcome};
pub use self::entry::{Entry, Hit};
use self::flight::Flights;
pub use self::flight::{FillError, FillOutcome, FillWaiter};
use self::headers::HeaderInterner;
pub use self::headers::replayed_headers;
pub use self::key::Key;
pub use self::kind::EntryKind;
pub use self::lifetimes::{AgeLimits, Freshness, Lifetime, Lifetimes};
use self::outage::Outage;
pub use self::settings::CacheSettings;
use self::shadow::Shadow;
use self::store::{Store, StoreLimits, build_store, entry_bytes};
use self::trust::Trust;
use crate::clock::Clock;
use crate::route::Caching;

/// Between two log lines on refusals in unknown words.
const DOUBT_LOG_INTERVAL: Duration = Duration::from_secs(60);

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
    trust: Trust,
    counters: Arc<CacheCounters>,
    /// When a refusal in unknown words was logged last.
    doubt_logged: Mutex<Option<Instant>>,
    /// For expiry dates, which are wall-clock times; callers pass the time for ages.
    clock: Clock,
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
            outages: [Caching::AuthorizedKeys, Caching::Discover, Caching::Check].map(Outage::new),
            refresh_permits: Arc::new(Semaphore::new(settings.max_refreshes)),
            shadow: Shadow::new(settings.shadow),
            blocking_tasks: TaskTracker::new(),
            header_interner: HeaderInterner::default(),
            trust: Trust::default(),
            counters,
            doubt_logged: Mutex::default(),
            clock,
        })
    }

    /// How long entries are kept that nothing asks for, by kind.
    pub fn max_ages(&self) -> [Duration; 2] {
        [&self.positive, &self.negative].map(|store| store.policy().time_to_idle().unwrap_or(Duration::MAX))
    }

    /// The answer for `key`, if there is one that is usable at `now`.
    pub fn lookup(&self, key: &Key, now: Instant) -> Option<Hit> {
        [&self.positive, &self.negative].into_iter().find_map(|store| {
            let entry = store.get(key)?;
            let age = entry.age(now);
            let (freshness, age_limits) = self.freshness(&entry, age)?;
            Some(Hit { entry, age, freshness, age_limits })
        })
    }

    /// What an entry of this age may be used for, and up to which ages; `None` if for nothing any more.
    fn freshness(&self, entry: &Entry, age: Duration) -> Option<(Freshness, AgeLimits)> {
        let age_limits = entry.age_limits();
        let usable = if self.trust.is_trusted(entry.generation) {
            (age_limits.freshness(age)?, age_limits)
        } else {
            let age_limits = self.trust.limit(entry.generation, age_limits)?;
            (trust::untrusted(age_limits.freshness(age)?), age_limits)
        };
        Some(usable).filter(|_| !self.has_expired(entry))
    }

    /// Whether the expiry date in the answer has passed by the wall clock, so that it must not be served,
    /// however young it is. [`Self::lookup`] has checked it already.
    pub fn has_expired(&self, entry: &Entry) -> bool {
        entry.has_expired(|| self.clock.unix_seconds())
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

    /// Drops the answer for `key` and fences off the flight that may be under way for it.
    pub fn invalidate(&self, key: &Key) {
        self.flights.fence_off(key, || self.remove(key));
    }

    /// Something has refused what was asked for, with this status, in words that are not known. A kept answer is
    /// no longer used if Rails fails.
    pub fn doubt(&self, key: &Key, status: StatusCode, now: Instant) {
        let Some(entry) = self.positive.get(key) else { return };
        entry.mark_doubtful();
        let mut logged = self.doubt_logged.lock();
        if logged.is_some_and(|logged| now < logged + DOUBT_LOG_INTERVAL) {
            return;
        }
        *logged = Some(now);
        drop(logged);
        let _span = crate::request_span::current().entered();
        tracing::warn!(
            route = key.caching().as_str(),
            status = status.as_u16(),
            "a refusal in unknown words, of Rails or of something in front of it; what is kept is not used if Rails fails"
        );
    }

    fn remove(&self, key: &Key) {
        self.positive.invalidate(key);
        self.negative.invalidate(key);
    }

    /// Drops everything, and every answer that is on its way.
    pub fn invalidate_all(&self) {
        self.trust.flush();
        // Whoever asks from now on does not wait for them.
        self.flights.fence_off_matching(|_| true);
        self.positive.invalidate_all();
        self.negative.invalidate_all();
    }

    /// A purge may have been missed: what Rails was asked for before is used only if Rails fails, and is not
    /// refreshed behind a caller's back. Negative answers become unusable. Callers who come later do not wait
    /// for flights that are under way; what those bring is stored as doubted, unless another flight for the
    /// same key has begun.
    pub fn doubt_all(&self) {
        self.trust.doubt();
    }

    /// With `Some`, purges are not heard of from now on: answers are fresh for no longer than that since Rails
    /// was asked, and beyond that as if [doubted](Self::doubt_all). With `None`, they are: what is stored is
    /// trusted as before, unless a doubt has come meanwhile.
    pub fn set_alone(&self, alone_ttl: Option<Duration>) {
        self.trust.set_alone(alone_ttl);
    }

    /// Whether purges are not heard of now.
    pub fn is_alone(&self) -> bool {
        self.trust.is_alone()
    }

    /// Whether nothing but its age limits an entry.
    pub fn is_trusted(&self, entry: &Entry) -> bool {
        self.trust.is_trusted(entry.generation)
    }

    /// Whether an entry would fit into its store if that were empty.
    fn fits_into_store(&self, key: &Key, entry: &Entry) -> bool {
        let limits = self.limits.get(entry.kind as usize);
        limits.is_some_and(|limits| entry_bytes(key, entry) <= limits.max_weight)
    }

    /// Called by a fill guard, under the lock of its flight.
    fn insert(&self, key: Key, entry: Arc<Entry>) {
        self.counters.stored.increment(entry.kind);
        self.insert_uncounted(key, entry);
    }

    fn insert_uncounted(&self, key: Key, entry: Arc<Entry>) {
        let (store, other) = match entry.kind {
            EntryKind::Positive => (&self.positive, &self.negative),
            EntryKind::Negative => (&self.negative, &self.positive),
        };
        other.invalidate(&key);
        self.counters.bytes.add(entry.kind, entry_bytes(&key, &entry));
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
        self.counters.refreshes.increment(outcome);
    }

    /// How many keys are being filled now.
    pub fn fills_in_flight(&self) -> usize {
        self.flights.len()
    }
}

#[cfg(test)]
mod tests;
