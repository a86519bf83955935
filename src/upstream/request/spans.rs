//! The spans of a request that is sampled.

use http::{Request, Response};

use super::attempt::AttemptError;
use super::options::SendOptions;
use crate::body::Body;
use crate::log::truncated;
use crate::trace::ActiveSpan;
use crate::trace_context::TRACEPARENT;
use crate::upstream::error::Error;
use crate::upstream::servers::server::UpstreamServer;

/// Bytes of an error. Some quote the other side, certificates included.
const MAX_ERROR: usize = 1024;

fn shortened(error: &str) -> String {
    truncated(error, MAX_ERROR).into_owned()
}

/// The span of a wait.
pub(super) fn begin_wait(options: &SendOptions, name: &'static str) -> Option<ActiveSpan> {
    options.trace.as_ref().map(|trace| trace.begin_wait(name))
}

pub(super) fn end_wait<T>(span: Option<ActiveSpan>, outcome: &Result<T, Error>) {
    if let Some(mut span) = span {
        if let Err(error) = outcome {
            span.set("error.type", error.as_str());
        }
        span.end(outcome.as_ref().err().map(|error| shortened(&error.chain())));
    }
}

/// The span of sending a request to a server, whose id Rails gets. The connection finds it in the request.
pub(super) fn begin_attempt(
    options: &SendOptions,
    server: &UpstreamServer,
    request: &mut Request<Body>,
) -> Option<ActiveSpan> {
    let span = options.trace.as_ref()?.begin_attempt(server.connections.scheme(), &server.name);
    if let Some(parent) = span.as_parent() {
        request.headers_mut().insert(TRACEPARENT.clone(), parent.context.to_value());
        request.extensions_mut().insert(parent);
    }
    Some(span)
}

pub(super) fn end_attempt(span: Option<ActiveSpan>, outcome: &Result<Response<Body>, AttemptError>) {
    let Some(mut span) = span else { return };
    let (kind, error) = match outcome {
        Ok(response) => {
            let status = response.status();
            span.set("http.response.status_code", status.as_u16());
            let is_error = status.is_client_error() || status.is_server_error();
            (is_error.then(|| status.as_str().to_owned()), is_error.then(String::new))
        }
        Err(AttemptError::NotSent(error)) => {
            (Some("connect".to_owned()), Some(shortened(&error.to_string())))
        }
        Err(AttemptError::Failed(error)) => {
            (Some(error.as_str().to_owned()), Some(shortened(&error.chain())))
        }
    };
    if let Some(kind) = kind {
        span.set("error.type", kind);
    }
    span.end(error);
}
