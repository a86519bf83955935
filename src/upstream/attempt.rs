//! Sending a request to one server, once, and what that tells of the server.

use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};

use super::answer::{accept, is_from_workhorse};
use super::cause::{is_for_want_of_resources, is_told};
use super::connect;
use super::health::Reason;
use super::plan::Plan;
use super::pool::Trouble;
use super::server::Server;
use super::{Error, now};
use crate::body::{Body, Collected};
use crate::route::Class;

/// How long the body of an answer may take that is read before it is handed on.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Until when there has to be an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// When the request is sent.
    pub(super) sent: Instant,
    /// How long it may take then.
    pub(super) response_timeout: Duration,
    /// When all of the answer has to be there, and how long that is from its beginning.
    pub(super) end: Option<Instant>,
    pub(super) total_timeout: Duration,
}

/// Why there is no answer.
pub(super) enum AttemptError {
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

    /// What it says of the server. What the client did, or what else took time, says nothing.
    fn reason(&self) -> Option<Reason> {
        match self {
            // It is one attempt to connect, however many have waited for it.
            Self::NotSent(error, _) if is_told(error) || is_for_want_of_resources(error) => None,
            Self::NotSent(..) => Some(Reason::Unreachable),
            Self::Failed { error: Error::Timeout(_) | Error::Slow(_) | Error::Hung(_), .. } => {
                Some(Reason::Timeout)
            }
            Self::Failed { error: Error::Broken(_) | Error::BrokeOff(_) | Error::Unusable(_), .. } => {
                Some(Reason::Broken)
            }
            Self::Failed { .. } => None,
        }
    }
}

impl Server {
    /// Sends a request. The host is this server's, whatever it was.
    pub(super) async fn attempt(
        &self,
        mut request: Box<Request<Body>>,
        plan: &Plan,
        deadlines: Deadlines,
    ) -> Result<Response<Body>, AttemptError> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        let load = if self.state.health.is_alone() { None } else { self.state.load.begin(plan.class) };
        let outcome = self.send(request, plan, deadlines).await;
        drop(load);
        let now = now();
        let reason = match &outcome {
            Ok(answer) => says_that_rails_is_away(answer).then_some(Reason::Status),
            Err(attempt) => attempt.reason(),
        };
        if matches!((&outcome, reason), (Ok(_), _) | (Err(AttemptError::Failed { .. }), Some(_))) {
            self.state.took.observe(now.saturating_duration_since(deadlines.sent));
        }
        // What needs no credential may be refused, slow or broken for reasons of its own, and come in such
        // masses that no connection is to be had. It says nothing of the server.
        let health = &self.state.health;
        if outcome.is_ok() && reason.is_none() && plan.class != Class::Other && !plan.is_check {
            health.last_answer().record(now);
        }
        match (&outcome, reason) {
            _ if plan.class == Class::Other => {}
            (_, Some(reason)) => health.failed(deadlines.sent, reason, now),
            (Ok(_), None) => health.answered(deadlines.sent, now),
            (Err(_), None) => {}
        }
        outcome
    }

    async fn send(
        &self,
        mut request: Box<Request<Body>>,
        plan: &Plan,
        deadlines: Deadlines,
    ) -> Result<Response<Body>, AttemptError> {
        let Deadlines { sent, response_timeout, end, total_timeout } = deadlines;
        let by = sent + response_timeout;
        let by = end.map_or(by, |end| end.min(by));
        let is_for_workhorse = is_from_workhorse(request.headers());
        let sending = request.body_mut().watch();
        // Pinned here, so that the body is still there to be asked about when the time is up.
        let mut sent = pin!(self.connections.send(request, plan.class, &sending));
        let error = match tokio::time::timeout_at(by.into(), sent.as_mut()).await {
            Ok(Ok(answer)) => {
                let answer = accept(answer, is_for_workhorse).map_err(AttemptError::failed)?;
                return match plan.collect {
                    Some(most) => {
                        Box::pin(collected(answer, most, deadlines)).await.map_err(AttemptError::failed)
                    }
                    None => Ok(answer),
                };
            }
            Ok(Err(Trouble::Connect(error, unsent))) => return Err(AttemptError::NotSent(error, unsent)),
            Ok(Err(Trouble::Sent(error, _))) if sending.has_broken_off() => Error::RequestBody(error.into()),
            Ok(Err(Trouble::Sent(error, was_reset))) => {
                let is_unread = self.may_resend_unread && (was_reset || is_reset(&error));
                return Err(AttemptError::Failed { error: Error::Broken(error), is_unread });
            }
            Ok(Err(Trouble::Refused(error))) => {
                return Err(AttemptError::Failed { error: Error::Broken(error), is_unread: true });
            }
            // Rails cannot answer what it has not been given.
            Err(_) if sending.is_under_way() => Error::BodyStalled(response_timeout),
            Err(_) if end.is_some_and(|end| by >= end) => {
                let had = by.saturating_duration_since(deadlines.sent);
                let is_busy = self.state.health.last_answer().is_busy(deadlines.sent, now());
                if had * 2 < total_timeout.min(response_timeout) || is_busy {
                    Error::TotalTimeout(total_timeout)
                } else {
                    Error::Hung(total_timeout)
                }
            }
            Err(_) if self.state.health.last_answer().is_busy(deadlines.sent, now()) => {
                Error::Slow(response_timeout)
            }
            Err(_) => Error::Timeout(response_timeout),
        };
        Err(AttemptError::failed(error))
    }
}

/// Reads the body of an answer, up to so many bytes.
async fn collected(
    answer: Response<Body>,
    most: usize,
    Deadlines { end, total_timeout, .. }: Deadlines,
) -> Result<Response<Body>, Error> {
    let (mut head, body) = answer.into_parts();
    let by = now() + COLLECT_TIMEOUT;
    let by = end.map_or(by, |end| end.min(by));
    let body = match tokio::time::timeout_at(by.into(), body.collect_up_to(most)).await {
        Ok(Ok(Collected::Whole(body))) => {
            // Only data is kept.
            head.headers.remove(header::TRAILER);
            Body::from(body)
        }
        Ok(Ok(Collected::TooLong(body))) => body,
        Ok(Err(error)) => return Err(Error::BrokeOff(error)),
        Err(_) if end.is_some_and(|end| by >= end) => return Err(Error::TotalTimeout(total_timeout)),
        Err(_) => return Err(Error::Timeout(COLLECT_TIMEOUT)),
    };
    Ok(Response::from_parts(head, body))
}

/// Whether an answer is one of a proxy whose Rails is away. Rails itself says 503 too, in JSON, if it is
/// Gitaly that is away or slow (contract §1.2).
pub(super) fn says_that_rails_is_away<B>(answer: &Response<B>) -> bool {
    let kind = || answer.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    match answer.status() {
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => true,
        StatusCode::SERVICE_UNAVAILABLE => !kind().starts_with(b"application/json"),
        _ => false,
    }
}

fn is_reset(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(connect::is_reset)
}
