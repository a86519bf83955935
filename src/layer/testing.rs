//! What the layers' tests share: an inner service that the test answers by hand.

use std::task::{Context, Poll};

use http::Response;
use tower::Service;
use tower_test::mock::{self, Handle, Mock, SendResponse};

use super::Later;
use crate::body::Body;
use crate::failure::Failure;

/// An inner service; `tower_test`'s, but with the stack's error type.
#[derive(Debug)]
pub(super) struct Inner<Req: std::fmt::Debug>(Mock<Req, Result<Response<Body>, Failure>>);

/// What the test holds in its hand.
pub(super) type Hand<Req> = Handle<Req, Result<Response<Body>, Failure>>;

/// How the test answers one request.
pub(super) type Reply = SendResponse<Result<Response<Body>, Failure>>;

/// An inner service and the handle to answer for it, ready for any number of requests.
pub(super) fn inner<Req: std::fmt::Debug>() -> (Inner<Req>, Hand<Req>) {
    let (mock, mut hand) = mock::pair();
    hand.allow(1_000_000);
    (Inner(mock), hand)
}

/// Runs what is ready to run.
pub(super) async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Whether no request has arrived that the test did not take. Runs what is ready to run first.
pub(super) async fn is_idle<Req: std::fmt::Debug>(hand: &mut Hand<Req>) -> bool {
    settle().await;
    !matches!(hand.poll_request(), Poll::Ready(Some(_)))
}

impl<Req: std::fmt::Debug> Clone for Inner<Req> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Req: std::fmt::Debug + Send + 'static> Service<Req> for Inner<Req> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Later;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.0.poll_ready(cx).map_err(|_| Failure::Panicked)
    }

    fn call(&mut self, request: Req) -> Later {
        let answer = self.0.call(request);
        Box::pin(async move { answer.await.map_err(|_| Failure::Panicked)? })
    }
}
