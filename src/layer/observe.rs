//! Sees every request from its first byte to the last of its answer: request id, metrics, one
//! log line, and the callers who left before they had their answer.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::body::Body;
use crate::clock::Clock;
use crate::exchange::{Exchange, Record};
use crate::failure::{Failure, Side};
use crate::header::{REQUEST_ID, RequestId};
use crate::metrics::{FinishedRequest, WorkerMetrics};
use crate::server::Inbound;
use crate::upstream;

mod line;

/// The target of the events that tell of requests.
pub const ACCESS_LOG: &str = "access";

/// Puts [`Observe`] in front of a service.
#[derive(Clone, Debug)]
pub struct ObserveLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    worker_metrics: Arc<WorkerMetrics>,
    clock: Clock,
    /// Whether requests that went well are logged too.
    log_all: bool,
}

/// Watches requests.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl ObserveLayer {
    /// Counts in `worker_metrics`; logs every request, or only those that failed here.
    pub fn new(worker_metrics: Arc<WorkerMetrics>, clock: Clock, log_all: bool) -> Self {
        Self { shared: Arc::new(Shared { worker_metrics, clock, log_all }) }
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
    type Response = Response<Observed>;
    type Error = Infallible;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, inbound: Inbound) -> Self::Future {
        let Inbound { request, peer, connection } = inbound;
        let exchange = Exchange::new(request.map(Body::from), peer, connection);
        let request = &exchange.request;
        let watch = Watch {
            shared: Arc::clone(&self.shared),
            record: exchange.record.clone(),
            begun: self.shared.clock.now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            user_agent: request.headers().get(header::USER_AGENT).cloned(),
            peer,
            request_id: exchange.request_id.clone(),
            status: None,
            sent: 0,
        };
        self.shared.worker_metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        Observing { answer: self.inner.call(exchange), watch: Some(watch) }
    }
}

/// What is remembered of a request until its answer is sent.
#[derive(Debug)]
struct Watch {
    shared: Arc<Shared>,
    record: Record,
    begun: Instant,
    method: Method,
    uri: Uri,
    user_agent: Option<HeaderValue>,
    peer: Option<IpAddr>,
    request_id: RequestId,
    status: Option<StatusCode>,
    sent: u64,
}

impl Watch {
    /// The end. A client that was not given `all` of the answer has left, unless Rails broke off.
    fn end(self, all: bool) {
        self.shared.worker_metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        let notes = self.record.notes();
        let whole = all || notes.side == Some(Side::Upstream);
        let took = self.shared.clock.now().saturating_duration_since(self.begun);
        self.shared.worker_metrics.record(&FinishedRequest {
            notes: &notes,
            status: self.status,
            is_whole: whole,
            duration: took,
        });
        line::write(&self, &notes, took, whole);
    }
}

pin_project! {
    /// See [`Observe`].
    pub struct Observing<F> {
        #[pin]
        answer: F,
        watch: Option<Watch>,
    }

    impl<F> PinnedDrop for Observing<F> {
        fn drop(this: Pin<&mut Self>) {
            // Still here: the client left while the answer was being made.
            if let Some(watch) = this.project().watch.take() {
                watch.end(false);
            }
        }
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for Observing<F> {
    type Output = Result<Response<Observed>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut answer) = ready!(this.answer.poll(cx));
        let mut watch = this.watch.take();
        if let Some(watch) = &mut watch {
            watch.status = Some(answer.status());
            answer.headers_mut().insert(REQUEST_ID.clone(), watch.request_id.to_value());
        }
        let has_body = watch.as_ref().is_some_and(|watch| watch.method != Method::HEAD)
            && !matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Poll::Ready(Ok(answer.map(|body| Observed { body, watch, is_whole: !has_body })))
    }
}

/// The body of an answer that is being watched.
#[derive(Debug)]
pub struct Observed {
    body: Body,
    watch: Option<Watch>,
    /// hyper has taken everything that the client is to get.
    is_whole: bool,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        Poll::Ready(match frame {
            None => {
                this.is_whole = true;
                None
            }
            Some(Ok(frame)) => {
                if let (Some(watch), Some(data)) = (&mut this.watch, frame.data_ref()) {
                    watch.sent += data.len() as u64;
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                let failure = Failure::Upstream(upstream::Error::BrokeOff(error));
                if let Some(watch) = &this.watch {
                    watch.record.fail(&failure);
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

impl Drop for Observed {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            // hyper does not ask for trailers where all bytes that were announced are there.
            let is_whole =
                self.is_whole || self.body.is_end_stream() || self.body.size_hint().exact() == Some(0);
            watch.end(is_whole);
        }
    }
}
