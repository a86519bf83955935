//! How much of Rails a class may have in a burst, if it has to do with less in the long run.
//!
//! A token bucket of the time that requests are with Rails. Differs from a smaller limit on concurrency: clients that
//! send little are never slowed down, however many requests come at once; those that always have more to send get,
//! after [`BURST`], no more at one time than the settings name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;

/// How much time, over all its requests, a class may use before it is limited to its `sustained_concurrency`.
pub(super) const BURST: Duration = Duration::from_secs(30);
/// What was used beyond that is made up for, but no more than this.
const MAX_DEBT: Duration = Duration::from_secs(300);

/// Takes permits out of circulation while the allowance is exhausted.
#[derive(Debug)]
pub(super) struct BurstLimit {
    permits: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    concurrency: usize,
    sustained_concurrency: usize,
    /// What is left, in microseconds; negative is a debt.
    left: i64,
    /// Up to when `left` is right. `None` before the first request.
    at: Option<Instant>,
    /// Requests that have a permit.
    in_flight: usize,
    /// Permits that are free, or that requests have.
    circulating: usize,
    /// From when nothing is left until all is refilled, so that a flood does not get a small burst again and again.
    is_exhausted: bool,
}

/// A permit that counts against the allowance until it is dropped.
#[derive(Debug)]
pub(super) struct BurstPermit {
    limit: Arc<BurstLimit>,
    permit: Option<OwnedSemaphorePermit>,
}

impl BurstLimit {
    /// Of a class whose `concurrency` permits are in `permits`.
    pub(super) fn new(permits: Arc<Semaphore>, concurrency: usize, sustained_concurrency: usize) -> Self {
        let state = State {
            concurrency,
            sustained_concurrency: sustained(concurrency, sustained_concurrency),
            left: micros(BURST),
            at: None,
            in_flight: 0,
            circulating: concurrency,
            is_exhausted: false,
        };
        Self { permits, state: Mutex::new(state) }
    }

    /// Other limits from now on, also for requests that have a permit. What was used of the allowance stays used:
    /// whoever makes the gateway read its configuration again gives nobody a new burst.
    pub(super) fn reload(&self, concurrency: usize, sustained_concurrency: usize) {
        let mut state = self.state.lock();
        self.advance(&mut state, Clock::System.now());
        state.concurrency = concurrency;
        state.sustained_concurrency = sustained(concurrency, sustained_concurrency);
        self.adjust(&mut state);
    }

    /// How many permits are still to be taken away, which is the caller's to do from now on.
    pub(super) fn release_surplus(&self) -> usize {
        let mut state = self.state.lock();
        let surplus = state.circulating.saturating_sub(state.limit());
        state.circulating -= surplus;
        surplus
    }

    /// Takes note of a request that has got a permit.
    pub(super) fn count(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> BurstPermit {
        let mut state = self.state.lock();
        self.advance(&mut state, Clock::System.now());
        state.in_flight += 1;
        BurstPermit { limit: Arc::clone(self), permit: Some(permit) }
    }

    /// Requests that have a permit.
    pub(super) fn in_flight(&self) -> usize {
        self.state.lock().in_flight
    }

    /// How many may have one at present.
    pub(super) fn limit(&self) -> usize {
        let mut state = self.state.lock();
        self.advance(&mut state, Clock::System.now());
        state.limit()
    }

    fn advance(&self, state: &mut State, now: Instant) {
        // Of two threads, the one with the later time may come first.
        let at = state.at.map_or(now, |at| at.max(now));
        let elapsed = state.at.map_or(0, |before| micros(at.saturating_duration_since(before)));
        state.at = Some(at);
        let rate = signed(state.sustained_concurrency).saturating_sub(signed(state.in_flight));
        state.left = state
            .left
            .saturating_add(elapsed.saturating_mul(rate))
            .clamp(micros(MAX_DEBT).saturating_neg(), micros(BURST));
        if state.left <= 0 {
            state.is_exhausted = true;
        } else if state.left >= micros(BURST) {
            state.is_exhausted = false;
        }
        self.adjust(state);
    }

    /// Brings permits into circulation, or takes free ones out of it, so that there are as many as the limit says.
    fn adjust(&self, state: &mut State) {
        let limit = state.limit();
        if state.circulating < limit {
            self.permits.add_permits(limit - state.circulating);
            state.circulating = limit;
        } else if state.circulating > limit {
            state.circulating -= self.permits.forget_permits(state.circulating - limit);
        }
    }
}

impl State {
    /// How many requests may have a permit at present.
    fn limit(&self) -> usize {
        if self.is_exhausted { self.sustained_concurrency } else { self.concurrency }
    }
}

fn sustained(concurrency: usize, sustained_concurrency: usize) -> usize {
    sustained_concurrency.clamp(1, concurrency.max(1))
}

impl Drop for BurstPermit {
    fn drop(&mut self) {
        let mut state = self.limit.state.lock();
        self.limit.advance(&mut state, Clock::System.now());
        state.in_flight = state.in_flight.saturating_sub(1);
        if state.circulating > state.limit()
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
            state.circulating -= 1;
        }
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(concurrency: usize, sustained_concurrency: usize) -> Arc<BurstLimit> {
        let permits = Arc::new(Semaphore::new(concurrency));
        Arc::new(BurstLimit::new(permits, concurrency, sustained_concurrency))
    }

    impl BurstLimit {
        /// As many requests as there are permits for.
        fn admit_all(self: &Arc<Self>) -> Vec<BurstPermit> {
            let permits = || Arc::clone(&self.permits).try_acquire_owned().ok();
            std::iter::from_fn(permits).map(|permit| self.count(permit)).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_class_that_uses_no_more_than_its_long_run_share_is_never_limited() {
        let limit = limit(16, 2);
        for _ in 0..1_000 {
            let permits: Vec<_> = limit.admit_all().into_iter().take(2).collect();
            tokio::time::advance(SECOND).await;
            drop(permits);
            assert_eq!(limit.limit(), 16);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_limited_until_all_of_it_is_refilled() {
        let limit = limit(16, 2);
        let burst = limit.admit_all();
        assert_eq!((burst.len(), limit.in_flight()), (16, 16));
        // 14 a second too many: after 5 s, 40 are owed.
        tokio::time::advance(SECOND * 5).await;
        assert_eq!((limit.limit(), limit.in_flight()), (2, 16));
        drop(burst);
        assert_eq!(limit.admit_all().len(), 2);
        // Refilled by 2 a second.
        tokio::time::advance(SECOND * 34).await;
        assert_eq!((limit.limit(), limit.admit_all().len()), (2, 2));
        tokio::time::advance(SECOND).await;
        assert_eq!((limit.limit(), limit.admit_all().len()), (16, 16));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_go_on_for_hours_are_made_up_for_in_minutes() {
        let limit = limit(16, 1);
        let burst = limit.admit_all();
        tokio::time::advance(SECOND * 3_600).await;
        drop(burst);
        tokio::time::advance(SECOND * 329).await;
        assert_eq!(limit.limit(), 1);
        tokio::time::advance(SECOND).await;
        assert_eq!(limit.limit(), 16);
    }

    /// A flood must not be helped by reading the configuration again.
    #[tokio::test(start_paused = true)]
    async fn other_limits_give_no_new_burst_and_count_the_requests_that_run() {
        let limit = limit(16, 2);
        let mut burst = limit.admit_all();
        tokio::time::advance(SECOND * 5).await;
        assert_eq!(limit.limit(), 2);
        for (concurrency, sustained) in [(16, 3), (32, 4), (8, 1), (16, 2)] {
            limit.reload(concurrency, sustained);
            assert_eq!((limit.limit(), limit.in_flight()), (sustained, 16));
            assert_eq!(limit.admit_all().len(), 0, "16 run already");
        }
        burst.truncate(3);
        assert_eq!(limit.admit_all().len(), 0);
        drop(burst);
        assert_eq!(limit.admit_all().len(), 2);
        // All is refilled: the new limits are those of a burst.
        limit.reload(8, 4);
        tokio::time::advance(SECOND * 60).await;
        assert_eq!((limit.limit(), limit.admit_all().len()), (8, 8));
        // Fewer than run.
        let running = limit.admit_all();
        limit.reload(3, 3);
        assert_eq!((limit.limit(), limit.admit_all().len()), (3, 0));
        drop(running);
        let running = limit.admit_all();
        assert_eq!(running.len(), 3);
        limit.reload(1, 1);
        assert_eq!([limit.release_surplus(), limit.release_surplus()], [2, 0]);
        drop(running);
        assert_eq!(limit.admit_all().len(), 3, "the caller has not taken them away");
    }

    #[tokio::test(start_paused = true)]
    async fn any_two_numbers_fit_together() {
        for concurrency in 1..=20 {
            for sustained in 0..=21 {
                let limit = limit(concurrency, sustained);
                for _ in 0..3 {
                    let burst = limit.admit_all();
                    assert_eq!(burst.len(), concurrency);
                    tokio::time::advance(SECOND * 100).await;
                    drop(burst);
                    let sustained = sustained.clamp(1, concurrency);
                    assert_eq!(limit.admit_all().len(), sustained);
                    tokio::time::advance(MAX_DEBT * 2).await;
                    assert_eq!(limit.limit(), concurrency);
                }
            }
        }
    }
}
