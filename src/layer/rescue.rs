//! Turns failures into responses; no other layer does. A panic in a layer below is a failure, too, and so is
//! a layer below that is not ready.
//!
//! Differs from tower-http's `CatchPanic`, which boxes each body (100 instructions more a request), and whose
//! response to a panic would not be in the request's log line.

use std::any::Any;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{self, Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::{CatchUnwind, Either};
use http::Response;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::body::Body;
use crate::exchange::{Exchange, SharedRequestInfo};
use crate::failure::Failure;

/// Puts [`Rescue`] in front of a service.
#[derive(Clone, Copy, Debug)]
pub struct RescueLayer;

/// Turns failures and panics into responses.
#[derive(Debug)]
pub struct Rescue<S> {
    inner: S,
    /// What `poll_ready` found out for the next call, and for that one alone.
    readiness: Result<(), Failure>,
}

impl<S> Rescue<S> {
    const fn new(inner: S) -> Self {
        Self { inner, readiness: Err(Failure::Overloaded) }
    }
}

impl<S: Clone> Clone for Rescue<S> {
    /// Readiness is not cloned: what a service has reserved, its clone has not.
    fn clone(&self) -> Self {
        Self::new(self.inner.clone())
    }
}

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue::new(inner)
    }
}

impl<S> Service<Exchange> for Rescue<S>
where
    S: Service<Exchange, Response = Response<Body>, Error = Failure>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    /// Always ready: a call for which the layers below are not ready is a failure, counted and logged like any other.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.readiness = match catch_unwind(AssertUnwindSafe(|| self.inner.poll_ready(cx))) {
            Ok(Poll::Ready(readiness)) => readiness,
            Ok(Poll::Pending) => Err(Failure::Overloaded),
            Err(_) => Err(Failure::Panicked),
        };
        Poll::Ready(Ok(()))
    }

    #[inline(always)]
    fn call(&mut self, exchange: Exchange) -> Self::Future {
        let info = exchange.info.clone();
        let readiness = mem::replace(&mut self.readiness, Err(Failure::Overloaded));
        let call = readiness.and_then(|()| {
            catch_unwind(AssertUnwindSafe(|| self.inner.call(exchange))).map_err(|_| Failure::Panicked)
        });
        let call = match call {
            Ok(call) => Either::Left(AssertUnwindSafe(call).catch_unwind()),
            Err(failure) => Either::Right(ready(Ok(Err(failure)))),
        };
        ResponseFuture { call, info }
    }
}

pin_project! {
    /// See [`Rescue`].
    pub struct ResponseFuture<F> {
        #[pin]
        call: Either<CatchUnwind<AssertUnwindSafe<F>>, Ready<Result<super::LayerResult, PanicPayload>>>,
        info: SharedRequestInfo,
    }
}

type PanicPayload = Box<dyn Any + Send>;

impl<F: Future<Output = super::LayerResult>> Future for ResponseFuture<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = task::ready!(this.call.poll(cx)).unwrap_or(Err(Failure::Panicked));
        Poll::Ready(Ok(outcome.unwrap_or_else(|failure| {
            this.info.record_failure(&failure);
            failure.to_response()
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Rejection;
    use crate::server::ConnectionHandle;
    use http::{Request, StatusCode};
    use tower::{ServiceExt as _, service_fn};

    fn exchange() -> (Exchange, SharedRequestInfo) {
        let exchange = Exchange::new(Request::new(Body::empty()), None, ConnectionHandle::default());
        let info = exchange.info.clone();
        (exchange, info)
    }

    #[tokio::test]
    async fn a_failure_becomes_its_response_and_is_recorded() {
        let failing = service_fn(|_: Exchange| async { Err(Failure::Unauthorized(Rejection::Expired)) });
        let (exchange, info) = exchange();
        let response = RescueLayer.layer(failing).oneshot(exchange).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(info.lock().rejection, Some(Rejection::Expired));
        assert_eq!(info.lock().failure, Some("unauthorized"));
    }

    #[tokio::test]
    async fn a_panic_becomes_a_500() {
        let late = service_fn(|_: Exchange| async { panic!("late") });
        let early =
            service_fn(|_: Exchange| -> std::future::Ready<super::super::LayerResult> { panic!("early") });
        let (first, info) = exchange();
        let response = RescueLayer.layer(late).oneshot(first).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(info.lock().failure, Some("panicked"));
        let (second, _) = exchange();
        let response = RescueLayer.layer(early).oneshot(second).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    /// A service whose readiness is this, and which answers each request.
    #[derive(Clone)]
    struct Readiness<F>(F);

    impl<F: Fn() -> Poll<Result<(), Failure>>> Service<Exchange> for Readiness<F> {
        type Response = Response<Body>;
        type Error = Failure;
        type Future = std::future::Ready<super::super::LayerResult>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            self.0()
        }

        fn call(&mut self, _: Exchange) -> Self::Future {
            ready(Ok(Response::new(Body::empty())))
        }
    }

    async fn failure_if(
        readiness: impl Fn() -> Poll<Result<(), Failure>>,
    ) -> (StatusCode, Option<&'static str>) {
        let (exchange, info) = exchange();
        let response = RescueLayer.layer(Readiness(readiness)).oneshot(exchange).await.unwrap();
        (response.status(), info.lock().failure)
    }

    #[tokio::test]
    async fn a_service_that_is_not_ready_is_a_failure() {
        assert_eq!(failure_if(|| Poll::Ready(Ok(()))).await, (StatusCode::OK, None));
        assert_eq!(failure_if(|| Poll::Pending).await, (StatusCode::SERVICE_UNAVAILABLE, Some("overloaded")));
        let closed = failure_if(|| Poll::Ready(Err(Failure::Loop))).await;
        assert_eq!(closed, (StatusCode::LOOP_DETECTED, Some("loop")));
        let panics = failure_if(|| panic!("not ready")).await;
        assert_eq!(panics, (StatusCode::INTERNAL_SERVER_ERROR, Some("panicked")));
    }

    /// A clone must not use capacity that the original has reserved.
    #[tokio::test]
    async fn readiness_counts_for_one_call_and_no_clone() {
        let mut service = RescueLayer.layer(Readiness(|| Poll::Ready(Ok(()))));
        service.ready().await.unwrap();
        let mut clone = service.clone();
        for (service, statuses) in [(&mut service, [200, 503]), (&mut clone, [503, 503])] {
            for status in statuses {
                assert_eq!(service.call(exchange().0).await.unwrap().status(), status);
            }
        }
    }

    #[tokio::test]
    async fn a_response_passes_unchanged() {
        let fine = service_fn(|_: Exchange| async {
            Ok(Response::builder().status(StatusCode::MULTIPLE_CHOICES).body(Body::empty()).unwrap())
        });
        let (exchange, info) = exchange();
        let response = RescueLayer.layer(fine).oneshot(exchange).await.unwrap();
        assert_eq!(response.status(), StatusCode::MULTIPLE_CHOICES);
        assert_eq!(info.lock().failure, None);
    }
}
