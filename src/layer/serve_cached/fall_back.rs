//! What a caller gets who could have a stale answer, while Rails is asked.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::give::replay;
use super::rules::is_failing;
use crate::cache::{Key, Phase};
use crate::exchange::{CacheOutcome, Record};
use crate::layer::Answer;
use crate::progress::Progress;

/// What Rails says; or what it said before, if it fails now or takes too long for a caller who could
/// have an answer. That is looked up again: meanwhile it may have been purged, or found to be wrong.
pub(super) async fn or_stale(
    answer: impl Future<Output = Answer>,
    stale: Option<(Key, Arc<Progress>)>,
    shared: Arc<Shared>,
    record: Record,
) -> Answer {
    let Some((key, progress)) = stale else { return answer.await };
    let (asked, mut answer) = (shared.clock.now(), pin!(answer));
    let said = match unless_it_hangs(answer.as_mut(), &progress, &shared).await {
        Some(said) if !is_failing(&said) => return said,
        Some(said) => Some(said),
        None => {
            shared.cache.outage(key.caching()).failed(asked, shared.clock.now(), "stale_wait");
            None
        }
    };
    let now_is = shared.clock.now();
    match (shared.cache.lookup(&key, now_is), said) {
        // Another request may have renewed it meanwhile.
        (Some(hit), _) if hit.phase == Phase::Fresh => {
            Ok(replay(&hit.entry, CacheOutcome::Hit, now_is, &record))
        }
        (Some(hit), _) => Ok(replay(&hit.entry, CacheOutcome::StaleIfError, now_is, &record)),
        (None, Some(said)) => said,
        (None, None) => answer.await,
    }
}

/// What Rails says; nothing if it has had the question for `stale_wait` and answers nothing at all. Being
/// busy is no failure: the time before the question is sent does not count, and a server that answers
/// others is waited for, until its own time-outs end that.
async fn unless_it_hangs(
    mut answer: Pin<&mut impl Future<Output = Answer>>,
    progress: &Progress,
    shared: &Shared,
) -> Option<Answer> {
    let stale_wait = shared.settings.stale_wait;
    let mut wait = stale_wait;
    loop {
        if let Ok(said) = tokio::time::timeout(wait, answer.as_mut()).await {
            return Some(said);
        }
        let now_is = shared.clock.now();
        let had = progress.sent().map(|sent| now_is.saturating_duration_since(sent));
        wait = match had {
            Some(had) if had < stale_wait => stale_wait.saturating_sub(had),
            Some(_) if !progress.is_busy(now_is) => return None,
            Some(_) | None => BETWEEN_LOOKS.min(stale_wait),
        };
    }
}

/// How often a caller who waits for a Rails that is busy sees whether it still is.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
