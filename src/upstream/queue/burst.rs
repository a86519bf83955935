//! How much of Rails a class may have in a burst, if it has to do with less in the long run.
//!
//! A token bucket of the time that Rails spends. Differs from a smaller limit on concurrency: clients that send
//! little are never slowed down, however many requests come at once; those that always have more to send get, after
//! [`BURST`], no more at one time than the settings name.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much of the time of Rails a class may use before it is limited to its `sustained_concurrency`.
pub(super) const BURST: Duration = Duration::from_secs(30);

/// What is left of [`BURST`].
#[derive(Debug)]
pub(super) struct BurstAllowance {
    /// How fast it is refilled: so many seconds in each second.
    sustained_concurrency: u32,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    left: Duration,
    /// `None` before the first response.
    refilled_at: Option<Instant>,
    /// From when nothing is left until all is refilled, so that a flood does not get a small burst again and again.
    is_exhausted: bool,
}

impl BurstAllowance {
    /// A full one.
    pub(super) fn new(sustained_concurrency: usize) -> Self {
        let sustained_concurrency = u32::try_from(sustained_concurrency).unwrap_or(u32::MAX).max(1);
        let state = State { left: BURST, refilled_at: None, is_exhausted: false };
        Self { sustained_concurrency, state: Mutex::new(state) }
    }

    /// Whether requests are limited to the `sustained_concurrency` now.
    pub(super) fn is_exhausted(&self, now: Instant) -> bool {
        self.refill(now).is_exhausted
    }

    /// Records that Rails took so long for one request.
    pub(super) fn spend(&self, time: Duration, now: Instant) {
        let mut state = self.refill(now);
        state.left = state.left.saturating_sub(time);
        state.is_exhausted |= state.left.is_zero();
    }

    fn refill(&self, now: Instant) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = state.refilled_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        state.refilled_at = Some(now);
        state.left = elapsed.saturating_mul(self.sustained_concurrency).saturating_add(state.left).min(BURST);
        state.is_exhausted &= state.left < BURST;
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_class_that_uses_no_more_than_its_long_run_share_is_never_limited() {
        let (allowance, begin) = (BurstAllowance::new(2), Instant::now());
        for second in 0..1_000 {
            let now = begin + SECOND * second;
            allowance.spend(SECOND * 2, now);
            assert!(!allowance.is_exhausted(now), "{second}");
        }
    }

    #[test]
    fn a_burst_is_limited_until_all_of_it_is_refilled() {
        let (allowance, begin) = (BurstAllowance::new(2), Instant::now());
        allowance.spend(SECOND * 29, begin);
        assert!(!allowance.is_exhausted(begin));
        allowance.spend(SECOND * 3, begin);
        assert!(allowance.is_exhausted(begin));
        // What is spent meanwhile delays the end.
        allowance.spend(SECOND * 10, begin + SECOND * 10);
        assert!(allowance.is_exhausted(begin + SECOND * 19));
        assert!(!allowance.is_exhausted(begin + SECOND * 20));
        assert!(!allowance.is_exhausted(begin + SECOND * 21));
    }
}
