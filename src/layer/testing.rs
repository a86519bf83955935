//! A mock inner service for the tests of the layers.

use std::task::{Context, Poll};

use http::Response;
use tower::Service;
use tower_test::mock::{self, Handle, Mock, SendResponse};

use super::BoxedResponse;
use crate::body::Body;
use crate::failure::Failure;

/// The mock service of `tower_test` with the stack's error type.
#[derive(Debug)]
pub(super) struct MockService<Req: std::fmt::Debug>(Mock<Req, Result<Response<Body>, Failure>>);

/// Takes the requests of a [`MockService`].
pub(super) type MockHandle<Req> = Handle<Req, Result<Response<Body>, Failure>>;

/// Sends the response to one request.
pub(super) type MockReply = SendResponse<Result<Response<Body>, Failure>>;

/// A service that is always ready, and its handle.
pub(super) fn mock_service<Req: std::fmt::Debug>() -> (MockService<Req>, MockHandle<Req>) {
    let (mock, mut handle) = mock::pair();
    handle.allow(1_000_000);
    (MockService(mock), handle)
}

/// Runs all tasks that are ready.
pub(super) async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Whether no request waits to be taken, once all tasks that are ready have run.
pub(super) async fn is_idle<Req: std::fmt::Debug>(handle: &mut MockHandle<Req>) -> bool {
    settle().await;
    !matches!(handle.poll_request(), Poll::Ready(Some(_)))
}

impl<Req: std::fmt::Debug> Clone for MockService<Req> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Req: std::fmt::Debug + Send + 'static> Service<Req> for MockService<Req> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = BoxedResponse;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.0.poll_ready(cx).map_err(|_| Failure::Panicked)
    }

    fn call(&mut self, request: Req) -> BoxedResponse {
        let answer = self.0.call(request);
        Box::pin(async move { answer.await.map_err(|_| Failure::Panicked)? })
    }
}
