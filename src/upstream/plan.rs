//! What a request may go through on its way to Rails, and what it went through.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HeaderMap;

use super::lanes;
use crate::clock::Clock;
use crate::progress::Progress;
use crate::route::Class;

/// What is known of a request that it does not say itself.
#[derive(Clone, Debug)]
pub struct Plan {
    /// With which others it shares what Rails is asked at one time.
    pub class: Class,
    /// Asking changes nothing, so that it may be sent again.
    pub is_read: bool,
    /// Up to so many bytes of the answer are read before it is handed on: as long as nobody has a part of
    /// it, it may still be sent again.
    pub collect: Option<usize>,
    /// For what it may wait before it is sent.
    pub may_wait: MayWait,
    /// Where those look who wait for its answer.
    pub progress: Option<Arc<Progress>>,
    /// Whether the answer is that of the instance's own state, which takes hardly anything of what the others
    /// need.
    pub is_check: bool,
    /// When its caller came, if it has waited for something else before: its time counts from there.
    pub since: Option<Instant>,
    /// How long the credential in it is good, if not for ever.
    pub expires_in: Option<Duration>,
    /// Signs it, each time it is sent: what waits would be signed too early.
    pub signer: Option<Signer>,
}

/// For what a request may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MayWait {
    /// For nothing: its caller has an answer already, or wants to know whether Rails is there.
    #[default]
    No,
    /// For its turn, while Rails is busy. Not for a Rails that is away: its caller has an answer for that.
    ForItsTurn,
    /// For its turn, and for Rails to be back.
    ForRails,
}

/// Puts a credential into the headers of a request.
#[derive(Clone)]
pub struct Signer(pub Arc<dyn Fn(&mut HeaderMap) + Send + Sync>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            class: Class::Other,
            is_read: false,
            collect: None,
            may_wait: MayWait::No,
            progress: None,
            is_check: false,
            since: None,
            expires_in: None,
            signer: None,
        }
    }
}

/// What a request went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// The server that it was sent to at last.
    pub server: Option<Arc<str>>,
    /// How long it waited before it was sent.
    pub waited: Duration,
    /// Whether it was sent again.
    pub is_resent: bool,
}

/// A token waits until so long before its end: it is counted in whole seconds, and Rails has a clock of
/// its own.
const BEFORE_EXPIRY: Duration = Duration::from_secs(2);

/// Until when what may happen.
pub(super) struct Limits {
    /// Until when it may wait for Rails to be back; `None` if it does not.
    held: Option<Instant>,
    /// It does not wait, since others have waited in vain, but tries whether Rails is back.
    pub(super) is_brief: bool,
    /// When its credential is worth nothing any more.
    pub(super) expires: Option<Instant>,
    /// When all of the answer has to be there, and how long that is from its beginning.
    pub(super) end: Option<Instant>,
    pub(super) total: Duration,
}

impl Limits {
    /// `is_away` says that others have waited for Rails in vain.
    pub(super) fn new(plan: &Plan, settings: &lanes::Settings, is_away: bool) -> Self {
        let now = Clock::System.now();
        let begun = plan.since.unwrap_or(now);
        let total = settings.total_timeout;
        let end = (!total.is_zero()).then(|| begun + total);
        // A token may say that it expires in a billion years.
        let expires = plan.expires_in.and_then(|left| now.checked_add(left.saturating_sub(BEFORE_EXPIRY)));
        let is_patient = plan.may_wait == MayWait::ForRails && !settings.hold.is_zero();
        let is_brief = is_patient && is_away;
        let patience = if is_brief { Duration::ZERO } else { settings.hold };
        let held = is_patient.then(|| begun + patience);
        Self { held, is_brief, expires, end, total }
    }

    /// Until when a request that is not sent yet is worth anything.
    fn latest(&self) -> Option<Instant> {
        [self.expires, self.end].into_iter().flatten().min()
    }

    /// Whether it may wait for Rails to be back.
    pub(super) fn may_wait(&self) -> bool {
        let now = Clock::System.now();
        self.held.is_some_and(|held| now < held) && self.latest().is_none_or(|latest| now < latest)
    }

    /// Whether a request that is sent now is worth anything.
    pub(super) fn are_worth_it(&self) -> bool {
        self.latest().is_none_or(|latest| Clock::System.now() < latest)
    }

    /// Whether it has waited for Rails to be back for as long as it may.
    pub(super) fn have_been_in_vain(&self) -> bool {
        self.held.is_some_and(|held| Clock::System.now() >= held)
    }

    /// Whether it might wait for Rails to be back at all.
    pub(super) fn are_patient(&self) -> bool {
        self.held.is_some()
    }

    /// Whether nobody waits for it any more. A token near its end may still be sent, at once.
    pub(super) fn are_over(&self) -> bool {
        self.end.is_some_and(|end| Clock::System.now() >= end)
    }

    /// Waits for something, for as long as Rails may be away.
    pub(super) async fn held<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let until = [self.held, self.latest()].into_iter().flatten().min()?;
        tokio::time::timeout_at(until.into(), wait).await.ok()
    }

    /// Tries to connect, for as long as Rails may be away; one that does not wait has one try.
    pub(super) async fn try_once<T>(&self, attempt: impl Future<Output = T>) -> Option<T> {
        if self.is_brief { self.in_time(attempt).await } else { self.held(attempt).await }
    }

    /// Waits for something, for as long as the request is worth anything.
    pub(super) async fn in_time<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        match self.latest() {
            Some(latest) => tokio::time::timeout_at(latest.into(), wait).await.ok(),
            None => Some(wait.await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(hold: u64, total: u64) -> lanes::Settings {
        let (total_timeout, hold) = (Duration::from_secs(total), Duration::from_secs(hold));
        lanes::Settings { total_timeout, hold, ..super::super::DEFAULT_CLASS }
    }

    fn limits(may_wait: bool, expires_in: Option<u64>, hold: u64, total: u64) -> Limits {
        let expires_in = expires_in.map(Duration::from_secs);
        let may_wait = if may_wait { MayWait::ForRails } else { MayWait::ForItsTurn };
        let plan = Plan { may_wait, expires_in, ..Plan::default() };
        Limits::new(&plan, &settings(hold, total), false)
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_longer_than_it_is_worth() {
        for (may_wait, expires_in, hold, total, held) in [
            (true, None, 5, 0, Some(5)),
            (true, Some(30), 5, 0, Some(5)),
            (true, Some(u64::MAX), 5, 0, Some(5)),
            (true, Some(5), 5, 0, Some(3)),
            (true, None, 5, 2, Some(2)),
            (true, Some(2), 5, 0, None),
            (true, Some(0), 5, 0, None),
            (true, None, 0, 0, None),
            (false, None, 5, 0, None),
        ] {
            let limits = limits(may_wait, expires_in, hold, total);
            let shown = format!("{may_wait} {expires_in:?} {hold} {total}");
            assert_eq!(limits.may_wait(), held.is_some(), "{shown}");
            if let Some(held) = held {
                let begun = tokio::time::Instant::now();
                assert_eq!(limits.held(std::future::pending::<()>()).await, None);
                assert_eq!(begun.elapsed().as_secs(), held, "{shown}");
                assert!(!limits.may_wait(), "{shown}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_be_sent_at_once_is_sent_however_late_it_is() {
        let late = limits(true, Some(1), 5, 0);
        assert_eq!(late.in_time(async { 7 }).await, Some(7));
        assert_eq!(late.in_time(std::future::pending::<()>()).await, None);
        assert!(!late.are_over());
        let over = limits(true, None, 5, 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(over.are_over());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_caller_who_has_waited_before_counts_from_there() {
        for (hold, total, left) in [(5, 0, 2), (5, 4, 1), (1, 4, 0), (5, 2, 0)] {
            let came = Clock::System.now();
            tokio::time::advance(Duration::from_secs(3)).await;
            let plan = Plan { may_wait: MayWait::ForRails, since: Some(came), ..Plan::default() };
            let limits = Limits::new(&plan, &settings(hold, total), false);
            let begun = tokio::time::Instant::now();
            limits.held(std::future::pending::<()>()).await;
            assert_eq!(begun.elapsed().as_secs(), left, "{hold} {total}");
            assert_eq!(limits.are_over(), total > 0 && left + 3 >= total, "{hold} {total}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_wait_has_one_try() {
        let plan = Plan { may_wait: MayWait::ForRails, ..Plan::default() };
        let limits = Limits::new(&plan, &settings(5, 4), true);
        assert!(!limits.may_wait() && limits.is_brief);
        assert_eq!(limits.held(std::future::pending::<()>()).await, None, "its turn is now or never");
        let second = tokio::time::sleep(Duration::from_secs(1));
        assert_eq!(limits.try_once(second).await, Some(()));
        assert_eq!(limits.try_once(std::future::pending::<()>()).await, None, "within its time");
        // What would not wait at all is no other than before.
        assert!(!Limits::new(&Plan::default(), &settings(5, 4), true).is_brief);
        assert!(!Limits::new(&plan, &settings(0, 4), true).is_brief);
    }
}
