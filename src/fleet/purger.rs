//! Drops what other gateways say is to be dropped, in the order of the stream, on a thread for blocking work: it may have to
//! look through a million entries. Purges that come meanwhile share the next look.

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

/// How many selectors are looked for at one time.
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
    /// From when until when to doubt in place of dropping again: at both ends, which covers all that settles in between.
    doubt_at: Option<(Instant, Instant)>,
}

/// The next thing to do.
#[derive(Debug)]
pub(super) enum Step {
    Drop(Vec<(Purge, bool)>),
    DropAgain(Vec<Selector>, PurgeMode),
    Doubt,
    Rest(Instant),
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
                Step::Drop(purges) => self.drop_heard(purges).await,
                Step::DropAgain(selectors, mode) => drop(self.drop_entries(selectors, mode).await),
                Step::Doubt => self.doubt(DoubtReason::Overflow),
                Step::Rest(until) => tokio::select! {
                    () = self.is_new.notified() => {}
                    () = tokio::time::sleep_until(until.into()) => {}
                },
            }
        }
    }

    async fn drop_heard(&self, purges: Vec<(Purge, bool)>) {
        let (selectors, mode) = what_to_drop(&purges);
        let again = self.drop_entries(selectors, mode).await;
        self.dropped(&purges, again, mode);
    }

    /// These are dropped, and `again` is to be dropped once more.
    pub(super) fn dropped(&self, purges: &[(Purge, bool)], again: Vec<Selector>, mode: PurgeMode) {
        tracing::debug!(purges = purges.len(), "dropped what other gateways have purged");
        let settle = purges.iter().map(|(purge, _)| purge.settle()).max().unwrap_or_default();
        let unix = self.clock.unix_time();
        for (purge, _) in purges.iter().filter(|(_, is_new)| *is_new) {
            self.counters.count_heard(unix.saturating_sub(Duration::from_millis(purge.accepted_at_ms)));
        }
        let mut work = self.work.lock();
        work.progress.1 += purges.len() as u64;
        if !settle.is_zero() {
            work.drop_later(self.clock.now() + settle, again, mode);
        }
    }

    /// Returns what to drop once more: the same, and the keys that were known to be a user's.
    async fn drop_entries(&self, selectors: Vec<Selector>, mode: PurgeMode) -> Vec<Selector> {
        let again = selectors.clone();
        let dropped = self.cache.run_blocking(move |cache| cache.purge(&selectors, mode)).await;
        with_keys(again, dropped.unwrap_or_default())
    }
}

/// What purges of one mode drop together.
pub(super) fn what_to_drop(purges: &[(Purge, bool)]) -> (Vec<Selector>, PurgeMode) {
    let mode = purges.first().map_or(PurgeMode::Hard, |(purge, _)| purge.mode);
    (purges.iter().flat_map(|(purge, _)| purge.selectors.iter().cloned()).collect(), mode)
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
        if let Some(settled) = self.settling.first_entry()
            && settled.key().0 <= now
        {
            let (selectors, mode) = settled.remove();
            return Step::DropAgain(selectors, mode);
        }
        let purges = self.next_purges();
        if !purges.is_empty() {
            return Step::Drop(purges);
        }
        let settled_at = self.settling.first_key_value().map(|((at, _), _)| *at);
        let until = settled_at.into_iter().chain(self.doubt_at.map(|(first, _)| first)).min();
        Step::Rest(until.unwrap_or(now + LONGEST_REST))
    }

    /// Those that can share a look: of one mode, so that the order of hard and soft ones stays.
    fn next_purges(&mut self) -> Vec<(Purge, bool)> {
        let Some(mode) = self.heard.front().map(|(purge, _)| purge.mode) else { return Vec::new() };
        let mut selectors = 0;
        let fitting = self.heard.iter().take_while(|(purge, _)| {
            selectors += purge.selectors.len();
            purge.mode == mode && selectors <= MAX_SELECTORS
        });
        let count = fitting.count().max(1);
        self.heard.drain(..count).collect()
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

#[cfg(test)]
mod tests;
