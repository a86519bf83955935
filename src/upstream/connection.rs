//! Connections to a server: where it listens, how it is reached, and the exchange of one request.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};

use self::connector::Connector;
use self::error::ConnectError;
use self::exchange_error::SendError;
use self::http1::Http1Pool;
use self::http2::Http2Connections;
use self::protocol::Protocol;
use self::stats::ConnectionStats;
use self::target::UpstreamTarget;
use super::settings::{UpstreamServerSettings, UpstreamSettings};
use crate::body::Body;
use crate::route::Class;

pub(super) mod cause;
mod connector;
pub(super) mod error;
pub(super) mod exchange_error;
pub(crate) mod happy_eyeballs;
mod http1;
mod http2;
mod limits;
pub(super) mod plain_client;
pub(super) mod protocol;
pub(super) mod stats;
mod stream;
pub(super) mod target;
pub mod tls;

/// The connections of one thread to a server.
#[derive(Debug)]
pub(super) struct ServerConnections {
    pool: Pool,
    made_by: ConnectionSettings,
}

/// All settings that connections depend on.
#[derive(Debug, PartialEq, Eq)]
struct ConnectionSettings {
    target: UpstreamTarget,
    tls: Option<tls::TlsIdentity>,
    protocol: Protocol,
    connect_timeout: Duration,
    max_age: Duration,
    idle: (usize, Duration),
}

#[derive(Debug)]
enum Pool {
    Http1(Http1Pool),
    Http2(Http2Connections),
}

impl ServerConnections {
    pub(super) fn new(
        server: &UpstreamServerSettings,
        all: &UpstreamSettings,
        stats: &Arc<ConnectionStats>,
    ) -> Self {
        let connector = Connector::new(server, all.connect_timeout, Arc::clone(stats))
            .with_max_age(all.max_connection_age);
        let pool = match all.protocol {
            Protocol::Http1 => Pool::Http1(Http1Pool::new(connector, all.max_idle, all.idle_timeout)),
            Protocol::Http2 => Pool::Http2(Http2Connections::new(connector)),
        };
        let made_by = ConnectionSettings {
            target: server.target.clone(),
            tls: server.tls.as_ref().map(tls::Tls::identity),
            protocol: all.protocol,
            connect_timeout: all.connect_timeout,
            max_age: all.max_connection_age,
            idle: (all.max_idle, all.idle_timeout),
        };
        Self { pool, made_by }
    }

    /// That of the URL of the server.
    pub(super) fn scheme(&self) -> &'static str {
        if self.made_by.target.is_tls { "https" } else { "http" }
    }

    /// Whether the others were made by the same settings.
    pub(super) fn are_like(&self, others: &Self) -> bool {
        self.made_by == others.made_by
    }

    /// Sends a request. With `may_reuse`, it may go over an idle connection, which Rails may just have closed.
    ///
    /// A body in memory stays with the request, which can be sent again then. A stream is taken out of it, unless there
    /// is no connection.
    pub(super) async fn send(
        &self,
        request: &mut Request<Body>,
        class: Class,
        may_reuse: bool,
    ) -> Result<Response<Body>, SendError> {
        match &self.pool {
            Pool::Http1(pool) if class == Class::Other && pool.may_send_unpooled() => {
                Box::pin(pool.send_unpooled(request)).await
            }
            Pool::Http1(pool) => pool.send(request, may_reuse).await,
            Pool::Http2(streams) => Box::pin(streams.send(request, class)).await,
        }
    }

    /// Sends a request of the gateway itself, which has no body and no class.
    pub(super) async fn send_probe(&self, request: &mut Request<Body>) -> Result<Response<Body>, SendError> {
        match &self.pool {
            Pool::Http1(pool) => pool.send(request, true).await,
            Pool::Http2(streams) => Box::pin(streams.send_unshared(request)).await,
        }
    }

    /// Makes a connection for the next request.
    pub(super) async fn preconnect(&self, class: Class) -> Result<(), ConnectError> {
        match &self.pool {
            Pool::Http1(pool) => pool.preconnect().await,
            Pool::Http2(streams) => Box::pin(streams.preconnect(class)).await,
        }
    }
}
