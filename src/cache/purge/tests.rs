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
    let Boarding::Lead(lease) = cache.board(key, Instant::now()) else { unreachable!("{key:?} is there") };
    let ages = Lifetimes::default().of(key.caching(), sign);
    let storable = Storable { sign, ages, expires: None, subject: (subject > 0).then_some(subject) };
    lease.store(StatusCode::OK, &HeaderMap::new(), body.as_bytes(), storable)
}

/// Two users with a key each, known by all that can be asked for, and some that are not there.
fn filled() -> (Arc<Cache>, Vec<Key>) {
    let cache = Cache::new(&Settings::default());
    let user = |id: u64, name: &str| (Sign::Positive, id, format!(r#"{{"id":{id},"username":"{name}"}}"#));
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

#[test]
fn what_a_selector_names_goes_without_a_search() {
    for (selector, gone) in [
        (Selector::ssh_key(SSH).unwrap(), &[0][..]),
        (Selector::KeyId(70), &[2]),
        (Selector::UserId(7), &[3]),
        (Selector::UserId(404), &[]),
        (Selector::Username("rubi".into()), &[]),
        (Selector::All, &[]),
    ] {
        let (cache, keys) = filled();
        assert_eq!(cache.purge_by_key(&[selector.clone(), selector.clone()]), gone.len(), "{selector:?}");
        for (index, key) in keys.iter().enumerate() {
            let is_kept = cache.lookup(key, Instant::now()).is_some();
            assert_eq!(is_kept, !gone.contains(&index), "{selector:?}: {key:?}");
        }
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
        let storable = Storable { sign: Sign::Positive, ages, expires: None, subject: None };
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

/// Rails does not say whose it is. So what is said of any user ends it: it is asked for once more at worst.
#[test]
fn a_key_of_a_blocked_owner_goes_with_any_user_and_an_unknown_one_stays() {
    for (selector, goes) in [
        (Selector::UserId(7), true),
        (Selector::Username("barred".into()), true),
        (Selector::ssh_key("AAAD").unwrap(), true),
        (Selector::ssh_key("AAAC").unwrap(), false),
        (Selector::KeyId(11), false),
        (Selector::Route(Caching::Discover), false),
    ] {
        let (cache, _) = filled();
        let blocked = ssh("AAAD");
        let Boarding::Lead(lease) = cache.board(&blocked, Instant::now()) else { unreachable!() };
        let ages = Lifetimes::default().of(blocked.caching(), Sign::Negative);
        let storable = Storable { sign: Sign::Negative, ages, expires: None, subject: None };
        let body = br#"{"message":"401 Unauthorized - Key"}"#;
        lease.store(StatusCode::UNAUTHORIZED, &HeaderMap::new(), body, storable).unwrap();
        cache.purge(std::slice::from_ref(&selector), How::Hard);
        assert_eq!(cache.lookup(&blocked, Instant::now()).is_none(), goes, "{selector:?}");
        let is_unknown_kept = cache.lookup(&ssh("AAAC"), Instant::now()).is_some();
        assert_eq!(is_unknown_kept, selector != Selector::ssh_key("AAAC").unwrap(), "{selector:?}");
    }
}
