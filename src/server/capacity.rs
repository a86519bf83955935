//! How many connections a listener may have, and which of them has to leave for a new one.
//!
//! Each listener has a bound of its own, for all threads together. When it is full, the connection is
//! closed that has been idle for the longest, without an answer under way. A quarter of the places is
//! kept for peers that are trusted: those that have shown a credential, and local ones where others can
//! connect too. They are also the last to be closed.
//!
//! Who is trusted is known only by looking at all connections, since a request that shows its
//! credential does no more than say so in its connection's state. That is done only while more than
//! three quarters of the places are taken, and each look serves many decisions: it tells how many
//! strangers may still come, and who leaves next.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::patience::now;
use super::registry::{ConnectionState, Registry};

/// The bound on one listener's connections.
#[derive(Debug)]
pub struct Capacity {
    name: String,
    most: usize,
    is_open_to_others: bool,
    /// What the ages of connections are counted from.
    begun: Instant,
    open: AtomicUsize,
    accepted: AtomicU64,
    evicted: AtomicU64,
    turned_away: AtomicU64,
    registries: Mutex<Vec<Arc<Registry>>>,
    crowd: Mutex<Crowd>,
    /// Threads that wait for a place.
    waiting: AtomicUsize,
    freed: Notify,
    /// When it was last said that connections cannot be accepted.
    failure_said: Mutex<Option<Instant>>,
}

/// What the last look at all connections has shown, and what became of it since.
#[derive(Debug, Default)]
struct Crowd {
    /// Strangers may come until so many connections were accepted in all.
    until: u64,
    /// Who leaves next, from the end; each with the time since when it was idle.
    leaving: Vec<(u64, Weak<ConnectionState>)>,
    looked: Option<Instant>,
    /// When a connection had to leave or to wait for the last time.
    full: Option<Instant>,
}

/// Of so many connections one look remembers that they are idle.
const REMEMBERED: usize = 256;
/// The same of those that are trusted: a burst of callers is not to wait for one look each.
const REMEMBERED_TRUSTED: usize = 16;
/// A look at all connections takes a few hundred microseconds if they are tens of thousands.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Who was asked to leave may have begun a request, or its thread may be busy.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How long a listener has to have had room before it is said again that it has none.
const QUIET: Duration = Duration::from_secs(60);

impl Capacity {
    /// For so many connections at a time to the listener that metrics and log call `name`. Whether
    /// peers of other machines can reach it.
    pub fn new(name: impl Into<String>, most: usize, is_open_to_others: bool) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            most,
            is_open_to_others,
            begun: now(),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            registries: Mutex::default(),
            crowd: Mutex::default(),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
            failure_said: Mutex::default(),
        })
    }

    /// What metrics and log call the listener.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connections that may be open at one time.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Idle connections that were closed to make room for others.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Connections that found no place, and were closed before anything was read of them.
    pub fn all_turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// One more.
    pub(super) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_open_to_others(&self) -> bool {
        self.is_open_to_others
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    pub(super) fn age_at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Connections of this server count here from now on.
    pub(super) fn is_shared_by(&self, registry: &Arc<Registry>) {
        self.registries.lock().push(Arc::clone(registry));
    }

    /// A place for a stranger, if there is one at once.
    pub(super) fn try_admit(self: &Arc<Self>) -> Option<Place> {
        self.take_one_of_the_last(false)
    }

    /// Waits for a place. `is_local`: the peer is on this machine.
    pub(super) async fn admit(self: &Arc<Self>, is_local: bool) -> Place {
        let is_trusted = is_local && self.is_open_to_others;
        if let Some(place) = self.take(self.open_to_all()) {
            return place;
        }
        let _waiting = Waiting::new(&self.waiting);
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.take_one_of_the_last(is_trusted) {
                return place;
            }
            // Then all is asked again.
            let _ = tokio::time::timeout(ASK_AGAIN, freed).await;
        }
    }

    /// Takes a place, or asks a connection to leave.
    fn take_one_of_the_last(self: &Arc<Self>, is_trusted: bool) -> Option<Place> {
        if let Some(place) = self.take(self.open_to_all()) {
            return Some(place);
        }
        let (mut crowd, now) = (self.crowd.lock(), now());
        loop {
            let may_come = is_trusted || self.accepted() < crowd.until;
            if may_come && let Some(place) = self.take(self.most) {
                crowd.until += u64::from(is_trusted);
                return Some(place);
            }
            // For a stranger that may not have the place, none that is trusted leaves.
            if let Some(leaving) = crowd.next_to_leave(may_come) {
                leaving.evict();
                break;
            }
            if crowd.looked.is_some_and(|looked| now < looked + LOOK_EVERY) {
                break;
            }
            self.look(&mut crowd, is_trusted);
            crowd.looked = Some(now);
        }
        let is_news = crowd.full.replace(now).is_none_or(|full| now >= full + QUIET);
        drop(crowd);
        if is_news {
            tracing::warn!(
                listener = self.name,
                connections = self.most,
                "a listener is full; idle connections are closed for new ones"
            );
        }
        None
    }

    /// Takes a place if fewer than `most` are taken.
    fn take(self: &Arc<Self>, most: usize) -> Option<Place> {
        let one_more = |open: usize| (open < most).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(Place(Arc::clone(self)))
    }

    /// So many connections may be those of strangers.
    fn open_to_all(&self) -> usize {
        self.most - self.most / 4
    }

    /// Looks at all connections. Strangers leave first; who is trusted, only if no stranger is idle and
    /// all places are taken.
    fn look(&self, crowd: &mut Crowd, for_trusted: bool) {
        let (mut strangers, mut idle, mut trusted) = (0, Vec::new(), Vec::new());
        for registry in &*self.registries.lock() {
            registry.each_of(self, |state| {
                strangers += usize::from(!state.is_trusted());
                let list = if state.is_trusted() { &mut trusted } else { &mut idle };
                list.extend(state.idle_for_eviction().map(|since| (since, Arc::downgrade(state))));
            });
        }
        crowd.until = self.accepted() + self.open_to_all().saturating_sub(strangers) as u64;
        crowd.leaving = match (idle.is_empty(), self.open() >= self.most) {
            // One for a stranger, who can leave for the one after it.
            (true, true) => longest_idle(trusted, if for_trusted { REMEMBERED_TRUSTED } else { 1 }),
            _ => longest_idle(idle, REMEMBERED),
        };
    }

    /// A connection that was asked to leave has left. A stranger may take the place of a stranger.
    pub(super) fn one_was_evicted(&self, was_trusted: bool) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
        if !was_trusted {
            self.crowd.lock().until += 1;
        }
    }

    /// A connection that was asked to leave has something to do.
    pub(super) fn one_stays(&self) {
        self.freed.notify_waiters();
    }

    /// Whether it is time to say once more that connections cannot be accepted.
    pub(super) fn may_say_failure(&self) -> bool {
        let now = now();
        let mut said = self.failure_said.lock();
        let is_time = said.is_none_or(|said| now >= said + QUIET);
        if is_time {
            *said = Some(now);
        }
        is_time
    }

    /// Asks the next connection to leave, for want of something that all listeners need.
    pub(super) fn shrink(&self) {
        let (mut crowd, now) = (self.crowd.lock(), now());
        if crowd.leaving.is_empty() && crowd.looked.is_none_or(|looked| now >= looked + LOOK_EVERY) {
            self.look(&mut crowd, false);
            crowd.looked = Some(now);
        }
        if let Some(leaving) = crowd.next_to_leave(true) {
            leaving.evict();
        }
    }
}

impl Crowd {
    /// Who is still as idle as at the last look, for the longest; one that is trusted only if it may be.
    fn next_to_leave(&mut self, may_be_trusted: bool) -> Option<Arc<ConnectionState>> {
        while let Some((since, state)) = self.leaving.pop() {
            let is_meant = |state: &Arc<ConnectionState>| {
                state.idle_for_eviction() == Some(since) && (may_be_trusted || !state.is_trusted())
            };
            if let Some(state) = state.upgrade().filter(is_meant) {
                return Some(state);
            }
        }
        None
    }
}

/// The `most` that have been idle for the longest, the first of all at the end.
fn longest_idle<T>(mut idle: Vec<(u64, T)>, most: usize) -> Vec<(u64, T)> {
    if idle.len() > most {
        idle.select_nth_unstable_by_key(most, |(since, _)| *since);
        idle.truncate(most);
        idle.shrink_to_fit();
    }
    idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
    idle
}

/// A connection's share of the bound, given back when it ends.
#[derive(Debug)]
pub(super) struct Place(Arc<Capacity>);

impl Place {
    pub(super) fn capacity(&self) -> &Arc<Capacity> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        if self.0.waiting.load(Ordering::Relaxed) > 0 {
            self.0.freed.notify_waiters();
        }
    }
}

struct Waiting<'c>(&'c AtomicUsize);

impl<'c> Waiting<'c> {
    fn new(waiting: &'c AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
