//! What is cached, for operators: never an answer itself.

use std::time::{Duration, Instant};

use super::Cache;
use super::kind::EntryKind;
use super::lifetimes::Freshness;
use super::purge::Selector;
use crate::route::Caching;

/// What operators are shown of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// What was asked for; an SSH key as its fingerprint.
    pub key: String,
    /// The endpoint.
    pub caching: Caching,
    /// Which store it is in.
    pub kind: EntryKind,
    /// What it may be used for; `None` if for nothing any more.
    pub freshness: Option<Freshness>,
    /// How long ago Rails was asked for it.
    pub age: Duration,
    /// Whole seconds for which it stays fresh; below 0 once it is stale.
    pub remaining_ttl_s: i64,
    /// How often it was served.
    pub hits: u32,
    /// The id of the key row or user that the answer is about.
    pub subject_id: Option<u64>,
}

/// How many entries are not older than this, and older than the age before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgeCount {
    /// `None` for all that are older.
    pub up_to: Option<Duration>,
    /// Positive, negative.
    pub entries: [u64; 2],
}

const AGE_BOUNDS: [Duration; 6] = [
    Duration::from_secs(10),
    Duration::from_mins(1),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(12),
];

/// So many entries of a store are looked at. Which ones come first depends on hashes, not on their age.
const COUNTED_BY_AGE: u64 = 10_000;

impl Cache {
    /// How old the entries are, about: of a large store a part is counted, and multiplied.
    pub fn count_by_age(&self, now: Instant) -> Vec<AgeCount> {
        let bounds = AGE_BOUNDS.into_iter().map(Some).chain([None]);
        let mut counts: Vec<_> = bounds.map(|up_to| AgeCount { up_to, entries: [0; 2] }).collect();
        for (kind, store) in [&self.positive, &self.negative].into_iter().enumerate() {
            let mut counted = 0;
            for (_, entry) in store {
                let age = entry.age(now);
                let bucket = counts.iter_mut().find(|count| count.up_to.is_none_or(|up_to| age <= up_to));
                if let Some(count) = bucket.and_then(|bucket| bucket.entries.get_mut(kind)) {
                    *count += 1;
                    counted += 1;
                }
                if counted == COUNTED_BY_AGE {
                    break;
                }
            }
            let all = if counted < COUNTED_BY_AGE { counted } else { store.entry_count().max(counted) };
            for count in counts.iter_mut().filter_map(|count| count.entries.get_mut(kind)) {
                *count = (*count * all).checked_div(counted).unwrap_or(0);
            }
        }
        counts
    }

    /// The first `limit` of the entries that match, and how many match.
    pub fn inspect(&self, selector: &Selector, now: Instant, limit: usize) -> (Vec<EntryInfo>, usize) {
        let matches = self.find_matches(std::slice::from_ref(selector));
        let shown = matches.iter().take(limit).map(|(key, entry)| {
            let age = entry.age(now);
            let usable = self.freshness(entry, age);
            let age_limits = usable.map_or_else(|| entry.age_limits(), |(_, age_limits)| age_limits);
            EntryInfo {
                key: key.display_name(),
                caching: key.caching(),
                kind: entry.kind,
                freshness: usable.map(|(freshness, _)| freshness),
                age,
                remaining_ttl_s: age_limits.remaining_ttl_s(age),
                hits: entry.hits(),
                subject_id: entry.subject_id(),
            }
        });
        (shown.collect(), matches.len())
    }

    /// How many entries an endpoint has: positive, negative.
    pub fn entry_counts_of(&self, caching: Caching) -> [usize; 2] {
        [&self.positive, &self.negative]
            .map(|store| store.iter().filter(|(key, _)| key.caching() == caching).count())
    }
}
