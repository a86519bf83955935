//! How much is asked of Rails at one time, by class of route.
//!
//! Classes do not share: while Rails decides on `/allowed`, Gitaly calls back, and a limit that both
//! wait for would never let go. Who has to wait does so in order; who would wait for too long hears so
//! at once, while there is still time to ask elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::route::Class;

/// What `[upstream.classes.…]` of the configuration says of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many requests Rails is given at one time.
    pub concurrency: usize,
    /// How many more may wait.
    pub queue: usize,
    /// For how long.
    pub queue_timeout: Duration,
    /// How long Rails may take from the request to the head of its answer.
    pub response_timeout: Duration,
    /// How long an answer may take in all, from the request to its end, waiting included; zero is for as long as
    /// it takes.
    pub total_timeout: Duration,
    /// How long a request waits for a Rails that is away.
    pub hold: Duration,
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Shed {
    /// As many are waiting as may.
    QueueFull = 0,
    /// It has waited for as long as it may.
    QueueTimeout = 1,
    /// At the speed at which Rails answers, it would have waited for longer than it may.
    QueueTooSlow = 2,
    /// It is nobody's need, and Rails has enough to do.
    Busy = 3,
}

impl Shed {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::QueueTimeout, Self::QueueTooSlow, Self::Busy];

    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::QueueTooSlow => "queue_too_slow",
            Self::Busy => "busy",
        }
    }
}

/// The limits of all classes.
#[derive(Debug)]
pub struct Lanes {
    lanes: [Lane; Class::ALL.len()],
}

/// The limit of one.
#[derive(Debug)]
pub struct Lane {
    settings: Settings,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// A moving average of how long Rails takes, in microseconds.
    takes_us: AtomicU64,
    /// Requests that were not sent, by [`Shed`].
    pub shed: [AtomicU64; Shed::ALL.len()],
}

impl Lanes {
    pub(super) fn new(settings: &[Settings; Class::ALL.len()]) -> Self {
        Self { lanes: settings.map(Lane::new) }
    }

    /// That of one class.
    pub fn of(&self, class: Class) -> &Lane {
        class.of(&self.lanes)
    }
}

impl Lane {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            permits: Arc::new(Semaphore::new(settings.concurrency)),
            waiting: AtomicUsize::new(0),
            takes_us: AtomicU64::new(0),
            shed: Default::default(),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many requests Rails has now.
    pub fn in_flight(&self) -> usize {
        self.settings.concurrency.saturating_sub(self.permits.available_permits())
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A permit to ask Rails, to be kept until the answer has come to its end, if there is one at once.
    pub(super) fn try_admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// The same; with `may_wait`, after a while.
    pub(super) async fn admit(&self, may_wait: bool) -> Result<OwnedSemaphorePermit, Shed> {
        if let Some(permit) = self.try_admit() {
            return Ok(permit);
        }
        self.wait(may_wait).await.inspect_err(|shed| {
            if let Some(count) = self.shed.get(*shed as usize) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    async fn wait(&self, may_wait: bool) -> Result<OwnedSemaphorePermit, Shed> {
        if !may_wait {
            return Err(Shed::Busy);
        }
        let place = Waiting::join(&self.waiting);
        if place.ahead >= self.settings.queue {
            return Err(Shed::QueueFull);
        }
        if self.expected_wait(place.ahead) > self.settings.queue_timeout {
            return Err(Shed::QueueTooSlow);
        }
        let permit = Arc::clone(&self.permits).acquire_owned();
        match tokio::time::timeout(self.settings.queue_timeout, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            // It is never closed.
            _ => Err(Shed::QueueTimeout),
        }
    }

    /// Until as many have ended as are before.
    fn expected_wait(&self, ahead: usize) -> Duration {
        let rounds = (ahead + 1) as u64 * self.takes_us.load(Ordering::Relaxed);
        Duration::from_micros(rounds / self.settings.concurrency.max(1) as u64)
    }

    /// Rails took so long for one. The last eight or so count.
    pub(super) fn took(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(1 << 40);
        let before = self.takes_us.load(Ordering::Relaxed);
        let now = if before == 0 { time } else { (before * 7 + time) / 8 };
        // Two at a time may forget one, which is one of many.
        self.takes_us.store(now, Ordering::Relaxed);
    }
}

/// A place in the queue.
struct Waiting<'w> {
    waiting: &'w AtomicUsize,
    ahead: usize,
}

impl<'w> Waiting<'w> {
    fn join(waiting: &'w AtomicUsize) -> Self {
        Self { waiting, ahead: waiting.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn lane() -> Lane {
        Lane::new(Settings { concurrency: 2, queue: 2, ..super::super::DEFAULT_CLASS })
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_does_so_in_order_and_not_for_ever() {
        let lane = lane();
        let first = lane.admit(true).await.unwrap();
        let _second = lane.admit(true).await.unwrap();
        assert_eq!((lane.in_flight(), lane.waiting()), (2, 0));
        let (mut third, mut fourth) = (Box::pin(lane.admit(true)), Box::pin(lane.admit(true)));
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        assert_eq!(lane.admit(true).await.err(), Some(Shed::QueueFull));
        assert_eq!(lane.admit(false).await.err(), Some(Shed::Busy));
        assert_eq!((lane.in_flight(), lane.waiting()), (2, 2));
        drop(first);
        assert!(fourth.as_mut().now_or_never().is_none(), "out of turn");
        let third = third.await.unwrap();
        assert_eq!(fourth.await.err(), Some(Shed::QueueTimeout));
        drop(third);
        assert_eq!((lane.in_flight(), lane.waiting()), (1, 0));
        let shed = lane.shed.each_ref().map(|count| count.load(Ordering::Relaxed));
        assert_eq!(shed, [1, 1, 0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_for_too_long_hears_so_at_once() {
        let lane = lane();
        for _ in 0..20 {
            lane.took(lane.settings.queue_timeout * 2);
        }
        let permits = [lane.admit(true).await.unwrap(), lane.admit(true).await.unwrap()];
        let begun = tokio::time::Instant::now();
        // The one that comes first has to wait for half of an answer, which is just in time.
        let mut first = Box::pin(lane.admit(true));
        assert!(first.as_mut().now_or_never().is_none());
        assert_eq!(lane.admit(true).await.err(), Some(Shed::QueueTooSlow));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop(permits);
        assert!(first.await.is_ok());
    }

    #[tokio::test]
    async fn one_that_leaves_the_queue_is_out_of_it() {
        let lane = lane();
        let permits = [lane.admit(true).await.unwrap(), lane.admit(true).await.unwrap()];
        let mut leaves = Box::pin(lane.admit(true));
        assert!(leaves.as_mut().now_or_never().is_none());
        assert_eq!(lane.waiting(), 1);
        drop(leaves);
        assert_eq!(lane.waiting(), 0);
        drop(permits);
        assert_eq!(lane.in_flight(), 0);
    }
}
