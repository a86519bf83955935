//! Connections without a request, and what they are while they have one.
//!
//! While connections are idle, a task watches them: one that Rails closes is removed before a request
//! could be sent over it, and one that has been idle for too long is closed.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use super::connection::Http1Connection;
use super::early;
use super::request::Persistence;
use crate::body::{Body, BodyFault, BodySource};
use crate::clock::Clock;
use crate::upstream::connection::exchange_error::SendError;
use crate::upstream::connection::stats::ConnectionStats;
use crate::upstream::connection::stream::UpstreamStream;

/// Connections without a request, the most recently used at the end.
#[derive(Debug)]
pub(super) struct IdleConnections {
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
pub(super) struct PooledConnection {
    connection: Http1Connection,
    /// The pool that it returns to; it may be gone, or be none at all.
    idle: Weak<IdleConnections>,
    /// From when on it gets no new request.
    expires_at: Option<Instant>,
    /// Own what a request leaves behind.
    tasks: TaskTracker,
}

/// Why a connection brought no response.
#[derive(Debug)]
pub(super) struct NoResponse {
    pub(super) error: SendError,
    /// Whether anything of the request was written.
    pub(super) was_written: bool,
}

impl From<NoResponse> for SendError {
    fn from(NoResponse { error, .. }: NoResponse) -> Self {
        error
    }
}

impl PooledConnection {
    pub(super) fn new(
        stream: UpstreamStream,
        idle: Weak<IdleConnections>,
        expires_at: Option<Instant>,
        tasks: &TaskTracker,
    ) -> Box<Self> {
        Box::new(Self { connection: Http1Connection::new(stream), idle, expires_at, tasks: tasks.clone() })
    }

    /// Sends a request, and waits for the head of the response.
    pub(super) async fn send(
        mut self: Box<Self>,
        request: &mut Request<Body>,
        persistence: Persistence,
    ) -> Result<Response<Body>, NoResponse> {
        self.connection.begin(request, persistence);
        match poll_fn(|cx| self.connection.poll_head(cx)).await {
            Ok(head) => Ok(head.map(|()| self.into_body())),
            Err(error) => Err(NoResponse {
                was_written: self.connection.has_begun_to_write(),
                error: SendError::from_http1(error, |error| self.connection.was_reset_unanswered(error)),
            }),
        }
    }

    /// Ties the connection to the body that comes over it. One with a `Content-Length` is mostly there already: then the
    /// connection is free for the next request.
    fn into_body(mut self: Box<Self>) -> Body {
        if self.connection.awaits_request_body() {
            return early::spawn(self.connection, &self.tasks);
        }
        match self.connection.take_whole_body() {
            Some(data) => {
                self.release();
                Body::from(data)
            }
            None => Body::from_source(self),
        }
    }

    /// Whether it can carry another request, as far as is known without a system call.
    fn seems_usable(&self) -> bool {
        self.connection.seems_usable() && !self.is_expired()
    }

    /// Whether it is too old: the name may resolve to another address by now.
    fn is_expired(&self) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= Clock::System.now())
    }

    /// Whether it can carry another request, as far as the runtime knows: Rails has not closed it, nor sent what was not
    /// asked for.
    pub(super) fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.seems_usable() && self.connection.is_usable(cx)
    }
}

impl BodySource for PooledConnection {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        self.connection.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(BodyFault::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.connection.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.connection.size_hint()
    }

    fn release(self: Box<Self>) {
        if let Some(idle) = self.idle.upgrade() {
            idle.keep(self);
        }
    }
}

impl IdleConnections {
    pub(super) fn new(max_idle: usize, idle_timeout: Duration, stats: Arc<ConnectionStats>) -> Self {
        Self { list: Mutex::default(), max_idle, idle_timeout, stats }
    }

    /// The most recently used connection, so that surplus ones time out.
    pub(super) fn take(&self) -> Option<Box<PooledConnection>> {
        loop {
            let (pooled, _) = self.list.lock().connections.pop()?;
            self.stats.idle.fetch_sub(1, Ordering::Relaxed);
            if pooled.seems_usable() {
                return Some(pooled);
            }
        }
    }

    pub(super) fn keep(self: &Arc<Self>, mut pooled: Box<PooledConnection>) {
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
