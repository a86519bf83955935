//! Accepts connections, limits their number and their times, passes their requests to a service, and drains.
//!
//! A server runs on one thread, and so does each of its connections, from the first byte to the
//! last: passing a request to another thread would cost a wake-up. All connections of a server
//! share one service. It knows HTTP framing (the gate), but not what a request means.

mod callers;
mod capacity;
mod connection;
mod connection_handle;
mod deadline_timer;
mod gate;
mod hangup;
mod http2;
mod inbound;
mod inherited;
mod limiter;
mod listen;
mod listen_address;
pub mod open_files;
mod passing;
mod peers;
mod preamble;
mod proxy_header;
mod registry;
mod start;
mod tls;
mod unix_socket;
pub(crate) mod wire;
mod write_deadline;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::Either;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::callers::AcceptedCallers;
pub use self::capacity::Capacity;
use self::capacity::ConnectionPermit;
pub use self::connection_handle::ConnectionHandle;
pub use self::inbound::{Inbound, Peer, RequestService};
pub use self::inherited::InheritedSockets;
use self::limiter::ConnectionLimiter;
use self::listen::ListenerKind;
pub use self::listen::{BoundSocket, DEFAULT_OPERATOR_CONNECTIONS, ListenOptions, ListenSettings, Listener};
pub use self::listen_address::{ListenAddress, SocketOwner};
pub use self::passing::PassedSockets;
pub use self::peers::{AllowedPeers, ConnectionRefusal, Networks, TrustedProxies};
use self::registry::{ConnectionRegistry, ServerPhase};
pub use self::tls::{ServerTls, ServerTlsError, ServerTlsSettings, TlsVersion, watch as watch_certificates};

/// `[limits]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections open at one time on each listener that has no limit of its own.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// Bytes of a request's target. The default is that of Puma as it is built by default.
    pub target: usize,
    /// How long a new connection may be open before its first byte.
    pub first_byte_timeout: Duration,
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// How long a connection may be open without a request on it, a body may pause, and a peer may
    /// read nothing of a response.
    pub idle_timeout: Duration,
    /// How long running requests may take after the gateway was told to stop.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head: 32 * 1024,
            headers: 100,
            target: wire::DEFAULT_TARGET,
            first_byte_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            // kas keeps its connections for 90 s, and would use closed ones if they ended earlier here.
            idle_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// The server of one thread.
#[derive(Clone, Debug)]
pub struct HttpServer {
    /// Read for each connection.
    limits: Arc<ArcSwap<ServerLimits>>,
    registry: Arc<ConnectionRegistry>,
    accept_tasks: TaskTracker,
    stop_accepting: CancellationToken,
    /// One for each accepted connection that waits for a permit.
    waiting_slots: Arc<Semaphore>,
    /// The listeners whose accept task has ended.
    listeners: Arc<Mutex<Vec<Listener>>>,
}

/// A connection, and the address of its peer; `None` on a unix socket.
type Accepted = (Either<TcpStream, UnixStream>, Option<IpAddr>);

/// How many accepted connections of remote peers may wait for a permit of a full listener, and for
/// how long. Connections beyond these bounds are closed.
const MAX_WAITING: usize = 64;
const WAITING_TIMEOUT: Duration = Duration::from_secs(5);

impl HttpServer {
    /// A server without listeners yet.
    pub fn new(limits: ServerLimits) -> Self {
        Self::with_limits(Arc::new(ArcSwap::from_pointee(limits)))
    }

    /// The same with limits that may be exchanged: those of a connection are those of when it was accepted.
    pub fn with_limits(limits: Arc<ArcSwap<ServerLimits>>) -> Self {
        Self {
            limits,
            registry: Arc::default(),
            accept_tasks: TaskTracker::new(),
            stop_accepting: CancellationToken::new(),
            waiting_slots: Arc::new(Semaphore::new(MAX_WAITING)),
            listeners: Arc::default(),
        }
    }

    /// Accepts connections on `listener` until the server drains. All of them share the service: if each had a
    /// clone, an idle connection would keep what its clone has reserved when it was asked for readiness. It is asked
    /// for each request, and a request that it is not ready for is answered with 503.
    pub fn serve<S: RequestService>(&self, listener: Listener, service: S) {
        listener.limiter.add_registry(&self.registry);
        let server = self.clone();
        let service = Arc::new(Mutex::new(service));
        self.accept_tasks.spawn(async move {
            tokio::select! {
                () = server.stop_accepting.cancelled() => {}
                () = server.accept(&listener, &service) => {}
            }
            server.listeners.lock().push(listener);
        });
    }

    async fn accept<S: RequestService>(&self, listener: &Listener, service: &Arc<Mutex<S>>) {
        loop {
            let accepted = match &listener.kind {
                ListenerKind::Tcp(listener) => {
                    listener.accept().await.map(|(socket, peer)| (Either::Left(socket), Some(peer.ip())))
                }
                ListenerKind::Unix(listener, _) => {
                    listener.accept().await.map(|(socket, _)| (Either::Right(socket), None))
                }
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    back_off_after(&error, &listener.limiter).await;
                    continue;
                }
            };
            let peer = peer.map(|ip| ip.to_canonical());
            if let Some(allowed) = &listener.options.allow_peers
                && !allowed.allow(&socket, peer)
            {
                listener.limiter.capacity().count_refused(ConnectionRefusal::Peer);
                continue;
            }
            let is_local = peer.is_none_or(|ip| ip.is_loopback());
            let limiter = &listener.limiter;
            // After accepting, not before: a listener without new connections would hold a permit for nothing.
            if is_local || !limiter.capacity().accepts_remote_peers() {
                let permit = limiter.acquire(is_local).await;
                self.start((socket, peer), permit, &listener.terms(), service);
                continue;
            }
            // It does not wait here: the next one may be local, and permits are reserved for those.
            match self.permit_or_waiting_slot(limiter).await {
                Some(Either::Left(permit)) => self.start((socket, peer), permit, &listener.terms(), service),
                Some(Either::Right(slot)) => self.queue_connection((socket, peer), slot, listener, service),
                None => limiter.capacity().count_rejected(),
            }
        }
    }

    /// A permit, or else a slot to wait for one. If there is neither at first, evicted and waiting connections
    /// run once before the second try.
    async fn permit_or_waiting_slot(
        &self,
        limiter: &Arc<ConnectionLimiter>,
    ) -> Option<Either<ConnectionPermit, OwnedSemaphorePermit>> {
        for is_last in [false, true] {
            if let Some(permit) = limiter.try_acquire() {
                return Some(Either::Left(permit));
            }
            if let Ok(slot) = Arc::clone(&self.waiting_slots).try_acquire_owned() {
                return Some(Either::Right(slot));
            }
            if !is_last {
                tokio::task::yield_now().await;
            }
        }
        None
    }

    /// Lets a connection wait for a permit while others are accepted.
    fn queue_connection<S: RequestService>(
        &self,
        accepted: Accepted,
        slot: OwnedSemaphorePermit,
        listener: &Listener,
        service: &Arc<Mutex<S>>,
    ) {
        let (server, service) = (self.clone(), Arc::clone(service));
        let terms = listener.terms();
        self.accept_tasks.spawn(async move {
            let permit = tokio::select! {
                () = server.stop_accepting.cancelled() => return,
                permit = tokio::time::timeout(WAITING_TIMEOUT, terms.limiter.acquire(false)) => permit,
            };
            drop(slot);
            match permit {
                Ok(permit) => server.start(accepted, permit, &terms, &service),
                Err(_) => terms.limiter.capacity().count_rejected(),
            }
        });
    }

    /// Stops accepting, lets running requests finish, and closes the remaining connections after
    /// `limits.drain_timeout`. Returns true if none remained.
    pub async fn drain(&self) -> bool {
        self.drain_after(Duration::ZERO).await
    }

    /// The same; but at first, for up to `grace`, each connection may have another request. A client that sends one
    /// just as its idle connection is closed would have to take that for a failure. Of use only if other processes
    /// accept the connections that come next.
    pub async fn drain_after(&self, grace: Duration) -> bool {
        self.stop_accepting.cancel();
        self.accept_tasks.close();
        self.accept_tasks.wait().await;
        let drain_timeout = self.limits.load().drain_timeout;
        let end = deadline_timer::now() + drain_timeout;
        let grace = grace.min(drain_timeout / 2);
        self.registry.enter(if grace.is_zero() { ServerPhase::Draining } else { ServerPhase::Leaving });
        // Only now: a client that finds the socket closed can rely on it that all connections drain.
        self.listeners.lock().clear();
        if !grace.is_zero() {
            let _ = tokio::time::timeout(grace, self.registry.wait_until_empty()).await;
            self.registry.enter(ServerPhase::Draining);
        }
        let in_time = tokio::time::timeout_at(end, self.registry.wait_until_empty()).await.is_ok();
        self.registry.enter(ServerPhase::Stopped);
        self.registry.wait_until_empty().await;
        in_time
    }
}

/// Waits after an error of `accept`, unless the peer has only disconnected again. Without file descriptors,
/// accepting again at once would only spin.
async fn back_off_after(error: &io::Error, limiter: &ConnectionLimiter) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    if limiter.should_log_failure() {
        let listener = limiter.capacity().name();
        tracing::error!(%error, listener, "cannot accept connections; is the limit of open files (ulimit -n) too low?");
    }
    // Idle connections hold the file descriptors that are missing.
    limiter.evict_one();
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests;
