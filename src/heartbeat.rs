//! A watchdog for the threads: whether each one still runs the tasks that are ready.
//!
//! A thread that hangs (in a loop, in a lock, in a system call) answers no request and cannot report it.
//! So each thread beats once a second, and another thread counts the seconds without a beat. It counts
//! its own seconds: while the whole process is stopped (by a debugger, on a suspended machine), none
//! pass, and no thread is taken for one that hangs.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// After how many seconds without a beat a thread is reported as hanging: longer than any task runs
/// without a pause.
pub const HANG_THRESHOLD_S: u64 = 10;

const SECOND: Duration = Duration::from_secs(1);

/// The heartbeat of one thread.
#[derive(Debug)]
pub struct Heartbeat {
    /// The name, as in logs and metrics.
    pub thread: String,
    is_watched: AtomicBool,
    /// Seconds since the last beat.
    silent: AtomicU64,
    /// How often it has reached [`HANG_THRESHOLD_S`].
    stalls: AtomicU64,
}

impl Heartbeat {
    /// For a thread that has not been started yet.
    pub fn new(thread: String) -> Arc<Self> {
        let (silent, stalls) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { thread, is_watched: AtomicBool::new(false), silent, stalls })
    }

    /// From now on the thread has to beat.
    pub fn start(&self) {
        self.is_watched.store(true, Ordering::Relaxed);
    }

    /// The thread ends regularly. Not called by a thread that panics, which so is reported as hanging.
    pub fn stop(&self) {
        self.is_watched.store(false, Ordering::Relaxed);
        self.silent.store(0, Ordering::Relaxed);
    }

    /// Beats once a second on the thread that this runs on.
    pub async fn run(&self) -> Infallible {
        loop {
            self.beat();
            tokio::time::sleep(SECOND).await;
        }
    }

    fn beat(&self) {
        let silent_s = self.silent.swap(0, Ordering::Relaxed);
        if silent_s >= HANG_THRESHOLD_S {
            tracing::warn!(thread = self.thread, silent_s, "a thread that hung runs again");
        }
    }

    /// One more second has passed.
    fn tick(&self) {
        if !self.is_watched.load(Ordering::Relaxed) {
            return;
        }
        let silent_s = self.silent.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if silent_s == HANG_THRESHOLD_S {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            tracing::error!(thread = self.thread, silent_s, "a thread hangs");
        }
    }

    /// Seconds since the last beat, about.
    pub fn silent_s(&self) -> u64 {
        self.silent.load(Ordering::Relaxed)
    }

    /// How often it has hung so far.
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }
}

/// The heartbeats of all threads.
#[derive(Debug, Default)]
pub struct Heartbeats(pub Vec<Arc<Heartbeat>>);

impl Heartbeats {
    /// Counts the seconds. Must run on a thread that is not one of these.
    pub async fn watch(&self) -> Infallible {
        loop {
            tokio::time::sleep(SECOND).await;
            for heartbeat in &self.0 {
                heartbeat.tick();
            }
        }
    }

    /// The threads that hang now.
    pub fn hanging(&self) -> impl Iterator<Item = &Heartbeat> {
        self.0
            .iter()
            .map(|heartbeat| &**heartbeat)
            .filter(|heartbeat| heartbeat.silent_s() >= HANG_THRESHOLD_S)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hanging(all: &Heartbeats) -> Vec<(&str, u64)> {
        all.hanging().map(|one| (one.thread.as_str(), one.silent_s())).collect()
    }

    fn pass(all: &Heartbeats, seconds: u64) {
        for _ in 0..seconds {
            all.0.iter().for_each(|heartbeat| heartbeat.tick());
        }
    }

    #[test]
    fn a_thread_hangs_after_ten_seconds_without_a_beat_and_until_the_next() {
        let all = Heartbeats(["a", "b", "c"].map(|name| Heartbeat::new(name.into())).into());
        let [a, b, c] = &all.0[..] else { unreachable!() };
        pass(&all, 100);
        assert_eq!(hanging(&all), [], "none has started");
        all.0.iter().for_each(|one| one.start());
        for _ in 0..9 {
            pass(&all, 1);
            a.beat();
        }
        assert_eq!(hanging(&all), []);
        c.stop();
        pass(&all, 1);
        assert_eq!(hanging(&all), [("b", 10)], "c has ended regularly");
        pass(&all, 5);
        assert_eq!((hanging(&all), b.stalls()), (vec![("b", 15)], 1));
        b.beat();
        assert_eq!(hanging(&all), []);
        pass(&all, 4);
        assert_eq!(hanging(&all), [("a", 10)]);
        pass(&all, 6);
        assert_eq!((a.stalls(), b.stalls(), c.stalls()), (1, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_beats_does_not_hang() {
        let all = Heartbeats(vec![Heartbeat::new("a".into())]);
        all.0[0].start();
        let watch = async { tokio::join!(all.watch(), all.0[0].run()) };
        let _ = tokio::time::timeout(Duration::from_secs(1_000), watch).await;
        assert!(all.0[0].silent_s() <= 2);
        let _ = tokio::time::timeout(Duration::from_secs(1_000), all.watch()).await;
        assert!(all.0[0].silent_s() >= 990 && all.0[0].stalls() == 1);
    }
}
