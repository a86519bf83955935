//! The way of one request to Rails and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body::Body as _;
use tower::retry::budget::Budget as _;

use super::attempt::{Attempt, Due, has_nobody_behind_it};
use super::balance::{Few, choose, has_another, takes_part};
use super::copy::Copy;
use super::line::{BETWEEN_ATTEMPTS, Unreachable};
use super::plan::{Course, Limits, Plan, Signer};
use super::server::{Again, Server};
use super::target::below_root;
use super::{Error, Upstream};
use crate::body::{self, Body};
use crate::clock::Clock;
use crate::route::Class;

/// How long it gets between attempts with a request that was accepted and not read, which may be a proxy's way
/// to say that there is nobody.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where a request has been, and where it goes next.
struct Way {
    /// Servers that did not take it.
    tried: Few,
    /// The one that has just been connected to.
    opened: Option<usize>,
    /// How long it waits the next time that it was not read.
    pause: Duration,
}

/// How it failed.
enum Failed<'s> {
    /// No server could be connected to.
    Unreachable(Unreachable, Box<Request<Body>>),
    /// This one gave no answer. See [`Attempt::Failed`].
    At { server: &'s Server, error: Error, is_unread: bool },
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
        let outcome = self.send_prepared(request, plan, course).await;
        match &outcome {
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

    async fn send_prepared(
        &self,
        request: Box<Request<Body>>,
        plan: &Plan,
        course: &mut Course,
    ) -> Result<Response<Body>, Error> {
        let (lane, hold) = (self.state.lanes.of(plan.class), &self.state.hold);
        let limits = Limits::new(plan, lane.settings().hold, self.total_timeout);
        let (mut request, copy) = self.kept(request, plan).await?;
        let mut way = Way { tried: Few::default(), opened: None, pause: BETWEEN_ATTEMPTS };
        if (hold.is_on() || hold.is_hollow()) && limits.may_wait() {
            way.opened = Box::pin(self.wait_in_line(plan.class, &limits, course)).await?;
        }
        loop {
            let permit = self.admit(lane, plan, &limits, course).await?;
            if let Some(Signer(sign)) = &plan.signer {
                sign(request.headers_mut());
            }
            let due = self.due(plan, &limits);
            let reached = self.reach(request, plan.class, due, &mut way).await;
            if let Ok((_, server)) | Err(Failed::At { server, .. }) = &reached {
                course.server = Some(Arc::clone(&server.name));
            }
            request = match reached {
                Ok((answer, server)) => {
                    let is_to_go_on = self.is_away(&answer, plan.class, way.tried)
                        && limits.may_wait()
                        && self.is_read_again(server, plan, course);
                    let Some(copy) = is_to_go_on.then(|| copy.again()).flatten() else {
                        return Ok(answer.map(|body| body.paced(permit, self.body_timeout, limits.end)));
                    };
                    drop(permit);
                    Box::pin(self.go_on(plan.class, &limits, (&mut way, &mut *course))).await?;
                    course.is_resent = true;
                    copy
                }
                Err(Failed::Unreachable(unreachable, unsent)) => {
                    drop(permit);
                    if !limits.may_wait() || !unreachable.may_pass() {
                        return Err(self.given_up(unreachable, &limits));
                    }
                    Box::pin(self.go_on(plan.class, &limits, (&mut way, &mut *course))).await?;
                    unsent
                }
                Err(Failed::At { server, error, is_unread }) => {
                    drop(permit);
                    let Some(copy) = copy.again() else { return Err(error) };
                    let failed = (server, error, is_unread);
                    Box::pin(self.may_go_again(failed, plan, &limits, (&mut way, &mut *course))).await?;
                    course.is_resent = true;
                    copy
                }
            };
        }
    }

    /// A request, and a copy of it if it may be sent again.
    async fn kept(
        &self,
        request: Box<Request<Body>>,
        plan: &Plan,
    ) -> Result<(Box<Request<Body>>, Copy<'_>), Error> {
        if plan.is_read {
            self.state.budget.deposit();
        } else if self.may_resend_unread && plan.class != Class::Other {
            let limit = self.state.lanes.of(plan.class).settings().response_timeout;
            return self.state.copies.read(request, limit).await;
        }
        let copy = Copy::of(&request);
        Ok((request, copy))
    }

    /// When a request that is sent now has to be answered.
    fn due(&self, plan: &Plan, limits: &Limits) -> Due {
        Due {
            sent: now(),
            response_timeout: self.state.lanes.of(plan.class).settings().response_timeout,
            end: limits.end,
            total_timeout: self.total_timeout,
            collect: plan.collect,
        }
    }

    /// Sends a request to the first server that can be connected to.
    async fn reach(
        &self,
        mut request: Box<Request<Body>>,
        class: Class,
        mut due: Due,
        way: &mut Way,
    ) -> Result<(Response<Body>, &Server), Failed<'_>> {
        let is_one_of_several = self.servers.len() > 1;
        let mut unreachable = None;
        loop {
            let known = way.opened.take().and_then(|place| self.servers.get(place));
            let Some(server) = known.or_else(|| choose(&self.servers, class, way.tried, due.sent)) else {
                let unreachable = unreachable.unwrap_or_else(Unreachable::all_drained);
                return Err(Failed::Unreachable(unreachable, request));
            };
            way.tried.insert(server.place);
            let attempt = server.attempt(request, class, due, is_one_of_several).await;
            if !matches!(attempt, Err(Attempt::NotSent(..))) {
                self.state.lanes.of(class).took(now().saturating_duration_since(due.sent));
            }
            match attempt {
                Ok(answer) => return Ok((answer, server)),
                Err(Attempt::Failed { error, is_unread }) => {
                    return Err(Failed::At { server, error, is_unread });
                }
                Err(Attempt::NotSent(error, unsent)) => {
                    unreachable = Some(Unreachable::new(&server.name, error).or(unreachable));
                    request = unsent;
                    due.sent = now();
                    if has_another(&self.servers, way.tried) {
                        server.state.is_sent_again(Again::Unreachable);
                    }
                }
            }
        }
    }

    /// Whether a request may be sent once more that got no answer: perhaps after a while. If not, that is how it
    /// ends.
    async fn may_go_again(
        &self,
        (server, error, is_unread): (&Server, Error, bool),
        plan: &Plan,
        limits: &Limits,
        (way, course): (&mut Way, &mut Course),
    ) -> Result<(), Error> {
        if is_unread && (has_another(&self.servers, way.tried) || limits.may_wait()) {
            server.state.is_sent_again(Again::Unread);
            if !has_another(&self.servers, way.tried) {
                // If that is too long, the line says so.
                let _ = limits.held(tokio::time::sleep(way.pause)).await;
                course.waited += way.pause;
                way.pause = (way.pause * 2).min(LONGEST_PAUSE);
            }
            return self.go_on(plan.class, limits, (way, course)).await;
        }
        let has_ended = match &error {
            Error::Broken(error) => !error.is_parse(),
            Error::BrokeOff(error) => matches!(error, body::Error::Broken(_)),
            _ => false,
        };
        if !has_ended || !self.is_read_again(server, plan, course) {
            return Err(error);
        }
        if !has_another(&self.servers, way.tried) {
            way.tried = Few::default();
        }
        Ok(())
    }

    /// Another server is next if there is one; else all are, in line.
    async fn go_on(
        &self,
        class: Class,
        limits: &Limits,
        (way, course): (&mut Way, &mut Course),
    ) -> Result<(), Error> {
        if !has_another(&self.servers, way.tried) {
            way.opened = self.wait_in_line(class, limits, course).await?;
            way.tried = Few::default();
        }
        Ok(())
    }

    /// Whether an answer says that Rails is away. If no other server takes part, whoever comes now may have to wait.
    /// What anybody may ask for is no measure.
    fn is_away(&self, answer: &Response<Body>, class: Class, tried: Few) -> bool {
        if class == Class::Other {
            return false;
        }
        let is_away = has_nobody_behind_it(answer);
        let holds = !self.state.lanes.of(class).settings().hold.is_zero();
        if !is_away || holds && !takes_part(&self.servers, tried, now()) {
            self.state.hold.set_hollow(is_away);
        }
        is_away
    }

    /// Whether it is a read that may be sent again: once, and not if too many have been.
    fn is_read_again(&self, server: &Server, plan: &Plan, course: &Course) -> bool {
        if !plan.is_read || course.is_resent {
            return false;
        }
        let is_within = self.state.budget.withdraw();
        if is_within {
            server.state.is_sent_again(Again::Read);
        } else {
            self.state.not_resent.fetch_add(1, Ordering::Relaxed);
        }
        is_within
    }

    fn prepare(&self, request: &mut Request<Body>) -> Result<(), Error> {
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

fn now() -> Instant {
    Clock::System.now()
}
