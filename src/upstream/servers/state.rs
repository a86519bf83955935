//! What all threads share about one server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::health::ServerHealth;
use super::load::ServerLoad;
use crate::counters::Counters;
use crate::histogram::Histogram;
use crate::upstream::connection::cause::UnreachableCause;
use crate::upstream::connection::error::ConnectError;
use crate::upstream::connection::protocol::Protocol;
use crate::upstream::connection::stats::ConnectionStats;
use crate::upstream::settings::{UpstreamServerSettings, UpstreamSettings};

/// Why a request was sent again, to the same server or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ResendReason {
    /// This server could not be reached, and there was another one.
    Unreachable = 0,
    /// The server has not read the request.
    Unread = 1,
    /// The request is a read, and the server gave no response.
    SafeRead = 2,
}

impl ResendReason {
    /// All variants, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Unreachable, Self::Unread, Self::SafeRead];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unread => "unread",
            Self::SafeRead => "read",
        }
    }
}

crate::counters::label!(ResendReason);

/// What all threads share about one server.
#[derive(Debug)]
pub struct UpstreamServerState {
    /// Its address; metrics and logs name it by that.
    pub name: String,
    is_backup: AtomicBool,
    /// Whether it is in rotation, and why not.
    pub health: ServerHealth,
    protocol: Protocol,
    pub(in crate::upstream) load: ServerLoad,
    /// Its connections, of all threads.
    pub connections: Arc<ConnectionStats>,
    /// Requests, and attempts for held requests, that found no connection, by [`UnreachableCause`].
    pub unreachable_by_cause: Counters<UnreachableCause>,
    /// Requests that were sent again after this server had failed, by [`ResendReason`].
    pub resends: Counters<ResendReason>,
    /// From sending a request to the head of its response, or to the failure to get one.
    pub response_times: Histogram<12>,
}

impl UpstreamServerState {
    pub(in crate::upstream) fn new(server: &UpstreamServerSettings, all: &UpstreamSettings) -> Self {
        let (name, connections) = (server.name(), Arc::<ConnectionStats>::default());
        Self {
            health: ServerHealth::new(name.clone(), all, Arc::clone(&connections)),
            name,
            is_backup: AtomicBool::new(server.is_backup),
            protocol: all.protocol,
            load: ServerLoad::new(all.load_decay),
            connections,
            unreachable_by_cause: Counters::default(),
            resends: Counters::default(),
            response_times: Histogram::default(),
        }
    }

    /// Whether other settings leave its counters meaningful: those depend on the protocol.
    pub(in crate::upstream) fn is_like(&self, all: &UpstreamSettings) -> bool {
        self.protocol == all.protocol
    }

    /// Takes over other settings.
    pub(in crate::upstream) fn reload(&self, server: &UpstreamServerSettings, all: &UpstreamSettings) {
        self.is_backup.store(server.is_backup, Ordering::Relaxed);
        self.health.reload(all);
    }

    /// Whether it gets requests only while no other server is in rotation.
    pub fn is_backup(&self) -> bool {
        self.is_backup.load(Ordering::Relaxed)
    }

    /// Requests that it has now.
    pub fn in_flight(&self) -> usize {
        let ConnectionStats { idle, active_streams, .. } = &*self.connections;
        match self.protocol {
            Protocol::Http1 => self.connections.open().saturating_sub(idle.load(Ordering::Relaxed)),
            Protocol::Http2 => active_streams.load(Ordering::Relaxed),
        }
    }

    pub(in crate::upstream) fn count_unreachable(&self, error: &ConnectError) {
        self.unreachable_by_cause.increment(error.cause());
    }

    pub(in crate::upstream) fn count_resend(&self, reason: ResendReason) {
        self.resends.increment(reason);
    }
}
