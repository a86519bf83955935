//! Rails is away, and requests wait in line until it is back.
//!
//! Nothing of them was sent, or asking again changes nothing, so waiting is safe for any of them. The
//! first in line tries to connect, again and again; the others wait for their turn. Once it has
//! succeeded, it is the turn of the next: so nobody overtakes, a Rails that is away is tried by one at
//! a time, and one that has just come back is not met by all at once.
//!
//! A proxy in front of Rails accepts connections while Rails is away, and says so in its answers. Then
//! a connection proves nothing, and the first in line has to ask for something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The line.
#[derive(Debug, Default)]
pub struct Hold {
    /// Whether there is one: what every request looks at.
    is_on: AtomicBool,
    proxy_says_away: AtomicBool,
    line: Mutex<Option<Line>>,
    held: AtomicU64,
}

#[derive(Debug)]
struct Line {
    /// A lock whose owner changes in the order in which it was asked for.
    turns: Arc<Semaphore>,
    waiting: usize,
}

/// More are waiting than may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Hold {
    /// Whether requests wait, so that whoever comes now has to wait behind them.
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
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
        self.line.lock().as_ref().map_or(0, |line| line.waiting)
    }

    /// How many have waited so far.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Joins the line at its end, or begins it. Whoever drops the place has left it.
    pub(super) fn join(&self, most: usize) -> Result<Place<'_>, Full> {
        let mut line = self.line.lock();
        let line = line.get_or_insert_with(|| Line { turns: Arc::new(Semaphore::new(1)), waiting: 0 });
        if line.waiting >= most {
            return Err(Full);
        }
        line.waiting += 1;
        self.is_on.store(true, Ordering::Relaxed);
        self.held.fetch_add(1, Ordering::Relaxed);
        Ok(Place { hold: self, turns: Arc::clone(&line.turns) })
    }

    fn leave(&self) {
        let mut line = self.line.lock();
        let Some(now) = line.as_mut() else { return };
        now.waiting -= 1;
        if now.waiting == 0 {
            *line = None;
            self.is_on.store(false, Ordering::Relaxed);
        }
    }
}

/// A place in the line.
#[derive(Debug)]
pub(super) struct Place<'h> {
    hold: &'h Hold,
    turns: Arc<Semaphore>,
}

impl Place<'_> {
    /// Waits until those before have had their turn. It ends when what is returned is dropped.
    pub(super) async fn turn(&self) -> Turn {
        // The semaphore is never closed.
        Turn(Arc::clone(&self.turns).acquire_owned().await.ok())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.hold.leave();
    }
}

/// The right to try.
#[derive(Debug)]
pub(super) struct Turn(
    #[expect(dead_code, reason = "given back when it is dropped")] Option<OwnedSemaphorePermit>,
);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn those_behind_wait_for_their_turn() {
        let hold = Hold::default();
        assert!(!hold.is_on());
        let places: Vec<_> = (0..4).map(|_| hold.join(4).unwrap()).collect();
        assert_eq!(hold.join(4).err(), Some(Full));
        assert_eq!((hold.is_on(), hold.waiting(), hold.held()), (true, 4, 4));
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
        let (first, second) = (hold.join(9).unwrap(), hold.join(9).unwrap());
        let turn = first.turn().now_or_never().unwrap();
        let mut left = Box::pin(second.turn());
        assert!(left.as_mut().now_or_never().is_none());
        drop(left);
        drop(turn);
        drop(first);
        let third = hold.join(9).unwrap();
        assert_eq!(hold.waiting(), 2);
        assert!(third.turn().now_or_never().is_some(), "nobody is before it any more");
        drop(second);
        assert!(hold.is_on());
        drop(third);
        assert_eq!((hold.is_on(), hold.waiting()), (false, 0));
    }
}
