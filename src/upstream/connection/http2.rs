//! HTTP/2: a connection to a server for each class of routes, on which each request of a thread is a stream.
//!
//! A task of its own drives each connection. When a connection has ended, the next request makes another one.

use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version, header};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Mutex;

use super::connector::{Connector, traced};
use super::error::ConnectError;
use super::exchange_error::{ExchangeError, SendError};
use super::limits::{HEAD_BUFFER, UNASKED_UPGRADE};
use super::stats::ConnectionStats;
use super::stream::UpstreamStream;
use crate::body::{Body, BodyDriver};
use crate::framing::{FramingError, FramingFields};
use crate::header::mark_credentials;
use crate::route::Class;
use crate::trace::SpanParent;

/// How often an idle or silent connection is checked with a PING, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections a request may be tried on, if each ends before it could be sent.
const MAX_CONNECTION_TRIES: usize = 3;

type Sender = http2::SendRequest<Body>;
type Connection = http2::Connection<TokioIo<UpstreamStream>, Body, TokioExecutor>;

/// Bytes of a response that may be on their way while its client does not read. The second is more than all
/// streams of a connection have: no stream waits because another client does not read.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// The connections of one thread to one server.
///
/// Each class of routes has its own: a server bounds how many streams one connection may have, and
/// while `/allowed` waits for Gitaly with all of them, Gitaly calls back.
#[derive(Debug)]
pub(in crate::upstream) struct Http2Connections {
    connector: Connector,
    scheme: Scheme,
    slots: [Arc<ConnectionSlot>; Class::ALL.len()],
}

/// Room for one connection.
#[derive(Debug, Default)]
struct ConnectionSlot {
    /// Locked while a connection is being made.
    sender: Mutex<Option<Sender>>,
    /// How often that has failed, and the last error: requests that have waited for it need not try again.
    failures: AtomicU64,
    failure: parking_lot::Mutex<Option<ConnectError>>,
}

impl Http2Connections {
    pub(super) fn new(connector: Connector) -> Self {
        let scheme = if connector.is_tls() { Scheme::HTTPS } else { Scheme::HTTP };
        Self { connector, scheme, slots: Default::default() }
    }

    /// Sends a request. It is sent once: over another connection only if nothing of it was written.
    pub(super) async fn send(
        &self,
        request: &mut Request<Body>,
        class: Class,
    ) -> Result<Response<Body>, SendError> {
        for _ in 0..MAX_CONNECTION_TRIES {
            let sender = self.sender(class, request.extensions().get()).await;
            let mut sender = sender.map_err(SendError::Connect)?;
            match self.send_over(&mut sender, request).await {
                Err(StreamError::NotWritten) => {}
                Err(StreamError::Failed(error)) => return Err(error),
                Ok(response) => return Ok(response),
            }
        }
        Err(SendError::Connect(ConnectError::other("it ends each connection at once")))
    }

    /// Sends a request over a connection of its own, which ends with it.
    pub(super) async fn send_unshared(
        &self,
        request: &mut Request<Body>,
    ) -> Result<Response<Body>, SendError> {
        let (mut sender, connection) = self.connect().await.map_err(SendError::Connect)?;
        // The stream reports how it ended.
        tokio::spawn(async move { drop(connection.await) });
        self.send_over(&mut sender, request).await.map_err(|error| match error {
            StreamError::NotWritten => {
                SendError::Connect(ConnectError::other("it ends the connection at once"))
            }
            StreamError::Failed(error) => error,
        })
    }

    async fn send_over(
        &self,
        sender: &mut Sender,
        request: &mut Request<Body>,
    ) -> Result<Response<Body>, StreamError> {
        let guard = StreamGuard::new(self.connector.stats());
        match sender.try_send_request(self.to_http2(request)).await {
            Ok(response) => match validate(&response) {
                Ok(()) => Ok(response.map(|stream| Body::driven(stream, Box::new(guard)))),
                Err(why) => Err(StreamError::Failed(SendError::Unusable(why))),
            },
            Err(mut failed) => Err(match failed.take_message() {
                Some(unsent) => {
                    *request.body_mut() = unsent.into_body();
                    StreamError::NotWritten
                }
                None => {
                    StreamError::Failed(SendError::Exchange(ExchangeError::from_http2(failed.into_error())))
                }
            }),
        }
    }

    /// Makes a connection for the class, if there is none.
    pub(super) async fn preconnect(&self, class: Class) -> Result<(), ConnectError> {
        self.sender(class, None).await.map(drop)
    }

    async fn sender(&self, class: Class, parent: Option<&SpanParent>) -> Result<Sender, ConnectError> {
        let slot = class.of(&self.slots);
        let failures = slot.failures.load(Ordering::Relaxed);
        let mut sender = slot.sender.lock().await;
        if let Some(sender) = sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        if slot.failures.load(Ordering::Relaxed) != failures
            && let Some(error) = &*slot.failure.lock()
        {
            return Err(error.for_waiters(None));
        }
        let (new, connection) = traced(parent, self.connect()).await.inspect_err(|error| {
            *slot.failure.lock() = Some(error.clone());
            slot.failures.fetch_add(1, Ordering::Relaxed);
        })?;
        let (slot, expires_at) = (Arc::downgrade(slot), self.connector.expires_at());
        tokio::spawn(drive(connection, slot, expires_at, Arc::clone(self.connector.stats())));
        *sender = Some(new.clone());
        Ok(new)
    }

    async fn connect(&self) -> Result<(Sender, Connection), ConnectError> {
        let stream = self.connector.connect().await?;
        Ok(http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEAD_BUFFER)
            .handshake(TokioIo::new(stream))
            .await?)
    }

    /// RFC 9113 §8.3.1: scheme and authority are fields of their own, and headers do not carry framing
    /// (§8.2.2). Credentials are marked here, as late as can be, since only HPACK looks at the mark: no request over
    /// HTTP/1.1 pays for it, and those that are signed just before they are sent are among them.
    ///
    /// A body in memory stays with the request, so that it can be sent again; a stream is taken out of it.
    fn to_http2(&self, request: &mut Request<Body>) -> Request<Body> {
        let path = request.uri().path_and_query().cloned();
        let body = request.body().try_clone().unwrap_or_else(|| std::mem::take(request.body_mut()));
        let mut sent = Request::new(body);
        sent.method_mut().clone_from(request.method());
        sent.headers_mut().clone_from(request.headers());
        let headers = sent.headers_mut();
        headers.remove(header::CONNECTION);
        mark_credentials(headers);
        let host = headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let mut parts = Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = host;
        parts.path_and_query = path.or(Some(PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *sent.uri_mut() = uri;
            sent.headers_mut().remove(header::HOST);
        }
        *sent.version_mut() = Version::HTTP_2;
        sent
    }
}

/// hyper lets these through.
fn validate<B>(response: &Response<B>) -> Result<(), &'static str> {
    let mut framing = FramingFields::default();
    for length in response.headers().get_all(header::CONTENT_LENGTH) {
        let added = framing.add(header::CONTENT_LENGTH.as_str().as_bytes(), length.as_bytes());
        added.map_err(FramingError::text)?;
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS { Err(UNASKED_UPGRADE) } else { Ok(()) }
}

/// Why there is no response.
enum StreamError {
    /// Nothing was written.
    NotWritten,
    Failed(SendError),
}

/// Drives a connection to its end. No new stream begins on it once its server is drained or it is too old.
async fn drive(
    connection: Connection,
    slot: Weak<ConnectionSlot>,
    expires_at: Option<Instant>,
    stats: Arc<ConnectionStats>,
) {
    let expired = async {
        match expires_at {
            Some(expires_at) => tokio::time::sleep_until(expires_at.into()).await,
            None => pending().await,
        }
    };
    let mut connection = pin!(connection);
    let mut drained = pin!(stats.drain.wait());
    drained.as_mut().enable();
    if !stats.drain.is_on() {
        tokio::select! {
            // How it ended, the streams report.
            _ = connection.as_mut() => return,
            () = drained => {}
            () = expired => {}
        }
    }
    let close_slot = async {
        if let Some(slot) = slot.upgrade() {
            slot.sender.lock().await.take();
        }
    };
    // It ends once there is no sender and no stream.
    let _ = tokio::join!(close_slot, connection);
}

/// Counts a stream until its response has ended, or is dropped.
#[derive(Debug)]
struct StreamGuard(Arc<ConnectionStats>);

impl StreamGuard {
    fn new(stats: &Arc<ConnectionStats>) -> Self {
        stats.active_streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(stats))
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.active_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl BodyDriver for StreamGuard {
    /// The connection's own task does.
    fn drive(&mut self, _: &mut Context<'_>) {}

    fn release(self: Box<Self>) {}
}
