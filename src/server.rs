//! Connections: accepted, bounded in number and time, handed to a service, drained at the end.
//!
//! A server lives on one thread, and so does each of its connections, from the first byte to the
//! last: handing a request to another thread would cost a wake-up. All connections of a server
//! share one service. Knows HTTP framing (the gate) but no request.

mod charset;
mod connection;
mod gate;
mod listen;
mod patience;
mod seats;
pub(crate) mod wire;

use std::convert::Infallible;
use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use self::connection::{Caller, Connection};
use self::gate::{Gate, GateLimits};
pub use self::listen::{Endpoint, Listener, Socket};
use self::seats::{Phase, Seat, Seats};
use self::wire::HeadLimits;

/// What `[limits]` of the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at one time, on all listeners together; more wait in the kernel.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head: usize,
    /// Header lines of a request.
    pub headers: usize,
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
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
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
}

/// What is known of the connections, for the metrics.
#[derive(Debug, Default)]
pub struct Connections {
    /// Open now.
    pub open: AtomicI64,
    /// Accepted so far.
    pub accepted: AtomicU64,
}

/// The connections of one thread. Several servers can share their bound on connections.
#[derive(Clone, Debug)]
pub struct Server {
    limits: Limits,
    permits: Arc<Semaphore>,
    connections: Arc<Connections>,
    seats: Arc<Seats>,
    /// Accept connections.
    doors: TaskTracker,
    /// No new connections.
    closed: CancellationToken,
    /// Those on which nobody accepts any more.
    listeners: Arc<Mutex<Vec<Listener>>>,
}

impl Server {
    /// A server without listeners yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            permits: Arc::new(Semaphore::new(limits.connections)),
            connections: Arc::default(),
            seats: Arc::default(),
            doors: TaskTracker::new(),
            closed: CancellationToken::new(),
            listeners: Arc::default(),
        }
    }

    /// A server for another thread, with the same bound on connections for both together.
    #[must_use]
    pub fn sibling(&self) -> Self {
        let (seats, doors, closed) = (Arc::default(), TaskTracker::new(), CancellationToken::new());
        Self { seats, doors, closed, listeners: Arc::default(), ..self.clone() }
    }

    /// What is known of the connections, those of siblings included.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
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
            let accepted = match listener {
                Listener::Tcp(listener) => {
                    listener.accept().await.map(|(socket, peer)| (Either::Left(socket), Some(peer.ip())))
                }
                Listener::Unix(_, listener) => {
                    listener.accept().await.map(|(socket, _)| (Either::Right(socket), None))
                }
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            // Behind it, not before: a listener where nobody comes would keep a share for itself.
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
            match socket {
                Either::Left(tcp) => self.spawn(tcp, peer.map(|ip| ip.to_canonical()), permit, service),
                Either::Right(unix) => self.spawn(unix, None, permit, service),
            }
        }
    }

    fn spawn<I, S, B>(
        &self,
        socket: I,
        peer: Option<IpAddr>,
        permit: OwnedSemaphorePermit,
        service: &Arc<Mutex<S>>,
    ) where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let counted = Counted::new(Arc::clone(&self.connections), permit);
        let seat = Seat::take(&self.seats);
        let limits = GateLimits {
            head: HeadLimits { bytes: self.limits.head, headers: self.limits.headers },
            head_timeout: self.limits.head_timeout,
            idle_timeout: self.limits.idle_timeout,
        };
        let gate = Gate::new(socket, limits, Arc::clone(&seat));
        let caller = Caller { service: Arc::clone(service), peer, seat: Arc::clone(&seat) };
        let http = http1::Builder::new()
            .max_headers(self.limits.headers)
            // The gate bounds every wait, this one included.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(gate), caller);
        tokio::spawn(Connection { http, seat, is_seated: false, is_draining: false, _counted: counted });
    }

    /// Stops accepting, lets running requests finish, and drops what still runs after
    /// `limits.drain_timeout`. True if nothing had to be dropped.
    pub async fn drain(&self) -> bool {
        self.closed.cancel();
        self.doors.close();
        self.doors.wait().await;
        self.seats.enter(Phase::Draining);
        // Only now: whoever finds the doors closed can count on nothing more being begun behind them.
        self.listeners.lock().clear();
        let in_time = tokio::time::timeout(self.limits.drain_timeout, self.seats.empty()).await.is_ok();
        self.seats.enter(Phase::Stopped);
        self.seats.empty().await;
        in_time
    }
}

/// A connection's share of the limit and of the count, given back when it ends.
struct Counted {
    connections: Arc<Connections>,
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    fn new(connections: Arc<Connections>, permit: OwnedSemaphorePermit) -> Self {
        connections.accepted.fetch_add(1, Ordering::Relaxed);
        connections.open.fetch_add(1, Ordering::Relaxed);
        Self { connections, _permit: permit }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A peer that left again is no reason to wait. Out of file descriptors is: accepting again at
/// once would only spin.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    tracing::error!(%error, "cannot accept connections; is the limit of open files (ulimit -n) too low?");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests;
