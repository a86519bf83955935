//! Dropping answers before their time, because somebody knows that they are not true any more.
//!
//! First the flights that could bring such an answer are struck off, then the entries are looked
//! through. So an answer that was on its way is not stored, and one that Rails gives from now on may
//! be. What an entry is about, its key says, and its answer: which key row an SSH key is, and whose,
//! only Rails knows.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::entry::Entry;
use super::{Cache, Key};
use crate::route::Caching;

/// Which answers are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// About this SSH key: SHA-256 of its blob.
    SshKey([u8; 32]),
    /// About the key row with this id: the SSH key that it is, and the user behind it.
    KeyId(u64),
    /// About this user, by whatever it was asked for, the SSH keys that are known to be theirs, and those
    /// of owners who are blocked, who may be this one.
    UserId(u64),
    /// The same by name, whose case does not matter.
    Username(String),
    /// Of one endpoint.
    Route(Caching),
    /// All.
    All,
}

/// What becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// They are gone.
    Hard,
    /// They are stale, as if their `ttl` had ended. Those that are never used stale are gone.
    Soft,
}

/// What a purge has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// How many entries there were.
    pub entries: usize,
    /// If a user was meant, the key rows that are known to be theirs: once the entries are gone, nothing
    /// says so.
    pub key_rows: Vec<u64>,
}

/// Whether a word is the type of an SSH key (RFC 4253 §6.6, RFC 5656, and OpenSSH's own).
fn is_type(word: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|start| word.starts_with(start))
}

impl Selector {
    /// The selector of an SSH key in any spelling: Base64 with or without padding, a line of a `.pub`
    /// file, or a fingerprint as `ssh-keygen -l` prints it (`SHA256:…`, with or without what is around).
    pub fn ssh_key(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        if let Some(digest) = words.iter().find_map(|word| word.strip_prefix("SHA256:")) {
            let digest = STANDARD_NO_PAD.decode(digest.trim_end_matches('=')).ok()?;
            return digest.try_into().ok().map(Self::SshKey);
        }
        let of = |word: &str| match Key::of_ssh_key(word.as_bytes())? {
            Key::SshKey(digest) => Some(Self::SshKey(digest)),
            _ => None,
        };
        // Behind its type, wherever that is: a line of `authorized_keys` may begin with options, and
        // words of a comment may be Base64 too.
        let mut typed = words.iter().zip(words.iter().skip(1)).filter(|(word, _)| is_type(word)).peekable();
        if typed.peek().is_none() { of(words.first()?) } else { typed.find_map(|(_, key)| of(key)) }
    }

    /// Whether an answer that is on its way may turn out to be meant.
    fn may_mean(&self, key: &Key) -> bool {
        match self {
            Self::SshKey(digest) => matches!(key, Key::SshKey(other) if other == digest),
            Self::KeyId(id) => {
                matches!(key, Key::SshKey(_)) || matches!(key, Key::UserOfKey(other) if other == id)
            }
            Self::UserId(_) | Self::Username(_) => *key != Key::Instance,
            Self::Route(caching) => key.caching() == *caching,
            Self::All => true,
        }
    }

    /// Whether an answer is meant, as far as it says so itself.
    fn means(&self, key: &Key, entry: &Entry) -> bool {
        let is_discover = key.caching() == Caching::Discover;
        match self {
            Self::SshKey(_) | Self::Route(_) | Self::All => self.may_mean(key),
            Self::KeyId(id) => match key {
                Key::UserOfKey(other) => other == id,
                Key::SshKey(_) => entry.subject() == Some(*id),
                _ => false,
            },
            // Whose it is, the answer does not say.
            Self::UserId(_) | Self::Username(_) if entry.is_of_blocked_owner() => true,
            Self::UserId(id) => is_discover && (*key == Key::UserById(*id) || entry.subject() == Some(*id)),
            Self::Username(name) => {
                let is_asked_for = matches!(key, Key::UserByName(other) if other.eq_ignore_ascii_case(name));
                is_discover && (is_asked_for || entry.is_of_user(name))
            }
        }
    }
}

impl Cache {
    /// Drops what is kept under the very key that a selector names, and whatever may be under way of what any
    /// of these means: as much of a [`Self::purge`] as takes no time. How many entries there were.
    pub fn purge_by_key(&self, selectors: &[Selector]) -> usize {
        self.flights.strike_all(|key| selectors.iter().any(|selector| selector.may_mean(key)));
        let keys = selectors.iter().filter_map(|selector| match selector {
            Selector::SshKey(digest) => Some(Key::SshKey(*digest)),
            Selector::KeyId(id) => Some(Key::UserOfKey(*id)),
            Selector::UserId(id) => Some(Key::UserById(*id)),
            _ => None,
        });
        let is_kept = |key: &Key| self.positive.contains_key(key) || self.negative.contains_key(key);
        let count = keys.filter(is_kept).map(|key| self.remove(&key)).count();
        self.counts.purged.fetch_add(count as u64, Ordering::Relaxed);
        count
    }

    /// Drops what any of these means, and whatever may be under way of it. Looks through all entries,
    /// unless it is about SSH keys alone: with very many, not something to be done where others wait.
    pub fn purge(&self, selectors: &[Selector], how: How) -> Purged {
        self.flights.strike_all(|key| selectors.iter().any(|selector| selector.may_mean(key)));
        let meant = self.find(selectors);
        for (key, entry) in &meant {
            if how == How::Soft && entry.is_ever_stale() {
                entry.soften();
            } else {
                self.remove(key);
            }
        }
        self.counts.purged.fetch_add(meant.len() as u64, Ordering::Relaxed);
        Purged { entries: meant.len(), key_rows: key_rows_of_users(selectors, &meant) }
    }

    /// The entries that are meant.
    pub(super) fn find(&self, selectors: &[Selector]) -> Vec<Meant> {
        let digests = selectors.iter().map(|selector| match selector {
            Selector::SshKey(digest) => Some(Key::SshKey(*digest)),
            _ => None,
        });
        if let Some(keys) = digests.collect::<Option<HashSet<Key>>>() {
            let stores = [&self.positive, &self.negative];
            let entries = keys.iter().flat_map(|key| stores.map(|store| Some((key, store.get(key)?))));
            return entries.flatten().map(|(key, entry)| (Arc::new(key.clone()), entry)).collect();
        }
        let is_meant = |key: &Key, entry: &Entry| selectors.iter().any(|selector| selector.means(key, entry));
        let mut meant = self.find_where(is_meant);
        let rows: HashSet<u64> = key_rows_of_users(selectors, &meant).into_iter().collect();
        if !rows.is_empty() {
            meant.extend(self.find_where(|key, entry| {
                let is_theirs = entry.subject().is_some_and(|id| rows.contains(&id));
                matches!(key, Key::SshKey(_)) && is_theirs && !is_meant(key, entry)
            }));
        }
        meant
    }

    fn find_where(&self, is_meant: impl Fn(&Key, &Entry) -> bool) -> Vec<Meant> {
        let entries = self.positive.iter().chain(self.negative.iter());
        entries.filter(|(key, entry)| is_meant(key, entry)).collect()
    }
}

type Meant = (Arc<Key>, Arc<Entry>);

/// The key rows that are known to be of the users who are meant: `discover` was asked for them by id.
fn key_rows_of_users(selectors: &[Selector], meant: &[Meant]) -> Vec<u64> {
    let is_of_user = |selector: &&Selector| matches!(selector, Selector::UserId(_) | Selector::Username(_));
    let of_users: Vec<&Selector> = selectors.iter().filter(is_of_user).collect();
    let theirs =
        meant.iter().filter(|(key, entry)| of_users.iter().any(|selector| selector.means(key, entry)));
    theirs.filter_map(|(key, _)| key.id_of_key_row()).collect()
}

#[cfg(test)]
mod tests;
