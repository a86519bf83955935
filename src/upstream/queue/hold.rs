//! Holds requests while Rails is unreachable, until it is back.
//!
//! Nothing of a held request was sent, or it changes nothing, so waiting is safe for any of them. The
//! request at the head of the queue tries to connect, again and again; the others wait. Once it has
//! succeeded, the next one tries: so no request overtakes another of its rank, an unreachable Rails sees
//! one attempt at a time, and a Rails that has just come back does not get all requests at once.
//!
//! Requests whose credential the gateway does not demand ([`Class::Other`]) wait in a queue of their own, which waits
//! until the other one is empty: they delay no request that has shown one. Among the others, Gitaly's
//! callbacks go first, since the requests that caused them wait for them. How many may wait is counted by
//! class, so that one class cannot fill the queue of another.
//!
//! A proxy in front of Rails accepts connections during an outage of Rails, and reports it in its responses.
//! Then a connection proves nothing, and the request at the head of the queue sends a probe first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::route::Class;

/// The queues, and whether a proxy reports an outage.
#[derive(Debug, Default)]
pub struct HoldQueues {
    proxy_reports_away: AtomicBool,
    with_credential: Arc<HoldQueue>,
    without_credential: Arc<HoldQueue>,
    /// By class, over both queues.
    waiting: [AtomicUsize; Class::ALL.len()],
    total_held: AtomicU64,
}

#[derive(Debug, Default)]
struct HoldQueue {
    /// How many requests wait here: the only field that every request reads.
    length: AtomicUsize,
    permit_state: Mutex<PermitState>,
}

#[derive(Debug, Default)]
struct PermitState {
    is_held: bool,
    /// Callbacks, then all others; each in order of arrival.
    queues: [VecDeque<oneshot::Sender<ConnectPermit>>; 2],
}

/// The hold queue of its class is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct HoldFull;

impl HoldQueues {
    /// Whether a request of this class has to queue behind others.
    pub(in crate::upstream) fn has_to_wait(&self, class: Class) -> bool {
        self.with_credential.is_in_use() || class == Class::Other && self.without_credential.is_in_use()
    }

    /// Whether a request of this class has to let others try first, though it is at the head of its queue.
    pub(in crate::upstream) fn must_yield(&self, class: Class) -> bool {
        class == Class::Other && self.with_credential.is_in_use()
    }

    /// Whether a connection proves nothing.
    pub(in crate::upstream) fn proxy_reports_away(&self) -> bool {
        self.proxy_reports_away.load(Ordering::Relaxed)
    }

    /// Sets it after a response; logs a change.
    pub(in crate::upstream) fn set_proxy_reports_away(&self, is_away: bool) {
        if self.proxy_reports_away() != is_away
            && self.proxy_reports_away.swap(is_away, Ordering::Relaxed) != is_away
        {
            let _span = crate::request_span::current().entered();
            if is_away {
                tracing::warn!("a proxy answers that Rails is away; requests wait for it to be back");
            } else {
                tracing::info!("Rails answers again behind its proxy");
            }
        }
    }

    /// How many requests wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.load(Ordering::Relaxed)).sum()
    }

    /// How many have waited so far.
    pub fn total_held(&self) -> u64 {
        self.total_held.load(Ordering::Relaxed)
    }

    /// Joins the end of the queue if fewer than `max_waiting` of its class wait. Dropping the entry leaves
    /// the queue.
    pub(in crate::upstream) fn enter(
        &self,
        class: Class,
        max_waiting: usize,
    ) -> Result<HoldEntry<'_>, HoldFull> {
        let entry = self.enter_to_try_once(class, max_waiting)?;
        self.total_held.fetch_add(1, Ordering::Relaxed);
        Ok(entry)
    }

    /// The same for a request that is not going to wait, but to try once if no other request is trying.
    pub(in crate::upstream) fn enter_to_try_once(
        &self,
        class: Class,
        max_waiting: usize,
    ) -> Result<HoldEntry<'_>, HoldFull> {
        let waiting = class.of(&self.waiting);
        let one_more = |waiting: usize| (waiting < max_waiting).then_some(waiting + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).map_err(|_| HoldFull)?;
        let queue = if class == Class::Other { &self.without_credential } else { &self.with_credential };
        queue.length.fetch_add(1, Ordering::Relaxed);
        Ok(HoldEntry { queue, waiting, is_callback: class == Class::Callback })
    }
}

impl HoldQueue {
    fn is_in_use(&self) -> bool {
        self.length.load(Ordering::Relaxed) > 0
    }

    /// Passes the permit to the next request that is still there.
    fn pass_permit_on(self: &Arc<Self>) {
        let mut state = self.permit_state.lock();
        while let Some(next) = state.next() {
            match next.send(ConnectPermit(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // Its request has left. Not dropped under the lock, which its drop takes.
                Err(mut permit) => permit.0 = None,
            }
        }
        state.is_held = false;
    }
}

impl PermitState {
    fn next(&mut self) -> Option<oneshot::Sender<ConnectPermit>> {
        self.queues.iter_mut().find_map(VecDeque::pop_front)
    }

    fn wait(&mut self, is_callback: bool, waiting: usize) -> oneshot::Receiver<ConnectPermit> {
        let [callbacks, others] = &mut self.queues;
        let queue = if is_callback { callbacks } else { others };
        // The channels of requests that have left stay until the permit reaches them, or there are too many.
        if queue.len() > 2 * waiting + 16 {
            queue.retain(|next| !next.is_closed());
        }
        let (next, permit) = oneshot::channel();
        queue.push_back(next);
        permit
    }
}

/// A request's entry in the queue.
#[derive(Debug)]
pub(in crate::upstream) struct HoldEntry<'h> {
    queue: &'h Arc<HoldQueue>,
    waiting: &'h AtomicUsize,
    is_callback: bool,
}

impl HoldEntry<'_> {
    /// Waits until the requests ahead have had the permit. It passes on when it is dropped.
    pub(in crate::upstream) async fn acquire(&self) -> ConnectPermit {
        let permit = {
            let mut state = self.queue.permit_state.lock();
            if !std::mem::replace(&mut state.is_held, true) {
                return ConnectPermit(Some(Arc::clone(self.queue)));
            }
            state.wait(self.is_callback, self.queue.length.load(Ordering::Relaxed))
        };
        // No waiting channel is dropped before the permit reaches it.
        permit.await.unwrap_or(ConnectPermit(None))
    }
}

impl Drop for HoldEntry<'_> {
    fn drop(&mut self) {
        self.queue.length.fetch_sub(1, Ordering::Relaxed);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The exclusive right to try to connect.
#[derive(Debug)]
pub(in crate::upstream) struct ConnectPermit(Option<Arc<HoldQueue>>);

impl Drop for ConnectPermit {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.pass_permit_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn one_request_tries_at_a_time_in_order() {
        let hold = HoldQueues::default();
        assert!(!hold.has_to_wait(Class::Access));
        let entries: Vec<_> = (0..4).map(|_| hold.enter(Class::Access, 4).unwrap()).collect();
        assert_eq!(hold.enter(Class::Access, 4).err(), Some(HoldFull));
        assert_eq!((hold.has_to_wait(Class::Access), hold.waiting(), hold.total_held()), (true, 4, 4));
        let mut waits: Vec<_> = entries.iter().map(|entry| Box::pin(entry.acquire())).collect();
        let mut permit = waits.remove(0).now_or_never();
        while !waits.is_empty() {
            assert!(permit.is_some());
            assert!(
                waits.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()),
                "as long as it tries"
            );
            drop(permit.take());
            let last = waits.last_mut().unwrap().as_mut().now_or_never();
            assert!(last.is_none() || waits.len() == 1, "out of order");
            permit = last.or_else(|| waits.first_mut().unwrap().as_mut().now_or_never());
            drop(waits.remove(0));
        }
    }

    #[test]
    fn a_request_that_leaves_passes_the_permit_on_and_the_last_one_empties_the_queue() {
        let hold = HoldQueues::default();
        let enter = || hold.enter(Class::Lookup, 9).unwrap();
        let (first, second, third) = (enter(), enter(), enter());
        let permit = first.acquire().now_or_never().unwrap();
        let (mut left, mut stays) = (Box::pin(second.acquire()), Box::pin(third.acquire()));
        assert!(left.as_mut().now_or_never().is_none() && stays.as_mut().now_or_never().is_none());
        drop(left);
        drop(permit);
        let permit = stays.as_mut().now_or_never().unwrap();
        drop(stays);
        drop((first, third));
        let (fourth, fifth) = (enter(), enter());
        let (mut leaves, mut next) = (Box::pin(fourth.acquire()), Box::pin(fifth.acquire()));
        assert!(leaves.as_mut().now_or_never().is_none() && next.as_mut().now_or_never().is_none());
        drop(permit);
        // It has the permit and has not been polled yet.
        drop(leaves);
        assert!(next.as_mut().now_or_never().is_some());
        drop(next);
        drop((second, fourth));
        assert!(hold.has_to_wait(Class::Lookup));
        drop(fifth);
        assert_eq!((hold.has_to_wait(Class::Lookup), hold.waiting()), (false, 0));
    }

    #[test]
    fn requests_without_a_credential_delay_no_other() {
        let hold = HoldQueues::default();
        let without = hold.enter(Class::Other, 1).unwrap();
        let _trying = without.acquire().now_or_never().unwrap();
        assert!(
            !hold.has_to_wait(Class::Access)
                && hold.has_to_wait(Class::Other)
                && !hold.must_yield(Class::Other)
        );
        assert_eq!(hold.enter(Class::Other, 1).err(), Some(HoldFull));
        let caller = hold.enter(Class::Access, 1).unwrap();
        assert!(caller.acquire().now_or_never().is_some(), "its queue is empty");
        assert!(hold.must_yield(Class::Other) && !hold.must_yield(Class::Access));
        assert!(hold.enter(Class::Kas, 1).is_ok(), "a class is full by itself only");
        drop(caller);
        assert!(!hold.must_yield(Class::Other) && !hold.has_to_wait(Class::Callback));
    }

    #[test]
    fn callbacks_go_before_the_requests_that_caused_them() {
        let hold = HoldQueues::default();
        let entries = [Class::Access, Class::Access, Class::Lookup, Class::Callback, Class::Callback];
        let entries = entries.map(|class| hold.enter(class, 9).unwrap());
        let mut waits = entries.each_ref().map(|entry| Box::pin(entry.acquire()));
        let mut permits: Vec<_> = waits.iter_mut().map(|wait| wait.as_mut().now_or_never()).collect();
        let mut order = Vec::new();
        while let Some(at) = permits.iter().position(Option::is_some) {
            order.push(at);
            permits[at] = None;
            for (wait, permit) in waits
                .iter_mut()
                .zip(&mut permits)
                .enumerate()
                .filter_map(|(nth, pair)| (!order.contains(&nth)).then_some(pair))
            {
                *permit = permit.take().or_else(|| wait.as_mut().now_or_never());
            }
        }
        assert_eq!(order, [0, 3, 4, 1, 2]);
    }

    #[test]
    fn requests_that_have_left_take_no_memory() {
        let hold = HoldQueues::default();
        let first = hold.enter(Class::Access, 9).unwrap();
        let _trying = first.acquire().now_or_never().unwrap();
        for _ in 0..1_000 {
            let leaves = hold.enter(Class::Access, 9).unwrap();
            assert!(leaves.acquire().now_or_never().is_none());
        }
        let queued: usize = hold.with_credential.permit_state.lock().queues.iter().map(VecDeque::len).sum();
        assert!(queued < 30, "{queued}");
    }
}
