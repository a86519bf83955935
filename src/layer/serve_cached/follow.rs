//! A caller who waits for another one's request to Rails.

use std::sync::Arc;

use http::Response;
use tower::{Service, ServiceExt as _};

use super::replay::{replay, replay_shared, with_cache_status};
use super::rules::{ask_for_plain_answer, invalidate_if_refused};
use super::shared::ServeCachedShared;
use crate::body::Body;
use crate::cache::{FillOutcome, FillWaiter, Key};
use crate::exchange::{Authenticated, CacheOutcome};
use crate::failure::Failure;
use crate::layer::LayerResult;

/// Waits for the leader's fill; asks Rails by itself if that brings nothing to share.
pub(super) async fn follow<S>(
    waiter: FillWaiter,
    inner: S,
    mut call: Authenticated,
    shared: Arc<ServeCachedShared>,
    (key, has_stale): (Key, bool),
) -> LayerResult
where
    S: Service<Authenticated, Response = Response<Body>, Error = Failure>,
{
    let info = call.exchange.info.clone();
    let progress = Arc::clone(waiter.progress());
    let outcome = tokio::time::timeout(shared.settings.wait, waiter.outcome()).await;
    if let Some(record) = info.lock().trace.record() {
        record.shared_with = progress.trace();
    }
    match outcome.unwrap_or(FillOutcome::NotShared) {
        // It may have expired since, or by a clock that was set ahead while it came.
        FillOutcome::Stored(entry) if !shared.cache.has_expired(&entry) => {
            Ok(replay_shared(&entry, &shared, &info))
        }
        FillOutcome::Failed(error, text) => Err(Failure::SharedFill(error, text)),
        FillOutcome::Stored(_) | FillOutcome::NotShared => {
            // If Rails has just failed to answer, callers with a stale entry do not ask it, too.
            if let Some(hit) = has_stale.then(|| shared.lookup_in_outage(&key)).flatten() {
                return Ok(replay(&hit, CacheOutcome::StaleIfError, &info));
            }
            ask_for_plain_answer(&mut call);
            let response = invalidate_if_refused(inner.oneshot(call).await?, &key, &shared).await?;
            Ok(with_cache_status(response, CacheOutcome::Alone, &info))
        }
    }
}
