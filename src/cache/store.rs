//! How much may be stored, and how moka is told.

use std::sync::Arc;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Moka;

use super::counters::CacheCounters;
use super::entry::Entry;
use super::key::Key;
use super::kind::EntryKind;
use super::lifetimes::Lifetimes;

pub(super) type Store = Moka<Key, Arc<Entry>, foldhash::fast::RandomState>;

/// What a store may hold, in the one unit that moka counts.
///
/// Every entry weighs at least `min_weight`, its share of the bytes, so that both bounds hold: that many
/// entries, however small, and that many bytes, however large the entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreLimits {
    pub(super) max_weight: u64,
    pub(super) min_weight: u32,
}

impl StoreLimits {
    pub(super) fn new(max_entries: u64, max_bytes: u64) -> Self {
        let min_weight = u32::try_from(max_bytes / max_entries.max(1)).unwrap_or(u32::MAX).max(1);
        Self { max_weight: max_bytes.min(max_entries.saturating_mul(min_weight.into())), min_weight }
    }

    pub(super) fn weigh(self, bytes: u64) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).max(self.min_weight)
    }
}

/// What an entry takes beside its text: itself, moka's bookkeeping, the allocator's rounding. Measured
/// (`tests/bench/compare memory`), not added up.
const ENTRY_OVERHEAD: u64 = 420;

pub(super) fn entry_bytes(key: &Key, entry: &Entry) -> u64 {
    ENTRY_OVERHEAD + (key.heap_bytes() + entry.heap_bytes()) as u64
}

/// LRU on purpose: moka's default (`TinyLFU`) refuses new keys while the store is full of hot
/// ones, and here a new key is an active user who has just arrived.
pub(super) fn build_store(
    kind: EntryKind,
    limits: StoreLimits,
    lifetimes: &Lifetimes,
    counters: &Arc<CacheCounters>,
) -> Store {
    let counters = Arc::clone(counters);
    Moka::builder()
        .max_capacity(limits.max_weight)
        .weigher(move |key, entry: &Arc<Entry>| limits.weigh(entry_bytes(key, entry)))
        // For a time to live, moka would keep a second list of all entries. One that is asked for after its time is
        // unusable all the same, and the next answer of Rails replaces it.
        .time_to_idle(lifetimes.max_age(kind))
        .eviction_policy(EvictionPolicy::lru())
        .eviction_listener(move |key, entry, cause| {
            counters.bytes.subtract(kind, entry_bytes(&key, &entry));
            match cause {
                RemovalCause::Size => counters.evicted.increment(kind),
                RemovalCause::Expired => counters.expired.increment(kind),
                RemovalCause::Explicit | RemovalCause::Replaced => {}
            }
        })
        .build_with_hasher(foldhash::fast::RandomState::default())
}
