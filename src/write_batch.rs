//! Batches the writes of an event loop iteration: of what a worker does between two waits for its sockets.
//!
//! A write wakes its reader, if that sleeps, at the writer's cost. If each response is written as soon as
//! it is made, a quick reader has fallen asleep again before each of them; if they are written right
//! after one another, it is woken once. So in an iteration that has several messages to write, the writes
//! wait until all other ready tasks have been polled. An iteration with few messages writes them at once,
//! so that no client waits.
//!
//! Each worker has a thread, and each thread its own event loop. A thread that does not report the end of its
//! iterations writes everything at once.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Context, Poll};

/// From so many messages on, in this iteration or the one before, writes are put off to its end.
const BATCH_MIN_MESSAGES: u32 = 4;

/// From so many bytes on, a message is a part of a stream, whose reader has enough to do to stay
/// awake.
const STREAM_BYTES: usize = 4 * 1024;

thread_local! {
    static MESSAGES: Cell<u32> = const { Cell::new(0) };
    static MESSAGES_BEFORE: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Ends an iteration: the thread has nothing more to do and is about to wait. To be called by the runtime
/// before it parks.
pub fn end_iteration() {
    MESSAGES_BEFORE.set(Some(MESSAGES.replace(0)));
}

/// Decides when one connection writes. Its first message is written at once: for connections
/// that have only one, as those of GitLab Shell, putting it off costs more than it saves.
#[derive(Debug)]
pub struct WritePacer {
    is_due: bool,
}

impl Default for WritePacer {
    fn default() -> Self {
        Self { is_due: true }
    }
}

impl WritePacer {
    /// Ready when it is time to write so many bytes. If it is not, the task is polled again after all
    /// tasks that are ready now: single-threaded runtimes poll them in the order in which they
    /// were woken.
    pub fn poll_ready(&mut self, bytes: usize, cx: &Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.is_due) || bytes >= STREAM_BYTES {
            return Poll::Ready(());
        }
        let Some(before) = MESSAGES_BEFORE.get() else { return Poll::Ready(()) };
        let messages = MESSAGES.get().saturating_add(1);
        MESSAGES.set(messages);
        if messages.max(before) < BATCH_MIN_MESSAGES {
            return Poll::Ready(());
        }
        self.is_due = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Waits until it is time to write a message of at least so many bytes that is not the first of its connection.
pub async fn wait_to_write(bytes: u64) {
    let (mut pacer, bytes) = (WritePacer { is_due: false }, usize::try_from(bytes).unwrap_or(usize::MAX));
    poll_fn(|cx| pacer.poll_ready(bytes, cx)).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::Barrier;
    use tokio::task::JoinSet;

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_park(end_iteration)
            .build()
            .unwrap()
    }

    /// What `messages` tasks do that can all go on in one turn: `r` for reading, `s` for sending.
    async fn turn(messages: usize) -> String {
        let (begin, log) = (Arc::new(Barrier::new(messages)), Arc::new(Mutex::new(String::new())));
        let mut tasks = JoinSet::new();
        for _ in 0..messages {
            let (begin, log, mut pacer) = (Arc::clone(&begin), Arc::clone(&log), WritePacer::default());
            tasks.spawn(async move {
                poll_fn(|cx| pacer.poll_ready(1, cx)).await;
                begin.wait().await;
                log.lock().push('r');
                poll_fn(|cx| pacer.poll_ready(1, cx)).await;
                log.lock().push('s');
            });
        }
        tasks.join_all().await;
        // Nothing is left to do but to wait, so the turn is over.
        tokio::time::sleep(Duration::from_millis(1)).await;
        std::mem::take(&mut log.lock())
    }

    #[test]
    fn few_messages_are_written_at_once_and_many_at_the_end_of_the_iteration() {
        runtime().block_on(async {
            for _ in 0..3 {
                assert_eq!(turn(1).await, "rs");
                assert_eq!(turn(3).await, "rsrsrs");
            }
            assert_eq!(turn(6).await, "rsrsrsrrrsss", "at first it is not known how many there will be");
            assert_eq!(turn(6).await, "rrrrrrssssss");
            assert_eq!(turn(2).await, "rrss", "as busy as the turn before");
            assert_eq!(turn(2).await, "rsrs");
        });
    }

    #[test]
    fn a_message_is_put_off_once_and_never_without_iterations() {
        let mut pacer = WritePacer::default();
        let cx = Context::from_waker(Waker::noop());
        let mut sent = |polls: usize| -> String {
            (0..polls).map(|_| if pacer.poll_ready(1, &cx).is_ready() { 's' } else { '-' }).collect()
        };
        assert_eq!(sent(10), "ssssssssss");
        end_iteration();
        assert_eq!(sent(11), "sss-s-s-s-s");
        let mut new = WritePacer::default();
        assert!(new.poll_ready(1, &cx).is_ready(), "the first goes at once");
        assert!(new.poll_ready(STREAM_BYTES, &cx).is_ready(), "a stream is not put off");
        assert!(new.poll_ready(STREAM_BYTES - 1, &cx).is_pending());
        end_iteration();
        assert_eq!(sent(4), "-s-s");
        end_iteration();
        assert_eq!(sent(4), "sss-");
    }
}
