//! Drops what other gateways say is to be dropped, in the order of the stream, on a thread for blocking work: it may have to
//! look through a million entries. Purges that come meanwhile share the next look, and so does what is to be dropped once
//! more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::counters::{DoubtReason, FleetCounters};
use super::message::Purge;
use crate::cache::Cache;
use crate::cache::purge::{PurgeMode, PurgeResult, Selector};
use crate::clock::Clock;

/// How many purges can wait. With more, all that is kept is doubted.
const MAX_PURGES: usize = 10_000;

/// How many selectors that were heard are looked for at one time, and how many that have settled.
const MAX_SELECTORS: usize = 1_000;

/// How long nothing is done at most, if there is nothing to do.
const LONGEST_REST: Duration = Duration::from_secs(3_600);

/// Purges that were heard, and those to be done once more.
#[derive(Debug)]
pub(super) struct Purger {
    cache: Arc<Cache>,
    counters: Arc<FleetCounters>,
    clock: Clock,
    work: Mutex<Work>,
    is_new: Notify,
}

#[derive(Debug, Default)]
struct Work {
    /// Each with whether it is heard for the first time.
    heard: VecDeque<(Purge, bool)>,
    /// How many were heard, and how many of them are dropped or doubted.
    progress: (u64, u64),
    /// To be dropped again when Rails tells the truth for certain.
    settling: BTreeMap<(Instant, u64), (Vec<Selector>, PurgeMode)>,
    settle_count: u64,
    /// If what was heard and what has settled are of two modes, they take turns.
    is_turn_of_heard: bool,
    /// From when until when to doubt in place of dropping again: at both ends, which covers all that settles in between.
    doubt_at: Option<(Instant, Instant)>,
}

/// The next thing to do.
#[derive(Debug)]
pub(super) enum Step {
    Drop(Look),
    Doubt,
    Rest(Instant),
}

/// What is dropped by one look through the entries.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) mode: PurgeMode,
    /// Each with whether it is heard for the first time.
    heard: Vec<(Purge, bool)>,
    /// They were dropped before.
    settled: Vec<Selector>,
}

impl Look {
    pub(super) fn selectors(&self) -> Vec<Selector> {
        self.heard_selectors().chain(self.settled.iter().cloned()).collect()
    }

    fn heard_selectors(&self) -> impl Iterator<Item = Selector> {
        self.heard.iter().flat_map(|(purge, _)| purge.selectors.iter().cloned())
    }
}

impl Purger {
    pub(super) fn new(cache: Arc<Cache>, counters: Arc<FleetCounters>, clock: Clock) -> Self {
        Self { cache, counters, clock, work: Mutex::default(), is_new: Notify::new() }
    }

    /// Fences off at once the flights that may bring what the purge is about, and has it dropped. What is not new is not
    /// counted.
    pub(super) fn push(&self, purge: Purge, is_new: bool, now: Instant) {
        self.cache.purge_by_key(&purge.selectors, purge.mode);
        let mut work = self.work.lock();
        work.heard.push_back((purge, is_new));
        work.progress.0 += 1;
        let overflow = work.heard.len() > MAX_PURGES;
        if overflow {
            // The doubt stands for all of them, now and once Rails tells the truth.
            work.progress.1 += work.heard.len() as u64;
            let settle = work.heard.drain(..).map(|(purge, _)| purge.settle()).max().unwrap_or_default();
            work.doubt_later(now + settle);
        }
        drop(work);
        if overflow {
            self.doubt(DoubtReason::Overflow);
        }
        self.is_new.notify_one();
    }

    /// A purge may have been missed.
    pub(super) fn doubt(&self, reason: DoubtReason) {
        self.cache.doubt_all();
        self.counters.doubts.increment(reason);
        tracing::warn!(
            why = reason.as_str(),
            "a purge of another gateway may have been missed: what is kept is used only if Rails fails"
        );
    }

    /// At that time, doubts what is kept.
    pub(super) fn doubt_later(&self, at: Instant) {
        self.work.lock().doubt_later(at);
        self.is_new.notify_one();
    }

    /// How many purges were heard, and how many of them are dropped or doubted.
    pub(super) fn progress(&self) -> (u64, u64) {
        self.work.lock().progress
    }

    /// What to do now.
    pub(super) fn next_step(&self) -> Step {
        self.work.lock().next_step(self.clock.now())
    }

    /// Does the work, for as long as the gateway runs.
    pub(super) async fn run(&self) {
        loop {
            match self.next_step() {
                Step::Drop(look) => self.look(look).await,
                Step::Doubt => self.doubt(DoubtReason::Overflow),
                Step::Rest(until) => tokio::select! {
                    () = self.is_new.notified() => {}
                    () = tokio::time::sleep_until(until.into()) => {}
                },
            }
        }
    }

    async fn look(&self, look: Look) {
        let (selectors, mode) = (look.selectors(), look.mode);
        let dropped = self.cache.run_blocking(move |cache| cache.purge(&selectors, mode)).await;
        self.dropped(&look, dropped.unwrap_or_default());
    }

    /// This is dropped; what was heard, and the keys that were known to be a user's, is to be dropped once more.
    pub(super) fn dropped(&self, look: &Look, dropped: PurgeResult) {
        if look.heard.is_empty() {
            return;
        }
        tracing::debug!(purges = look.heard.len(), "dropped what other gateways have purged");
        let settle = look.heard.iter().map(|(purge, _)| purge.settle()).max().unwrap_or_default();
        let unix = self.clock.unix_time();
        for (purge, _) in look.heard.iter().filter(|(_, is_new)| *is_new) {
            self.counters.count_heard(unix.saturating_sub(Duration::from_millis(purge.accepted_at_ms)));
        }
        let again = with_keys(look.heard_selectors().collect(), dropped);
        let mut work = self.work.lock();
        work.progress.1 += look.heard.len() as u64;
        if !settle.is_zero() {
            work.drop_later(self.clock.now() + settle, again, look.mode);
        }
    }
}

/// The selectors of the second purge: the same, and the keys that were known to be a user's.
pub(super) fn with_keys(selectors: Vec<Selector>, dropped: PurgeResult) -> Vec<Selector> {
    selectors.into_iter().chain(dropped.key_row_ids.into_iter().map(Selector::KeyId)).collect()
}

impl Work {
    fn next_step(&mut self, now: Instant) -> Step {
        if let Some((first, last)) = self.doubt_at.filter(|(first, _)| now >= *first) {
            self.doubt_at = (first < last && now < last).then_some((last, last));
            return Step::Doubt;
        }
        let first = self.settling.first_key_value().map(|((at, _), (_, mode))| (*at, *mode));
        let settled = first.filter(|(at, _)| *at <= now).map(|(_, mode)| mode);
        let heard = self.heard.front().map(|(purge, _)| purge.mode);
        let mode = if self.is_turn_of_heard { heard.or(settled) } else { settled.or(heard) };
        let Some(mode) = mode else {
            let until =
                first.map(|(at, _)| at).into_iter().chain(self.doubt_at.map(|(first, _)| first)).min();
            return Step::Rest(until.unwrap_or(now + LONGEST_REST));
        };
        self.is_turn_of_heard = heard.is_some_and(|heard| heard != mode);
        Step::Drop(Look { mode, heard: self.take_heard(mode), settled: self.take_settled(mode, now) })
    }

    /// The first ones, if they are of this mode, so that the order of hard and soft ones stays.
    fn take_heard(&mut self, mode: PurgeMode) -> Vec<(Purge, bool)> {
        let mut room = MAX_SELECTORS;
        let fitting = self
            .heard
            .iter()
            .take_while(|(purge, _)| purge.mode == mode && takes(&mut room, purge.selectors.len()));
        let count = fitting.count();
        self.heard.drain(..count).collect()
    }

    fn take_settled(&mut self, mode: PurgeMode, now: Instant) -> Vec<Selector> {
        let mut room = MAX_SELECTORS;
        let fitting = self.settling.extract_if(..=(now, u64::MAX), |_, (selectors, is)| {
            *is == mode && takes(&mut room, selectors.len())
        });
        fitting.flat_map(|(_, (selectors, _))| selectors).collect()
    }

    fn drop_later(&mut self, at: Instant, selectors: Vec<Selector>, mode: PurgeMode) {
        if self.settling.len() >= MAX_PURGES {
            self.doubt_later(at);
            return;
        }
        self.settle_count += 1;
        self.settling.insert((at, self.settle_count), (selectors, mode));
    }

    fn doubt_later(&mut self, at: Instant) {
        // The first one is never put off, or it would not come while there is one after the other.
        let (first, last) = self.doubt_at.unwrap_or((at, at));
        self.doubt_at = Some((first.min(at), last.max(at)));
    }
}

/// Whether so many selectors fit in. The first ones always do.
fn takes(room: &mut usize, count: usize) -> bool {
    let fits = *room == MAX_SELECTORS || count <= *room;
    *room = if fits { room.saturating_sub(count) } else { 0 };
    fits
}

#[cfg(test)]
mod tests;
