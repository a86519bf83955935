//! Serves the stale entry of a caller who waits for Rails, if Rails fails or takes too long.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use super::replay::replay;
use super::rules::is_rails_failure;
use super::shared::ServeCachedShared;
use crate::cache::{Freshness, Key};
use crate::exchange::{CacheOutcome, SharedRequestInfo};
use crate::layer::LayerResult;
use crate::progress::Progress;

/// The result of `inner`; or the stale entry, if there is one and Rails fails or takes too long. The entry
/// is looked up again: meanwhile it may have been purged, or found to be wrong.
pub(super) async fn or_stale(
    inner: impl Future<Output = LayerResult>,
    stale: Option<(Key, Arc<Progress>)>,
    shared: Arc<ServeCachedShared>,
    info: SharedRequestInfo,
) -> LayerResult {
    let Some((key, progress)) = stale else { return inner.await };
    let (requested_at, mut inner) = (shared.clock.now(), pin!(inner));
    let result = match within_stale_wait(inner.as_mut(), &progress, &shared).await {
        Some(result) if !is_rails_failure(&result) => return result,
        Some(result) => Some(result),
        None => {
            let outage = shared.cache.outage(key.caching());
            outage.record_failure(requested_at, shared.clock.now(), "stale_wait");
            None
        }
    };
    let now = shared.clock.now();
    match (shared.cache.lookup(&key, now), result) {
        // Another request may have refreshed it meanwhile.
        (Some(hit), _) if hit.freshness == Freshness::Fresh => Ok(replay(&hit, CacheOutcome::Hit, &info)),
        (Some(hit), _) => Ok(replay(&hit, CacheOutcome::StaleIfError, &info)),
        (None, Some(result)) => result,
        (None, None) => inner.await,
    }
}

/// The result of `inner`; `None` if a server has had the request for `stale_wait` and answers no
/// request at all. A busy server is no failure: the time before the request is sent does not count, and a
/// server that answers others is waited for, until its own time-outs end that.
async fn within_stale_wait(
    mut inner: Pin<&mut impl Future<Output = LayerResult>>,
    progress: &Progress,
    shared: &ServeCachedShared,
) -> Option<LayerResult> {
    let stale_wait = shared.settings.stale_wait;
    let mut wait = stale_wait;
    loop {
        if let Ok(result) = tokio::time::timeout(wait, inner.as_mut()).await {
            return Some(result);
        }
        let now = shared.clock.now();
        let elapsed = progress.sent_at().map(|sent_at| now.saturating_duration_since(sent_at));
        wait = match elapsed {
            Some(elapsed) if elapsed < stale_wait => stale_wait.saturating_sub(elapsed),
            Some(_) if !progress.is_server_busy(now) => return None,
            Some(_) | None => BUSY_CHECK_INTERVAL.min(stale_wait),
        };
    }
}

/// How often a caller who waits for a busy server checks whether it still is.
const BUSY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
