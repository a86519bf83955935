//! A deadline for the waits of a connection, at the price of reading the clock.
//!
//! Connections wait before every request. Setting and cancelling a timer for each wait costs
//! more than the rest of the gate, so the timer is left as it is: it wakes the task at the deadline of
//! an earlier wait, and is reset only then.
//!
//! tower-http's `Timeout` sets a timer for each request (500 instructions, where a hit has 32,000), and bounds neither
//! the head of a request nor its body.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::clock::Clock;

/// The deadline of the current wait, if there is one.
#[derive(Debug, Default)]
pub(super) struct DeadlineTimer {
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl DeadlineTimer {
    /// Ends the wait.
    pub(super) fn clear(&mut self) {
        self.deadline = None;
    }

    /// Whether there is a wait.
    pub(super) fn is_armed(&self) -> bool {
        self.deadline.is_some()
    }

    /// Whether the wait has lasted for `limit`. It begins with the first call since the last
    /// [`clear`](Self::clear). If it has not, the task is woken when it has.
    pub(super) fn is_expired(&mut self, limit: Duration, cx: &mut Context<'_>) -> bool {
        let now = now();
        let deadline = *self.deadline.get_or_insert_with(|| now + limit);
        now >= deadline || self.wake_at(deadline, cx)
    }

    /// The same for a wait that began `since`.
    pub(super) fn is_expired_since(&mut self, since: Instant, limit: Duration, cx: &mut Context<'_>) -> bool {
        self.deadline = Some(since + limit);
        self.is_expired(limit, cx)
    }

    /// Turns `progress` into an error if it was pending for `limit`.
    pub(super) fn limit<T>(
        &mut self,
        progress: Poll<io::Result<T>>,
        limit: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match progress {
            Poll::Pending if self.is_expired(limit, cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(progress) => {
                self.clear();
                Poll::Ready(progress)
            }
        }
    }

    /// Ends the wait, and wakes the task within `limit`, so that it can begin the next one.
    pub(super) fn wake_within(&mut self, limit: Duration, cx: &mut Context<'_>) {
        self.deadline = None;
        while self.timer.as_ref().is_none_or(|timer| timer.is_elapsed()) {
            if !self.wake_at(now() + limit, cx) {
                return;
            }
        }
    }

    fn wake_at(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline || timer.is_elapsed() {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

pub(super) fn now() -> Instant {
    Instant::from_std(Clock::System.now())
}
