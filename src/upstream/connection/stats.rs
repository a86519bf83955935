//! What the connections of all threads to one server share: counters, and the signal to close.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Counters of the connections to one server.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    /// Connections that are open now, in use or idle.
    pub(in crate::upstream) open: AtomicI64,
    /// Connections that are idle now (HTTP/1.1).
    pub(in crate::upstream) idle: AtomicUsize,
    /// Requests that share connections now (HTTP/2).
    pub(in crate::upstream) active_streams: AtomicUsize,
    /// Connections made so far.
    pub opened: AtomicU64,
    /// Attempts to connect that failed.
    pub failed: AtomicU64,
    /// Whether an operator has drained the server.
    pub(in crate::upstream) drain: DrainSignal,
}

impl ConnectionStats {
    /// Connections that are open now, in use or idle.
    pub fn open(&self) -> usize {
        usize::try_from(self.open.load(Ordering::Relaxed)).unwrap_or_default()
    }
}

/// Whether a server is drained, and a wake-up for the owners of its connections, which are to be closed then.
#[derive(Debug, Default)]
pub(in crate::upstream) struct DrainSignal {
    is_on: AtomicBool,
    changed: Notify,
}

impl DrainSignal {
    pub(in crate::upstream) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Sets the signal; false if nothing changes.
    pub(in crate::upstream) fn set(&self, is_on: bool) -> bool {
        let has_changed = self.is_on.swap(is_on, Ordering::Relaxed) != is_on;
        if has_changed && is_on {
            self.changed.notify_waiters();
        }
        has_changed
    }

    /// Returns once it is set again.
    pub(in crate::upstream) fn wait(&self) -> Notified<'_> {
        self.changed.notified()
    }
}
