//! What is known of a server's health, and how available it is by that.

use std::time::{Duration, Instant};

use crate::upstream::settings::EjectionSettings;

/// The smallest share of a server, or it would never show that it can do more.
const MIN_SHARE: f32 = 0.1;

/// Whether a server may be chosen, and in which order of preference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::upstream) enum Availability {
    /// In rotation, with this share of what the others get (0 to 1).
    InRotation(f32),
    /// Ejected, and due for one trial.
    TrialDue,
    /// It responds to its health checks, but with errors, as it does if Rails does not allow them to the gateway.
    Unhealthy,
    /// It fails requests, or does not respond to its health checks. Better than no server.
    Ejected,
    /// It must not get any request.
    Drained,
}

/// A failed health check.
#[derive(Debug)]
pub(in crate::upstream) struct CheckFailure {
    pub(in crate::upstream) why: String,
    /// Whether Rails itself has responded.
    pub(in crate::upstream) rails_responded: bool,
}

/// Ejection, health checks and slow start of a server.
#[derive(Debug)]
pub(in crate::upstream) struct EjectionState {
    pub(in crate::upstream) settings: EjectionSettings,
    pub(in crate::upstream) ejected: Option<ActiveEjection>,
    /// How often it was ejected without a longer time in rotation in between.
    pub(in crate::upstream) ejections_in_a_row: u32,
    /// When it came back into rotation; `None` if it has never been out.
    pub(in crate::upstream) readmitted_at: Option<Instant>,
    pub(in crate::upstream) is_unhealthy: bool,
    /// Whether the last failed check got a response.
    pub(in crate::upstream) responds_to_checks: bool,
    pub(in crate::upstream) last_problem: Option<String>,
    /// Checks with the same outcome in a row.
    pub(in crate::upstream) passed_checks: u32,
    pub(in crate::upstream) failed_checks: u32,
}

/// An ejection that has not ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct ActiveEjection {
    pub(in crate::upstream) since: Instant,
    /// The end of the pause.
    pub(in crate::upstream) until: Instant,
    /// When its trial was claimed.
    pub(in crate::upstream) tried_at: Option<Instant>,
}

impl EjectionState {
    /// Of a server in rotation.
    pub(in crate::upstream) fn new(settings: EjectionSettings) -> Self {
        Self {
            settings,
            ejected: None,
            ejections_in_a_row: 0,
            readmitted_at: None,
            is_unhealthy: false,
            responds_to_checks: false,
            last_problem: None,
            passed_checks: 0,
            failed_checks: 0,
        }
    }

    pub(in crate::upstream) fn availability(&self, may_be_tried: bool, now: Instant) -> Availability {
        match self.ejected {
            Some(ejection) if may_be_tried && !self.is_unhealthy && now >= ejection.until => {
                Availability::TrialDue
            }
            Some(_) => Availability::Ejected,
            None if self.is_unhealthy && self.responds_to_checks => Availability::Unhealthy,
            None if self.is_unhealthy => Availability::Ejected,
            None => Availability::InRotation(
                self.readmitted_at.map_or(1.0, |since| share(self.settings.slow_start, since, now)),
            ),
        }
    }
}

/// The share of a server that has been back since then.
fn share(slow_start: Duration, since: Instant, now: Instant) -> f32 {
    let past = now.saturating_duration_since(since);
    if past >= slow_start { 1.0 } else { past.div_duration_f32(slow_start).max(MIN_SHARE) }
}
