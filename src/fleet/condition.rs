//! Whether this gateway hears the fleet, and the fleet hears it. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

use crate::counters::label;

/// What a gateway can promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum FleetPhase {
    /// It has not heard anything since it began: answers are kept for `alone_ttl` only, and what it brought from before
    /// is doubted.
    Joining = 0,
    /// It hears what the others tell, and they hear what it tells.
    Following = 1,
    /// It hears the others, and cannot tell them anything: Valkey is full, or does not let it write. The others may give old answers.
    Untold = 2,
    /// It does not hear the others: answers are kept for `alone_ttl` only.
    Alone = 3,
}

impl FleetPhase {
    /// In the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Joining, Self::Following, Self::Untold, Self::Alone];

    /// In metrics, logs and on the status page.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Following => "following",
            Self::Untold => "untold",
            Self::Alone => "alone",
        }
    }
}

label!(FleetPhase);

/// How long it takes until all gateways are back once Valkey answers again: each tries every two seconds, and says hello.
const RETURN_TIME: Duration = Duration::from_secs(10);

/// When all was heard last.
#[derive(Debug, Default)]
pub(super) struct Condition {
    /// The end of the last poll that was complete.
    complete_at: Option<Instant>,
    /// Since when all is heard and dropped; `None` while it is not.
    following_since: Option<Instant>,
    /// Who is not following yet does so once so many purges are dropped: those that had been heard when all was.
    catches_up_to: Option<u64>,
}

impl Condition {
    /// A poll has brought all that there is; so many purges were `heard` and `dropped` by now. Returns whether the gateway is
    /// not alone any more: for that, what it had not heard while it was has to be dropped, too. What comes later need not be,
    /// or a gateway that always drops something would stay alone.
    pub(super) fn complete(&mut self, now: Instant, (heard, dropped): (u64, u64)) -> bool {
        self.complete_at = Some(now);
        if self.following_since.is_some() {
            return false;
        }
        let begins = dropped >= *self.catches_up_to.get_or_insert(heard);
        self.following_since = begins.then_some(now);
        begins
    }

    /// Returns whether the gateway is alone from now on.
    pub(super) fn check(&mut self, now: Instant, alone_after: Duration) -> bool {
        if self.silent_for(now).is_some_and(|silent| silent < alone_after) {
            return false;
        }
        self.catches_up_to = None;
        self.following_since.take().is_some()
    }

    /// How long ago all was heard; `None` if never.
    pub(super) fn silent_for(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.complete_at?))
    }

    /// Whether the others have had the time to come back that were away for the same reason: before, that one of them is silent
    /// means nothing. While the gateway was alone, `alone_ttl` has bounded what was used.
    pub(super) fn judges_silence(&self, now: Instant) -> bool {
        self.following_since.is_some_and(|since| now.saturating_duration_since(since) >= RETURN_TIME)
    }

    /// `untold_for` is how long the oldest purge has waited for Valkey.
    pub(super) fn phase(&self, untold_for: Option<Duration>, alone_after: Duration) -> FleetPhase {
        match (self.complete_at, self.following_since.is_some()) {
            (None, _) => FleetPhase::Joining,
            (Some(_), false) => FleetPhase::Alone,
            (Some(_), true) if untold_for.is_some_and(|waited| waited >= alone_after) => FleetPhase::Untold,
            (Some(_), true) => FleetPhase::Following,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(2);

    #[test]
    fn a_gateway_is_alone_from_alone_after_on_until_all_is_heard_and_dropped() {
        let (mut condition, begin) = (Condition::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(condition.phase(None, AFTER), FleetPhase::Joining);
        assert!(!condition.check(at(9_000), AFTER), "it has not been anything else");
        assert!(condition.complete(at(10_000), (0, 0)));
        assert_eq!(condition.phase(None, AFTER), FleetPhase::Following);
        assert!(!condition.complete(at(10_500), (1, 0)), "it is still following while it drops something");
        assert!(!condition.check(at(12_499), AFTER) && condition.check(at(12_500), AFTER));
        assert_eq!(condition.phase(None, AFTER), FleetPhase::Alone);
        assert!(!condition.check(at(13_000), AFTER), "it is told once");
        assert!(!condition.complete(at(14_000), (5, 2)));
        assert_eq!(condition.phase(None, AFTER), FleetPhase::Alone, "something is not dropped yet");
        assert_eq!(condition.silent_for(at(14_001)), Some(Duration::from_millis(1)));
        assert!(!condition.check(at(15_999), AFTER));
        assert!(!condition.complete(at(15_999), (9, 4)));
        assert!(
            !condition.check(at(17_999), AFTER),
            "silent again: what is missed now has to be dropped, too"
        );
        assert!(!condition.complete(at(18_000), (20, 5)));
        assert!(!condition.complete(at(18_500), (30, 19)));
        assert!(condition.complete(at(19_000), (40, 20)), "though it has 20 more to drop");
        assert_eq!(condition.phase(None, AFTER), FleetPhase::Following);
    }

    #[test]
    fn who_is_heard_by_nobody_says_so() {
        let (mut condition, now) = (Condition::default(), Instant::now());
        let short = AFTER.saturating_sub(Duration::from_millis(1));
        assert_eq!(condition.phase(Some(AFTER), AFTER), FleetPhase::Joining);
        condition.complete(now, (0, 0));
        assert_eq!(condition.phase(Some(short), AFTER), FleetPhase::Following);
        assert_eq!(condition.phase(Some(AFTER), AFTER), FleetPhase::Untold);
        condition.check(now + AFTER, AFTER);
        assert_eq!(condition.phase(Some(AFTER), AFTER), FleetPhase::Alone);
    }
    #[test]
    fn silence_is_judged_from_ten_seconds_after_the_gateway_was_alone() {
        let (mut condition, begin) = (Condition::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        assert!(!condition.judges_silence(at(60_000)), "nothing was heard");
        condition.complete(at(60_000), (0, 0));
        condition.complete(at(69_999), (0, 0));
        assert!(!condition.judges_silence(at(69_999)) && condition.judges_silence(at(70_000)));
        assert!(condition.check(at(72_000), AFTER) && !condition.judges_silence(at(72_000)));
        condition.complete(at(80_000), (0, 0));
        assert!(!condition.judges_silence(at(89_999)) && condition.judges_silence(at(90_000)));
    }
}
