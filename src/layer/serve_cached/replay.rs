//! Responses, and what their `Cache-Status` says of where they come from (RFC 9211).

use http::Response;

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
    let age = entry.age(shared.clock.now());
    entry.to_response(age, &[CacheOutcome::Shared.cache_status().as_bytes()]).map(Body::from)
}

/// For a leader: what another gateway has shared.
pub(super) fn replay_from_fleet(
    entry: &Entry,
    shared: &ServeCachedShared,
    info: &SharedRequestInfo,
) -> Response<Body> {
    info.update(|info| info.set_cache(CacheOutcome::Fleet));
    let age = entry.age(shared.clock.now());
    entry.to_response(age, &[CacheOutcome::Fleet.cache_status().as_bytes()]).map(Body::from)
}

/// An entry that was found in memory.
pub(super) fn replay(hit: &Hit, outcome: CacheOutcome, info: &SharedRequestInfo) -> Response<Body> {
    info.update(|info| info.set_cache(outcome));
    let mut ttl = itoa::Buffer::new();
    let status: [&[u8]; 3] = [
        b"railgate; hit; ttl=",
        ttl.format(hit.remaining_ttl_s()).as_bytes(),
        match outcome {
            CacheOutcome::StaleWhileRevalidate => b"; detail=stale_while_revalidate",
            CacheOutcome::StaleIfError => b"; detail=stale_if_error",
            _ => b"",
        },
    ];
    hit.entry.to_response(hit.age, &status).map(Body::from)
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
