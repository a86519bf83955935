//! Rails is away, and requests are parked until it is back.
//!
//! Nothing of them was sent, or asking again changes nothing, so waiting is safe for any of them. The
//! first in line tries to connect, again and again; the others wait for their turn. Once it has
//! succeeded, it is the turn of the next: so no request overtakes another of its rank, a Rails that is
//! away is tried by one at a time, and one that has just come back is not met by all at once.
//!
//! Requests that have shown no credential ([`Class::Other`]) stand in a line of their own, which waits
//! until the other one is empty: they delay no request that has shown one. Among the others, Gitaly's
//! callbacks go first, since what they were called from waits for them. How many may wait is counted by
//! class, so that a class can be full only by itself.
//!
//! A proxy in front of Rails accepts connections while Rails is away, and says so in its answers. Then
//! a connection proves nothing, and the first in line has to ask for something.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::route::Class;

/// The lines.
#[derive(Debug, Default)]
pub struct Hold {
    proxy_says_away: AtomicBool,
    with_credential: Arc<Line>,
    without_credential: Arc<Line>,
    /// By class, of both lines.
    waiting: [AtomicUsize; Class::ALL.len()],
    held: AtomicU64,
}

#[derive(Debug, Default)]
struct Line {
    /// How many there are: what every request looks at.
    length: AtomicUsize,
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    is_taken: bool,
    /// Callbacks, then all others; each in the order in which they came.
    queues: [VecDeque<oneshot::Sender<Turn>>; 2],
}

/// As many requests of a class are waiting as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Hold {
    /// Whether requests wait behind which one of this class has to wait too.
    pub(super) fn is_on(&self, class: Class) -> bool {
        self.with_credential.is_in_use() || class == Class::Other && self.without_credential.is_in_use()
    }

    /// Whether a request of this class has to let others try first, though it is its turn.
    pub(super) fn has_to_yield(&self, class: Class) -> bool {
        class == Class::Other && self.with_credential.is_in_use()
    }

    /// Whether connections prove nothing.
    pub(super) fn proxy_says_away(&self) -> bool {
        self.proxy_says_away.load(Ordering::Relaxed)
    }

    /// What an answer tells of that.
    pub(super) fn set_proxy_says_away(&self, is_away: bool) {
        if self.proxy_says_away() != is_away
            && self.proxy_says_away.swap(is_away, Ordering::Relaxed) != is_away
        {
            if is_away {
                tracing::warn!("a proxy answers that Rails is away; requests wait for it to be back");
            } else {
                tracing::info!("Rails answers again behind its proxy");
            }
        }
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.load(Ordering::Relaxed)).sum()
    }

    /// How many have waited so far.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Joins the line at its end, or begins it, if fewer than `most` of its class wait. Dropping the
    /// place leaves the line.
    pub(super) fn join(&self, class: Class, most: usize) -> Result<Place<'_>, Full> {
        let place = self.visit(class, most)?;
        self.held.fetch_add(1, Ordering::Relaxed);
        Ok(place)
    }

    /// The same for one that does not mean to wait, but only to try if no other does.
    pub(super) fn visit(&self, class: Class, most: usize) -> Result<Place<'_>, Full> {
        let waiting = class.of(&self.waiting);
        let one_more = |waiting: usize| (waiting < most).then_some(waiting + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).map_err(|_| Full)?;
        let line = if class == Class::Other { &self.without_credential } else { &self.with_credential };
        line.length.fetch_add(1, Ordering::Relaxed);
        Ok(Place { line, waiting, is_callback: class == Class::Callback })
    }
}

impl Line {
    fn is_in_use(&self) -> bool {
        self.length.load(Ordering::Relaxed) > 0
    }

    /// It is the turn of the next that is still there.
    fn pass_on(self: &Arc<Self>) {
        let mut turns = self.turns.lock();
        while let Some(next) = turns.next() {
            match next.send(Turn(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // It has left. Not dropped under the lock, which its drop takes.
                Err(mut turn) => turn.0 = None,
            }
        }
        turns.is_taken = false;
    }
}

impl Turns {
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        self.queues.iter_mut().find_map(VecDeque::pop_front)
    }

    fn wait(&mut self, is_callback: bool, waiting: usize) -> oneshot::Receiver<Turn> {
        let [callbacks, others] = &mut self.queues;
        let queue = if is_callback { callbacks } else { others };
        // Those that have left stay in the queue until it is their turn: not for longer than they are few.
        if queue.len() > 2 * waiting + 16 {
            queue.retain(|next| !next.is_closed());
        }
        let (next, turn) = oneshot::channel();
        queue.push_back(next);
        turn
    }
}

/// A place in the line.
#[derive(Debug)]
pub(super) struct Place<'h> {
    line: &'h Arc<Line>,
    waiting: &'h AtomicUsize,
    is_callback: bool,
}

impl Place<'_> {
    /// Waits until those before have had their turn. It ends when what is returned is dropped.
    pub(super) async fn turn(&self) -> Turn {
        let turn = {
            let mut turns = self.line.turns.lock();
            if !std::mem::replace(&mut turns.is_taken, true) {
                return Turn(Some(Arc::clone(self.line)));
            }
            turns.wait(self.is_callback, self.line.length.load(Ordering::Relaxed))
        };
        // Nothing that waits is dropped without its turn.
        turn.await.unwrap_or(Turn(None))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.line.length.fetch_sub(1, Ordering::Relaxed);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to try.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Line>>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            line.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn those_behind_wait_for_their_turn() {
        let hold = Hold::default();
        assert!(!hold.is_on(Class::Access));
        let places: Vec<_> = (0..4).map(|_| hold.join(Class::Access, 4).unwrap()).collect();
        assert_eq!(hold.join(Class::Access, 4).err(), Some(Full));
        assert_eq!((hold.is_on(Class::Access), hold.waiting(), hold.held()), (true, 4, 4));
        let mut waits: Vec<_> = places.iter().map(|place| Box::pin(place.turn())).collect();
        let mut turn = waits.remove(0).now_or_never();
        while !waits.is_empty() {
            assert!(turn.is_some());
            assert!(
                waits.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()),
                "as long as it tries"
            );
            drop(turn.take());
            let last = waits.last_mut().unwrap().as_mut().now_or_never();
            assert!(last.is_none() || waits.len() == 1, "out of turn");
            turn = last.or_else(|| waits.first_mut().unwrap().as_mut().now_or_never());
            drop(waits.remove(0));
        }
    }

    #[test]
    fn one_that_leaves_gives_its_turn_to_the_next_and_the_last_one_ends_the_line() {
        let hold = Hold::default();
        let join = || hold.join(Class::Lookup, 9).unwrap();
        let (first, second, third) = (join(), join(), join());
        let turn = first.turn().now_or_never().unwrap();
        let (mut left, mut stays) = (Box::pin(second.turn()), Box::pin(third.turn()));
        assert!(left.as_mut().now_or_never().is_none() && stays.as_mut().now_or_never().is_none());
        drop(left);
        drop(turn);
        let turn = stays.as_mut().now_or_never().unwrap();
        drop(stays);
        drop((first, third));
        let (fourth, fifth) = (join(), join());
        let (mut leaves, mut next) = (Box::pin(fourth.turn()), Box::pin(fifth.turn()));
        assert!(leaves.as_mut().now_or_never().is_none() && next.as_mut().now_or_never().is_none());
        drop(turn);
        // It has its turn and does not know it yet.
        drop(leaves);
        assert!(next.as_mut().now_or_never().is_some());
        drop(next);
        drop((second, fourth));
        assert!(hold.is_on(Class::Lookup));
        drop(fifth);
        assert_eq!((hold.is_on(Class::Lookup), hold.waiting()), (false, 0));
    }

    #[test]
    fn requests_without_a_credential_delay_no_other() {
        let hold = Hold::default();
        let stranger = hold.join(Class::Other, 1).unwrap();
        let _trying = stranger.turn().now_or_never().unwrap();
        assert!(!hold.is_on(Class::Access) && hold.is_on(Class::Other) && !hold.has_to_yield(Class::Other));
        assert_eq!(hold.join(Class::Other, 1).err(), Some(Full));
        let caller = hold.join(Class::Access, 1).unwrap();
        assert!(caller.turn().now_or_never().is_some(), "its line is empty");
        assert!(hold.has_to_yield(Class::Other) && !hold.has_to_yield(Class::Access));
        assert!(hold.join(Class::Kas, 1).is_ok(), "a class is full by itself only");
        drop(caller);
        assert!(!hold.has_to_yield(Class::Other) && !hold.is_on(Class::Callback));
    }

    #[test]
    fn callbacks_go_before_what_they_are_called_from() {
        let hold = Hold::default();
        let places = [Class::Access, Class::Access, Class::Lookup, Class::Callback, Class::Callback];
        let places = places.map(|class| hold.join(class, 9).unwrap());
        let mut waits = places.each_ref().map(|place| Box::pin(place.turn()));
        let mut turns: Vec<_> = waits.iter_mut().map(|wait| wait.as_mut().now_or_never()).collect();
        let mut order = Vec::new();
        while let Some(at) = turns.iter().position(Option::is_some) {
            order.push(at);
            turns[at] = None;
            for (wait, turn) in waits
                .iter_mut()
                .zip(&mut turns)
                .enumerate()
                .filter_map(|(nth, pair)| (!order.contains(&nth)).then_some(pair))
            {
                *turn = turn.take().or_else(|| wait.as_mut().now_or_never());
            }
        }
        assert_eq!(order, [0, 3, 4, 1, 2]);
    }

    #[test]
    fn those_that_have_left_take_no_memory() {
        let hold = Hold::default();
        let first = hold.join(Class::Access, 9).unwrap();
        let _trying = first.turn().now_or_never().unwrap();
        for _ in 0..1_000 {
            let leaves = hold.join(Class::Access, 9).unwrap();
            assert!(leaves.turn().now_or_never().is_none());
        }
        let queued: usize = hold.with_credential.turns.lock().queues.iter().map(VecDeque::len).sum();
        assert!(queued < 30, "{queued}");
    }
}
