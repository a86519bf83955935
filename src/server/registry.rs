//! The registry of connections, with the state of each one: by it, draining reaches every connection,
//! and another thread tells an idle one from a busy one.
//!
//! A connection checks its own state whenever its task runs. Waiting for a signal beside every read
//! and write would cost too much per request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::capacity::{Capacity, ConnectionPermit};
use super::deadline_timer::now;
use super::peers::ConnectionRefusal;

/// The connections of one server.
#[derive(Debug, Default)]
pub(super) struct ConnectionRegistry {
    phase: AtomicU8,
    connections: Mutex<Slab<(Waker, Arc<ConnectionState>)>>,
    connection_closed: Notify,
}

/// The phase of a server, which its connections obey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub(super) enum ServerPhase {
    /// Accept requests.
    Open = 0,
    /// Close after the next request: its response says so, so that its client connects again, to the next process.
    Leaving = 1,
    /// Close once the running request is answered.
    Draining = 2,
    /// Close now.
    Stopped = 3,
}

impl ConnectionRegistry {
    /// Adds a connection. It can be woken only after [`Registration::set_task`].
    pub(super) fn register(self: &Arc<Self>, permit: ConnectionPermit, is_local: bool) -> Registration {
        self.add(permit, is_local, None)
    }

    /// Adds a stream of a connection that counts as one more, with its request, and is woken by the same task.
    pub(super) fn register_stream(
        connection: &Arc<ConnectionState>,
        permit: ConnectionPermit,
    ) -> Registration {
        let registration = connection.registry.add(permit, false, Some(Arc::clone(connection)));
        registration.state.request_started();
        registration
    }

    fn add(
        self: &Arc<Self>,
        permit: ConnectionPermit,
        is_local: bool,
        connection: Option<Arc<ConnectionState>>,
    ) -> Registration {
        let mut connections = self.connections.lock();
        let entry = connections.vacant_entry();
        let capacity = Arc::clone(permit.capacity());
        let age = capacity.age_at(now());
        let state = Arc::new(ConnectionState {
            registry: Arc::clone(self),
            index: entry.key(),
            connection,
            is_trusted: AtomicBool::new(is_local && capacity.accepts_remote_peers()),
            active_requests: AtomicU32::new(0),
            is_response_pending: AtomicBool::new(false),
            is_working_locally: AtomicBool::new(false),
            has_unsent: AtomicBool::new(false),
            awaits_peer: AtomicBool::new(false),
            is_eviction_requested: AtomicBool::new(false),
            accepted: AtomicU64::new(age),
            idle_since: AtomicU64::new(age),
            last_request: AtomicU64::new(age),
            capacity,
        });
        entry.insert((Waker::noop().clone(), Arc::clone(&state)));
        Registration { state, _permit: permit }
    }

    fn phase(&self) -> ServerPhase {
        match self.phase.load(Ordering::Acquire) {
            0 => ServerPhase::Open,
            1 => ServerPhase::Leaving,
            2 => ServerPhase::Draining,
            _ => ServerPhase::Stopped,
        }
    }

    /// Sets the phase, also for later connections, and wakes all tasks.
    pub(super) fn enter(&self, phase: ServerPhase) {
        self.phase.store(phase as u8, Ordering::Release);
        for (_, (waker, _)) in &*self.connections.lock() {
            waker.wake_by_ref();
        }
    }

    /// Waits until the last connection is closed.
    pub(super) async fn wait_until_empty(&self) {
        loop {
            let connection_closed = self.connection_closed.notified();
            if self.connections.lock().is_empty() {
                return;
            }
            connection_closed.await;
        }
    }

    /// Calls `visit` with every connection of the listener that `capacity` belongs to.
    pub(super) fn for_each_connection(
        &self,
        capacity: &Capacity,
        mut visit: impl FnMut(&Arc<ConnectionState>),
    ) {
        for (_, (_, state)) in &*self.connections.lock() {
            if std::ptr::eq(Arc::as_ptr(&state.capacity), capacity) {
                visit(state);
            }
        }
    }
}

/// A connection's entry in the registry and its permit; dropped when the connection closes.
#[derive(Debug)]
pub(super) struct Registration {
    state: Arc<ConnectionState>,
    /// Released after the entry is removed: scans must not count a connection whose permit is free.
    _permit: ConnectionPermit,
}

impl Registration {
    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }

    /// Sets the task that runs the connection, which is woken when its state changes.
    pub(super) fn set_task(&self, cx: &Context<'_>) {
        if let Some((waker, _)) = self.state.registry.connections.lock().get_mut(self.state.index) {
            waker.clone_from(cx.waker());
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let ConnectionState { registry, index, .. } = &*self.state;
        registry.connections.lock().try_remove(*index);
        registry.connection_closed.notify_waiters();
        if self.state.is_eviction_requested() {
            self.state.capacity.record_eviction(self.state.is_trusted());
        }
    }
}

/// The state of one connection, written by its own task and read by others. A stream of HTTP/2 beside others has one,
/// too.
#[derive(Debug)]
pub(super) struct ConnectionState {
    registry: Arc<ConnectionRegistry>,
    index: usize,
    capacity: Arc<Capacity>,
    /// If this is a stream that counts as a connection: the connection that it is a stream of.
    connection: Option<Arc<ConnectionState>>,
    /// The peer has shown a credential, or is local on a listener that remote peers can reach.
    is_trusted: AtomicBool,
    /// Requests that were read and whose responses are not sent yet.
    active_requests: AtomicU32,
    /// hyper waits for a response or for the next part of its body.
    is_response_pending: AtomicBool,
    /// The gateway itself reads a request's body, in search of a credential.
    is_working_locally: AtomicBool,
    /// Bytes wait to be written to the socket.
    has_unsent: AtomicBool,
    /// The connection waits for the peer to send the rest of a request's body or, over HTTP/2, to read more of a
    /// response.
    awaits_peer: AtomicBool,
    is_eviction_requested: AtomicBool,
    /// When the peer connected, in nanoseconds since the start of `capacity`, or [`TAKEN`].
    accepted: AtomicU64,
    /// When the end of a response was last sent, or the peer connected, in the same unit.
    idle_since: AtomicU64,
    /// When a request last started or finished, or the peer connected, in the same unit: the oldest connection is
    /// evicted first. Reading a response slowly does not change it.
    last_request: AtomicU64,
}

/// The time of the accept was asked for already.
const TAKEN: u64 = u64::MAX;

impl ConnectionState {
    pub(super) fn phase(&self) -> ServerPhase {
        self.registry.phase()
    }

    /// Whether it only counts as a connection.
    pub(super) fn is_stream(&self) -> bool {
        self.connection.is_some()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.phase() >= ServerPhase::Draining
    }

    pub(super) fn request_started(&self) {
        self.active_requests.fetch_add(1, Ordering::Relaxed);
        self.last_request.store(self.capacity.age_at(now()), Ordering::Relaxed);
    }

    pub(super) fn request_finished(&self) {
        self.active_requests.fetch_sub(1, Ordering::Relaxed);
        let now = self.capacity.age_at(now());
        self.idle_since.store(now, Ordering::Relaxed);
        self.last_request.store(now, Ordering::Relaxed);
    }

    /// The first bytes of a head were received, but not all of it.
    pub(super) fn head_started(&self) {
        self.last_request.store(self.capacity.age_at(now()), Ordering::Relaxed);
    }

    /// Counts the connection as refused. Returns the name of its listener.
    pub(super) fn refuse(&self, why: ConnectionRefusal) -> &str {
        self.capacity.count_refused(why);
        self.capacity.name()
    }

    /// The end of a response was sent only now.
    pub(super) fn reset_idle(&self) {
        self.idle_since.store(self.capacity.age_at(now()), Ordering::Relaxed);
    }

    /// When the last response ended, or the peer connected.
    pub(super) fn idle_since(&self) -> Instant {
        self.capacity.started() + Duration::from_nanos(self.idle_since.load(Ordering::Relaxed))
    }

    pub(super) fn age_at(&self, now: Instant) -> u64 {
        self.capacity.age_at(now)
    }

    /// The time that has this age.
    pub(super) fn time_at(&self, age: u64) -> Instant {
        self.capacity.started() + Duration::from_nanos(age)
    }

    /// A stream that had a place of its own goes on in that of the connection, in place of one that is over. If either
    /// was asked to go, it is the place that is given up.
    pub(super) fn take_over(&self, stream: &Self) {
        self.last_request.store(stream.last_request.load(Ordering::Relaxed), Ordering::Relaxed);
        let (own, other) = (self.is_eviction_requested(), stream.is_eviction_requested());
        self.is_eviction_requested.store(own && other, Ordering::Relaxed);
        stream.is_eviction_requested.store(own || other, Ordering::Relaxed);
    }

    pub(super) fn has_active_requests(&self) -> bool {
        self.active_requests.load(Ordering::Relaxed) > 0
    }

    pub(super) fn set_response_pending(&self, is_response_pending: bool) {
        self.is_response_pending.store(is_response_pending, Ordering::Relaxed);
    }

    /// Whether hyper waits for a response that does not depend on more bytes of the peer.
    pub(super) fn is_response_pending(&self) -> bool {
        self.is_response_pending.load(Ordering::Relaxed) && !self.is_working_locally.load(Ordering::Relaxed)
    }

    pub(super) fn set_unsent(&self, has_unsent: bool) {
        self.has_unsent.store(has_unsent, Ordering::Relaxed);
    }

    pub(super) fn set_awaits_peer(&self, awaits_peer: bool) {
        self.awaits_peer.store(awaits_peer, Ordering::Relaxed);
    }

    /// Whether the connection may be evicted. An untrusted peer is idle, too, while it has to send the rest of a
    /// body or to read a response: else such peers could hold all permits that untrusted connections may have.
    fn is_idle(&self) -> bool {
        if self.is_trusted() {
            return !self.has_active_requests() && !self.has_unsent.load(Ordering::Relaxed);
        }
        !self.has_active_requests() || self.awaits_peer.load(Ordering::Relaxed)
    }

    pub(super) fn is_trusted(&self) -> bool {
        let of_connection = |connection: &Arc<Self>| connection.is_trusted();
        self.is_trusted.load(Ordering::Relaxed) || self.connection.as_ref().is_some_and(of_connection)
    }

    /// When its last request began or ended, in nanoseconds since the start of `capacity`; `None` while it is busy, or
    /// is already being evicted. Called by other threads: a request may start right after.
    pub(super) fn eviction_order(&self) -> Option<u64> {
        (self.is_idle() && !self.is_eviction_requested()).then(|| self.last_request.load(Ordering::Relaxed))
    }

    /// Asks the connection to close, or the stream to end.
    pub(super) fn evict(self: &Arc<Self>) {
        self.is_eviction_requested.store(true, Ordering::Relaxed);
        let connection = self.connection.as_ref().unwrap_or(self);
        if let Some((waker, state)) = self.registry.connections.lock().get(connection.index)
            && Arc::ptr_eq(state, connection)
        {
            waker.wake_by_ref();
        }
    }

    /// When the peer connected; only the first time that this is asked.
    pub(super) fn take_accepted(&self) -> Option<Instant> {
        let age = self.accepted.swap(TAKEN, Ordering::Relaxed);
        (age != TAKEN).then(|| self.time_at(age))
    }

    /// The peer has shown a credential.
    pub(super) fn trust(&self) {
        self.is_trusted.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_working_locally(&self, is_working_locally: bool) {
        self.is_working_locally.store(is_working_locally, Ordering::Relaxed);
    }

    fn is_eviction_requested(&self) -> bool {
        self.is_eviction_requested.load(Ordering::Relaxed)
    }

    /// Whether the connection was evicted. Called by its own task; a request that has started in the meantime
    /// cancels the eviction.
    pub(super) fn must_close(&self) -> bool {
        if !self.is_eviction_requested() {
            return false;
        }
        if !self.is_idle() {
            self.is_eviction_requested.store(false, Ordering::Relaxed);
            self.capacity.cancel_eviction();
            return false;
        }
        true
    }
}
