//! How much may be kept, and how moka is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;

use super::{Counts, Entry, Key, Lifetimes, Moka, Sign, Store};

/// What a store may hold, in the one unit that moka counts.
///
/// Every entry counts as at least its share of the bytes, so that both bounds hold: that many
/// entries, however small, and that many bytes, however large the entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) capacity: u64,
    pub(super) share: u32,
}

impl Bounds {
    pub(super) fn new(entries: u64, bytes: u64) -> Self {
        let share = u32::try_from(bytes / entries.max(1)).unwrap_or(u32::MAX).max(1);
        Self { capacity: bytes.min(entries.saturating_mul(share.into())), share }
    }

    pub(super) fn weigh(self, bytes: u64) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).max(self.share)
    }
}

/// What an entry takes beside its body: itself, moka's bookkeeping, the allocator's rounding. Measured
/// (`tests/bench/compare memory`), not added up.
const BESIDE_THE_BODY: u64 = 560;

pub(super) fn memory(key: &Key, entry: &Entry) -> u64 {
    BESIDE_THE_BODY + (key.length_elsewhere() + entry.length()) as u64
}

/// LRU on purpose: moka's default (`TinyLFU`) refuses new keys while the store is full of hot
/// ones, and here a new key is an active user who has just arrived.
pub(super) fn store(sign: Sign, bounds: Bounds, lifetimes: &Lifetimes, counts: &Arc<Counts>) -> Store {
    let counts = Arc::clone(counts);
    Moka::builder()
        .max_capacity(bounds.capacity)
        .weigher(move |key, entry: &Arc<Entry>| bounds.weigh(memory(key, entry)))
        .time_to_live(lifetimes.longest(sign))
        .eviction_policy(EvictionPolicy::lru())
        .eviction_listener(move |key, entry, cause| {
            if let Some(bytes) = counts.bytes.get(sign as usize) {
                bytes.fetch_sub(memory(&key, &entry), Ordering::Relaxed);
            }
            let count = match cause {
                RemovalCause::Size => counts.evicted.get(sign as usize),
                RemovalCause::Expired => counts.expired.get(sign as usize),
                RemovalCause::Explicit | RemovalCause::Replaced => None,
            };
            if let Some(count) = count {
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
        .build_with_hasher(foldhash::fast::RandomState::default())
}
