//! Whether Rails fails to answer for one endpoint, as far as those know who ask it for the cache.
//!
//! While it does, stale answers are given at once: nobody waits for what is known to fail, and
//! hardly anybody tries. Rails that has just come back is slow and has everybody's questions to
//! answer, so stale answers are given for some seconds more, while they are renewed. What counts as
//! a failure, those say who ask.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long after a try Rails is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a failure is news. If nobody has tried since, the next one waits for Rails again.
const NEWS: Duration = Duration::from_secs(30);

/// How long after its end an outage still counts as one; again from whenever there is more to renew
/// than may be asked for, but not for longer than the second.
const RECOVERY: Duration = Duration::from_secs(10);
const LONGEST_RECOVERY: Duration = Duration::from_secs(300);

/// What is known.
#[derive(Debug, Default)]
pub struct Outage {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// When Rails answered last: a request sent before that tells nothing new by failing.
    answered: Option<Instant>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    None,
    /// Rails has failed since `since`, `last` for the last time; the next to ask may do so from `next` on.
    Failing { since: Instant, last: Instant, next: Instant },
    /// It has answered again.
    Recovering { until: Instant, at_most: Instant },
}

impl Outage {
    /// Rails failed to answer what it was asked at `asked`.
    pub fn failed(&self, asked: Instant, now: Instant, why: &str) {
        let mut state = self.state.lock();
        if state.answered.is_some_and(|answered| asked < answered) {
            return;
        }
        let (since, next) = match state.phase {
            Phase::Failing { since, next, .. } => (since, next),
            Phase::None | Phase::Recovering { .. } => (now, now + PAUSE),
        };
        let is_news = !matches!(state.phase, Phase::Failing { .. });
        state.phase = Phase::Failing { since, last: now, next };
        drop(state);
        if is_news {
            tracing::warn!(
                why,
                "Rails fails; known keys and users are answered from memory, if need be with stale answers"
            );
        }
    }

    /// Rails answered, whatever it said.
    pub fn answered(&self, now: Instant) {
        let mut state = self.state.lock();
        state.answered = Some(now);
        if let Phase::Failing { since, .. } = state.phase {
            state.phase = Phase::Recovering { until: now + RECOVERY, at_most: now + LONGEST_RECOVERY };
            drop(state);
            let after_s = now.saturating_duration_since(since).as_secs();
            tracing::info!(after_s, "Rails answers again; what is stale is renewed");
        }
    }

    /// There is more to renew than may be asked for at one time.
    pub fn has_a_backlog(&self, now: Instant) {
        if let Phase::Recovering { until, at_most } = &mut self.state.lock().phase
            && now < *until
        {
            *until = (now + RECOVERY).min(*at_most);
        }
    }

    /// Whether a stale answer is to be given without waiting for Rails.
    pub fn is_on(&self, now: Instant) -> bool {
        match self.state.lock().phase {
            Phase::None => false,
            Phase::Failing { last, .. } => now < last + NEWS,
            Phase::Recovering { until, .. } => now < until,
        }
    }

    /// Whether Rails may be asked for a stale answer. While it fails, one caller in a while may.
    pub fn may_ask(&self, now: Instant) -> bool {
        match self.state.lock().phase {
            Phase::Failing { next, .. } => now >= next,
            Phase::None | Phase::Recovering { .. } => true,
        }
    }

    /// Somebody asks.
    pub fn asks(&self, now: Instant) {
        if let Phase::Failing { next, .. } = &mut self.state.lock().phase {
            *next = now + PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn one_caller_in_a_while_asks_a_rails_that_fails() {
        let (outage, begin) = (Outage::default(), Instant::now());
        assert!(!outage.is_on(begin) && outage.may_ask(begin));
        outage.answered(begin);
        assert!(!outage.is_on(begin), "an answer without a failure before it is nothing new");
        outage.failed(begin, begin, "test");
        for (at, may_ask) in
            [(0, false), (999, false), (1_000, true), (1_000, false), (1_999, false), (2_000, true)]
        {
            let at = begin + ms(at);
            assert_eq!((outage.is_on(at), outage.may_ask(at)), (true, may_ask), "{at:?}");
            if may_ask {
                outage.asks(at);
            }
            // Others who fail meanwhile are no reason not to try.
            outage.failed(at, at, "test");
        }
    }

    #[test]
    fn an_old_failure_is_no_news() {
        let (outage, begin) = (Outage::default(), Instant::now());
        outage.failed(begin, begin, "test");
        assert!(outage.is_on(begin + NEWS.saturating_sub(ms(1))) && !outage.is_on(begin + NEWS));
        outage.failed(begin + NEWS, begin + NEWS, "test");
        assert!(outage.is_on(begin + NEWS));
        // Whoever asked before Rails answered cannot know better by failing later.
        outage.answered(begin + NEWS * 2);
        let end = begin + NEWS * 2 + RECOVERY;
        outage.failed(begin + NEWS, end, "test");
        assert!(!outage.is_on(end));
        outage.failed(end, end, "test");
        assert!(outage.is_on(end));
    }

    #[test]
    fn an_outage_ends_some_time_after_the_first_answer_or_when_all_is_renewed() {
        let (outage, begin) = (Outage::default(), Instant::now());
        outage.failed(begin, begin, "test");
        outage.answered(begin + PAUSE);
        outage.answered(begin + PAUSE * 5);
        let (end, before) = (begin + PAUSE + RECOVERY, begin + PAUSE + RECOVERY.saturating_sub(ms(1)));
        assert!(outage.is_on(before) && outage.may_ask(before));
        assert!(!outage.is_on(end) && outage.may_ask(end));
        outage.has_a_backlog(end);
        assert!(!outage.is_on(end), "what is over is over");
        outage.has_a_backlog(before);
        assert!(outage.is_on(end) && !outage.is_on(before + RECOVERY));
        for second in 0..1_000 {
            outage.has_a_backlog(begin + PAUSE * second);
        }
        assert!(!outage.is_on(begin + PAUSE + LONGEST_RECOVERY), "but not for ever");
    }
}
