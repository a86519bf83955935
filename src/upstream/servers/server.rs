//! One server of Rails, of perhaps several.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;

use super::state::UpstreamServerState;
use crate::upstream::connection::ServerConnections;
use crate::upstream::connection::protocol::Protocol;
use crate::upstream::settings::{MAX_SERVERS, UpstreamServerSettings, UpstreamSettings};

/// A server, as one worker thread sees it.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct UpstreamServer {
    /// Its index in the list of servers.
    pub(in crate::upstream) index: usize,
    /// Its address, for logs.
    pub(in crate::upstream) name: Arc<str>,
    pub(in crate::upstream) host: HeaderValue,
    pub(in crate::upstream) connections: Arc<ServerConnections>,
    /// How long a connection may take.
    pub(in crate::upstream) connect_timeout: Duration,
    /// Whether a reset proves that a request was not read: if the server is on this machine, and its connections
    /// carry one request at a time.
    pub(in crate::upstream) may_resend_unread: bool,
    pub(in crate::upstream) state: Arc<UpstreamServerState>,
}

impl UpstreamServer {
    /// All servers, each with its shared state.
    pub(in crate::upstream) fn all(
        settings: &UpstreamSettings,
        states: &[Arc<UpstreamServerState>],
    ) -> Vec<Self> {
        let servers = settings.servers.iter().zip(states).enumerate().take(MAX_SERVERS);
        servers
            .map(|(index, (server, state))| Self::new(index, server, settings, Arc::clone(state)))
            .collect()
    }

    pub(in crate::upstream) fn new(
        index: usize,
        server: &UpstreamServerSettings,
        all: &UpstreamSettings,
        state: Arc<UpstreamServerState>,
    ) -> Self {
        let host = all.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
        Self {
            index,
            name: server.name().into(),
            host: host.unwrap_or_else(|| server.target.host_header()),
            connections: Arc::new(ServerConnections::new(server, all, &state.connections)),
            connect_timeout: all.connect_timeout,
            may_resend_unread: all.resend_unread
                && all.protocol == Protocol::Http1
                && server.target.address.is_local(),
            state,
        }
    }

    /// Goes on with the connections of `known`, if they are as those of this server would be.
    pub(in crate::upstream) fn take_connections_of(&mut self, known: &Self) {
        if Arc::ptr_eq(&self.state, &known.state) && self.connections.are_like(&known.connections) {
            self.connections = Arc::clone(&known.connections);
        }
    }
}
