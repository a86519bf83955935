//! One request to Rails that fills an entry, and what becomes of the answer.

use http::header::{self, HeaderName};
use http::{HeaderMap, Request, Response, StatusCode};

use super::replay::with_cache_status;
use super::rules::{invalidates_entry, is_failure_status, is_rails_failure};
use super::shared::{ServeCachedShared, collect};
use crate::body::{Body, Collected};
use crate::cache::FillError;
use crate::cache::fill::FillGuard;
use crate::cache::storable::{NoStoreReason, check_answer, check_head};
use crate::exchange::{Authenticated, CacheOutcome, Exchange, SharedRequestInfo};
use crate::failure::Failure;
use crate::layer::LayerResult;
use crate::route::Caching;
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
    let Authenticated { exchange, .. } = call;
    let (parts, body) = exchange.request.into_parts();
    let mut request = Request::new(body);
    *request.uri_mut() = parts.uri;
    *request.headers_mut() = FILL_HEADERS
        .iter()
        .flat_map(|name| parts.headers.get_all(name).iter().map(move |value| (name.clone(), value.clone())))
        .collect();
    Authenticated { exchange: Exchange { request, ..exchange }, collect_limit: Some(max_body), ..call }
}

/// Waits for Rails, stores the answer if it may be stored, and passes it on to the leader.
pub(super) async fn fill(
    inner: impl Future<Output = LayerResult>,
    guard: FillGuard,
    caching: Caching,
    shared: &ServeCachedShared,
    info: &SharedRequestInfo,
) -> LayerResult {
    let (requested_at, outage) = (guard.requested_at(), shared.cache.outage(caching));
    let update_outage = |result: &LayerResult| match result {
        Ok(response) if is_failure_status(response.status()) => {
            outage.record_failure(requested_at, shared.clock.now(), response.status().as_str());
        }
        Ok(_) => outage.record_answer(shared.clock.now()),
        Err(failure) if is_rails_failure(result) => {
            outage.record_failure(requested_at, shared.clock.now(), failure.as_str());
        }
        Err(_) => {}
    };
    let result = inner.await;
    let now = shared.clock.now();
    shared.cache.shadow().record_latency(now.saturating_duration_since(requested_at), now);
    // Before the followers learn that there is nothing for them.
    if is_rails_failure(&result) {
        update_outage(&result);
    }
    let result = finish(result, guard, caching, shared, info).await;
    update_outage(&result);
    result
}

/// Completes the fill: stores the answer, or tells the followers why not.
async fn finish(
    result: LayerResult,
    guard: FillGuard,
    caching: Caching,
    shared: &ServeCachedShared,
    info: &SharedRequestInfo,
) -> LayerResult {
    let response = match result {
        Ok(response) => response,
        Err(failure) => {
            fail(guard, &failure, info);
            return Err(failure);
        }
    };
    if let Err(reason) = check_head(caching, &response, shared.settings.max_body) {
        if invalidates_entry(&response) {
            guard.drop_entry();
        }
        return Ok(with_cache_status(response, CacheOutcome::Unstored(reason), info));
    }
    let (head, body) = response.into_parts();
    let body = match collect(body, shared.settings.max_body).await? {
        Collected::Complete(body) => body,
        Collected::TooLong(body) => {
            drop(guard);
            let response = Response::from_parts(head, body);
            return Ok(with_cache_status(response, CacheOutcome::Unstored(NoStoreReason::TooLarge), info));
        }
    };
    let outcome = store(guard, caching, (head.status, &head.headers, &body), shared)?;
    Ok(with_cache_status(Response::from_parts(head, Body::from(body)), outcome, info))
}

/// Tells the followers of a failure that they would meet too. After any other, each asks Rails by itself.
fn fail(guard: FillGuard, failure: &Failure, info: &SharedRequestInfo) {
    let Failure::Upstream(error) = failure else { return drop(guard) };
    match error.kind() {
        ErrorKind::Unreachable | ErrorKind::Unconnectable => guard.fail(FillError::Unreachable),
        ErrorKind::Exhausted | ErrorKind::Shed => guard.fail(FillError::Busy),
        ErrorKind::Silent => guard.fail(FillError::Timeout),
        ErrorKind::Slow | ErrorKind::OutOfTime => guard.fail(FillError::Slow),
        // It failed twice, so the followers would fail too.
        ErrorKind::Unread
        | ErrorKind::Interrupted
        | ErrorKind::Malformed
        | ErrorKind::BodyStalled
        | ErrorKind::BodyTooSlow
            if info.lock().is_resent =>
        {
            guard.fail(FillError::Broken);
        }
        _ => drop(guard),
    }
}

/// Stores a whole answer if it may be stored. One that may not be drops the entry that was there.
fn store(
    guard: FillGuard,
    caching: Caching,
    (status, headers, body): (StatusCode, &HeaderMap, &[u8]),
    shared: &ServeCachedShared,
) -> Result<CacheOutcome, Failure> {
    let lifetimes = &shared.settings.lifetimes;
    let now_is = shared.clock.unix_seconds();
    match check_answer(caching, guard.key(), status, body, lifetimes, now_is) {
        Ok(mut storable) => {
            storable.age_limits =
                storable.age_limits.with_jitter(lifetimes.jitter_percent, fastrand::u16(..));
            let stored = guard.store(status, headers, body, storable);
            Ok(stored.map_or_else(CacheOutcome::Unstored, |()| CacheOutcome::Stored))
        }
        // It says nothing about the key that was asked for.
        Err(NoStoreReason::Mismatch) => {
            Err(upstream::Error::Unusable("an answer to another question").into())
        }
        // Not the endpoint's own answer, whatever it is: it says nothing about what was asked for.
        Err(NoStoreReason::Shape) if status == StatusCode::OK => {
            Ok(CacheOutcome::Unstored(NoStoreReason::Shape))
        }
        Err(reason) => {
            guard.drop_entry();
            Ok(CacheOutcome::Unstored(reason))
        }
    }
}
