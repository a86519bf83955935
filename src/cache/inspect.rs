//! What is kept, for operators: never an answer itself.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::entry::Sign;
use super::purge::Selector;
use super::{Cache, Key, Phase};
use crate::route::Caching;

/// What is known of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// What was asked for; an SSH key as its fingerprint.
    pub key: String,
    /// Of which endpoint.
    pub caching: Caching,
    /// Whether it says that something is there.
    pub sign: Sign,
    /// What it is good for; `None` if for nothing any more.
    pub phase: Option<Phase>,
    /// How long ago Rails was asked for it.
    pub age: Duration,
    /// Whole seconds for which it stays fresh; less than 0 since it is not.
    pub fresh_for: i64,
    /// How often it was given.
    pub hits: u32,
    /// The id of the key row or user that it tells of.
    pub subject: Option<u64>,
}

impl Cache {
    /// The entries that are meant, and how many there are, of which no more than `most` are shown.
    pub fn inspect(&self, selector: &Selector, now: Instant, most: usize) -> (Vec<Sight>, usize) {
        let meant = self.find(std::slice::from_ref(selector));
        let seen = meant.iter().take(most).map(|(key, entry)| Sight {
            key: name(key),
            caching: key.caching(),
            sign: entry.sign,
            phase: self.phase(entry, now),
            age: entry.age(now),
            fresh_for: entry.fresh_for(now),
            hits: entry.hits(),
            subject: entry.subject(),
        });
        (seen.collect(), meant.len())
    }

    /// How many entries of an endpoint there are: positive, negative.
    pub fn totals(&self, caching: Caching) -> [usize; 2] {
        [&self.positive, &self.negative]
            .map(|store| store.iter().filter(|(key, _)| key.caching() == caching).count())
    }
}

/// As the parameter that asks for it; an SSH key as `ssh-keygen -l` prints it.
pub(super) fn name(key: &Key) -> String {
    match key {
        Key::SshKey(digest) => format!("SHA256:{}", STANDARD_NO_PAD.encode(digest)),
        Key::UserOfKey(id) => format!("key_id={id}"),
        Key::UserById(id) => format!("user_id={id}"),
        Key::UserByName(name) => format!("username={name}"),
        Key::Instance => "check".to_owned(),
    }
}
