//! The stack of the admin listener.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder};
use tower_http::CompressionLevel;
use tower_http::body::Limited;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;

use super::common::{ListenerService, box_body, panicked, timed_out, timeout, trace};
use crate::admin::{Admin, DispatchLayer, MAX_BODY, Operations, unreadable_body};
use crate::metrics::ExpositionFormat;
use crate::server::Inbound;

/// The longest request. An operation on a million entries takes seconds, and it may wait for others.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);

/// Stacks the layers.
pub fn build(admin: Admin) -> ListenerService {
    let operations = Operations::new(admin.clone());
    build_around(admin, operations)
}

fn build_around<S>(admin: Admin, operations: S) -> ListenerService
where
    S: Service<Request<Limited<Incoming>>, Response = Response<Full<Bytes>>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    ServiceBuilder::new()
        // The types of the layers end here.
        .boxed()
        .map_response(box_body)
        // First: the layers below know requests of `http`.
        .map_request(Inbound::into_request)
        // Before anything that could log headers.
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION, header::COOKIE]))
        // Above everything that logs, panics included.
        .layer(trace())
        // Above the timeout, whose response it gives the listener's form.
        .map_response(timed_out)
        // Above catch-panic, whose bodies may be empty, as the timeout's is.
        .layer(timeout(REQUEST_TIMEOUT))
        // Above all that answers: what a service panics at ends its request, not its connection.
        .layer(CatchPanicLayer::custom(panicked))
        // Above the compression, which decides by what is left.
        .map_request(keep_encodings_of_scrapes)
        // Above what answers. On this thread, health checks and signals wait meanwhile, so it is the fastest level.
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(is_exposition))
        // Before any body: health and metrics have none, and operators show a credential first.
        .layer(DispatchLayer::new(admin))
        // Above the limit, which says 413 in text to what has always been a 400 in JSON here.
        .map_response(too_large)
        // Below the authorization: a caller without a credential is answered 401, however large the body.
        .layer(RequestBodyLimitLayer::new(MAX_BODY))
        // Last: reads the body, for as long as one may take, and works with a permit.
        .service(operations)
}

/// Only scrapes are compressed, since all else is small, and only if they name gzip. The layer takes any other
/// `Accept-Encoding` as it is meant, too: one that allows nothing that there is would turn the status into 406.
fn keep_encodings_of_scrapes<B>(mut request: Request<B>) -> Request<B> {
    let names_gzip =
        |value: &HeaderValue| value.as_bytes().to_ascii_lowercase().windows(4).any(|w| w == b"gzip");
    let is_scrape = request.uri().path() == "/metrics";
    let headers = request.headers_mut();
    if !is_scrape || !headers.get_all(header::ACCEPT_ENCODING).iter().any(names_gzip) {
        headers.remove(header::ACCEPT_ENCODING);
    }
    request
}

/// Whether it is the response to a scrape.
fn is_exposition(status: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let is_of =
        |value: &HeaderValue| ExpositionFormat::ALL.iter().any(|format| *value == format.content_type());
    status == StatusCode::OK && headers.get(header::CONTENT_TYPE).is_some_and(is_of)
}

fn too_large<B>(response: Response<B>) -> Response<Either<B, Full<Bytes>>> {
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return unreadable_body().map(Either::Right);
    }
    response.map(Either::Left)
}

#[cfg(test)]
mod tests;
