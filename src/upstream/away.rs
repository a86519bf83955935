//! What is known while Rails cannot be reached: since when, why, and whether waiting for it was in vain.
//!
//! Those who stand in line when their time is over have not tried to connect themselves. They are told why
//! the last one who did has failed.
//!
//! A look-up is asked by a login, which has little time: what a client waits for here comes again with each
//! of its tries, and with each key that it offers. So once some have waited in vain, those who come after
//! them do not wait ([`Away::is_remembered`]). Each still tries to connect, once, unless another one is just
//! trying, or has just tried for as long as that may take; so what is remembered here is not believed for longer
//! than Rails is away, give or take [`PAUSE`].

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::cause::{Cause, Told, is_for_want_of_resources};

/// For how long after the last attempt to connect it counts that some have waited in vain. Longer than GitLab
/// Shell leaves between its tries, and than a user needs for another key.
const MEMORY: Duration = Duration::from_secs(10);

/// How long after an attempt that took all of its time a look-up does not make another one.
const PAUSE: Duration = Duration::from_secs(2);

/// What is known.
#[derive(Debug, Default)]
pub struct Away {
    /// Whether there is anything: all that is looked at while Rails is well.
    is_known: AtomicBool,
    state: Mutex<State>,
    /// Look-ups that did not wait, since others had waited in vain.
    pub unheld: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Last>,
    /// Since when requests wait for it.
    since: Option<Instant>,
    /// Some have waited for as long as they may.
    is_in_vain: bool,
}

/// The last attempt to connect that failed.
#[derive(Debug)]
struct Last {
    at: Instant,
    kind: io::ErrorKind,
    told: Told,
}

impl Away {
    /// No server could be connected to.
    pub(super) fn failed(&self, error: &io::Error, now: Instant) {
        let new = Last { at: now, kind: error.kind(), told: Told::of(error) };
        let mut state = self.state.lock();
        // What was found out so long ago may have been another time that Rails was away.
        state.is_in_vain &= state.last.as_ref().is_some_and(|last| now < last.at + MEMORY);
        state.last = Some(new);
        self.is_known.store(true, Ordering::Relaxed);
    }

    /// The same for a request without a credential. It may have failed where others would not, over a connection of
    /// its own, so it says something only if nothing is known that counts.
    pub(super) fn failed_for_other(&self, error: &io::Error, now: Instant) {
        let counts = |last: &Last| now < last.at + MEMORY;
        let is_known = self.state.lock().last.as_ref().is_some_and(counts);
        if !is_known {
            self.failed(error, now);
        }
    }

    /// Requests begin to wait.
    pub(super) fn is_waited_for(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.since.is_none() {
            state.since = Some(now);
            self.is_known.store(true, Ordering::Relaxed);
            let error = state.error(None);
            drop(state);
            let cause = Cause::of(&error).as_str();
            tracing::warn!(%error, cause, "Rails cannot be reached; requests wait for it to be back");
        }
    }

    /// A request has waited for as long as it may. That it was for want of files or memory here says nothing
    /// of Rails.
    pub(super) fn was_waited_for_in_vain(&self, error: &io::Error, now: Instant) {
        if is_for_want_of_resources(error) {
            return;
        }
        let mut state = self.state.lock();
        if state.last.is_some() && !std::mem::replace(&mut state.is_in_vain, true) {
            // One attempt to connect may have taken all of the time, so that none has waited in line.
            state.since.get_or_insert(now);
            drop(state);
            let cause = Cause::of(error).as_str();
            tracing::warn!(
                %error,
                cause,
                "Rails is still away; until it is back, look-ups do not wait for it any more"
            );
        }
    }

    /// Whether others have waited in vain, not long ago.
    pub(super) fn is_remembered(&self, now: Instant) -> bool {
        if !self.is_known.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.state.lock();
        let is_fresh = |last: &Last| now < last.at + MEMORY && last.told.cause() != Cause::Resources;
        state.is_in_vain && state.last.as_ref().is_some_and(is_fresh)
    }

    /// Whether the last attempt was a moment ago, and so long that the next one would be no better than waiting.
    pub(super) fn was_just_tried_in_vain(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let is_just = |last: &Last| last.told.cause() == Cause::Timeout && now < last.at + PAUSE;
        state.last.as_ref().is_some_and(is_just)
    }

    /// A server has accepted a connection, or answered a request that was sent at `sent`.
    pub(super) fn is_back(&self, sent: Instant, now: Instant) {
        if !self.is_known.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state.lock();
        // What was sent before tells nothing new.
        if state.last.as_ref().is_some_and(|last| sent < last.at) {
            return;
        }
        let was = std::mem::take(&mut *state);
        self.is_known.store(false, Ordering::Relaxed);
        drop(state);
        if let Some(since) = was.since {
            let after_s = now.saturating_duration_since(since).as_secs();
            tracing::info!(after_s, "Rails can be reached again");
        }
    }

    /// Why the last attempt has failed, and what else there is to say.
    pub(super) fn error(&self, more: Option<&str>) -> io::Error {
        self.state.lock().error(more)
    }

    /// Why Rails cannot be reached, if that is so, as far as is known.
    pub fn cause(&self) -> Option<Cause> {
        self.state.lock().last.as_ref().map(|last| last.told.cause())
    }

    /// Whether requests wait, or have waited in vain, for a Rails that is not known to be back.
    pub fn is_on(&self) -> bool {
        self.state.lock().since.is_some()
    }
}

impl State {
    fn error(&self, more: Option<&str>) -> io::Error {
        match &self.last {
            Some(last) => last.told.clone().again(last.kind, more),
            // Only a proxy has said so.
            None => Cause::Proxy.error(more.unwrap_or("it is away")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Error {
        io::Error::from(io::ErrorKind::ConnectionRefused)
    }

    fn wanting() -> io::Error {
        io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error())
    }

    #[test]
    fn waiting_in_vain_is_remembered_for_as_long_as_tries_fail() {
        let (away, begin) = (Away::default(), Instant::now());
        away.failed(&refused(), begin);
        assert!(!away.is_remembered(begin), "none has waited yet");
        assert!(!away.is_on());
        away.was_waited_for_in_vain(&refused(), begin);
        assert!(away.is_on(), "until it is known to be back, although none has stood in line");
        let almost = begin + MEMORY.saturating_sub(Duration::from_millis(1));
        assert!(away.is_remembered(begin) && away.is_remembered(almost));
        assert!(!away.is_remembered(begin + MEMORY));
        away.failed(&refused(), almost);
        assert!(away.is_remembered(begin + MEMORY));
        away.failed(&refused(), almost + MEMORY);
        assert!(!away.is_remembered(almost + MEMORY), "that may be another time");
        away.was_waited_for_in_vain(&refused(), almost + MEMORY);
        let almost = almost + MEMORY;
        // An answer to what was sent before the last failure is an old one.
        away.is_back(begin, almost);
        assert!(away.is_remembered(almost));
        away.is_back(almost, almost);
        assert!(!away.is_remembered(almost) && away.cause().is_none() && !away.is_on());
        away.failed(&refused(), almost);
        assert!(!away.is_remembered(almost), "another time, others may wait again");
    }

    #[test]
    fn a_server_that_is_silent_is_not_tried_by_each() {
        let (away, now) = (Away::default(), Instant::now());
        for (error, is_slow) in
            [(refused(), false), (io::ErrorKind::TimedOut.into(), true), (wanting(), false)]
        {
            away.failed(&error, now);
            assert_eq!(away.was_just_tried_in_vain(now), is_slow, "{error}");
            assert!(!away.was_just_tried_in_vain(now + PAUSE), "{error}");
        }
    }

    #[test]
    fn want_of_files_is_never_remembered_as_a_rails_that_is_away() {
        let (away, now) = (Away::default(), Instant::now());
        away.failed(&wanting(), now);
        away.was_waited_for_in_vain(&away.error(Some("over")), now);
        assert!(!away.is_remembered(now));
        away.failed(&refused(), now);
        away.was_waited_for_in_vain(&refused(), now);
        assert!(away.is_remembered(now));
        away.failed(&wanting(), now);
        assert!(!away.is_remembered(now), "nothing is known any more");
    }

    #[test]
    fn those_who_did_not_try_are_told_why_the_last_one_failed() {
        let (away, now) = (Away::default(), Instant::now());
        assert_eq!(Cause::of(&away.error(Some("over"))), Cause::Proxy);
        for error in [wanting(), refused(), io::Error::new(io::ErrorKind::TimedOut, "no connection")] {
            away.failed(&error, now);
            let told = away.error(Some("over"));
            assert_eq!((Cause::of(&told), away.cause()), (Cause::of(&error), Some(Cause::of(&error))));
            assert_eq!(told.to_string(), format!("{error}; over"));
            assert_eq!(is_for_want_of_resources(&told), is_for_want_of_resources(&error));
        }
    }
}
