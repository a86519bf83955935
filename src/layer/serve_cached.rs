//! Answers the hot reads from memory, and fetches what is not there once for all who ask.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::Either;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use pin_project_lite::pin_project;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};

use super::{Answer, Later, NowOr, now};
use crate::body::{Body, Collected};
use crate::cache::freshness::{self, judge_head};
use crate::cache::{Boarding, Cache, Entry, Hit, Landed, Lease, NoStore, Settings, Trouble};
use crate::clock::Clock;
use crate::exchange::{Authenticated, CacheOutcome, Exchange, Record, SeenBody};
use crate::failure::Failure;
use crate::header::CACHE_STATUS;
use crate::params::Params;
use crate::route::Caching;
use crate::upstream;

/// How long the body of an answer may take that is read into memory.
const FILL_BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Puts [`ServeCached`] in front of a service.
#[derive(Clone, Debug)]
pub struct ServeCachedLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cache: Arc<Cache>,
    settings: Settings,
    clock: Clock,
    /// Owns the fills, which outlive the callers that began them.
    fills: TaskTracker,
}

/// Answers from memory, or lets the request through.
#[derive(Clone, Debug)]
pub struct ServeCached<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl ServeCachedLayer {
    /// Serves from `cache`; fills run as tasks of `fills`.
    pub fn new(cache: Arc<Cache>, settings: Settings, clock: Clock, fills: TaskTracker) -> Self {
        Self { shared: Arc::new(Shared { cache, settings, clock, fills }) }
    }
}

impl<S> Layer<S> for ServeCachedLayer {
    type Service = ServeCached<S>;

    fn layer(&self, inner: S) -> ServeCached<S> {
        ServeCached { inner, shared: Arc::clone(&self.shared) }
    }
}

/// An answer from memory, one of Rails as it passes by, or one that others wait for too.
pub type Serving<F> = NowOr<Either<Marked<F>, Later>>;

pin_project! {
    /// An answer of Rails that passes by.
    pub struct Marked<F> {
        #[pin]
        answer: F,
        outcome: CacheOutcome,
        record: Record,
    }
}

impl<F: Future<Output = Answer>> Future for Marked<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx))?;
        Poll::Ready(Ok(marked(answer, *this.outcome, this.record)))
    }
}

impl<S> Service<Authenticated> for ServeCached<S>
where
    S: Service<Authenticated, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = Serving<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: Authenticated) -> Self::Future {
        let caching = call.found.route.caching;
        let key = match caching {
            Caching::Never => return self.pass(call, CacheOutcome::Never),
            _ if self.shared.settings.lifetimes.keeps(caching) && may_be_kept(&call) => call.key.take(),
            _ => None,
        };
        let Some(key) = key else { return self.pass(call, CacheOutcome::Bypass) };
        let now_is = self.shared.clock.now();
        if let Some(hit) = self.shared.cache.lookup(&key, now_is) {
            return now(Ok(replay(&hit, &call.exchange.record)));
        }
        match self.shared.cache.board(&key, now_is) {
            Boarding::Hit(hit) => now(Ok(replay(&hit, &call.exchange.record))),
            Boarding::Lead(lease) => self.lead(call, lease),
            Boarding::Follow(wait) => {
                let (shared, record) = (Arc::clone(&self.shared), call.exchange.record.clone());
                // The ready service goes along; a clone takes its place (tower#547).
                let clone = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, clone);
                Either::Right(Either::Right(Box::pin(async move {
                    let landed = tokio::time::timeout(shared.settings.wait, wait.landed()).await;
                    match landed.unwrap_or(Landed::NotShared) {
                        Landed::Stored(entry) => Ok(share(&entry, &shared, &record)),
                        Landed::Failed(trouble) => Err(Failure::SharedTrouble(trouble)),
                        Landed::NotShared => {
                            Ok(marked(inner.call(call).await?, CacheOutcome::Alone, &record))
                        }
                    }
                })))
            }
        }
    }
}

impl<S> ServeCached<S>
where
    S: Service<Authenticated, Response = Response<Body>, Error = Failure>,
    S::Future: Send + 'static,
{
    fn pass(&mut self, call: Authenticated, outcome: CacheOutcome) -> Serving<S::Future> {
        let record = call.exchange.record.clone();
        Either::Right(Either::Left(Marked { answer: self.inner.call(call), outcome, record }))
    }

    /// Asks Rails in a task of its own, so that the callers who wait do not depend on this one
    /// staying connected.
    fn lead(&mut self, call: Authenticated, lease: Lease) -> Serving<S::Future> {
        let caching = call.found.route.caching;
        let record = call.exchange.record.clone();
        let answer = self.inner.call(canonical(call));
        let (to_leader, leader) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        self.shared.fills.spawn(async move {
            let answer = fill(answer, lease, caching, &shared, &record).await;
            // The caller may have left; the others have what they waited for.
            let _ = to_leader.send(answer);
        });
        Either::Right(Either::Right(Box::pin(async move { leader.await.unwrap_or(Err(Failure::Panicked)) })))
    }
}

/// Whether nothing beside the query changes the answer: the canonical spelling of the path, no body
/// but a form with the credential, and nothing that asks for another answer than a 200.
fn may_be_kept(call: &Authenticated) -> bool {
    let is_plain = call.found.exact && !call.exchange.request.headers().keys().any(is_condition);
    let has_no_more = match &call.seen {
        SeenBody::None => true,
        SeenBody::Form(form) => Params::parse(form).plain().is_some_and(|mut rest| rest.next().is_none()),
        SeenBody::Unknown => false,
    };
    is_plain && has_no_more
}

/// RFC 9110 §13 and §14: they ask for a 304, a 412 or a 206.
fn is_condition(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "if-match" | "if-none-match" | "if-modified-since" | "if-unmodified-since" | "if-range" | "range"
    )
}

/// What a request that fills an entry may say of its caller: who it is, where it comes from, and
/// nothing that could change an answer which others will get.
const FILL_HEADERS: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::USER_AGENT,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("gitlab-shared-secret"),
    HeaderName::from_static("gitlab-shell-api-request"),
    HeaderName::from_static("x-gitlab-client-name"),
];

fn canonical(call: Authenticated) -> Authenticated {
    let Authenticated { exchange, found, caller, key, seen } = call;
    let (parts, body) = exchange.request.into_parts();
    let mut request = Request::new(body);
    // HEAD is answered from the entry of GET, and fills it.
    *request.method_mut() = Method::GET;
    *request.uri_mut() = parts.uri;
    *request.headers_mut() = FILL_HEADERS
        .iter()
        .flat_map(|name| parts.headers.get_all(name).iter().map(move |value| (name.clone(), value.clone())))
        .collect();
    Authenticated { exchange: Exchange { request, ..exchange }, found, caller, key, seen }
}

/// Asks Rails, stores what may be stored, and brings the leader its answer.
async fn fill(
    answer: impl Future<Output = Answer>,
    lease: Lease,
    caching: Caching,
    shared: &Shared,
    record: &Record,
) -> Answer {
    let answer = match answer.await {
        Ok(answer) => answer,
        Err(failure) => {
            match &failure {
                Failure::Upstream(upstream::Error::Connect(..)) => lease.fail(Trouble::Unreachable),
                Failure::Upstream(upstream::Error::Timeout(_)) => lease.fail(Trouble::Timeout),
                _ => drop(lease),
            }
            return Err(failure);
        }
    };
    if let Err(reason) = judge_head(caching, &answer, shared.settings.max_body) {
        drop(lease);
        return Ok(marked(answer, CacheOutcome::Unstored(reason), record));
    }
    let (head, body) = answer.into_parts();
    let body =
        match tokio::time::timeout(FILL_BODY_TIMEOUT, body.collect_up_to(shared.settings.max_body)).await {
            Ok(Ok(Collected::Whole(body))) => body,
            Ok(Ok(Collected::TooLong(body))) => {
                drop(lease);
                let answer = Response::from_parts(head, body);
                return Ok(marked(answer, CacheOutcome::Unstored(NoStore::TooLarge), record));
            }
            Ok(Err(error)) => return Err(upstream::Error::BrokeOff(error).into()),
            Err(_) => return Err(upstream::Error::Timeout(FILL_BODY_TIMEOUT).into()),
        };
    let lifetimes = &shared.settings.lifetimes;
    let verdict =
        freshness::judge(caching, lease.key(), head.status, &body, lifetimes, shared.clock.unix_seconds());
    if verdict == Err(NoStore::Mismatch) {
        return Err(upstream::Error::Unusable("an answer to another question").into());
    }
    let stored = verdict
        .and_then(|storable| lease.store(head.status, &head.headers, &body, storable, shared.clock.now()));
    let outcome = stored.map_or_else(CacheOutcome::Unstored, |()| CacheOutcome::Stored);
    Ok(marked(Response::from_parts(head, Body::from(body)), outcome, record))
}

/// The answer that another caller's request brought.
fn share(entry: &Entry, shared: &Shared, record: &Record) -> Response<Body> {
    record.note(|notes| notes.cache = CacheOutcome::Shared);
    entry.to_response(entry.age(shared.clock.now()), CacheOutcome::Shared.cache_status()).map(Body::from)
}

/// An answer from memory. hyper leaves the body out for HEAD.
fn replay(hit: &Hit, record: &Record) -> Response<Body> {
    record.note(|notes| notes.cache = CacheOutcome::Hit);
    let mut status = BytesMut::with_capacity(64);
    status.extend_from_slice(b"railgate; hit; ttl=");
    status.extend_from_slice(itoa::Buffer::new().format(hit.ttl.as_secs()).as_bytes());
    let status = HeaderValue::from_maybe_shared(status.freeze()).unwrap_or(CacheOutcome::Hit.cache_status());
    hit.entry.to_response(hit.age, status).map(Body::from)
}

/// RFC 9211 §2: every cache on the way appends its own, the nearest to the client last.
fn marked(mut answer: Response<Body>, outcome: CacheOutcome, record: &Record) -> Response<Body> {
    record.note(|notes| notes.cache = outcome);
    answer.headers_mut().append(CACHE_STATUS.clone(), outcome.cache_status());
    answer
}

#[cfg(test)]
mod tests;
