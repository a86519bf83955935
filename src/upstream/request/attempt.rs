//! One attempt: sends a request to one server, once, and records what that says about the server.

use std::pin::pin;
use std::time::{Duration, Instant};

use http::{Request, Response, header};

use super::options::{SendOptions, WaitPolicy};
use super::replay::is_replayable;
use crate::body::transfer::TransferStage;
use crate::body::{Body, Collected};
use crate::clock::Clock;
use crate::histogram::UPSTREAM_BOUNDS;
use crate::route::Class;
use crate::upstream::connection::error::ConnectError;
use crate::upstream::connection::exchange_error::SendError;
use crate::upstream::error::{Error, ErrorKind, TimeLimit};
use crate::upstream::response::{is_away_response, is_from_workhorse, validate};
use crate::upstream::servers::health::EjectionReason;
use crate::upstream::servers::server::UpstreamServer;

/// How long it may take to read the body of a response that is buffered.
const BUFFER_TIMEOUT: Duration = Duration::from_secs(30);

/// What part of its time a look-up has for a server that is known to be silent: 1.3 s by default.
const SILENT_SERVER_SHARE: u32 = 3;

/// How much longer than `connect_timeout` that is, at least. A server that accepts no connections is told apart.
const CONNECT_MARGIN: Duration = Duration::from_millis(250);

/// The deadlines of one attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptDeadlines {
    /// When the request is sent: now.
    pub(super) sent: Instant,
    /// How long the head of the response may take from then on.
    pub(super) response_timeout: Duration,
    /// When all of the response has to be there: `total_timeout` after the arrival of the request.
    pub(super) end: Option<Instant>,
    pub(super) total_timeout: Duration,
}

impl AttemptDeadlines {
    /// The time for a server that has just left another look-up unanswered: logins have no time to find that out
    /// again with each try and each key. `None` if it is no shorter.
    fn for_silent_server(self, connect_timeout: Duration) -> Option<Duration> {
        let total = Some(self.total_timeout).filter(|total| !total.is_zero());
        let all = total.map_or(self.response_timeout, |total| total.min(self.response_timeout));
        let part = (all / SILENT_SERVER_SHARE).max(connect_timeout.saturating_add(CONNECT_MARGIN));
        (part < all).then_some(part)
    }
}

/// Why an attempt brought no response.
pub(super) enum AttemptError {
    /// No connection. The request is as it was: nothing of it was sent.
    NotSent(ConnectError),
    /// The request was sent, at least in part.
    Failed(Error),
}

impl AttemptError {
    /// What it says about the server; nothing if the client, or the gateway itself, took the time.
    fn ejection_reason(&self) -> Option<EjectionReason> {
        match self {
            // One attempt to connect counts once, however many requests have waited for it.
            Self::NotSent(error) if !error.is_own_attempt() || error.is_resource_exhaustion() => None,
            Self::NotSent(..) => Some(EjectionReason::Unreachable),
            Self::Failed(error) => match error.kind() {
                ErrorKind::Silent | ErrorKind::Slow => Some(EjectionReason::Timeout),
                ErrorKind::Unread
                | ErrorKind::Interrupted
                | ErrorKind::Malformed
                | ErrorKind::BodyStalled
                | ErrorKind::BodyTooSlow
                | ErrorKind::Unusable => Some(EjectionReason::Broken),
                _ => None,
            },
        }
    }
}

impl UpstreamServer {
    /// Sends a request. Its `Host` becomes that of this server. If its body is in memory, it can be sent again.
    pub(super) async fn attempt(
        &self,
        request: &mut Request<Body>,
        options: &SendOptions,
        deadlines: AttemptDeadlines,
    ) -> Result<Response<Body>, AttemptError> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        let load = if self.state.health.is_alone() { None } else { self.state.load.start(options.class) };
        let is_known_silent = options.class == Class::Lookup
            && options.wait_policy == WaitPolicy::ForRails
            && self.state.health.last_answer().is_silent(deadlines.sent);
        let part = if is_known_silent { deadlines.for_silent_server(self.connect_timeout) } else { None };
        let outcome = match part {
            None => self.send_and_record(request, options, deadlines).await,
            Some(part) => Box::pin(self.send_briefly(request, options, deadlines, part)).await,
        };
        drop(load);
        outcome
    }

    /// The same for a look-up whose caller waits for `part` of its time only, unless the server answers anything
    /// meanwhile. One such request at a time is left to its end all the same: if Rails answers it, look-ups have all
    /// of their time again. The others are dropped when their time is over, and say nothing about the server.
    async fn send_briefly(
        &self,
        request: &mut Request<Body>,
        options: &SendOptions,
        deadlines: AttemptDeadlines,
        part: Duration,
    ) -> Result<Response<Body>, AttemptError> {
        let last_answer = self.state.health.last_answer();
        let attempt = async {
            let Some(trial) = last_answer.claim_trial() else {
                return Some(self.send_and_record(request, options, deadlines).await);
            };
            let (server, options) = (self.clone(), options.clone());
            // It outlives this request if the time is over first, after which the request is not sent again.
            let mut lent = Box::new(std::mem::take(&mut *request));
            let to_its_end = tokio::spawn(async move {
                let outcome = server.send_and_record(&mut lent, &options, deadlines).await;
                drop(trial);
                (outcome, lent)
            });
            let (outcome, lent) = to_its_end.await.ok()?;
            *request = *lent;
            Some(outcome)
        };
        let mut attempt = pin!(attempt);
        let outcome = match tokio::time::timeout_at((deadlines.sent + part).into(), attempt.as_mut()).await {
            Ok(outcome) => outcome,
            Err(_) if last_answer.is_silent(Clock::System.now()) => None,
            // It has answered another request meanwhile.
            Err(_) => attempt.await,
        };
        outcome.unwrap_or_else(|| Err(AttemptError::Failed(timed_out(part, TimeLimit::Shortened, false))))
    }

    async fn send_and_record(
        &self,
        request: &mut Request<Body>,
        options: &SendOptions,
        deadlines: AttemptDeadlines,
    ) -> Result<Response<Body>, AttemptError> {
        let outcome = self.send(request, options, deadlines).await;
        self.record(&outcome, options, deadlines.sent);
        outcome
    }

    /// Records what an attempt begun at `sent` says about the server.
    fn record(&self, outcome: &Result<Response<Body>, AttemptError>, options: &SendOptions, sent: Instant) {
        let now = Clock::System.now();
        let reason = match outcome {
            Ok(response) => is_away_response(response).then_some(EjectionReason::Status),
            Err(attempt) => attempt.ejection_reason(),
        };
        if matches!((outcome, reason), (Ok(_), _) | (Err(AttemptError::Failed(_)), Some(_))) {
            self.state.response_times.observe(now.saturating_duration_since(sent), &UPSTREAM_BOUNDS);
        }
        // Requests without a credential may be refused, slow or broken for reasons of their own, and come in such
        // masses that no connection can be made. They say nothing about the server.
        let health = &self.state.health;
        if outcome.is_ok() && reason.is_none() && options.class != Class::Other && !options.is_check_endpoint
        {
            health.last_answer().record(now);
        }
        if let Err(AttemptError::Failed(error)) = outcome
            && options.class == Class::Lookup
            && !options.is_check_endpoint
            && error.kind() == ErrorKind::Silent
        {
            health.last_answer().record_silence(now);
        }
        match (outcome, reason) {
            _ if options.class == Class::Other => {}
            (_, Some(reason)) => health.record_failure(sent, reason, now),
            (Ok(_), None) => health.record_success(sent, now),
            (Err(_), None) => {}
        }
    }

    async fn send(
        &self,
        request: &mut Request<Body>,
        options: &SendOptions,
        deadlines: AttemptDeadlines,
    ) -> Result<Response<Body>, AttemptError> {
        let AttemptDeadlines { sent, response_timeout, end, .. } = deadlines;
        let by = sent + response_timeout;
        let by = end.map_or(by, |end| end.min(by));
        let is_for_workhorse = is_from_workhorse(request.headers());
        let sending = request.body_mut().track_transfer();
        // Of a large body there is no copy to send again, so it is not sent where Rails may just have closed.
        let may_reuse = is_replayable(request.body());
        // Pinned here, so that the body can still be asked how far it has come when the time is over.
        let mut exchange = pin!(self.connections.send(request, options.class, may_reuse));
        let error = match tokio::time::timeout_at(by.into(), exchange.as_mut()).await {
            Ok(Ok(response)) => {
                let response = validate(response, is_for_workhorse).map_err(AttemptError::Failed)?;
                return match options.buffer_up_to {
                    Some(limit) => {
                        Box::pin(buffer_body(response, limit, deadlines)).await.map_err(AttemptError::Failed)
                    }
                    None => Ok(response),
                };
            }
            Ok(Err(SendError::Connect(error))) => return Err(AttemptError::NotSent(error)),
            Ok(Err(SendError::Unusable(why))) => Error::Unusable(why),
            Ok(Err(SendError::RequestBody(error))) => Error::RequestBody(error),
            Ok(Err(SendError::Exchange(error))) if sending.is_aborted() => Error::RequestBody(error.into()),
            Ok(Err(SendError::Exchange(error))) if self.may_resend_unread => {
                error.with_reset_as_proof().into()
            }
            Ok(Err(SendError::Exchange(error))) => error.into(),
            Err(_) if is_body_late(sending.stage(), sent, by) => Error::RequestBodyTimeout(response_timeout),
            Err(_) => self.timeout(by, deadlines),
        };
        Err(AttemptError::Failed(error))
    }

    /// The error of a request without a response `by` its deadline.
    fn timeout(&self, by: Instant, deadlines: AttemptDeadlines) -> Error {
        let AttemptDeadlines { sent, response_timeout, end, total_timeout } = deadlines;
        let is_busy = self.state.health.last_answer().is_busy(sent, Clock::System.now());
        if end.is_some_and(|end| by >= end) {
            let had = by.saturating_duration_since(sent);
            let is_silent = !is_busy && had * 2 >= total_timeout.min(response_timeout);
            return timed_out(total_timeout, TimeLimit::Total, is_silent);
        }
        timed_out(response_timeout, TimeLimit::Response, !is_busy)
    }
}

/// Whether a request without a response `by` its deadline had a body that was still on its way: Rails cannot respond to
/// what it does not have yet. If it has taken nothing for half of the time, as far as the buffers of the system show that, it is
/// Rails that takes too long.
fn is_body_late(stage: TransferStage, sent: Instant, by: Instant) -> bool {
    match stage {
        TransferStage::Ended => false,
        TransferStage::AwaitsSender => true,
        TransferStage::AwaitsReader { since } => since > sent + by.saturating_duration_since(sent) / 2,
    }
}

/// The error of a request that a server had, and did not answer in time.
const fn timed_out(after: Duration, limit: TimeLimit, is_silent: bool) -> Error {
    Error::Timeout { after, limit, is_silent, unreachable: None }
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
        Ok(Err(error)) => return Err(Error::ResponseBody(error)),
        Err(_) if end.is_some_and(|end| by >= end) => {
            return Err(timed_out(total_timeout, TimeLimit::Total, false));
        }
        Err(_) => {
            return Err(timed_out(BUFFER_TIMEOUT, TimeLimit::Response, true));
        }
    };
    Ok(Response::from_parts(head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_moves_nothing_for_half_of_the_time_is_to_blame_for_a_body_that_is_late() {
        let sent = Instant::now();
        let awaits_reader = |ms| TransferStage::AwaitsReader { since: sent + Duration::from_millis(ms) };
        for (stage, is_late) in [
            (TransferStage::Ended, false),
            (TransferStage::AwaitsSender, true),
            (awaits_reader(0), false),
            (awaits_reader(5_000), false),
            (awaits_reader(5_001), true),
            (awaits_reader(10_000), true),
        ] {
            assert_eq!(is_body_late(stage, sent, sent + Duration::from_secs(10)), is_late, "{stage:?}");
        }
    }

    #[test]
    fn a_silent_server_gets_a_third_of_the_time_but_enough_to_connect() {
        for (response, total, connect, part) in [
            (4_000, 4_000, 1_000, Some(1_333)),
            (4_000, 0, 1_000, Some(1_333)),
            (60_000, 6_000, 1_000, Some(2_000)),
            (2_000, 4_000, 1_000, Some(1_250)),
            (1_250, 4_000, 1_000, None),
            (4_000, 4_000, 3_600_000, None),
        ] {
            let [response_timeout, total_timeout, connect] =
                [response, total, connect].map(Duration::from_millis);
            let deadlines =
                AttemptDeadlines { sent: Instant::now(), response_timeout, end: None, total_timeout };
            let given = deadlines.for_silent_server(connect).map(|part| part.as_millis());
            assert_eq!(given, part, "{response_timeout:?} {total_timeout:?} {connect:?}");
        }
    }
}
