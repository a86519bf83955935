//! A look at the files of secrets, when a caller's secret is not known: the file may have changed a moment ago.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Looks at the files of secrets.
pub trait RefreshSecrets: fmt::Debug + Send + Sync {
    /// Takes over what has changed. Costs a system call for each file if nothing has. Files may be on a disk that
    /// hangs, so it is not for a thread with an event loop.
    fn refresh(&self);
}

/// How long a caller waits for the look. Callers that nobody knows can ask for it, so a disk that hangs must cost them
/// no more, and the thread nothing.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// Looks at the files of secrets, if there are any and the gateway still runs. Clones take turns.
#[derive(Clone, Debug, Default)]
pub struct SecretRefresher(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    watcher: Weak<dyn RefreshSecrets>,
    /// One look at a time: with a disk that hangs, one thread hangs.
    turn: Arc<Semaphore>,
    /// How many looks have begun.
    begun: AtomicU64,
    /// Somebody has waited in vain for the one that runs.
    is_stuck: AtomicBool,
}

impl SecretRefresher {
    /// Asks `watcher`.
    pub fn new(watcher: Weak<dyn RefreshSecrets>) -> Self {
        let (turn, begun, is_stuck) =
            (Arc::new(Semaphore::new(1)), AtomicU64::new(0), AtomicBool::new(false));
        Self(Some(Arc::new(Shared { watcher, turn, begun, is_stuck })))
    }

    /// Returns after a look that has begun after the call, or when that takes too long. See
    /// [`RefreshSecrets::refresh`].
    pub async fn refresh(&self) {
        let Some(shared) = &self.0 else { return };
        if shared.turn.available_permits() == 0 && shared.is_stuck.load(Ordering::Relaxed) {
            return;
        }
        if tokio::time::timeout(MAX_WAIT, shared.look()).await.is_err() {
            shared.is_stuck.store(true, Ordering::Relaxed);
        }
    }
}

impl Shared {
    async fn look(&self) {
        let before = self.begun.load(Ordering::Acquire);
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return };
        // One look is enough for all that have waited for it to begin.
        if self.begun.load(Ordering::Acquire) != before {
            return;
        }
        let Some(watcher) = self.watcher.upgrade() else { return };
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.is_stuck.store(false, Ordering::Relaxed);
        // It fails only by a panic, which is logged.
        let _ = spawn_blocking(move || {
            watcher.refresh();
            drop(turn);
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;

    /// Each look waits for a word.
    #[derive(Debug)]
    struct SlowDisk {
        begins: Sender<()>,
        ends: Mutex<Receiver<()>>,
    }

    impl RefreshSecrets for SlowDisk {
        fn refresh(&self) {
            self.begins.send(()).unwrap();
            let _ = self.ends.lock().unwrap().recv();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_holds_up_neither_the_thread_nor_more_than_one_other() {
        let ((begins, begun), (end, ends)) = (channel(), channel());
        let disk = Arc::new(SlowDisk { begins, ends: Mutex::new(ends) });
        let watcher: Weak<dyn RefreshSecrets> = Arc::<SlowDisk>::downgrade(&disk);
        let refresher = SecretRefresher::new(watcher);
        let all = || join_all((0..9).map(|_| refresher.refresh()));
        tokio::join!(all(), tokio::time::advance(MAX_WAIT * 2));
        begun.recv().unwrap();
        assert!(refresher.refresh().now_or_never().is_some(), "it is known to hang");
        assert!(begun.try_recv().is_err(), "they take turns");
        end.send(()).unwrap();
        while refresher.0.as_ref().unwrap().turn.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        // It goes on, so files are looked at again; one look serves all that wait for it to begin.
        let mut all = Box::pin(all());
        assert!(all.as_mut().now_or_never().is_none());
        for _ in 0..9 {
            end.send(()).unwrap();
        }
        all.await;
        assert_eq!(begun.try_iter().count(), 2);
    }

    #[tokio::test]
    async fn nothing_waits_where_there_is_nothing_to_look_at() {
        SecretRefresher::default().refresh().await;
        let gone: Weak<dyn RefreshSecrets> = Weak::<SlowDisk>::new();
        SecretRefresher::new(gone).refresh().await;
    }
}
