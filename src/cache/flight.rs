//! One request to Rails for each key, however many callers wait for it.
//!
//! The first caller to miss gets a [`Lease`]; the others wait for it to land. The lease is held
//! by a task of its own, so it does not end when that first caller hangs up. What lands is only
//! ever a stored entry or the news that there is none: an answer that could not be kept was
//! meant for one caller alone, and each of the others asks Rails by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::entry::Entry;
use super::freshness::{NoStore, Storable};
use super::key::Key;
use super::{Cache, Hit};
use crate::progress::Progress;

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum Landed {
    /// The answer is stored, and good for everybody.
    Stored(Arc<Entry>),
    /// Rails did not answer; asking again at once would not help anybody.
    Failed(Trouble),
    /// Rails answered, but not with something that can be shared.
    NotShared,
}

/// Why a flight brought no answer at all, for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Rails cannot be reached.
    Unreachable,
    /// Rails did not answer in time.
    Timeout,
    /// Rails closed the connection instead of answering, and did so again.
    Broken,
    /// It was not sent, since Rails has as much to do as it may have.
    Busy,
    /// Rails did not answer in time, while it answered others.
    Slow,
}

/// What a caller who missed is to do.
#[derive(Debug)]
pub enum Boarding {
    /// Somebody was faster: here it is.
    Hit(Hit),
    /// Ask Rails, and land the lease.
    Lead(Lease),
    /// Wait for the one who asks.
    Follow(Wait),
}

/// The flights under way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    waiting: Mutex<HashMap<Key, Wait>>,
}

impl Flights {
    pub(super) fn board(
        &self,
        key: &Key,
        lookup: impl FnOnce() -> Option<Hit>,
        lease: impl FnOnce() -> Lease,
    ) -> Boarding {
        let mut waiting = self.waiting.lock();
        if let Some(wait) = waiting.get(key) {
            return Boarding::Follow(wait.clone());
        }
        if let Some(hit) = lookup() {
            return Boarding::Hit(hit);
        }
        let lease = lease();
        waiting.insert(key.clone(), lease.to_wait());
        Boarding::Lead(lease)
    }

    /// Strikes the flight for `key` off, so that what it brings is not stored, and runs `drop`
    /// before any flight can land.
    pub(super) fn strike(&self, key: &Key, drop: impl FnOnce()) {
        let mut waiting = self.waiting.lock();
        waiting.remove(key);
        drop();
    }

    /// Strikes off all of them that are meant.
    pub(super) fn strike_all(&self, is_meant: impl Fn(&Key) -> bool) {
        self.waiting.lock().retain(|key, _| !is_meant(key));
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len()
    }
}

/// The right, and the duty, to ask Rails for one key. Dropping it tells the callers who wait
/// that nothing came.
#[derive(Debug)]
pub struct Lease {
    cache: Arc<Cache>,
    key: Key,
    /// When Rails was asked: how old the answer is counts from here.
    begun: Instant,
    generation: u64,
    news: watch::Sender<Option<Landed>>,
    progress: Arc<Progress>,
}

impl Lease {
    pub(super) fn new(cache: Arc<Cache>, key: Key, begun: Instant, generation: u64) -> Self {
        let (news, progress) = (watch::Sender::new(None), Arc::default());
        Self { cache, key, begun, generation, news, progress }
    }

    fn to_wait(&self) -> Wait {
        Wait { news: self.news.subscribe(), progress: Arc::clone(&self.progress) }
    }

    /// Stores an answer and hands it to the callers who wait, unless an invalidation came since
    /// the lease began.
    pub fn store(
        self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        storable: Storable,
    ) -> Result<(), NoStore> {
        let with = (&self.cache.heads, self.generation);
        let entry = Arc::new(Entry::new(status, headers, body, storable, self.begun, with));
        if !self.cache.has_room_for(&self.key, &entry) {
            self.reject();
            return Err(NoStore::TooLarge);
        }
        let mut waiting = self.cache.flights.waiting.lock();
        let registered = waiting.get(&self.key).is_some_and(|wait| self.is_mine(wait));
        if !registered || self.cache.generation.load(Ordering::Acquire) != self.generation {
            self.cache.counts.fenced.fetch_add(1, Ordering::Relaxed);
            return Err(NoStore::Fenced);
        }
        self.cache.insert(self.key.clone(), Arc::clone(&entry));
        waiting.remove(&self.key);
        drop(waiting);
        self.news.send_replace(Some(Landed::Stored(entry)));
        Ok(())
    }

    /// Rails answered with something that is not kept, so what is kept is not what Rails says any
    /// more: it goes, unless an invalidation came since the lease began, and others may have asked.
    pub fn reject(self) {
        let mut waiting = self.cache.flights.waiting.lock();
        if waiting.get(&self.key).is_some_and(|wait| self.is_mine(wait)) {
            self.cache.remove(&self.key);
            waiting.remove(&self.key);
        }
    }

    /// When Rails was asked.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Where the request is that asks.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// What is being asked.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Tells the callers who wait that Rails did not answer.
    pub fn fail(self, trouble: Trouble) {
        self.leave();
        self.news.send_replace(Some(Landed::Failed(trouble)));
    }

    fn is_mine(&self, wait: &Wait) -> bool {
        Arc::ptr_eq(&self.progress, &wait.progress)
    }

    fn leave(&self) {
        let mut waiting = self.cache.flights.waiting.lock();
        if waiting.get(&self.key).is_some_and(|wait| self.is_mine(wait)) {
            waiting.remove(&self.key);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leave();
        self.news.send_if_modified(|news| {
            let unsaid = news.is_none();
            news.get_or_insert(Landed::NotShared);
            unsaid
        });
    }
}

/// A place among the callers who wait.
#[derive(Clone, Debug)]
pub struct Wait {
    news: watch::Receiver<Option<Landed>>,
    progress: Arc<Progress>,
}

impl Wait {
    /// Where the request is that they wait for.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// How the flight ended.
    pub async fn landed(mut self) -> Landed {
        match self.news.wait_for(Option::is_some).await {
            Ok(news) => news.clone().unwrap_or(Landed::NotShared),
            Err(_) => Landed::NotShared,
        }
    }
}
