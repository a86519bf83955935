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
    /// For tests.
    Manual(ManualClock),
}

impl Clock {
    /// Whole seconds since the Unix epoch, as JWT claims count them (RFC 7519 §2, `NumericDate`).
    pub fn unix_seconds(&self) -> i64 {
        i64::try_from(self.unix_time().as_secs()).unwrap_or(i64::MAX)
    }

    /// Time since the Unix epoch, for what outlives the process.
    pub fn unix_time(&self) -> Duration {
        match self {
            Self::System => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Self::Manual(manual) => manual.unix_time(),
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

/// `CLOCK_MONOTONIC` in microseconds, as the service manager compares it with its own.
pub fn monotonic_microseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let whole = u64::try_from(now.tv_sec).unwrap_or_default().saturating_mul(1_000_000);
    whole.saturating_add(u64::try_from(now.tv_nsec / 1_000).unwrap_or_default())
}

/// Time that stands still until [`ManualClock::advance`] is called.
#[derive(Clone, Debug)]
pub struct ManualClock {
    start: Instant,
    unix_start: Duration,
    elapsed_ms: Arc<AtomicU64>,
    /// How far the wall clock was set ahead of the monotonic one.
    wall_offset_ms: Arc<AtomicI64>,
}

impl ManualClock {
    /// A clock that shows `unix_seconds`.
    pub fn at(unix_seconds: i64) -> Self {
        let unix_start = Duration::from_secs(u64::try_from(unix_seconds).unwrap_or_default());
        Self { start: Instant::now(), unix_start, elapsed_ms: Arc::default(), wall_offset_ms: Arc::default() }
    }

    /// Moves both the wall and the monotonic time forward, to the millisecond.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.elapsed_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock ahead by so many seconds, or back; the monotonic one does not change.
    pub fn step_wall(&self, seconds: i64) {
        self.wall_offset_ms.fetch_add(seconds.saturating_mul(1_000), Ordering::SeqCst);
    }

    fn unix_time(&self) -> Duration {
        let offset_ms = self.wall_offset_ms.load(Ordering::SeqCst);
        let offset = Duration::from_millis(offset_ms.unsigned_abs());
        let unstepped = self.unix_start + self.elapsed();
        if offset_ms < 0 { unstepped.saturating_sub(offset) } else { unstepped + offset }
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::SeqCst))
    }

    fn now(&self) -> Instant {
        self.start + self.elapsed()
    }
}
