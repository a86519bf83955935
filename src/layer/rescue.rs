//! Turns failures into responses; no other layer does. A panic in a layer below is a failure, too.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use futures_util::future::CatchUnwind;
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
#[derive(Clone, Debug)]
pub struct Rescue<S> {
    inner: S,
}

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue { inner }
    }
}

impl<S> Service<Exchange> for Rescue<S>
where
    S: Service<Exchange, Response = Response<Body>, Error = Failure>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The layers below are always ready: they wait in their futures.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, exchange: Exchange) -> Self::Future {
        let info = exchange.info.clone();
        let call = catch_unwind(AssertUnwindSafe(|| self.inner.call(exchange)));
        ResponseFuture { call: call.ok().map(|call| AssertUnwindSafe(call).catch_unwind()), info }
    }
}

pin_project! {
    /// See [`Rescue`].
    pub struct ResponseFuture<F> {
        // `None` if already the call panicked.
        #[pin]
        call: Option<CatchUnwind<AssertUnwindSafe<F>>>,
        info: SharedRequestInfo,
    }
}

impl<F: Future<Output = super::LayerResult>> Future for ResponseFuture<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = match this.call.as_pin_mut() {
            Some(call) => ready!(call.poll(cx)).unwrap_or(Err(Failure::Panicked)),
            None => Err(Failure::Panicked),
        };
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
