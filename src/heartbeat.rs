//! Whether each thread still turns: runs what is ready, one task after another.
//!
//! A thread that hangs (in a loop, in a lock, in a system call) answers no request and cannot say so itself.
//! So each says once a second that it turns, and another thread counts the seconds of silence. It counts
//! its own seconds: while the whole process stands still (a debugger, a machine that is suspended), none
//! pass, and no thread is blamed.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// After how many seconds of silence a thread counts as one that hangs: longer than anything that it
/// does at one go takes.
pub const HANGS_AFTER: u64 = 10;

const SECOND: Duration = Duration::from_secs(1);

/// What is known of one thread.
#[derive(Debug)]
pub struct Heartbeat {
    /// The thread's name.
    pub thread: String,
    is_watched: AtomicBool,
    /// Seconds since it last said that it turns.
    silent: AtomicU64,
    /// How often it has been silent for [`HANGS_AFTER`].
    stalls: AtomicU64,
}

impl Heartbeat {
    /// Of a thread that has not been started.
    pub fn new(thread: String) -> Arc<Self> {
        let (silent, stalls) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { thread, is_watched: AtomicBool::new(false), silent, stalls })
    }

    /// From now on silence means something.
    pub fn begin(&self) {
        self.is_watched.store(true, Ordering::Relaxed);
    }

    /// The thread ends in order. One that dies is silent for ever.
    pub fn end(&self) {
        self.is_watched.store(false, Ordering::Relaxed);
        self.silent.store(0, Ordering::Relaxed);
    }

    /// Says again and again that the thread turns on which this runs.
    pub async fn run(&self) -> Infallible {
        loop {
            self.beat();
            tokio::time::sleep(SECOND).await;
        }
    }

    fn beat(&self) {
        let silent_s = self.silent.swap(0, Ordering::Relaxed);
        if silent_s >= HANGS_AFTER {
            tracing::warn!(thread = self.thread, silent_s, "a thread turns again that did not");
        }
    }

    /// One more second has passed.
    fn tick(&self) {
        if !self.is_watched.load(Ordering::Relaxed) {
            return;
        }
        let silent_s = self.silent.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if silent_s == HANGS_AFTER {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            tracing::error!(thread = self.thread, silent_s, "a thread does not turn any more");
        }
    }

    /// Seconds since it last said that it turns, about.
    pub fn silent_s(&self) -> u64 {
        self.silent.load(Ordering::Relaxed)
    }

    /// How often it has hung.
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }
}

/// All threads that are watched.
#[derive(Debug, Default)]
pub struct Heartbeats(pub Vec<Arc<Heartbeat>>);

impl Heartbeats {
    /// Counts the seconds of silence. To run on a thread that is not among those.
    pub async fn watch(&self) -> Infallible {
        loop {
            tokio::time::sleep(SECOND).await;
            for heartbeat in &self.0 {
                heartbeat.tick();
            }
        }
    }

    /// The threads that hang.
    pub fn hanging(&self) -> impl Iterator<Item = &Heartbeat> {
        self.0.iter().map(|heartbeat| &**heartbeat).filter(|heartbeat| heartbeat.silent_s() >= HANGS_AFTER)
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
    fn who_is_silent_for_ten_seconds_hangs_until_it_turns_again() {
        let all = Heartbeats(["a", "b", "c"].map(|name| Heartbeat::new(name.into())).into());
        let [a, b, c] = &all.0[..] else { unreachable!() };
        pass(&all, 100);
        assert_eq!(hanging(&all), [], "none has begun");
        all.0.iter().for_each(|one| one.begin());
        for _ in 0..9 {
            pass(&all, 1);
            a.beat();
        }
        assert_eq!(hanging(&all), []);
        c.end();
        pass(&all, 1);
        assert_eq!(hanging(&all), [("b", 10)], "c has ended in order");
        pass(&all, 5);
        assert_eq!((hanging(&all), b.stalls()), (vec![("b", 15)], 1));
        b.beat();
        assert_eq!(hanging(&all), []);
        pass(&all, 4);
        assert_eq!(hanging(&all), [("a", 10)]);
        pass(&all, 6);
        assert_eq!((a.stalls(), b.stalls(), c.stalls()), (1, 2, 0));
    }

    /// A thread that turns is never blamed, however long it takes.
    #[tokio::test(start_paused = true)]
    async fn a_thread_that_turns_does_not_hang() {
        let all = Heartbeats(vec![Heartbeat::new("a".into())]);
        all.0[0].begin();
        let watch = async { tokio::join!(all.watch(), all.0[0].run()) };
        let _ = tokio::time::timeout(Duration::from_secs(1_000), watch).await;
        assert!(all.0[0].silent_s() <= 2);
        let _ = tokio::time::timeout(Duration::from_secs(1_000), all.watch()).await;
        assert!(all.0[0].silent_s() >= 990 && all.0[0].stalls() == 1);
    }
}
