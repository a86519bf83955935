use super::*;
use crate::cache::ages::Ages;
use crate::cache::freshness::Storable;
use crate::clock::{Clock, Manual};
use http::{HeaderMap, StatusCode};

/// Fresh for a minute, and nothing after that.
fn ages() -> Ages {
    Ages::new(MINUTE, MINUTE, MINUTE)
}

fn setting() -> (Arc<Cache>, Manual, Clock) {
    let manual = Manual::at(1_700_000_000);
    (Cache::new(&Settings::default()), manual.clone(), Clock::Manual(manual))
}

fn lead(cache: &Arc<Cache>, key: &Key, clock: &Clock) -> Lease {
    match cache.board(key, clock.now()) {
        Boarding::Lead(lease) => lease,
        other => unreachable!("expected to lead, got {other:?}"),
    }
}

fn land(lease: Lease, sign: Sign, body: &str, _: &Clock) -> Result<(), NoStore> {
    let storable = Storable { sign, ages: ages(), expires: None, subject: None };
    lease.store(StatusCode::OK, &HeaderMap::new(), body.as_bytes(), storable)
}

fn body_of(cache: &Cache, key: &Key, clock: &Clock) -> Option<String> {
    let hit = cache.lookup(key, clock.now())?;
    Some(
        String::from_utf8(
            hit.entry
                .to_response(hit.entry.age(clock.now()), http::HeaderValue::from_static(""))
                .into_body()
                .to_vec(),
        )
        .unwrap(),
    )
}

const MINUTE: Duration = Duration::from_secs(60);

const KEY: Key = Key::UserById(7);

#[test]
fn an_entry_is_good_until_its_time_is_up() {
    let (cache, time, clock) = setting();
    land(lead(&cache, &KEY, &clock), Sign::Positive, "a", &clock).unwrap();
    time.advance(Duration::from_millis(59_999));
    let hit = cache.lookup(&KEY, clock.now()).unwrap();
    assert_eq!((hit.entry.age(clock.now()).as_secs(), hit.phase), (59, Phase::Fresh));
    time.advance(Duration::from_millis(1));
    assert!(cache.lookup(&KEY, clock.now()).is_none());
}

#[test]
fn one_leads_and_the_others_follow_until_it_lands() {
    let (cache, _, clock) = setting();
    let lease = lead(&cache, &KEY, &clock);
    for _ in 0..3 {
        assert!(matches!(cache.board(&KEY, clock.now()), Boarding::Follow(_)));
    }
    assert!(matches!(cache.board(&Key::UserById(8), clock.now()), Boarding::Lead(_)));
    land(lease, Sign::Positive, "a", &clock).unwrap();
    assert!(matches!(cache.board(&KEY, clock.now()), Boarding::Hit(_)));
    assert_eq!(cache.flights(), 0);
}

#[tokio::test]
async fn followers_learn_how_the_flight_ended() {
    let (cache, _, clock) = setting();
    let follow = |cache: &Arc<Cache>| match cache.board(&KEY, clock.now()) {
        Boarding::Follow(wait) => wait,
        other => unreachable!("expected to follow, got {other:?}"),
    };
    let lease = lead(&cache, &KEY, &clock);
    let wait = follow(&cache);
    drop(lease);
    assert!(matches!(wait.landed().await, Landed::NotShared));

    let lease = lead(&cache, &KEY, &clock);
    let wait = follow(&cache);
    lease.fail(Trouble::Timeout);
    assert!(matches!(wait.landed().await, Landed::Failed(Trouble::Timeout)));

    let lease = lead(&cache, &KEY, &clock);
    let wait = follow(&cache);
    land(lease, Sign::Positive, "a", &clock).unwrap();
    assert!(matches!(wait.landed().await, Landed::Stored(_)));
}

#[test]
fn an_answer_begun_before_an_invalidation_is_never_stored_after_it() {
    let (cache, _, clock) = setting();
    let lease = lead(&cache, &KEY, &clock);
    cache.invalidate(&KEY);
    assert_eq!(land(lease, Sign::Positive, "old", &clock), Err(NoStore::Fenced));
    assert_eq!(body_of(&cache, &KEY, &clock), None);

    let lease = lead(&cache, &KEY, &clock);
    cache.invalidate_all();
    assert_eq!(land(lease, Sign::Positive, "old", &clock), Err(NoStore::Fenced));
    assert_eq!(body_of(&cache, &KEY, &clock), None);
    assert_eq!(cache.counts().fenced.load(Ordering::Relaxed), 2);
}

#[test]
fn a_struck_flight_leaves_its_successor_alone() {
    let (cache, _, clock) = setting();
    let old = lead(&cache, &KEY, &clock);
    cache.invalidate(&KEY);
    let new = lead(&cache, &KEY, &clock);
    assert_eq!(land(old, Sign::Positive, "old", &clock), Err(NoStore::Fenced));
    assert!(matches!(cache.board(&KEY, clock.now()), Boarding::Follow(_)));
    land(new, Sign::Positive, "new", &clock).unwrap();
    assert_eq!(body_of(&cache, &KEY, &clock).as_deref(), Some("new"));
}

#[test]
fn invalidation_drops_what_is_stored() {
    let (cache, _, clock) = setting();
    for (sign, flush) in [(Sign::Positive, false), (Sign::Negative, false), (Sign::Positive, true)] {
        land(lead(&cache, &KEY, &clock), sign, "a", &clock).unwrap();
        assert!(body_of(&cache, &KEY, &clock).is_some());
        if flush {
            cache.invalidate_all();
        } else {
            cache.invalidate(&KEY);
        }
        assert_eq!(body_of(&cache, &KEY, &clock), None, "{sign:?} {flush}");
    }
}

#[test]
fn a_key_is_either_known_or_unknown() {
    let (cache, time, clock) = setting();
    land(lead(&cache, &KEY, &clock), Sign::Positive, "there", &clock).unwrap();
    time.advance(Duration::from_secs(60));
    land(lead(&cache, &KEY, &clock), Sign::Negative, "gone", &clock).unwrap();
    assert_eq!(body_of(&cache, &KEY, &clock).as_deref(), Some("gone"));
    cache.upkeep();
    assert_eq!(cache.entry_counts(), [0, 1]);
}

#[test]
fn unknown_keys_do_not_push_out_known_ones() {
    let settings = Settings { max_entries: 100, max_negative_entries: 10, ..Settings::default() };
    let cache = Cache::new(&settings);
    let clock = Clock::Manual(Manual::at(0));
    for id in 0..100 {
        land(lead(&cache, &Key::UserById(id), &clock), Sign::Positive, "a", &clock).unwrap();
    }
    for id in 1_000..3_000 {
        land(lead(&cache, &Key::UserById(id), &clock), Sign::Negative, "b", &clock).unwrap();
        cache.upkeep();
    }
    assert_eq!(cache.entry_counts(), [100, 10]);
    assert!((0..100).all(|id| cache.lookup(&Key::UserById(id), clock.now()).is_some()));
    assert_eq!(cache.counts().evicted[Sign::Negative as usize].load(Ordering::Relaxed), 1_990);
}

#[test]
fn memory_is_bounded_by_bytes_whatever_the_count_allows() {
    let settings = Settings { max_bytes: 1 << 20, ..Settings::default() };
    let cache = Cache::new(&settings);
    let clock = Clock::Manual(Manual::at(0));
    let bytes = |sign: Sign| cache.counts().bytes[sign as usize].load(Ordering::Relaxed);
    let body = "x".repeat(10_000);
    for id in 0..500 {
        for (sign, key) in [(Sign::Positive, Key::UserById(id)), (Sign::Negative, Key::UserOfKey(id))] {
            land(lead(&cache, &key, &clock), sign, &body, &clock).unwrap();
            cache.upkeep();
        }
    }
    // A tenth is set aside for negative entries; each has 560 bytes beside its body.
    assert_eq!(cache.entry_counts(), [943_719 / 10_560, 104_857 / 10_560]);
    assert_eq!((bytes(Sign::Positive), bytes(Sign::Negative)), (89 * 10_560, 9 * 10_560));
    cache.invalidate_all();
    cache.upkeep();
    assert_eq!((bytes(Sign::Positive), bytes(Sign::Negative)), (0, 0));
}

#[test]
fn what_no_store_has_room_for_is_not_stored() {
    let cache = Cache::new(&Settings { max_bytes: 100_000, ..Settings::default() });
    let clock = Clock::Manual(Manual::at(0));
    for (sign, most) in [(Sign::Positive, 90_000 - 560), (Sign::Negative, 10_000 - 560)] {
        let stored = land(lead(&cache, &KEY, &clock), sign, &"x".repeat(most + 1), &clock);
        assert_eq!(stored, Err(NoStore::TooLarge));
        assert_eq!(cache.flights(), 0);
        land(lead(&cache, &KEY, &clock), sign, &"x".repeat(most), &clock).unwrap();
        cache.upkeep();
        assert_eq!(cache.entry_counts()[sign as usize], 1);
        cache.invalidate(&KEY);
    }
}

/// Headers that differ from answer to answer are each entry's own.
#[test]
fn heads_that_nobody_shares_count_too() {
    let settings = Settings { max_bytes: 16 << 20, ..Settings::default() };
    let cache = Cache::new(&settings);
    let clock = Clock::Manual(Manual::at(0));
    let storable = Storable { sign: Sign::Positive, ages: ages(), expires: None, subject: None };
    for id in 0..5_000 {
        let mut headers = HeaderMap::new();
        headers.insert("vary", format!("{id}{}", "x".repeat(8_000)).parse().unwrap());
        let lease = lead(&cache, &Key::UserById(id), &clock);
        lease.store(StatusCode::OK, &headers, b"{}", storable).unwrap();
        cache.upkeep();
    }
    assert!(cache.entry_counts()[0] * 8_000 <= 16 << 20);
}

#[test]
fn both_bounds_of_a_store_hold() {
    for (entries, bytes, capacity, share) in [
        (100, 1 << 30, 1_073_741_800, 10_737_418),
        (1_000_000, 1 << 30, 1_073_000_000, 1_073),
        (1_000_000, 1 << 10, 1 << 10, 1),
        (1, 1 << 40, u64::from(u32::MAX), u32::MAX),
        (0, 0, 0, 1),
    ] {
        assert_eq!(Bounds::new(entries, bytes), Bounds { capacity, share }, "{entries} {bytes}");
    }
    let bounds = Bounds::new(10, 1_000);
    assert_eq!((bounds.weigh(1), bounds.weigh(101), bounds.weigh(u64::MAX)), (100, 101, u32::MAX));
}

#[test]
fn a_full_store_still_takes_new_keys() {
    let cache = Cache::new(&Settings { max_entries: 10, ..Settings::default() });
    let clock = Clock::Manual(Manual::at(0));
    for id in 0..10 {
        land(lead(&cache, &Key::UserById(id), &clock), Sign::Positive, "a", &clock).unwrap();
    }
    for _ in 0..50 {
        (0..10).for_each(|id| drop(cache.lookup(&Key::UserById(id), clock.now())));
    }
    for id in 100..110 {
        land(lead(&cache, &Key::UserById(id), &clock), Sign::Positive, "a", &clock).unwrap();
        cache.upkeep();
        assert!(cache.lookup(&Key::UserById(id), clock.now()).is_some(), "{id} was refused");
    }
}

#[test]
fn a_rejection_ends_what_was_kept_but_not_what_came_after_it() {
    let (cache, _, clock) = setting();
    land(lead(&cache, &KEY, &clock), Sign::Positive, "a", &clock).unwrap();
    assert!(matches!(cache.refresh(&KEY, clock.now()), Refresh::Unneeded), "it is fresh");
    cache.invalidate(&KEY);
    land(lead(&cache, &KEY, &clock), Sign::Negative, "b", &clock).unwrap();
    cache.invalidate(&KEY);

    let struck = lead(&cache, &KEY, &clock);
    cache.invalidate(&KEY);
    land(lead(&cache, &KEY, &clock), Sign::Positive, "new", &clock).unwrap();
    struck.reject();
    assert_eq!(body_of(&cache, &KEY, &clock).as_deref(), Some("new"));
}

#[test]
fn one_at_a_time_renews_what_is_stale() {
    let settings = Settings { max_refreshes: 1, ..Settings::default() };
    let (cache, time) = (Cache::new(&settings), Manual::at(1_700_000_000));
    let clock = Clock::Manual(time.clone());
    let storable = Storable {
        sign: Sign::Positive,
        ages: Ages::new(MINUTE, MINUTE * 2, MINUTE * 2),
        expires: None,
        subject: None,
    };
    let other = Key::UserById(8);
    for key in [&KEY, &other] {
        let lease = lead(&cache, key, &clock);
        lease.store(StatusCode::OK, &HeaderMap::new(), b"old", storable).unwrap();
    }
    time.advance(MINUTE);
    let Refresh::Begun(lease, permit) = cache.refresh(&KEY, clock.now()) else { unreachable!("it is stale") };

    assert!(matches!(cache.refresh(&other, clock.now()), Refresh::TooMany), "enough is being renewed");
    assert_eq!(body_of(&cache, &KEY, &clock).as_deref(), Some("old"), "meanwhile");
    lease.reject();
    drop(permit);
    assert_eq!(body_of(&cache, &KEY, &clock), None);
    assert!(matches!(cache.refresh(&other, clock.now()), Refresh::Begun(..)));
}

/// Scans try random keys. They meet a store of their own.
#[test]
fn a_million_unknown_keys_push_out_no_known_one() {
    let settings = Settings { max_negative_entries: 10_000, ..Settings::default() };
    let (cache, clock) = (Cache::new(&settings), Clock::Manual(Manual::at(1_700_000_000)));
    let known = |id: u32| {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&id.to_be_bytes());
        Key::SshKey(digest)
    };
    let entry = |sign| {
        let storable = Storable { sign, ages: ages(), expires: None, subject: None };
        let by = (&cache.heads, 0);
        Arc::new(Entry::new(StatusCode::OK, &HeaderMap::new(), b"{}", storable, clock.now(), by))
    };
    let (row, none) = (entry(Sign::Positive), entry(Sign::Negative));
    for id in 0..1_010_000 {
        cache.insert(known(id), Arc::clone(if id < 10_000 { &row } else { &none }));
    }
    cache.upkeep();
    let [positive, negative] = cache.entry_counts();
    assert!(positive == 10_000 && negative <= 10_000, "{positive} {negative}");
    let kept = (0..10_000).filter(|id| cache.lookup(&known(*id), clock.now()).is_some()).count();
    assert_eq!(kept, 10_000);
    let [_, bytes] = cache.counts().bytes.each_ref().map(|bytes| bytes.load(Ordering::Relaxed));
    assert!(bytes <= settings.max_bytes as u64 / 10, "{bytes}");
}

/// A clock that is set ahead, or a machine that slept, does not give what has ended; one that is set back
/// keeps nothing for longer than its age allows.
#[test]
fn what_ends_by_the_wall_clock_is_not_given_however_young_it_is() {
    const BEGIN: i64 = 1_700_000_000;
    for (expires, stepped, phase_after_30_s) in [
        (None, 3_600, Some(Phase::Fresh)),
        (Some(BEGIN + 45), 0, Some(Phase::Fresh)),
        (Some(BEGIN + 45), 14, Some(Phase::Fresh)),
        (Some(BEGIN + 45), 15, None),
        (Some(BEGIN + 45), 3_600, None),
        (Some(BEGIN + 3_630), 3_600, None),
        (Some(BEGIN + 45), -3_600, Some(Phase::Fresh)),
        (Some(i64::from(u32::MAX) + 1), i64::from(u32::MAX), Some(Phase::Fresh)),
        (Some(-1), 0, None),
    ] {
        let time = Manual::at(BEGIN);
        let clock = Clock::Manual(time.clone());
        let cache = Cache::with_clock(&Settings::default(), clock.clone());
        let stale = Ages::new(MINUTE, MINUTE * 2, MINUTE * 3);
        let storable = Storable { sign: Sign::Positive, ages: stale, expires, subject: None };
        let lease = lead(&cache, &KEY, &clock);
        lease.store(StatusCode::OK, &HeaderMap::new(), b"a", storable).unwrap();
        time.advance(Duration::from_secs(30));
        time.step_wall(stepped);
        let phase = |cache: &Cache| cache.lookup(&KEY, clock.now()).map(|hit| hit.phase);
        assert_eq!(phase(&cache), phase_after_30_s, "{expires:?} {stepped}");
        let seen = cache.inspect(&purge::Selector::All, clock.now(), 1).0;
        assert_eq!(seen[0].phase, phase_after_30_s, "operators are told the same");
        if expires == Some(BEGIN + 45) {
            // Nor in any other phase: the wall clock alone decides, and the age all the same.
            for stale in [60, 60] {
                time.advance(Duration::from_secs(stale));
                assert_eq!(phase(&cache).is_some(), stepped < 0, "{stepped}");
            }
            time.advance(Duration::from_secs(60));
            assert_eq!(phase(&cache), None);
            // The next caller asks Rails.
            assert!(matches!(cache.board(&KEY, clock.now()), Boarding::Lead(_)));
        }
    }
}
