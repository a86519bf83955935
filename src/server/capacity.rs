//! The limit of connections on a listener, and which connection is closed for a new one.
//!
//! Each listener has its own limit, for all threads together. When it is reached, the connection that has
//! been idle for the longest is closed. A quarter of the permits is reserved for trusted peers: those that
//! have shown a credential, and local ones if remote peers can connect, too. Trusted connections are also the
//! last to be closed.
//!
//! Counting trusted connections takes a scan of all connections, since a request with a valid credential
//! only sets a flag in its connection's state. Scans are made only while more than three quarters of the
//! permits are taken, and each scan serves many decisions: it tells how many untrusted connections may still
//! be accepted, and which connections are closed next.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::deadline_timer::now;
use super::registry::{ConnectionRegistry, ConnectionState};

/// The limit of connections on one listener.
#[derive(Debug)]
pub struct Capacity {
    name: String,
    max_connections: usize,
    accepts_remote_peers: bool,
    /// The origin of the times that connections store as nanoseconds.
    started: Instant,
    open: AtomicUsize,
    accepted: AtomicU64,
    evicted: AtomicU64,
    rejected: AtomicU64,
    registries: Mutex<Vec<Arc<ConnectionRegistry>>>,
    eviction: Mutex<EvictionPlan>,
    /// Threads that wait for a permit.
    waiting: AtomicUsize,
    freed: Notify,
    /// When it was last logged that connections cannot be accepted.
    failure_logged: Mutex<Option<Instant>>,
}

/// The result of the last scan, updated by each decision since.
#[derive(Debug, Default)]
struct EvictionPlan {
    /// Untrusted connections are accepted until `accepted` reaches this.
    untrusted_until: u64,
    /// The connections to close, the next one last; each with the time since when it was idle.
    candidates: Vec<(u64, Weak<ConnectionState>)>,
    scanned: Option<Instant>,
    /// When a connection was last evicted or had to wait.
    full: Option<Instant>,
}

/// Untrusted candidates of one scan.
const MAX_CANDIDATES: usize = 256;
/// Trusted candidates of one scan: in a burst of callers, not every one should need a scan.
const MAX_TRUSTED_CANDIDATES: usize = 16;
/// A scan of tens of thousands of connections takes a few hundred microseconds.
const SCAN_INTERVAL: Duration = Duration::from_millis(10);
/// A candidate may have started a request since the scan, or its thread may be busy.
const EVICTION_RETRY: Duration = Duration::from_millis(20);
/// How long a listener has to have room before it is logged again that it is full.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

impl Capacity {
    /// `name` is the listener's label in metrics and log. `accepts_remote_peers`: other machines can reach it.
    pub fn new(name: impl Into<String>, max_connections: usize, accepts_remote_peers: bool) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            max_connections,
            accepts_remote_peers,
            started: now(),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            registries: Mutex::default(),
            eviction: Mutex::default(),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
            failure_logged: Mutex::default(),
        })
    }

    /// The listener's label in metrics and log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connections that may be open at one time.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Idle connections that were closed to make room for others.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Connections that got no permit, and were closed before anything was read from them.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    pub(super) fn count_rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn accepts_remote_peers(&self) -> bool {
        self.accepts_remote_peers
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    pub(super) fn age_at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Scans include the connections of this registry from now on.
    pub(super) fn add_registry(&self, registry: &Arc<ConnectionRegistry>) {
        self.registries.lock().push(Arc::clone(registry));
    }

    /// A permit for an untrusted connection, without waiting.
    pub(super) fn try_acquire(self: &Arc<Self>) -> Option<ConnectionPermit> {
        self.acquire_or_evict(false)
    }

    /// Waits for a permit. `is_local`: the peer is on this machine.
    pub(super) async fn acquire(self: &Arc<Self>, is_local: bool) -> ConnectionPermit {
        let is_trusted = is_local && self.accepts_remote_peers;
        if let Some(permit) = self.try_take(self.untrusted_limit()) {
            return permit;
        }
        let _waiting = WaiterGuard::new(&self.waiting);
        loop {
            let freed = self.freed.notified();
            if let Some(permit) = self.acquire_or_evict(is_trusted) {
                return permit;
            }
            // Then it tries again.
            let _ = tokio::time::timeout(EVICTION_RETRY, freed).await;
        }
    }

    /// Takes a permit, or asks a connection to close.
    fn acquire_or_evict(self: &Arc<Self>, is_trusted: bool) -> Option<ConnectionPermit> {
        if let Some(permit) = self.try_take(self.untrusted_limit()) {
            return Some(permit);
        }
        let (mut eviction, now) = (self.eviction.lock(), now());
        loop {
            let may_enter = is_trusted || self.accepted() < eviction.untrusted_until;
            if may_enter && let Some(permit) = self.try_take(self.max_connections) {
                eviction.untrusted_until += u64::from(is_trusted);
                return Some(permit);
            }
            // An untrusted connection that may not enter evicts no trusted one.
            if let Some(candidate) = eviction.next_candidate(may_enter) {
                candidate.evict();
                break;
            }
            if eviction.scanned.is_some_and(|scanned| now < scanned + SCAN_INTERVAL) {
                break;
            }
            self.scan(&mut eviction, is_trusted);
            eviction.scanned = Some(now);
        }
        let is_first = eviction.full.replace(now).is_none_or(|full| now >= full + WARN_INTERVAL);
        drop(eviction);
        if is_first {
            tracing::warn!(
                listener = self.name,
                connections = self.max_connections,
                "a listener is full; idle connections are closed for new ones"
            );
        }
        None
    }

    /// Takes a permit if fewer than `limit` are taken.
    fn try_take(self: &Arc<Self>, limit: usize) -> Option<ConnectionPermit> {
        let one_more = |open: usize| (open < limit).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionPermit(Arc::clone(self)))
    }

    /// How many connections may be untrusted.
    fn untrusted_limit(&self) -> usize {
        self.max_connections - self.max_connections / 4
    }

    /// Scans all connections. Untrusted ones are evicted first, trusted ones only if no untrusted connection is
    /// idle and all permits are taken.
    fn scan(&self, eviction: &mut EvictionPlan, for_trusted: bool) {
        let (mut untrusted, mut idle, mut trusted) = (0, Vec::new(), Vec::new());
        for registry in &*self.registries.lock() {
            registry.for_each_connection(self, |state| {
                untrusted += usize::from(!state.is_trusted());
                let list = if state.is_trusted() { &mut trusted } else { &mut idle };
                list.extend(state.evictable_since().map(|since| (since, Arc::downgrade(state))));
            });
        }
        eviction.untrusted_until = self.accepted() + self.untrusted_limit().saturating_sub(untrusted) as u64;
        eviction.candidates = match (idle.is_empty(), self.open() >= self.max_connections) {
            // One is enough for an untrusted connection, which can be evicted for the next one.
            (true, true) => longest_idle(trusted, if for_trusted { MAX_TRUSTED_CANDIDATES } else { 1 }),
            _ => longest_idle(idle, MAX_CANDIDATES),
        };
    }

    /// An evicted connection is closed. An untrusted one may be replaced by another untrusted one.
    pub(super) fn record_eviction(&self, was_trusted: bool) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
        if !was_trusted {
            self.eviction.lock().untrusted_until += 1;
        }
    }

    /// A connection that was asked to close has a request to answer.
    pub(super) fn cancel_eviction(&self) {
        self.freed.notify_waiters();
    }

    /// Whether to log that connections cannot be accepted: at most once per [`WARN_INTERVAL`].
    pub(super) fn should_log_failure(&self) -> bool {
        let now = now();
        let mut last = self.failure_logged.lock();
        let is_time = last.is_none_or(|last| now >= last + WARN_INTERVAL);
        if is_time {
            *last = Some(now);
        }
        is_time
    }

    /// Asks the next candidate to close, since a resource that all listeners share is used up.
    pub(super) fn evict_one(&self) {
        let (mut eviction, now) = (self.eviction.lock(), now());
        if eviction.candidates.is_empty()
            && eviction.scanned.is_none_or(|scanned| now >= scanned + SCAN_INTERVAL)
        {
            self.scan(&mut eviction, false);
            eviction.scanned = Some(now);
        }
        if let Some(candidate) = eviction.next_candidate(true) {
            candidate.evict();
        }
    }
}

impl EvictionPlan {
    /// The candidate that has been idle for the longest, if it still is; a trusted one only if `may_be_trusted`.
    fn next_candidate(&mut self, may_be_trusted: bool) -> Option<Arc<ConnectionState>> {
        while let Some((since, state)) = self.candidates.pop() {
            let is_still_idle = |state: &Arc<ConnectionState>| {
                state.evictable_since() == Some(since) && (may_be_trusted || !state.is_trusted())
            };
            if let Some(state) = state.upgrade().filter(is_still_idle) {
                return Some(state);
            }
        }
        None
    }
}

/// The `limit` entries that have been idle for the longest, the longest at the end.
fn longest_idle<T>(mut idle: Vec<(u64, T)>, limit: usize) -> Vec<(u64, T)> {
    if idle.len() > limit {
        idle.select_nth_unstable_by_key(limit, |(since, _)| *since);
        idle.truncate(limit);
        idle.shrink_to_fit();
    }
    idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
    idle
}

/// Counts for one open connection of a listener until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit(Arc<Capacity>);

impl ConnectionPermit {
    pub(super) fn capacity(&self) -> &Arc<Capacity> {
        &self.0
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        if self.0.waiting.load(Ordering::Relaxed) > 0 {
            self.0.freed.notify_waiters();
        }
    }
}

struct WaiterGuard<'c>(&'c AtomicUsize);

impl<'c> WaiterGuard<'c> {
    fn new(waiting: &'c AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
