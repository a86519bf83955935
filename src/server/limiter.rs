//! The limit of connections on a listener, and which connection is closed for a new one.
//!
//! Each listener has its own limit, for all threads together. When it is reached, the connection that has
//! been idle for the longest is closed. A quarter of the permits is reserved for trusted peers: those that
//! have shown a credential, and local ones if remote peers can connect, too. Trusted connections are also the
//! last to be closed. A stream of HTTP/2 beside others of its connection is one more connection here.
//!
//! Counting trusted connections takes a scan of all connections, since a request with a valid credential
//! only sets a flag in its connection's state. Scans are made only while more than three quarters of the
//! permits are taken, and each scan serves many decisions: it tells how many untrusted connections may still
//! be accepted, and which connections are closed next.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::capacity::{Capacity, ConnectionPermit};
use super::deadline_timer::now;
use super::registry::{ConnectionRegistry, ConnectionState};

/// Gives permits for the connections of one listener, to all threads that accept on it.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    capacity: Arc<Capacity>,
    registries: Mutex<Vec<Arc<ConnectionRegistry>>>,
    plan: Mutex<EvictionPlan>,
    /// When it was last logged that connections cannot be accepted.
    failure_logged: Mutex<Option<Instant>>,
}

/// The result of the last scan, updated by each decision since.
#[derive(Debug, Default)]
struct EvictionPlan {
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

impl ConnectionLimiter {
    pub(super) fn new(capacity: Arc<Capacity>) -> Arc<Self> {
        let (registries, plan, failure_logged) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { capacity, registries, plan, failure_logged })
    }

    pub(super) fn capacity(&self) -> &Arc<Capacity> {
        &self.capacity
    }

    /// Scans include the connections of this registry from now on.
    pub(super) fn add_registry(&self, registry: &Arc<ConnectionRegistry>) {
        self.registries.lock().push(Arc::clone(registry));
    }

    /// A permit for an untrusted connection, without waiting.
    pub(super) fn try_acquire(self: &Arc<Self>) -> Option<ConnectionPermit> {
        self.acquire_or_evict(false)
    }

    /// The same for one of a peer that is known.
    pub(super) fn try_acquire_as(self: &Arc<Self>, is_trusted: bool) -> Option<ConnectionPermit> {
        self.acquire_or_evict(is_trusted)
    }

    /// Waits for a permit. `is_local`: the peer is on this machine.
    pub(super) async fn acquire(self: &Arc<Self>, is_local: bool) -> ConnectionPermit {
        self.acquire_as(is_local && self.capacity.accepts_remote_peers()).await
    }

    /// Waits for a permit.
    pub(super) async fn acquire_as(self: &Arc<Self>, is_trusted: bool) -> ConnectionPermit {
        if let Some(permit) = self.capacity.try_take(self.capacity.untrusted_limit()) {
            return permit;
        }
        let (_waiting, freed) = self.capacity.wait();
        loop {
            let freed = freed.notified();
            if let Some(permit) = self.acquire_or_evict(is_trusted) {
                return permit;
            }
            // Then it tries again.
            let _ = tokio::time::timeout(EVICTION_RETRY, freed).await;
        }
    }

    /// Takes a permit, or asks a connection to close.
    fn acquire_or_evict(self: &Arc<Self>, is_trusted: bool) -> Option<ConnectionPermit> {
        if let Some(permit) = self.capacity.try_take(self.capacity.untrusted_limit()) {
            return Some(permit);
        }
        let (mut plan, now) = (self.plan.lock(), now());
        loop {
            let may_enter = is_trusted || self.capacity.may_accept_untrusted();
            if may_enter && let Some(permit) = self.capacity.try_take(self.capacity.max_connections()) {
                if is_trusted {
                    self.capacity.allow_one_untrusted();
                }
                return Some(permit);
            }
            // An untrusted connection that may not enter evicts no trusted one.
            if let Some(candidate) = plan.next_candidate(may_enter) {
                candidate.evict();
                break;
            }
            if plan.scanned.is_some_and(|scanned| now < scanned + SCAN_INTERVAL) {
                break;
            }
            self.scan(&mut plan, is_trusted);
            plan.scanned = Some(now);
        }
        let is_first = plan.full.replace(now).is_none_or(|full| now >= full + WARN_INTERVAL);
        drop(plan);
        if is_first {
            tracing::warn!(
                listener = self.capacity.name(),
                connections = self.capacity.max_connections(),
                "a listener is full; idle connections are closed for new ones"
            );
        }
        None
    }

    /// Scans all connections. Untrusted ones are evicted first, trusted ones only if no untrusted connection is
    /// idle and all permits are taken.
    fn scan(&self, plan: &mut EvictionPlan, for_trusted: bool) {
        let (mut untrusted, mut idle, mut trusted) = (0, Vec::new(), Vec::new());
        for registry in &*self.registries.lock() {
            registry.for_each_connection(&self.capacity, |state| {
                untrusted += usize::from(!state.is_trusted());
                let list = if state.is_trusted() { &mut trusted } else { &mut idle };
                list.extend(state.eviction_order().map(|since| (since, Arc::downgrade(state))));
            });
        }
        self.capacity.allow_untrusted(self.capacity.untrusted_limit().saturating_sub(untrusted) as u64);
        plan.candidates = match (idle.is_empty(), self.capacity.open() >= self.capacity.max_connections()) {
            // One is enough for an untrusted connection, which can be evicted for the next one.
            (true, true) => longest_idle(trusted, if for_trusted { MAX_TRUSTED_CANDIDATES } else { 1 }),
            _ => longest_idle(idle, MAX_CANDIDATES),
        };
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
        let (mut plan, now) = (self.plan.lock(), now());
        if plan.candidates.is_empty() && plan.scanned.is_none_or(|scanned| now >= scanned + SCAN_INTERVAL) {
            self.scan(&mut plan, false);
            plan.scanned = Some(now);
        }
        while let Some(candidate) = plan.next_candidate(true) {
            // A stream has no socket of its own.
            if !candidate.is_stream() {
                return candidate.evict();
            }
        }
    }
}

impl EvictionPlan {
    /// The candidate that has been idle for the longest, if it still is; a trusted one only if `may_be_trusted`.
    fn next_candidate(&mut self, may_be_trusted: bool) -> Option<Arc<ConnectionState>> {
        while let Some((since, state)) = self.candidates.pop() {
            let is_still_idle = |state: &Arc<ConnectionState>| {
                state.eviction_order() == Some(since) && (may_be_trusted || !state.is_trusted())
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

#[cfg(test)]
mod tests;
