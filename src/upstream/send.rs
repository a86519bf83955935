//! The way of one request to Rails and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body::Body as _;
use tower::retry::budget::Budget as _;

use super::attempt::{AttemptError, Deadlines, says_that_rails_is_away};
use super::balance::{ServerSet, choose, has_another};
use super::copy::Copy;
use super::health::Standing;
use super::line::Unreachable;
use super::plan::{Course, Limits, Plan, Signer};
use super::server::{Again, Server};
use super::target::below_root;
use super::{Error, Upstream, now};
use crate::body::{self, Body};
use crate::route::Class;

/// How long a request rests, where there is no other server, before it is sent again because it was not
/// read: the first time, the second time, and no more. A server that accepts requests and resets them
/// will not read the next one either; and over TCP the sign is strong, but no proof
/// ([`AttemptError::Failed`]), so what was acted on after all is acted on three times at most.
const UNREAD_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// A request on its way: what is known of it, where it has been, and where it goes next.
struct Journey<'r> {
    upstream: &'r Upstream,
    plan: &'r Plan,
    limits: Limits,
    course: &'r mut Course,
    /// Servers that did not take it.
    tried: ServerSet,
    /// The one that has just been connected to.
    opened: Option<usize>,
    /// How often it was sent again because it was not read.
    unread: usize,
}

/// How sending it failed.
enum Failed<'u> {
    /// No server could be connected to.
    Unreachable(Unreachable, Box<Request<Body>>),
    /// This one gave no answer. See [`AttemptError::Failed`].
    At { server: &'u Server, error: Error, is_unread: bool },
}

impl Upstream {
    /// Sends a request whose target is a path below the relative URL root, and waits for the head
    /// of the answer. The message is framed anew: nothing in its headers may concern framing.
    pub async fn send(
        &self,
        request: Request<Body>,
        plan: &Plan,
        course: &mut Course,
    ) -> Result<Response<Body>, Error> {
        // From here on it is handed from one future to the next, each of which would have room for it.
        let mut request = Box::new(request);
        self.prepare(&mut request)?;
        let outcome = Journey::new(self, plan, course).run(request).await;
        // What needs no credential says nothing of Rails: any client can make it fail, or come in masses.
        if plan.class == Class::Other {
            return outcome;
        }
        match &outcome {
            Ok(answer) if says_that_rails_is_away(answer) => {
                self.state.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {
                self.state.answers.fetch_add(1, Ordering::Relaxed);
                self.state.failures_in_a_row.store(0, Ordering::Relaxed);
            }
            // Not Rails' failures.
            Err(Error::RequestBody(_) | Error::BodyStalled(_) | Error::Shed(_) | Error::Expires(_)) => {}
            Err(_) => {
                self.state.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
            }
        }
        outcome
    }

    fn prepare(&self, request: &mut Request<Body>) -> Result<(), Error> {
        // No client of GitLab sends any, and Puma refuses one that comes in a packet of its own.
        request.headers_mut().remove(header::TRAILER);
        request.body_mut().drop_trailers();
        if request.body().size_hint().exact().is_none() {
            // hyper takes a GET of unknown length for one without a body, unless told.
            request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        // RFC 9110 §8.6: a method that may have a body says so when it has none.
        let may_have_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
        if may_have_body && request.body().size_hint().exact() == Some(0) {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        *request.version_mut() = Version::HTTP_11;
        let uri = below_root(&self.root, std::mem::take(request.uri_mut()));
        *request.uri_mut() = uri.ok_or(Error::Unusable("no URI for the path"))?;
        Ok(())
    }
}

impl<'r> Journey<'r> {
    fn new(upstream: &'r Upstream, plan: &'r Plan, course: &'r mut Course) -> Self {
        // Only what a login waits for has no time to find out again what is known.
        let is_away = plan.class == Class::Lookup && upstream.state.away.is_remembered(now());
        let limits = Limits::new(plan, upstream.state.lanes.of(plan.class).settings(), is_away);
        Self { upstream, plan, limits, course, tried: ServerSet::default(), opened: None, unread: 0 }
    }

    async fn run(mut self, request: Box<Request<Body>>) -> Result<Response<Body>, Error> {
        let (upstream, hold) = (self.upstream, &self.upstream.state.hold);
        let (mut request, copy) = self.kept(request).await?;
        let has_to_wait = if self.limits.is_brief {
            upstream.state.away.unheld.fetch_add(1, Ordering::Relaxed);
            // What a proxy says, it says as quickly to the request itself.
            !hold.proxy_says_away()
        } else {
            (hold.is_on(self.plan.class) || hold.proxy_says_away()) && self.limits.may_wait()
        };
        if has_to_wait {
            Box::pin(self.wait_in_line()).await?;
        }
        loop {
            let lane = upstream.state.lanes.of(self.plan.class);
            let permit = upstream.admit(lane, self.plan, &self.limits, self.course).await?;
            request = match self.reach(request).await {
                Ok((answer, server)) => {
                    let copy = if self.is_worth_another(&answer) { copy.again() } else { None };
                    let Some(copy) = copy else {
                        let (pause, end) = (upstream.body_timeout, self.limits.end);
                        return Ok(answer.map(|body| body.paced(permit, pause, end)));
                    };
                    // What is not read any more has no connection, and no permit.
                    drop((answer, permit));
                    Box::pin(self.another_or_line(may_be_well)).await?;
                    self.goes_again(server, Again::Read);
                    copy
                }
                Err(Failed::Unreachable(unreachable, unsent)) => {
                    drop(permit);
                    upstream.note_unreachable(self.plan.class, unreachable.error());
                    if !self.limits.may_wait() || !unreachable.may_pass() {
                        if self.limits.have_been_in_vain() {
                            upstream.has_waited_in_vain(self.plan.class, unreachable.error());
                        }
                        return Err(upstream.given_up(unreachable, &self.limits));
                    }
                    Box::pin(self.wait_in_line()).await?;
                    unsent
                }
                Err(Failed::At { server, error, is_unread }) => {
                    drop(permit);
                    let Some(copy) = copy.again() else { return Err(error) };
                    let why = Box::pin(self.prepare_another(error, is_unread)).await?;
                    self.goes_again(server, why);
                    copy
                }
            };
        }
    }

    /// A request, and a copy of it if it may be sent again.
    async fn kept(&self, request: Box<Request<Body>>) -> Result<(Box<Request<Body>>, Copy<'r>), Error> {
        let state = &self.upstream.state;
        if self.plan.is_read {
            self.plan.class.of(&state.budgets).deposit();
        } else if self.upstream.may_resend_unread && self.plan.class != Class::Other {
            let limit = state.lanes.of(self.plan.class).settings().response_timeout;
            return state.copies.read(request, limit).await;
        }
        let copy = Copy::of(&request);
        Ok((request, copy))
    }

    /// Sends a request to the first server that can be connected to.
    async fn reach(
        &mut self,
        mut request: Box<Request<Body>>,
    ) -> Result<(Response<Body>, &'r Server), Failed<'r>> {
        let (upstream, class) = (self.upstream, self.plan.class);
        let response_timeout = upstream.state.lanes.of(class).settings().response_timeout;
        let mut unreachable: Option<(Unreachable, &Server)> = None;
        loop {
            let sent = now();
            let known = self.opened.take().and_then(|place| upstream.servers.get(place));
            let is_too_late = unreachable.is_some() && !self.limits.are_worth_it();
            let next = known.or_else(|| choose(&upstream.servers, class, self.tried, sent));
            let Some(server) = next.filter(|_| !is_too_late) else {
                let unreachable = unreachable.map_or_else(Unreachable::all_drained, |(error, _)| error);
                return Err(Failed::Unreachable(unreachable, request));
            };
            if let Some((_, before)) = &unreachable {
                before.state.count_resend(Again::Unreachable);
            }
            self.tried.insert(server.place);
            // Only now: what has waited would be signed too early.
            if let Some(Signer(sign)) = &self.plan.signer {
                sign(request.headers_mut());
            }
            let deadlines =
                Deadlines { sent, response_timeout, end: self.limits.end, total_timeout: self.limits.total };
            if let Some(progress) = &self.plan.progress {
                progress.record_sent(sent, server.state.health.last_answer());
            }
            match server.attempt(request, self.plan, deadlines).await {
                Err(AttemptError::NotSent(error, unsent)) => {
                    server.state.count_unreachable(&error);
                    let earlier = unreachable.map(|(error, _)| error);
                    unreachable = Some((Unreachable::new(&server.name, error).or(earlier), server));
                    request = unsent;
                }
                Ok(answer) => {
                    upstream.note_answer(class, &answer, sent);
                    self.was_sent_to(server, sent);
                    return Ok((answer, server));
                }
                Err(AttemptError::Failed { error, is_unread }) => {
                    self.was_sent_to(server, sent);
                    return Err(Failed::At { server, error, is_unread });
                }
            }
        }
    }

    fn was_sent_to(&mut self, server: &Server, sent: Instant) {
        let lane = self.upstream.state.lanes.of(self.plan.class);
        lane.took(now().saturating_duration_since(sent));
        self.course.server = Some(Arc::clone(&server.name));
    }

    /// Whether an answer says that Rails is away, and another one may be better.
    fn is_worth_another(&self, answer: &Response<Body>) -> bool {
        // What anybody may ask for is no measure.
        if self.plan.class == Class::Other {
            return false;
        }
        let is_away = says_that_rails_is_away(answer);
        let state = &self.upstream.state;
        let holds = !state.lanes.of(self.plan.class).settings().hold.is_zero();
        if !is_away || holds && !self.has_another(may_be_well) {
            // Whoever comes now may have to wait.
            state.hold.set_proxy_says_away(is_away);
        }
        is_away && (self.has_another(may_be_well) || self.limits.may_wait()) && self.may_read_again()
    }

    /// Prepares to send a request once more that got no answer, perhaps after a while; why, or how it ends.
    async fn prepare_another(&mut self, error: Error, is_unread: bool) -> Result<Again, Error> {
        let has_another = self.has_another(takes_part);
        let pause = UNREAD_PAUSES.get(self.unread).filter(|_| is_unread);
        if let Some(pause) = pause
            && self.limits.are_worth_it()
            && (has_another || self.limits.may_wait())
        {
            self.unread += 1;
            if !has_another {
                // If that is too long, the line says so.
                let _ = self.limits.held(tokio::time::sleep(*pause)).await;
                self.course.waited += *pause;
            }
            self.another_or_line(takes_part).await?;
            return Ok(Again::Unread);
        }
        let has_ended = match &error {
            Error::Broken(error) => !error.is_parse(),
            Error::BrokeOff(error) => matches!(error, body::Error::Broken(_)),
            _ => false,
        };
        if !has_ended || !self.may_read_again() {
            return Err(error);
        }
        if !has_another {
            self.tried = ServerSet::default();
        }
        Ok(Again::Read)
    }

    /// Whether it is a read that may be sent again: once, in time, and if not too many have been.
    fn may_read_again(&self) -> bool {
        if !self.plan.is_read || self.course.is_resent || !self.limits.are_worth_it() {
            return false;
        }
        let is_within = self.plan.class.of(&self.upstream.state.budgets).withdraw();
        if !is_within {
            self.upstream.state.not_resent.fetch_add(1, Ordering::Relaxed);
        }
        is_within
    }

    fn goes_again(&mut self, server: &Server, why: Again) {
        server.state.count_resend(why);
        self.course.is_resent = true;
    }

    /// Another server is next if one is as good as that; else the first that is back, in line.
    async fn another_or_line(&mut self, is_good: fn(Standing) -> bool) -> Result<(), Error> {
        if self.has_another(is_good) { Ok(()) } else { self.wait_in_line().await }
    }

    async fn wait_in_line(&mut self) -> Result<(), Error> {
        self.opened = self.upstream.wait_in_line(self.plan.class, &self.limits, self.course).await?;
        self.tried = ServerSet::default();
        Ok(())
    }

    fn has_another(&self, is_good: fn(Standing) -> bool) -> bool {
        has_another(&self.upstream.servers, self.tried, is_good, now())
    }
}

/// Whether a server may answer, as far as is known.
fn may_be_well(standing: Standing) -> bool {
    matches!(standing, Standing::In(_) | Standing::Unhealthy)
}

fn takes_part(standing: Standing) -> bool {
    matches!(standing, Standing::In(_))
}
