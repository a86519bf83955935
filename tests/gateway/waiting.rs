//! Waits with a limit, so that no test depends on the speed of the machine.

use std::time::Duration;

/// So that a broken gateway fails a test instead of hanging it.
const DEADLINE: Duration = Duration::from_mins(2);

/// Awaits a future; fails the test if it takes longer than `DEADLINE`.
#[track_caller]
pub fn within_deadline<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    let timeout = tokio::time::timeout(DEADLINE, future);
    async move { timeout.await.unwrap_or_else(|_| panic!("timed out at {place}: {what}")) }
}

/// Polls until there is an output; fails the test after `DEADLINE`.
#[track_caller]
pub fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut poll: impl FnMut() -> F,
) -> impl Future<Output = T> {
    within_deadline(what, async move {
        loop {
            if let Some(output) = poll().await {
                return output;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
}
