//! Compares a cached answer with what Rails says now, once its caller has been answered.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;

use super::rules::is_no_answer;
use super::shared::{ServeCachedShared, collect};
use crate::body::Collected;
use crate::cache::refusal::{Verdict, judge, may_be_refusal};
use crate::cache::shadow::{self, ShadowOutcome};
use crate::cache::storable::{NoStoreReason, check_answer, check_head};
use crate::cache::{Entry, EntryKind, Key};
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
    let Some((outcome, verdict, current)) = compare(result, &key, &cached, &shared).await else {
        return shadow.record_outcome(&key, &cached, requested_at, (ShadowOutcome::Failed, &[]));
    };
    shadow.record_outcome(&key, &cached, requested_at, (outcome, &current));
    match verdict {
        _ if outcome.is_wrong() => shared.cache.invalidate(&key),
        // Perhaps of the caller alone, so that it is not counted as wrong. But a fill would drop the entry, too.
        Verdict::Refused if cached.kind == EntryKind::Positive => shared.cache.invalidate(&key),
        Verdict::Doubtful(status) => shared.cache.doubt(&key, status, now),
        Verdict::Refused | Verdict::Unrelated => {}
    }
}

/// The outcome, the verdict on a refusal, and the body that Rails gave; `None` if it gave no answer.
async fn compare(
    result: LayerResult,
    key: &Key,
    cached: &Entry,
    shared: &ServeCachedShared,
) -> Option<(ShadowOutcome, Verdict, Bytes)> {
    let (caching, settings) = (key.caching(), &shared.settings);
    let response = result.ok()?;
    let head = check_head(caching, &response, settings.max_body);
    let (status, may_be_refusal) = (response.status(), may_be_refusal(response.status(), response.headers()));
    let body = collect(response.into_body(), settings.max_body).await.ok()?;
    let now = shared.clock.unix_seconds();
    let (storable_kind, body) = match (head, body) {
        (Err(reason), Collected::Complete(body)) => (Err(reason), body),
        (Ok(()), Collected::Complete(body)) => {
            let storable = check_answer(caching, key, status, &body, &settings.lifetimes, now);
            (storable.map(|storable| storable.kind), body)
        }
        (_, Collected::TooLong(_)) => (Err(NoStoreReason::TooLarge), Bytes::new()),
    };
    let verdict = if may_be_refusal { judge(status, &body) } else { Verdict::Unrelated };
    Some((shadow::compare(cached, verdict, &body, storable_kind), verdict, body))
}
