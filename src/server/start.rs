//! From an accepted socket to a connection that speaks HTTP.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::Either;
use http::Response;
use http_body::Body as HttpBody;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tower::Service;

use super::capacity::ConnectionPermit;
use super::connection::{ClientSide, Connection, ConnectionService};
use super::gate::{Gate, GateLimits};
use super::hangup::{DetectHangup, HangupSocket};
use super::inbound::Inbound;
use super::listen::ListenOptions;
use super::preamble::{self, PreambleError};
use super::registry::Registration;
use super::wire::HeadLimits;
use super::{Accepted, HttpServer};
use crate::header::ClientScheme;

/// Bytes that hyper may read of a connection beyond the largest head.
const READ_AHEAD: usize = 8 * 1024;

impl HttpServer {
    pub(super) fn start<S, B>(
        &self,
        (socket, peer): Accepted,
        permit: ConnectionPermit,
        options: &Arc<ListenOptions>,
        service: &Arc<Mutex<S>>,
    ) where
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let registration = self.registry.register(permit, peer.is_none_or(|ip| ip.is_loopback()));
        match (socket, options.has_preamble()) {
            (Either::Left(tcp), false) => {
                self.spawn(HangupSocket::new(tcp), registration, ClientSide::new(peer, options), service);
            }
            (Either::Right(unix), false) => {
                self.spawn(HangupSocket::new(unix), registration, ClientSide::new(peer, options), service);
            }
            (Either::Left(tcp), true) => {
                self.spawn_prepared(HangupSocket::new(tcp), (registration, peer), options, service);
            }
            (Either::Right(unix), true) => {
                self.spawn_prepared(HangupSocket::new(unix), (registration, peer), options, service);
            }
        }
    }

    pub(super) fn spawn<I, S, B>(
        &self,
        socket: I,
        registration: Registration,
        client: ClientSide,
        service: &Arc<Mutex<S>>,
    ) where
        I: DetectHangup + Send + 'static,
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        tokio::spawn(self.connection(socket, registration, client, Arc::clone(service)));
    }

    fn connection<I, S, B>(
        &self,
        socket: I,
        registration: Registration,
        client: ClientSide,
        service: Arc<Mutex<S>>,
    ) -> Connection<I, S, B>
    where
        I: DetectHangup + 'static,
        S: Service<Inbound, Response = Response<B>, Error = Infallible>,
        B: HttpBody<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let state = registration.state();
        let all = **self.limits.load();
        let limits = GateLimits {
            head: HeadLimits { bytes: all.head, headers: all.headers, target: all.target },
            first_byte_timeout: all.first_byte_timeout,
            head_timeout: all.head_timeout,
            idle_timeout: all.idle_timeout,
        };
        let gate = Gate::new(socket, limits, Arc::clone(state));
        let connection_service = ConnectionService { service, client, connection: Arc::clone(state) };
        let http = http1::Builder::new()
            .max_headers(all.headers)
            // A head has to fit. More would be memory that any client can use up.
            .max_buf_size(all.head + READ_AHEAD)
            // The gate bounds every wait, this one included.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(gate), connection_service);
        Connection { http, registration, has_task: false, is_draining: false }
    }

    /// The connection counts, and can be closed for another one, from its first byte on.
    fn spawn_prepared<I, S, B>(
        &self,
        socket: I,
        (registration, peer): (Registration, Option<IpAddr>),
        options: &Arc<ListenOptions>,
        service: &Arc<Mutex<S>>,
    ) where
        I: DetectHangup + Send + 'static,
        S: Service<Inbound, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let (server, options, service) = (self.clone(), Arc::clone(options), Arc::clone(service));
        tokio::spawn(async move {
            let limit = server.limits.load().first_byte_timeout;
            let prepared = preamble::prepare(socket, peer, &options, limit);
            match preamble::until_closed(&registration, prepared).await {
                None => {}
                Some(Err(PreambleError { refusal, error })) => {
                    let listener = registration.state().refuse(refusal);
                    tracing::debug!(listener, reason = %refusal, %error, remote_ip = ?peer, "a connection was closed");
                }
                Some(Ok((socket, peer))) => {
                    // The time for the first byte of HTTP begins now.
                    registration.state().reset_idle();
                    let client = ClientSide::new(peer, &options);
                    server.connection(socket, registration, client, service).await;
                }
            }
        });
    }
}

impl ClientSide {
    fn new(peer: Option<IpAddr>, options: &ListenOptions) -> Self {
        let scheme = if options.tls.is_some() { ClientScheme::Https } else { ClientScheme::Http };
        let proxies = options.trusted_proxies.as_ref().filter(|proxies| proxies.trust(peer)).map(Arc::clone);
        Self { peer, scheme, proxies }
    }
}
