//! Compares an answer from memory with what Rails says now, once its caller has it.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;

use super::Shared;
use super::fill::collect;
use super::rules::gave_no_answer;
use crate::body::Collected;
use crate::cache::freshness::{self, judge_head};
use crate::cache::shadow::{self, Verdict};
use crate::cache::{Entry, Key, NoStore};
use crate::layer::Answer;

/// Asks Rails, counts what that shows, and drops what is wrong.
pub(super) async fn verify(
    answer: impl Future<Output = Answer>,
    key: Key,
    kept: Arc<Entry>,
    shared: Arc<Shared>,
) {
    let (shadow, asked) = (shared.cache.shadow(), shared.clock.now());
    let mut answer = pin!(answer);
    let in_time = tokio::time::timeout(shadow.slow(), answer.as_mut()).await;
    let answer = if let Ok(answer) = in_time {
        answer
    } else {
        // Before there is an answer, or more would be sent after this one.
        shadow.took(shadow.slow(), shared.clock.now());
        answer.await
    };
    let now_is = shared.clock.now();
    shadow.took(now_is.saturating_duration_since(asked), now_is);
    if gave_no_answer(&answer) {
        shadow.pause(now_is);
    }
    let (verdict, said) =
        judge(answer, &key, &kept, &shared).await.unwrap_or((Verdict::Failed, Bytes::new()));
    shadow.found(&key, &kept, asked, (verdict, &said));
    if verdict.is_wrong() {
        shared.cache.invalidate(&key);
    }
}

/// What Rails' answer shows, and its body; `None` if it gave none.
async fn judge(answer: Answer, key: &Key, kept: &Entry, shared: &Shared) -> Option<(Verdict, Bytes)> {
    let (caching, settings) = (key.caching(), &shared.settings);
    let answer = answer.ok()?;
    let head = judge_head(caching, &answer, settings.max_body);
    let (status, body) = (answer.status(), collect(answer.into_body(), settings.max_body).await.ok()?);
    let now = shared.clock.unix_seconds();
    let (judged, body) = match (head, body) {
        (Err(reason), Collected::Whole(body)) => (Err(reason), body),
        (Ok(()), Collected::Whole(body)) => {
            let judged = freshness::judge(caching, key, status, &body, &settings.lifetimes, now);
            (judged.map(|storable| storable.sign), body)
        }
        (_, Collected::TooLong(_)) => (Err(NoStore::TooLarge), Bytes::new()),
    };
    Some((shadow::compare(kept, status, &body, judged), body))
}
