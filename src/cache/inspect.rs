//! What is cached, for operators: never an answer itself.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::entry::EntryKind;
use super::purge::Selector;
use super::{Cache, Freshness, Key};
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
            key: display_name(key),
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

/// As the parameter that asks for it; an SSH key as `ssh-keygen -l` prints it.
pub(super) fn display_name(key: &Key) -> String {
    match key {
        Key::SshKey(digest) => format!("SHA256:{}", STANDARD_NO_PAD.encode(digest)),
        Key::UserOfKey(id) => format!("key_id={id}"),
        Key::UserById(id) => format!("user_id={id}"),
        Key::UserByName(name) => format!("username={name}"),
        Key::Instance => "check".to_owned(),
    }
}
