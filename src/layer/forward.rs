//! Sends the request to Rails: the end of the stack.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Response};
use tower::Service;

use super::Later;
use crate::body::Body;
use crate::clock::Clock;
use crate::exchange::Authenticated;
use crate::failure::Failure;
use crate::header::{self, REQUEST_ID};
use crate::upstream::{Course, Plan, Upstream};

/// Less than that is no waiting.
const NOT_AT_ONCE: Duration = Duration::from_millis(1);

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
        let route = call.found.route;
        let plan = Plan {
            class: route.class,
            is_read: call.found.exact
                && route.is_read()
                && matches!(*request.method(), Method::GET | Method::HEAD),
            may_wait: call.may_wait,
            expires_in: call.caller.expires().map(|at| {
                Duration::from_secs(
                    u64::try_from(at.saturating_sub(clock.unix_seconds())).unwrap_or_default(),
                )
            }),
        };
        Box::pin(async move {
            let (begun, mut course) = (clock.now(), Course::default());
            let outcome = upstream.send(request, &plan, &mut course).await;
            let took = clock.now().saturating_duration_since(begun);
            record.note(|notes| {
                notes.upstream = Some(took.saturating_sub(course.waited));
                notes.waited = Some(course.waited).filter(|waited| *waited >= NOT_AT_ONCE);
                notes.is_resent = course.is_resent;
            });
            Ok(outcome?)
        })
    }
}
