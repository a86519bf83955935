//! The deadline for a peer to read what it is sent, and what others may know of it.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::deadline_timer::DeadlineTimer;
use super::registry::ConnectionState;

/// Follows the writes of a connection.
#[derive(Debug)]
pub(super) struct WriteDeadline {
    limit: Duration,
    timer: DeadlineTimer,
    connection: Arc<ConnectionState>,
    has_unsent: bool,
}

impl WriteDeadline {
    pub(super) fn new(limit: Duration, connection: Arc<ConnectionState>) -> Self {
        Self { limit, timer: DeadlineTimer::default(), connection, has_unsent: false }
    }

    /// For the stack, a response is sent once hyper has it; the connection is idle only once the peer reads it.
    pub(super) fn after_write<T>(
        &mut self,
        progress: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() && self.timer.is_armed() {
            self.connection.reset_idle();
        }
        self.set_unsent(progress.is_pending());
        self.timer.limit(progress, self.limit, cx)
    }

    /// TLS says farewell, and the peer may read nothing.
    pub(super) fn after_shutdown(
        &mut self,
        progress: Poll<io::Result<()>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.timer.limit(progress, self.limit, cx)
    }

    pub(super) fn set_unsent(&mut self, has_unsent: bool) {
        if self.has_unsent != has_unsent {
            self.has_unsent = has_unsent;
            self.connection.set_unsent(has_unsent);
        }
    }

    /// Whether something waits to be written.
    pub(super) fn has_unsent(&self) -> bool {
        self.has_unsent
    }

    /// Whether the peer is awaited.
    pub(super) fn is_armed(&self) -> bool {
        self.timer.is_armed()
    }
}
