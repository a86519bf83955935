//! One connection: hyper between a gate and the service, and what draining does to it.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tower::Service;

use super::Inbound;
use super::gate::Gate;
use super::registry::{ConnectionHandle, ConnectionState, Phase, Registered};
use super::socket::Watch;

pin_project! {
    /// Ends when the peer or hyper ends it, when the server stops, or when its place is needed.
    pub(super) struct Connection<I, S, B>
    where
        S: Service<Inbound, Response = Response<B>, Error = Infallible>,
        B: HttpBody,
        B: 'static,
    {
        #[pin]
        pub(super) http: http1::Connection<TokioIo<Gate<I>>, Caller<S>>,
        pub(super) registered: Registered,
        // The registry knows whom to wake.
        pub(super) has_task: bool,
        pub(super) is_draining: bool,
    }
}

impl<I, S, B> Future for Connection<I, S, B>
where
    I: Watch + 'static,
    S: Service<Inbound, Response = Response<B>, Error = Infallible>,
    B: HttpBody<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if !*this.has_task {
            this.registered.is_run_by(cx);
            *this.has_task = true;
        }
        match this.registered.state().phase() {
            Phase::Open => {}
            Phase::Draining if *this.is_draining => {}
            Phase::Draining => {
                *this.is_draining = true;
                this.http.as_mut().graceful_shutdown();
            }
            Phase::Stopped => return Poll::Ready(()),
        }
        match this.http.poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "connection ended early");
                Poll::Ready(())
            }
            // After what has come is read: a request that has begun is not thrown away.
            Poll::Pending if this.registered.state().has_to_leave() => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Hands the requests of one connection to the service that all of them share.
pub(super) struct Caller<S> {
    /// Never waited for: a server has one thread.
    pub(super) service: Arc<Mutex<S>>,
    pub(super) peer: Option<IpAddr>,
    pub(super) connection: Arc<ConnectionState>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Caller<S>
where
    S: Service<Inbound, Response = Response<B>, Error = Infallible>,
    B: HttpBody,
{
    type Response = Response<Answering<B>>;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let connection = ConnectionHandle::new(&self.connection);
        let future = self.service.lock().call(Inbound { request, peer: self.peer, connection });
        Answer { future, connection: Some(Arc::clone(&self.connection)), is_waiting: false }
    }
}

pin_project! {
    /// An answer in the making.
    pub(super) struct Answer<F> {
        #[pin]
        future: F,
        connection: Option<Arc<ConnectionState>>,
        is_waiting: bool,
    }
}

impl<F, B> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<Answering<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let progress = this.future.poll(cx);
        let is_waiting = progress.is_pending();
        if is_waiting != *this.is_waiting
            && let Some(connection) = this.connection
        {
            *this.is_waiting = is_waiting;
            connection.set_waiting(is_waiting);
            // Once there is an answer, what is left of the body is not waited for.
            if !is_waiting {
                connection.set_awaits_body(false);
            }
        }
        let Ok(answer) = ready!(progress);
        let connection = this.connection.take();
        Poll::Ready(Ok(answer.map(|body| Answering { body, connection, is_waiting: false })))
    }
}

pin_project! {
    /// The body of an answer. Until it is sent, its connection is not idle.
    pub(super) struct Answering<B> {
        #[pin]
        body: B,
        connection: Option<Arc<ConnectionState>>,
        is_waiting: bool,
    }

    impl<B> PinnedDrop for Answering<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(connection) = this.project().connection.take() {
                connection.set_waiting(false);
                connection.request_ends();
            }
        }
    }
}

impl<B: HttpBody> HttpBody for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let progress = this.body.poll_frame(cx);
        let is_waiting = progress.is_pending();
        if is_waiting != *this.is_waiting
            && let Some(connection) = this.connection
        {
            *this.is_waiting = is_waiting;
            connection.set_waiting(is_waiting);
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
