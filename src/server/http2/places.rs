//! The places of a connection's streams among the connections of its listener.
//!
//! One stream is in the place of the connection itself: when it ends, another one takes that over, and gives up its own.
//! So the streams never have more places than there are of them, and the connection has a stream as long as any of them
//! has one. Each place is an entry of the registry, with the state of its stream, as if the stream were a connection of
//! HTTP/1. One that waits for its peer can be evicted alone; a stream that waits for a place keeps none.

use std::sync::Arc;

use super::super::registry::{ConnectionState, Registration};
use super::stream::Stream;

/// The streams that have a place.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// In that of the connection.
    first: Option<Arc<Stream>>,
    /// Each in one of its own, in the order in which they got them.
    more: Vec<(Arc<Stream>, Registration)>,
}

impl Places {
    /// Gives a stream the place of the connection, if it is free.
    pub(super) fn take_first(&mut self, stream: &Arc<Stream>, connection: &Arc<ConnectionState>) -> bool {
        let is_free = self.first.is_none();
        if is_free {
            connection.request_started();
            stream.set_place(connection);
            self.first = Some(Arc::clone(stream));
        }
        is_free
    }

    /// Gives a stream a place of its own.
    pub(super) fn add(&mut self, stream: &Arc<Stream>, registration: Registration) {
        stream.set_place(registration.state());
        self.more.push((Arc::clone(stream), registration));
    }

    /// A stream is over. Returns the place that is given up for it, unless it is that of the connection.
    pub(super) fn leave(
        &mut self,
        stream: &Arc<Stream>,
        connection: &Arc<ConnectionState>,
    ) -> Option<Registration> {
        stream.clear_place();
        if !self.first.as_ref().is_some_and(|first| Arc::ptr_eq(first, stream)) {
            let at = self.more.iter().position(|(other, _)| Arc::ptr_eq(other, stream))?;
            return Some(self.more.remove(at).1);
        }
        // The youngest, whose own place would be asked for last.
        let Some((next, registration)) = self.more.pop() else {
            self.first = None;
            connection.request_finished();
            return None;
        };
        connection.take_over(registration.state());
        next.set_place(connection);
        self.first = Some(next);
        Some(registration)
    }

    /// Whether the place of the connection is free.
    pub(super) fn are_free(&self) -> bool {
        self.first.is_none()
    }

    /// Resets the streams whose places were asked for. Returns whether the connection itself has to close.
    pub(super) fn evict(&self, connection: &ConnectionState) -> bool {
        for (stream, registration) in &self.more {
            if registration.state().must_close() {
                stream.reset();
            }
        }
        if !connection.must_close() {
            return false;
        }
        match &self.first {
            // The next one takes its place over, and gives up its own.
            Some(first) if !self.more.is_empty() => {
                first.reset();
                false
            }
            _ => true,
        }
    }
}
