//! Sends the request to Rails: the end of the stack.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use tower::Service;

use super::Later;
use crate::body::Body;
use crate::clock::Clock;
use crate::exchange::Authenticated;
use crate::failure::Failure;
use crate::header::{self, REQUEST_ID};
use crate::upstream::Upstream;

/// Forwards authenticated requests, body and all, and hands the answer back as it comes.
#[derive(Clone, Debug)]
pub struct Forward {
    upstream: Arc<Upstream>,
    clock: Clock,
}

impl Forward {
    /// Forwards to `upstream`.
    pub fn new(upstream: Arc<Upstream>, clock: Clock) -> Self {
        Self { upstream, clock }
    }
}

impl Service<Authenticated> for Forward {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Later;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Authenticated) -> Later {
        let Self { upstream, clock } = self.clone();
        let mut request = call.exchange.request;
        header::cross(request.headers_mut(), call.exchange.peer);
        request.headers_mut().insert(REQUEST_ID.clone(), call.exchange.request_id.to_value());
        let record = call.exchange.record;
        Box::pin(async move {
            let begun = clock.now();
            let outcome = upstream.send(request).await;
            let took = clock.now().saturating_duration_since(begun);
            record.note(|notes| notes.upstream = Some(took));
            Ok(outcome?)
        })
    }
}
