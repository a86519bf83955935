//! How long to wait before the next connection.

use std::time::{Duration, Instant};

use super::counters::ConnectionEvent;

const FIRST: Duration = Duration::from_millis(50);
/// The longest pause of most tasks.
pub(super) const LONGEST: Duration = Duration::from_secs(2);
/// The longest pause of who hears the others. README.md promises how soon a purge is heard by a gateway that can reach
/// Valkey, and one can reach a new master before it has tried.
pub(super) const LONGEST_OF_READER: Duration = Duration::from_millis(500);
/// How often a connection that worked may be replaced without a pause.
const FREE_INTERVAL: Duration = Duration::from_secs(1);

/// Counts failures. The first reconnection after a connection that has worked comes at once: until then, nothing is
/// heard.
#[derive(Debug)]
pub(super) struct Backoff {
    longest: Duration,
    failures: u32,
    is_open: bool,
    has_worked: bool,
    free_at: Option<Instant>,
    /// When the attempt began, or the connection last did what it is for.
    waiting_since: Option<Instant>,
}

impl Backoff {
    /// No pause is longer than `longest`.
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, failures: 0, is_open: false, has_worked: false, free_at: None, waiting_since: None }
    }

    /// An attempt to connect begins.
    pub(super) fn begins(&mut self, now: Instant) {
        self.waiting_since = Some(now);
    }

    /// The connection is open, and the server is one to follow.
    pub(super) fn opened(&mut self) {
        self.is_open = true;
    }

    /// The connection does what it is for.
    pub(super) fn worked(&mut self, now: Instant) {
        self.has_worked = true;
        self.failures = 0;
        self.waiting_since = Some(now);
    }

    /// Whether the last failure was the first one in a row.
    pub(super) fn is_first(&self) -> bool {
        self.failures <= 1
    }

    /// What kind of failure it was, and the pause after it. `jitter` from 0 to 1 spreads the gateways of a fleet. The time
    /// since the attempt began, or since the connection last worked, is part of the pause. But not all of it: a server that
    /// is silent is so to all gateways at the same time, which would come back together.
    pub(super) fn failed(&mut self, now: Instant, jitter: f64) -> (ConnectionEvent, Duration) {
        let event = if self.is_open { ConnectionEvent::Lost } else { ConnectionEvent::Failed };
        let is_free = self.has_worked && self.free_at.is_none_or(|at| now >= at + FREE_INTERVAL);
        (self.is_open, self.has_worked) = (false, false);
        if is_free {
            self.free_at = Some(now);
            return (event, Duration::ZERO);
        }
        let longest = FIRST.saturating_mul(2_u32.saturating_pow(self.failures + 1)).min(self.longest);
        self.failures = self.failures.saturating_add(1).min(30);
        let waited = self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let pause = (FIRST + longest.saturating_sub(FIRST).mul_f64(jitter)).saturating_sub(waited);
        (event, pause.max(FIRST.mul_f64(jitter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reconnection_comes_at_once_and_others_with_growing_pauses() {
        let (mut backoff, begin) = (Backoff::new(LONGEST), Instant::now());
        let ms = Duration::from_millis;
        let mut pause = |has_worked: bool, at, jitter| {
            backoff.begins(begin + ms(at));
            if has_worked {
                backoff.worked(begin + ms(at));
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
        let (mut backoff, now) = (Backoff::new(LONGEST), Instant::now());
        backoff.opened();
        let events = [(); 2].map(|()| backoff.failed(now, 0.0).0);
        assert_eq!(events, [ConnectionEvent::Lost, ConnectionEvent::Failed]);
    }

    #[test]
    fn the_time_since_the_attempt_began_is_part_of_the_pause() {
        let (begin, ms) = (Instant::now(), Duration::from_millis);
        // How long after the attempt began, or after the last reply, it failed; and the pause after that.
        for (waited, expected) in [(0, 500), (1, 499), (449, 51), (499, 50), (1_000, 50)] {
            let mut backoff = Backoff::new(LONGEST_OF_READER);
            (0..10).for_each(|_| _ = backoff.failed(begin, 1.0));
            backoff.begins(begin + ms(7));
            assert_eq!(backoff.failed(begin + ms(7 + waited), 1.0).1, ms(expected), "{waited}");
        }
        for (waited, expected) in [(0, 100), (40, 60), (690, 50)] {
            let mut backoff = Backoff::new(LONGEST_OF_READER);
            backoff.worked(begin);
            assert_eq!(backoff.failed(begin, 1.0).1, ms(0));
            backoff.begins(begin);
            backoff.worked(begin + ms(300));
            assert_eq!(backoff.failed(begin + ms(300 + waited), 1.0).1, ms(expected), "{waited}");
        }
    }
}
