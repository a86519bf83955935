//! Judges the caller by the scheme that the row names: always before the cache, and for every
//! caller by itself. Reads a body only when the credential can be nowhere else.

use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use futures_util::future::Either;
use http::header;
use http::{Method, Request};
use http_body::Body as _;
use tower::{Layer, Service};
use tracing::warn;

use super::{Later, NowOr, now};
use crate::auth::{AuthBody, AuthOutcome, Authenticator, Caller, CallerKind, Rejection};
use crate::body::Body;
use crate::body::unverified::{NotRead, UnverifiedBodies};
use crate::cache::Key;
use crate::clock::Clock;
use crate::exchange::{Authenticated, Routed, SeenBody};
use crate::failure::Failure;
use crate::params::Params;
use crate::upstream::WaitPolicy;

/// Puts [`Authenticate`] in front of a service.
#[derive(Clone, Debug)]
pub struct AuthenticateLayer {
    auth: Arc<ArcSwap<Authenticator>>,
    clock: Clock,
    bodies: Arc<UnverifiedBodies>,
}

/// Lets authenticated callers through.
#[derive(Clone, Debug)]
pub struct Authenticate<S> {
    inner: S,
    auth: Arc<ArcSwap<Authenticator>>,
    clock: Clock,
    bodies: Arc<UnverifiedBodies>,
}

impl AuthenticateLayer {
    /// Judges by whatever `auth` holds when a request comes, so that secrets can be exchanged. Those
    /// bodies that have to be searched are read by `bodies`.
    pub fn new(auth: Arc<ArcSwap<Authenticator>>, clock: Clock, bodies: Arc<UnverifiedBodies>) -> Self {
        Self { auth, clock, bodies }
    }
}

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate {
            inner,
            auth: Arc::clone(&self.auth),
            clock: self.clock.clone(),
            bodies: Arc::clone(&self.bodies),
        }
    }
}

impl<S> Service<Routed> for Authenticate<S>
where
    S: Service<Authenticated, Response = http::Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = NowOr<Either<S::Future, Later>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, routed: Routed) -> Self::Future {
        let has_body = !routed.exchange.request.body().is_end_stream();
        let form = has_body.then(|| BodyForm::of(&routed.exchange.request)).flatten();
        let body = if form.is_some() { AuthBody::Unread } else { AuthBody::Irrelevant };
        let query = Params::parse(query(&routed));
        match judge(&self.auth.load(), &routed, &query, body, &self.clock) {
            AuthOutcome::Accepted(caller) => {
                let seen = if has_body { SeenBody::Unknown } else { SeenBody::None };
                let key = Key::new(routed.found.route.caching, &query);
                Either::Right(Either::Left(self.inner.call(admit(routed, caller, key, seen))))
            }
            AuthOutcome::Rejected(rejection) => {
                now(Err(Failure::unauthorized(routed.found.route.access, rejection)))
            }
            AuthOutcome::BodyNeeded => {
                // The ready service goes along; a clone takes its place (tower#547).
                let clone = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, clone);
                let (auth, clock) = (self.auth.load_full(), self.clock.clone());
                let bodies = Arc::clone(&self.bodies);
                Either::Right(Either::Right(Box::pin(read_and_judge(
                    inner, auth, clock, bodies, routed, form,
                ))))
            }
        }
    }
}

impl From<NotRead> for Failure {
    fn from(reason: NotRead) -> Self {
        match reason {
            NotRead::TooLong => Self::BodyTooLarge,
            NotRead::GaveWay => Self::UnverifiedBodiesFull,
            NotRead::TooSlow | NotRead::BrokeOff(_) => Self::BodyBrokeOff,
        }
    }
}

/// How Rails would read a body, if it would look for parameters in it at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyForm {
    Urlencoded,
    Json,
}

impl BodyForm {
    /// Rack reads a form whatever the method, and takes a POST without a type for one; Grape
    /// reads JSON unless the method is GET or HEAD (contract §2.2).
    fn of(request: &Request<Body>) -> Option<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let Some(kind) = kind.filter(|kind| !kind.as_bytes().trim_ascii().is_empty()) else {
            return (request.method() == Method::POST).then_some(Self::Urlencoded);
        };
        let media_type = kind.to_str().ok()?.split([';', ',']).next()?.trim();
        if media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Some(Self::Urlencoded);
        }
        let is_read = !matches!(*request.method(), Method::GET | Method::HEAD);
        (is_read && media_type.eq_ignore_ascii_case("application/json")).then_some(Self::Json)
    }
}

fn query(routed: &Routed) -> &[u8] {
    routed.exchange.request.uri().query().unwrap_or_default().as_bytes()
}

fn judge(
    auth: &Authenticator,
    routed: &Routed,
    query: &Params<'_>,
    body: AuthBody<'_>,
    clock: &Clock,
) -> AuthOutcome {
    let headers = routed.exchange.request.headers();
    let verdict = auth.authenticate(routed.found.route.access, headers, query, body, || clock.unix_seconds());
    let is_of_token = match verdict {
        AuthOutcome::Accepted(caller) => matches!(caller.kind(), CallerKind::ShellJwt | CallerKind::Kas),
        AuthOutcome::Rejected(rejection) => matches!(rejection, Rejection::Skewed | Rejection::Expired),
        AuthOutcome::BodyNeeded => false,
    };
    if is_of_token {
        tell_skew(auth);
    }
    verdict
}

fn tell_skew(auth: &Authenticator) {
    for (kind, skew) in auth.clock_skews() {
        if let Some(seconds) = skew.take_unreported() {
            warn!(
                caller = kind.as_str(),
                seconds,
                "a token was issued in the future: the clock of this machine is slow, or the caller's is \
                 fast; have both set by NTP. Rails does not mind, but tokens live longer than they should"
            );
        }
    }
}

/// Only for whom the verdict lets in. The key comes along, so that the query is read once.
fn admit(routed: Routed, caller: Caller, key: Option<Key>, seen: SeenBody) -> Authenticated {
    let Routed { exchange, found } = routed;
    if matches!(caller.kind(), CallerKind::SharedSecret | CallerKind::ShellJwt | CallerKind::Kas) {
        exchange.connection.trust();
    }
    exchange.record.note(|notes| notes.caller = caller.kind());
    Authenticated {
        exchange,
        found,
        caller,
        key,
        seen,
        collect: None,
        may_wait: WaitPolicy::ForRails,
        progress: None,
        since: None,
    }
}

/// Reads the body, judges again, and sends the body on as it was.
async fn read_and_judge<S>(
    mut inner: S,
    auth: Arc<Authenticator>,
    clock: Clock,
    bodies: Arc<UnverifiedBodies>,
    mut routed: Routed,
    form: Option<BodyForm>,
) -> super::Answer
where
    S: Service<Authenticated, Response = http::Response<Body>, Error = Failure>,
{
    let body = std::mem::take(routed.exchange.request.body_mut());
    let takes_body = routed.exchange.connection.take_body();
    let read = bodies.read(body, auth.max_body).await?;
    drop(takes_body);
    let (body, seen) = match form {
        Some(BodyForm::Urlencoded) => (AuthBody::Form(&read), SeenBody::Form(read.clone())),
        Some(BodyForm::Json) => (AuthBody::Json(&read), SeenBody::Unknown),
        None => (AuthBody::Irrelevant, SeenBody::Unknown),
    };
    let query = Params::parse(query(&routed));
    match judge(&auth, &routed, &query, body, &clock) {
        AuthOutcome::Accepted(caller) => {
            let key = Key::new(routed.found.route.caching, &query);
            *routed.exchange.request.body_mut() = Body::from(read);
            inner.call(admit(routed, caller, key, seen)).await
        }
        AuthOutcome::Rejected(rejection) => Err(Failure::Unauthorized(rejection)),
        AuthOutcome::BodyNeeded => Err(Failure::Unauthorized(Rejection::Missing)),
    }
}

#[cfg(test)]
mod tests;
