//! Accompanies each request until the last byte of its response: request id, metrics, one
//! log line, and the status 499 of clients that disconnect before they were answered.
//!
//! Differs from tower-http's `Trace`, which makes a span for each request: 1,600 instructions where a hit has
//! 32,000. Here an event that needs the span makes it ([`request_span`](crate::request_span)).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header;
use http::{Method, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::body::Body;
use crate::clock::Clock;
use crate::exchange::Exchange;
use crate::failure::{Failure, FailureOrigin};
use crate::header::REQUEST_ID;
use crate::metrics::{FinishedRequest, WorkerMetrics};
use crate::server::Inbound;
use crate::trace::{RequestTrace, Tracer};
use crate::upstream;

mod access_log;
mod in_flight;
mod spans;

pub use self::access_log::ACCESS_LOG;
pub(super) use self::access_log::{filtered, known_method};
use self::in_flight::{InFlightRequest, Shared};

/// Puts [`Observe`] in front of a service.
#[derive(Clone, Debug)]
pub struct ObserveLayer {
    shared: Arc<Shared>,
}

/// Counts and logs requests.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl ObserveLayer {
    /// Counts in `worker_metrics`; logs every request, or only those that fail in the gateway; traces those that
    /// `tracer` samples.
    pub fn new(
        worker_metrics: Arc<WorkerMetrics>,
        clock: Clock,
        logs_all: bool,
        tracer: Option<Tracer>,
    ) -> Self {
        Self { shared: Arc::new(Shared { worker_metrics, clock, logs_all, tracer }) }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, shared: Arc::clone(&self.shared) }
    }
}

impl<S> Service<Inbound> for Observe<S>
where
    S: Service<Exchange, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, inbound: Inbound) -> Self::Future {
        let Inbound { request, body_driver, refusal, peer, remote_ip, scheme, accept, connection } = inbound;
        let request = request.map(|stream| Body::received(stream, body_driver));
        let mut exchange = Exchange { refusal, scheme, accept, ..Exchange::new(request, peer, connection) };
        if let Some(tracer) = &self.shared.tracer {
            begin_trace(tracer, &mut exchange);
        }
        let request = Box::new(InFlightRequest {
            shared: Arc::clone(&self.shared),
            info: exchange.info.clone(),
            started: self.shared.clock.now(),
            method: exchange.request.method().clone(),
            uri: exchange.request.uri().clone(),
            user_agent: exchange.request.headers().get(header::USER_AGENT).cloned(),
            remote_ip,
            request_id: exchange.request_id.clone(),
            status: None,
            sent_bytes: 0,
        });
        self.shared.worker_metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        ResponseFuture { response: self.inner.call(exchange), request: Some(request) }
    }
}

impl InFlightRequest {
    /// Logs and counts the request. If the response was not sent to its end, the client has disconnected, unless
    /// Rails has failed.
    fn finish(self: Box<Self>, is_sent: bool) {
        self.shared.worker_metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        let mut info = self.info.lock();
        if !info.caller.has_credential() {
            info.trace.distrust_caller();
        }
        let client_stayed = is_sent || info.failure_origin == Some(FailureOrigin::Upstream);
        let ended = self.shared.clock.now();
        let took = ended.saturating_duration_since(self.started);
        self.shared.worker_metrics.record(&FinishedRequest {
            info: &info,
            request_id: &self.request_id,
            status: self.status,
            client_stayed,
            duration: took,
        });
        access_log::write(&self, &info, took, client_stayed);
        if let RequestTrace::Sampled(record) = std::mem::take(&mut info.trace) {
            spans::export(&self, &info, *record, ended, client_stayed);
        }
    }
}

/// Out of line, since most gateways trace nothing.
#[cold]
fn begin_trace(tracer: &Tracer, exchange: &mut Exchange) {
    let mut trace = tracer.begin(exchange.request.headers_mut());
    // Whether it is sampled or not: else a later request would be taken for the first one.
    let accepted_at = exchange.connection.take_accepted().filter(|at| tracer.has_seen_all_since(*at));
    if let Some(record) = trace.record() {
        let version = match exchange.request.version() {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        };
        record.accepted_at = accepted_at;
        record.of_arrival.push(("network.protocol.version", version.into()));
        record.of_arrival.push(("url.scheme", exchange.scheme.as_str().into()));
    }
    exchange.info.update(|info| info.trace = trace);
}

pin_project! {
    /// See [`Observe`].
    pub struct ResponseFuture<F> {
        #[pin]
        response: F,
        request: Option<Box<InFlightRequest>>,
    }

    impl<F> PinnedDrop for ResponseFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            // Still here: the client has disconnected before there was a response.
            if let Some(request) = this.project().request.take() {
                request.finish(false);
            }
        }
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for ResponseFuture<F> {
    type Output = Result<Response<ResponseBody>, Infallible>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.response.poll(cx));
        let mut request = this.request.take();
        if let Some(request) = &mut request {
            request.status = Some(response.status());
            response.headers_mut().insert(REQUEST_ID.clone(), request.request_id.to_value());
        }
        let has_body = request.as_ref().is_some_and(|request| request.method != Method::HEAD)
            && !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Poll::Ready(Ok(response.map(|body| ResponseBody { body, request, is_complete: !has_body })))
    }
}

/// The body of a response, which counts its bytes and reports its end.
#[derive(Debug)]
pub struct ResponseBody {
    body: Body,
    request: Option<Box<InFlightRequest>>,
    /// hyper has taken all of the body that is sent to the client.
    is_complete: bool,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        Poll::Ready(match frame {
            None => {
                this.is_complete = true;
                None
            }
            Some(Ok(frame)) => {
                if let (Some(request), Some(data)) = (&mut this.request, frame.data_ref()) {
                    request.sent_bytes += data.len() as u64;
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                let failure = Failure::Upstream(upstream::Error::ResponseBody(error));
                if let Some(request) = &this.request {
                    request.info.record_failure(&failure);
                }
                Some(Err(failure))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            // hyper does not ask for trailers once it has all bytes of the announced length.
            let is_sent =
                self.is_complete || self.body.is_end_stream() || self.body.size_hint().exact() == Some(0);
            request.finish(is_sent);
        }
    }
}
