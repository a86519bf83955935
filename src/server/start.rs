//! From an accepted socket to a connection that speaks HTTP.

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::Either;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::capacity::ConnectionPermit;
use super::connection::{ClientSide, Connection, ConnectionService};
use super::gate::{Gate, GateLimits};
use super::hangup::{DetectHangup, HangupSocket};
use super::http2::{self, StreamPlaces};
use super::inbound::RequestService;
use super::listen::{ListenOptions, ListenTerms};
use super::preamble::{self, PreambleError, Prepared, Protocol};
use super::registry::Registration;
use super::wire::HeadLimits;
use super::{Accepted, HttpServer, ServerLimits};
use crate::header::ClientScheme;

/// Bytes that hyper may read of a connection beyond the largest head.
const READ_AHEAD: usize = 8 * 1024;

impl HttpServer {
    pub(super) fn start<S>(
        &self,
        (socket, peer): Accepted,
        permit: ConnectionPermit,
        terms: &ListenTerms,
        service: &Arc<Mutex<S>>,
    ) where
        S: RequestService,
    {
        let registration = self.registry.register(permit, peer.is_none_or(|ip| ip.is_loopback()));
        let options = &*terms.options;
        match (socket, options.has_preamble()) {
            (Either::Left(tcp), false) => {
                self.spawn(HangupSocket::new(tcp), registration, ClientSide::new(peer, options), service);
            }
            (Either::Right(unix), false) => {
                self.spawn(HangupSocket::new(unix), registration, ClientSide::new(peer, options), service);
            }
            (Either::Left(tcp), true) => {
                self.spawn_prepared(HangupSocket::new(tcp), (registration, peer), terms, service);
            }
            (Either::Right(unix), true) => {
                self.spawn_prepared(HangupSocket::new(unix), (registration, peer), terms, service);
            }
        }
    }

    pub(super) fn spawn<I, S>(
        &self,
        socket: I,
        registration: Registration,
        client: ClientSide,
        service: &Arc<Mutex<S>>,
    ) where
        I: DetectHangup + Send + 'static,
        S: RequestService,
    {
        // In a box, since a task is moved about ten times before it is where it stays.
        tokio::spawn(Box::pin(self.connection(socket, registration, client, Arc::clone(service))));
    }

    fn connection<I, S>(
        &self,
        socket: I,
        registration: Registration,
        client: ClientSide,
        service: Arc<Mutex<S>>,
    ) -> Connection<I, S, S::Body>
    where
        I: DetectHangup + 'static,
        S: RequestService,
    {
        let state = registration.state();
        let limits = GateLimits::from(&**self.limits.load());
        let gate = Gate::new(socket, limits, Arc::clone(state));
        let connection_service = ConnectionService { service, client, connection: Arc::clone(state) };
        let http = http1::Builder::new()
            .max_headers(limits.head.headers)
            // A head has to fit. More would be memory that any client can use up.
            .max_buf_size(limits.head.bytes + READ_AHEAD)
            // The gate bounds every wait, this one included.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(gate), connection_service);
        Connection { http, registration, has_task: false, is_draining: false }
    }

    /// The connection counts, and can be closed for another one, from its first byte on.
    fn spawn_prepared<I, S>(
        &self,
        socket: I,
        (registration, peer): (Registration, Option<IpAddr>),
        terms: &ListenTerms,
        service: &Arc<Mutex<S>>,
    ) where
        I: DetectHangup + Send + 'static,
        S: RequestService,
    {
        let (server, terms, service) = (self.clone(), terms.clone(), Arc::clone(service));
        tokio::spawn(async move {
            let limit = server.limits.load().first_byte_timeout;
            let options = &terms.options;
            let prepared = preamble::prepare(socket, peer, options, limit);
            match preamble::until_closed(&registration, prepared).await {
                None | Some(Ok(None)) => {}
                Some(Err(PreambleError { refusal, error })) => {
                    let listener = registration.state().refuse(refusal);
                    tracing::debug!(listener, reason = %refusal, %error, remote_ip = ?peer, "a connection was closed");
                }
                Some(Ok(Some(Prepared { socket, peer, protocol }))) => {
                    // The time for the first byte of HTTP begins now.
                    registration.state().reset_idle();
                    let client = ClientSide::new(peer, options);
                    match protocol {
                        Protocol::Http1 => server.connection(socket, registration, client, service).await,
                        Protocol::Http2 => {
                            let limits = GateLimits::from(&**server.limits.load());
                            let waiting_slots = Arc::clone(&server.waiting_slots);
                            let places = StreamPlaces { limiter: terms.limiter, waiting_slots };
                            http2::connection(socket, registration, limits, client, (service, places)).await;
                        }
                    }
                }
            }
        });
    }
}

impl From<&ServerLimits> for GateLimits {
    fn from(all: &ServerLimits) -> Self {
        Self {
            head: HeadLimits { bytes: all.head, headers: all.headers, target: all.target },
            first_byte_timeout: all.first_byte_timeout,
            head_timeout: all.head_timeout,
            idle_timeout: all.idle_timeout,
        }
    }
}

impl ClientSide {
    fn new(peer: Option<IpAddr>, options: &ListenOptions) -> Self {
        let scheme = if options.tls.is_some() { ClientScheme::Https } else { ClientScheme::Http };
        let proxies = options.trusted_proxies.as_ref().filter(|proxies| proxies.trust(peer)).map(Arc::clone);
        Self { peer, scheme, accept: options.accept, proxies }
    }
}
