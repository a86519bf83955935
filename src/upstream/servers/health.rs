//! Whether one of several servers is in rotation.
//!
//! Two sources tell: the requests sent to it, and the health checks. A server that fails several requests in a
//! row is ejected for a pause, which grows each time. After the pause it gets one trial: the next health check,
//! or a request where there are none. A server that returns gets its share little by little (slow start).
//!
//! An operator may also drain a server: it gets no new requests, and finishes those that it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::counters::Counters;
use crate::progress::LastAnswer;
use crate::upstream::connection::stats::ConnectionStats;
use crate::upstream::settings::UpstreamSettings;

mod labels;
mod state;

pub use self::labels::{CheckResult, EjectionReason, ServerStatus};
use self::state::{ActiveEjection, EjectionState};
pub(in crate::upstream) use self::state::{Availability, CheckFailure};

/// The health of one server, shared by all threads.
#[derive(Debug)]
pub struct ServerHealth {
    server: String,
    /// There is no other server, so it is always in rotation.
    is_alone: AtomicBool,
    /// Health checks find out whether an ejected server works again; else a request does.
    has_health_checks: AtomicBool,
    /// Its connections, which know whether an operator has drained it.
    connections: Arc<ConnectionStats>,
    /// Failures in a row, of any kind.
    failures: AtomicU64,
    /// To a request that has shown a credential.
    last_answer: Arc<LastAnswer>,
    state: Mutex<EjectionState>,
    /// How often it was ejected, by [`EjectionReason`].
    pub ejections: Counters<EjectionReason>,
    /// Health checks so far.
    pub checks: Counters<CheckResult>,
    /// Wakes the health checker, whose next check is due earlier now.
    rescheduled: Notify,
}

impl ServerHealth {
    /// A server in rotation.
    pub(in crate::upstream) fn new(
        server: String,
        all: &UpstreamSettings,
        connections: Arc<ConnectionStats>,
    ) -> Self {
        Self {
            server,
            is_alone: AtomicBool::new(all.servers.len() == 1),
            has_health_checks: AtomicBool::new(all.has_health_checks()),
            failures: AtomicU64::new(0),
            last_answer: Arc::new(LastAnswer::new(Clock::System.now())),
            connections,
            state: Mutex::new(EjectionState::new(all.ejection)),
            ejections: Counters::default(),
            checks: Counters::default(),
            rescheduled: Notify::new(),
        }
    }

    /// Drains the server, or ends that, as an operator asks; false if nothing changes. A server that gets requests
    /// again does so little by little, since it may have been restarted.
    pub fn drain(&self, is_drained: bool) -> bool {
        if !self.connections.drain.set(is_drained) {
            return false;
        }
        if !is_drained {
            self.failures.store(0, Ordering::Relaxed);
            let mut state = self.state.lock();
            (state.readmitted_at, state.ejections_in_a_row) = (Some(Clock::System.now()), 0);
        }
        true
    }

    /// Takes over other settings. What only health checks could end, ends if there are none any more.
    pub(in crate::upstream) fn reload(&self, all: &UpstreamSettings) {
        let (is_alone, has_health_checks) = (all.servers.len() == 1, all.has_health_checks());
        self.is_alone.store(is_alone, Ordering::Relaxed);
        self.has_health_checks.store(has_health_checks, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.settings = all.ejection;
        if !has_health_checks {
            (state.is_unhealthy, state.failed_checks, state.passed_checks) = (false, 0, 0);
        }
        if is_alone {
            state.ejected = None;
        }
        drop(state);
        self.rescheduled.notify_one();
    }

    /// For a server that was not there before: it gets its share little by little.
    pub(in crate::upstream) fn begin_slow_start(&self, now: Instant) {
        self.state.lock().readmitted_at = Some(now);
    }

    /// Whether a request finds out if an ejected server works again.
    fn is_tried_by_requests(&self) -> bool {
        !self.has_health_checks.load(Ordering::Relaxed)
    }

    /// Whether there is no other server.
    pub(in crate::upstream) fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Relaxed)
    }

    /// Whether an operator has drained it.
    pub fn is_drained(&self) -> bool {
        self.connections.drain.is_on()
    }

    /// Its status, for operators.
    pub fn status(&self, now: Instant) -> ServerStatus {
        if self.is_drained() {
            return ServerStatus::Drained;
        }
        let state = self.state.lock();
        if state.is_unhealthy {
            return ServerStatus::Unhealthy;
        }
        match state.availability(false, now) {
            Availability::InRotation(share) if share < 1.0 => ServerStatus::SlowStart,
            Availability::InRotation(_) if self.consecutive_failures() > 0 => ServerStatus::Failing,
            Availability::InRotation(_) => ServerStatus::Up,
            _ => ServerStatus::Ejected,
        }
    }

    /// What went wrong last, unless it has worked since.
    pub fn last_problem(&self) -> Option<String> {
        self.state.lock().last_problem.clone()
    }

    /// Failures in a row, of any kind; 0 after a response, and after readmission.
    pub fn consecutive_failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether it can be chosen now.
    pub(in crate::upstream) fn availability(&self, now: Instant) -> Availability {
        if self.is_drained() {
            return Availability::Drained;
        }
        self.state.lock().availability(self.is_tried_by_requests(), now)
    }

    /// Claims the one trial of an ejected server, if another request has not.
    pub(in crate::upstream) fn claim_trial(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if state.availability(self.is_tried_by_requests(), now) != Availability::TrialDue {
            return false;
        }
        let pause = state.settings.pause_after(state.ejections_in_a_row);
        if let Some(ejection) = &mut state.ejected {
            // The request may be dropped; then another one gets a trial after the next pause.
            ejection.until = now + pause;
            ejection.tried_at = Some(now);
        }
        true
    }

    /// When it last responded to a request with a credential.
    pub(in crate::upstream) fn last_answer(&self) -> &Arc<LastAnswer> {
        &self.last_answer
    }

    /// Records a response to a request sent at `sent`.
    pub(in crate::upstream) fn record_success(&self, sent: Instant, now: Instant) {
        if self.consecutive_failures() > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.is_alone() {
            return;
        }
        let state = self.state.lock();
        // What was sent before the ejection tells nothing new.
        if state.ejected.is_some_and(|ejection| sent >= ejection.since) {
            self.readmit(state, now);
        }
    }

    /// Records the failure of a request sent at `sent`.
    pub(in crate::upstream) fn record_failure(&self, sent: Instant, reason: EjectionReason, now: Instant) {
        let mut state = self.state.lock();
        // What was sent before the readmission tells nothing new.
        if state.readmitted_at.is_some_and(|since| sent < since) {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let max_failures = u64::from(state.settings.failures);
        if self.is_alone() || max_failures == 0 {
            return;
        }
        match state.ejected {
            Some(ActiveEjection { tried_at: Some(tried_at), .. }) if sent >= tried_at => {
                self.eject(state, reason, now);
            }
            None if failures >= max_failures => {
                if state.readmitted_at.is_none_or(|since| now >= since + state.settings.longest_pause) {
                    state.ejections_in_a_row = 0;
                }
                self.eject(state, reason, now);
            }
            _ => {}
        }
    }

    /// Records a health check: `good` and `bad` are how many in a row change its status.
    pub(in crate::upstream) fn record_check(
        &self,
        outcome: Result<(), CheckFailure>,
        (good, bad): (u32, u32),
        now: Instant,
    ) {
        self.checks.increment(if outcome.is_ok() { CheckResult::Good } else { CheckResult::Bad });
        let mut state = self.state.lock();
        let is_due = state.availability(true, now) == Availability::TrialDue;
        let Err(CheckFailure { why, rails_responded }) = outcome else {
            if state.ejected.is_none() {
                state.last_problem = None;
            }
            (state.passed_checks, state.failed_checks) = (state.passed_checks.saturating_add(1), 0);
            if state.is_unhealthy && state.passed_checks >= good {
                state.is_unhealthy = false;
                self.readmit(state, now);
            } else if is_due {
                self.readmit(state, now);
            }
            return;
        };
        (state.passed_checks, state.failed_checks) = (0, state.failed_checks.saturating_add(1));
        state.last_problem = Some(why.clone());
        state.responds_to_checks = rails_responded;
        if !state.is_unhealthy && state.failed_checks >= bad {
            state.is_unhealthy = true;
            drop(state);
            tracing::warn!(
                server = self.server,
                why,
                "unhealthy: its health checks fail, so it is out of rotation"
            );
        } else if is_due {
            let until = now + state.settings.pause_after(state.ejections_in_a_row);
            state.ejections_in_a_row = state.ejections_in_a_row.saturating_add(1);
            state.ejected = state.ejected.map(|ejection| ActiveEjection { until, ..ejection });
        }
    }

    /// When the next health check is due, if one has just ended, and `interval` lies between two.
    pub(in crate::upstream) fn next_check(&self, interval: Duration, now: Instant) -> Instant {
        let regular = now + interval;
        let state = self.state.lock();
        // An unhealthy server returns after passed checks alone, so the end of a pause means nothing.
        let pause = state.ejected.filter(|_| !state.is_unhealthy);
        pause.map_or(regular, |ejection| regular.min(ejection.until))
    }

    /// Returns when [`Self::next_check`] may be earlier than it was.
    pub(in crate::upstream) async fn rescheduled(&self) {
        self.rescheduled.notified().await;
    }

    fn readmit(&self, mut state: MutexGuard<'_, EjectionState>, now: Instant) {
        state.ejected = None;
        if !state.is_unhealthy {
            state.last_problem = None;
        }
        state.readmitted_at = Some(now);
        let is_unhealthy = state.is_unhealthy;
        drop(state);
        self.failures.store(0, Ordering::Relaxed);
        if !is_unhealthy {
            let _span = crate::request_span::current().entered();
            tracing::info!(server = self.server, "in rotation again");
        }
    }

    fn eject(&self, mut state: MutexGuard<'_, EjectionState>, reason: EjectionReason, now: Instant) {
        let pause = state.settings.pause_after(state.ejections_in_a_row);
        state.ejections_in_a_row = state.ejections_in_a_row.saturating_add(1);
        state.last_problem = Some(format!("ejected for {} s: {}", pause.as_secs_f64(), reason.as_str()));
        state.ejected = Some(ActiveEjection { since: now, until: now + pause, tried_at: None });
        drop(state);
        self.ejections.increment(reason);
        self.rescheduled.notify_one();
        let pause_s = pause.as_secs_f64();
        let _span = crate::request_span::current().entered();
        tracing::warn!(
            server = self.server,
            why = reason.as_str(),
            pause_s,
            "ejected: several requests in a row have failed"
        );
    }
}

#[cfg(test)]
mod tests;
