//! What the stacks of the admin listener and of the listener for hooks have in common.

use std::any::Any;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Either, Full};
use tower::util::BoxService;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::{HttpMakeClassifier, MakeSpan, TraceLayer};
use tracing::Span;

use crate::hooks;
use crate::json_response::{internal_error, message};
use crate::server::{Inbound, Peer};

/// The whole of a listener as one service.
pub type ListenerService = BoxService<Inbound, Response<ListenerBody>, Infallible>;

/// The body of each response.
pub type ListenerBody = UnsyncBoxBody<Bytes, Box<dyn StdError + Send + Sync>>;

/// Names the body's type, which would be as long as the stack.
pub(super) fn box_body<B>(response: Response<B>) -> Response<ListenerBody>
where
    B: HttpBody<Data = Bytes, Error = Box<dyn StdError + Send + Sync>> + Send + 'static,
{
    response.map(UnsyncBoxBody::new)
}

/// Gives each request a span, so that what is logged on its behalf names it. Logs nothing itself.
pub(super) fn trace() -> TraceLayer<HttpMakeClassifier, NameRequest, (), (), (), (), ()> {
    TraceLayer::new_for_http()
        .make_span_with(NameRequest)
        .on_request(())
        .on_response(())
        .on_body_chunk(())
        .on_eos(())
        .on_failure(())
}

/// Makes the span of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameRequest;

impl<B> MakeSpan<B> for NameRequest {
    /// Of the highest level, so that it is there for each event that is logged.
    fn make_span(&mut self, request: &Request<B>) -> Span {
        let remote_ip = request.extensions().get::<Peer>().and_then(|peer| peer.ip);
        tracing::error_span!(
            "request",
            method = known_method(request.method()),
            path = known_path(request.uri().path()),
            remote_ip = remote_ip.map(tracing::field::display),
        )
    }
}

/// A name that a client has made up could be a misplaced secret, so it is not logged.
const OTHER: &str = "other";

fn known_method(method: &Method) -> &'static str {
    ["GET", "HEAD", "POST", "OPTIONS"].into_iter().find(|known| method == known).unwrap_or(OTHER)
}

fn known_path(path: &str) -> &'static str {
    [
        "/metrics",
        "/live",
        "/ready",
        "/",
        "/status.json",
        "/events",
        "/log",
        "/reload",
        "/servers",
        "/inspect",
        "/purge",
        hooks::PATH,
    ]
    .into_iter()
    .find(|known| path == *known)
    .unwrap_or(OTHER)
}

/// The response after a panic. It is logged by the hook that logs all panics, within the span of the request.
pub(super) fn panicked(_: Box<dyn Any + Send>) -> Response<Full<Bytes>> {
    internal_error()
}

/// A bound for the whole request, for what none of the bounds inside ends. These say why they end a request; this one
/// answers with a status that nothing else here has, for [`timed_out`].
pub(super) fn timeout(after: Duration) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, after)
}

/// tower-http's response is empty. Here it has the form of all others.
pub(super) fn timed_out<B>(response: Response<B>) -> Response<Either<B, Full<Bytes>>> {
    if response.status() == StatusCode::GATEWAY_TIMEOUT {
        let text = "503 Service Unavailable: it took too long";
        return message(StatusCode::SERVICE_UNAVAILABLE, text).map(Either::Right);
    }
    response.map(Either::Left)
}
