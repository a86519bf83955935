//! One connection: hyper between the gate and the service, with draining and eviction.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tower::Service;

use super::callers::AcceptedCallers;
use super::connection_handle::ConnectionHandle;
use super::gate::Gate;
use super::hangup::DetectHangup;
use super::inbound::Inbound;
use super::peers::TrustedProxies;
use super::registry::{ConnectionState, Registration, ServerPhase};
use super::wire;
use crate::header::{ClientScheme, forwarded};

pin_project! {
    /// Ends when the peer or hyper closes it, when the server stops, or when it is evicted.
    pub(super) struct Connection<I, S, B>
    where
        S: Service<Inbound, Response = Response<B>, Error = Infallible>,
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
        B: 'static,
    {
        #[pin]
        pub(super) http: http1::Connection<TokioIo<Gate<I>>, ConnectionService<S>>,
        pub(super) registration: Registration,
        // Set once the registry has the task's waker.
        pub(super) has_task: bool,
        pub(super) is_draining: bool,
    }
}

impl<I, S, B> Future for Connection<I, S, B>
where
    I: DetectHangup + 'static,
    S: Service<Inbound, Response = Response<B>, Error = Infallible>,
    B: HttpBody<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if !*this.has_task {
            this.registration.set_task(cx);
            *this.has_task = true;
        }
        match this.registration.state().phase() {
            ServerPhase::Open | ServerPhase::Leaving => {}
            ServerPhase::Draining if *this.is_draining => {}
            ServerPhase::Draining => {
                *this.is_draining = true;
                this.http.as_mut().graceful_shutdown();
            }
            ServerPhase::Stopped => return Poll::Ready(()),
        }
        match this.http.poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "connection ended early");
                Poll::Ready(())
            }
            // After hyper has read what was received: a request that has started is not dropped.
            Poll::Pending if this.registration.state().must_close() => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// What is known of the client of a connection.
pub(super) struct ClientSide {
    /// Its address, or that of the proxy that speaks for it.
    pub(super) peer: Option<IpAddr>,
    pub(super) scheme: ClientScheme,
    /// Whose requests the listener takes; `None`: all.
    pub(super) accept: Option<AcceptedCallers>,
    /// Only if the peer is one of them: then its requests say who the client is.
    pub(super) proxies: Option<Arc<TrustedProxies>>,
}

impl ClientSide {
    /// The client of a request: its address, and the scheme of its URL.
    pub(super) fn of(&self, headers: &HeaderMap) -> (Option<IpAddr>, ClientScheme) {
        let Some(proxies) = &self.proxies else { return (self.peer, self.scheme) };
        let is_proxy = |address| proxies.networks.contains(address);
        let scheme = forwarded::scheme_behind(headers).unwrap_or(self.scheme);
        (forwarded::client_behind(headers, self.peer, is_proxy), scheme)
    }
}

/// Passes the requests of one connection to the service that all connections share.
pub(super) struct ConnectionService<S> {
    /// Never contended: a server has one thread.
    pub(super) service: Arc<Mutex<S>>,
    pub(super) client: ClientSide,
    pub(super) connection: Arc<ConnectionState>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for ConnectionService<S>
where
    S: Service<Inbound, Response = Response<B>, Error = Infallible>,
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Response = Response<TrackedBody<B>>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let connection = ConnectionHandle::new(&self.connection);
        let refusal = wire::refusal_in(&request);
        let (remote_ip, scheme) = self.client.of(request.headers());
        let peer = self.client.peer;
        let accept = self.client.accept;
        let inbound =
            Inbound { request, body_driver: None, refusal, peer, remote_ip, scheme, accept, connection };
        let mut service = self.service.lock();
        // Nothing waits for readiness here, so nothing is to be woken.
        let is_ready = service.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready();
        let future = is_ready.then(|| service.call(inbound));
        ResponseFuture { future, connection: Some(Arc::clone(&self.connection)), is_response_pending: false }
    }
}

pin_project! {
    /// Tracks whether the response is pending.
    pub(super) struct ResponseFuture<F> {
        // `None` if the service is not ready.
        #[pin]
        future: Option<F>,
        connection: Option<Arc<ConnectionState>>,
        is_response_pending: bool,
    }
}

impl<F, B> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<TrackedBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let progress = match this.future.as_pin_mut() {
            Some(future) => future.poll(cx).map(|Ok(response)| response.map(Either::Left)),
            None => Poll::Ready(not_ready().map(Either::Right)),
        };
        let is_response_pending = progress.is_pending();
        if is_response_pending != *this.is_response_pending
            && let Some(connection) = this.connection
        {
            *this.is_response_pending = is_response_pending;
            connection.set_response_pending(is_response_pending);
            // Once there is a response, the connection does not wait for the rest of the body.
            if !is_response_pending {
                connection.set_awaits_peer(false);
            }
        }
        let mut response = ready!(progress);
        let connection = this.connection.take();
        if connection.as_ref().is_some_and(|connection| connection.phase() != ServerPhase::Open) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, connection, is_response_pending: false })))
    }
}

/// The response of a service that is not ready.
pub(super) fn not_ready() -> Response<Full<Bytes>> {
    tracing::warn!("the service is not ready for a request, which is answered with 503");
    let body =
        Bytes::from_static(br#"{"message":"GitLab is busy at the moment. Please try again shortly."}"#);
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

pin_project! {
    /// The body of a response. Its connection is not idle until it is sent.
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: Either<B, Full<Bytes>>,
        connection: Option<Arc<ConnectionState>>,
        is_response_pending: bool,
    }

    impl<B> PinnedDrop for TrackedBody<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(connection) = this.project().connection.take() {
                connection.set_response_pending(false);
                connection.request_finished();
            }
        }
    }
}

impl<B> HttpBody for TrackedBody<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.project();
        let progress = this.body.poll_frame(cx);
        let is_response_pending = progress.is_pending();
        if is_response_pending != *this.is_response_pending
            && let Some(connection) = this.connection
        {
            *this.is_response_pending = is_response_pending;
            connection.set_response_pending(is_response_pending);
        }
        progress
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
