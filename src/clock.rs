//! The only place that asks what time it is.
//!
//! Everything that depends on time (token lifetimes, the age of a cached answer) takes it from a
//! [`Clock`] or as an argument, so that tests decide when it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wall time for credentials and expiry dates, monotonic time for ages.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clocks. The monotonic one follows tokio's, so paused time works in tests.
    #[default]
    System,
    /// A clock that moves only when it is told to.
    Manual(Manual),
}

impl Clock {
    /// Whole seconds since the Unix epoch, as JWT claims count them (RFC 7519 §2, `NumericDate`).
    pub fn unix_seconds(&self) -> i64 {
        i64::try_from(self.unix().as_secs()).unwrap_or(i64::MAX)
    }

    /// Time since the Unix epoch, for what outlives the process.
    pub fn unix(&self) -> Duration {
        match self {
            Self::System => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Self::Manual(manual) => manual.unix(),
        }
    }

    /// A monotonic instant, for ages and deadlines.
    pub fn now(&self) -> Instant {
        match self {
            Self::System => tokio::time::Instant::now().into_std(),
            Self::Manual(manual) => manual.now(),
        }
    }
}

/// Time that stands still until [`Manual::advance`] is called.
#[derive(Clone, Debug)]
pub struct Manual {
    base: Instant,
    base_unix: Duration,
    elapsed_ms: Arc<AtomicU64>,
    /// How far the wall clock was set ahead of the monotonic one.
    stepped_ms: Arc<AtomicI64>,
}

impl Manual {
    /// A clock that shows `unix_seconds`.
    pub fn at(unix_seconds: i64) -> Self {
        let base_unix = Duration::from_secs(u64::try_from(unix_seconds).unwrap_or_default());
        Self { base: Instant::now(), base_unix, elapsed_ms: Arc::default(), stepped_ms: Arc::default() }
    }

    /// Moves both the wall and the monotonic time forward, to the millisecond.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.elapsed_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock ahead by so many seconds, or back; the monotonic one does not notice.
    pub fn step_wall(&self, seconds: i64) {
        self.stepped_ms.fetch_add(seconds.saturating_mul(1_000), Ordering::SeqCst);
    }

    fn unix(&self) -> Duration {
        let stepped = self.stepped_ms.load(Ordering::SeqCst);
        let by = Duration::from_millis(stepped.unsigned_abs());
        let unstepped = self.base_unix + self.elapsed();
        if stepped < 0 { unstepped.saturating_sub(by) } else { unstepped + by }
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::SeqCst))
    }

    fn now(&self) -> Instant {
        self.base + self.elapsed()
    }
}
