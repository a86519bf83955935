//! The sockets of all listeners, bound or taken over from systemd.

use std::io;
use std::sync::Arc;

use crate::config::GatewayConfig;
use crate::server::open_files::{self, FileDemand};
use crate::server::{BoundSocket, Capacity, InheritedSockets, ListenSettings, ServerTls};

/// The sockets of the gateway, before its threads share them.
pub(super) struct BoundSockets {
    /// For each `[[listen]]`, one share per worker.
    shares: Vec<std::vec::IntoIter<BoundSocket>>,
    pub(super) clients: Vec<Arc<Capacity>>,
    pub(super) admin: BoundSocket,
    pub(super) hooks: Option<BoundSocket>,
}

impl BoundSockets {
    pub(super) fn bind(settings: &GatewayConfig, mut inherited: InheritedSockets) -> io::Result<Self> {
        let (mut shares, mut clients) = (Vec::new(), Vec::new());
        for (listen, connections) in settings.listen.iter().zip(connections_within_open_files(settings)) {
            let count = (connections, settings.workers);
            let options = Arc::new(listen.options.clone());
            let bound = BoundSocket::open(&listen.address, count, &mut inherited)?;
            let bound: Vec<_> = bound.into_iter().map(|share| share.with_options(&options)).collect();
            clients.extend(bound.first().map(|share| Arc::clone(share.capacity())));
            shares.push(bound.into_iter());
        }
        let mut one = |address, connections| {
            let mut bound = BoundSocket::open(address, (connections, 1), &mut inherited)?;
            bound.pop().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let admin = one(&settings.admin.address, settings.admin.connections)?;
        let hooks =
            settings.hooks.as_ref().map(|hooks| one(&hooks.address, hooks.connections)).transpose()?;
        for name in inherited.names() {
            tracing::warn!(
                name,
                "systemd has passed a socket that no listener has as its address, systemd:NAME"
            );
        }
        Ok(Self { shares, clients, admin, hooks })
    }

    /// Of the listeners for clients, with their names.
    pub(super) fn certificates(&self, settings: &GatewayConfig) -> Vec<(String, ServerTls)> {
        let named = |(listen, capacity): (&ListenSettings, &Arc<Capacity>)| {
            Some((capacity.name().to_owned(), listen.options.tls.clone()?))
        };
        settings.listen.iter().zip(&self.clients).filter_map(named).collect()
    }

    /// Of the listeners for hooks and operators.
    pub(super) fn others(&self) -> Vec<Arc<Capacity>> {
        self.hooks.iter().chain([&self.admin]).map(|socket| Arc::clone(socket.capacity())).collect()
    }

    /// The sockets of the next worker.
    pub(super) fn next_share(&mut self) -> Vec<BoundSocket> {
        self.shares.iter_mut().filter_map(Iterator::next).collect()
    }
}

/// How many connections each listener for clients may have: as configured, or fewer, so that the open files
/// suffice for all of them, for Rails and for operators.
fn connections_within_open_files(settings: &GatewayConfig) -> Vec<usize> {
    let demand = file_demand(settings);
    let Some(limit) = open_files::raise_limit() else { return demand.clients };
    let clients = demand.clients_within(limit);
    if clients != demand.clients {
        tracing::warn!(
            limit,
            needed = demand.total(),
            connections = ?clients,
            "the limit of open files is too low for the configured connections, so fewer are accepted; raise it \
             (ulimit -n, LimitNOFILE=) to what is needed, or lower limits.connections"
        );
    }
    clients
}

/// How many files a gateway with this configuration may need at one time.
pub fn file_demand(settings: &GatewayConfig) -> FileDemand {
    let upstream = &settings.upstream;
    FileDemand {
        clients: settings.listen.iter().map(|listen| listen.connections).collect(),
        operators: settings.admin.connections + settings.hooks.as_ref().map_or(0, |hooks| hooks.connections),
        requests: upstream.classes.iter().map(|class| class.concurrency).sum(),
        idle_upstream: upstream.max_idle * upstream.servers.len(),
        reserve: 64 + settings.workers * (8 + 2 * settings.listen.len()),
    }
}
