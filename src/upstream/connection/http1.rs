//! HTTP/1.1: a pool of idle connections to a server, and the exchange of one request over a connection.
//!
//! A connection belongs to the request that it carries: the task that awaits the response, and then
//! the task that reads its body, moves the bytes. So there is no other task to wake for each step. If the
//! client leaves, the connection is closed; else it returns to the pool when the body ends.
//!
//! While connections are idle, a task watches them: one that Rails closes is removed before a request
//! could be sent over it, and one that has been idle for too long is closed.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::connector::{Connector, traced};
use super::error::{ConnectError, ExchangeError, SendError};
use super::head_state::HeadState;
use super::limits::http1_builder;
use super::stats::ConnectionStats;
use super::stream::UpstreamStream;
use crate::body::{Body, BodyDriver, BodyTransfer};
use crate::clock::Clock;
use crate::write_batch;

#[derive(Debug)]
pub(in crate::upstream) struct Http1Pool {
    connector: Connector,
    idle: Arc<IdleConnections>,
}

/// Connections without a request, the most recently used at the end.
#[derive(Debug)]
struct IdleConnections {
    list: Mutex<IdleList>,
    /// How many may be idle, over all threads; they are counted in `stats`.
    max_idle: usize,
    idle_timeout: Duration,
    stats: Arc<ConnectionStats>,
}

#[derive(Debug, Default)]
struct IdleList {
    connections: Vec<(Box<PooledConnection>, Instant)>,
    watcher: Option<(Waker, AbortHandle)>,
}

/// A connection to Rails, idle or in use.
#[derive(Debug)]
struct PooledConnection {
    sender: http1::SendRequest<Body>,
    /// `None` once it has ended. A request that it has not taken from the sender goes back when it is dropped.
    connection: Option<http1::Connection<UpstreamStream, Body>>,
    /// Whether it has ended with a reset.
    was_reset: bool,
    /// The pool that it returns to; it may be gone, or be none at all.
    idle: Weak<IdleConnections>,
    /// From when on it gets no new request.
    expires_at: Option<Instant>,
    head_state: Arc<HeadState>,
}

impl Http1Pool {
    pub(super) fn new(connector: Connector, max_idle: usize, idle_timeout: Duration) -> Self {
        let stats = Arc::clone(connector.stats());
        let idle = IdleConnections { list: Mutex::default(), max_idle, idle_timeout, stats };
        Self { connector, idle: Arc::new(idle) }
    }

    /// Sends a request over a new connection or, with `may_reuse`, an idle one. It is sent once: over another
    /// connection only if nothing was written to an idle one that turned out to be closed.
    pub(super) async fn send(
        &self,
        mut request: Box<Request<Body>>,
        sending: &BodyTransfer,
        may_reuse: bool,
    ) -> Result<Response<Body>, SendError> {
        // Here, and not when hyper writes: once it has begun with a request, the request is sent once, and a
        // connection that is closed meanwhile would be an error.
        write_batch::wait_to_write(request.body().size_hint().lower()).await;
        while may_reuse && let Some(mut pooled) = self.idle.take() {
            match pooled.send(*request).await {
                Ok(response) => return Ok(pooled.into_response(response, sending)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = Box::new(unsent),
                    None => return Err(pooled.failed(failed)),
                },
            }
        }
        match Box::pin(traced(request.extensions().get(), self.connect())).await {
            Ok(pooled) => pooled.send_first(request, sending).await,
            Err(error) => Err(SendError::Connect(error, request)),
        }
    }

    /// Whether a connection for a single request is cheap enough: only without TLS.
    pub(super) fn may_send_unpooled(&self) -> bool {
        !self.connector.is_tls()
    }

    /// Sends a request over a connection of its own, which ends with it.
    ///
    /// Puma serves a persistent connection on and on while requests come (5.6: ten in a row) before it looks
    /// at new ones; over connections of their own, requests wait behind those of others.
    pub(super) async fn send_unpooled(
        &self,
        mut request: Box<Request<Body>>,
        sending: &BodyTransfer,
    ) -> Result<Response<Body>, SendError> {
        request.headers_mut().append(header::CONNECTION, HeaderValue::from_static("close"));
        match Box::pin(traced(request.extensions().get(), self.connect_unpooled())).await {
            Ok(pooled) => pooled.send_first(request, sending).await,
            Err(error) => Err(SendError::Connect(error, request)),
        }
    }

    async fn connect(&self) -> Result<Box<PooledConnection>, ConnectError> {
        let stream = self.connector.connect().await?;
        PooledConnection::handshake(stream, Arc::downgrade(&self.idle), self.connector.expires_at()).await
    }

    async fn connect_unpooled(&self) -> Result<Box<PooledConnection>, ConnectError> {
        let stream = self.connector.connect().await?;
        stream.close_without_time_wait()?;
        PooledConnection::handshake(stream, Weak::new(), None).await
    }

    /// Makes a connection, and keeps it for the next request.
    pub(super) async fn preconnect(&self) -> Result<(), ConnectError> {
        self.idle.keep(self.connect().await?);
        Ok(())
    }
}

type HyperSendError = hyper::client::conn::TrySendError<Request<Body>>;

impl PooledConnection {
    async fn handshake(
        stream: UpstreamStream,
        idle: Weak<IdleConnections>,
        expires_at: Option<Instant>,
    ) -> Result<Box<Self>, ConnectError> {
        let head_state = Arc::clone(stream.head_state());
        let (sender, connection) = http1_builder().handshake(stream).await?;
        Ok(Box::new(Self {
            sender,
            connection: Some(connection),
            was_reset: false,
            idle,
            expires_at,
            head_state,
        }))
    }

    async fn send_first(
        mut self: Box<Self>,
        request: Box<Request<Body>>,
        sending: &BodyTransfer,
    ) -> Result<Response<Body>, SendError> {
        match self.send(*request).await {
            Ok(response) => Ok(self.into_response(response, sending)),
            Err(failed) => Err(self.failed(failed)),
        }
    }

    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, HyperSendError> {
        let Self { sender, connection, was_reset, head_state, .. } = self;
        head_state.begin_head();
        let mut sent = pin!(sender.try_send_request(request));
        poll_fn(|cx| {
            // First the request, so that the connection has something to do; then whether driving it has
            // brought the response already.
            if let Poll::Ready(response) = sent.as_mut().poll(cx) {
                return Poll::Ready(response);
            }
            drive(connection, was_reset, cx);
            sent.as_mut().poll(cx)
        })
        .await
        .inspect(|_| head_state.end_head())
    }

    fn failed(&self, error: HyperSendError) -> SendError {
        SendError::Exchange(ExchangeError::new(error.into_error(), self.was_reset))
    }

    /// Ties the connection to the body that comes over it. If Rails has responded before it had all of the
    /// request, the task that sends the rest may not read the response until that is done: then a task drives
    /// the connection, until both bodies have ended or the client has left, and it is not used again.
    fn into_response(mut self: Box<Self>, head: Response<Incoming>, sent: &BodyTransfer) -> Response<Body> {
        if !sent.is_in_progress() {
            return head.map(|stream| Body::driven(stream, self));
        }
        if let Some(connection) = self.connection.take() {
            // Both bodies report how it ended.
            tokio::spawn(async move { drop(connection.await) });
        }
        head.map(Body::from)
    }

    /// Whether it can carry another request, as far as is known without a system call.
    fn seems_usable(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready() && !self.is_expired(Clock::System.now())
    }

    /// Whether it is too old: the name may resolve to another address by now.
    fn is_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.seems_usable()
    }
}

/// Reads and writes what is ready. The response reports how a connection ended, except for a reset.
fn drive(
    connection: &mut Option<http1::Connection<UpstreamStream, Body>>,
    was_reset: &mut bool,
    cx: &mut Context<'_>,
) {
    if connection.as_mut().is_some_and(|connection| Pin::new(connection).poll(cx).is_ready())
        && let Some(over) = connection.take()
    {
        *was_reset = over.into_parts().io.was_reset();
    }
}

impl BodyDriver for PooledConnection {
    fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.connection, &mut self.was_reset, cx);
    }

    fn release(self: Box<Self>) {
        if let Some(idle) = self.idle.upgrade() {
            idle.keep(self);
        }
    }
}

impl IdleConnections {
    /// The most recently used connection, so that surplus ones time out. If Rails has closed it and the runtime
    /// knows, hyper sees that before it writes, and gives the request back.
    fn take(&self) -> Option<Box<PooledConnection>> {
        loop {
            let (pooled, _) = self.list.lock().connections.pop()?;
            self.stats.idle.fetch_sub(1, Ordering::Relaxed);
            if pooled.seems_usable() {
                return Some(pooled);
            }
        }
    }

    fn keep(self: &Arc<Self>, mut pooled: Box<PooledConnection>) {
        let mut list = self.list.lock();
        let watcher = match &list.watcher {
            Some((waker, _)) => waker.clone(),
            None => Waker::noop().clone(),
        };
        if !pooled.is_usable(&mut Context::from_waker(&watcher)) || self.stats.drain.is_on() {
            return;
        }
        let below_limit = |idle: usize| (idle < self.max_idle).then_some(idle + 1);
        if self.stats.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_limit).is_err() {
            return;
        }
        list.connections.push((pooled, Clock::System.now()));
        if list.watcher.is_none() {
            let stats = Arc::clone(&self.stats);
            let watcher = tokio::spawn(watch_idle(Arc::downgrade(self), stats)).abort_handle();
            list.watcher = Some((Waker::noop().clone(), watcher));
        }
    }

    /// Closes connections that the server has closed, or that have been idle for too long. Returns when to
    /// sweep again.
    fn sweep(&self, cx: &mut Context<'_>) -> Instant {
        let now = Clock::System.now();
        let mut list = self.list.lock();
        if let Some((waker, _)) = &mut list.watcher {
            waker.clone_from(cx.waker());
        }
        let before = list.connections.len();
        if self.stats.drain.is_on() {
            list.connections.clear();
        }
        list.connections
            .retain_mut(|(pooled, since)| now < *since + self.idle_timeout && pooled.is_usable(cx));
        self.stats.idle.fetch_sub(before - list.connections.len(), Ordering::Relaxed);
        // A connection that becomes idle later and is due before that is found to be expired when it is taken.
        let due = list.connections.iter().map(|(pooled, since)| {
            let idle = *since + self.idle_timeout;
            pooled.expires_at.map_or(idle, |expires_at| expires_at.min(idle))
        });
        due.min().unwrap_or(now + self.idle_timeout)
    }
}

/// Sweeps the idle connections, until the pool is dropped.
async fn watch_idle(idle: Weak<IdleConnections>, stats: Arc<ConnectionStats>) {
    let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
    let mut drained = pin!(stats.drain.wait());
    poll_fn(|cx| {
        loop {
            while drained.as_mut().poll(cx).is_ready() {
                drained.set(stats.drain.wait());
            }
            let Some(idle) = idle.upgrade() else { return Poll::Ready(()) };
            timer.as_mut().reset(idle.sweep(cx).into());
            ready!(timer.as_mut().poll(cx));
        }
    })
    .await;
}

impl Drop for IdleConnections {
    fn drop(&mut self) {
        let list = self.list.get_mut();
        self.stats.idle.fetch_sub(list.connections.len(), Ordering::Relaxed);
        if let Some((_, watcher)) = &list.watcher {
            watcher.abort();
        }
    }
}

#[cfg(test)]
mod tests;
