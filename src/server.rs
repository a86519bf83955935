//! Connections: accepted, bounded in number and time, handed to a service, drained at the end.
//!
//! Generic over the service, of which every connection gets a clone. Knows HTTP framing (the
//! gate) but no request.

mod charset;
mod gate;
mod listen;
pub(crate) mod wire;

use std::convert::Infallible;
use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt as _};

use self::gate::Gate;
pub use self::listen::{Endpoint, Listener};
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

/// Everything that the listeners have in common.
#[derive(Clone, Debug)]
pub struct Server {
    limits: Limits,
    permits: Arc<Semaphore>,
    connections: Arc<Connections>,
    tasks: TaskTracker,
    /// No new connections, and none is kept open between requests.
    drain: CancellationToken,
    /// Whatever still runs is dropped.
    stop: CancellationToken,
}

impl Server {
    /// A server without listeners yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            permits: Arc::new(Semaphore::new(limits.connections)),
            connections: Arc::default(),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
        }
    }

    /// What is known of the connections.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// Accepts connections on `listener` until the server drains.
    pub fn serve<S, B>(&self, listener: Listener, service: S)
    where
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let server = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = server.drain.cancelled() => {}
                () = server.accept(&listener, service) => {}
            }
        });
    }

    async fn accept<S, B>(&self, listener: &Listener, service: S)
    where
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        loop {
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
            let accepted = match listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(socket, peer)| {
                    self.spawn(socket, Some(peer.ip().to_canonical()), permit, service.clone());
                }),
                Listener::Unix(_, listener) => listener.accept().await.map(|(socket, _)| {
                    self.spawn(socket, None, permit, service.clone());
                }),
            };
            if let Err(error) = accepted {
                pause_after(&error).await;
            }
        }
    }

    fn spawn<I, S, B>(&self, socket: I, peer: Option<IpAddr>, permit: OwnedSemaphorePermit, service: S)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        self.connections.accepted.fetch_add(1, Ordering::Relaxed);
        self.connections.open.fetch_add(1, Ordering::Relaxed);
        let server = self.clone();
        self.tasks.spawn(async move {
            let _counted = Counted { connections: Arc::clone(&server.connections), _permit: permit };
            tokio::select! {
                () = server.stop.cancelled() => {}
                () = server.connection(socket, peer, service) => {}
            }
        });
    }

    async fn connection<I, S, B>(&self, socket: I, peer: Option<IpAddr>, service: S)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let limits = HeadLimits { bytes: self.limits.head, headers: self.limits.headers };
        let Limits { head_timeout, idle_timeout, .. } = self.limits;
        let gate = Gate::new(socket, limits, head_timeout, idle_timeout, self.drain.clone());
        let service =
            hyper::service::service_fn(move |request| service.clone().oneshot(Inbound { request, peer }));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // hyper sees a head only once it is whole, so this is the time between requests.
            .header_read_timeout(self.limits.idle_timeout)
            .max_headers(self.limits.headers)
            .serve_connection(TokioIo::new(gate), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended early");
        }
    }

    /// Stops accepting, lets running requests finish, and drops what still runs after
    /// `limits.drain_timeout`. True if nothing had to be dropped.
    pub async fn drain(&self) -> bool {
        self.drain.cancel();
        self.tasks.close();
        let in_time = tokio::time::timeout(self.limits.drain_timeout, self.tasks.wait()).await.is_ok();
        self.stop.cancel();
        self.tasks.wait().await;
        in_time
    }
}

/// A connection's share of the limit and of the count, given back when it ends.
struct Counted {
    connections: Arc<Connections>,
    _permit: OwnedSemaphorePermit,
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
