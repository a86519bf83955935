//! By how much the clocks of callers and gateway differ, as far as their tokens tell.
//!
//! A token says when it was issued (`iat`). Rails does not look at that, so neither does the verdict on the
//! token; but a clock that is slow here makes tokens live longer than they should, and one that is fast
//! makes them expire too soon.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// From how many seconds on a token that was issued in the future is told to the log.
const TOLD_FROM: i64 = 5;
/// What no difference of clocks is taken to exceed: 10 years.
const MOST: i64 = 10 * 365 * 86_400;
const NONE: i64 = i64::MIN;

/// What one kind of token says of the clocks.
///
/// A token is issued before it arrives, and some are sent more than once; so the largest difference of
/// many is the nearest to that of the clocks.
#[derive(Debug)]
pub struct ClockSkew {
    /// Number of the minute that `largest` is of.
    minute: AtomicI64,
    largest: AtomicI64,
    /// The one of the minute before in which there were tokens.
    before: AtomicI64,
    is_untold: AtomicBool,
}

impl Default for ClockSkew {
    fn default() -> Self {
        let none = || AtomicI64::new(NONE);
        Self { minute: none(), largest: none(), before: none(), is_untold: AtomicBool::new(false) }
    }
}

impl ClockSkew {
    /// Notes a token with the right signature that was issued at `iat` and is judged at `now`, both in Unix
    /// seconds.
    pub(super) fn observe(&self, iat: i64, now: i64) {
        let ahead = iat.saturating_sub(now).clamp(-MOST, MOST);
        let (minute, was) = (now / 60, self.minute.load(Ordering::Relaxed));
        let is_next = minute != was
            && self.minute.compare_exchange(was, minute, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_next {
            self.before.store(self.largest.swap(ahead, Ordering::Relaxed), Ordering::Relaxed);
        }
        let largest = self.largest.fetch_max(ahead, Ordering::Relaxed);
        if ahead >= TOLD_FROM && (is_next || largest < TOLD_FROM) {
            self.is_untold.store(true, Ordering::Relaxed);
        }
    }

    /// By how many seconds the callers' clock is ahead of this machine's, at least (negative: behind, at
    /// most), by the tokens of the last two minutes in which any came.
    pub fn seconds(&self) -> Option<i64> {
        let largest =
            [&self.largest, &self.before].into_iter().map(|seconds| seconds.load(Ordering::Relaxed)).max();
        largest.filter(|seconds| *seconds != NONE)
    }

    /// The difference, once for each minute in which a token was issued 5 seconds or more in the future.
    pub fn to_tell(&self) -> Option<i64> {
        let is_untold =
            self.is_untold.load(Ordering::Relaxed) && self.is_untold.swap(false, Ordering::Relaxed);
        if is_untold { self.seconds() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000 * 60;

    #[test]
    fn the_largest_difference_of_two_minutes_counts() {
        let skew = ClockSkew::default();
        assert_eq!(skew.seconds(), None);
        for (issued, now, seconds) in [
            (NOW - 30, NOW, -30),
            (NOW - 1, NOW, -1),
            (NOW - 40, NOW + 1, -1),
            (NOW + 40, NOW + 60, -1),
            (NOW + 100, NOW + 120, -20),
            (NOW + 3_602, NOW + 3_600, 2),
            (i64::MAX, NOW + 3_600, MOST),
            (i64::MIN, NOW + 3_600, MOST),
        ] {
            skew.observe(issued, now);
            assert_eq!(skew.seconds(), Some(seconds), "{issued} {now}");
        }
    }

    #[test]
    fn a_token_from_the_future_is_told_once_a_minute() {
        let skew = ClockSkew::default();
        for (ahead, now, told) in [
            (4, NOW, None),
            (-90, NOW, None),
            (5, NOW + 1, Some(5)),
            (50, NOW + 2, None),
            (7, NOW + 60, Some(50)),
            (6, NOW + 61, None),
            (0, NOW + 120, None),
        ] {
            skew.observe(now + ahead, now);
            assert_eq!(skew.to_tell(), told, "{ahead} at {now}");
            assert_eq!(skew.to_tell(), None);
        }
    }
}
