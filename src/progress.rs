//! How far a request to Rails has come, for the callers who wait for its answer: they have to tell a Rails that
//! fails from one that is busy.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::trace_context::TraceContext;

/// How long a look-up without an answer says that a server is silent. Longer than the pause between two tries of
/// GitLab Shell.
const SILENCE_TTL: Duration = Duration::from_secs(10);

/// When a server answered last.
#[derive(Debug)]
pub struct LastAnswer {
    created_at: Instant,
    /// Microseconds after that; 0 while there was none.
    answered_at_us: AtomicU64,
    /// The same for the end of the last look-up that got no answer in all of its time.
    silent_at_us: AtomicU64,
    /// Whether a look-up is on trial.
    has_trial: AtomicBool,
}

/// The right to find out whether a server is still silent: one look-up at a time has it, until this is dropped.
#[derive(Debug)]
pub struct SilenceTrial(Arc<LastAnswer>);

impl Drop for SilenceTrial {
    fn drop(&mut self) {
        self.0.has_trial.store(false, Ordering::Relaxed);
    }
}

impl LastAnswer {
    /// No answer yet; none can be recorded that is older than `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            created_at: now,
            answered_at_us: AtomicU64::new(0),
            silent_at_us: AtomicU64::new(0),
            has_trial: AtomicBool::new(false),
        }
    }

    /// The server answers a request.
    pub fn record(&self, now: Instant) {
        self.answered_at_us.store(self.us_at(now), Ordering::Relaxed);
    }

    /// The server has not answered a look-up in all of its time, nor any other request in the second half of it.
    pub fn record_silence(&self, now: Instant) {
        self.silent_at_us.store(self.us_at(now), Ordering::Relaxed);
    }

    /// Whether the server has left a look-up unanswered not long ago, and has answered nothing since.
    pub fn is_silent(&self, now: Instant) -> bool {
        let silent_at = self.silent_at_us.load(Ordering::Relaxed);
        silent_at > 0
            && self.answered_at_us.load(Ordering::Relaxed) <= silent_at
            && now < self.created_at + Duration::from_micros(silent_at) + SILENCE_TTL
    }

    /// Claims the one trial of a server that is remembered as silent, if another look-up has not.
    pub fn claim_trial(self: &Arc<Self>) -> Option<SilenceTrial> {
        let is_first = !self.has_trial.swap(true, Ordering::Relaxed);
        is_first.then(|| SilenceTrial(Arc::clone(self)))
    }

    fn us_at(&self, now: Instant) -> u64 {
        let us = now.saturating_duration_since(self.created_at).as_micros();
        u64::try_from(us).unwrap_or(u64::MAX).max(1)
    }

    /// Whether the server is busy rather than failing, for a request that was sent at `sent_at` and has no
    /// answer: whether it answered others in the second half of that time. What it answered before may have
    /// been the last that it did.
    pub fn is_busy(&self, sent_at: Instant, now: Instant) -> bool {
        let half = now.saturating_duration_since(sent_at) / 2;
        let us = self.answered_at_us.load(Ordering::Relaxed);
        us > 0 && self.created_at + Duration::from_micros(us) >= sent_at + half
    }
}

/// When a request was sent, and to which server.
#[derive(Debug, Default)]
pub struct Progress {
    sent: Mutex<Option<(Instant, Arc<LastAnswer>)>>,
    /// The span that it belongs to.
    trace: OnceLock<TraceContext>,
}

impl Progress {
    /// Names the span that it belongs to, if it is sampled.
    pub fn set_trace(&self, span: TraceContext) {
        // There is one leader.
        let _ = self.trace.set(span);
    }

    /// That span.
    pub fn trace(&self) -> Option<TraceContext> {
        self.trace.get().copied()
    }

    /// It is being sent, perhaps again.
    pub fn record_sent(&self, now: Instant, to: &Arc<LastAnswer>) {
        *self.sent.lock() = Some((now, Arc::clone(to)));
    }

    /// When it was sent last; `None` while it waits in a queue.
    pub fn sent_at(&self) -> Option<Instant> {
        self.sent.lock().as_ref().map(|(sent_at, _)| *sent_at)
    }

    /// Whether the server that has it answers others.
    pub fn is_server_busy(&self, now: Instant) -> bool {
        self.sent.lock().as_ref().is_some_and(|(sent_at, last)| last.is_busy(*sent_at, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_answers_others_is_busy_and_one_that_has_stopped_is_not() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let last = Arc::new(LastAnswer::new(begin));
        let progress = Progress::default();
        assert!(!progress.is_server_busy(at(10)) && progress.sent_at().is_none());
        progress.record_sent(at(100), &last);
        assert_eq!(progress.sent_at(), Some(at(100)));
        assert!(!progress.is_server_busy(at(200)), "it has never answered");
        for (answered, busy) in [(50, false), (100, false), (149, false), (150, true), (200, true)] {
            last.record(at(answered));
            assert_eq!(progress.is_server_busy(at(200)), busy, "{answered}");
        }
        progress.record_sent(at(300), &last);
        assert!(!progress.is_server_busy(at(400)), "that was before");
    }

    #[test]
    fn a_silence_is_remembered_for_some_seconds_or_until_the_next_answer() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let last = LastAnswer::new(begin);
        assert!(!last.is_silent(at(0)), "nothing is known yet");
        last.record(at(1_000));
        last.record_silence(at(5_000));
        for (ms, is_silent) in [(5_000, true), (14_999, true), (15_000, false)] {
            assert_eq!(last.is_silent(at(ms)), is_silent, "{ms}");
        }
        last.record_silence(at(20_000));
        assert!(last.is_silent(at(20_001)));
        last.record(at(20_002));
        assert!(!last.is_silent(at(20_003)), "it has answered");
    }

    #[test]
    fn one_look_up_at_a_time_is_on_trial() {
        let last = Arc::new(LastAnswer::new(Instant::now()));
        let trial = last.claim_trial();
        assert!(trial.is_some() && last.claim_trial().is_none() && last.claim_trial().is_none());
        drop(trial);
        assert!(last.claim_trial().is_some(), "it is over, however it ended");
    }

    #[test]
    fn an_answer_at_time_zero_counts() {
        let begin = Instant::now();
        let last = LastAnswer::new(begin);
        last.record(begin);
        assert!(last.is_busy(begin, begin));
    }
}
