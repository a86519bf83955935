//! The retry loop: sends one request to Rails, again if need be, until there is a response.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{Request, Response};
use tower::retry::budget::Budget as _;

use super::attempt::{AttemptDeadlines, AttemptError};
use super::connect_failure::ConnectFailure;
use super::deadlines::Deadlines;
use super::options::{SendOptions, SendReport, Signer};
use super::replay::Replay;
use super::spans::{begin_attempt, begin_wait, end_attempt, end_wait};
use super::target::prepare_target;
use crate::body::Body;
use crate::clock::Clock;
use crate::route::Class;
use crate::upstream::client::Upstream;
use crate::upstream::error::{Error, Fault, Resend};
use crate::upstream::response::is_away_response;
use crate::upstream::servers::balance::{ServerSet, choose, has_untried};
use crate::upstream::servers::health::Availability;
use crate::upstream::servers::server::UpstreamServer;
use crate::upstream::servers::state::ResendReason;

/// The delays before a request that was not read is sent again, if there is no other server: twice at most. A
/// server that resets one request will probably reset the next; and over TCP a reset is no proof
/// (`ErrorKind::Unread`), so a request that was acted on after all is acted on three times at most.
const UNREAD_RESEND_DELAYS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// How long the body of a request of [`Class::Other`] may take, or the first 64 KiB of it.
const UNADMITTED_BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// One request, with its deadlines, and what has been tried so far.
struct RetryLoop<'r> {
    upstream: &'r Upstream,
    options: &'r SendOptions,
    deadlines: Deadlines,
    report: &'r mut SendReport,
    /// Servers that did not accept it.
    tried: ServerSet,
    /// The index of a server that has just accepted a connection, to be used next.
    connected_to: Option<usize>,
    /// How often it was sent again because it had not been read.
    unread_resends: usize,
}

/// Why sending it to the servers failed.
enum SendFailure<'u> {
    /// No server could be connected to.
    Unreachable(ConnectFailure),
    /// This server gave no response.
    NoResponse(&'u UpstreamServer, Error),
}

impl Upstream {
    /// Sends a request whose target is a path below the relative URL root, and waits for the head
    /// of the response. The message is framed anew: nothing in its headers may concern framing.
    pub async fn send(
        &self,
        mut request: Box<Request<Body>>,
        options: &SendOptions,
        report: &mut SendReport,
    ) -> Result<Response<Body>, Error> {
        prepare_target(&mut request, &self.root)?;
        let outcome = RetryLoop::new(self, options, report).run(request).await;
        // Requests without a credential say nothing about Rails: any client can make them fail, or send masses.
        if options.class == Class::Other {
            return outcome;
        }
        match &outcome {
            Ok(response) if is_away_response(response) => {
                self.state.consecutive_failures.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {
                self.state.responses.fetch_add(1, Ordering::Relaxed);
                self.state.consecutive_failures.store(0, Ordering::Relaxed);
            }
            Err(error) if matches!(error.kind().fault(), Fault::Client | Fault::Limits) => {}
            Err(_) => {
                self.state.consecutive_failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        outcome
    }
}

impl<'r> RetryLoop<'r> {
    fn new(upstream: &'r Upstream, options: &'r SendOptions, report: &'r mut SendReport) -> Self {
        // Only look-ups have too little time to find out again what is known.
        let is_away = options.class == Class::Lookup
            && upstream.state.reachability.has_recent_fruitless_wait(Clock::System.now());
        let deadlines =
            Deadlines::new(options, upstream.limits.admission.of(options.class).settings(), is_away);
        Self {
            upstream,
            options,
            deadlines,
            report,
            tried: ServerSet::default(),
            connected_to: None,
            unread_resends: 0,
        }
    }

    async fn run(mut self, mut request: Box<Request<Body>>) -> Result<Response<Body>, Error> {
        let (upstream, hold) = (self.upstream, &self.upstream.state.hold);
        let replay = self.prepare_replay(&mut request).await?;
        let must_wait = if self.deadlines.tries_once {
            upstream.state.reachability.waits_skipped.fetch_add(1, Ordering::Relaxed);
            // The proxy rejects the request itself as quickly.
            !hold.proxy_reports_away()
        } else {
            (hold.has_to_wait(self.options.class) || hold.proxy_reports_away()) && self.deadlines.may_hold()
        };
        if must_wait {
            Box::pin(self.wait_for_rails()).await?;
        }
        loop {
            // Another one after a wait.
            let upstream = self.upstream;
            let admission = upstream.limits.admission.of(self.options.class);
            let permit = upstream.admit(admission, self.options, &self.deadlines, self.report).await?;
            self.set_with_rails(true);
            match self.send_to_reachable(&mut request).await {
                Ok((response, server)) => {
                    if !self.should_resend_after(&response) || !replay.is_possible() {
                        let (pause, end) = (upstream.body_timeout, self.deadlines.end);
                        return Ok(response.map(|body| body.with_timeouts(permit, pause, end)));
                    }
                    // Its connection and permit are free for others while this request waits.
                    drop((response, permit));
                    Box::pin(self.next_server_or_wait(may_be_healthy)).await?;
                    self.record_resend(server, ResendReason::SafeRead);
                }
                Err(SendFailure::Unreachable(unreachable)) => {
                    drop(permit);
                    self.set_with_rails(false);
                    upstream.record_unreachable(self.options.class, unreachable.error());
                    if !self.deadlines.may_hold() || !unreachable.is_transient() || self.is_abandoned() {
                        if self.deadlines.has_hold_ended() {
                            upstream.record_fruitless_wait(self.options.class, unreachable.error());
                        }
                        return Err(upstream.final_connect_error(unreachable, &self.deadlines));
                    }
                    Box::pin(self.wait_for_rails()).await?;
                }
                Err(SendFailure::NoResponse(server, error)) => {
                    drop(permit);
                    self.set_with_rails(false);
                    if !replay.is_possible() || self.is_abandoned() {
                        return Err(error);
                    }
                    let reason = Box::pin(self.prepare_resend(error)).await?;
                    self.record_resend(server, reason);
                }
            }
        }
    }

    fn set_with_rails(&self, is_with_rails: bool) {
        if let Some(stage) = &self.options.stage {
            stage.set_with_rails(is_with_rails);
        }
    }

    /// Whether the client has left a request that was with Rails.
    fn is_abandoned(&self) -> bool {
        self.options.stage.as_ref().is_some_and(|stage| stage.is_abandoned())
    }

    /// Finds out whether the request may and can be sent again, for which its body may be read into memory.
    async fn prepare_replay(&self, request: &mut Request<Body>) -> Result<Replay<'r>, Error> {
        let state = &self.upstream.state;
        if self.options.is_read {
            self.options.class.of(&self.upstream.limits.resend_budgets).deposit();
        } else if self.options.class == Class::Other {
            // A request whose body does not come must not take one of the few permits.
            return state.unadmitted_bodies.read(request, UNADMITTED_BODY_TIMEOUT).await;
        } else if self.upstream.may_resend_unread {
            let timeout = self.upstream.limits.admission.of(self.options.class).settings().response_timeout;
            return state.replay_memory.buffer(request, timeout).await;
        }
        Ok(Replay::of(request))
    }

    /// Sends the request to the first server that accepts a connection.
    async fn send_to_reachable(
        &mut self,
        request: &mut Request<Body>,
    ) -> Result<(Response<Body>, &'r UpstreamServer), SendFailure<'r>> {
        let (upstream, class) = (self.upstream, self.options.class);
        let response_timeout = upstream.limits.admission.of(class).settings().response_timeout;
        let mut unreachable: Option<(ConnectFailure, &UpstreamServer)> = None;
        loop {
            let sent = Clock::System.now();
            let known = self.connected_to.take().and_then(|index| upstream.servers.get(index));
            let is_too_late = unreachable.is_some() && !self.deadlines.may_send();
            let next = known.or_else(|| choose(&upstream.servers, class, self.tried, sent));
            let Some(server) = next.filter(|_| !is_too_late) else {
                let unreachable = unreachable.map_or_else(ConnectFailure::all_drained, |(error, _)| error);
                return Err(SendFailure::Unreachable(unreachable));
            };
            if let Some((_, before)) = &unreachable {
                before.state.count_resend(ResendReason::Unreachable);
            }
            self.tried.insert(server.index);
            // Only now: a signature made before a wait would be too old.
            if let Some(Signer(sign)) = &self.options.signer {
                sign(request.headers_mut());
            }
            let deadlines = AttemptDeadlines {
                sent,
                response_timeout,
                end: self.deadlines.end,
                total_timeout: self.deadlines.total_timeout,
            };
            if let Some(progress) = &self.options.progress {
                progress.record_sent(sent, server.state.health.last_answer());
            }
            let span = begin_attempt(self.options, server, request);
            let outcome = server.attempt(request, self.options, deadlines).await;
            end_attempt(span, &outcome);
            match outcome {
                Err(AttemptError::NotSent(error)) => {
                    server.state.count_unreachable(&error);
                    let earlier = unreachable.map(|(error, _)| error);
                    unreachable =
                        Some((ConnectFailure::new(&server.name, error).prefer_transient(earlier), server));
                }
                Ok(response) => {
                    upstream.record_response(class, &response, sent);
                    self.record_outcome(server, sent);
                    return Ok((response, server));
                }
                Err(AttemptError::Failed(error)) => {
                    self.record_outcome(server, sent);
                    return Err(SendFailure::NoResponse(server, error));
                }
            }
        }
    }

    fn record_outcome(&mut self, server: &UpstreamServer, sent: Instant) {
        let admission = self.upstream.limits.admission.of(self.options.class);
        admission.record_response_time(Clock::System.now().saturating_duration_since(sent));
        self.report.server = Some(Arc::clone(&server.name));
    }

    /// Whether a response reports an outage of Rails, and the request may and should be sent again.
    fn should_resend_after(&self, response: &Response<Body>) -> bool {
        // Requests without a credential are no measure.
        if self.options.class == Class::Other {
            return false;
        }
        let is_away = is_away_response(response);
        let state = &self.upstream.state;
        let holds = !self.upstream.limits.admission.of(self.options.class).settings().hold.is_zero();
        if !is_away || holds && !self.has_untried(may_be_healthy) {
            // Later requests may have to wait.
            state.hold.set_proxy_reports_away(is_away);
        }
        is_away && (self.has_untried(may_be_healthy) || self.deadlines.may_hold()) && self.may_resend_read()
    }

    /// Prepares to resend a request that got no response, perhaps after a delay. Returns the reason, or the error
    /// to fail with.
    async fn prepare_resend(&mut self, error: Error) -> Result<ResendReason, Error> {
        let may_resend = error.kind().resend();
        let has_other = self.has_untried(is_in_rotation);
        let delay = UNREAD_RESEND_DELAYS.get(self.unread_resends).filter(|_| may_resend == Resend::Any);
        if let Some(delay) = delay
            && self.deadlines.may_send()
            && (has_other || self.deadlines.may_hold())
        {
            self.unread_resends += 1;
            if !has_other {
                // If its deadline comes first, the hold queue rejects it.
                let _ = self.deadlines.within_hold(tokio::time::sleep(*delay)).await;
                self.report.waited += *delay;
            }
            self.next_server_or_wait(is_in_rotation).await?;
            return Ok(ResendReason::Unread);
        }
        if may_resend == Resend::Never || !self.may_resend_read() {
            return Err(error);
        }
        if !has_other {
            self.tried = ServerSet::default();
        }
        Ok(ResendReason::SafeRead)
    }

    /// Whether it is a read that may be sent again: once, in time, and within the budget.
    fn may_resend_read(&self) -> bool {
        if !self.options.is_read || self.report.is_resent || !self.deadlines.may_send() {
            return false;
        }
        let is_within = self.options.class.of(&self.upstream.limits.resend_budgets).withdraw();
        if !is_within {
            self.upstream.state.resends_over_budget.fetch_add(1, Ordering::Relaxed);
        }
        is_within
    }

    fn record_resend(&mut self, server: &UpstreamServer, reason: ResendReason) {
        server.state.count_resend(reason);
        self.report.is_resent = true;
    }

    /// Continues at once if another server is as good as `is_good` demands; else waits for the first that is back.
    async fn next_server_or_wait(&mut self, is_good: fn(Availability) -> bool) -> Result<(), Error> {
        if self.has_untried(is_good) { Ok(()) } else { self.wait_for_rails().await }
    }

    async fn wait_for_rails(&mut self) -> Result<(), Error> {
        let span = begin_wait(self.options, "hold");
        let waited = self.upstream.wait_for_rails(self.options.class, &self.deadlines, self.report).await;
        end_wait(span, &waited);
        (self.upstream, self.connected_to) = waited?;
        self.tried = ServerSet::default();
        Ok(())
    }

    fn has_untried(&self, is_good: fn(Availability) -> bool) -> bool {
        has_untried(&self.upstream.servers, self.tried, is_good, Clock::System.now())
    }
}

/// Whether a server may respond, as far as is known.
fn may_be_healthy(availability: Availability) -> bool {
    matches!(availability, Availability::InRotation(_) | Availability::Unhealthy)
}

fn is_in_rotation(availability: Availability) -> bool {
    matches!(availability, Availability::InRotation(_))
}
