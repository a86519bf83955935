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
    /// About this user, by whatever it was asked for, and the SSH keys that are known to be theirs.
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
            Self::UserId(id) => is_discover && (*key == Key::UserById(*id) || entry.subject() == Some(*id)),
            Self::Username(name) => {
                let is_asked_for = matches!(key, Key::UserByName(other) if other.eq_ignore_ascii_case(name));
                is_discover && (is_asked_for || entry.is_of_user(name))
            }
        }
    }
}

impl Cache {
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
mod tests {
    use std::time::Instant;

    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::cache::entry::Sign;
    use crate::cache::freshness::Storable;
    use crate::cache::{Boarding, Lifetimes, NoStore, Phase, Settings};

    const SSH: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGvUxsMLvN0yGZGFjpMyEIKPXpf4qFhJvZqgEf3PeFc1";

    fn ssh(base64: &str) -> Key {
        Key::of_ssh_key(base64.as_bytes()).unwrap()
    }

    fn put(cache: &Arc<Cache>, key: &Key, sign: Sign, subject: u64, body: &str) -> Result<(), NoStore> {
        let Boarding::Lead(lease) = cache.board(key, Instant::now()) else {
            unreachable!("{key:?} is there")
        };
        let ages = Lifetimes::default().of(key.caching(), sign);
        let storable = Storable { sign, ages, subject: (subject > 0).then_some(subject) };
        lease.store(StatusCode::OK, &HeaderMap::new(), body.as_bytes(), storable)
    }

    /// Two users with a key each, known by all that can be asked for, and some that are not there.
    fn filled() -> (Arc<Cache>, Vec<Key>) {
        let cache = Cache::new(&Settings::default());
        let user =
            |id: u64, name: &str| (Sign::Positive, id, format!(r#"{{"id":{id},"username":"{name}"}}"#));
        let row = |id: u64| (Sign::Positive, id, "{}".to_owned());
        let none = || (Sign::Negative, 0, "null".to_owned());
        let entries = [
            (ssh(SSH), row(70)),
            (ssh("AAAB"), row(80)),
            (Key::UserOfKey(70), user(7, "rubi")),
            (Key::UserById(7), user(7, "rubi")),
            (Key::UserByName("Rubi".into()), user(7, "rubi")),
            (Key::UserOfKey(80), user(8, "root")),
            (Key::UserById(70), user(70, "seventy")),
            (Key::UserByName("new".into()), none()),
            (ssh("AAAC"), none()),
            (Key::Instance, row(0)),
        ];
        let keys = entries.iter().map(|(key, _)| key.clone()).collect();
        for (key, (sign, subject, body)) in entries {
            put(&cache, &key, sign, subject, &body).unwrap();
        }
        (cache, keys)
    }

    #[test]
    fn what_is_meant_goes_and_nothing_else() {
        let key = Selector::ssh_key(SSH).unwrap();
        for (selector, gone) in [
            (key, &[0][..]),
            (Selector::ssh_key("AAAC").unwrap(), &[8]),
            (Selector::KeyId(70), &[0, 2]),
            (Selector::UserId(7), &[0, 2, 3, 4]),
            (Selector::UserId(70), &[6]),
            (Selector::Username("RUBI".into()), &[0, 2, 3, 4]),
            (Selector::Username("root".into()), &[1, 5]),
            (Selector::Username("New".into()), &[7]),
            (Selector::Username("nobody".into()), &[]),
            (Selector::Route(Caching::AuthorizedKeys), &[0, 1, 8]),
            (Selector::Route(Caching::Discover), &[2, 3, 4, 5, 6, 7]),
            (Selector::Route(Caching::Check), &[9]),
            (Selector::All, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ] {
            for how in [How::Hard, How::Soft] {
                let (cache, keys) = filled();
                let purged = cache.purge(std::slice::from_ref(&selector), how);
                assert_eq!(purged.entries, gone.len(), "{selector:?}");
                // Of a whole endpoint there may be a million, each of them to be looked for.
                let key_rows = match selector {
                    Selector::UserId(7) => &[70][..],
                    Selector::Username(ref name) if name == "RUBI" => &[70],
                    Selector::Username(ref name) if name == "root" => &[80],
                    _ => &[],
                };
                assert_eq!(purged.key_rows, key_rows, "{selector:?}");
                for (index, key) in keys.iter().enumerate() {
                    let phase = cache.lookup(key, Instant::now()).map(|hit| hit.phase);
                    let may_be_stale = how == How::Soft && index < 7;
                    let expected = match gone.contains(&index) {
                        true if may_be_stale => Some(Phase::Revalidate),
                        true => None,
                        false => Some(Phase::Fresh),
                    };
                    assert_eq!(phase, expected, "{selector:?} {how:?}: {key:?}");
                }
            }
        }
    }

    #[test]
    fn what_several_mean_is_found_once() {
        let key = Selector::ssh_key(SSH).unwrap();
        for (selectors, gone) in [
            (vec![key.clone(), Selector::ssh_key("AAAB").unwrap(), key.clone()], 2),
            (vec![key.clone(), Selector::KeyId(70)], 2),
            (vec![key, Selector::UserId(7), Selector::Route(Caching::AuthorizedKeys)], 6),
            (vec![Selector::Username("rubi".into()), Selector::Username("root".into())], 6),
            (vec![], 0),
        ] {
            let (cache, keys) = filled();
            assert_eq!(cache.purge(&selectors, How::Hard).entries, gone, "{selectors:?}");
            let left = keys.iter().filter(|key| cache.lookup(key, Instant::now()).is_some()).count();
            assert_eq!(left, keys.len() - gone, "{selectors:?}");
        }
    }

    /// Whose key it is, nobody knows before the answer is there.
    #[test]
    fn what_is_on_its_way_and_may_be_meant_is_not_stored() {
        for (selector, key, is_struck) in [
            (Selector::ssh_key(SSH).unwrap(), ssh(SSH), true),
            (Selector::ssh_key(SSH).unwrap(), ssh("AAAB"), false),
            (Selector::KeyId(7), ssh(SSH), true),
            (Selector::KeyId(7), Key::UserOfKey(7), true),
            (Selector::KeyId(7), Key::UserOfKey(8), false),
            (Selector::UserId(7), ssh(SSH), true),
            (Selector::UserId(7), Key::UserOfKey(8), true),
            (Selector::Username("a".into()), Key::UserById(1), true),
            (Selector::Username("a".into()), Key::Instance, false),
            (Selector::Route(Caching::Discover), Key::UserById(1), true),
            (Selector::Route(Caching::Check), Key::UserById(1), false),
            (Selector::All, Key::Instance, true),
        ] {
            let cache = Cache::new(&Settings::default());
            let Boarding::Lead(lease) = cache.board(&key, Instant::now()) else { unreachable!() };
            assert_eq!(cache.purge(std::slice::from_ref(&selector), How::Soft), Purged::default());
            let ages = Lifetimes::default().of(Caching::Discover, Sign::Positive);
            let storable = Storable { sign: Sign::Positive, ages, subject: None };
            let stored = lease.store(StatusCode::OK, &HeaderMap::new(), b"{}", storable);
            assert_eq!(stored, if is_struck { Err(NoStore::Fenced) } else { Ok(()) }, "{selector:?} {key:?}");
            assert_eq!(cache.lookup(&key, Instant::now()).is_none(), is_struck);
        }
    }

    #[test]
    fn a_key_can_be_named_in_all_its_spellings() {
        let key = Selector::ssh_key(SSH);
        assert!(key.is_some());
        for same in [
            &format!("ssh-ed25519 {SSH}"),
            &format!("ssh-ed25519 {SSH} me@home with spaces\n"),
            &format!("  {SSH}\n"),
            &format!("{SSH} root"),
            &format!("command=\"sudo root now\",no-pty ssh-ed25519 {SSH} root"),
            &format!("environment=\"A=x ssh-y z?\" ssh-ed25519 {SSH} root"),
            "256 SHA256:BwxY5GRFfhOeYSi9JfasdLmlu/nxb4zQzc0PC/pmEXw root@a (ED25519)",
            "SHA256:BwxY5GRFfhOeYSi9JfasdLmlu/nxb4zQzc0PC/pmEXw",
            "SHA256:BwxY5GRFfhOeYSi9JfasdLmlu/nxb4zQzc0PC/pmEXw=",
        ] {
            assert_eq!(Selector::ssh_key(same), key, "{same}");
        }
        assert_eq!(Selector::ssh_key("AAA="), Selector::ssh_key("AAA"));
        for none in ["", " ", "SHA256:", "SHA256:AAAA", "MD5:aa:bb", "ssh-ed25519", "AA-_", "ssh-rsa A"] {
            assert_eq!(Selector::ssh_key(none), None, "{none}");
        }
    }
}
