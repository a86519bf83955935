//! What happened to entries, for the metrics.

use std::sync::atomic::AtomicU64;

/// What happened to entries, for the metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Entries stored, by sign.
    pub stored: [AtomicU64; 2],
    /// Entries pushed out because a store was full, by sign.
    pub evicted: [AtomicU64; 2],
    /// Entries whose time was up when moka dropped them, by sign.
    pub expired: [AtomicU64; 2],
    /// Memory that entries take, by sign.
    pub bytes: [AtomicU64; 2],
    /// Stale answers for which Rails was asked behind the callers' backs, by what came of it.
    pub refreshes: [AtomicU64; 3],
    /// Entries dropped or marked stale because of a purge.
    pub purged: AtomicU64,
    /// Answers that arrived after an invalidation and were not stored.
    pub fenced: AtomicU64,
}

/// What came of asking Rails for a stale answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Refreshed {
    /// It is fresh again.
    Stored = 0,
    /// Rails said something that is not kept.
    Unstored = 1,
    /// Rails failed.
    Failed = 2,
}

impl Refreshed {
    /// All of them, in the order of [`Counts::refreshes`].
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
