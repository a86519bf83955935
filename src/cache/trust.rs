//! What entries may be used for, beside what their age allows. An entry of before a flush is unusable. While the
//! gateway may have missed a purge, what it knows from before is *doubted*: used only if Rails fails. And while it
//! cannot hear of purges at all, it is *alone*: answers are fresh for a short time only.
//!
//! Each is a cut-off in the order in which Rails was asked, so none of them goes through the entries, and one
//! comparison tells that none applies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::lifetimes::{AgeLimits, Freshness};

/// The cut-offs, by generation: the number of flushes and doubts before Rails was asked.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// [`Cutoffs::trusted_from`].
    trusted_from: AtomicU64,
    cutoffs: RwLock<Cutoffs>,
}

#[derive(Debug, Default)]
struct Cutoffs {
    /// Of flights that begin now.
    generation: u64,
    /// What is older is unusable.
    usable_from: u64,
    /// What is older is doubted.
    undoubted_from: u64,
    /// Answers are fresh for no longer while the gateway is alone; `None` if it is not.
    alone_ttl: Option<Duration>,
}

impl Cutoffs {
    /// What is of this generation, or a later one, is limited by its age only.
    fn trusted_from(&self) -> u64 {
        if self.alone_ttl.is_some() { u64::MAX } else { self.joinable_from() }
    }

    /// A flight that is older has asked Rails too early for callers who come now.
    fn joinable_from(&self) -> u64 {
        self.usable_from.max(self.undoubted_from)
    }

    /// For how long an answer may be fresh at most; `None` if it is unusable.
    fn fresh_for(&self, generation: u64) -> Option<Duration> {
        match generation {
            _ if generation < self.usable_from => None,
            _ if generation < self.undoubted_from => Some(Duration::ZERO),
            _ => Some(self.alone_ttl.unwrap_or(Duration::MAX)),
        }
    }
}

impl Trust {
    /// Whether only its age limits what is of this generation.
    pub(super) fn is_trusted(&self, generation: u64) -> bool {
        generation >= self.trusted_from.load(Ordering::Acquire)
    }

    /// Up to which ages an answer may be used that is not [trusted](Self::is_trusted); `None` if it is unusable.
    #[cold]
    pub(super) fn limit(&self, generation: u64, age_limits: AgeLimits) -> Option<AgeLimits> {
        let fresh_for = self.cutoffs.read().fresh_for(generation)?;
        Some(age_limits.with_fresh_at_most(fresh_for).without_stale_while_revalidate())
    }

    /// The generation of a flight that begins now, and the oldest one whose flights callers may join.
    pub(super) fn begin_flight(&self) -> (u64, u64) {
        let cutoffs = self.cutoffs.read();
        (cutoffs.generation, cutoffs.joinable_from())
    }

    /// The generation of what Rails is asked for now.
    pub(super) fn generation(&self) -> u64 {
        self.cutoffs.read().generation
    }

    /// Whether what is of this generation may be stored.
    pub(super) fn is_usable(&self, generation: u64) -> bool {
        generation >= self.cutoffs.read().usable_from
    }

    /// What is of before is unusable.
    pub(super) fn flush(&self) {
        self.change(|cutoffs| {
            cutoffs.generation += 1;
            cutoffs.usable_from = cutoffs.generation;
        });
    }

    /// What is of before is doubted.
    pub(super) fn doubt(&self) {
        self.change(|cutoffs| {
            cutoffs.generation += 1;
            cutoffs.undoubted_from = cutoffs.generation;
        });
    }

    pub(super) fn set_alone(&self, alone_ttl: Option<Duration>) {
        self.change(|cutoffs| cutoffs.alone_ttl = alone_ttl);
    }

    pub(super) fn is_alone(&self) -> bool {
        self.cutoffs.read().alone_ttl.is_some()
    }

    fn change(&self, change: impl FnOnce(&mut Cutoffs)) {
        let mut cutoffs = self.cutoffs.write();
        change(&mut cutoffs);
        self.trusted_from.store(cutoffs.trusted_from(), Ordering::Release);
    }
}

/// What an answer that is not trusted may be used for.
pub(super) fn untrusted(freshness: Freshness) -> Freshness {
    if freshness == Freshness::Fresh { freshness } else { Freshness::Doubted }
}

#[cfg(test)]
mod tests;
