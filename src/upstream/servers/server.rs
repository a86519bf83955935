//! One server of Rails, of perhaps several.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use http::header::HeaderValue;
use http::{Request, Response};

use super::balance::MAX_SERVERS;
use super::health::ServerHealth;
use super::load::ServerLoad;
use crate::body::{Body, BodyTransfer};
use crate::counters::Counters;
use crate::histogram::Histogram;
use crate::route::Class;
use crate::upstream::connection::connector::Connector;
use crate::upstream::connection::error::UnreachableCause;
use crate::upstream::connection::http1::{Http1Pool, SendError};
use crate::upstream::connection::http2::Http2Connections;
use crate::upstream::connection::target::UpstreamTarget;
use crate::upstream::connection::tls::Tls;
use crate::upstream::{UpstreamSettings, UpstreamState};

/// One server in the configuration: `upstream.url`, or a `[[upstream.server]]`.
#[derive(Clone, Debug)]
pub struct UpstreamServerSettings {
    /// Where it listens.
    pub target: UpstreamTarget,
    /// TLS, if the target needs it.
    pub tls: Option<Tls>,
    /// Whether it gets requests only while no other server is in rotation.
    pub is_backup: bool,
}

/// A server, as one worker thread sees it.
#[derive(Debug)]
pub(in crate::upstream) struct UpstreamServer {
    /// Its index in the list of servers.
    pub(in crate::upstream) index: usize,
    /// Its address, for logs.
    pub(in crate::upstream) name: Arc<str>,
    pub(in crate::upstream) host: HeaderValue,
    pub(in crate::upstream) connections: ServerConnections,
    /// Whether a reset proves that a request was not read: if the server is on this machine, and its connections
    /// carry one request at a time.
    pub(in crate::upstream) may_resend_unread: bool,
    pub(in crate::upstream) state: Arc<UpstreamServerState>,
}

impl UpstreamServer {
    /// All servers, each with its shared state.
    pub(in crate::upstream) fn all(settings: &UpstreamSettings, state: &UpstreamState) -> Vec<Self> {
        let servers = settings.servers.iter().zip(&state.servers).enumerate().take(MAX_SERVERS);
        servers
            .map(|(index, (server, state))| Self::new(index, server, settings, Arc::clone(state)))
            .collect()
    }

    pub(in crate::upstream) fn new(
        index: usize,
        server: &UpstreamServerSettings,
        all: &UpstreamSettings,
        state: Arc<UpstreamServerState>,
    ) -> Self {
        let host = all.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
        let tls = server.tls.clone();
        let connector = Connector::new(&server.target, tls, all.connect_timeout, Arc::clone(&state))
            .with_max_age(all.max_connection_age);
        let connections = match all.protocol {
            Protocol::Http1 => ServerConnections::Http1(Http1Pool::new(
                connector,
                all.max_idle,
                all.idle_timeout,
                Arc::clone(&state),
            )),
            Protocol::Http2 => ServerConnections::Http2(Http2Connections::new(
                connector,
                server.target.is_tls,
                Arc::clone(&state),
            )),
        };
        Self {
            index,
            name: server.name().into(),
            host: host.unwrap_or_else(|| server.target.host_header()),
            connections,
            may_resend_unread: all.resend_unread
                && all.protocol == Protocol::Http1
                && server.target.address.is_local(),
            state,
        }
    }
}

/// The connections of one thread to a server.
#[derive(Debug)]
pub(in crate::upstream) enum ServerConnections {
    Http1(Http1Pool),
    Http2(Http2Connections),
}

impl ServerConnections {
    pub(in crate::upstream) async fn send(
        &self,
        request: Box<Request<Body>>,
        class: Class,
        sending: &BodyTransfer,
    ) -> Result<Response<Body>, SendError> {
        match self {
            Self::Http1(pool) if class == Class::Other && pool.may_send_unpooled() => {
                Box::pin(pool.send_unpooled(request, sending)).await
            }
            Self::Http1(pool) => pool.send(request, sending).await,
            Self::Http2(streams) => Box::pin(streams.send(*request, class)).await,
        }
    }

    /// Sends a request of the gateway itself, which has no body and no class.
    pub(in crate::upstream) async fn send_probe(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, SendError> {
        match self {
            Self::Http1(pool) => {
                let sending = request.body_mut().track_transfer();
                pool.send(Box::new(request), &sending).await
            }
            Self::Http2(streams) => Box::pin(streams.send_unshared(request)).await,
        }
    }

    /// Makes a connection for the next request.
    pub(in crate::upstream) async fn preconnect(&self, class: Class) -> io::Result<()> {
        match self {
            Self::Http1(pool) => pool.preconnect().await,
            Self::Http2(streams) => Box::pin(streams.preconnect(class)).await,
        }
    }
}

/// The version of HTTP spoken with Rails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 over a pool of connections.
    #[default]
    Http1,
    /// HTTP/2: negotiated over TLS (ALPN), and without TLS assumed (RFC 9113 §3.3).
    Http2,
}

impl UpstreamServerSettings {
    /// Its address; metrics and logs name it by that.
    pub fn name(&self) -> String {
        self.target.address.to_string()
    }
}

/// Why a request was sent again, to the same server or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ResendReason {
    /// This server could not be reached, and there was another one.
    Unreachable = 0,
    /// The server has not read the request.
    Unread = 1,
    /// The request is a read, and the server gave no response.
    SafeRead = 2,
}

impl ResendReason {
    /// All variants, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Unreachable, Self::Unread, Self::SafeRead];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unread => "unread",
            Self::SafeRead => "read",
        }
    }
}

crate::counters::label!(ResendReason);

/// What all threads share about one server.
#[derive(Debug)]
pub struct UpstreamServerState {
    /// Its address; metrics and logs name it by that.
    pub name: String,
    /// Whether it gets requests only while no other server is in rotation.
    pub is_backup: bool,
    /// Whether it is in rotation, and why not.
    pub health: ServerHealth,
    protocol: Protocol,
    pub(in crate::upstream) load: ServerLoad,
    /// Connections that are open now, in use or idle.
    pub(in crate::upstream) connections_open: AtomicI64,
    /// Connections that are idle now (HTTP/1.1).
    pub(in crate::upstream) idle: AtomicUsize,
    /// Requests that share connections now (HTTP/2).
    pub(in crate::upstream) active_streams: AtomicUsize,
    /// Connections made so far.
    pub connections_opened: AtomicU64,
    /// Attempts to connect that failed.
    pub connect_failures: AtomicU64,
    /// Requests, and attempts for held requests, that found no connection, by [`UnreachableCause`].
    pub unreachable_by_cause: Counters<UnreachableCause>,
    /// Requests that were sent again after this server had failed, by [`ResendReason`].
    pub resends: Counters<ResendReason>,
    /// From sending a request to the head of its response, or to the failure to get one.
    pub response_times: Histogram<12>,
}

impl UpstreamServerState {
    pub(in crate::upstream) fn new(server: &UpstreamServerSettings, all: &UpstreamSettings) -> Self {
        let name = server.name();
        Self {
            health: ServerHealth::new(name.clone(), all),
            name,
            is_backup: server.is_backup,
            protocol: all.protocol,
            load: ServerLoad::new(all.load_decay),
            connections_open: AtomicI64::new(0),
            idle: AtomicUsize::new(0),
            active_streams: AtomicUsize::new(0),
            connections_opened: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            unreachable_by_cause: Counters::default(),
            resends: Counters::default(),
            response_times: Histogram::default(),
        }
    }

    /// Requests that it has now.
    pub fn in_flight(&self) -> usize {
        match self.protocol {
            Protocol::Http1 => self.open_connections().saturating_sub(self.idle.load(Ordering::Relaxed)),
            Protocol::Http2 => self.active_streams.load(Ordering::Relaxed),
        }
    }

    /// Connections to it, in use or idle.
    pub fn open_connections(&self) -> usize {
        usize::try_from(self.connections_open.load(Ordering::Relaxed)).unwrap_or_default()
    }

    pub(in crate::upstream) fn count_unreachable(&self, error: &io::Error) {
        self.unreachable_by_cause.increment(UnreachableCause::of(error));
    }

    pub(in crate::upstream) fn count_resend(&self, why: ResendReason) {
        self.resends.increment(why);
    }
}
