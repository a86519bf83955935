//! Dropping answers before their time, because an operator or GitLab says that they are not true any more.
//!
//! First the flights that could bring such an answer are fenced off, then the entries are looked
//! through. So an answer that was on its way is not stored, and one that Rails gives from now on may
//! be. What an entry is about follows from its key and its answer: only the answer of Rails says which
//! key row an SSH key is, and whose.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::Cache;
use super::entry::Entry;
use super::key::Key;
use crate::route::Caching;

/// Which answers to purge or to show. Gateways tell each other the variants by their order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
pub enum Selector {
    /// About this SSH key: SHA-256 of its blob.
    SshKey([u8; 32]),
    /// About the key row with this id: its SSH key, and the user who owns it.
    KeyId(u64),
    /// About this user, whatever the look-up was by; the SSH keys that are known to be theirs; and those
    /// of blocked owners, since this user may be one.
    UserId(u64),
    /// The same by name, whose case does not matter.
    Username(String),
    /// Of one endpoint.
    Route(Caching),
    /// Everything.
    All,
}

/// What a purge does with the entries that match. Gateways tell each other the variants by their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub enum PurgeMode {
    /// They are dropped.
    Hard,
    /// They become stale, as if their `ttl` had ended. Those that are never used stale are dropped.
    Soft,
}

/// What a purge has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PurgeResult {
    /// How many entries matched.
    pub entries: usize,
    /// For selectors of users, the ids of the key rows that are known to be theirs: once the entries are
    /// dropped, nothing says so.
    pub key_row_ids: Vec<u64>,
}

/// Whether a word is the type of an SSH key (RFC 4253 §6.6, RFC 5656, and OpenSSH's own).
fn is_ssh_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|prefix| word.starts_with(prefix))
}

impl Selector {
    /// The selector of an SSH key in any spelling: Base64 with or without padding, a line of a `.pub`
    /// file, or a fingerprint as `ssh-keygen -l` prints it (`SHA256:…`, with or without the words around it).
    pub fn ssh_key(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        if let Some(digest) = words.iter().find_map(|word| word.strip_prefix("SHA256:")) {
            let digest = STANDARD_NO_PAD.decode(digest.trim_end_matches('=')).ok()?;
            return digest.try_into().ok().map(Self::SshKey);
        }
        let from_base64 = |word: &str| match Key::of_ssh_key(word.as_bytes())? {
            Key::SshKey(digest) => Some(Self::SshKey(digest)),
            _ => None,
        };
        // Behind its type, wherever that is: a line of `authorized_keys` may begin with options, and
        // words of a comment may be Base64 too.
        let pairs = words.iter().zip(words.iter().skip(1));
        let mut typed = pairs.filter(|(word, _)| is_ssh_key_type(word)).peekable();
        if typed.peek().is_none() {
            from_base64(words.first()?)
        } else {
            typed.find_map(|(_, word)| from_base64(word))
        }
    }

    /// All selectors that mean the positive answer for `key`, with user names in lower case: those that
    /// [`Cache::purge`] finds it by. Whose an SSH key is, its answer does not say: any selector of a user may mean it.
    pub fn all_that_mean(key: &Key, subject_id: Option<u64>, username: Option<&str>) -> Vec<Self> {
        let mut all = vec![Self::All, Self::Route(key.caching())];
        let (by_key, is_user) = match key {
            Key::SshKey(digest) => ([Some(Self::SshKey(*digest)), subject_id.map(Self::KeyId)], false),
            Key::UserOfKey(id) => ([Some(Self::KeyId(*id)), None], true),
            Key::UserById(id) => ([Some(Self::UserId(*id)), None], true),
            Key::UserByName(name) => ([Some(Self::Username(name.to_ascii_lowercase())), None], true),
            Key::Instance => ([None, None], false),
        };
        all.extend(by_key.into_iter().flatten());
        if is_user {
            all.extend(subject_id.map(Self::UserId));
            all.extend(username.map(|name| Self::Username(name.to_ascii_lowercase())));
        }
        all
    }

    /// Whether it selects by user.
    pub fn is_of_user(&self) -> bool {
        matches!(self, Self::UserId(_) | Self::Username(_))
    }

    /// Whether the answer of a flight for `key` may turn out to match.
    fn may_match(&self, key: &Key) -> bool {
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

    /// Whether an entry matches, as far as its own answer says.
    fn matches(&self, key: &Key, candidate: &Candidate<'_>) -> bool {
        let entry = candidate.entry;
        let is_discover = key.caching() == Caching::Discover;
        match self {
            Self::SshKey(_) | Self::Route(_) | Self::All => self.may_match(key),
            Self::KeyId(id) => match key {
                Key::UserOfKey(other) => other == id,
                Key::SshKey(_) => entry.subject_id() == Some(*id),
                _ => false,
            },
            // The answer does not say whose key it is.
            Self::UserId(_) | Self::Username(_) if entry.is_about_blocked_owner() => true,
            Self::UserId(id) => {
                is_discover && (*key == Key::UserById(*id) || entry.subject_id() == Some(*id))
            }
            Self::Username(name) => {
                let is_key = matches!(key, Key::UserByName(other) if other.eq_ignore_ascii_case(name));
                is_discover && (is_key || candidate.is_about_username(name))
            }
        }
    }
}

impl Cache {
    /// The part of a [`Self::purge`] that takes no time: fences off every flight that may match, and if it is
    /// hard, drops the entry under the very key that a selector names. Says how many entries there were.
    pub fn purge_by_key(&self, selectors: &[Selector], mode: PurgeMode) -> usize {
        self.flights.fence_off_matching(|key| selectors.iter().any(|selector| selector.may_match(key)));
        if mode == PurgeMode::Soft {
            return 0;
        }
        let keys = selectors.iter().filter_map(|selector| match selector {
            Selector::SshKey(digest) => Some(Key::SshKey(*digest)),
            Selector::KeyId(id) => Some(Key::UserOfKey(*id)),
            Selector::UserId(id) => Some(Key::UserById(*id)),
            _ => None,
        });
        let is_stored = |key: &Key| self.positive.contains_key(key) || self.negative.contains_key(key);
        let count = keys.filter(is_stored).map(|key| self.remove(&key)).count();
        self.counters.purged.fetch_add(count as u64, Ordering::Relaxed);
        count
    }

    /// Drops the entries that match any selector, and fences off the flights that may. Looks through all
    /// entries, unless all selectors are SSH keys: use a blocking thread.
    pub fn purge(&self, selectors: &[Selector], mode: PurgeMode) -> PurgeResult {
        self.flights.fence_off_matching(|key| selectors.iter().any(|selector| selector.may_match(key)));
        let matches = self.find_matches(selectors);
        for (key, entry) in &matches {
            if mode == PurgeMode::Soft && entry.is_ever_usable_stale() {
                entry.mark_stale();
            } else {
                self.remove(key);
            }
        }
        self.counters.purged.fetch_add(matches.len() as u64, Ordering::Relaxed);
        PurgeResult { entries: matches.len(), key_row_ids: key_row_ids_of_users(selectors, &matches) }
    }

    /// The entries that match any selector.
    pub(super) fn find_matches(&self, selectors: &[Selector]) -> Vec<Match> {
        let digests = selectors.iter().map(|selector| match selector {
            Selector::SshKey(digest) => Some(Key::SshKey(*digest)),
            _ => None,
        });
        if let Some(keys) = digests.collect::<Option<HashSet<Key>>>() {
            let stores = [&self.positive, &self.negative];
            let entries = keys.iter().flat_map(|key| stores.map(|store| Some((key, store.get(key)?))));
            return entries.flatten().map(|(key, entry)| (Arc::new(key.clone()), entry)).collect();
        }
        let is_match = |key: &Key, entry: &Entry| any_matches(selectors, key, entry);
        let mut matches = self.find_where(is_match);
        let row_ids: HashSet<u64> = key_row_ids_of_users(selectors, &matches).into_iter().collect();
        if !row_ids.is_empty() {
            matches.extend(self.find_where(|key, entry| {
                let is_theirs = entry.subject_id().is_some_and(|id| row_ids.contains(&id));
                matches!(key, Key::SshKey(_)) && is_theirs && !is_match(key, entry)
            }));
        }
        matches
    }

    fn find_where(&self, is_match: impl Fn(&Key, &Entry) -> bool) -> Vec<Match> {
        let entries = self.positive.iter().chain(self.negative.iter());
        entries.filter(|(key, entry)| is_match(key, entry)).collect()
    }
}

type Match = (Arc<Key>, Arc<Entry>);

/// An entry that may match.
struct Candidate<'e> {
    entry: &'e Entry,
    /// That of its answer, which is parsed once for all selectors, and only if one asks for it.
    username: OnceCell<Option<String>>,
}

impl<'e> Candidate<'e> {
    fn new(entry: &'e Entry) -> Self {
        Self { entry, username: OnceCell::new() }
    }

    /// Whether it is about the user with this name, whose case does not matter.
    fn is_about_username(&self, name: &str) -> bool {
        let username = self.username.get_or_init(|| self.entry.username());
        username.as_ref().is_some_and(|is| is.eq_ignore_ascii_case(name))
    }
}

fn any_matches(selectors: &[Selector], key: &Key, entry: &Entry) -> bool {
    let candidate = Candidate::new(entry);
    selectors.iter().any(|selector| selector.matches(key, &candidate))
}

/// The key rows that are known to be owned by the selected users: `discover` was asked for them by id.
fn key_row_ids_of_users(selectors: &[Selector], matches: &[Match]) -> Vec<u64> {
    let of_users: Vec<Selector> =
        selectors.iter().filter(|selector| selector.is_of_user()).cloned().collect();
    let theirs = matches.iter().filter(|(key, entry)| any_matches(&of_users, key, entry));
    theirs.filter_map(|(key, _)| key.key_row_id()).collect()
}

#[cfg(test)]
mod tests;
