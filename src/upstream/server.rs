//! One Rails of perhaps several.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::header::HeaderValue;
use http::{Request, Response};

use super::balance::MOST_SERVERS;
use super::cause::Cause;
use super::connect::Connector;
use super::health::Health;
use super::load::Load;
use super::pool::{Pool, Trouble};
use super::streams::Streams;
use super::target::Target;
use super::tls::Tls;
use super::{Settings, State};
use crate::body::{Body, Sending};
use crate::route::Class;

/// What `upstream.url`, or a `[[upstream.server]]`, of the configuration says.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where it listens.
    pub target: Target,
    /// How connections are secured, if they are.
    pub tls: Option<Tls>,
    /// Whether it is asked only if none of the others takes part.
    pub is_backup: bool,
}

/// A server, as one worker sees it.
#[derive(Debug)]
pub(super) struct Server {
    /// Its place in the list of all.
    pub(super) place: usize,
    /// As logs call it.
    pub(super) name: Arc<str>,
    pub(super) host: HeaderValue,
    pub(super) connections: Connections,
    /// Whether a reset proves that a request was not read: if it is on this machine, and the connection is
    /// nobody else's.
    pub(super) may_resend_unread: bool,
    pub(super) state: Arc<ServerState>,
}

impl Server {
    /// All of them, each with what is known of it.
    pub(super) fn all(settings: &Settings, state: &State) -> Vec<Self> {
        let servers = settings.servers.iter().zip(&state.servers).enumerate().take(MOST_SERVERS);
        servers
            .map(|(place, (server, state))| Self::new(place, server, settings, Arc::clone(state)))
            .collect()
    }

    pub(super) fn new(
        place: usize,
        server: &ServerSettings,
        all: &Settings,
        state: Arc<ServerState>,
    ) -> Self {
        let host = all.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
        let tls = server.tls.clone();
        let connector = Connector::new(&server.target, tls, all.connect_timeout, Arc::clone(&state))
            .with_max_age(all.max_connection_age);
        let connections = match all.protocol {
            Protocol::Http1 => {
                Connections::Pool(Pool::new(connector, all.max_idle, all.idle_timeout, Arc::clone(&state)))
            }
            Protocol::Http2 => {
                Connections::Streams(Streams::new(connector, server.target.is_tls, Arc::clone(&state)))
            }
        };
        Self {
            place,
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

/// How requests get there.
#[derive(Debug)]
pub(super) enum Connections {
    Pool(Pool),
    Streams(Streams),
}

impl Connections {
    pub(super) async fn send(
        &self,
        request: Box<Request<Body>>,
        class: Class,
        sending: &Sending,
    ) -> Result<Response<Body>, Trouble> {
        match self {
            Self::Pool(pool) if class == Class::Other && pool.may_send_apart() => {
                Box::pin(pool.send_apart(request, sending)).await
            }
            Self::Pool(pool) => pool.send(request, sending).await,
            Self::Streams(streams) => Box::pin(streams.send(*request, class)).await,
        }
    }

    /// Sends a request of the gateway itself, which is nobody's and has no body.
    pub(super) async fn ask(&self, mut request: Request<Body>) -> Result<Response<Body>, Trouble> {
        match self {
            Self::Pool(pool) => {
                let sending = request.body_mut().watch();
                pool.send(Box::new(request), &sending).await
            }
            Self::Streams(streams) => Box::pin(streams.send_alone(request)).await,
        }
    }

    /// Makes a connection for the next request.
    pub(super) async fn open(&self, class: Class) -> io::Result<()> {
        match self {
            Self::Pool(pool) => pool.open().await,
            Self::Streams(streams) => Box::pin(streams.open(class)).await,
        }
    }
}

/// What is spoken with Rails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 over a pool of connections.
    #[default]
    Http1,
    /// HTTP/2: negotiated over TLS (ALPN), and without TLS taken for granted (RFC 9113 §3.3).
    Http2,
}

impl ServerSettings {
    /// As metrics, logs and operators call it: its address.
    pub fn name(&self) -> String {
        self.target.address.to_string()
    }
}

/// Why a request was sent again, to the same server or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Again {
    /// This one could not be reached, and another was there.
    Unreachable = 0,
    /// It has not read the request.
    Unread = 1,
    /// It gave no answer to a read.
    Read = 2,
}

impl Again {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Unreachable, Self::Unread, Self::Read];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unread => "unread",
            Self::Read => "read",
        }
    }
}

/// What all workers share of one server.
#[derive(Debug)]
pub struct ServerState {
    /// As metrics, logs and operators call it.
    pub name: String,
    /// Whether it is asked only if none of the others takes part.
    pub is_backup: bool,
    /// Whether it takes part.
    pub health: Health,
    protocol: Protocol,
    pub(super) load: Load,
    /// Connections that are open now, used or kept.
    pub(super) open: AtomicI64,
    /// Connections that are kept now, without a request.
    pub(super) kept: AtomicUsize,
    /// Requests that share connections (HTTP/2).
    pub(super) streams: AtomicUsize,
    /// Connections made so far.
    pub opened: AtomicU64,
    /// Attempts to connect that failed.
    pub refused: AtomicU64,
    /// Requests for which there was no connection, and attempts for those that wait, by [`Cause`].
    pub unreachable: [AtomicU64; Cause::ALL.len()],
    /// Requests that were sent again after it had failed, by [`Again`].
    pub resent: [AtomicU64; Again::ALL.len()],
    /// How long it took for the heads of its answers.
    pub took: Durations,
}

impl ServerState {
    pub(super) fn new(server: &ServerSettings, all: &Settings) -> Self {
        let name = server.name();
        Self {
            health: Health::new(name.clone(), all),
            name,
            is_backup: server.is_backup,
            protocol: all.protocol,
            load: Load::new(all.load_memory),
            open: AtomicI64::new(0),
            kept: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unreachable: Default::default(),
            resent: Default::default(),
            took: Durations::default(),
        }
    }

    /// Requests that it has now.
    pub fn in_flight(&self) -> usize {
        match self.protocol {
            Protocol::Http1 => self.connections().saturating_sub(self.kept.load(Ordering::Relaxed)),
            Protocol::Http2 => self.streams.load(Ordering::Relaxed),
        }
    }

    /// Connections to it, used or kept.
    pub fn connections(&self) -> usize {
        usize::try_from(self.open.load(Ordering::Relaxed)).unwrap_or_default()
    }

    pub(super) fn count_unreachable(&self, error: &io::Error) {
        if let Some(count) = self.unreachable.get(Cause::of(error) as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count_resend(&self, why: Again) {
        if let Some(count) = self.resent.get(why as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Durations {
    /// Up to each of [`BOUNDS`], and beyond.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

/// Upper bounds in microseconds: those of the durations by route, so that the two can be compared.
const BOUNDS: [u64; 12] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 15_000_000,
    60_000_000,
];

impl Durations {
    pub(super) fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// The sum in seconds, the number, and how many fell under each bound only.
    pub fn parts(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = BOUNDS.iter().map(|us| Duration::from_micros(*us).as_secs_f64()).chain([f64::INFINITY]);
        let buckets: Vec<_> =
            bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        let sum = Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64();
        (sum, buckets.iter().map(|(_, count)| count).sum(), buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_part_of_its_bucket() {
        let durations = Durations::default();
        for us in [1, 1_000, 1_001, 60_000_000, 60_000_001, 3_600_000_000] {
            durations.observe(Duration::from_micros(us));
        }
        let (sum, count, buckets) = durations.parts();
        assert!((sum - 3_720.002_003).abs() < 1e-6, "{sum}");
        assert_eq!(count, 6);
        let of: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(of, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(buckets.last().map(|(bound, _)| *bound), Some(f64::INFINITY));
    }
}
