//! What is counted of shared answers.

use crate::counters::{Counters, label};

/// What a look at the shared answers has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SharedResult {
    /// An answer that may be used.
    Hit = 0,
    /// None.
    Miss = 1,
    /// One that may not be used: too old, not sealed for this place, or meant by a purge.
    Refused = 2,
    /// No reply in time.
    Late = 3,
    /// An error, or no connection.
    Error = 4,
}

impl SharedResult {
    /// In the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Hit, Self::Miss, Self::Refused, Self::Late, Self::Error];

    /// In metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Refused => "refused",
            Self::Late => "late",
            Self::Error => "error",
        }
    }
}

label!(SharedResult);

/// What became of a report of known purges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ReportEvent {
    /// It was told from here.
    Told = 0,
    /// Another gateway told it, and it is used here: so are answers of before the start.
    Used = 1,
}

impl ReportEvent {
    /// In the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Told, Self::Used];

    /// In metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Used => "used",
        }
    }
}

label!(ReportEvent);

/// How it was decided who asks Rails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum LockResult {
    /// This gateway asks on behalf of all.
    Won = 0,
    /// Another one has asked, and shared the answer in time.
    Shared = 1,
    /// Another one asks, but has not shared its answer in time, so this one asks too.
    Waited = 2,
    /// It was not decided, so this one asks.
    Error = 3,
}

impl LockResult {
    /// In the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Won, Self::Shared, Self::Waited, Self::Error];

    /// In metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Shared => "shared",
            Self::Waited => "waited",
            Self::Error => "error",
        }
    }
}

label!(LockResult);

/// See the module.
#[derive(Debug, Default)]
pub struct SharedCounters {
    /// Looks at the shared answers. One that waits for another gateway looks several times, and counts once.
    pub results: Counters<SharedResult>,
    /// Locks of misses.
    pub locks: Counters<LockResult>,
    /// Reports of known purges.
    pub reports: Counters<ReportEvent>,
}
