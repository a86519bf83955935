//! The stack of the listener for hooks.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder};
use tower_http::body::Limited;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use super::common::{ListenerService, box_body, panicked, timed_out, timeout, trace};
use crate::hooks::{CheckHeadLayer, Hooks, MAX_EVENT};
use crate::json_response::JSON;
use crate::server::Inbound;

/// The longest request: more than the waits inside for a permit, the body and the purge together.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

const CREDENTIALS: [HeaderName; 3] = [
    HeaderName::from_static("x-gitlab-token"),
    HeaderName::from_static("webhook-signature"),
    header::AUTHORIZATION,
];

/// Stacks the layers.
pub fn build(hooks: Hooks) -> ListenerService {
    build_around(hooks.clone(), hooks)
}

fn build_around<S>(hooks: Hooks, receiver: S) -> ListenerService
where
    S: Service<Request<Limited<Incoming>>, Response = Response<Full<Bytes>>, Error = Infallible>
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    ServiceBuilder::new()
        // The types of the layers end here.
        .boxed()
        .map_response(box_body)
        // First: the layers below know requests of `http`.
        .map_request(Inbound::into_request)
        // Before anything that could log headers.
        .layer(SetSensitiveRequestHeadersLayer::new(CREDENTIALS))
        // Above everything that logs, panics included.
        .layer(trace())
        // Above everything that answers: all of it is JSON.
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_TYPE, JSON))
        // Above the timeout, whose response it gives the listener's form.
        .map_response(timed_out)
        // Above catch-panic, whose bodies may be empty, as the timeout's is.
        .layer(timeout(REQUEST_TIMEOUT))
        // Above all that answers: what a service panics at ends its request, not its connection.
        .layer(CatchPanicLayer::custom(panicked))
        // Before any body. Above the limit, since the credential decides what a body that is too large is answered
        // with: 200 or 400 in JSON, as always here, instead of the limit's 413 in text.
        .layer(CheckHeadLayer::new(hooks))
        // Above what reads the body.
        .layer(RequestBodyLimitLayer::new(MAX_EVENT))
        // Last: reads the body, for as long as one may take, verifies it, and purges.
        .service(receiver)
}

#[cfg(test)]
mod tests;
