//! Rails is away, and requests wait in line until it is back.
//!
//! Nothing of them was sent, so waiting is safe for any of them. The first in line tries to connect,
//! again and again; the others wait for their turn. Once it has succeeded, two may try, then four, and
//! so on, so that a Rails that has just come back is not met by all at once, and nobody overtakes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The line.
#[derive(Debug, Default)]
pub struct Hold {
    /// Whether there is one: what every request looks at.
    is_on: AtomicBool,
    line: Mutex<Option<Line>>,
    held: AtomicU64,
}

#[derive(Debug)]
struct Line {
    /// One, and one more for each that has succeeded.
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
    /// Waits until those before have had their turn.
    pub(super) async fn turn(&self) -> Turn {
        // The semaphore is never closed.
        Turn { turns: Arc::clone(&self.turns), _permit: Arc::clone(&self.turns).acquire_owned().await.ok() }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.hold.leave();
    }
}

/// The right to try.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Semaphore>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// Rails is back, as far as this one can tell: one more may try at the same time.
    pub(super) fn succeeded(self) {
        self.turns.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn those_behind_wait_for_their_turn_and_ever_more_may_try() {
        let hold = Hold::default();
        assert!(!hold.is_on());
        let places: Vec<_> = (0..8).map(|_| hold.join(8).unwrap()).collect();
        assert_eq!(hold.join(8).err(), Some(Full));
        assert_eq!((hold.is_on(), hold.waiting(), hold.held()), (true, 8, 8));
        let mut waits: Vec<_> = places.iter().map(|place| Box::pin(place.turn())).collect();
        let mut ready = move || -> Vec<Turn> {
            let turns: Vec<Turn> = waits.iter_mut().filter_map(|wait| wait.as_mut().now_or_never()).collect();
            waits.drain(..turns.len());
            turns
        };
        let first = ready();
        assert_eq!(first.len(), 1);
        assert_eq!(ready().len(), 0, "as long as it tries");
        first.into_iter().for_each(Turn::succeeded);
        let next = ready();
        assert_eq!(next.len(), 2);
        next.into_iter().for_each(Turn::succeeded);
        assert_eq!(ready().len(), 4);
    }

    #[test]
    fn one_that_leaves_gives_its_turn_to_the_next_and_the_last_one_ends_the_line() {
        let hold = Hold::default();
        let (first, second) = (hold.join(9).unwrap(), hold.join(9).unwrap());
        let turn = first.turn().now_or_never().unwrap();
        turn.succeeded();
        drop(first);
        let mut third = hold.join(9).unwrap();
        assert_eq!(hold.waiting(), 2);
        assert!(second.turn().now_or_never().is_some() && third.turn().now_or_never().is_some());
        drop(second);
        assert!(hold.is_on());
        drop(third);
        assert_eq!((hold.is_on(), hold.waiting()), (false, 0));
        // What had been learned is forgotten with the line.
        third = hold.join(9).unwrap();
        let fourth = hold.join(9).unwrap();
        let _turn = third.turn().now_or_never().unwrap();
        assert!(fourth.turn().now_or_never().is_none());
    }
}
