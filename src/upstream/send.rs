//! The way of one request to Rails and back.

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body::Body as _;
use tokio::sync::OwnedSemaphorePermit;
use tower::retry::budget::Budget as _;

use super::answer::accept;
use super::hold::Full;
use super::pool::Trouble;
use super::{Error, Upstream};
use crate::body::{Body, Collected};
use crate::clock::Clock;
use crate::route::Class;

/// What is known of a request that it does not say itself.
#[derive(Clone, Debug)]
pub struct Plan {
    /// With which others it shares what Rails is asked at one time.
    pub class: Class,
    /// Asking changes nothing, so that it may be sent again.
    pub is_read: bool,
    /// Whether it may wait, for Rails to be back or to have less to do. Somebody who has another answer
    /// does not.
    pub may_wait: bool,
    /// How long the credential in it is good, if not for ever.
    pub expires_in: Option<Duration>,
    /// Signs it, each time it is sent: what waits would be signed too early.
    pub signer: Option<Signer>,
}

/// Puts a credential into the headers of a request.
#[derive(Clone)]
pub struct Signer(pub Arc<dyn Fn(&mut HeaderMap) + Send + Sync>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self { class: Class::Other, is_read: false, may_wait: false, expires_in: None, signer: None }
    }
}

/// What a request went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// How long it waited before it was sent.
    pub waited: Duration,
    /// Whether it was sent again.
    pub is_resent: bool,
}

/// How long after one attempt to connect the next one comes, while requests wait.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(25);

/// How often a request is sent again that was not read: a Rails that is stopped in the middle of it may still
/// have connections that it never accepts.
const MOST_RESETS: usize = 3;

/// Bytes of the largest body that is kept until there is an answer, so that it can be sent again. GitLab
/// Shell's have a few hundred.
const MOST_COPIED: usize = 64 * 1024;

/// A token is sent no later than so long before its end: Rails has a clock of its own.
const BEFORE_EXPIRY: Duration = Duration::from_secs(1);

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
            Err(Error::RequestBody(_) | Error::BodyStalled(_) | Error::Shed(_)) => {}
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
        let begun = now();
        let end = (!self.total_timeout.is_zero()).then(|| begun + self.total_timeout);
        let held_until = begun + self.patience(plan);
        if plan.is_read {
            self.state.budget.deposit();
        } else if self.target.address.is_local() && plan.class != Class::Other {
            let limit = lane.settings().response_timeout;
            let read = tokio::time::timeout(limit, in_memory(request)).await;
            request = read.unwrap_or(Err(Error::BodyStalled(limit)))?;
        }
        let copy = again(&request);
        let mut resets = 0;
        if plan.may_wait && self.state.hold.is_on() {
            self.wait_in_line(held_until).await?;
        }
        loop {
            let permit = lane.admit(plan.may_wait).await.map_err(Error::Shed)?;
            if let Some(Signer(sign)) = &plan.signer {
                sign(request.headers_mut());
            }
            let sent = now();
            course.waited = sent.saturating_duration_since(begun);
            match self.attempt(request, lane.settings().response_timeout, end).await {
                Ok(answer) => {
                    lane.took(now().saturating_duration_since(sent));
                    return Ok(self.paced(answer, permit, end));
                }
                Err(Attempt::NotSent(error, unsent)) => {
                    drop(permit);
                    if now() >= held_until || !may_pass(&error) {
                        return Err(self.unreachable(error));
                    }
                    request = *unsent;
                    self.wait_in_line(held_until).await?;
                }
                Err(Attempt::Failed(error)) => {
                    drop(permit);
                    let copy = copy.as_ref().and_then(again);
                    if resets < MOST_RESETS && self.was_not_read(&error) {
                        resets += 1;
                        request = copy.ok_or(error)?;
                        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
                    } else if plan.is_read && !course.is_resent && self.may_be_sent_again(&error) {
                        request = copy.ok_or(error)?;
                    } else {
                        return Err(error);
                    }
                    course.is_resent = true;
                }
            }
        }
    }

    /// For how long a request waits for Rails to be back.
    fn patience(&self, plan: &Plan) -> Duration {
        if !plan.may_wait {
            return Duration::ZERO;
        }
        let hold = self.state.lanes.of(plan.class).settings().hold;
        plan.expires_in.map_or(hold, |left| hold.min(left.saturating_sub(BEFORE_EXPIRY)))
    }

    /// Waits until Rails accepts connections again.
    async fn wait_in_line(&self, until: Instant) -> Result<(), Error> {
        let address = || self.target.address.to_string();
        let place = self.state.hold.join(self.max_held).map_err(|Full| Error::HoldFull(address()))?;
        let Ok(turn) = tokio::time::timeout_at(until.into(), place.turn()).await else {
            let waited =
                io::Error::new(io::ErrorKind::TimedOut, "still away after others have tried for long");
            return Err(self.unreachable(waited));
        };
        loop {
            match self.pool.open().await {
                Ok(()) => {
                    turn.succeeded();
                    return Ok(());
                }
                Err(error) if now() + BETWEEN_ATTEMPTS >= until || !may_pass(&error) => {
                    return Err(self.unreachable(error));
                }
                Err(_) => tokio::time::sleep(BETWEEN_ATTEMPTS).await,
            }
        }
    }

    async fn attempt(
        &self,
        mut request: Request<Body>,
        response_timeout: Duration,
        end: Option<Instant>,
    ) -> Result<Response<Body>, Attempt> {
        let by = now() + response_timeout;
        let by = end.map_or(by, |end| end.min(by));
        let sending = request.body_mut().watch();
        // Pinned here, so that the body is still there to be asked about when the time is up.
        let mut sent = pin!(self.pool.send(request, &sending));
        match tokio::time::timeout_at(by.into(), sent.as_mut()).await {
            Ok(Ok(answer)) => accept(answer).map_err(Attempt::Failed),
            Ok(Err(Trouble::Connect(error, unsent))) => Err(Attempt::NotSent(error, unsent)),
            Ok(Err(Trouble::Sent(error))) if error.is_user() => {
                Err(Attempt::Failed(Error::RequestBody(error.into())))
            }
            Ok(Err(Trouble::Sent(error))) => Err(Attempt::Failed(Error::Broken(error))),
            // Rails cannot answer what it has not been given.
            Err(_) if sending.is_under_way() => Err(Attempt::Failed(Error::BodyStalled(response_timeout))),
            Err(_) if end.is_some_and(|end| by >= end) => {
                Err(Attempt::Failed(Error::TotalTimeout(self.total_timeout)))
            }
            Err(_) => Err(Attempt::Failed(Error::Timeout(response_timeout))),
        }
    }

    /// Whether a Rails on this machine has closed the connection without having read all of the request, so
    /// that it cannot have acted on it: that is what the kernel resets a connection for (RFC 1122
    /// §4.2.2.13; for unix sockets Linux does the same). One that had read everything is closed without.
    /// From elsewhere, a reset may be anything on the way.
    fn was_not_read(&self, error: &Error) -> bool {
        matches!(error, Error::Broken(error) if self.target.address.is_local() && is_reset(error))
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

    fn paced(
        &self,
        answer: Response<Body>,
        permit: OwnedSemaphorePermit,
        end: Option<Instant>,
    ) -> Response<Body> {
        answer.map(|body| body.paced(permit, self.body_timeout, end))
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
    Failed(Error),
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
fn may_pass(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
}
