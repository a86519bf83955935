//! Connections: accepted, bounded in number and time, handed to a service, drained at the end.
//!
//! A server lives on one thread, and so does each of its connections, from the first byte to the
//! last: handing a request to another thread would cost a wake-up. All connections of a server
//! share one service. Knows HTTP framing (the gate) but no request.

mod capacity;
mod charset;
mod connection;
mod gate;
mod listen;
pub mod open_files;
mod patience;
mod registry;
mod socket;
pub(crate) mod wire;

use std::convert::Infallible;
use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

pub use self::capacity::Capacity;
use self::capacity::Place;
use self::connection::{Caller, Connection};
use self::gate::{Gate, GateLimits};
use self::listen::ListenerKind;
pub use self::listen::{DEFAULT_OPERATOR_CONNECTIONS, Endpoint, ListenSettings, Listener, Socket};
pub use self::registry::ConnectionHandle;
use self::registry::{Phase, Registry};
use self::socket::{Watch, Watched};
use self::wire::HeadLimits;

/// What `[limits]` of the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at one time on each listener that does not say otherwise.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// Bytes of a request's target. By default as many as Puma takes as it is built by default.
    pub target: usize,
    /// How long a new connection may be open before its first byte comes.
    pub first_byte_timeout: Duration,
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// How long a connection may be open without a request on it, a body may pause, and a peer may
    /// not take what it is sent.
    pub idle_timeout: Duration,
    /// How long running requests may go on once the gateway is told to stop.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head: 32 * 1024,
            headers: 100,
            target: wire::DEFAULT_TARGET,
            first_byte_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            // kas keeps its connections for 90 s, and meets closed ones if they end first here.
            idle_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// A request, and where it came from.
#[derive(Debug)]
pub struct Inbound {
    /// The request as hyper read it.
    pub request: Request<Incoming>,
    /// The peer's address; none on a unix socket.
    pub peer: Option<IpAddr>,
    /// The connection that it came over.
    pub connection: ConnectionHandle,
}

/// The connections of one thread.
#[derive(Clone, Debug)]
pub struct Server {
    limits: Limits,
    registry: Arc<Registry>,
    /// Accept connections.
    doors: TaskTracker,
    /// No new connections.
    closed: CancellationToken,
    /// Connections of strangers that may wait for a place.
    aside: Arc<Semaphore>,
    /// Those on which nobody accepts any more.
    listeners: Arc<Mutex<Vec<Listener>>>,
}

/// How many connections of other machines wait for a place on a full listener outside the kernel, and for
/// how long. What is beyond that is closed.
const MOST_ASIDE: usize = 64;
const ASIDE_TIMEOUT: Duration = Duration::from_secs(5);

impl Server {
    /// A server without listeners yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            registry: Arc::default(),
            doors: TaskTracker::new(),
            closed: CancellationToken::new(),
            aside: Arc::new(Semaphore::new(MOST_ASIDE)),
            listeners: Arc::default(),
        }
    }

    /// Accepts connections on `listener` until the server drains. The service answers them all, so
    /// it has to be ready at any time: one that has to wait does so in its futures.
    pub fn serve<S, B>(&self, listener: Listener, service: S)
    where
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        listener.capacity.is_shared_by(&self.registry);
        let server = self.clone();
        let service = Arc::new(Mutex::new(service));
        self.doors.spawn(async move {
            tokio::select! {
                () = server.closed.cancelled() => {}
                () = server.accept(&listener, &service) => {}
            }
            server.listeners.lock().push(listener);
        });
    }

    async fn accept<S, B>(&self, listener: &Listener, service: &Arc<Mutex<S>>)
    where
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        loop {
            let accepted = match &listener.kind {
                ListenerKind::Tcp(listener) => {
                    listener.accept().await.map(|(socket, peer)| (Either::Left(socket), Some(peer.ip())))
                }
                ListenerKind::Unix(_, listener) => {
                    listener.accept().await.map(|(socket, _)| (Either::Right(socket), None))
                }
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error, &listener.capacity).await;
                    continue;
                }
            };
            let peer = peer.map(|ip| ip.to_canonical());
            let is_local = peer.is_none_or(|ip| ip.is_loopback());
            let capacity = &listener.capacity;
            // Behind it, not before: a listener where no connection comes would keep a place for itself.
            if is_local || !capacity.is_open_to_others() {
                let place = capacity.admit(is_local).await;
                self.begin(socket, peer, place, service);
                continue;
            }
            // It does not wait here: those behind it may be local, and there are places kept for them.
            match self.place_or_share(capacity).await {
                Some(Either::Left(place)) => self.begin(socket, peer, place, service),
                Some(Either::Right(share)) => self.set_aside(socket, peer, (capacity, share), service),
                None => capacity.turned_away(),
            }
        }
    }

    /// A place, or else the right to wait for one. Connections that were asked to leave, or wait already,
    /// have their turn before there is neither.
    async fn place_or_share(&self, capacity: &Arc<Capacity>) -> Option<Either<Place, OwnedSemaphorePermit>> {
        for is_last in [false, true] {
            if let Some(place) = capacity.try_admit() {
                return Some(Either::Left(place));
            }
            if let Ok(share) = Arc::clone(&self.aside).try_acquire_owned() {
                return Some(Either::Right(share));
            }
            if !is_last {
                tokio::task::yield_now().await;
            }
        }
        None
    }

    /// Lets a connection wait for a place while others are accepted: for a while, and not too many of them.
    fn set_aside<S, B>(
        &self,
        socket: Either<TcpStream, UnixStream>,
        peer: Option<IpAddr>,
        (capacity, share): (&Arc<Capacity>, OwnedSemaphorePermit),
        service: &Arc<Mutex<S>>,
    ) where
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let (server, capacity, service) = (self.clone(), Arc::clone(capacity), Arc::clone(service));
        self.doors.spawn(async move {
            let place = tokio::select! {
                () = server.closed.cancelled() => return,
                place = tokio::time::timeout(ASIDE_TIMEOUT, capacity.admit(false)) => place,
            };
            drop(share);
            match place {
                Ok(place) => server.begin(socket, peer, place, &service),
                Err(_) => capacity.turned_away(),
            }
        });
    }

    fn begin<S, B>(
        &self,
        socket: Either<TcpStream, UnixStream>,
        peer: Option<IpAddr>,
        place: Place,
        service: &Arc<Mutex<S>>,
    ) where
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        match socket {
            Either::Left(tcp) => self.spawn(Watched::new(tcp), peer, place, service),
            Either::Right(unix) => self.spawn(Watched::new(unix), None, place, service),
        }
    }

    fn spawn<I, S, B>(&self, socket: I, peer: Option<IpAddr>, place: Place, service: &Arc<Mutex<S>>)
    where
        I: Watch + Send + 'static,
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let is_local = peer.is_none_or(|ip| ip.is_loopback());
        let registered = self.registry.register(place, is_local);
        let state = registered.state();
        let limits = GateLimits {
            head: HeadLimits {
                bytes: self.limits.head,
                headers: self.limits.headers,
                target: self.limits.target,
            },
            first_byte_timeout: self.limits.first_byte_timeout,
            head_timeout: self.limits.head_timeout,
            idle_timeout: self.limits.idle_timeout,
        };
        let gate = Gate::new(socket, limits, Arc::clone(state));
        let caller = Caller { service: Arc::clone(service), peer, connection: Arc::clone(state) };
        let http = http1::Builder::new()
            .max_headers(self.limits.headers)
            // A head has to fit. What is beyond that is memory that any client can take.
            .max_buf_size(self.limits.head + BUFFER)
            // The gate bounds every wait, this one included.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(gate), caller);
        tokio::spawn(Connection { http, registered, has_task: false, is_draining: false });
    }

    /// Stops accepting, lets running requests finish, and drops what still runs after
    /// `limits.drain_timeout`. True if nothing had to be dropped.
    pub async fn drain(&self) -> bool {
        self.closed.cancel();
        self.doors.close();
        self.doors.wait().await;
        self.registry.enter(Phase::Draining);
        // Only now: whoever finds the doors closed can count on nothing more being begun behind them.
        self.listeners.lock().clear();
        let in_time = tokio::time::timeout(self.limits.drain_timeout, self.registry.empty()).await.is_ok();
        self.registry.enter(Phase::Stopped);
        self.registry.empty().await;
        in_time
    }
}

/// What hyper may have read of a connection, beyond the largest head, before it is wanted.
const BUFFER: usize = 8 * 1024;

/// A peer that left again is no reason to wait. Out of file descriptors is: accepting again at
/// once would only spin.
async fn pause_after(error: &io::Error, capacity: &Capacity) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    if capacity.may_say_failure() {
        let listener = capacity.name();
        tracing::error!(%error, listener, "cannot accept connections; is the limit of open files (ulimit -n) too low?");
    }
    // Idle connections have what is wanting.
    capacity.shrink();
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests;
