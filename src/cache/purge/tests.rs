use std::time::Instant;

use http::{HeaderMap, StatusCode};

use super::*;
use crate::cache::fill::LeaderOrFollower;
use crate::cache::storable::{NoStoreReason, Storable};
use crate::cache::{CacheSettings, EntryKind, Freshness, Lifetimes};

const SSH: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGvUxsMLvN0yGZGFjpMyEIKPXpf4qFhJvZqgEf3PeFc1";

fn ssh(base64: &str) -> Key {
    Key::of_ssh_key(base64.as_bytes()).unwrap()
}

fn put(
    cache: &Arc<Cache>,
    key: &Key,
    kind: EntryKind,
    subject_id: u64,
    body: &str,
) -> Result<(), NoStoreReason> {
    let LeaderOrFollower::Leader(guard) = cache.lead_or_follow(key, Instant::now()) else {
        unreachable!("{key:?} is there")
    };
    let age_limits = Lifetimes::default().age_limits(key.caching(), kind);
    let storable =
        Storable { kind, age_limits, expires_at: None, subject_id: (subject_id > 0).then_some(subject_id) };
    guard.store(StatusCode::OK, &HeaderMap::new(), body.as_bytes(), storable)
}

/// Two users with a key each, stored under every kind of key, and some negative entries.
fn filled() -> (Arc<Cache>, Vec<Key>) {
    let cache = Cache::new(&CacheSettings::default());
    let user =
        |id: u64, name: &str| (EntryKind::Positive, id, format!(r#"{{"id":{id},"username":"{name}"}}"#));
    let row = |id: u64| (EntryKind::Positive, id, "{}".to_owned());
    let none = || (EntryKind::Negative, 0, "null".to_owned());
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
    for (key, (kind, subject_id, body)) in entries {
        put(&cache, &key, kind, subject_id, &body).unwrap();
    }
    (cache, keys)
}

#[test]
fn a_purge_drops_exactly_the_matching_entries() {
    let key = Selector::ssh_key(SSH).unwrap();
    for (selector, dropped) in [
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
        for mode in [PurgeMode::Hard, PurgeMode::Soft] {
            let (cache, keys) = filled();
            let purged = cache.purge(std::slice::from_ref(&selector), mode);
            assert_eq!(purged.entries, dropped.len(), "{selector:?}");
            // Not for a whole endpoint, which may have a million.
            let key_row_ids = match selector {
                Selector::UserId(7) => &[70][..],
                Selector::Username(ref name) if name == "RUBI" => &[70],
                Selector::Username(ref name) if name == "root" => &[80],
                _ => &[],
            };
            assert_eq!(purged.key_row_ids, key_row_ids, "{selector:?}");
            for (index, key) in keys.iter().enumerate() {
                let freshness = cache.lookup(key, Instant::now()).map(|hit| hit.freshness);
                let may_be_stale = mode == PurgeMode::Soft && index < 7;
                let expected = match dropped.contains(&index) {
                    true if may_be_stale => Some(Freshness::StaleWhileRevalidate),
                    true => None,
                    false => Some(Freshness::Fresh),
                };
                assert_eq!(freshness, expected, "{selector:?} {mode:?}: {key:?}");
            }
        }
    }
}

/// What is kept elsewhere is purged by these.
#[test]
fn all_selectors_that_find_an_entry_are_listed_as_meaning_it() {
    let selectors = |id: u64, name: &str, key: &str| {
        let by_id = [Selector::KeyId(id), Selector::UserId(id)];
        by_id.into_iter().chain([Selector::Username(name.into()), Selector::ssh_key(key).unwrap()])
    };
    let universe = selectors(70, "rubi", SSH)
        .chain(selectors(7, "root", "AAAB"))
        .chain(selectors(8, "seventy", "AAAC"))
        .chain(selectors(80, "new", "AAAD"))
        .chain(Caching::CACHEABLE.map(Selector::Route))
        .chain([Selector::All]);
    let (cache, keys) = filled();
    for selector in universe {
        for key in keys.iter().take(7) {
            let entry = cache.positive.get(key).unwrap();
            let body: serde_json::Value = serde_json::from_slice(&entry.body()).unwrap();
            let all = Selector::all_that_mean(key, entry.subject_id(), body["username"].as_str());
            let is_meant = selector.matches(key, &Candidate::new(&entry));
            assert_eq!(all.contains(&selector), is_meant, "{selector:?} {key:?}");
        }
    }
    let named = Selector::all_that_mean(&Key::UserByName("RuBi".into()), Some(7), Some("Rubi"));
    assert_eq!(named.iter().filter(|one| **one == Selector::Username("rubi".into())).count(), 2);
}

#[test]
fn entries_that_match_several_selectors_are_counted_once() {
    let key = Selector::ssh_key(SSH).unwrap();
    for (selectors, dropped) in [
        (vec![key.clone(), Selector::ssh_key("AAAB").unwrap(), key.clone()], 2),
        (vec![key.clone(), Selector::KeyId(70)], 2),
        (vec![key, Selector::UserId(7), Selector::Route(Caching::AuthorizedKeys)], 6),
        (vec![Selector::Username("rubi".into()), Selector::Username("root".into())], 6),
        (vec![], 0),
    ] {
        let (cache, keys) = filled();
        assert_eq!(cache.purge(&selectors, PurgeMode::Hard).entries, dropped, "{selectors:?}");
        let left = keys.iter().filter(|key| cache.lookup(key, Instant::now()).is_some()).count();
        assert_eq!(left, keys.len() - dropped, "{selectors:?}");
    }
}

#[test]
fn purge_by_key_drops_named_entries_without_a_search() {
    for (selector, dropped) in [
        (Selector::ssh_key(SSH).unwrap(), &[0][..]),
        (Selector::KeyId(70), &[2]),
        (Selector::UserId(7), &[3]),
        (Selector::UserId(404), &[]),
        (Selector::Username("rubi".into()), &[]),
        (Selector::All, &[]),
    ] {
        let (cache, keys) = filled();
        let twice = [selector.clone(), selector.clone()];
        assert_eq!(cache.purge_by_key(&twice, PurgeMode::Soft), 0, "{selector:?}");
        assert!(keys.iter().all(|key| cache.lookup(key, Instant::now()).is_some()), "{selector:?}");
        assert_eq!(cache.purge_by_key(&twice, PurgeMode::Hard), dropped.len(), "{selector:?}");
        for (index, key) in keys.iter().enumerate() {
            let is_stored = cache.lookup(key, Instant::now()).is_some();
            assert_eq!(is_stored, !dropped.contains(&index), "{selector:?}: {key:?}");
        }
    }
}

/// Only the answer says whose key it is.
#[test]
fn flights_that_may_match_are_fenced_off() {
    for (selector, key, is_fenced_off) in [
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
        let cache = Cache::new(&CacheSettings::default());
        let LeaderOrFollower::Leader(guard) = cache.lead_or_follow(&key, Instant::now()) else {
            unreachable!()
        };
        assert_eq!(cache.purge(std::slice::from_ref(&selector), PurgeMode::Soft), PurgeResult::default());
        let age_limits = Lifetimes::default().age_limits(Caching::Discover, EntryKind::Positive);
        let storable = Storable { kind: EntryKind::Positive, age_limits, expires_at: None, subject_id: None };
        let stored = guard.store(StatusCode::OK, &HeaderMap::new(), b"{}", storable);
        assert_eq!(
            stored,
            if is_fenced_off { Err(NoStoreReason::Fenced) } else { Ok(()) },
            "{selector:?} {key:?}"
        );
        assert_eq!(cache.lookup(&key, Instant::now()).is_none(), is_fenced_off);
    }
}

#[test]
fn an_ssh_key_can_be_given_in_all_its_spellings() {
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

/// Rails does not say who owns the key, so a purge of any user drops it: at worst it is fetched once more.
#[test]
fn keys_of_blocked_owners_match_any_user_and_unknown_keys_do_not() {
    for (selector, is_dropped) in [
        (Selector::UserId(7), true),
        (Selector::Username("barred".into()), true),
        (Selector::ssh_key("AAAD").unwrap(), true),
        (Selector::ssh_key("AAAC").unwrap(), false),
        (Selector::KeyId(11), false),
        (Selector::Route(Caching::Discover), false),
    ] {
        let (cache, _) = filled();
        let blocked = ssh("AAAD");
        let LeaderOrFollower::Leader(guard) = cache.lead_or_follow(&blocked, Instant::now()) else {
            unreachable!()
        };
        let age_limits = Lifetimes::default().age_limits(blocked.caching(), EntryKind::Negative);
        let storable = Storable { kind: EntryKind::Negative, age_limits, expires_at: None, subject_id: None };
        let body = br#"{"message":"401 Unauthorized - Key"}"#;
        guard.store(StatusCode::UNAUTHORIZED, &HeaderMap::new(), body, storable).unwrap();
        cache.purge(std::slice::from_ref(&selector), PurgeMode::Hard);
        assert_eq!(cache.lookup(&blocked, Instant::now()).is_none(), is_dropped, "{selector:?}");
        let is_unknown_stored = cache.lookup(&ssh("AAAC"), Instant::now()).is_some();
        assert_eq!(is_unknown_stored, selector != Selector::ssh_key("AAAC").unwrap(), "{selector:?}");
    }
}
