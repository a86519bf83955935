//! Whether Rails fails, as far as those know who ask it for the cache.
//!
//! While it does, stale answers are given at once: nobody waits for what is known to fail, and
//! hardly anybody tries. Rails that has just come back is slow and has everybody's questions to
//! answer, so stale answers are given for some seconds more, while they are renewed.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long after a failure Rails is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// How long after its end an outage still counts as one.
const RECOVERY: Duration = Duration::from_secs(10);

/// What is known.
#[derive(Debug, Default)]
pub struct Outage {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    None,
    /// Rails has failed since `since`; the next to ask may do so from `next` on.
    Failing { since: Instant, next: Instant },
    /// It has answered again.
    Recovering { until: Instant },
}

impl Outage {
    /// Rails failed to answer.
    pub fn failed(&self, now: Instant) {
        let mut state = self.state.lock();
        let next = now + PAUSE;
        *state = match *state {
            State::Failing { since, .. } => State::Failing { since, next },
            State::None | State::Recovering { .. } => {
                tracing::warn!(
                    "Rails fails; known keys and users are answered from memory, if need be with stale answers"
                );
                State::Failing { since: now, next }
            }
        };
    }

    /// Rails answered, whatever it said.
    pub fn answered(&self, now: Instant) {
        let mut state = self.state.lock();
        if let State::Failing { since, .. } = *state {
            let after_s = now.saturating_duration_since(since).as_secs();
            tracing::info!(after_s, "Rails answers again; what is stale is renewed");
            *state = State::Recovering { until: now + RECOVERY };
        }
    }

    /// Whether a stale answer is to be given without waiting for Rails.
    pub fn is_on(&self, now: Instant) -> bool {
        match *self.state.lock() {
            State::None => false,
            State::Failing { .. } => true,
            State::Recovering { until } => now < until,
        }
    }

    /// Whether Rails may be asked for a stale answer. While it fails, one caller in a while may.
    pub fn may_ask(&self, now: Instant) -> bool {
        match &mut *self.state.lock() {
            State::Failing { next, .. } if now < *next => false,
            State::Failing { next, .. } => {
                *next = now + PAUSE;
                true
            }
            State::None | State::Recovering { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_in_a_while_asks_a_rails_that_fails() {
        let (outage, begin) = (Outage::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        assert!(!outage.is_on(at(0)) && outage.may_ask(at(0)) && outage.may_ask(at(0)));
        outage.answered(at(0));
        assert!(!outage.is_on(at(0)), "an answer without a failure before it is nothing new");
        outage.failed(at(0));
        for (ms, may_ask) in
            [(0, false), (999, false), (1_000, true), (1_000, false), (1_999, false), (2_000, true)]
        {
            assert_eq!((outage.is_on(at(ms)), outage.may_ask(at(ms))), (true, may_ask), "{ms}");
        }
        outage.failed(at(2_500));
        assert!(!outage.may_ask(at(3_499)) && outage.may_ask(at(3_500)));
    }

    #[test]
    fn an_outage_ends_some_time_after_the_first_answer() {
        let (outage, begin) = (Outage::default(), Instant::now());
        outage.failed(begin);
        outage.answered(begin + PAUSE);
        outage.answered(begin + PAUSE * 5);
        let end = begin + PAUSE + RECOVERY;
        let before = end.checked_sub(Duration::from_millis(1)).unwrap();
        assert!(outage.is_on(before) && outage.may_ask(before) && outage.may_ask(before));
        assert!(!outage.is_on(end) && outage.may_ask(end));
        outage.failed(end);
        assert!(outage.is_on(end + RECOVERY * 100), "until it answers");
    }
}
