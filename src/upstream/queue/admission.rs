//! Admission control: how many requests Rails gets at one time, by class of route.
//!
//! Classes do not share a limit: while Rails decides on `/allowed`, Gitaly calls back, and a limit that both
//! wait for would deadlock. Requests of a class wait in order. A request whose expected wait exceeds
//! `queue_timeout` is rejected at once, while its caller still has time to try another gateway.
//!
//! A class whose `sustained_concurrency` is less than its `concurrency` has a [`BurstLimit`], which takes permits out
//! of circulation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::burst::BurstLimit;
use crate::body::Permit;
use crate::counters::Counters;
use crate::route::Class;
use crate::upstream::settings::ClassSettings;

/// Why a request was rejected instead of sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum ShedReason {
    /// The queue of its class is full.
    QueueFull = 0,
    /// It waited in the queue for `queue_timeout`.
    QueueTimeout = 1,
    /// At the current response time of Rails, it would have waited for longer than `queue_timeout`.
    QueueTooSlow = 2,
    /// It may not wait (`WaitPolicy::Never`), and all permits of its class are taken.
    MayNotWait = 3,
}

impl ShedReason {
    /// All variants, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::QueueTimeout, Self::QueueTooSlow, Self::MayNotWait];

    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::QueueTooSlow => "queue_too_slow",
            Self::MayNotWait => "busy",
        }
    }
}

crate::counters::label!(ShedReason);

/// The permits of all classes.
#[derive(Debug)]
pub struct Admission {
    classes: [ClassAdmission; Class::ALL.len()],
}

/// The permits of one class, and the queue for them.
#[derive(Debug)]
pub struct ClassAdmission {
    settings: ClassSettings,
    permits: Arc<Semaphore>,
    /// `None` if the class may always have its whole `concurrency`.
    burst: Option<Arc<BurstLimit>>,
    counts: Arc<AdmissionCounts>,
}

/// What stays when the settings change.
#[derive(Debug, Default)]
struct AdmissionCounts {
    waiting: AtomicUsize,
    /// A moving average of response times, in microseconds.
    mean_response_us: AtomicU64,
    shed_by_reason: Counters<ShedReason>,
}

impl Admission {
    pub(in crate::upstream) fn new(settings: &[ClassSettings; Class::ALL.len()]) -> Self {
        Self { classes: settings.map(ClassAdmission::new) }
    }

    /// The same permits, queues and counters, under other limits.
    pub(in crate::upstream) fn reloaded(&self, settings: &[ClassSettings; Class::ALL.len()]) -> Self {
        Self { classes: Class::ALL.map(|class| self.of(class).reloaded(*class.of(settings))) }
    }

    /// The permits of one class.
    pub fn of(&self, class: Class) -> &ClassAdmission {
        class.of(&self.classes)
    }
}

impl ClassAdmission {
    fn new(settings: ClassSettings) -> Self {
        let permits = Arc::new(Semaphore::new(settings.concurrency));
        let burst = (settings.sustained_concurrency < settings.concurrency).then(|| {
            let limit =
                BurstLimit::new(Arc::clone(&permits), settings.concurrency, settings.sustained_concurrency);
            Arc::new(limit)
        });
        Self { settings, permits, burst, counts: Arc::default() }
    }

    /// Requests that have a permit, or wait for one, count under the new limits too. What was used of a burst stays used.
    fn reloaded(&self, settings: ClassSettings) -> Self {
        let (had, has) = (self.settings.concurrency, settings.concurrency);
        let is_for_bursts = settings.sustained_concurrency < has;
        let (permits, counts) = (Arc::clone(&self.permits), Arc::clone(&self.counts));
        let burst = if let Some(burst) = &self.burst {
            burst.reload(has, settings.sustained_concurrency);
            if !is_for_bursts {
                // It counts no more requests.
                self.take_away(burst.release_surplus());
            }
            is_for_bursts.then(|| Arc::clone(burst))
        } else {
            if has > had {
                permits.add_permits(has - had);
            } else {
                self.take_away(had - has);
            }
            let limit = || BurstLimit::new(Arc::clone(&permits), has, settings.sustained_concurrency);
            is_for_bursts.then(|| Arc::new(limit()))
        };
        Self { settings, permits, burst, counts }
    }

    /// Permits that requests hold are taken away when they come back, before other requests get them.
    fn take_away(&self, permits: usize) {
        let held = permits - self.permits.forget_permits(permits);
        let (all, held) = (Arc::clone(&self.permits), u32::try_from(held).unwrap_or(u32::MAX));
        if held > 0
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                // The semaphore is never closed.
                if let Ok(permits) = all.acquire_many_owned(held).await {
                    permits.forget();
                }
            });
        }
    }

    /// Rejected requests so far.
    pub fn shed_by_reason(&self) -> &Counters<ShedReason> {
        &self.counts.shed_by_reason
    }

    /// The limits that it enforces.
    pub fn settings(&self) -> &ClassSettings {
        &self.settings
    }

    /// How many requests have permits.
    pub fn in_flight(&self) -> usize {
        self.burst.as_ref().map_or_else(
            || self.settings.concurrency.saturating_sub(self.permits.available_permits()),
            |burst| burst.in_flight(),
        )
    }

    /// How many requests Rails gets at one time at present.
    pub fn limit(&self) -> usize {
        self.burst.as_ref().map_or(self.settings.concurrency, |burst| burst.limit())
    }

    fn counted(&self, permit: OwnedSemaphorePermit) -> Permit {
        match &self.burst {
            None => Permit::Semaphore(permit),
            Some(burst) => Permit::Counted(Box::new(burst.count(permit))),
        }
    }

    /// How many requests wait for a permit.
    pub fn waiting(&self) -> usize {
        self.counts.waiting.load(Ordering::Relaxed)
    }

    /// A permit, if one is free. It is to be kept until the response has ended.
    pub(in crate::upstream) fn try_admit(&self) -> Option<Permit> {
        Arc::clone(&self.permits).try_acquire_owned().ok().map(|permit| self.counted(permit))
    }

    /// A permit; with `may_wait`, after waiting for one if need be.
    pub(in crate::upstream) async fn admit(&self, may_wait: bool) -> Result<Permit, ShedReason> {
        if let Some(permit) = self.try_admit() {
            return Ok(permit);
        }
        self.wait(may_wait).await.inspect_err(|reason| self.counts.shed_by_reason.increment(*reason))
    }

    async fn wait(&self, may_wait: bool) -> Result<Permit, ShedReason> {
        if !may_wait {
            return Err(ShedReason::MayNotWait);
        }
        let position = QueuePosition::join(&self.counts.waiting);
        if position.ahead >= self.settings.queue {
            return Err(ShedReason::QueueFull);
        }
        if self.expected_wait(position.ahead) > self.settings.queue_timeout {
            return Err(ShedReason::QueueTooSlow);
        }
        let permit = Arc::clone(&self.permits).acquire_owned();
        match tokio::time::timeout(self.settings.queue_timeout, permit).await {
            Ok(Ok(permit)) => Ok(self.counted(permit)),
            // The semaphore is never closed.
            _ => Err(ShedReason::QueueTimeout),
        }
    }

    /// How long it takes until all requests ahead, and one more, have ended.
    fn expected_wait(&self, ahead: usize) -> Duration {
        let rounds = (ahead + 1) as u64 * self.counts.mean_response_us.load(Ordering::Relaxed);
        Duration::from_micros(rounds / self.limit().max(1) as u64)
    }

    /// Records a response time; the average is over the last eight or so.
    pub(in crate::upstream) fn record_response_time(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(1 << 40);
        let before = self.counts.mean_response_us.load(Ordering::Relaxed);
        let now = if before == 0 { time } else { (before * 7 + time) / 8 };
        // Of two concurrent updates one may be lost, which is one of many.
        self.counts.mean_response_us.store(now, Ordering::Relaxed);
    }
}

/// A request's position in the queue, held until the request leaves it.
struct QueuePosition<'w> {
    waiting: &'w AtomicUsize,
    ahead: usize,
}

impl<'w> QueuePosition<'w> {
    fn join(waiting: &'w AtomicUsize) -> Self {
        Self { waiting, ahead: waiting.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for QueuePosition<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::burst::BURST;
    use super::*;

    fn admission() -> ClassAdmission {
        ClassAdmission::new(ClassSettings {
            concurrency: 2,
            sustained_concurrency: 2,
            queue: 2,
            ..crate::upstream::settings::DEFAULT_CLASS
        })
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_in_order_and_up_to_the_queue_timeout() {
        let admission = admission();
        let first = admission.admit(true).await.unwrap();
        let _second = admission.admit(true).await.unwrap();
        assert_eq!((admission.in_flight(), admission.waiting()), (2, 0));
        let (mut third, mut fourth) = (Box::pin(admission.admit(true)), Box::pin(admission.admit(true)));
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        assert_eq!(admission.admit(true).await.err(), Some(ShedReason::QueueFull));
        assert_eq!(admission.admit(false).await.err(), Some(ShedReason::MayNotWait));
        assert_eq!((admission.in_flight(), admission.waiting()), (2, 2));
        drop(first);
        assert!(fourth.as_mut().now_or_never().is_none(), "out of turn");
        let third = third.await.unwrap();
        assert_eq!(fourth.await.err(), Some(ShedReason::QueueTimeout));
        drop(third);
        assert_eq!((admission.in_flight(), admission.waiting()), (1, 0));
        let shed = ShedReason::ALL.map(|reason| admission.shed_by_reason().get(reason));
        assert_eq!(shed, [1, 1, 0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_expected_wait_is_too_long_is_rejected_at_once() {
        let admission = admission();
        for _ in 0..20 {
            admission.record_response_time(admission.settings.queue_timeout * 2);
        }
        let permits = [admission.admit(true).await.unwrap(), admission.admit(true).await.unwrap()];
        let begun = tokio::time::Instant::now();
        // The first one has to wait for half a response time, which is just in time.
        let mut first = Box::pin(admission.admit(true));
        assert!(first.as_mut().now_or_never().is_none());
        assert_eq!(admission.admit(true).await.err(), Some(ShedReason::QueueTooSlow));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop(permits);
        assert!(first.await.is_ok());
    }

    /// Limits that come, go and come back, while requests run: there are always as many permits as the last ones say.
    #[tokio::test(start_paused = true)]
    async fn other_limits_hold_for_requests_that_run() {
        let with = |concurrency, sustained_concurrency| ClassSettings {
            concurrency,
            sustained_concurrency,
            ..crate::upstream::settings::DEFAULT_CLASS
        };
        let all = |admission: &ClassAdmission| {
            std::iter::from_fn(|| admission.try_admit()).take(100).collect::<Vec<_>>()
        };
        for kinds in [
            [(6, 6), (4, 4), (5, 5)],
            [(6, 6), (4, 1), (5, 5)],
            [(6, 1), (4, 4), (5, 2)],
            [(6, 1), (4, 2), (9, 3)],
        ] {
            let [first, second, third] = kinds.map(|(concurrency, sustained)| with(concurrency, sustained));
            let before = ClassAdmission::new(first);
            let running = all(&before);
            assert_eq!(running.len(), 6, "{kinds:?}");
            let fewer = before.reloaded(second);
            // A task takes permits away when they come back.
            tokio::task::yield_now().await;
            assert_eq!(all(&fewer).len(), 0, "{kinds:?}");
            let more = fewer.reloaded(third);
            let free = all(&more);
            assert_eq!(free.len(), third.concurrency.saturating_sub(6), "{kinds:?}: six run already");
            drop((free, running));
            tokio::task::yield_now().await;
            assert_eq!(all(&more).len(), third.concurrency, "{kinds:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_leaves_the_queue_frees_its_position() {
        let admission = admission();
        let permits = [admission.admit(true).await.unwrap(), admission.admit(true).await.unwrap()];
        let mut leaving = Box::pin(admission.admit(true));
        assert!(leaving.as_mut().now_or_never().is_none());
        assert_eq!(admission.waiting(), 1);
        drop(leaving);
        assert_eq!(admission.waiting(), 0);
        drop(permits);
        assert_eq!(admission.in_flight(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_class_that_has_used_up_its_burst_gets_its_long_run_share() {
        let settings = ClassSettings { sustained_concurrency: 1, ..crate::upstream::settings::DEFAULT_CLASS };
        let admission = ClassAdmission::new(ClassSettings { concurrency: 4, ..settings });
        let burst: Vec<_> = std::iter::from_fn(|| admission.try_admit()).collect();
        assert_eq!((burst.len(), admission.limit()), (4, 4));
        let mut waiting = Box::pin(admission.admit(true));
        assert!(waiting.as_mut().now_or_never().is_none());
        tokio::time::advance(BURST / 3).await;
        assert_eq!((admission.in_flight(), admission.limit()), (4, 1));
        drop(burst);
        let permit = waiting.await.unwrap();
        assert!(admission.try_admit().is_none());
        assert_eq!(admission.in_flight(), 1);
        drop(permit);
        tokio::time::advance(BURST).await;
        assert_eq!((admission.in_flight(), admission.limit()), (0, 4));
        assert_eq!(std::iter::from_fn(|| admission.try_admit()).collect::<Vec<_>>().len(), 4);
    }
}
