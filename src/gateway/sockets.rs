//! The sockets of all listeners, bound or taken over from another process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::upgrade::Predecessor;
use crate::config::GatewayConfig;
use crate::server::open_files::{self, FileDemand};
use crate::server::{
    BoundSocket, Capacity, InheritedSockets, ListenAddress, ListenSettings, PassedSockets, ServerTls,
};
use crate::service_manager::ServiceManager;

/// The sockets of the gateway, before its threads share them.
pub(super) struct BoundSockets {
    /// For each worker, its shares of all `[[listen]]`.
    workers: std::vec::IntoIter<Vec<BoundSocket>>,
    pub(super) clients: Vec<Arc<Capacity>>,
    pub(super) admin: BoundSocket,
    pub(super) hooks: Option<BoundSocket>,
    /// Where the next process asks for all of these.
    pub(super) upgrade: Option<BoundSocket>,
    pub(super) passed: PassedSockets,
    /// The process that serves them until this one does.
    pub(super) predecessor: Option<Predecessor>,
    /// Names of sockets that were kept for this process, and that it does not need.
    pub(super) outdated: Vec<String>,
}

impl BoundSockets {
    pub(super) fn bind(settings: &GatewayConfig, mut inherited: InheritedSockets) -> io::Result<Self> {
        let predecessor = find_predecessor(settings, &mut inherited)?;
        let mut workers: Vec<_> = (0..settings.workers).map(|_| Vec::new()).collect();
        let (mut passed, mut clients) = (PassedSockets::default(), Vec::new());
        for (listen, connections) in settings.listen.iter().zip(connections_within_open_files(settings)) {
            let count = (connections, settings.workers);
            let options = Arc::new(listen.options.clone());
            let bound = BoundSocket::open(&listen.address, count, &mut inherited)?;
            let bound: Vec<_> = bound.into_iter().map(|share| share.with_options(&options)).collect();
            passed.add(&listen.address, &bound)?;
            clients.extend(bound.first().map(|share| Arc::clone(share.capacity())));
            // Of a gateway with more workers before, there are more than workers.
            for (at, share) in bound.into_iter().enumerate() {
                if let Some(of_worker) = workers.get_mut(at % settings.workers.max(1)) {
                    of_worker.push(share);
                }
            }
        }
        let mut one = |address: &ListenAddress, connections| {
            let mut bound = BoundSocket::open(address, (connections, 1), &mut inherited)?;
            passed.add(address, &bound)?;
            bound.pop().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let admin = one(&settings.admin.address, settings.admin.connections)?;
        let hooks =
            settings.hooks.as_ref().map(|hooks| one(&hooks.address, hooks.connections)).transpose()?;
        let upgrade = settings.upgrade_socket.as_ref();
        let upgrade =
            upgrade.map(|address| BoundSocket::open(address, (1, 1), &mut inherited)).transpose()?;
        let upgrade = upgrade.and_then(|mut bound| bound.pop());
        for (address, socket) in settings.upgrade_socket.iter().zip(&upgrade) {
            passed.add_upgrade(address, socket)?;
        }
        for name in inherited.names() {
            tracing::warn!(
                name,
                "systemd has passed a socket that no listener has as its address, systemd:NAME"
            );
        }
        let outdated = inherited.outdated().into_iter().collect();
        let workers = workers.into_iter();
        Ok(Self { workers, clients, admin, hooks, upgrade, passed, predecessor, outdated })
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
        self.workers.next().unwrap_or_default()
    }
}

/// Takes the sockets of the process that serves at present, if there is one.
fn find_predecessor(
    settings: &GatewayConfig,
    inherited: &mut InheritedSockets,
) -> io::Result<Option<Predecessor>> {
    let Some(ListenAddress::Unix { path, .. }) = &settings.upgrade_socket else { return Ok(None) };
    let Some((predecessor, sockets)) = Predecessor::find(path)? else { return Ok(None) };
    inherited.extend(sockets);
    Ok(Some(predecessor))
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

/// How long connections may have another request at the end, if new ones wait for the next process.
const KEPT_GRACE: Duration = Duration::from_secs(1);

/// Gives the sockets to the service manager, if it keeps them for the next process. Returns how long connections
/// may have another request at the end.
pub(super) async fn keep_sockets(
    manager: &ServiceManager,
    passed: &PassedSockets,
    outdated: &[String],
) -> Duration {
    for name in outdated {
        manager.forget(name);
    }
    if !manager.has_store() {
        return if passed.is_held_by_systemd() { KEPT_GRACE } else { Duration::ZERO };
    }
    for (name, sockets) in passed.to_be_kept() {
        for tries in 0.. {
            match manager.keep(name, &sockets) {
                Ok(()) => break,
                // It reads its messages when it has time.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < 100 => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => {
                    tracing::warn!(%error, name, "the service manager does not keep a socket; a restart will refuse connections");
                    break;
                }
            }
        }
    }
    KEPT_GRACE
}
