//! HTTP/2: one connection to a server, on which each request of a thread is a stream.
//!
//! A task of its own drives it, for as long as it lives. When it has ended, the next request makes
//! another one.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::Duration;

use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version, header};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Mutex;

use super::connect::Connector;
use super::pool::Trouble;
use super::server::ServerState;
use crate::body::{Body, Carrier};

/// How often the other side is asked whether it is still there, and for how long.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);

/// How often a request goes to another connection because one has ended before it could be sent.
const MOST_CONNECTIONS: usize = 3;

type Sender = http2::SendRequest<Body>;

/// The way to one server, for one thread.
#[derive(Debug)]
pub(super) struct Streams {
    connector: Connector,
    scheme: Scheme,
    /// Of the connection, while there is one. Whoever makes one has the lock meanwhile.
    sender: Arc<Mutex<Option<Sender>>>,
    state: Arc<ServerState>,
}

impl Streams {
    pub(super) fn new(connector: Connector, is_tls: bool, state: Arc<ServerState>) -> Self {
        let scheme = if is_tls { Scheme::HTTPS } else { Scheme::HTTP };
        Self { connector, scheme, sender: Arc::default(), state }
    }

    /// Sends a request. It is sent once: over another connection only if nothing of it was written.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Trouble> {
        let mut request = self.translated(request);
        for _ in 0..MOST_CONNECTIONS {
            let mut sender = match self.sender().await {
                Ok(sender) => sender,
                Err(error) => return Err(Trouble::Connect(error, Box::new(request))),
            };
            let ticket = Ticket::new(&self.state);
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok(answer.map(|stream| Body::carried(stream, Box::new(ticket)))),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(failed_at(failed.into_error())),
                },
            }
        }
        let error = io::Error::new(io::ErrorKind::ConnectionAborted, "it ends each connection at once");
        Err(Trouble::Connect(error, Box::new(request)))
    }

    /// Makes a connection, if there is none.
    pub(super) async fn open(&self) -> io::Result<()> {
        self.sender().await.map(drop)
    }

    async fn sender(&self) -> io::Result<Sender> {
        let mut sender = self.sender.lock().await;
        if let Some(sender) = sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = self.connector.connect().await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(true)
            .handshake(stream);
        let (new, connection) = handshake.await.map_err(io::Error::other)?;
        let (state, its_sender) = (Arc::clone(&self.state), Arc::downgrade(&self.sender));
        tokio::spawn(async move {
            state.kept.fetch_add(1, Ordering::Relaxed);
            let mut connection = pin!(connection);
            let is_over = tokio::select! {
                // How it ended, the streams say.
                _ = connection.as_mut() => true,
                () = state.health.drained() => false,
            };
            if !is_over {
                // It ends once nobody can send and nothing is under way.
                if let Some(sender) = its_sender.upgrade() {
                    sender.lock().await.take();
                }
                let _ = connection.await;
            }
            state.kept.fetch_sub(1, Ordering::Relaxed);
        });
        *sender = Some(new.clone());
        Ok(new)
    }

    /// RFC 9113 §8.3.1: scheme and authority are fields of their own, and there is no framing in headers (§8.2.2).
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

/// A stream that the server has refused, or that was begun after it had said that it would take no more, it has not
/// looked at (RFC 9113 §8.7).
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
