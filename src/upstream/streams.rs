//! HTTP/2: a connection to a server for each class of routes, on which each request of a thread is a stream.
//!
//! A task of its own drives it, for as long as it lives. When it has ended, the next request makes
//! another one.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version, header};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Mutex;

use super::answer::BUFFER;
use super::cause::Told;
use super::connect::{Connector, Stream};
use super::pool::Trouble;
use super::server::ServerState;
use crate::body::{Body, Carrier};
use crate::route::Class;

/// How often the other side is asked whether it is still there, and for how long.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);

/// How often a request goes to another connection because one has ended before it could be sent.
const MOST_CONNECTIONS: usize = 3;

type Sender = http2::SendRequest<Body>;
type Connection = http2::Connection<Stream, Body, TokioExecutor>;

/// Bytes of an answer that may be on their way while its client does not read. The second is more than
/// all streams of a connection have: nobody waits because somebody else does not read.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// The way to one server, for one thread.
///
/// Each class of routes has a connection of its own: a server bounds how many streams one may have, and
/// while `/allowed` waits for Gitaly with all of them, Gitaly calls back.
#[derive(Debug)]
pub(super) struct Streams {
    connector: Connector,
    scheme: Scheme,
    slots: [Arc<Slot>; Class::ALL.len()],
    state: Arc<ServerState>,
}

/// A connection, while there is one.
#[derive(Debug, Default)]
struct Slot {
    /// Whoever makes one has the lock meanwhile.
    sender: Mutex<Option<Sender>>,
    /// How often that has failed, and how the last time: who has waited for it need not try again.
    failures: AtomicU64,
    failure: parking_lot::Mutex<Option<(io::ErrorKind, Told)>>,
}

impl Streams {
    pub(super) fn new(connector: Connector, is_tls: bool, state: Arc<ServerState>) -> Self {
        let scheme = if is_tls { Scheme::HTTPS } else { Scheme::HTTP };
        Self { connector, scheme, slots: Default::default(), state }
    }

    /// Sends a request. It is sent once: over another connection only if nothing of it was written.
    pub(super) async fn send(&self, request: Request<Body>, class: Class) -> Result<Response<Body>, Trouble> {
        let mut request = self.translated(request);
        for _ in 0..MOST_CONNECTIONS {
            let mut sender = match self.sender(class).await {
                Ok(sender) => sender,
                Err(error) => return Err(Trouble::Connect(error, Box::new(request))),
            };
            match self.send_over(&mut sender, request).await {
                Err(Unsent::Not(unsent)) => request = *unsent,
                Err(Unsent::Trouble(trouble)) => return Err(trouble),
                Ok(answer) => return Ok(answer),
            }
        }
        let error = io::Error::new(io::ErrorKind::ConnectionAborted, "it ends each connection at once");
        Err(Trouble::Connect(error, Box::new(request)))
    }

    /// Sends a request over a connection of its own, which ends with it.
    pub(super) async fn send_alone(&self, request: Request<Body>) -> Result<Response<Body>, Trouble> {
        let request = self.translated(request);
        let mut sender = match self.connect().await {
            Ok((sender, connection)) => {
                // How it ended, the stream says.
                tokio::spawn(async move { drop(connection.await) });
                sender
            }
            Err(error) => return Err(Trouble::Connect(error, Box::new(request))),
        };
        self.send_over(&mut sender, request).await.map_err(|unsent| match unsent {
            Unsent::Not(request) => {
                let error =
                    io::Error::new(io::ErrorKind::ConnectionAborted, "it ends the connection at once");
                Trouble::Connect(error, request)
            }
            Unsent::Trouble(trouble) => trouble,
        })
    }

    async fn send_over(&self, sender: &mut Sender, request: Request<Body>) -> Result<Response<Body>, Unsent> {
        let ticket = Ticket::new(&self.state);
        match sender.try_send_request(request).await {
            Ok(answer) => Ok(answer.map(|stream| Body::carried(stream, Box::new(ticket)))),
            Err(mut failed) => Err(match failed.take_message() {
                Some(unsent) => Unsent::Not(Box::new(unsent)),
                None => Unsent::Trouble(failed_at(failed.into_error())),
            }),
        }
    }

    /// Makes a connection, if there is none.
    pub(super) async fn open(&self, class: Class) -> io::Result<()> {
        self.sender(class).await.map(drop)
    }

    async fn sender(&self, class: Class) -> io::Result<Sender> {
        let slot = class.of(&self.slots);
        let failures = slot.failures.load(Ordering::Relaxed);
        let mut sender = slot.sender.lock().await;
        if let Some(sender) = sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        if slot.failures.load(Ordering::Relaxed) != failures
            && let Some((kind, told)) = &*slot.failure.lock()
        {
            return Err(told.clone().again(*kind, None));
        }
        let (new, connection) = self.connect().await.inspect_err(|error| {
            *slot.failure.lock() = Some((error.kind(), Told::of(error)));
            slot.failures.fetch_add(1, Ordering::Relaxed);
        })?;
        let (slot, expiry) = (Arc::downgrade(slot), self.connector.expiry());
        tokio::spawn(drive(connection, slot, expiry, Arc::clone(&self.state)));
        *sender = Some(new.clone());
        Ok(new)
    }

    async fn connect(&self) -> io::Result<(Sender, Connection)> {
        let stream = self.connector.connect().await?;
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(BUFFER)
            .handshake(stream)
            .await
            .map_err(io::Error::other)
    }

    /// RFC 9113 §8.3.1: scheme and authority are fields of their own, and there is no framing in headers
    /// (§8.2.2).
    fn translated(&self, mut request: Request<Body>) -> Request<Body> {
        let headers = request.headers_mut();
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONNECTION);
        let host = headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let path = request.uri().path_and_query().cloned();
        let mut parts = Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = host;
        parts.path_and_query = path.or(Some(PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
            request.headers_mut().remove(header::HOST);
        }
        *request.version_mut() = Version::HTTP_2;
        request
    }
}

/// Why there is no answer.
enum Unsent {
    /// Nothing was written.
    Not(Box<Request<Body>>),
    Trouble(Trouble),
}

/// Drives a connection to its end. Once its server is drained or it is too old, nothing begins on it any more.
async fn drive(connection: Connection, slot: Weak<Slot>, expiry: Option<Instant>, state: Arc<ServerState>) {
    let too_old = async {
        match expiry {
            Some(expiry) => tokio::time::sleep_until(expiry.into()).await,
            None => pending().await,
        }
    };
    let mut connection = pin!(connection);
    let mut drained = pin!(state.health.drained());
    drained.as_mut().enable();
    if !state.health.is_drained() {
        tokio::select! {
            // How it ended, the streams say.
            _ = connection.as_mut() => return,
            () = drained => {}
            () = too_old => {}
        }
    }
    let shut = async {
        if let Some(slot) = slot.upgrade() {
            slot.sender.lock().await.take();
        }
    };
    // It ends once nobody can send and nothing is under way.
    let _ = tokio::join!(shut, connection);
}

/// A stream that the server has refused, or that was begun after it had said that it would take no more,
/// it has not looked at (RFC 9113 §8.7).
fn failed_at(error: hyper::Error) -> Trouble {
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    let is_unread = cause.is_some_and(|cause| {
        cause.is_remote()
            && (cause.reason() == Some(h2::Reason::REFUSED_STREAM)
                || cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR))
    });
    if is_unread { Trouble::Refused(error) } else { Trouble::Sent(error, false) }
}

/// Counts a stream until its answer has come to its end, or nobody wants it any more.
#[derive(Debug)]
struct Ticket(Arc<ServerState>);

impl Ticket {
    fn new(state: &Arc<ServerState>) -> Self {
        state.streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Carrier for Ticket {
    /// The connection's own task does.
    fn carry(&mut self, _: &mut Context<'_>) {}

    fn release(self: Box<Self>) {}
}
