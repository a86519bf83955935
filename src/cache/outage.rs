//! Whether Rails fails to answer for one endpoint, as far as the cache has asked it.
//!
//! During an outage, stale answers are served at once: no caller waits for a request that is likely to
//! fail, and about one request a second is sent. When Rails is back, it is slow and has many requests to
//! answer, so stale answers are served for some seconds more, while they are refreshed. The caller of
//! this module decides what counts as a failure.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::lifetimes::Freshness;
use crate::route::Caching;

/// How long after a request no other one is sent to a Rails that fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long after its last failure an outage goes on. If none came since, the next caller waits for Rails
/// again.
const FAILURE_MEMORY: Duration = Duration::from_secs(30);

/// How long after the first answer an outage still counts as one; the time starts again whenever more
/// entries need a refresh than may be refreshed at the same time, up to the maximum.
const RECOVERY: Duration = Duration::from_secs(10);
const MAX_RECOVERY: Duration = Duration::from_secs(300);

/// The state of one endpoint.
#[derive(Debug)]
pub struct Outage {
    endpoint: Caching,
    state: Mutex<OutageState>,
}

#[derive(Clone, Copy, Debug, Default)]
struct OutageState {
    /// When Rails answered last. The failure of a request sent before that is ignored.
    answered_at: Option<Instant>,
    phase: OutagePhase,
}

#[derive(Clone, Copy, Debug, Default)]
enum OutagePhase {
    #[default]
    Up,
    /// Rails has failed since `since`; the next request may be sent at `next_attempt`.
    Failing { since: Instant, last_failure: Instant, next_attempt: Instant },
    /// It has answered again.
    Recovering { until: Instant, at_most: Instant },
}

impl Outage {
    pub(super) fn new(endpoint: Caching) -> Self {
        Self { endpoint, state: Mutex::default() }
    }

    /// Rails failed to answer a request that was sent at `requested_at`.
    pub fn record_failure(&self, requested_at: Instant, now: Instant, why: &str) {
        let mut state = self.state.lock();
        if state.answered_at.is_some_and(|answered_at| requested_at < answered_at) {
            return;
        }
        let (since, next_attempt) = match state.phase {
            OutagePhase::Failing { since, next_attempt, .. } => (since, next_attempt),
            OutagePhase::Up | OutagePhase::Recovering { .. } => (now, now + RETRY_INTERVAL),
        };
        let is_start = !matches!(state.phase, OutagePhase::Failing { .. });
        state.phase = OutagePhase::Failing { since, last_failure: now, next_attempt };
        drop(state);
        if is_start {
            let route = self.endpoint.as_str();
            let _span = crate::request_span::current().entered();
            tracing::warn!(route, why, "Rails fails; stale answers are served where this endpoint has any");
        }
    }

    /// Rails answered, whatever it said.
    pub fn record_answer(&self, now: Instant) {
        let mut state = self.state.lock();
        state.answered_at = Some(now);
        if let OutagePhase::Failing { since, .. } = state.phase {
            state.phase = OutagePhase::Recovering { until: now + RECOVERY, at_most: now + MAX_RECOVERY };
            drop(state);
            let (route, after_s) = (self.endpoint.as_str(), now.saturating_duration_since(since).as_secs());
            let _span = crate::request_span::current().entered();
            tracing::info!(route, after_s, "Rails answers again; stale answers are refreshed");
        }
    }

    /// More entries need a refresh than may be refreshed at the same time.
    pub fn extend_recovery(&self, now: Instant) {
        if let OutagePhase::Recovering { until, at_most } = &mut self.state.lock().phase
            && now < *until
        {
            *until = (now + RECOVERY).min(*at_most);
        }
    }

    /// Whether stale answers are served without waiting for Rails.
    pub fn is_active(&self, now: Instant) -> bool {
        match self.state.lock().phase {
            OutagePhase::Up => false,
            OutagePhase::Failing { last_failure, .. } => now < last_failure + FAILURE_MEMORY,
            OutagePhase::Recovering { until, .. } => now < until,
        }
    }

    /// Whether an answer that is usable for this, and not fresh, is served without waiting for Rails. A doubted one
    /// is not while Rails is coming back, slow as it may be.
    pub fn serves_at_once(&self, freshness: Freshness, now: Instant) -> bool {
        let is_recovering = || matches!(self.state.lock().phase, OutagePhase::Recovering { .. });
        self.is_active(now) && !(freshness == Freshness::Doubted && is_recovering())
    }

    /// Whether a stale answer may be refreshed. While Rails fails, one request per `RETRY_INTERVAL` is sent.
    pub fn may_refresh(&self, now: Instant) -> bool {
        match self.state.lock().phase {
            OutagePhase::Failing { next_attempt, .. } => now >= next_attempt,
            OutagePhase::Up | OutagePhase::Recovering { .. } => true,
        }
    }

    /// A refresh has been started.
    pub fn record_refresh(&self, now: Instant) {
        if let OutagePhase::Failing { next_attempt, .. } = &mut self.state.lock().phase {
            *next_attempt = now + RETRY_INTERVAL;
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
    fn one_request_a_second_is_sent_to_a_failing_rails() {
        let (outage, begin) = (Outage::new(Caching::Discover), Instant::now());
        assert!(!outage.is_active(begin) && outage.may_refresh(begin));
        outage.record_answer(begin);
        assert!(!outage.is_active(begin), "an answer without a failure before it is nothing new");
        outage.record_failure(begin, begin, "test");
        for (at, may_refresh) in
            [(0, false), (999, false), (1_000, true), (1_000, false), (1_999, false), (2_000, true)]
        {
            let at = begin + ms(at);
            assert_eq!((outage.is_active(at), outage.may_refresh(at)), (true, may_refresh), "{at:?}");
            if may_refresh {
                outage.record_refresh(at);
            }
            // Other failures meanwhile do not put off the next attempt.
            outage.record_failure(at, at, "test");
        }
    }

    #[test]
    fn an_outage_ends_without_new_failures() {
        let (outage, begin) = (Outage::new(Caching::Discover), Instant::now());
        outage.record_failure(begin, begin, "test");
        assert!(
            outage.is_active(begin + FAILURE_MEMORY.saturating_sub(ms(1)))
                && !outage.is_active(begin + FAILURE_MEMORY)
        );
        outage.record_failure(begin + FAILURE_MEMORY, begin + FAILURE_MEMORY, "test");
        assert!(outage.is_active(begin + FAILURE_MEMORY));
        // A request that was sent before Rails answered is no news if it fails later.
        outage.record_answer(begin + FAILURE_MEMORY * 2);
        let end = begin + FAILURE_MEMORY * 2 + RECOVERY;
        outage.record_failure(begin + FAILURE_MEMORY, end, "test");
        assert!(!outage.is_active(end));
        outage.record_failure(end, end, "test");
        assert!(outage.is_active(end));
    }

    #[test]
    fn recovery_ends_some_time_after_the_first_answer_or_once_all_is_refreshed() {
        let (outage, begin) = (Outage::new(Caching::Discover), Instant::now());
        outage.record_failure(begin, begin, "test");
        outage.record_answer(begin + RETRY_INTERVAL);
        outage.record_answer(begin + RETRY_INTERVAL * 5);
        let (end, before) =
            (begin + RETRY_INTERVAL + RECOVERY, begin + RETRY_INTERVAL + RECOVERY.saturating_sub(ms(1)));
        assert!(outage.is_active(before) && outage.may_refresh(before));
        assert!(!outage.is_active(end) && outage.may_refresh(end));
        outage.extend_recovery(end);
        assert!(!outage.is_active(end), "what is over is over");
        outage.extend_recovery(before);
        assert!(outage.is_active(end) && !outage.is_active(before + RECOVERY));
        for second in 0..1_000 {
            outage.extend_recovery(begin + RETRY_INTERVAL * second);
        }
        assert!(!outage.is_active(begin + RETRY_INTERVAL + MAX_RECOVERY), "but not for ever");
    }
}
