//! By how much the clocks of callers and gateway differ, as far as tokens show it.
//!
//! A token says when it was issued (`iat`). Rails does not check that, so neither does the gateway; but with
//! a slow clock here, tokens live longer than they should, and with a fast one they expire too soon.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// A token that was issued this many seconds in the future, or more, is logged.
const LOGGED_FROM: i64 = 5;
/// Seconds: 10 years. A larger difference counts as this.
const MAX_SKEW: i64 = 10 * 365 * 86_400;
const UNKNOWN: i64 = i64::MIN;

/// The clock skew of the issuers of one kind of token.
///
/// A token is issued before it arrives, and some are sent more than once; so the largest difference of
/// many is the closest to that of the clocks.
#[derive(Debug)]
pub struct ClockSkew {
    /// The minute (Unix time) of `largest`.
    minute: AtomicI64,
    largest: AtomicI64,
    /// The largest of the last earlier minute with tokens.
    previous: AtomicI64,
    is_unreported: AtomicBool,
}

impl Default for ClockSkew {
    fn default() -> Self {
        let unknown = || AtomicI64::new(UNKNOWN);
        Self {
            minute: unknown(),
            largest: unknown(),
            previous: unknown(),
            is_unreported: AtomicBool::new(false),
        }
    }
}

impl ClockSkew {
    /// Records a token with a valid signature, issued at `iat` and verified at `now`, both in Unix seconds.
    pub(super) fn observe(&self, iat: i64, now: i64) {
        let ahead = iat.saturating_sub(now).clamp(-MAX_SKEW, MAX_SKEW);
        let (minute, last) = (now / 60, self.minute.load(Ordering::Relaxed));
        let is_new_minute = minute != last
            && self.minute.compare_exchange(last, minute, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_new_minute {
            self.previous.store(self.largest.swap(ahead, Ordering::Relaxed), Ordering::Relaxed);
        }
        let largest = self.largest.fetch_max(ahead, Ordering::Relaxed);
        if ahead >= LOGGED_FROM && (is_new_minute || largest < LOGGED_FROM) {
            self.is_unreported.store(true, Ordering::Relaxed);
        }
    }

    /// Seconds by which the callers' clock is at least ahead of this machine's (negative: at most behind),
    /// from the last two minutes with tokens.
    pub fn seconds(&self) -> Option<i64> {
        let largest =
            [&self.largest, &self.previous].into_iter().map(|seconds| seconds.load(Ordering::Relaxed)).max();
        largest.filter(|seconds| *seconds != UNKNOWN)
    }

    /// [`Self::seconds`], once for each minute with a token that was issued 5 seconds or more in the future.
    pub fn take_unreported(&self) -> Option<i64> {
        let is_unreported =
            self.is_unreported.load(Ordering::Relaxed) && self.is_unreported.swap(false, Ordering::Relaxed);
        if is_unreported { self.seconds() } else { None }
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
            (i64::MAX, NOW + 3_600, MAX_SKEW),
            (i64::MIN, NOW + 3_600, MAX_SKEW),
        ] {
            skew.observe(issued, now);
            assert_eq!(skew.seconds(), Some(seconds), "{issued} {now}");
        }
    }

    #[test]
    fn a_token_from_the_future_is_reported_once_a_minute() {
        let skew = ClockSkew::default();
        for (ahead, now, reported) in [
            (4, NOW, None),
            (-90, NOW, None),
            (5, NOW + 1, Some(5)),
            (50, NOW + 2, None),
            (7, NOW + 60, Some(50)),
            (6, NOW + 61, None),
            (0, NOW + 120, None),
        ] {
            skew.observe(now + ahead, now);
            assert_eq!(skew.take_unreported(), reported, "{ahead} at {now}");
            assert_eq!(skew.take_unreported(), None);
        }
    }
}
