use super::*;
use crate::cache::fill::{FillGuard, LeaderOrFollower, RefreshAttempt};
use crate::cache::storable::{NoStoreReason, Storable};
use crate::clock::{Clock, ManualClock};
use http::{HeaderMap, StatusCode};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Fresh for a minute, and never used stale.
fn one_minute() -> AgeLimits {
    AgeLimits::new(MINUTE, MINUTE, MINUTE)
}

fn fixture() -> (Arc<Cache>, ManualClock, Clock) {
    let manual = ManualClock::at(1_700_000_000);
    (Cache::new(&CacheSettings::default()), manual.clone(), Clock::Manual(manual))
}

fn lead(cache: &Arc<Cache>, key: &Key, clock: &Clock) -> FillGuard {
    match cache.lead_or_follow(key, clock.now()) {
        LeaderOrFollower::Leader(guard) => guard,
        other => unreachable!("expected to lead, got {other:?}"),
    }
}

fn store(guard: FillGuard, kind: EntryKind, body: &str, _: &Clock) -> Result<(), NoStoreReason> {
    let storable = Storable { kind, age_limits: one_minute(), expires_at: None, subject_id: None };
    guard.store(StatusCode::OK, &HeaderMap::new(), body.as_bytes(), storable)
}

fn body_of(cache: &Cache, key: &Key, clock: &Clock) -> Option<String> {
    let hit = cache.lookup(key, clock.now())?;
    Some(
        String::from_utf8(hit.entry.to_response(hit.entry.age(clock.now()), &[]).into_body().to_vec())
            .unwrap(),
    )
}

const MINUTE: Duration = Duration::from_secs(60);

const KEY: Key = Key::UserById(7);

#[test]
fn an_entry_is_usable_until_its_greatest_age() {
    let (cache, time, clock) = fixture();
    store(lead(&cache, &KEY, &clock), EntryKind::Positive, "a", &clock).unwrap();
    time.advance(Duration::from_millis(59_999));
    let hit = cache.lookup(&KEY, clock.now()).unwrap();
    assert_eq!((hit.entry.age(clock.now()).as_secs(), hit.freshness), (59, Freshness::Fresh));
    time.advance(Duration::from_millis(1));
    assert!(cache.lookup(&KEY, clock.now()).is_none());
}

#[test]
fn one_caller_leads_and_the_others_follow_until_the_fill_ends() {
    let (cache, _, clock) = fixture();
    let guard = lead(&cache, &KEY, &clock);
    for _ in 0..3 {
        assert!(matches!(cache.lead_or_follow(&KEY, clock.now()), LeaderOrFollower::Follower(_)));
    }
    assert!(matches!(cache.lead_or_follow(&Key::UserById(8), clock.now()), LeaderOrFollower::Leader(_)));
    store(guard, EntryKind::Positive, "a", &clock).unwrap();
    assert!(matches!(cache.lead_or_follow(&KEY, clock.now()), LeaderOrFollower::Hit(_)));
    assert_eq!(cache.fills_in_flight(), 0);
}

#[tokio::test]
async fn followers_learn_how_the_flight_ended() {
    let (cache, _, clock) = fixture();
    let follow = |cache: &Arc<Cache>| match cache.lead_or_follow(&KEY, clock.now()) {
        LeaderOrFollower::Follower(wait) => wait,
        other => unreachable!("expected to follow, got {other:?}"),
    };
    let guard = lead(&cache, &KEY, &clock);
    let wait = follow(&cache);
    drop(guard);
    assert!(matches!(wait.outcome().await, FillOutcome::NotShared));

    let guard = lead(&cache, &KEY, &clock);
    let wait = follow(&cache);
    guard.fail(FillError::Timeout, "silent".into());
    let FillOutcome::Failed(FillError::Timeout, text) = wait.outcome().await else { panic!("not told") };
    assert_eq!(&*text, "silent");

    let guard = lead(&cache, &KEY, &clock);
    let wait = follow(&cache);
    store(guard, EntryKind::Positive, "a", &clock).unwrap();
    assert!(matches!(wait.outcome().await, FillOutcome::Stored(_)));
}

#[test]
fn an_answer_requested_before_an_invalidation_is_not_stored_after_it() {
    let (cache, _, clock) = fixture();
    let guard = lead(&cache, &KEY, &clock);
    cache.invalidate(&KEY);
    assert_eq!(store(guard, EntryKind::Positive, "old", &clock), Err(NoStoreReason::Fenced));
    assert_eq!(body_of(&cache, &KEY, &clock), None);

    let guard = lead(&cache, &KEY, &clock);
    cache.invalidate_all();
    assert_eq!(store(guard, EntryKind::Positive, "old", &clock), Err(NoStoreReason::Fenced));
    assert_eq!(body_of(&cache, &KEY, &clock), None);
    assert_eq!(cache.counters().fenced.load(Ordering::Relaxed), 2);
}

#[test]
fn a_fenced_off_flight_does_not_affect_its_successor() {
    let (cache, _, clock) = fixture();
    let old = lead(&cache, &KEY, &clock);
    cache.invalidate(&KEY);
    let new = lead(&cache, &KEY, &clock);
    assert_eq!(store(old, EntryKind::Positive, "old", &clock), Err(NoStoreReason::Fenced));
    assert!(matches!(cache.lead_or_follow(&KEY, clock.now()), LeaderOrFollower::Follower(_)));
    store(new, EntryKind::Positive, "new", &clock).unwrap();
    assert_eq!(body_of(&cache, &KEY, &clock).as_deref(), Some("new"));
}

#[test]
fn invalidation_drops_stored_entries() {
    let (cache, _, clock) = fixture();
    for (kind, flush) in
        [(EntryKind::Positive, false), (EntryKind::Negative, false), (EntryKind::Positive, true)]
    {
        store(lead(&cache, &KEY, &clock), kind, "a", &clock).unwrap();
        assert!(body_of(&cache, &KEY, &clock).is_some());
        if flush {
            cache.invalidate_all();
        } else {
            cache.invalidate(&KEY);
        }
        assert_eq!(body_of(&cache, &KEY, &clock), None, "{kind:?} {flush}");
    }
}

#[test]
fn a_key_is_in_one_store_only() {
    let (cache, time, clock) = fixture();
    store(lead(&cache, &KEY, &clock), EntryKind::Positive, "there", &clock).unwrap();
    time.advance(Duration::from_secs(60));
    store(lead(&cache, &KEY, &clock), EntryKind::Negative, "gone", &clock).unwrap();
    assert_eq!(body_of(&cache, &KEY, &clock).as_deref(), Some("gone"));
    cache.run_maintenance();
    assert_eq!(cache.entry_counts(), [0, 1]);
}

#[test]
fn negative_entries_do_not_evict_positive_ones() {
    let settings = CacheSettings { max_entries: 100, max_negative_entries: 10, ..CacheSettings::default() };
    let cache = Cache::new(&settings);
    let clock = Clock::Manual(ManualClock::at(0));
    for id in 0..100 {
        store(lead(&cache, &Key::UserById(id), &clock), EntryKind::Positive, "a", &clock).unwrap();
    }
    for id in 1_000..3_000 {
        store(lead(&cache, &Key::UserById(id), &clock), EntryKind::Negative, "b", &clock).unwrap();
        cache.run_maintenance();
    }
    assert_eq!(cache.entry_counts(), [100, 10]);
    assert!((0..100).all(|id| cache.lookup(&Key::UserById(id), clock.now()).is_some()));
    assert_eq!(cache.counters().evicted.get(EntryKind::Negative), 1_990);
}

#[test]
fn memory_is_bounded_by_bytes_too() {
    let settings = CacheSettings { max_bytes: 1 << 20, ..CacheSettings::default() };
    let cache = Cache::new(&settings);
    let clock = Clock::Manual(ManualClock::at(0));
    let bytes = |kind: EntryKind| cache.counters().bytes.get(kind);
    let body = "x".repeat(10_000);
    for id in 0..500 {
        for (kind, key) in
            [(EntryKind::Positive, Key::UserById(id)), (EntryKind::Negative, Key::UserOfKey(id))]
        {
            store(lead(&cache, &key, &clock), kind, &body, &clock).unwrap();
            cache.run_maintenance();
        }
    }
    // A tenth is set aside for negative entries; each has 420 bytes beside its body, and 2 for 255 bytes of that.
    assert_eq!(cache.entry_counts(), [943_719 / 10_500, 104_857 / 10_500]);
    assert_eq!((bytes(EntryKind::Positive), bytes(EntryKind::Negative)), (89 * 10_500, 9 * 10_500));
    cache.invalidate_all();
    cache.run_maintenance();
    assert_eq!((bytes(EntryKind::Positive), bytes(EntryKind::Negative)), (0, 0));
}

#[test]
fn an_answer_larger_than_its_store_is_not_stored() {
    let cache = Cache::new(&CacheSettings { max_bytes: 100_000, ..CacheSettings::default() });
    let clock = Clock::Manual(ManualClock::at(0));
    for (kind, max_bytes) in [(EntryKind::Positive, 90_000_usize), (EntryKind::Negative, 10_000)] {
        let fits = |body: &usize| body + 2 * body.div_ceil(255) + 420 <= max_bytes;
        let max_body = (1..max_bytes).rfind(fits).unwrap();
        let stored = store(lead(&cache, &KEY, &clock), kind, &"x".repeat(max_body + 1), &clock);
        assert_eq!(stored, Err(NoStoreReason::TooLarge));
        assert_eq!(cache.fills_in_flight(), 0);
        store(lead(&cache, &KEY, &clock), kind, &"x".repeat(max_body), &clock).unwrap();
        cache.run_maintenance();
        assert_eq!(cache.entry_counts()[kind as usize], 1);
        cache.invalidate(&KEY);
    }
}

#[test]
fn a_response_has_headers_of_its_own_beside_those_that_are_replayed() {
    let cache = Cache::new(&CacheSettings::default());
    let storable =
        Storable { kind: EntryKind::Positive, age_limits: one_minute(), expires_at: None, subject_id: None };
    for etag in [None, Some("W/\"1\""), Some("W/\"0123456789abcdef0123456789abcdef\""), Some("")] {
        let mut headers = HeaderMap::new();
        headers.insert("x-runtime", "1".parse().unwrap());
        headers.append("vary", "Origin".parse().unwrap());
        headers.append("vary", "Accept".parse().unwrap());
        headers.extend(etag.map(|etag| (http::header::ETAG, etag.parse().unwrap())));
        let by = (&cache.header_interner, 0);
        let entry = Entry::new(StatusCode::OK, &headers, b"{}", storable, std::time::Instant::now(), by);
        let response = entry.to_response(MINUTE, &[b"railgate; hit; ttl=", b"-1"]);
        for (name, expected) in [
            ("age", vec!["60"]),
            ("cache-status", vec!["railgate; hit; ttl=-1"]),
            ("vary", vec!["Origin", "Accept"]),
            ("x-runtime", vec![]),
            ("etag", etag.into_iter().collect()),
        ] {
            let values: Vec<_> = response.headers().get_all(name).iter().collect();
            assert_eq!(values, expected, "{name}");
        }
        assert_eq!((response.body().as_ref(), entry.hits()), (&b"{}"[..], 1));
    }
}

/// By moka's clock, which cannot be stopped.
#[test]
fn what_is_not_asked_for_any_more_leaves_memory() {
    let short = Lifetime { ttl: Duration::from_millis(50), ..Lifetime::default() };
    let lifetimes = Lifetimes { authorized_keys: short, discover: short, ..Lifetimes::none() };
    let cache = Cache::new(&CacheSettings { lifetimes, ..CacheSettings::default() });
    assert_eq!(cache.max_ages(), [short.ttl, Duration::ZERO]);
    let clock = Clock::Manual(ManualClock::at(0));
    store(lead(&cache, &KEY, &clock), EntryKind::Positive, "a", &clock).unwrap();
    let waited_since = std::time::Instant::now();
    while cache.counters().expired.get(EntryKind::Positive) == 0 {
        assert!(waited_since.elapsed() < MINUTE, "it is still there");
        std::thread::sleep(Duration::from_millis(5));
        cache.run_maintenance();
    }
    assert_eq!((cache.entry_counts(), cache.counters().bytes.get(EntryKind::Positive)), ([0, 0], 0));
}

/// Headers that differ from answer to answer are not shared.
#[test]
fn unshared_headers_count_as_memory() {
    let settings = CacheSettings { max_bytes: 16 << 20, ..CacheSettings::default() };
    let cache = Cache::new(&settings);
    let clock = Clock::Manual(ManualClock::at(0));
    let storable =
        Storable { kind: EntryKind::Positive, age_limits: one_minute(), expires_at: None, subject_id: None };
    for id in 0..5_000 {
        let mut headers = HeaderMap::new();
        headers.insert("vary", format!("{id}{}", "x".repeat(8_000)).parse().unwrap());
        let guard = lead(&cache, &Key::UserById(id), &clock);
        guard.store(StatusCode::OK, &headers, b"{}", storable).unwrap();
        cache.run_maintenance();
    }
    assert!(cache.entry_counts()[0] * 8_000 <= 16 << 20);
}

/// With moka's part, which `tests/bench/compare memory` measures, a row of an Ed25519 key takes less than 600 bytes.
#[test]
fn an_entry_takes_little_memory() {
    let reference_counts = 2 * size_of::<usize>();
    assert_eq!(size_of::<Entry>() + reference_counts, 96, "mimalloc's next size is 112");
    let cache = Cache::new(&CacheSettings::default());
    let storable =
        Storable { kind: EntryKind::Positive, age_limits: one_minute(), expires_at: None, subject_id: None };
    let row = |kind: &str, blob: &str, length: usize| {
        let row = format!(
            r#"{{"id":1234567,"title":"user@example.com","key":"{kind} {blob:A<length$} user@example.com","#
        ) + r#""created_at":"2019-06-27T15:29:02.219Z","expires_at":null,"usage_type":"auth_and_signing"}"#;
        let mut headers = HeaderMap::new();
        headers.insert("etag", r#"W/"0123456789abcdef0123456789abcdef""#.parse().unwrap());
        let by = (&cache.header_interner, 0);
        let entry =
            Entry::new(StatusCode::OK, &headers, row.as_bytes(), storable, std::time::Instant::now(), by);
        (row.len(), entry.heap_bytes())
    };
    assert_eq!(row("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAI", 68), (237, 135));
    assert_eq!(row("ssh-rsa", "AAAAB3NzaC1yc2EAAAADAQABAAABAQ", 372), (537, 436));
}

#[test]
fn store_limits_bound_entries_and_bytes() {
    for (entries, bytes, max_weight, min_weight) in [
        (100, 1 << 30, 1_073_741_800, 10_737_418),
        (1_000_000, 1 << 30, 1_073_000_000, 1_073),
        (1_000_000, 1 << 10, 1 << 10, 1),
        (1, 1 << 40, u64::from(u32::MAX), u32::MAX),
        (0, 0, 0, 1),
    ] {
        assert_eq!(
            StoreLimits::new(entries, bytes),
            StoreLimits { max_weight, min_weight },
            "{entries} {bytes}"
        );
    }
    let limits = StoreLimits::new(10, 1_000);
    assert_eq!((limits.weigh(1), limits.weigh(101), limits.weigh(u64::MAX)), (100, 101, u32::MAX));
}

#[test]
fn a_full_store_accepts_new_keys() {
    let cache = Cache::new(&CacheSettings { max_entries: 10, ..CacheSettings::default() });
    let clock = Clock::Manual(ManualClock::at(0));
    for id in 0..10 {
        store(lead(&cache, &Key::UserById(id), &clock), EntryKind::Positive, "a", &clock).unwrap();
    }
    for _ in 0..50 {
        (0..10).for_each(|id| drop(cache.lookup(&Key::UserById(id), clock.now())));
    }
    for id in 100..110 {
        store(lead(&cache, &Key::UserById(id), &clock), EntryKind::Positive, "a", &clock).unwrap();
        cache.run_maintenance();
        assert!(cache.lookup(&Key::UserById(id), clock.now()).is_some(), "{id} was refused");
    }
}

#[test]
fn drop_entry_does_not_drop_a_later_entry() {
    let (cache, _, clock) = fixture();
    store(lead(&cache, &KEY, &clock), EntryKind::Positive, "a", &clock).unwrap();
    assert!(matches!(cache.try_refresh(&KEY, clock.now()), RefreshAttempt::NotNeeded), "it is fresh");
    cache.invalidate(&KEY);
    store(lead(&cache, &KEY, &clock), EntryKind::Negative, "b", &clock).unwrap();
    cache.invalidate(&KEY);

    let fenced_off = lead(&cache, &KEY, &clock);
    cache.invalidate(&KEY);
    store(lead(&cache, &KEY, &clock), EntryKind::Positive, "new", &clock).unwrap();
    fenced_off.drop_entry();
    assert_eq!(body_of(&cache, &KEY, &clock).as_deref(), Some("new"));
}

#[test]
fn concurrent_refreshes_are_limited() {
    let settings = CacheSettings { max_refreshes: 1, ..CacheSettings::default() };
    let (cache, time) = (Cache::new(&settings), ManualClock::at(1_700_000_000));
    let clock = Clock::Manual(time.clone());
    let storable = Storable {
        kind: EntryKind::Positive,
        age_limits: AgeLimits::new(MINUTE, MINUTE * 2, MINUTE * 2),
        expires_at: None,
        subject_id: None,
    };
    let other = Key::UserById(8);
    for key in [&KEY, &other] {
        let guard = lead(&cache, key, &clock);
        guard.store(StatusCode::OK, &HeaderMap::new(), b"old", storable).unwrap();
    }
    time.advance(MINUTE);
    let RefreshAttempt::Started(guard, permit) = cache.try_refresh(&KEY, clock.now()) else {
        unreachable!("it is stale")
    };

    assert!(
        matches!(cache.try_refresh(&other, clock.now()), RefreshAttempt::LimitReached),
        "the limit is reached"
    );
    assert_eq!(body_of(&cache, &KEY, &clock).as_deref(), Some("old"), "meanwhile");
    guard.drop_entry();
    drop(permit);
    assert_eq!(body_of(&cache, &KEY, &clock), None);
    assert!(matches!(cache.try_refresh(&other, clock.now()), RefreshAttempt::Started(..)));
}

/// Scans for random keys fill the negative store only.
#[test]
fn a_million_negative_entries_evict_no_positive_one() {
    let settings = CacheSettings { max_negative_entries: 10_000, ..CacheSettings::default() };
    let (cache, clock) = (Cache::new(&settings), Clock::Manual(ManualClock::at(1_700_000_000)));
    let known = |id: u32| {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&id.to_be_bytes());
        Key::SshKey(digest)
    };
    let entry = |kind| {
        let storable = Storable { kind, age_limits: one_minute(), expires_at: None, subject_id: None };
        let by = (&cache.header_interner, 0);
        Arc::new(Entry::new(StatusCode::OK, &HeaderMap::new(), b"{}", storable, clock.now(), by))
    };
    let (row, none) = (entry(EntryKind::Positive), entry(EntryKind::Negative));
    for id in 0..1_010_000 {
        cache.insert(known(id), Arc::clone(if id < 10_000 { &row } else { &none }));
    }
    cache.run_maintenance();
    let [positive, negative] = cache.entry_counts();
    assert!(positive == 10_000 && negative <= 10_000, "{positive} {negative}");
    let stored = (0..10_000).filter(|id| cache.lookup(&known(*id), clock.now()).is_some()).count();
    assert_eq!(stored, 10_000);
    let bytes = cache.counters().bytes.get(EntryKind::Negative);
    assert!(bytes <= settings.max_bytes as u64 / 10, "{bytes}");
}

/// After the wall clock was set ahead, or the machine was suspended, an expired answer is not served; a clock
/// that is set back extends no answer beyond its greatest age.
#[test]
fn an_expired_answer_is_not_served_however_young_it_is() {
    const BEGIN: i64 = 1_700_000_000;
    for (expires, stepped, freshness_after_30_s) in [
        (None, 3_600, Some(Freshness::Fresh)),
        (Some(BEGIN + 45), 0, Some(Freshness::Fresh)),
        (Some(BEGIN + 45), 14, Some(Freshness::Fresh)),
        (Some(BEGIN + 45), 15, None),
        (Some(BEGIN + 45), 3_600, None),
        (Some(BEGIN + 3_630), 3_600, None),
        (Some(BEGIN + 45), -3_600, Some(Freshness::Fresh)),
        (Some(i64::from(u32::MAX) + 1), i64::from(u32::MAX), Some(Freshness::Fresh)),
        (Some(-1), 0, None),
    ] {
        let time = ManualClock::at(BEGIN);
        let clock = Clock::Manual(time.clone());
        let cache = Cache::with_clock(&CacheSettings::default(), clock.clone());
        let stale = AgeLimits::new(MINUTE, MINUTE * 2, MINUTE * 3);
        let storable =
            Storable { kind: EntryKind::Positive, age_limits: stale, expires_at: expires, subject_id: None };
        let guard = lead(&cache, &KEY, &clock);
        guard.store(StatusCode::OK, &HeaderMap::new(), b"a", storable).unwrap();
        time.advance(Duration::from_secs(30));
        time.step_wall(stepped);
        let freshness = |cache: &Cache| cache.lookup(&KEY, clock.now()).map(|hit| hit.freshness);
        assert_eq!(freshness(&cache), freshness_after_30_s, "{expires:?} {stepped}");
        let seen = cache.inspect(&purge::Selector::All, clock.now(), 1).0;
        assert_eq!(seen[0].freshness, freshness_after_30_s, "operators see the same");
        if expires == Some(BEGIN + 45) {
            // At any later age too: both the wall clock and the age limit it.
            for stale in [60, 60] {
                time.advance(Duration::from_secs(stale));
                assert_eq!(freshness(&cache).is_some(), stepped < 0, "{stepped}");
            }
            time.advance(Duration::from_secs(60));
            assert_eq!(freshness(&cache), None);
            // The next caller asks Rails.
            assert!(matches!(cache.lead_or_follow(&KEY, clock.now()), LeaderOrFollower::Leader(_)));
        }
    }
}
