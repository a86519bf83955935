//! How far a request to Rails has come, for callers who wait for its answer: they have to tell a Rails that
//! fails from one that is busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// When a server has answered last.
#[derive(Debug)]
pub struct LastAnswer {
    since: Instant,
    /// Microseconds after that; 0 while there was none.
    at_us: AtomicU64,
}

impl LastAnswer {
    /// None so far.
    pub fn new(now: Instant) -> Self {
        Self { since: now, at_us: AtomicU64::new(0) }
    }

    /// There is one now.
    pub fn is_now(&self, now: Instant) {
        let us = now.saturating_duration_since(self.since).as_micros();
        self.at_us.store(u64::try_from(us).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    /// Whether the server is busy and does not fail, as one sees who has asked it at `asked` and has no
    /// answer: whether it answered others in the second half of that time. What it answered before may have
    /// been the last that it did.
    pub fn is_busy(&self, asked: Instant, now: Instant) -> bool {
        let half = now.saturating_duration_since(asked) / 2;
        let at_us = self.at_us.load(Ordering::Relaxed);
        at_us > 0 && self.since + Duration::from_micros(at_us) >= asked + half
    }
}

/// Where a request is.
#[derive(Debug, Default)]
pub struct Progress {
    sent: Mutex<Option<(Instant, Arc<LastAnswer>)>>,
}

impl Progress {
    /// It is being sent to a server.
    pub fn is_sent(&self, now: Instant, to: &Arc<LastAnswer>) {
        *self.sent.lock() = Some((now, Arc::clone(to)));
    }

    /// When it was sent last; not while it waits for its turn.
    pub fn sent(&self) -> Option<Instant> {
        self.sent.lock().as_ref().map(|(sent, _)| *sent)
    }

    /// Whether the server that has it answers others.
    pub fn is_busy(&self, now: Instant) -> bool {
        self.sent.lock().as_ref().is_some_and(|(sent, last)| last.is_busy(*sent, now))
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
        assert!(!progress.is_busy(at(10)) && progress.sent().is_none());
        progress.is_sent(at(100), &last);
        assert_eq!(progress.sent(), Some(at(100)));
        assert!(!progress.is_busy(at(200)), "it has never answered");
        for (answered, busy) in [(50, false), (100, false), (149, false), (150, true), (200, true)] {
            last.is_now(at(answered));
            assert_eq!(progress.is_busy(at(200)), busy, "{answered}");
        }
        progress.is_sent(at(300), &last);
        assert!(!progress.is_busy(at(400)), "that was before");
    }

    #[test]
    fn an_answer_at_the_very_beginning_is_one() {
        let begin = Instant::now();
        let last = LastAnswer::new(begin);
        last.is_now(begin);
        assert!(last.is_busy(begin, begin));
    }
}
