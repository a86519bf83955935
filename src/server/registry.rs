//! Which connections there are, and what each of them is doing: how draining reaches every connection,
//! and how another thread tells an idle one from a busy one.
//!
//! A connection looks at its own state whenever it runs anyway. Waiting for a signal beside every read
//! and write would cost each request more than it is worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::capacity::{Capacity, Place};
use super::patience::now;

/// The connections of one server.
#[derive(Debug, Default)]
pub(super) struct Registry {
    phase: AtomicU8,
    connections: Mutex<Slab<(Waker, Arc<ConnectionState>)>>,
    one_left: Notify,
}

/// What connections are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub(super) enum Phase {
    /// Go on.
    Open = 0,
    /// End once the running request is answered.
    Draining = 1,
    /// End now.
    Stopped = 2,
}

impl Registry {
    /// Takes a connection in. Until its task is [known](Registered::is_run_by), none can be woken.
    pub(super) fn register(self: &Arc<Self>, place: Place, is_local: bool) -> Registered {
        let mut connections = self.connections.lock();
        let entry = connections.vacant_entry();
        let capacity = Arc::clone(place.capacity());
        let state = Arc::new(ConnectionState {
            registry: Arc::clone(self),
            index: entry.key(),
            is_trusted: AtomicBool::new(is_local && capacity.is_open_to_others()),
            answering: AtomicU32::new(0),
            is_waiting: AtomicBool::new(false),
            takes_body: AtomicBool::new(false),
            has_unsent: AtomicBool::new(false),
            awaits_body: AtomicBool::new(false),
            is_evicted: AtomicBool::new(false),
            idle_since: AtomicU64::new(capacity.age_at(now())),
            requested: AtomicU64::new(capacity.age_at(now())),
            capacity,
        });
        entry.insert((Waker::noop().clone(), Arc::clone(&state)));
        Registered { state, _place: place }
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::Draining,
            _ => Phase::Stopped,
        }
    }

    /// Tells every connection, those that are still to come included.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        for (_, (waker, _)) in &*self.connections.lock() {
            waker.wake_by_ref();
        }
    }

    /// Waits until the last connection is gone.
    pub(super) async fn empty(&self) {
        loop {
            let one_left = self.one_left.notified();
            if self.connections.lock().is_empty() {
                return;
            }
            one_left.await;
        }
    }

    /// Shows every connection of a listener.
    pub(super) fn each_of(&self, capacity: &Capacity, mut show: impl FnMut(&Arc<ConnectionState>)) {
        for (_, (_, state)) in &*self.connections.lock() {
            if std::ptr::eq(Arc::as_ptr(&state.capacity), capacity) {
                show(state);
            }
        }
    }
}

/// A connection's entry in the registry and its place on the listener, given back when it ends.
#[derive(Debug)]
pub(super) struct Registered {
    state: Arc<ConnectionState>,
    /// After the entry: a place that is free must not be counted any more.
    _place: Place,
}

impl Registered {
    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }

    /// The task that runs the connection, to be woken when there is something to look at.
    pub(super) fn is_run_by(&self, cx: &Context<'_>) {
        if let Some((waker, _)) = self.state.registry.connections.lock().get_mut(self.state.index) {
            waker.clone_from(cx.waker());
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let ConnectionState { registry, index, .. } = &*self.state;
        registry.connections.lock().try_remove(*index);
        registry.one_left.notify_waiters();
        if self.state.is_evicted() {
            self.state.capacity.one_was_evicted(self.state.is_trusted());
        }
    }
}

/// What one connection is doing.
#[derive(Debug)]
pub(super) struct ConnectionState {
    registry: Arc<Registry>,
    index: usize,
    capacity: Arc<Capacity>,
    /// The peer is local where others are not, or has shown a credential.
    is_trusted: AtomicBool,
    /// Requests that were read and are not answered yet.
    answering: AtomicU32,
    /// An answer, or the next piece of one, is being made, and not there yet.
    is_waiting: AtomicBool,
    /// The gateway itself takes in a request's body, to judge its caller by it.
    takes_body: AtomicBool,
    /// Something was not sent yet that is to be.
    has_unsent: AtomicBool,
    /// The peer has not sent all of a request's body, and is waited for.
    awaits_body: AtomicBool,
    is_evicted: AtomicBool,
    /// When the peer was last sent the end of an answer, or connected, by the clock of `capacity`.
    idle_since: AtomicU64,
    /// When the peer connected, or a request of its last began or ended, by that clock: who leaves first.
    /// Taking what it is sent little by little makes no peer younger.
    requested: AtomicU64,
}

impl ConnectionState {
    pub(super) fn phase(&self) -> Phase {
        self.registry.phase()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    pub(super) fn request_begins(&self) {
        self.answering.fetch_add(1, Ordering::Relaxed);
        self.requested.store(self.capacity.age_at(now()), Ordering::Relaxed);
    }

    pub(super) fn request_ends(&self) {
        self.answering.fetch_sub(1, Ordering::Relaxed);
        let now = self.capacity.age_at(now());
        self.idle_since.store(now, Ordering::Relaxed);
        self.requested.store(now, Ordering::Relaxed);
    }

    /// The first bytes of a head are there, and not all of it.
    pub(super) fn head_begins(&self) {
        self.requested.store(self.capacity.age_at(now()), Ordering::Relaxed);
    }

    /// The end of an answer leaves only now.
    pub(super) fn touch(&self) {
        self.idle_since.store(self.capacity.age_at(now()), Ordering::Relaxed);
    }

    /// When the last answer ended, or the peer connected.
    pub(super) fn idle_since(&self) -> Instant {
        self.capacity.begun() + Duration::from_nanos(self.idle_since.load(Ordering::Relaxed))
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0
    }

    pub(super) fn set_waiting(&self, is_waiting: bool) {
        self.is_waiting.store(is_waiting, Ordering::Relaxed);
    }

    /// Whether an answer waits for something else than the peer's own bytes.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed) && !self.takes_body.load(Ordering::Relaxed)
    }

    pub(super) fn set_unsent(&self, has_unsent: bool) {
        self.has_unsent.store(has_unsent, Ordering::Relaxed);
    }

    pub(super) fn set_awaits_body(&self, awaits_body: bool) {
        self.awaits_body.store(awaits_body, Ordering::Relaxed);
    }

    /// Whether nothing is under way. A stranger that is waited for, to send the rest of a body or to take
    /// its answer, keeps no place by that: else it could keep all that strangers may have.
    fn is_idle(&self) -> bool {
        if self.is_trusted() {
            return !self.is_answering() && !self.has_unsent.load(Ordering::Relaxed);
        }
        !self.is_answering() || self.awaits_body.load(Ordering::Relaxed)
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.is_trusted.load(Ordering::Relaxed)
    }

    /// Since when it is idle, in nanoseconds of its listener's clock; `None` while it is not, or is
    /// leaving anyway. As another thread sees it: by the time it looks, a request may have begun.
    pub(super) fn idle_for_eviction(&self) -> Option<u64> {
        (self.is_idle() && !self.is_evicted()).then(|| self.requested.load(Ordering::Relaxed))
    }

    /// Asks it to leave.
    pub(super) fn evict(self: &Arc<Self>) {
        self.is_evicted.store(true, Ordering::Relaxed);
        if let Some((waker, state)) = self.registry.connections.lock().get(self.index)
            && Arc::ptr_eq(state, self)
        {
            waker.wake_by_ref();
        }
    }

    fn is_evicted(&self) -> bool {
        self.is_evicted.load(Ordering::Relaxed)
    }

    /// Whether it has to leave, as its own task sees it. A request that has begun in between saves it.
    pub(super) fn has_to_leave(&self) -> bool {
        if !self.is_evicted() {
            return false;
        }
        if !self.is_idle() {
            self.is_evicted.store(false, Ordering::Relaxed);
            self.capacity.one_stays();
            return false;
        }
        true
    }
}

/// The connection that a request came over.
#[derive(Clone, Debug, Default)]
pub struct ConnectionHandle(Option<Arc<ConnectionState>>);

impl ConnectionHandle {
    pub(super) fn new(state: &Arc<ConnectionState>) -> Self {
        Self(Some(Arc::clone(state)))
    }

    /// The peer has shown a credential that was right: when the listener is full, its connection is
    /// among the last to be closed.
    pub fn trust(&self) {
        if let Some(state) = &self.0 {
            state.is_trusted.store(true, Ordering::Relaxed);
        }
    }

    /// The gateway takes in the request's body, until what is returned is dropped. What waits for nothing but
    /// that is not given up if the peer has closed its sending side behind it.
    pub fn take_body(&self) -> TakesBody {
        if let Some(state) = &self.0 {
            state.takes_body.store(true, Ordering::Relaxed);
        }
        TakesBody(self.clone())
    }
}

/// See [`ConnectionHandle::take_body`].
#[derive(Debug)]
pub struct TakesBody(ConnectionHandle);

impl Drop for TakesBody {
    fn drop(&mut self) {
        if let Some(state) = &self.0.0 {
            state.takes_body.store(false, Ordering::Relaxed);
        }
    }
}
