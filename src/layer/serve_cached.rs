//! Answers the hot reads from memory, and fetches what is not there once for all who ask. What is
//! stale it answers while Rails is asked anew, or while Rails fails.

mod fall_back;
mod fill;
mod give;
mod rules;
mod verify;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::future::Either;
use http::{Method, Response};
use pin_project_lite::pin_project;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};

use self::fall_back::or_stale;
use self::give::{marked, replay, share};
use self::rules::{gave_no_answer, heeded, may_be_kept};
use super::{Answer, Later, NowOr, now};
use crate::body::Body;
use crate::cache::{
    Boarding, Cache, Entry, Hit, Key, Landed, Lease, Phase, Refresh, Refreshed, Settings, Wait,
};
use crate::clock::Clock;
use crate::exchange::{Authenticated, CacheOutcome, Record};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::route::Caching;
use crate::upstream::MayWait;

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
            // Rails of today refuses these methods, and what it says of that is not about the key.
            _ if matches!(*call.exchange.request.method(), Method::HEAD | Method::OPTIONS) => None,
            _ if self.shared.settings.lifetimes.keeps(caching) => call.key.take(),
            _ => None,
        };
        let Some(key) = key else { return self.pass(call, CacheOutcome::Bypass) };
        if !may_be_kept(&call) {
            return self.pass_and_heed(call, key);
        }
        let now_is = self.shared.clock.now();
        match self.shared.cache.lookup(&key, now_is) {
            None => self.ask(call, &key, false, now_is),
            Some(hit) if hit.phase == Phase::Fresh => {
                let answer = replay(&hit.entry, CacheOutcome::Hit, now_is, &call.exchange.record);
                if self.shared.cache.shadow().draws() && self.shared.may_be_compared(&key, now_is) {
                    self.verify(call, key, hit.entry);
                }
                now(Ok(answer))
            }
            Some(hit) => self.stale(call, &key, hit, now_is),
        }
    }
}

impl<S> ServeCached<S>
where
    S: Service<Authenticated, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    fn pass(&mut self, call: Authenticated, outcome: CacheOutcome) -> Serving<S::Future> {
        let record = call.exchange.record.clone();
        Either::Right(Either::Left(Marked { answer: self.inner.call(call), outcome, record }))
    }

    /// The same for a question whose answer may be known in another form.
    fn pass_and_heed(&mut self, call: Authenticated, key: Key) -> Serving<S::Future> {
        let (shared, record) = (Arc::clone(&self.shared), call.exchange.record.clone());
        let answer = self.inner.call(call);
        Either::Right(Either::Right(Box::pin(async move {
            Ok(marked(heeded(answer.await?, &key, &shared.cache).await?, CacheOutcome::Bypass, &record))
        })))
    }

    /// Answers with what is stale, and lets Rails be asked for the next ones; or asks for this one, if
    /// the answer is only to be used when Rails fails, and nothing says that it does.
    fn stale(&mut self, call: Authenticated, key: &Key, hit: Hit, now_is: Instant) -> Serving<S::Future> {
        let outage = self.shared.cache.outage(key.caching());
        let outcome = match hit.phase {
            _ if outage.is_on(now_is) => CacheOutcome::StaleIfError,
            Phase::OnError => return self.ask(call, key, true, now_is),
            Phase::Fresh | Phase::Revalidate => CacheOutcome::StaleWhileRevalidate,
        };
        let answer = replay(&hit.entry, outcome, now_is, &call.exchange.record);
        if outage.may_ask(now_is) {
            self.refresh(call, key, now_is);
        }
        now(Ok(answer))
    }

    /// Asks Rails behind the caller's back, unless somebody does already or enough is being asked.
    fn refresh(&mut self, mut call: Authenticated, key: &Key, now_is: Instant) {
        let outage = self.shared.cache.outage(key.caching());
        let (lease, permit) = match self.shared.cache.refresh(key, now_is) {
            Refresh::Begun(lease, permit) => (lease, permit),
            Refresh::Unneeded => return,
            Refresh::TooMany => return outage.has_a_backlog(now_is),
        };
        outage.asks(now_is);
        // What it learns is not about the request that has its answer.
        let record = Record::default();
        call.exchange.record = record.clone();
        call.may_wait = MayWait::No;
        let filling = self.fill(call, lease);
        let cache = Arc::clone(&self.shared.cache);
        self.shared.fills.spawn(async move {
            let failed = gave_no_answer(&filling.await);
            cache.refreshed(match record.notes().cache {
                CacheOutcome::Stored => Refreshed::Stored,
                _ if failed => Refreshed::Failed,
                _ => Refreshed::Unstored,
            });
            drop(permit);
        });
    }

    /// Compares what was given with what Rails says, behind the caller's back.
    fn verify(&mut self, mut call: Authenticated, key: Key, kept: Arc<Entry>) {
        call.exchange.record = Record::default();
        call.may_wait = MayWait::No;
        let answer = self.inner.call(fill::canonical(call, self.shared.settings.max_body));
        self.shared.fills.spawn(verify::verify(answer, key, kept, Arc::clone(&self.shared)));
    }

    /// Asks Rails, or waits for the one who does. If Rails fails and `is_stale`, what is kept has to do.
    fn ask(
        &mut self,
        mut call: Authenticated,
        key: &Key,
        is_stale: bool,
        now_is: Instant,
    ) -> Serving<S::Future> {
        call.may_wait = if is_stale { MayWait::ForItsTurn } else { MayWait::ForRails };
        let (shared, record) = (Arc::clone(&self.shared), call.exchange.record.clone());
        let stale = |progress: &Arc<Progress>| is_stale.then(|| (key.clone(), Arc::clone(progress)));
        match shared.cache.board(key, now_is) {
            Boarding::Hit(hit) => now(Ok(replay(&hit.entry, CacheOutcome::Hit, now_is, &record))),
            Boarding::Lead(lease) => {
                let stale = stale(lease.progress());
                // In a task of its own, so that the callers who wait do not depend on this one staying
                // connected.
                let filling = self.fill(call, lease);
                let (to_leader, leader) = oneshot::channel();
                self.shared.fills.spawn(async move {
                    // The caller may have left; the others have what they waited for.
                    let _ = to_leader.send(filling.await);
                });
                let answer = async move { leader.await.unwrap_or(Err(Failure::Panicked)) };
                Either::Right(Either::Right(Box::pin(or_stale(answer, stale, shared, record))))
            }
            Boarding::Follow(wait) => {
                // The ready service goes along; a clone takes its place (tower#547).
                let clone = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, clone);
                let stale = stale(wait.progress());
                call.since = Some(now_is);
                let answer = follow(wait, inner, call, Arc::clone(&shared), (key.clone(), is_stale));
                Either::Right(Either::Right(Box::pin(or_stale(answer, stale, shared, record))))
            }
        }
    }

    fn fill(&mut self, mut call: Authenticated, lease: Lease) -> impl Future<Output = Answer> + use<S> {
        call.progress = Some(Arc::clone(lease.progress()));
        let caching = call.found.route.caching;
        let record = call.exchange.record.clone();
        let answer = self.inner.call(fill::canonical(call, self.shared.settings.max_body));
        let shared = Arc::clone(&self.shared);
        async move { fill::fill(answer, lease, caching, &shared, &record).await }
    }
}

/// Waits for what another caller's request brings.
async fn follow<S>(
    wait: Wait,
    mut inner: S,
    call: Authenticated,
    shared: Arc<Shared>,
    (key, is_stale): (Key, bool),
) -> Answer
where
    S: Service<Authenticated, Response = Response<Body>, Error = Failure>,
{
    let record = call.exchange.record.clone();
    let landed = tokio::time::timeout(shared.settings.wait, wait.landed()).await;
    match landed.unwrap_or(Landed::NotShared) {
        // It may have ended since, or by a clock that was set ahead while it came.
        Landed::Stored(entry) if !shared.cache.has_ended(&entry) => Ok(share(&entry, &shared, &record)),
        Landed::Failed(trouble) => Err(Failure::SharedTrouble(trouble)),
        Landed::Stored(_) | Landed::NotShared => {
            // If Rails has just failed to answer, it is not asked by all who could do without.
            if let Some(entry) = is_stale.then(|| shared.in_an_outage(&key)).flatten() {
                return Ok(replay(&entry, CacheOutcome::StaleIfError, shared.clock.now(), &record));
            }
            let answer = heeded(inner.call(call).await?, &key, &shared.cache).await?;
            Ok(marked(answer, CacheOutcome::Alone, &record))
        }
    }
}

impl Shared {
    /// Not the instance, whose state is out of date within a second; nor while Rails fails; nor more than the
    /// budget allows.
    fn may_be_compared(&self, key: &Key, now_is: Instant) -> bool {
        let is_of_interest =
            key.caching() != Caching::Check && !self.cache.outage(key.caching()).is_on(now_is);
        is_of_interest && self.cache.shadow().may_spend(now_is)
    }

    fn in_an_outage(&self, key: &Key) -> Option<Arc<Entry>> {
        let now_is = self.clock.now();
        let hit = self.cache.lookup(key, now_is).filter(|_| self.cache.outage(key.caching()).is_on(now_is));
        hit.map(|hit| hit.entry)
    }
}

#[cfg(test)]
mod tests;
