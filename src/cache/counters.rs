//! Counters of entries stored, evicted, expired and purged.

use std::sync::atomic::AtomicU64;

use super::kind::EntryKind;
use crate::counters::Counters;

/// Counters of entries stored, evicted, expired and purged.
#[derive(Debug, Default)]
pub struct CacheCounters {
    /// Answers of Rails that were stored.
    pub stored: Counters<EntryKind>,
    /// Entries pushed out because a store was full.
    pub evicted: Counters<EntryKind>,
    /// Entries that moka dropped after their greatest age.
    pub expired: Counters<EntryKind>,
    /// Memory that entries take now.
    pub bytes: Counters<EntryKind>,
    /// Refreshes in the background.
    pub refreshes: Counters<RefreshOutcome>,
    /// Entries dropped or marked stale by a purge.
    pub purged: AtomicU64,
    /// Answers that came after an invalidation and were not stored.
    pub fenced: AtomicU64,
}

/// How the refresh of a stale answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum RefreshOutcome {
    /// It is fresh again.
    Stored = 0,
    /// Rails gave an answer that is not stored.
    Unstored = 1,
    /// Rails failed.
    Failed = 2,
}

impl RefreshOutcome {
    /// In the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Stored, Self::Unstored, Self::Failed];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Unstored => "unstored",
            Self::Failed => "failed",
        }
    }
}

crate::counters::label!(RefreshOutcome);
