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

impl Cache {
    /// The first `limit` of the entries that match, and how many match.
    pub fn inspect(&self, selector: &Selector, now: Instant, limit: usize) -> (Vec<EntryInfo>, usize) {
        let matches = self.find_matches(std::slice::from_ref(selector));
        let shown = matches.iter().take(limit).map(|(key, entry)| EntryInfo {
            key: key.display_name(),
            caching: key.caching(),
            kind: entry.kind,
            freshness: self.freshness(entry, now),
            age: entry.age(now),
            remaining_ttl_s: entry.remaining_ttl_s(now),
            hits: entry.hits(),
            subject_id: entry.subject_id(),
        });
        (shown.collect(), matches.len())
    }

    /// How many entries an endpoint has: positive, negative.
    pub fn entry_counts_of(&self, caching: Caching) -> [usize; 2] {
        [&self.positive, &self.negative]
            .map(|store| store.iter().filter(|(key, _)| key.caching() == caching).count())
    }
}
