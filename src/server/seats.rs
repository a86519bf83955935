//! Who is connected: how draining reaches every connection, and how long they are waited for.
//!
//! A connection looks at its seat whenever it runs anyway. Waiting for a signal to drain beside
//! every read and write would cost each request more than it is worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::patience::now;

/// The connections of one server.
#[derive(Debug, Default)]
pub(super) struct Seats {
    phase: AtomicU8,
    taken: Mutex<Slab<Waker>>,
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

impl Seats {
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
        for (_, waker) in &*self.taken.lock() {
            waker.wake_by_ref();
        }
    }

    /// Waits until the last connection is gone.
    pub(super) async fn empty(&self) {
        loop {
            let one_left = self.one_left.notified();
            if self.taken.lock().is_empty() {
                return;
            }
            one_left.await;
        }
    }
}

/// A connection's place among the others.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    index: usize,
    /// Requests that were read and are not answered yet.
    answering: AtomicU32,
    /// When the peer was last sent the end of an answer.
    answered: Mutex<Option<Instant>>,
}

impl Seat {
    /// Takes a seat. Until the connection [`sits`](Self::sit) down there is nobody to wake.
    pub(super) fn take(seats: &Arc<Seats>) -> Arc<Self> {
        let index = seats.taken.lock().insert(Waker::noop().clone());
        Arc::new(Self {
            seats: Arc::clone(seats),
            index,
            answering: AtomicU32::new(0),
            answered: Mutex::default(),
        })
    }

    /// Says whom to wake when the phase changes.
    pub(super) fn sit(&self, cx: &Context<'_>) {
        if let Some(waker) = self.seats.taken.lock().get_mut(self.index) {
            waker.clone_from(cx.waker());
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.seats.phase()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    pub(super) fn request_begins(&self) {
        self.answering.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn request_ends(&self) {
        self.answering.fetch_sub(1, Ordering::Relaxed);
        self.touch();
    }

    /// The end of an answer leaves only now.
    pub(super) fn touch(&self) {
        *self.answered.lock() = Some(now());
    }

    /// When the last answer ended, if there was one.
    pub(super) fn answered(&self) -> Option<Instant> {
        *self.answered.lock()
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.lock().try_remove(self.index);
        self.seats.one_left.notify_waiters();
    }
}
