//! Until when a request may wait, be sent and be answered.

use std::time::{Duration, Instant};

use super::options::{SendOptions, WaitPolicy};
use crate::clock::Clock;
use crate::upstream::settings::ClassSettings;

/// How long before its expiry a token stops waiting: expiry is counted in whole seconds, and Rails has a clock
/// of its own.
const EXPIRY_MARGIN: Duration = Duration::from_secs(2);

/// Until when a request may wait, be sent and be answered.
pub(super) struct Deadlines {
    /// Until when it may wait in the hold queue; `None` if it may not.
    hold_until: Option<Instant>,
    /// Whether it does not wait, since others have waited in vain, but tries to connect once.
    pub(super) tries_once: bool,
    /// When its credential expires, with a margin.
    pub(super) credential_expires: Option<Instant>,
    /// When all of the response has to be there: `total_timeout` after its arrival.
    pub(super) end: Option<Instant>,
    pub(super) total_timeout: Duration,
}

impl Deadlines {
    /// `is_known_away` says that others have waited for Rails in vain.
    pub(super) fn new(options: &SendOptions, settings: &ClassSettings, is_known_away: bool) -> Self {
        let now = Clock::System.now();
        let received_at = options.received_at.unwrap_or(now);
        let total_timeout = settings.total_timeout;
        let end = (!total_timeout.is_zero()).then(|| received_at + total_timeout);
        // A token may say that it expires in a billion years.
        let credential_expires = options
            .credential_expires_in
            .and_then(|left| now.checked_add(left.saturating_sub(EXPIRY_MARGIN)));
        let has_hold = options.wait_policy == WaitPolicy::ForRails && !settings.hold.is_zero();
        let tries_once = has_hold && is_known_away;
        let hold = if tries_once { Duration::ZERO } else { settings.hold };
        let hold_until = has_hold.then(|| received_at + hold);
        Self { hold_until, tries_once, credential_expires, end, total_timeout }
    }

    /// Until when it is of use to send the request.
    fn send_by(&self) -> Option<Instant> {
        [self.credential_expires, self.end].into_iter().flatten().min()
    }

    /// Whether it may wait in the hold queue now.
    pub(super) fn may_hold(&self) -> bool {
        let now = Clock::System.now();
        self.hold_until.is_some_and(|hold_until| now < hold_until)
            && self.send_by().is_none_or(|send_by| now < send_by)
    }

    /// Whether it is still of use to send the request.
    pub(super) fn may_send(&self) -> bool {
        self.send_by().is_none_or(|send_by| Clock::System.now() < send_by)
    }

    /// Whether it could wait in the hold queue, and that time is over.
    pub(super) fn has_hold_ended(&self) -> bool {
        self.hold_until.is_some_and(|hold_until| Clock::System.now() >= hold_until)
    }

    /// Whether it may wait in the hold queue at all.
    pub(super) fn has_hold(&self) -> bool {
        self.hold_until.is_some()
    }

    /// Whether its total timeout is over. A token about to expire may still be sent at once.
    pub(super) fn has_total_ended(&self) -> bool {
        self.end.is_some_and(|end| Clock::System.now() >= end)
    }

    /// Awaits `wait` for as long as the request may be held.
    pub(super) async fn within_hold<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let until = [self.hold_until, self.send_by()].into_iter().flatten().min()?;
        tokio::time::timeout_at(until.into(), wait).await.ok()
    }

    /// The same for one attempt to connect, which has more time if the request tries once.
    pub(super) async fn within_hold_or_once<T>(&self, attempt: impl Future<Output = T>) -> Option<T> {
        if self.tries_once { self.within_send_by(attempt).await } else { self.within_hold(attempt).await }
    }

    /// Awaits `wait` for as long as it is of use to send the request.
    pub(super) async fn within_send_by<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        match self.send_by() {
            Some(send_by) => tokio::time::timeout_at(send_by.into(), wait).await.ok(),
            None => Some(wait.await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WaitPolicy::{ForPermit, ForRails};

    fn settings(hold: u64, total: u64) -> ClassSettings {
        let (total_timeout, hold) = (Duration::from_secs(total), Duration::from_secs(hold));
        ClassSettings { total_timeout, hold, ..crate::upstream::settings::DEFAULT_CLASS }
    }

    fn deadlines(wait_policy: WaitPolicy, expires_in: Option<u64>, hold: u64, total: u64) -> Deadlines {
        let credential_expires_in = expires_in.map(Duration::from_secs);
        let options = SendOptions { wait_policy, credential_expires_in, ..SendOptions::default() };
        Deadlines::new(&options, &settings(hold, total), false)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_held_until_the_first_of_its_deadlines() {
        for (wait_policy, expires_in, hold, total, held) in [
            (ForRails, None, 5, 0, Some(5)),
            (ForRails, Some(30), 5, 0, Some(5)),
            (ForRails, Some(u64::MAX), 5, 0, Some(5)),
            (ForRails, Some(5), 5, 0, Some(3)),
            (ForRails, None, 5, 2, Some(2)),
            (ForRails, Some(2), 5, 0, None),
            (ForRails, Some(0), 5, 0, None),
            (ForRails, None, 0, 0, None),
            (ForPermit, None, 5, 0, None),
        ] {
            let deadlines = deadlines(wait_policy, expires_in, hold, total);
            let shown = format!("{wait_policy:?} {expires_in:?} {hold} {total}");
            assert_eq!(deadlines.may_hold(), held.is_some(), "{shown}");
            if let Some(held) = held {
                let begun = tokio::time::Instant::now();
                assert_eq!(deadlines.within_hold(std::future::pending::<()>()).await, None);
                assert_eq!(begun.elapsed().as_secs(), held, "{shown}");
                assert!(!deadlines.may_hold(), "{shown}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_needs_no_wait_is_sent_even_after_its_send_by() {
        let late = deadlines(ForRails, Some(1), 5, 0);
        assert_eq!(late.within_send_by(async { 7 }).await, Some(7));
        assert_eq!(late.within_send_by(std::future::pending::<()>()).await, None);
        assert!(!late.has_total_ended());
        let over = deadlines(ForRails, None, 5, 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(over.has_total_ended());
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_count_from_the_arrival_of_the_request() {
        for (hold, total, left) in [(5, 0, 2), (5, 4, 1), (1, 4, 0), (5, 2, 0)] {
            let arrived = Clock::System.now();
            tokio::time::advance(Duration::from_secs(3)).await;
            let options =
                SendOptions { wait_policy: ForRails, received_at: Some(arrived), ..SendOptions::default() };
            let deadlines = Deadlines::new(&options, &settings(hold, total), false);
            let begun = tokio::time::Instant::now();
            deadlines.within_hold(std::future::pending::<()>()).await;
            assert_eq!(begun.elapsed().as_secs(), left, "{hold} {total}");
            assert_eq!(deadlines.has_total_ended(), total > 0 && left + 3 >= total, "{hold} {total}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_known_outage_a_request_tries_once_instead_of_waiting() {
        let options = SendOptions { wait_policy: ForRails, ..SendOptions::default() };
        let deadlines = Deadlines::new(&options, &settings(5, 4), true);
        assert!(!deadlines.may_hold() && deadlines.tries_once);
        assert_eq!(deadlines.within_hold(std::future::pending::<()>()).await, None, "it does not wait");
        let second = tokio::time::sleep(Duration::from_secs(1));
        assert_eq!(deadlines.within_hold_or_once(second).await, Some(()));
        assert_eq!(deadlines.within_hold_or_once(std::future::pending::<()>()).await, None, "until its end");
        // A request that may not wait in any case is treated as before.
        assert!(!Deadlines::new(&SendOptions::default(), &settings(5, 4), true).tries_once);
        assert!(!Deadlines::new(&options, &settings(0, 4), true).tries_once);
    }
}
