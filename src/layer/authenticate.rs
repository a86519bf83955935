//! Authenticates the caller by the scheme of the route: always before the cache, and for every
//! request by itself. Reads a body only if the credential can be nowhere else.

use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use futures_util::future::Either;
use http::header;
use http::{Method, Request};
use http_body::Body as _;
use tower::{Layer, Service, ServiceExt as _};
use tracing::warn;

use super::{BoxedResponse, ImmediateOr, immediate};
use crate::auth::{AuthBody, AuthOutcome, Authenticator, Caller, CallerKind, Rejection};
use crate::body::Body;
use crate::body::unverified::{ReadBodyError, UnverifiedBodies};
use crate::cache::Key;
use crate::clock::Clock;
use crate::exchange::{Authenticated, KnownBody, Routed};
use crate::failure::Failure;
use crate::params::Params;
use crate::route::Access;
use crate::secret::refresh::SecretRefresher;
use crate::server::ConnectionHandle;
use crate::upstream::WaitPolicy;

/// Puts [`Authenticate`] in front of a service.
#[derive(Clone, Debug)]
pub struct AuthenticateLayer {
    checker: Checker,
    bodies: Arc<UnverifiedBodies>,
}

/// Passes the requests of authenticated callers.
#[derive(Clone, Debug)]
pub struct Authenticate<S> {
    inner: S,
    checker: Checker,
    bodies: Arc<UnverifiedBodies>,
}

/// Checks credentials.
#[derive(Clone, Debug)]
struct Checker {
    auth: Arc<ArcSwap<Authenticator>>,
    clock: Clock,
    secrets: SecretRefresher,
}

impl AuthenticateLayer {
    /// Uses what `auth` holds when a request arrives, so that secrets can be exchanged. Bodies that have to be
    /// searched for a credential are read by `bodies`. Before a secret is refused, `secrets` looks whether it is a
    /// new one.
    pub fn new(
        auth: Arc<ArcSwap<Authenticator>>,
        clock: Clock,
        bodies: Arc<UnverifiedBodies>,
        secrets: SecretRefresher,
    ) -> Self {
        Self { checker: Checker { auth, clock, secrets }, bodies }
    }
}

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, checker: self.checker.clone(), bodies: Arc::clone(&self.bodies) }
    }
}

impl<S> Service<Routed> for Authenticate<S>
where
    S: Service<Authenticated, Response = http::Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = ImmediateOr<Either<S::Future, BoxedResponse>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, routed: Routed) -> Self::Future {
        let has_body = !routed.exchange.request.body().is_end_stream();
        let encoding = has_body.then(|| BodyEncoding::of(&routed.exchange.request)).flatten();
        let body = if encoding.is_some() { AuthBody::Unread } else { AuthBody::Irrelevant };
        let query = Params::parse(query(&routed));
        match self.checker.check(&routed, &query, body) {
            AuthOutcome::Accepted(caller) => {
                let known_body = if has_body { KnownBody::Unknown } else { KnownBody::None };
                let key = Key::new(routed.route_match.route.caching, &query);
                Either::Right(Either::Left(self.inner.call(authenticated(routed, caller, key, known_body))))
            }
            AuthOutcome::Rejected(Rejection::Wrong) => {
                let retry = self.retry();
                let known_body = if has_body { KnownBody::Unknown } else { KnownBody::None };
                let call = async move { retry.with_current_secrets(routed, (encoding, known_body)).await };
                Either::Right(Either::Right(Box::pin(call)))
            }
            AuthOutcome::Rejected(rejection) => {
                immediate(Err(Failure::unauthorized(routed.route_match.route.access, rejection)))
            }
            AuthOutcome::BodyNeeded => {
                let retry = self.retry();
                Either::Right(Either::Right(Box::pin(async move { retry.with_body(routed, encoding).await })))
            }
        }
    }
}

impl<S: Clone> Authenticate<S> {
    /// A clone takes the place of the service, so that what that has reserved is free meanwhile; then the future
    /// reserves for itself.
    fn retry(&mut self) -> Retry<S> {
        let inner = self.inner.clone();
        self.inner = inner.clone();
        Retry { inner, checker: self.checker.clone(), bodies: Arc::clone(&self.bodies) }
    }
}

impl From<ReadBodyError> for Failure {
    fn from(reason: ReadBodyError) -> Self {
        match reason {
            ReadBodyError::TooLarge => Self::BodyTooLarge,
            ReadBodyError::Evicted => Self::UnverifiedBodiesFull,
            ReadBodyError::TooSlow | ReadBodyError::Body(_) => Self::BodyBrokeOff,
        }
    }
}

/// How Rails would decode the parameters in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyEncoding {
    Urlencoded,
    Json,
}

impl BodyEncoding {
    /// `None` if Rails looks for no parameters in the body. Rack reads a form whatever the method, and takes a
    /// POST without a type for one; Grape reads JSON unless the method is GET or HEAD (contract §2.2).
    fn of(request: &Request<Body>) -> Option<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let Some(kind) = kind.filter(|kind| !kind.as_bytes().trim_ascii().is_empty()) else {
            return (request.method() == Method::POST).then_some(Self::Urlencoded);
        };
        let kind = kind.to_str().ok()?.as_bytes();
        let media_type = kind.split(|byte| matches!(byte, b';' | b',')).next()?.trim_ascii();
        if media_type.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
            return Some(Self::Urlencoded);
        }
        let is_read = !matches!(*request.method(), Method::GET | Method::HEAD);
        (is_read && media_type.eq_ignore_ascii_case(b"application/json")).then_some(Self::Json)
    }
}

fn query(routed: &Routed) -> &[u8] {
    routed.exchange.request.uri().query().unwrap_or_default().as_bytes()
}

impl Checker {
    /// Also judges whether the caller is one for the listener, before its body is read.
    fn check(&self, routed: &Routed, query: &Params<'_>, body: AuthBody<'_>) -> AuthOutcome {
        let Some(accept) = routed.exchange.accept else { return self.check_anywhere(routed, query, body) };
        let refused = AuthOutcome::Rejected(Rejection::NotAcceptedHere);
        let access = routed.route_match.route.access;
        if access != Access::Rails && !accept.include(access) {
            return refused;
        }
        match self.check_anywhere(routed, query, body) {
            AuthOutcome::Accepted(caller) => {
                // A shell may show its credential where Rails judges, too.
                let is_of_shell = matches!(caller.kind(), CallerKind::SharedSecret | CallerKind::ShellJwt);
                let of = if is_of_shell { Access::Shell } else { access };
                if accept.include(of) { AuthOutcome::Accepted(caller) } else { refused }
            }
            outcome => outcome,
        }
    }

    fn check_anywhere(&self, routed: &Routed, query: &Params<'_>, body: AuthBody<'_>) -> AuthOutcome {
        check_credential(&self.auth.load(), routed, query, body, &self.clock)
    }

    /// A credential that was made with a secret of a moment from now is no wrong one: looks at the files of secrets.
    async fn look_at_secrets(&self, connection: ConnectionHandle) {
        let _looks = connection.working_locally();
        self.secrets.refresh().await;
    }
}

fn check_credential(
    auth: &Authenticator,
    routed: &Routed,
    query: &Params<'_>,
    body: AuthBody<'_>,
    clock: &Clock,
) -> AuthOutcome {
    let headers = routed.exchange.request.headers();
    let verdict =
        auth.authenticate(routed.route_match.route.access, headers, query, body, || clock.unix_seconds());
    let is_of_token = match verdict {
        AuthOutcome::Accepted(caller) => matches!(caller.kind(), CallerKind::ShellJwt | CallerKind::Kas),
        AuthOutcome::Rejected(rejection) => matches!(rejection, Rejection::Skewed | Rejection::Expired),
        AuthOutcome::BodyNeeded => false,
    };
    if is_of_token {
        warn_about_skew(auth, routed);
    }
    verdict
}

fn warn_about_skew(auth: &Authenticator, routed: &Routed) {
    for (kind, skew) in auth.clock_skews() {
        if let Some(seconds) = skew.take_unreported() {
            let _span = routed.exchange.span(&routed.route_match).make().entered();
            warn!(
                caller = kind.as_str(),
                seconds,
                "a token was issued in the future: the clock of this machine is slow, or the caller's is \
                 fast; have both set by NTP. Rails does not mind, but tokens live longer than they should"
            );
        }
    }
}

/// The key is passed on, so that the query is parsed only once.
fn authenticated(routed: Routed, caller: Caller, key: Option<Key>, known_body: KnownBody) -> Authenticated {
    let Routed { exchange, route_match } = routed;
    if caller.kind().has_credential() {
        exchange.connection.trust();
    }
    exchange.info.update(|info| info.set_caller(caller.kind()));
    Authenticated {
        exchange,
        route_match,
        caller,
        key,
        known_body,
        buffer_up_to: None,
        wait_policy: WaitPolicy::ForRails,
        progress: None,
        received_at: None,
    }
}

/// Authenticates a caller who needs more than a look at the head.
struct Retry<S> {
    inner: S,
    checker: Checker,
    bodies: Arc<UnverifiedBodies>,
}

impl<S> Retry<S>
where
    S: Service<Authenticated, Response = http::Response<Body>, Error = Failure>,
{
    /// Authenticates again once the files of secrets were looked at.
    async fn with_current_secrets(
        self,
        routed: Routed,
        (encoding, known_body): (Option<BodyEncoding>, KnownBody),
    ) -> super::LayerResult {
        self.checker.look_at_secrets(routed.exchange.connection.clone()).await;
        let body = if encoding.is_some() { AuthBody::Unread } else { AuthBody::Irrelevant };
        let query = Params::parse(query(&routed));
        match self.checker.check(&routed, &query, body) {
            AuthOutcome::Accepted(caller) => {
                let key = Key::new(routed.route_match.route.caching, &query);
                self.inner.oneshot(authenticated(routed, caller, key, known_body)).await
            }
            AuthOutcome::Rejected(rejection) => {
                Err(Failure::unauthorized(routed.route_match.route.access, rejection))
            }
            AuthOutcome::BodyNeeded => self.with_body(routed, encoding).await,
        }
    }

    /// Reads the body, authenticates again, and forwards the body unchanged.
    async fn with_body(self, mut routed: Routed, encoding: Option<BodyEncoding>) -> super::LayerResult {
        let body = std::mem::take(routed.exchange.request.body_mut());
        let body_read = routed.exchange.connection.working_locally();
        let max_body = self.checker.auth.load().max_body;
        let read = self.bodies.read(body, max_body).await?;
        drop(body_read);
        let (body, known_body) = match encoding {
            Some(BodyEncoding::Urlencoded) => (AuthBody::Form(&read), KnownBody::Form(read.clone())),
            Some(BodyEncoding::Json) => (AuthBody::Json(&read), KnownBody::Unknown),
            None => (AuthBody::Irrelevant, KnownBody::Unknown),
        };
        let mut outcome = self.checker.check(&routed, &Params::parse(query(&routed)), body);
        if matches!(outcome, AuthOutcome::Rejected(Rejection::Wrong)) {
            self.checker.look_at_secrets(routed.exchange.connection.clone()).await;
            outcome = self.checker.check(&routed, &Params::parse(query(&routed)), body);
        }
        match outcome {
            AuthOutcome::Accepted(caller) => {
                let query = Params::parse(query(&routed));
                let key = Key::new(routed.route_match.route.caching, &query);
                *routed.exchange.request.body_mut() = Body::from(read);
                self.inner.oneshot(authenticated(routed, caller, key, known_body)).await
            }
            AuthOutcome::Rejected(rejection) => Err(Failure::Unauthorized(rejection)),
            AuthOutcome::BodyNeeded => Err(Failure::Unauthorized(Rejection::Missing)),
        }
    }
}

#[cfg(test)]
mod tests;
