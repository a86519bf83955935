//! Answers cacheable requests from memory. On a miss it sends one request to Rails for all callers who ask. A
//! stale answer is served while Rails is asked again, or while Rails fails.
//!
//! Whether a stale answer may be used is decided by its own state (purged, doubted, expired) in `cache/entry.rs`, by the
//! time that Rails has had in `stale_fallback.rs`, by its age in
//! [`AgeLimits::freshness`](crate::cache::AgeLimits::freshness), by how Rails failed in `rules.rs`, and by how it has
//! answered other requests in [`Outage`](crate::cache::outage::Outage).
//!
//! Always ready, so that a full Rails, or a limit on the way there, does not keep back what is answered from
//! memory. A request that goes on has a clone of the inner service to itself, and waits until that is ready.

mod fill;
mod follow;
mod replay;
mod rules;
mod shadow_check;
mod shared;
mod stale_fallback;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use futures_util::future::Either;
use http::{Method, Response};
use pin_project_lite::pin_project;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service, ServiceExt as _};

use self::follow::follow;
use self::replay::{replay, with_cache_status};
use self::rules::{ask_for_plain_answer, invalidate_if_refused, is_cacheable, is_no_answer};
use self::shared::ServeCachedShared;
use self::stale_fallback::or_stale;
use super::{BoxedResponse, ImmediateOr, LayerResult, immediate};
use crate::body::Body;
use crate::cache::fill::{FillGuard, LeaderOrFollower, RefreshAttempt};
use crate::cache::{Cache, CacheSettings, Entry, Freshness, Hit, Key, RefreshOutcome};
use crate::clock::Clock;
use crate::exchange::{Authenticated, CacheOutcome, SharedRequestInfo};
use crate::failure::Failure;
use crate::fleet::shared::SharedAnswers;
use crate::progress::Progress;
use crate::route::Caching;
use crate::upstream::WaitPolicy;

/// Puts [`ServeCached`] in front of a service.
#[derive(Clone, Debug)]
pub struct ServeCachedLayer {
    shared: Arc<ServeCachedShared>,
}

/// Answers from memory, or lets the request through.
#[derive(Clone, Debug)]
pub struct ServeCached<S> {
    inner: S,
    shared: Arc<ServeCachedShared>,
}

impl ServeCachedLayer {
    /// Serves from `cache`, which is filled with what other gateways share, too; fills run as tasks of `fills`.
    pub fn new(
        (cache, fleet): (Arc<Cache>, Option<Arc<SharedAnswers>>),
        settings: CacheSettings,
        clock: Clock,
        fills: TaskTracker,
    ) -> Self {
        Self { shared: Arc::new(ServeCachedShared { cache, fleet, settings, clock, fills }) }
    }
}

impl<S> Layer<S> for ServeCachedLayer {
    type Service = ServeCached<S>;

    fn layer(&self, inner: S) -> ServeCached<S> {
        ServeCached { inner, shared: Arc::clone(&self.shared) }
    }
}

/// An answer from memory, one of Rails that passes through, or one that other callers may be waiting for.
pub type ServeCachedFuture<F> = ImmediateOr<Either<PassThroughFuture<F>, BoxedResponse>>;

/// The answer of the inner service, at once or when it is ready.
pub type SentOn<F> = Either<F, BoxedResponse>;

pin_project! {
    /// An answer of Rails that passes through.
    pub struct PassThroughFuture<F> {
        #[pin]
        inner: F,
        outcome: CacheOutcome,
        info: SharedRequestInfo,
    }
}

impl<F: Future<Output = LayerResult>> Future for PassThroughFuture<F> {
    type Output = LayerResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LayerResult> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        Poll::Ready(Ok(with_cache_status(response, *this.outcome, this.info)))
    }
}

impl<S> Service<Authenticated> for ServeCached<S>
where
    S: Service<Authenticated, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = ServeCachedFuture<SentOn<S::Future>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut call: Authenticated) -> Self::Future {
        let caching = call.route_match.route.caching;
        let key = match caching {
            Caching::Never => return self.pass_through(call, CacheOutcome::Never),
            // Rails of today refuses these methods, and what it says of that is not about the key.
            _ if matches!(*call.exchange.request.method(), Method::HEAD | Method::OPTIONS) => None,
            _ if self.shared.settings.lifetimes.is_enabled(caching) => call.key.take(),
            _ => None,
        };
        let Some(key) = key else {
            ask_for_plain_answer(&mut call);
            return self.pass_through(call, CacheOutcome::Bypass);
        };
        if !is_cacheable(&call) {
            ask_for_plain_answer(&mut call);
            return self.pass_and_invalidate(call, key);
        }
        let now = self.shared.clock.now();
        match self.shared.cache.lookup(&key, now) {
            None => self.fetch(call, &key, false, now),
            Some(hit) if hit.freshness == Freshness::Fresh => {
                let response = replay(&hit, CacheOutcome::Hit, &call.exchange.info);
                if self.shared.cache.shadow().sample() && self.shared.may_shadow_check(&key, now) {
                    self.shadow_check(call, key, hit.entry);
                }
                immediate(Ok(response))
            }
            Some(hit) => self.serve_stale(call, &key, hit, now),
        }
    }
}

impl<S> ServeCached<S>
where
    S: Service<Authenticated, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Sends a request on. One that has to wait for the inner service is boxed, so that the others, answers from
    /// memory among them, are not moved around with the room for it.
    fn send_on(&self, call: Authenticated) -> SentOn<S::Future> {
        let mut inner = self.inner.clone();
        match inner.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Either::Left(inner.call(call)),
            Poll::Ready(Err(failure)) => Either::Right(Box::pin(std::future::ready(Err(failure)))),
            Poll::Pending => Either::Right(Box::pin(inner.oneshot(call))),
        }
    }

    fn pass_through(
        &mut self,
        call: Authenticated,
        outcome: CacheOutcome,
    ) -> ServeCachedFuture<SentOn<S::Future>> {
        let info = call.exchange.info.clone();
        Either::Right(Either::Left(PassThroughFuture { inner: self.send_on(call), outcome, info }))
    }

    /// The same for a request that asks in another form for what may be stored under `key`.
    fn pass_and_invalidate(&mut self, call: Authenticated, key: Key) -> ServeCachedFuture<SentOn<S::Future>> {
        let (shared, info) = (Arc::clone(&self.shared), call.exchange.info.clone());
        let inner = self.send_on(call);
        Either::Right(Either::Right(Box::pin(async move {
            let response = invalidate_if_refused(inner.await?, &key, &shared).await?;
            Ok(with_cache_status(response, CacheOutcome::Bypass, &info))
        })))
    }

    /// Serves the stale entry and refreshes it in the background. An entry that may only be used if Rails
    /// fails is fetched first, unless there is an outage.
    fn serve_stale(
        &mut self,
        call: Authenticated,
        key: &Key,
        hit: Hit,
        now: Instant,
    ) -> ServeCachedFuture<SentOn<S::Future>> {
        let outage = self.shared.cache.outage(key.caching());
        let outcome = match hit.freshness {
            freshness if outage.serves_at_once(freshness, now) => CacheOutcome::StaleIfError,
            Freshness::StaleIfError | Freshness::Doubted => return self.fetch(call, key, true, now),
            Freshness::Fresh | Freshness::StaleWhileRevalidate => CacheOutcome::StaleWhileRevalidate,
        };
        let response = replay(&hit, outcome, &call.exchange.info);
        if outage.may_refresh(now) {
            self.refresh(call, key, now);
        }
        immediate(Ok(response))
    }

    /// Asks Rails in the background, unless the key is being fetched already or the limit is reached.
    fn refresh(&mut self, mut call: Authenticated, key: &Key, now: Instant) {
        let outage = self.shared.cache.outage(key.caching());
        let (guard, permit) = match self.shared.cache.try_refresh(key, now) {
            RefreshAttempt::Started(guard, permit) => (guard, permit),
            RefreshAttempt::NotNeeded => return,
            RefreshAttempt::LimitReached => return outage.extend_recovery(now),
        };
        outage.record_refresh(now);
        // Its own record: the caller's request has been answered.
        let (info, span) = call.exchange.info.of_background("refresh");
        call.exchange.info = info.clone();
        call.wait_policy = WaitPolicy::Never;
        let fill = self.fill(call, guard);
        let cache = Arc::clone(&self.shared.cache);
        self.shared.fills.spawn(async move {
            let has_failed = is_no_answer(&fill.await);
            if let Some(span) = span {
                span.end(has_failed.then(String::new));
            }
            cache.count_refresh(match info.lock().cache {
                CacheOutcome::Stored | CacheOutcome::Fleet => RefreshOutcome::Stored,
                _ if has_failed => RefreshOutcome::Failed,
                _ => RefreshOutcome::Unstored,
            });
            drop(permit);
        });
    }

    /// Compares the entry that was just served with what Rails says, in the background.
    fn shadow_check(&mut self, mut call: Authenticated, key: Key, cached: Arc<Entry>) {
        let (info, trace) = call.exchange.info.of_background("shadow check");
        call.exchange.info = info;
        call.wait_policy = WaitPolicy::Never;
        let span = call.exchange.span(&call.route_match);
        let inner = self.send_on(fill::fill_request(call, self.shared.settings.max_body));
        let check = shadow_check::shadow_check(inner, key, cached, Arc::clone(&self.shared));
        self.shared.fills.spawn(span.around(async move {
            check.await;
            if let Some(trace) = trace {
                trace.end(None);
            }
        }));
    }

    /// Asks Rails, or waits for the caller who does. With `has_stale`, a stale entry is served if Rails
    /// fails.
    fn fetch(
        &mut self,
        mut call: Authenticated,
        key: &Key,
        has_stale: bool,
        now: Instant,
    ) -> ServeCachedFuture<SentOn<S::Future>> {
        call.wait_policy = if has_stale { WaitPolicy::ForPermit } else { WaitPolicy::ForRails };
        let (shared, info) = (Arc::clone(&self.shared), call.exchange.info.clone());
        let span = call.exchange.span(&call.route_match);
        let stale = |progress: &Arc<Progress>| has_stale.then(|| (key.clone(), Arc::clone(progress)));
        match shared.cache.lead_or_follow(key, now) {
            LeaderOrFollower::Hit(hit) => immediate(Ok(replay(&hit, CacheOutcome::Hit, &info))),
            LeaderOrFollower::Leader(guard) => {
                info.begin_cache_span();
                let stale = stale(guard.progress());
                // In a task of its own, so that the followers do not depend on the leader staying
                // connected.
                let fill = self.fill(call, guard);
                let (to_leader, from_fill) = oneshot::channel();
                self.shared.fills.spawn(async move {
                    // The leader may have hung up; the followers have their outcome.
                    let _ = to_leader.send(fill.await);
                });
                let result = async move { from_fill.await.unwrap_or(Err(Failure::Panicked)) };
                Either::Right(Either::Right(Box::pin(span.around(or_stale(result, stale, shared, info)))))
            }
            LeaderOrFollower::Follower(waiter) => {
                info.begin_cache_span();
                let inner = self.inner.clone();
                let stale = stale(waiter.progress());
                call.received_at = Some(now);
                let result = follow(waiter, inner, call, Arc::clone(&shared), (key.clone(), has_stale));
                Either::Right(Either::Right(Box::pin(span.around(or_stale(result, stale, shared, info)))))
            }
        }
    }

    fn fill(
        &mut self,
        mut call: Authenticated,
        guard: FillGuard,
    ) -> impl Future<Output = LayerResult> + use<S> {
        call.progress = Some(Arc::clone(guard.progress()));
        if let Some(record) = call.exchange.info.lock().trace.record() {
            guard.progress().set_trace(record.parent_of_requests().context);
        }
        let span = call.exchange.span(&call.route_match);
        let info = call.exchange.info.clone();
        let request = fill::fill_request(call, self.shared.settings.max_body);
        let shared = Arc::clone(&self.shared);
        if shared.fleet.is_none() {
            let inner = self.send_on(request);
            let fill = async move { fill::fill(inner, guard, None, &shared, &info).await };
            return Either::Left(span.around(fill));
        }
        let inner = self.inner.clone();
        // Boxed: it is twice as large, and all fills without a fleet would be moved around in its size.
        let fill = Box::pin(async move { fill::fill_in_fleet(inner, request, guard, &shared, &info).await });
        Either::Right(span.around(fill))
    }
}

#[cfg(test)]
mod tests;
