//! How long somebody is waited for, at the price of one look at the clock.
//!
//! Connections wait before every request. Setting a timer for each wait and taking it back costs
//! more than the rest of the gate, so the timer stays where it is: it wakes the connection when
//! the wait that it was set for would have been over, and is set anew only then.

use std::future::Future as _;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::clock::Clock;

/// A bound on waits, of which one may be under way.
#[derive(Debug, Default)]
pub(super) struct Patience {
    due: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// What was waited for is there, or something else is waited for now.
    pub(super) fn renew(&mut self) {
        self.due = None;
    }

    /// Whether something is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.due.is_some()
    }

    /// Whether the wait has lasted for `limit`. It begins with the first call since the last
    /// [`renew`](Self::renew). If not, the task is woken when it has.
    pub(super) fn is_over(&mut self, limit: Duration, cx: &mut Context<'_>) -> bool {
        let now = now();
        let due = *self.due.get_or_insert_with(|| now + limit);
        now >= due || self.wake_at(due, cx)
    }

    /// The same for a wait that began `since`.
    pub(super) fn is_over_since(&mut self, since: Instant, limit: Duration, cx: &mut Context<'_>) -> bool {
        self.due = Some(since + limit);
        self.is_over(limit, cx)
    }

    /// Nothing is waited for yet, but soon will be: the task is woken within `limit`, to look then.
    pub(super) fn look_within(&mut self, limit: Duration, cx: &mut Context<'_>) {
        self.due = None;
        while self.timer.as_ref().is_none_or(|timer| timer.is_elapsed()) {
            if !self.wake_at(now() + limit, cx) {
                return;
            }
        }
    }

    fn wake_at(&mut self, due: Instant, cx: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() > due || timer.is_elapsed() {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

pub(super) fn now() -> Instant {
    Instant::from_std(Clock::System.now())
}
