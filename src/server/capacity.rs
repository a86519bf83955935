//! The limit of connections on a listener, and its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::deadline_timer::now;
use super::peers::ConnectionRefusal;

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
    /// By [`ConnectionRefusal`].
    refused: [AtomicU64; ConnectionRefusal::ALL.len()],
    /// Untrusted connections are accepted beyond [`untrusted_limit`](Self::untrusted_limit) until `accepted`
    /// reaches this.
    untrusted_until: AtomicU64,
    /// Threads that wait for a permit.
    waiting: AtomicUsize,
    freed: Notify,
}

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
            refused: Default::default(),
            untrusted_until: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
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

    /// Connections that were closed before anything of them was read as HTTP, by why.
    pub fn refused(&self) -> impl Iterator<Item = (ConnectionRefusal, u64)> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ConnectionRefusal::ALL.into_iter().zip(self.refused.iter().map(count))
    }

    pub(super) fn count_refused(&self, why: ConnectionRefusal) {
        if let Some(count) = self.refused.get(why as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
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

    /// Takes a permit if fewer than `limit` are taken.
    pub(super) fn try_take(self: &Arc<Self>, limit: usize) -> Option<ConnectionPermit> {
        let one_more = |open: usize| (open < limit).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionPermit(Arc::clone(self)))
    }

    /// How many connections may be untrusted.
    pub(super) fn untrusted_limit(&self) -> usize {
        self.max_connections - self.max_connections / 4
    }

    /// How often untrusted connections may be accepted from now on beyond [`untrusted_limit`](Self::untrusted_limit).
    pub(super) fn allow_untrusted(&self, count: u64) {
        self.untrusted_until.store(self.accepted() + count, Ordering::Relaxed);
    }

    pub(super) fn allow_one_untrusted(&self) {
        self.untrusted_until.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn may_accept_untrusted(&self) -> bool {
        self.accepted() < self.untrusted_until.load(Ordering::Relaxed)
    }

    /// The next release of a permit, or cancelled eviction. The guard makes sure that it is signalled.
    pub(super) fn wait(&self) -> (WaiterGuard<'_>, &Notify) {
        (WaiterGuard::new(&self.waiting), &self.freed)
    }

    /// An evicted connection is closed. An untrusted one may be replaced by another untrusted one.
    pub(super) fn record_eviction(&self, was_trusted: bool) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
        if !was_trusted {
            self.allow_one_untrusted();
        }
    }

    /// A connection that was asked to close has a request to answer.
    pub(super) fn cancel_eviction(&self) {
        self.freed.notify_waiters();
    }
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

pub(super) struct WaiterGuard<'c>(&'c AtomicUsize);

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
