//! What is known while Rails is unreachable: since when, why, and whether requests have waited for it in vain.
//!
//! A request whose time ends in the hold queue has not tried to connect itself. Its error is that of the last
//! attempt.
//!
//! Look-ups belong to logins, which have little time: a client that waits here waits again with each retry, and
//! with each key that it offers. So once a request has waited in vain, later look-ups do not wait
//! ([`Reachability::has_recent_fruitless_wait`]). Each still tries to connect, once, unless another one is
//! trying, or has just tried until the connect timeout; so an outage is remembered for as long as it lasts, give
//! or take [`TIMEOUT_RETRY_DELAY`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::upstream::connection::cause::UnreachableCause;
use crate::upstream::connection::error::ConnectError;

/// How long after the last attempt to connect a fruitless wait counts. Longer than the pause between two tries of
/// GitLab Shell, and than a user needs for another key.
const FRUITLESS_WAIT_TTL: Duration = Duration::from_secs(10);

/// How long after an attempt that timed out a look-up does not make another one.
const TIMEOUT_RETRY_DELAY: Duration = Duration::from_secs(2);

/// The state of the way to Rails, shared by all threads.
#[derive(Debug, Default)]
pub struct Reachability {
    /// Whether there is a record: the only field that is read while Rails is reachable.
    has_record: AtomicBool,
    state: Mutex<UnreachableRecord>,
    /// Look-ups that did not wait, since others had waited in vain.
    pub waits_skipped: AtomicU64,
}

#[derive(Debug, Default)]
struct UnreachableRecord {
    last: Option<LastFailure>,
    /// Since when requests wait.
    since: Option<Instant>,
    /// A request has waited for as long as it may.
    has_fruitless_wait: bool,
}

/// The last failed attempt to connect.
#[derive(Debug)]
struct LastFailure {
    at: Instant,
    /// As waiting requests get it.
    error: ConnectError,
}

impl Reachability {
    /// Records that Rails is away: no server could be connected to, or a proxy says so.
    pub(in crate::upstream) fn record_failure(&self, error: &ConnectError, now: Instant) {
        let new = LastFailure { at: now, error: error.for_waiters(None) };
        let mut state = self.state.lock();
        // After a longer pause, this may be another outage.
        state.has_fruitless_wait &=
            state.last.as_ref().is_some_and(|last| now < last.at + FRUITLESS_WAIT_TTL);
        state.last = Some(new);
        self.has_record.store(true, Ordering::Relaxed);
    }

    /// The same for a request without a credential. It may fail where others would not, over a connection of its
    /// own, so it counts only if no recent failure is known.
    pub(in crate::upstream) fn record_uncredentialed_failure(&self, error: &ConnectError, now: Instant) {
        let counts = |last: &LastFailure| now < last.at + FRUITLESS_WAIT_TTL;
        let has_record = self.state.lock().last.as_ref().is_some_and(counts);
        if !has_record {
            self.record_failure(error, now);
        }
    }

    /// Records that requests begin to wait.
    pub(in crate::upstream) fn record_waiting(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.since.is_none() {
            state.since = Some(now);
            self.has_record.store(true, Ordering::Relaxed);
            let error = state.last_error(None);
            drop(state);
            let cause = error.cause().as_str();
            let _span = crate::request_span::current().entered();
            tracing::warn!(%error, cause, "Rails cannot be reached; requests wait for it to be back");
        }
    }

    /// Records that a request has waited for as long as it may. If files or memory were short on this machine,
    /// that says nothing about Rails.
    pub(in crate::upstream) fn record_fruitless_wait(&self, error: &ConnectError, now: Instant) {
        if error.is_resource_exhaustion() {
            return;
        }
        let mut state = self.state.lock();
        if state.last.is_some() && !std::mem::replace(&mut state.has_fruitless_wait, true) {
            // One attempt to connect may have taken all of the time, so that no request has queued.
            state.since.get_or_insert(now);
            drop(state);
            let cause = error.cause().as_str();
            let _span = crate::request_span::current().entered();
            tracing::warn!(
                %error,
                cause,
                "Rails is still away; until it is back, look-ups do not wait for it"
            );
        }
    }

    /// Whether a request has waited in vain not long ago.
    pub(in crate::upstream) fn has_recent_fruitless_wait(&self, now: Instant) -> bool {
        if !self.has_record.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.state.lock();
        let is_fresh = |last: &LastFailure| {
            now < last.at + FRUITLESS_WAIT_TTL && last.error.cause() != UnreachableCause::Resources
        };
        state.has_fruitless_wait && state.last.as_ref().is_some_and(is_fresh)
    }

    /// Whether an attempt timed out a moment ago, so that another one would be no better than waiting.
    pub(in crate::upstream) fn timed_out_recently(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let is_recent = |last: &LastFailure| {
            last.error.cause() == UnreachableCause::Timeout && now < last.at + TIMEOUT_RETRY_DELAY
        };
        state.last.as_ref().is_some_and(is_recent)
    }

    /// Records a connection made, or a response to a request sent, at `sent`.
    pub(in crate::upstream) fn record_reached(&self, sent: Instant, now: Instant) {
        if !self.has_record.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state.lock();
        // What was sent before the last failure tells nothing new.
        if state.last.as_ref().is_some_and(|last| sent < last.at) {
            return;
        }
        let was = std::mem::take(&mut *state);
        self.has_record.store(false, Ordering::Relaxed);
        drop(state);
        if let Some(since) = was.since {
            let after_s = now.saturating_duration_since(since).as_secs();
            let _span = crate::request_span::current().entered();
            tracing::info!(after_s, "Rails can be reached again");
        }
    }

    /// The error of the last failed attempt, with `detail` appended.
    pub(in crate::upstream) fn last_error(&self, detail: Option<&str>) -> ConnectError {
        self.state.lock().last_error(detail)
    }

    /// The same, if one has failed since Rails was last reached.
    pub(in crate::upstream) fn last_failure(&self) -> Option<ConnectError> {
        self.state.lock().last.as_ref().map(|last| last.error.clone())
    }

    /// Why Rails is unreachable, if it is, as far as is known.
    pub fn cause(&self) -> Option<UnreachableCause> {
        self.state.lock().last.as_ref().map(|last| last.error.cause())
    }

    /// Whether requests wait, or have waited in vain, for a Rails that is not known to be back.
    pub fn is_unreachable(&self) -> bool {
        self.state.lock().since.is_some()
    }
}

impl UnreachableRecord {
    fn last_error(&self, detail: Option<&str>) -> ConnectError {
        match &self.last {
            Some(last) => last.error.for_waiters(detail),
            // Only a proxy reports the outage.
            None => ConnectError::not_attempted(UnreachableCause::Proxy, detail.unwrap_or("it is away")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused() -> ConnectError {
        io::Error::from(io::ErrorKind::ConnectionRefused).into()
    }

    fn exhausted() -> ConnectError {
        io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()).into()
    }

    #[test]
    fn a_fruitless_wait_is_remembered_for_as_long_as_attempts_fail() {
        let (reachability, begin) = (Reachability::default(), Instant::now());
        reachability.record_failure(&refused(), begin);
        assert!(!reachability.has_recent_fruitless_wait(begin), "no request has waited yet");
        assert!(!reachability.is_unreachable());
        reachability.record_fruitless_wait(&refused(), begin);
        assert!(
            reachability.is_unreachable(),
            "until it is known to be back, although no request has queued"
        );
        let almost = begin + FRUITLESS_WAIT_TTL.saturating_sub(Duration::from_millis(1));
        assert!(
            reachability.has_recent_fruitless_wait(begin) && reachability.has_recent_fruitless_wait(almost)
        );
        assert!(!reachability.has_recent_fruitless_wait(begin + FRUITLESS_WAIT_TTL));
        reachability.record_failure(&refused(), almost);
        assert!(reachability.has_recent_fruitless_wait(begin + FRUITLESS_WAIT_TTL));
        reachability.record_failure(&refused(), almost + FRUITLESS_WAIT_TTL);
        assert!(
            !reachability.has_recent_fruitless_wait(almost + FRUITLESS_WAIT_TTL),
            "that may be another outage"
        );
        reachability.record_fruitless_wait(&refused(), almost + FRUITLESS_WAIT_TTL);
        let almost = almost + FRUITLESS_WAIT_TTL;
        // A response to a request sent before the last failure.
        reachability.record_reached(begin, almost);
        assert!(reachability.has_recent_fruitless_wait(almost));
        reachability.record_reached(almost, almost);
        assert!(
            !reachability.has_recent_fruitless_wait(almost)
                && reachability.cause().is_none()
                && !reachability.is_unreachable()
        );
        reachability.record_failure(&refused(), almost);
        assert!(
            !reachability.has_recent_fruitless_wait(almost),
            "another outage, so requests may wait again"
        );
    }

    #[test]
    fn look_ups_do_not_repeat_an_attempt_that_timed_out() {
        let (reachability, now) = (Reachability::default(), Instant::now());
        for (error, is_slow) in
            [(refused(), false), (ConnectError::timed_out("no connection"), true), (exhausted(), false)]
        {
            reachability.record_failure(&error, now);
            assert_eq!(reachability.timed_out_recently(now), is_slow, "{error}");
            assert!(!reachability.timed_out_recently(now + TIMEOUT_RETRY_DELAY), "{error}");
        }
    }

    #[test]
    fn resource_exhaustion_is_never_remembered_as_an_outage() {
        let (reachability, now) = (Reachability::default(), Instant::now());
        reachability.record_failure(&exhausted(), now);
        reachability.record_fruitless_wait(&reachability.last_error(Some("over")), now);
        assert!(!reachability.has_recent_fruitless_wait(now));
        reachability.record_failure(&refused(), now);
        reachability.record_fruitless_wait(&refused(), now);
        assert!(reachability.has_recent_fruitless_wait(now));
        reachability.record_failure(&exhausted(), now);
        assert!(!reachability.has_recent_fruitless_wait(now), "the cause is another one now");
    }

    #[test]
    fn requests_that_only_waited_get_the_error_of_the_last_attempt() {
        let (reachability, now) = (Reachability::default(), Instant::now());
        assert_eq!(reachability.last_error(Some("over")).cause(), UnreachableCause::Proxy);
        for error in [exhausted(), refused(), ConnectError::timed_out("no connection")] {
            reachability.record_failure(&error, now);
            let shared = reachability.last_error(Some("over"));
            assert_eq!((shared.cause(), reachability.cause()), (error.cause(), Some(error.cause())));
            assert_eq!(shared.to_string(), format!("{error}; over"));
            assert_eq!(shared.is_resource_exhaustion(), error.is_resource_exhaustion());
        }
    }
}
