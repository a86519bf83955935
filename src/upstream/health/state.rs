//! What is known of a server's health, and how it stands by that.

use std::time::{Duration, Instant};

/// What `[upstream.ejection]` of the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// After how many failures in a row a server is ejected; 0 never does.
    pub failures: u32,
    /// For how long, the first time. Each further time takes twice as long.
    pub pause: Duration,
    /// But not longer than this. A server that takes part for as long again begins anew.
    pub longest_pause: Duration,
    /// How long a server that comes back gets less than its share.
    pub slow_start: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            failures: 5,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            slow_start: Duration::from_secs(10),
        }
    }
}

/// The least that a server gets of its share, or it would never show that it can do more.
const LEAST_SHARE: f32 = 0.1;

/// What a server is to those who choose one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::upstream) enum Standing {
    /// It takes part, with this share of what the others get.
    In(f32),
    /// It is ejected, but has to be tried, by one.
    Due,
    /// Its health checks are answered, but not well, as they are if Rails does not let the gateway ask.
    Unhealthy,
    /// It fails requests, or does not answer its health checks. Better than nobody.
    Ejected,
    /// It is not to get anything.
    Drained,
}

/// A health check that did not go well.
#[derive(Debug)]
pub(in crate::upstream) struct Bad {
    pub(in crate::upstream) why: String,
    /// Whether Rails itself has answered.
    pub(in crate::upstream) is_answered: bool,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) ejected: Option<Ejection>,
    /// How often it was ejected without a longer time in between.
    pub(super) times: u32,
    /// Since when it takes part again; not if it always has.
    pub(super) back_since: Option<Instant>,
    pub(super) is_unhealthy: bool,
    /// Whether the last check that did not go well was answered at all.
    pub(super) answers_checks: bool,
    pub(super) why: Option<String>,
    /// Checks with the same outcome, one after another.
    pub(super) good_checks: u32,
    pub(super) bad_checks: u32,
}

/// A pause.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ejection {
    pub(super) since: Instant,
    /// The end of the pause.
    pub(super) until: Instant,
    /// When it was tried.
    pub(super) tried: Option<Instant>,
}

impl Settings {
    pub(super) fn pause_of(&self, times: u32) -> Duration {
        self.pause.saturating_mul(1 << times.min(16)).min(self.longest_pause)
    }
}

impl State {
    pub(super) fn standing(&self, settings: &Settings, may_try: bool, now: Instant) -> Standing {
        match self.ejected {
            Some(ejection) if may_try && !self.is_unhealthy && now >= ejection.until => Standing::Due,
            Some(_) => Standing::Ejected,
            None if self.is_unhealthy && self.answers_checks => Standing::Unhealthy,
            None if self.is_unhealthy => Standing::Ejected,
            None => Standing::In(self.back_since.map_or(1.0, |since| share(settings.slow_start, since, now))),
        }
    }
}

/// What a server gets of its share that is back since then.
fn share(slow_start: Duration, since: Instant, now: Instant) -> f32 {
    let past = now.saturating_duration_since(since);
    if past >= slow_start { 1.0 } else { past.div_duration_f32(slow_start).max(LEAST_SHARE) }
}
