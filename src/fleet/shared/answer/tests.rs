use http::header;
use proptest::prelude::*;

use super::*;
use crate::cache::purge::PurgeMode;
use crate::fleet::message::Purge;
use crate::fleet::stream::StreamId;
use crate::route::Caching;

const NOW_S: u64 = 1_700_000_000;
const NOW: Duration = Duration::from_secs(NOW_S);
const KEY: Key = Key::UserById(7);
const USER: &str = r#"{"id":7,"username":"rubi"}"#;

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn ago(count: u64) -> Duration {
    seconds(NOW_S - count)
}

fn id(at_s: u64) -> StreamId {
    StreamId::from_milliseconds(at_s * 1_000)
}

/// Asked for 10 s ago, and everything known since a minute before.
fn origin() -> Origin {
    Origin::new(id(NOW_S - 60), (NOW_S - 10) * 1_000)
}

fn ring() -> Ring {
    let mut ring = Ring::new(seconds(60), seconds(2));
    ring.lose(Some(id(NOW_S - 70)), (NOW_S - 70) * 1_000);
    ring
}

fn lifetimes() -> Lifetimes {
    Lifetimes::default()
}

fn shared_with(key: &Key, body: &str, origin: Origin, fresh: Duration) -> Option<Vec<u8>> {
    let now = i64::try_from(NOW_S).unwrap();
    let storable = check_answer(key.caching(), key, StatusCode::OK, body.as_bytes(), &lifetimes(), now);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ETAG, HeaderValue::from_static("W/\"1\""));
    headers.insert(header::SET_COOKIE, HeaderValue::from_static("a=b"));
    let age_limits = AgeLimits::new(fresh, seconds(90), seconds(3_600));
    let storable = Storable { age_limits, ..storable.unwrap() };
    Answer { status: StatusCode::OK, headers: &headers, body: body.as_bytes(), storable }.encode(origin)
}

fn shared() -> Vec<u8> {
    shared_with(&KEY, USER, origin(), seconds(60)).unwrap()
}

fn use_it(
    plain: &[u8],
    key: &Key,
    ring: &Ring,
    lifetimes: &Lifetimes,
    now: Duration,
) -> Option<UsableAnswer> {
    usable(plain, key, ring, &Terms { lifetimes, max_age: seconds(60), now })
}

#[test]
fn an_answer_is_the_one_that_was_shared_and_as_old() {
    let used = use_it(&shared(), &KEY, &ring(), &lifetimes(), NOW).unwrap();
    assert_eq!((used.status, &used.body[..], used.age), (StatusCode::OK, USER.as_bytes(), seconds(12)));
    assert_eq!(used.headers["content-type"], "application/json");
    assert_eq!(used.headers["etag"], "W/\"1\"");
    assert!(!used.headers.contains_key("set-cookie"), "that was for one caller");
    assert_eq!((used.storable.kind, used.storable.subject_id), (EntryKind::Positive, Some(7)));
    // No longer than either gateway would use it.
    assert_eq!(used.storable.age_limits, AgeLimits::new(seconds(60), seconds(90), seconds(3_600)));
    let mut short = lifetimes();
    short.discover.ttl = seconds(20);
    let used = use_it(&shared(), &KEY, &ring(), &short, NOW).unwrap();
    assert_eq!(used.storable.age_limits, AgeLimits::new(seconds(20), seconds(50), seconds(3_600)));
}

#[test]
fn an_answer_that_is_not_what_this_gateway_would_give_now_is_refused() {
    let mut short = lifetimes();
    short.discover.ttl = seconds(12);
    let mut never = lifetimes();
    never.discover.ttl = Duration::ZERO;
    let of = |user: &str, at: Origin, fresh| shared_with(&KEY, user, at, seconds(fresh)).unwrap();
    let asked = |ago: i64| Origin::new(id(NOW_S - 60), NOW_S.saturating_add_signed(-ago) * 1_000);
    let expiring = r#"{"id":7,"username":"rubi","expires_at":"2023-11-14T22:13:20Z"}"#;
    let with_key = |plain: Vec<u8>, key: Key| (plain, key, lifetimes(), NOW);
    for (why, (plain, key, lifetimes, now), is_used) in [
        ("as it is", with_key(shared(), KEY), true),
        ("the answer to another question", with_key(shared(), Key::UserById(8)), false),
        ("of another endpoint", with_key(shared(), Key::SshKey([1; 32])), false),
        ("fresh there until now", with_key(of(USER, origin(), 12), KEY), false),
        ("fresh there for a moment more", with_key(of(USER, origin(), 13), KEY), true),
        ("fresh here until now", (shared(), KEY, short, NOW), false),
        ("not kept here", (shared(), KEY, never, NOW), false),
        ("older than any is shared", with_key(of(USER, asked(61), 3_600), KEY), false),
        ("just as old", with_key(of(USER, asked(56), 3_600), KEY), true),
        ("from the future", with_key(of(USER, asked(-3), 60), KEY), false),
        ("by a clock that is a bit ahead", with_key(of(USER, asked(-2), 60), KEY), true),
        ("by this clock, long ago", (shared(), KEY, lifetimes(), ago(13)), false),
        ("empty", with_key(Vec::new(), KEY), false),
        ("cut", with_key(shared()[..20].to_vec(), KEY), false),
    ] {
        assert_eq!(use_it(&plain, &key, &ring(), &lifetimes, now).is_some(), is_used, "{why}");
    }
    let expired = shared_with(&KEY, &expiring.replace("20Z", "25Z"), origin(), seconds(60)).unwrap();
    assert!(use_it(&expired, &KEY, &ring(), &lifetimes(), NOW + seconds(5)).is_none(), "it has expired");
}

#[test]
fn an_answer_that_a_purge_means_is_refused() {
    for (selector, is_used) in [
        (Selector::UserId(7), false),
        (Selector::UserId(8), true),
        (Selector::Username("Rubi".into()), false),
        (Selector::KeyId(7), true),
        (Selector::Route(Caching::Discover), false),
        (Selector::All, false),
    ] {
        let mut ring = ring();
        let purge = Purge::new(std::slice::from_ref(&selector), PurgeMode::Soft, Duration::ZERO, ago(9));
        ring.heard(id(NOW_S - 9), &purge, NOW_S * 1_000);
        let used = use_it(&shared(), &KEY, &ring, &lifetimes(), NOW);
        assert_eq!(used.is_some(), is_used, "{selector:?}");
    }
}

#[test]
fn only_what_exists_is_shared() {
    assert_eq!(shared_with(&KEY, "null", origin(), seconds(60)), None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(plain in proptest::collection::vec(any::<u8>(), 0..200), at in 0..200_usize, with: u8) {
        let _ = use_it(&plain, &KEY, &ring(), &lifetimes(), NOW);
        let mut changed = shared();
        let at = at % changed.len();
        changed[at] = with;
        let _ = use_it(&changed, &KEY, &ring(), &lifetimes(), NOW);
    }

    /// Whatever the terms, and whatever is known of purges.
    #[test]
    fn no_answer_is_used_for_longer_than_any_gateway_would_use_its_own(
        asked_ago in 0..200_u64, there in 1..200_u64, here in 1..200_u64, max_age in 1..200_u64,
        purged_ago in 0..200_u64, settle in 0..20_u64,
    ) {
        let mut ring = Ring::new(seconds(200), seconds(2));
        ring.lose(Some(id(1)), 1_000);
        let purge = Purge::new(&[Selector::UserId(7)], PurgeMode::Hard, seconds(settle), ago(purged_ago));
        ring.heard(id(NOW_S - purged_ago), &purge, NOW_S * 1_000);
        let origin = Origin::new(id(NOW_S - asked_ago), (NOW_S - asked_ago) * 1_000);
        let plain = shared_with(&KEY, USER, origin, seconds(there)).unwrap();
        let mut lifetimes = lifetimes();
        lifetimes.discover.ttl = seconds(here);
        let used = usable(&plain, &KEY, &ring, &Terms { lifetimes: &lifetimes, max_age: seconds(max_age), now: NOW });
        let is_young = asked_ago + 2 < there.min(here) && asked_ago <= max_age;
        let is_settled = asked_ago + settle + 2 <= purged_ago;
        prop_assert_eq!(used.is_some(), is_young && is_settled);
        prop_assert!(used.is_none_or(|used| used.age >= seconds(asked_ago)));
    }
}
