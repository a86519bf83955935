//! HTTP/1.1: a pool of idle connections to a server, and the exchange of one request over a connection.
//!
//! A connection belongs to the request that it carries: the task that awaits the response, and then
//! the task that reads its body, unless that came with the head, moves the bytes. So there is no other task to wake for each step. If the
//! client leaves, the connection is closed; else it returns to the pool when the body ends.
//!
//! The request is sent by reference, so that sending it again costs no copy.

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body as _;
use tokio_util::task::TaskTracker;

use self::idle::{IdleConnections, PooledConnection};
use self::request::Persistence;
use super::connector::{Connector, traced};
use super::error::ConnectError;
use super::exchange_error::SendError;
use crate::body::Body;
use crate::write_batch;

mod body;
mod connection;
mod early;
pub(super) mod error;
mod head;
mod idle;
mod request;

#[derive(Debug)]
pub(in crate::upstream) struct Http1Pool {
    connector: Connector,
    idle: Arc<IdleConnections>,
    /// Owns what goes on after an early response, for a bounded time.
    tasks: TaskTracker,
}

impl Http1Pool {
    pub(super) fn new(connector: Connector, max_idle: usize, idle_timeout: Duration) -> Self {
        let stats = Arc::clone(connector.stats());
        let idle = Arc::new(IdleConnections::new(max_idle, idle_timeout, stats));
        Self { connector, idle, tasks: TaskTracker::new() }
    }

    /// Sends a request over a new connection or, with `may_reuse`, an idle one. It is sent once: over another
    /// connection only if an idle one turns out to be closed before anything is written to it. A body in memory stays
    /// with the request; a stream is taken out of it once there is a connection.
    pub(super) async fn send(
        &self,
        request: &mut Request<Body>,
        may_reuse: bool,
    ) -> Result<Response<Body>, SendError> {
        // Not when the connection writes: it may be closed meanwhile.
        write_batch::wait_to_write(request.body().size_hint().lower()).await;
        while may_reuse && let Some(mut pooled) = self.idle.take() {
            if !poll_fn(|cx| Poll::Ready(pooled.is_usable(cx))).await {
                continue;
            }
            match pooled.send(request, Persistence::KeepAlive).await {
                // The server has closed it meanwhile.
                Err(failed) if !failed.was_written && request.body().in_memory().is_some() => {}
                outcome => return outcome.map_err(SendError::from),
            }
        }
        match Box::pin(traced(request.extensions().get(), self.connect())).await {
            Ok(pooled) => Ok(pooled.send(request, Persistence::KeepAlive).await?),
            Err(error) => Err(SendError::Connect(error)),
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
        request: &mut Request<Body>,
    ) -> Result<Response<Body>, SendError> {
        match Box::pin(traced(request.extensions().get(), self.connect_unpooled())).await {
            Ok(pooled) => Ok(pooled.send(request, Persistence::Close).await?),
            Err(error) => Err(SendError::Connect(error)),
        }
    }

    async fn connect(&self) -> Result<Box<PooledConnection>, ConnectError> {
        let stream = self.connector.connect().await?;
        let (idle, expires_at) = (Arc::downgrade(&self.idle), self.connector.expires_at());
        Ok(PooledConnection::new(stream, idle, expires_at, &self.tasks))
    }

    async fn connect_unpooled(&self) -> Result<Box<PooledConnection>, ConnectError> {
        let stream = self.connector.connect().await?;
        stream.close_without_time_wait()?;
        Ok(PooledConnection::new(stream, Weak::new(), None, &self.tasks))
    }

    /// Makes a connection, and keeps it for the next request.
    pub(super) async fn preconnect(&self) -> Result<(), ConnectError> {
        self.idle.keep(self.connect().await?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
