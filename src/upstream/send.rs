//! The way of one request to Rails and back.

use std::io;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body::Body as _;
use tokio::sync::OwnedSemaphorePermit;
use tower::retry::budget::Budget as _;

use super::answer::accept;
use super::hold::Full;
use super::lanes::Lane;
use super::plan::{Course, Limits, Plan, Signer};
use super::pool::Trouble;
use super::{Error, Upstream};
use crate::body::{Body, Collected};
use crate::clock::Clock;
use crate::route::Class;

/// How long after one attempt to connect the next one comes, while requests wait.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(25);

/// How long it gets between attempts with a request that was accepted and not read, which may be a proxy's way
/// to say that there is nobody.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Bytes of the largest body that is kept until there is an answer, so that it can be sent again. GitLab
/// Shell's have a few hundred.
const MOST_COPIED: usize = 64 * 1024;

impl Upstream {
    /// Sends a request whose target is a path below the relative URL root, and waits for the head
    /// of the answer. The message is framed anew: nothing in its headers may concern framing.
    pub async fn send(
        &self,
        mut request: Request<Body>,
        plan: &Plan,
        course: &mut Course,
    ) -> Result<Response<Body>, Error> {
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
        mut request: Request<Body>,
        plan: &Plan,
        course: &mut Course,
    ) -> Result<Response<Body>, Error> {
        let lane = self.state.lanes.of(plan.class);
        let limits = Limits::new(plan, lane.settings().hold, self.total_timeout);
        if plan.is_read {
            self.state.budget.deposit();
        } else if self.may_resend_unread && plan.class != Class::Other {
            let limit = lane.settings().response_timeout;
            let read = tokio::time::timeout(limit, in_memory(request)).await;
            request = read.unwrap_or(Err(Error::BodyStalled(limit)))?;
        }
        let copy = again(&request);
        let mut pause = BETWEEN_ATTEMPTS;
        if self.state.hold.is_on() && limits.may_wait() {
            self.wait_in_line(&limits, course).await?;
        }
        loop {
            let permit = self.admit(lane, plan, &limits, course).await?;
            if let Some(Signer(sign)) = &plan.signer {
                sign(request.headers_mut());
            }
            let sent = now();
            let outcome = self.attempt(request, (sent, lane.settings().response_timeout), limits.end).await;
            if !matches!(outcome, Err(Attempt::NotSent(..))) {
                lane.took(now().saturating_duration_since(sent));
            }
            match outcome {
                Ok(answer) => return Ok(answer.map(|body| body.paced(permit, self.body_timeout, limits.end))),
                Err(Attempt::NotSent(error, unsent)) => {
                    drop(permit);
                    if !limits.may_wait() || !may_pass(&error) {
                        return Err(self.unreachable(error));
                    }
                    request = *unsent;
                    self.wait_in_line(&limits, course).await?;
                }
                Err(Attempt::Failed { error, was_reset }) => {
                    drop(permit);
                    let Some(copy) = copy.as_ref().and_then(again) else { return Err(error) };
                    if was_reset && self.may_resend_unread && limits.may_wait() {
                        self.state.unread.fetch_add(1, Ordering::Relaxed);
                        // If that is too long, the line says so.
                        let _ = limits.held(tokio::time::sleep(pause)).await;
                        course.waited += pause;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        self.wait_in_line(&limits, course).await?;
                    } else if !plan.is_read || course.is_resent || !self.may_be_sent_again(&error) {
                        return Err(error);
                    }
                    request = copy;
                    course.is_resent = true;
                }
            }
        }
    }

    /// Waits for its turn among those of its class.
    async fn admit(
        &self,
        lane: &Lane,
        plan: &Plan,
        limits: &Limits,
        course: &mut Course,
    ) -> Result<OwnedSemaphorePermit, Error> {
        if !limits.are_over()
            && let Some(permit) = lane.try_admit()
        {
            return Ok(permit);
        }
        let begun = now();
        let permit = limits.in_time(lane.admit(plan.may_wait)).await;
        course.waited += now().saturating_duration_since(begun);
        match permit {
            Some(Ok(permit)) if !limits.are_over() => Ok(permit),
            Some(Err(shed)) => Err(Error::Shed(shed)),
            _ => Err(self.too_late(limits)),
        }
    }

    /// Waits until Rails accepts connections again.
    async fn wait_in_line(&self, limits: &Limits, course: &mut Course) -> Result<(), Error> {
        let begun = now();
        let waited = self.wait_until_it_is_back(limits).await;
        course.waited += now().saturating_duration_since(begun);
        waited
    }

    async fn wait_until_it_is_back(&self, limits: &Limits) -> Result<(), Error> {
        let full = |Full| Error::HoldFull(self.target.address.to_string());
        let place = self.state.hold.join(self.max_held).map_err(full)?;
        let Some(_turn) = limits.held(place.turn()).await else { return Err(self.too_late(limits)) };
        loop {
            let error = match limits.held(self.pool.open()).await {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) if may_pass(&error) => error,
                Some(Err(error)) => return Err(self.unreachable(error)),
                None => return Err(self.too_late(limits)),
            };
            if limits.held(tokio::time::sleep(BETWEEN_ATTEMPTS)).await.is_none() {
                return Err(match self.too_late(limits) {
                    Error::Connect(..) => self.unreachable(error),
                    other => other,
                });
            }
        }
    }

    /// Which time is over.
    fn too_late(&self, limits: &Limits) -> Error {
        let now = now();
        if limits.end.is_some_and(|end| now >= end) {
            return Error::TotalTimeout(self.total_timeout);
        }
        if limits.expires.is_some_and(|expires| now >= expires) {
            return Error::Expires(self.target.address.to_string());
        }
        self.unreachable(io::Error::other("it has been away for as long as upstream.hold allows"))
    }

    async fn attempt(
        &self,
        mut request: Request<Body>,
        (begun, response_timeout): (Instant, Duration),
        end: Option<Instant>,
    ) -> Result<Response<Body>, Attempt> {
        let by = begun + response_timeout;
        let by = end.map_or(by, |end| end.min(by));
        let sending = request.body_mut().watch();
        // Pinned here, so that the body is still there to be asked about when the time is up.
        let mut sent = pin!(self.pool.send(request, &sending));
        let error = match tokio::time::timeout_at(by.into(), sent.as_mut()).await {
            Ok(Ok(answer)) => return accept(answer).map_err(Attempt::failed),
            Ok(Err(Trouble::Connect(error, unsent))) => return Err(Attempt::NotSent(error, unsent)),
            Ok(Err(Trouble::Sent(error, _))) if error.is_user() => Error::RequestBody(error.into()),
            Ok(Err(Trouble::Sent(error, was_reset))) => {
                let was_reset = was_reset || is_reset(&error);
                return Err(Attempt::Failed { error: Error::Broken(error), was_reset });
            }
            // Rails cannot answer what it has not been given.
            Err(_) if sending.is_under_way() => Error::BodyStalled(response_timeout),
            Err(_) if end.is_some_and(|end| by >= end) => Error::TotalTimeout(self.total_timeout),
            Err(_) => Error::Timeout(response_timeout),
        };
        Err(Attempt::failed(error))
    }

    /// The connection ended without an answer, and not too often.
    fn may_be_sent_again(&self, error: &Error) -> bool {
        let has_ended = matches!(error, Error::Broken(error) if !error.is_parse());
        if !has_ended {
            return false;
        }
        let is_within = self.state.budget.withdraw();
        let count = if is_within { &self.state.resent } else { &self.state.not_resent };
        count.fetch_add(1, Ordering::Relaxed);
        is_within
    }

    fn unreachable(&self, error: io::Error) -> Error {
        Error::Connect(self.target.address.to_string(), error)
    }

    fn prepare(&self, request: &mut Request<Body>) -> Result<(), Error> {
        request.headers_mut().insert(header::HOST, self.host.clone());
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
        let uri = self.target.below_root(std::mem::take(request.uri_mut()));
        *request.uri_mut() = uri.ok_or(Error::Unusable("no URI for the path"))?;
        Ok(())
    }
}

fn now() -> Instant {
    Clock::System.now()
}

/// What came of sending a request once.
enum Attempt {
    /// No connection: nothing was sent.
    NotSent(io::Error, Box<Request<Body>>),
    Failed {
        error: Error,
        /// Whether the connection was reset. By a Rails on this machine, that means that its process has closed it
        /// without having read all of the request, so that it cannot have acted on it: the kernel resets for
        /// nothing else (RFC 1122 §4.2.2.13; for unix sockets Linux does the same), and one that had read
        /// everything is closed in order. From elsewhere, it may be anything on the way.
        was_reset: bool,
    },
}

impl Attempt {
    fn failed(error: Error) -> Self {
        Self::Failed { error, was_reset: false }
    }
}

/// Reads a body that says it is small, so that it may be sent again.
async fn in_memory(request: Request<Body>) -> Result<Request<Body>, Error> {
    let is_small = request.body().size_hint().exact().is_some_and(|length| length <= MOST_COPIED as u64);
    if !is_small {
        return Ok(request);
    }
    let (head, body) = request.into_parts();
    match body.collect_up_to(MOST_COPIED).await {
        Ok(Collected::Whole(body)) => Ok(Request::from_parts(head, body.into())),
        Ok(Collected::TooLong(body)) => Ok(Request::from_parts(head, body)),
        Err(error) => Err(Error::RequestBody(error.into())),
    }
}

/// The same request once more, if all of it is in memory.
fn again(request: &Request<Body>) -> Option<Request<Body>> {
    let mut again = Request::new(request.body().again()?);
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    *again.version_mut() = request.version();
    again.headers_mut().clone_from(request.headers());
    Some(again)
}

fn is_reset(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        // A broken pipe is what writing to a unix socket meets that is closed already.
        matches!(cause.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    })
}

/// Whether a failure to connect may be over in a while. A certificate that is not believed or a socket
/// that may not be opened are not.
pub fn may_pass(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
}
