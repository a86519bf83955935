//! Compares a cached answer with what Rails says now, once its caller has been answered.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;

use super::rules::is_no_answer;
use super::shared::{ServeCachedShared, collect};
use crate::body::Collected;
use crate::cache::shadow::{self, ShadowOutcome};
use crate::cache::storable::{NoStoreReason, check_answer, check_head};
use crate::cache::{Entry, Key};
use crate::layer::LayerResult;

/// Waits for Rails, counts the outcome, and invalidates an entry that is wrong.
pub(super) async fn shadow_check(
    inner: impl Future<Output = LayerResult>,
    key: Key,
    cached: Arc<Entry>,
    shared: Arc<ServeCachedShared>,
) {
    let (shadow, requested_at) = (shared.cache.shadow(), shared.clock.now());
    let mut inner = pin!(inner);
    let in_time = tokio::time::timeout(shadow.slow_after(), inner.as_mut()).await;
    let result = if let Ok(result) = in_time {
        result
    } else {
        // Before there is an answer, or more checks would be sent meanwhile.
        shadow.record_latency(shadow.slow_after(), shared.clock.now());
        inner.await
    };
    let now = shared.clock.now();
    shadow.record_latency(now.saturating_duration_since(requested_at), now);
    if is_no_answer(&result) {
        shadow.pause(now);
    }
    let compared = compare(result, &key, &cached, &shared).await;
    let (outcome, current) = compared.unwrap_or((ShadowOutcome::Failed, Bytes::new()));
    shadow.record_outcome(&key, &cached, requested_at, (outcome, &current));
    if outcome.is_wrong() {
        shared.cache.invalidate(&key);
    }
}

/// The outcome, and the body that Rails gave; `None` if it gave no answer.
async fn compare(
    result: LayerResult,
    key: &Key,
    cached: &Entry,
    shared: &ServeCachedShared,
) -> Option<(ShadowOutcome, Bytes)> {
    let (caching, settings) = (key.caching(), &shared.settings);
    let response = result.ok()?;
    let head = check_head(caching, &response, settings.max_body);
    let (status, body) = (response.status(), collect(response.into_body(), settings.max_body).await.ok()?);
    let now = shared.clock.unix_seconds();
    let (storable_kind, body) = match (head, body) {
        (Err(reason), Collected::Complete(body)) => (Err(reason), body),
        (Ok(()), Collected::Complete(body)) => {
            let storable = check_answer(caching, key, status, &body, &settings.lifetimes, now);
            (storable.map(|storable| storable.kind), body)
        }
        (_, Collected::TooLong(_)) => (Err(NoStoreReason::TooLarge), Bytes::new()),
    };
    Some((shadow::compare(cached, status, &body, storable_kind), body))
}
