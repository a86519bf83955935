//! How long to wait before the next connection.

use std::time::{Duration, Instant};

use super::counters::ConnectionEvent;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);
/// How often a connection that worked may be replaced without a pause.
const FREE_INTERVAL: Duration = Duration::from_secs(1);

/// Counts failures. The first reconnection after a connection that has worked comes at once: until then, nothing is
/// heard.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    is_open: bool,
    has_worked: bool,
    free_at: Option<Instant>,
}

impl Backoff {
    /// The connection is open, and the server is one to follow.
    pub(super) fn opened(&mut self) {
        self.is_open = true;
    }

    /// The connection does what it is for.
    pub(super) fn worked(&mut self) {
        self.has_worked = true;
        self.failures = 0;
    }

    /// Whether the last failure was the first one in a row.
    pub(super) fn is_first(&self) -> bool {
        self.failures <= 1
    }

    /// What kind of failure it was, and the pause after it. `jitter` from 0 to 1 spreads the gateways of a fleet.
    pub(super) fn failed(&mut self, now: Instant, jitter: f64) -> (ConnectionEvent, Duration) {
        let event = if self.is_open { ConnectionEvent::Lost } else { ConnectionEvent::Failed };
        let is_free = self.has_worked && self.free_at.is_none_or(|at| now >= at + FREE_INTERVAL);
        (self.is_open, self.has_worked) = (false, false);
        if is_free {
            self.free_at = Some(now);
            return (event, Duration::ZERO);
        }
        let longest = FIRST.saturating_mul(2_u32.saturating_pow(self.failures + 1)).min(LONGEST);
        self.failures = self.failures.saturating_add(1).min(30);
        (event, FIRST + longest.saturating_sub(FIRST).mul_f64(jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reconnection_comes_at_once_and_others_with_growing_pauses() {
        let (mut backoff, begin) = (Backoff::default(), Instant::now());
        let ms = Duration::from_millis;
        let mut pause = |has_worked: bool, at, jitter| {
            if has_worked {
                backoff.worked();
            }
            backoff.failed(begin + ms(at), jitter).1
        };
        assert_eq!([pause(false, 0, 0.0), pause(false, 0, 1.0)], [ms(50), ms(200)]);
        assert_eq!(pause(true, 0, 1.0), ms(0));
        let growing: Vec<_> = (0..7).map(|_| pause(false, 0, 1.0)).collect();
        assert_eq!(growing, [100, 200, 400, 800, 1_600, 2_000, 2_000].map(ms));
        assert!((0..100).all(|_| pause(false, 0, 1.0) == LONGEST && pause(false, 0, 0.0) == FIRST));
        // One that works for a moment, again and again, is no reason to run in circles.
        assert_eq!([pause(true, 999, 0.0), pause(true, 1_000, 0.0)], [ms(50), ms(0)]);
    }

    #[test]
    fn only_what_was_open_is_lost() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        backoff.opened();
        let events = [(); 2].map(|()| backoff.failed(now, 0.0).0);
        assert_eq!(events, [ConnectionEvent::Lost, ConnectionEvent::Failed]);
    }
}
