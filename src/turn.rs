//! A turn of a worker: what it does between two waits for its sockets.
//!
//! Whoever is sent something is woken, if it sleeps, at the sender's cost. Answers that are sent
//! each as soon as it is made find a quick reader asleep again, each of them; sent one right after
//! another they find it awake, after the first. So in a turn that has several messages to send,
//! they wait until the others that can go on have had their turn. A turn with hardly anything
//! to send does not wait: nobody is made to.
//!
//! Each worker has a thread, and each thread its turns. One that does not say when they end sends
//! everything at once.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Context, Poll};

/// From so many messages on, in this turn or the one before, a turn sends at its end.
const SEVERAL: u32 = 4;

/// From so many bytes on, a message is a part of a stream, whose reader has enough to do to stay
/// awake.
const LARGE: usize = 4 * 1024;

thread_local! {
    static MESSAGES: Cell<u32> = const { Cell::new(0) };
    static MESSAGES_BEFORE: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The thread has nothing more to do and is about to wait. Runtimes have to say so, before they park.
pub fn ends() {
    MESSAGES_BEFORE.set(Some(MESSAGES.replace(0)));
}

/// When one connection sends what it has to send. Its first message goes at once: for connections
/// that have only one, as those of GitLab Shell, putting it off costs more than it saves.
#[derive(Debug)]
pub struct Pace {
    is_due: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { is_due: true }
    }
}

impl Pace {
    /// Ready when it is time to send so many bytes. If it is not, the task is polled again when all
    /// others have been that can go on now: runtimes of one thread poll them in the order in which they
    /// were woken.
    pub fn poll_send(&mut self, bytes: usize, cx: &Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.is_due) || bytes >= LARGE {
            return Poll::Ready(());
        }
        let Some(before) = MESSAGES_BEFORE.get() else { return Poll::Ready(()) };
        let messages = MESSAGES.get().saturating_add(1);
        MESSAGES.set(messages);
        if messages.max(before) < SEVERAL {
            return Poll::Ready(());
        }
        self.is_due = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Waits until it is time to send a message of at least so many bytes that is nobody's first.
pub async fn to_send(bytes: u64) {
    let (mut pace, bytes) = (Pace { is_due: false }, usize::try_from(bytes).unwrap_or(usize::MAX));
    poll_fn(|cx| pace.poll_send(bytes, cx)).await;
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
        Builder::new_current_thread().enable_time().start_paused(true).on_thread_park(ends).build().unwrap()
    }

    /// What `messages` tasks do that can all go on in one turn: `r` for reading, `s` for sending.
    async fn turn(messages: usize) -> String {
        let (begin, log) = (Arc::new(Barrier::new(messages)), Arc::new(Mutex::new(String::new())));
        let mut tasks = JoinSet::new();
        for _ in 0..messages {
            let (begin, log, mut pace) = (Arc::clone(&begin), Arc::clone(&log), Pace::default());
            tasks.spawn(async move {
                poll_fn(|cx| pace.poll_send(1, cx)).await;
                begin.wait().await;
                log.lock().push('r');
                poll_fn(|cx| pace.poll_send(1, cx)).await;
                log.lock().push('s');
            });
        }
        tasks.join_all().await;
        // Nothing is left to do but to wait, so the turn is over.
        tokio::time::sleep(Duration::from_millis(1)).await;
        std::mem::take(&mut log.lock())
    }

    #[test]
    fn a_few_messages_are_sent_at_once_and_many_at_the_end_of_the_turn() {
        runtime().block_on(async {
            for _ in 0..3 {
                assert_eq!(turn(1).await, "rs");
                assert_eq!(turn(3).await, "rsrsrs");
            }
            assert_eq!(turn(6).await, "rsrsrsrrrsss", "at first nobody knows how many there will be");
            assert_eq!(turn(6).await, "rrrrrrssssss");
            assert_eq!(turn(2).await, "rrss", "as busy as the turn before");
            assert_eq!(turn(2).await, "rsrs");
        });
    }

    #[test]
    fn a_message_is_put_off_once_and_where_there_are_no_turns_never() {
        let mut pace = Pace::default();
        let cx = Context::from_waker(Waker::noop());
        let mut sent = |polls: usize| -> String {
            (0..polls).map(|_| if pace.poll_send(1, &cx).is_ready() { 's' } else { '-' }).collect()
        };
        assert_eq!(sent(10), "ssssssssss");
        ends();
        assert_eq!(sent(11), "sss-s-s-s-s");
        let mut new = Pace::default();
        assert!(new.poll_send(1, &cx).is_ready(), "the first goes at once");
        assert!(new.poll_send(LARGE, &cx).is_ready(), "a stream is not put off");
        assert!(new.poll_send(LARGE - 1, &cx).is_pending());
        ends();
        assert_eq!(sent(4), "-s-s");
        ends();
        assert_eq!(sent(4), "sss-");
    }
}
