//! Whether one of several servers takes part.
//!
//! Two things tell: the requests that it is sent, and the health checks. One that fails several requests
//! in a row is ejected for a pause, which grows each time. After the pause it has one try: the next health
//! check, or a request where there are none. What comes back is given its share little by little (slow
//! start).
//!
//! An operator may also drain a server: it gets nothing more, and ends what it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::Settings as All;
use crate::clock::Clock;
use crate::progress::LastAnswer;

mod labels;
mod state;

pub use self::labels::{Condition, Reason};
pub use self::state::Settings;
pub(super) use self::state::{Bad, Standing};
use self::state::{Ejection, State};

/// What is known of one server.
#[derive(Debug)]
pub struct Health {
    server: String,
    settings: Settings,
    /// There is no other to turn to, so it always takes part.
    is_alone: bool,
    /// Health checks find out whether one that was ejected is well again; else a request does.
    has_checks: bool,
    /// By operators. Apart, since it counts for one that is alone too.
    is_drained: AtomicBool,
    /// Failures in a row, whatever the kind.
    failures: AtomicU64,
    /// To requests that have shown a credential.
    last_answer: Arc<LastAnswer>,
    state: Mutex<State>,
    /// How often it was ejected, by [`Reason`].
    pub ejections: [AtomicU64; Reason::ALL.len()],
    /// Health checks that went well, and that did not.
    pub checks: [AtomicU64; 2],
    /// Somebody waits for the time of the next check, which is another now.
    rescheduled: Notify,
    /// Somebody keeps connections, which nobody needs any more.
    drained: Notify,
}

impl Health {
    /// A server that takes part.
    pub(super) fn new(server: String, all: &All) -> Self {
        Self {
            server,
            settings: all.ejection,
            is_alone: all.servers.len() == 1,
            has_checks: all.has_checks(),
            failures: AtomicU64::new(0),
            last_answer: Arc::new(LastAnswer::new(Clock::System.now())),
            is_drained: AtomicBool::new(false),
            state: Mutex::default(),
            ejections: Default::default(),
            checks: Default::default(),
            rescheduled: Notify::new(),
            drained: Notify::new(),
        }
    }

    /// What an operator says: whether it is to get no requests any more. One that gets them again does so
    /// little by little, since it may have been restarted. False if that was so already.
    pub fn drain(&self, is_drained: bool) -> bool {
        if self.is_drained.swap(is_drained, Ordering::Relaxed) == is_drained {
            return false;
        }
        if is_drained {
            self.drained.notify_waiters();
        } else {
            self.failures.store(0, Ordering::Relaxed);
            let mut state = self.state.lock();
            (state.back_since, state.times) = (Some(Clock::System.now()), 0);
        }
        true
    }

    /// Whether there is no other to turn to.
    pub(super) fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Whether an operator has said so.
    pub fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Relaxed)
    }

    /// Returns once an operator has said so again.
    pub(super) fn drained(&self) -> Notified<'_> {
        self.drained.notified()
    }

    /// What operators are told.
    pub fn condition(&self, now: Instant) -> Condition {
        if self.is_drained() {
            return Condition::Drained;
        }
        let state = self.state.lock();
        if state.is_unhealthy {
            return Condition::Unhealthy;
        }
        match state.standing(&self.settings, false, now) {
            Standing::In(share) if share < 1.0 => Condition::SlowStart,
            Standing::In(_) if self.failures_in_a_row() > 0 => Condition::Failing,
            Standing::In(_) => Condition::Up,
            _ => Condition::Ejected,
        }
    }

    /// What went wrong last, if it has not gone well since.
    pub fn why(&self) -> Option<String> {
        self.state.lock().why.clone()
    }

    /// Failures in a row, whatever the kind; 0 after an answer, and once it is back.
    pub fn failures_in_a_row(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How it stands now.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        if self.is_drained() {
            return Standing::Drained;
        }
        self.state.lock().standing(&self.settings, !self.has_checks, now)
    }

    /// Takes the one try that there is, if nobody was quicker.
    pub(super) fn claim_try(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if state.standing(&self.settings, !self.has_checks, now) != Standing::Due {
            return false;
        }
        let pause = self.settings.pause_of(state.times);
        if let Some(ejection) = &mut state.ejected {
            // Whoever tries may leave; then it is somebody else's turn after another pause.
            ejection.until = now + pause;
            ejection.tried = Some(now);
        }
        true
    }

    /// When it has answered last.
    pub(super) fn last_answer(&self) -> &Arc<LastAnswer> {
        &self.last_answer
    }

    /// A request sent at `sent` was answered.
    pub(super) fn answered(&self, sent: Instant, now: Instant) {
        if self.failures_in_a_row() > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.is_alone {
            return;
        }
        let state = self.state.lock();
        // What was sent before tells nothing new.
        if state.ejected.is_some_and(|ejection| sent >= ejection.since) {
            self.readmit(state, now);
        }
    }

    /// A request sent at `sent` failed.
    pub(super) fn failed(&self, sent: Instant, why: Reason, now: Instant) {
        let mut state = self.state.lock();
        // What was sent before tells nothing new.
        if state.back_since.is_some_and(|since| sent < since) {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let most = u64::from(self.settings.failures);
        if self.is_alone || most == 0 {
            return;
        }
        match state.ejected {
            Some(Ejection { tried: Some(tried), .. }) if sent >= tried => self.eject(state, why, now),
            None if failures >= most => {
                if state.back_since.is_none_or(|since| now >= since + self.settings.longest_pause) {
                    state.times = 0;
                }
                self.eject(state, why, now);
            }
            _ => {}
        }
    }

    /// A health check came to its end: `good` and `bad` are how many in a row it takes.
    pub(super) fn checked(&self, outcome: Result<(), Bad>, (good, bad): (u32, u32), now: Instant) {
        let [went_well, failed] = &self.checks;
        if outcome.is_ok() { went_well } else { failed }.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        let is_due = state.standing(&self.settings, true, now) == Standing::Due;
        let Err(Bad { why, is_answered }) = outcome else {
            if state.ejected.is_none() {
                state.why = None;
            }
            (state.good_checks, state.bad_checks) = (state.good_checks.saturating_add(1), 0);
            if state.is_unhealthy && state.good_checks >= good {
                state.is_unhealthy = false;
                self.readmit(state, now);
            } else if is_due {
                self.readmit(state, now);
            }
            return;
        };
        (state.good_checks, state.bad_checks) = (0, state.bad_checks.saturating_add(1));
        state.why = Some(why.clone());
        state.answers_checks = is_answered;
        if !state.is_unhealthy && state.bad_checks >= bad {
            state.is_unhealthy = true;
            drop(state);
            tracing::warn!(
                server = self.server,
                why,
                "unhealthy: its health checks fail, so it takes part no more"
            );
        } else if is_due {
            let until = now + self.settings.pause_of(state.times);
            state.times = state.times.saturating_add(1);
            state.ejected = state.ejected.map(|ejection| Ejection { until, ..ejection });
        }
    }

    /// When the next health check is due, if one has just ended, and they are `interval` apart.
    pub(super) fn next_check(&self, interval: Duration, now: Instant) -> Instant {
        let regular = now + interval;
        let state = self.state.lock();
        // One that is unhealthy is let in by good checks alone, so the end of a pause means nothing.
        let pause = state.ejected.filter(|_| !state.is_unhealthy);
        pause.map_or(regular, |ejection| regular.min(ejection.until))
    }

    /// Returns when [`Self::next_check`] may be earlier than it was.
    pub(super) async fn rescheduled(&self) {
        self.rescheduled.notified().await;
    }

    fn readmit(&self, mut state: MutexGuard<'_, State>, now: Instant) {
        state.ejected = None;
        if !state.is_unhealthy {
            state.why = None;
        }
        state.back_since = Some(now);
        let is_unhealthy = state.is_unhealthy;
        drop(state);
        self.failures.store(0, Ordering::Relaxed);
        if !is_unhealthy {
            tracing::info!(server = self.server, "takes part again");
        }
    }

    fn eject(&self, mut state: MutexGuard<'_, State>, why: Reason, now: Instant) {
        let pause = self.settings.pause_of(state.times);
        state.times = state.times.saturating_add(1);
        state.why = Some(format!("ejected for {} s: {}", pause.as_secs_f64(), why.as_str()));
        state.ejected = Some(Ejection { since: now, until: now + pause, tried: None });
        drop(state);
        if let Some(count) = self.ejections.get(why as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.rescheduled.notify_one();
        let pause_s = pause.as_secs_f64();
        tracing::warn!(
            server = self.server,
            why = why.as_str(),
            pause_s,
            "ejected: it fails one request after another"
        );
    }
}

#[cfg(test)]
mod tests;
