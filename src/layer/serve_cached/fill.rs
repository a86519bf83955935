//! One request to Rails that fills an entry, and what becomes of the answer.

use std::sync::Arc;

use http::header::{self, HeaderName};
use http::{HeaderMap, Method, Response, StatusCode, Version};
use tower::{Service, ServiceExt as _};

use super::replay::{replay_from_fleet, with_cache_status};
use super::rules::{invalidate_if_refused, is_rails_failure, with_verdict};
use super::shared::{ServeCachedShared, collect};
use crate::body::{Body, Collected};
use crate::cache::fill::FillGuard;
use crate::cache::refusal::{Verdict, judge};
use crate::cache::storable::{NoStoreReason, check_answer, check_head};
use crate::cache::{Entry, FillError};
use crate::exchange::{Authenticated, CacheOutcome, SharedRequestInfo, describe};
use crate::failure::Failure;
use crate::fleet::shared::{Answer, Found, Share, UsableAnswer};
use crate::layer::LayerResult;
use crate::upstream::{self, ErrorKind};

/// What a request that fills an entry may say of its caller: who it is, where it comes from, and
/// nothing that could change an answer which others will get.
const FILL_HEADERS: [HeaderName; 11] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::USER_AGENT,
    // Which gateways it has passed.
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("gitlab-shared-secret"),
    HeaderName::from_static("gitlab-shell-api-request"),
    HeaderName::from_static("x-gitlab-client-name"),
    // Where it belongs in a trace (W3C Trace Context, W3C Baggage).
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
];

/// The request that fills an entry whose body has up to `max_body` bytes.
pub(super) fn fill_request(call: Authenticated, max_body: usize) -> Authenticated {
    let mut fill = Authenticated { buffer_up_to: Some(max_body), ..call };
    let request = &mut fill.exchange.request;
    let sent = std::mem::take(request.headers_mut());
    *request.headers_mut() = FILL_HEADERS
        .iter()
        .flat_map(|name| sent.get_all(name).iter().map(move |value| (name.clone(), value.clone())))
        .collect();
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::default();
    request.extensions_mut().clear();
    fill
}

/// Whose word the result of a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// That of Rails: an answer of the endpoint, or its refusal.
    Rails,
    /// That of something in front of Rails, perhaps: a redirect, a 429, a page. It says nothing of keys, nor
    /// whether Rails answers.
    Unknown,
}

/// The same as [`fill`], unless another gateway of the fleet has shared the answer, or does so while it is waited for.
pub(super) async fn fill_in_fleet<S>(
    inner: S,
    request: Authenticated,
    guard: FillGuard,
    shared: &ServeCachedShared,
    info: &SharedRequestInfo,
) -> LayerResult
where
    S: Service<Authenticated, Response = Response<Body>, Error = Failure>,
{
    let found = match &shared.fleet {
        Some(fleet) => fleet.find(guard.key(), &shared.settings.lifetimes, &shared.clock).await,
        None => None,
    };
    let (answer, share) = match found {
        Some(Found::Answer(answer)) => (Some(answer), None),
        Some(Found::Nothing(share)) => (None, Some(Box::new(share))),
        None => (None, None),
    };
    let Some(answer) = answer else {
        return fill(inner.oneshot(request), guard, share, shared, info).await;
    };
    let key = guard.key().clone();
    if let Some(entry) = store_shared(guard, &answer, shared) {
        return Ok(replay_from_fleet(&entry, shared, info));
    }
    // A purge has come meanwhile.
    let response = invalidate_if_refused(inner.oneshot(request).await?, &key, shared).await?;
    Ok(with_cache_status(response, CacheOutcome::Alone, info))
}

/// Stores what another gateway has shared; `None` if that may not be used any more.
fn store_shared(guard: FillGuard, answer: &UsableAnswer, shared: &ServeCachedShared) -> Option<Arc<Entry>> {
    let UsableAnswer { status, headers, body, storable, age } = answer;
    // A clock that does not go back as far has not seen it.
    let requested_at = shared.clock.now().checked_sub(*age)?;
    let entry = guard.store_older(requested_at, (*status, headers, body), *storable).ok()?;
    shared.cache.is_trusted(&entry).then_some(entry)
}

/// Waits for Rails, stores the answer if it may be stored, and passes it on to the leader, and by `share` to other
/// gateways.
pub(super) async fn fill(
    inner: impl Future<Output = LayerResult>,
    guard: FillGuard,
    share: Option<Box<Share>>,
    shared: &ServeCachedShared,
    info: &SharedRequestInfo,
) -> LayerResult {
    let (requested_at, outage) = (guard.requested_at(), shared.cache.outage(guard.key().caching()));
    let record_failure = |result: &LayerResult| match result {
        _ if !is_rails_failure(result) => {}
        Ok(response) => {
            outage.record_failure(requested_at, shared.clock.now(), response.status().as_str());
        }
        Err(failure) => outage.record_failure(requested_at, shared.clock.now(), failure.as_str()),
    };
    let result = inner.await;
    let now = shared.clock.now();
    shared.cache.shadow().record_latency(now.saturating_duration_since(requested_at), now);
    // Before the followers learn that there is nothing for them.
    record_failure(&result);
    match finish(result, (guard, share), shared, info).await {
        Ok((response, source)) => {
            if source == Source::Rails {
                outage.record_answer(shared.clock.now());
            }
            Ok(response)
        }
        Err(failure) => {
            let result = Err(failure);
            record_failure(&result);
            result
        }
    }
}

/// Completes the fill: stores the answer, or tells the followers why not.
async fn finish(
    result: LayerResult,
    (guard, share): (FillGuard, Option<Box<Share>>),
    shared: &ServeCachedShared,
    info: &SharedRequestInfo,
) -> Result<(Response<Body>, Source), Failure> {
    let response = match result {
        Ok(response) => response,
        Err(failure) => {
            fail(guard, &failure, info);
            return Err(failure);
        }
    };
    if let Err(reason) = check_head(guard.key().caching(), &response, shared.settings.max_body) {
        let (response, verdict) = with_verdict(response).await?;
        let source = obey(verdict, guard, shared);
        return Ok((with_cache_status(response, CacheOutcome::Unstored(reason), info), source));
    }
    let (head, body) = response.into_parts();
    let body = match collect(body, shared.settings.max_body).await? {
        Collected::Complete(body) => body,
        Collected::TooLong(body) => {
            drop(guard);
            let response = Response::from_parts(head, body);
            let outcome = CacheOutcome::Unstored(NoStoreReason::TooLarge);
            return Ok((with_cache_status(response, outcome, info), Source::Unknown));
        }
    };
    let (outcome, source) = store((guard, share), (head.status, &head.headers, &body), shared)?;
    Ok((with_cache_status(Response::from_parts(head, Body::from(body)), outcome, info), source))
}

/// Does with the entry what the verdict on an answer demands. Returns whose word the answer is.
fn obey(verdict: Verdict, guard: FillGuard, shared: &ServeCachedShared) -> Source {
    match verdict {
        Verdict::Refused => {
            guard.drop_entry();
            return Source::Rails;
        }
        Verdict::Doubtful(status) => guard.doubt_entry(status, shared.clock.now()),
        Verdict::Unrelated => {}
    }
    Source::Unknown
}

/// Tells the followers of a failure that they would meet too. After any other, each asks Rails by itself.
fn fail(guard: FillGuard, failure: &Failure, info: &SharedRequestInfo) {
    let Failure::Upstream(error) = failure else { return drop(guard) };
    let shared = match error.kind() {
        ErrorKind::Unreachable | ErrorKind::Unconnectable => FillError::Unreachable,
        ErrorKind::Exhausted | ErrorKind::Shed => FillError::NotSent,
        ErrorKind::Silent => FillError::Timeout,
        ErrorKind::Slow | ErrorKind::OutOfTime => FillError::Slow,
        // It failed twice, so the followers would fail too.
        ErrorKind::Unread
        | ErrorKind::Interrupted
        | ErrorKind::Malformed
        | ErrorKind::BodyStalled
        | ErrorKind::BodyTooSlow
            if info.lock().is_resent =>
        {
            FillError::Broken
        }
        _ => return drop(guard),
    };
    guard.fail(shared, describe(error).into());
}

/// Stores a whole answer if it may be stored. One of Rails that may not be drops the entry that was there.
fn store(
    (guard, share): (FillGuard, Option<Box<Share>>),
    (status, headers, body): (StatusCode, &HeaderMap, &[u8]),
    shared: &ServeCachedShared,
) -> Result<(CacheOutcome, Source), Failure> {
    let lifetimes = &shared.settings.lifetimes;
    let now = shared.clock.unix_seconds();
    match check_answer(guard.key().caching(), guard.key(), status, body, lifetimes, now) {
        Ok(mut storable) => {
            storable.age_limits =
                storable.age_limits.with_jitter(lifetimes.jitter_percent, fastrand::u16(..));
            let stored = guard.store(status, headers, body, storable);
            if let (Ok(()), Some(share)) = (stored, share) {
                share.share(Answer { status, headers, body, storable }, &shared.clock);
            }
            let outcome = stored.map_or_else(CacheOutcome::Unstored, |()| CacheOutcome::Stored);
            Ok((outcome, Source::Rails))
        }
        // It says nothing about the key that was asked for.
        Err(NoStoreReason::Mismatch) => {
            Err(upstream::Error::Unusable("an answer to another question").into())
        }
        // Not the endpoint's own answer.
        Err(reason @ (NoStoreReason::Shape | NoStoreReason::Status)) => {
            let source = obey(judge(status, body), guard, shared);
            Ok((CacheOutcome::Unstored(reason), source))
        }
        Err(reason) => {
            guard.drop_entry();
            Ok((CacheOutcome::Unstored(reason), Source::Rails))
        }
    }
}
