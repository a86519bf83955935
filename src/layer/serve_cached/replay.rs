//! Responses, and what their `Cache-Status` says of where they come from (RFC 9211).

use std::time::Instant;

use bytes::BytesMut;
use http::Response;
use http::header::HeaderValue;

use super::shared::ServeCachedShared;
use crate::body::Body;
use crate::cache::{Entry, Hit};
use crate::exchange::{CacheOutcome, SharedRequestInfo};
use crate::header::CACHE_STATUS;

/// For a follower: the entry that the leader's request has stored.
pub(super) fn replay_shared(
    entry: &Entry,
    shared: &ServeCachedShared,
    info: &SharedRequestInfo,
) -> Response<Body> {
    info.update(|info| info.set_cache(CacheOutcome::Shared));
    entry.to_response(entry.age(shared.clock.now()), CacheOutcome::Shared.cache_status()).map(Body::from)
}

/// For a leader: what another gateway has shared.
pub(super) fn replay_from_fleet(
    entry: &Entry,
    shared: &ServeCachedShared,
    info: &SharedRequestInfo,
) -> Response<Body> {
    info.update(|info| info.set_cache(CacheOutcome::Fleet));
    entry.to_response(entry.age(shared.clock.now()), CacheOutcome::Fleet.cache_status()).map(Body::from)
}

/// An entry that was found in memory.
pub(super) fn replay(
    hit: &Hit,
    outcome: CacheOutcome,
    now: Instant,
    info: &SharedRequestInfo,
) -> Response<Body> {
    info.update(|info| info.set_cache(outcome));
    let mut status = BytesMut::with_capacity(64);
    status.extend_from_slice(b"railgate; hit; ttl=");
    status.extend_from_slice(itoa::Buffer::new().format(hit.remaining_ttl_s(now)).as_bytes());
    status.extend_from_slice(match outcome {
        CacheOutcome::StaleWhileRevalidate => b"; detail=stale_while_revalidate",
        CacheOutcome::StaleIfError => b"; detail=stale_if_error",
        _ => b"",
    });
    let status = HeaderValue::from_maybe_shared(status.freeze()).unwrap_or(outcome.cache_status());
    hit.entry.to_response(hit.entry.age(now), status).map(Body::from)
}

/// RFC 9211 §2: every cache on the way appends its own, the nearest to the client last.
pub(super) fn with_cache_status(
    mut response: Response<Body>,
    outcome: CacheOutcome,
    info: &SharedRequestInfo,
) -> Response<Body> {
    info.update(|info| info.set_cache(outcome));
    response.headers_mut().append(CACHE_STATUS.clone(), outcome.cache_status());
    response
}
