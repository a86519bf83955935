//! Connections to Rails, over TCP, with or without TLS, or a unix socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use super::error::ConnectError;
use super::happy_eyeballs;
use super::stats::ConnectionStats;
use super::stream::{UpstreamSocket, UpstreamStream};
use super::target::UpstreamAddress;
use super::tls::Tls;
use crate::clock::Clock;
use crate::log::truncated;
use crate::trace::{ActiveSpan, SpanKind, SpanParent};
use crate::upstream::settings::UpstreamServerSettings;

/// Makes connections to one address.
#[derive(Debug)]
pub(super) struct Connector {
    address: UpstreamAddress,
    /// The address, for logs.
    name: String,
    is_tls: bool,
    tls: Option<Tls>,
    timeout: Duration,
    /// How old a connection may become; zero is without limit.
    max_age: Duration,
    /// The address that accepted while another one was silent, and until when it is preferred.
    preferred: Mutex<Option<(SocketAddr, Instant)>>,
    stats: Arc<ConnectionStats>,
}

impl Connector {
    pub(super) fn new(
        server: &UpstreamServerSettings,
        timeout: Duration,
        stats: Arc<ConnectionStats>,
    ) -> Self {
        Self {
            address: server.target.address.clone(),
            name: server.name(),
            is_tls: server.target.is_tls,
            tls: server.tls.clone(),
            timeout,
            max_age: Duration::ZERO,
            preferred: Mutex::default(),
            stats,
        }
    }

    /// Its connections get no new requests once they have about this age.
    pub(super) fn with_max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// When a connection that is made now expires, if there is a limit. The times are spread, so that connections
    /// made together do not expire together.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        (!self.max_age.is_zero())
            .then(|| Clock::System.now() + self.max_age.mul_f32(1.0 - fastrand::f32() / 5.0))
    }

    pub(super) fn stats(&self) -> &Arc<ConnectionStats> {
        &self.stats
    }

    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    pub(super) async fn connect(&self) -> Result<UpstreamStream, ConnectError> {
        if self.is_tls && self.tls.is_none() {
            // A missing TLS set-up must not lead to a connection in clear.
            return Err(ConnectError::tls("no certificates are set up"));
        }
        let outcome = self.open().await;
        if outcome.is_err() {
            self.stats.failed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(UpstreamStream::new(outcome?, Arc::clone(&self.stats)))
    }

    async fn open(&self) -> Result<UpstreamSocket, ConnectError> {
        let (timeout, tls) = (self.timeout, self.tls.as_ref());
        match &self.address {
            // `localhost` is often ::1 first, and Puma on 127.0.0.1 only.
            UpstreamAddress::Tcp(host, port) => {
                let open = async |address| Ok((address, open_tcp(address, tls).await?));
                let first = self.preferred();
                let ((address, socket), failed) =
                    happy_eyeballs::connect(host, *port, first, timeout, open).await?;
                self.record_failed(address, &failed);
                Ok(socket)
            }
            UpstreamAddress::Unix(path) => {
                match tokio::time::timeout(timeout, UnixStream::connect(path)).await {
                    Ok(stream) => Ok(UpstreamSocket::Unix(stream?)),
                    Err(_) => Err(happy_eyeballs::timed_out(timeout)),
                }
            }
        }
    }

    /// The address to try first.
    fn preferred(&self) -> Option<SocketAddr> {
        self.preferred.lock().filter(|(_, until)| Clock::System.now() < *until).map(|(address, _)| address)
    }

    /// Records the addresses that did not answer before `address`. One that refuses costs no time, as with
    /// `localhost`; one that is silent would delay every connection.
    fn record_failed(&self, address: SocketAddr, failed: &happy_eyeballs::FailedAddresses) {
        let server = &self.name;
        // Not again for each connection that is made beside the silent one.
        if failed.has_silent() && self.preferred() != Some(address) {
            let _span = crate::request_span::current().entered();
            tracing::warn!(server, %address, %failed, "an address of Rails is silent, another one answers");
        } else if !failed.is_empty() {
            let _span = crate::request_span::current().entered();
            tracing::debug!(server, %address, %failed, "connected to another address of Rails");
        }
        if failed.has_silent() {
            *self.preferred.lock() = Some((address, Clock::System.now() + PREFERRED_TTL));
        }
    }
}

/// Makes a connection, with a span if the request that needs it is sampled.
pub(super) async fn traced<T>(
    parent: Option<&SpanParent>,
    connect: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let span = parent.map(|parent| ActiveSpan::begin(parent, "connect", SpanKind::Internal));
    let outcome = connect.await;
    if let Some(span) = span {
        // Some errors quote the other side, certificates included.
        span.end(outcome.as_ref().err().map(|error| truncated(&error.to_string(), 1024).into_owned()));
    }
    outcome
}

/// How long an address that accepted is tried before one that was silent.
const PREFERRED_TTL: Duration = Duration::from_secs(60);

/// Notices within 25 s that the machine of a server has vanished, as HTTP/2 does by its PING: a request would wait
/// for `response_timeout`, and a body that pauses for `body_timeout`. It also keeps a firewall on the way from
/// forgetting a connection that is silent while Rails works.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(10))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// With TLS, an address has accepted only once the handshake is done.
async fn open_tcp(address: SocketAddr, tls: Option<&Tls>) -> Result<UpstreamSocket, ConnectError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // A system that cannot do so is no reason to go without a connection.
    let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
    Ok(match tls {
        Some(tls) => UpstreamSocket::Tls(Box::new(tls.connect(stream).await?)),
        None => UpstreamSocket::Tcp(stream),
    })
}

#[cfg(test)]
mod tests;
