//! The span of a request, made when an event about the request is logged.
//!
//! Differs from [`tracing::Instrument`], which makes a span for each request and enters it at each poll, whether
//! anything is logged or not: 900 instructions, where a hit has 32,000. Here a poll only leaves the request's id
//! where an event finds it, and a request that is answered from memory does not even do that. An event that may be
//! about a request is logged in [`current`], entered.

use std::cell::RefCell;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tracing::Span;

use crate::header::RequestId;

thread_local! {
    /// The request on whose behalf this thread runs now.
    static CURRENT: RefCell<Option<RequestSpan>> = const { RefCell::new(None) };
}

/// What the span of a request says.
#[derive(Clone, Debug)]
pub struct RequestSpan {
    /// Logged as `correlation_id`, as in the request's own line.
    pub request_id: RequestId,
    /// The id of the row of the route table.
    pub route: &'static str,
}

impl RequestSpan {
    /// `future`, with this as its [`current`] request.
    pub fn around<F>(self, future: F) -> InRequestSpan<F> {
        InRequestSpan { future, request: Some(self) }
    }

    /// The span, for one event. It has the highest level, so that it is there for each event that is logged.
    pub fn make(&self) -> Span {
        tracing::error_span!("request", correlation_id = self.request_id.as_str(), route = self.route)
    }
}

/// The span of the request on whose behalf this thread runs now, for one event. No span if it runs for no request,
/// such as for a health check.
pub fn current() -> Span {
    // At the end of a thread, there is none either.
    let current = CURRENT.try_with(|current| current.try_borrow().ok()?.as_ref().map(RequestSpan::make));
    current.ok().flatten().unwrap_or_else(Span::none)
}

pin_project! {
    /// See [`RequestSpan::around`].
    #[derive(Debug)]
    pub struct InRequestSpan<F> {
        #[pin]
        future: F,
        request: Option<RequestSpan>,
    }
}

impl<F: Future> Future for InRequestSpan<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Entered::new(this.request);
        this.future.poll(cx)
    }
}

/// While it lives, the request is the thread's current one. What was current before is kept in its place.
struct Entered<'r>(&'r mut Option<RequestSpan>);

impl<'r> Entered<'r> {
    fn new(request: &'r mut Option<RequestSpan>) -> Self {
        swap_with_current(request);
        Self(request)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        swap_with_current(self.0);
    }
}

fn swap_with_current(request: &mut Option<RequestSpan>) {
    CURRENT.with_borrow_mut(|current| mem::swap(current, request));
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use http::HeaderMap;

    fn request(id: &str) -> RequestSpan {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", id.parse().unwrap());
        RequestSpan { request_id: RequestId::from_headers(&headers), route: "allowed" }
    }

    /// The id of the request that an event would name.
    fn current_id() -> Option<String> {
        CURRENT.with_borrow(|current| Some(current.as_ref()?.request_id.as_str().to_owned()))
    }

    #[tokio::test]
    async fn a_request_is_current_only_while_it_is_polled() {
        let inner = request("inner").around(async {
            assert_eq!(current_id().as_deref(), Some("inner"));
            tokio::task::yield_now().await;
            assert_eq!(current_id().as_deref(), Some("inner"));
        });
        let mut outer = Box::pin(request("outer").around(async {
            inner.await;
            assert_eq!(current_id().as_deref(), Some("outer"));
        }));
        assert_eq!((&mut outer).now_or_never(), None);
        assert_eq!(current_id(), None);
        outer.await;
        assert_eq!(current_id(), None);
    }

    #[tokio::test]
    async fn a_panic_ends_it_too() {
        let panics = request("one").around(async { panic!("broken") });
        let caught = std::panic::AssertUnwindSafe(panics).catch_unwind().await;
        assert!(caught.is_err());
        assert_eq!(current_id(), None);
    }
}
