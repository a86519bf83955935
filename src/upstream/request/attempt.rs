//! One attempt: sends a request to one server, once, and records what that says about the server.

use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};

use super::options::SendOptions;
use crate::body::{Body, Collected};
use crate::clock::Clock;
use crate::histogram::UPSTREAM_BOUNDS;
use crate::route::Class;
use crate::upstream::Error;
use crate::upstream::connection::connector;
use crate::upstream::connection::error::{is_resource_exhaustion, is_shared};
use crate::upstream::connection::http1::SendError;
use crate::upstream::response::{is_from_workhorse, validate};
use crate::upstream::servers::health::EjectionReason;
use crate::upstream::servers::server::UpstreamServer;

/// How long it may take to read the body of a response that is buffered.
const BUFFER_TIMEOUT: Duration = Duration::from_secs(30);

/// The deadlines of one attempt.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct AttemptDeadlines {
    /// When the request is sent: now.
    pub(in crate::upstream) sent: Instant,
    /// How long the head of the response may take from then on.
    pub(in crate::upstream) response_timeout: Duration,
    /// When all of the response has to be there: `total_timeout` after the arrival of the request.
    pub(in crate::upstream) end: Option<Instant>,
    pub(in crate::upstream) total_timeout: Duration,
}

/// Why an attempt brought no response.
pub(in crate::upstream) enum AttemptError {
    /// No connection: nothing was sent.
    NotSent(io::Error, Box<Request<Body>>),
    Failed {
        error: Error,
        /// Whether the server has not read all of the request, so that it cannot have acted on it.
        ///
        /// A unix socket is reset only if its process closes it with something unread, which is proof. A
        /// Rails on this machine that closes a TCP connection resets it for the same reason (RFC 1122
        /// §4.2.2.13), unless the process asks for a reset itself (`SO_LINGER` of 0): no server that is known
        /// does, so it is a strong sign. What the kernel knows beyond that is of no help: the bytes that it
        /// counts as unsent (`SIOCOUTQ`) are 0 once the other side is closed, and over TCP a byte is
        /// acknowledged before it is read. From elsewhere, a reset may be anything on the way.
        is_unread: bool,
    },
}

impl AttemptError {
    fn failed(error: Error) -> Self {
        Self::Failed { error, is_unread: false }
    }

    /// What it says about the server; nothing if the client, or the gateway itself, took the time.
    fn ejection_reason(&self) -> Option<EjectionReason> {
        match self {
            // One attempt to connect counts once, however many requests have waited for it.
            Self::NotSent(error, _) if is_shared(error) || is_resource_exhaustion(error) => None,
            Self::NotSent(..) => Some(EjectionReason::Unreachable),
            Self::Failed { error: Error::Timeout(_) | Error::Slow(_) | Error::Hung(_), .. } => {
                Some(EjectionReason::Timeout)
            }
            Self::Failed { error: Error::Broken(_) | Error::BrokeOff(_) | Error::Unusable(_), .. } => {
                Some(EjectionReason::Broken)
            }
            Self::Failed { .. } => None,
        }
    }
}

impl UpstreamServer {
    /// Sends a request. Its `Host` becomes that of this server.
    pub(in crate::upstream) async fn attempt(
        &self,
        mut request: Box<Request<Body>>,
        options: &SendOptions,
        deadlines: AttemptDeadlines,
    ) -> Result<Response<Body>, AttemptError> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        let load = if self.state.health.is_alone() { None } else { self.state.load.start(options.class) };
        let outcome = self.send(request, options, deadlines).await;
        drop(load);
        let now = Clock::System.now();
        let reason = match &outcome {
            Ok(response) => is_outage_response(response).then_some(EjectionReason::Status),
            Err(attempt) => attempt.ejection_reason(),
        };
        if matches!((&outcome, reason), (Ok(_), _) | (Err(AttemptError::Failed { .. }), Some(_))) {
            self.state
                .response_times
                .observe(now.saturating_duration_since(deadlines.sent), &UPSTREAM_BOUNDS);
        }
        // Requests without a credential may be refused, slow or broken for reasons of their own, and come in such
        // masses that no connection can be made. They say nothing about the server.
        let health = &self.state.health;
        if outcome.is_ok() && reason.is_none() && options.class != Class::Other && !options.is_check_endpoint
        {
            health.last_answer().record(now);
        }
        match (&outcome, reason) {
            _ if options.class == Class::Other => {}
            (_, Some(reason)) => health.record_failure(deadlines.sent, reason, now),
            (Ok(_), None) => health.record_success(deadlines.sent, now),
            (Err(_), None) => {}
        }
        outcome
    }

    async fn send(
        &self,
        mut request: Box<Request<Body>>,
        options: &SendOptions,
        deadlines: AttemptDeadlines,
    ) -> Result<Response<Body>, AttemptError> {
        let AttemptDeadlines { sent, response_timeout, end, total_timeout } = deadlines;
        let by = sent + response_timeout;
        let by = end.map_or(by, |end| end.min(by));
        let is_for_workhorse = is_from_workhorse(request.headers());
        let sending = request.body_mut().track_transfer();
        // Pinned here, so that the body can still be asked how far it has come when the time is over.
        let mut sent = pin!(self.connections.send(request, options.class, &sending));
        let error = match tokio::time::timeout_at(by.into(), sent.as_mut()).await {
            Ok(Ok(response)) => {
                let response = validate(response, is_for_workhorse).map_err(AttemptError::failed)?;
                return match options.buffer_up_to {
                    Some(limit) => {
                        Box::pin(buffer_body(response, limit, deadlines)).await.map_err(AttemptError::failed)
                    }
                    None => Ok(response),
                };
            }
            Ok(Err(SendError::Connect(error, unsent))) => return Err(AttemptError::NotSent(error, unsent)),
            Ok(Err(SendError::Sent(error, _))) if sending.is_aborted() => Error::RequestBody(error.into()),
            Ok(Err(SendError::Sent(error, was_reset))) => {
                let is_unread = self.may_resend_unread && (was_reset || is_reset(&error));
                return Err(AttemptError::Failed { error: Error::Broken(error), is_unread });
            }
            Ok(Err(SendError::Unprocessed(error))) => {
                return Err(AttemptError::Failed { error: Error::Broken(error), is_unread: true });
            }
            // Rails cannot respond to a request that it does not have yet.
            Err(_) if sending.is_in_progress() => Error::BodyStalled(response_timeout),
            Err(_) if end.is_some_and(|end| by >= end) => {
                let had = by.saturating_duration_since(deadlines.sent);
                let is_busy = self.state.health.last_answer().is_busy(deadlines.sent, Clock::System.now());
                if had * 2 < total_timeout.min(response_timeout) || is_busy {
                    Error::TotalTimeout(total_timeout)
                } else {
                    Error::Hung(total_timeout)
                }
            }
            Err(_) if self.state.health.last_answer().is_busy(deadlines.sent, Clock::System.now()) => {
                Error::Slow(response_timeout)
            }
            Err(_) => Error::Timeout(response_timeout),
        };
        Err(AttemptError::failed(error))
    }
}

/// Reads the body of a response into memory, up to so many bytes.
async fn buffer_body(
    response: Response<Body>,
    limit: usize,
    AttemptDeadlines { end, total_timeout, .. }: AttemptDeadlines,
) -> Result<Response<Body>, Error> {
    let (mut head, body) = response.into_parts();
    let by = Clock::System.now() + BUFFER_TIMEOUT;
    let by = end.map_or(by, |end| end.min(by));
    let body = match tokio::time::timeout_at(by.into(), body.collect_up_to(limit)).await {
        Ok(Ok(Collected::Complete(body))) => {
            // Trailers are not kept.
            head.headers.remove(header::TRAILER);
            Body::from(body)
        }
        Ok(Ok(Collected::TooLong(body))) => body,
        Ok(Err(error)) => return Err(Error::BrokeOff(error)),
        Err(_) if end.is_some_and(|end| by >= end) => return Err(Error::TotalTimeout(total_timeout)),
        Err(_) => return Err(Error::Timeout(BUFFER_TIMEOUT)),
    };
    Ok(Response::from_parts(head, body))
}

/// Whether a proxy reports with this response that Rails is unreachable. Rails itself sends 503 too, in JSON, if
/// Gitaly is unreachable or slow (contract §1.2).
pub(in crate::upstream) fn is_outage_response<B>(response: &Response<B>) -> bool {
    let kind = || response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    match response.status() {
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => true,
        StatusCode::SERVICE_UNAVAILABLE => !kind().starts_with(b"application/json"),
        _ => false,
    }
}

fn is_reset(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(connector::is_reset)
}
