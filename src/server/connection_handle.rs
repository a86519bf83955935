//! What a request may know of its client connection, and tell it.

use std::sync::Arc;
use std::time::Instant;

use super::registry::ConnectionState;

/// A request's view of its client connection; without one in tests.
#[derive(Clone, Debug, Default)]
pub struct ConnectionHandle(Option<Arc<ConnectionState>>);

impl ConnectionHandle {
    pub(super) fn new(state: &Arc<ConnectionState>) -> Self {
        Self(Some(Arc::clone(state)))
    }

    /// The peer has shown a valid credential: when the listener is full, its connection is
    /// among the last to be closed.
    pub fn trust(&self) {
        if let Some(state) = &self.0 {
            state.trust();
        }
    }

    /// When the connection was accepted, for the first request that asks for it.
    pub fn take_accepted(&self) -> Option<Instant> {
        self.0.as_ref()?.take_accepted().map(tokio::time::Instant::into_std)
    }

    /// The gateway reads the request's body, or collects the response from its own memory, until the guard is
    /// dropped. A request that waits for nothing else is not aborted if the peer has closed its sending side after
    /// it.
    pub fn working_locally(&self) -> LocalWorkGuard {
        if let Some(state) = &self.0 {
            state.set_working_locally(true);
        }
        LocalWorkGuard(self.clone())
    }
}

/// See [`ConnectionHandle::working_locally`].
#[derive(Debug)]
pub struct LocalWorkGuard(ConnectionHandle);

impl Drop for LocalWorkGuard {
    fn drop(&mut self) {
        if let Some(state) = &self.0.0 {
            state.set_working_locally(false);
        }
    }
}
