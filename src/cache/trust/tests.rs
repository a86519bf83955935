use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::cache::fill::{FillGuard, LeaderOrFollower, RefreshAttempt};
use crate::cache::purge::{PurgeMode, Selector};
use crate::cache::storable::{NoStoreReason, Storable};
use crate::cache::{Cache, CacheSettings, EntryKind, FillOutcome, FillWaiter, Key, Lifetimes};
use crate::clock::{Clock, ManualClock};
use crate::route::Caching;

const KEY: Key = Key::UserById(7);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Fresh for 60 s if positive, stale for 30 s more, and usable for an hour if Rails fails; 5 s if negative.
fn age_limits(kind: EntryKind) -> AgeLimits {
    Lifetimes::default().age_limits(Caching::Discover, kind)
}

struct Fixture {
    cache: Arc<Cache>,
    time: ManualClock,
}

impl Fixture {
    fn new() -> Self {
        Self { cache: Cache::new(&CacheSettings::default()), time: ManualClock::at(1_700_000_000) }
    }

    fn now(&self) -> Instant {
        Clock::Manual(self.time.clone()).now()
    }

    fn lead(&self) -> FillGuard {
        match self.cache.lead_or_follow(&KEY, self.now()) {
            LeaderOrFollower::Leader(guard) => guard,
            other => unreachable!("expected to lead, got {other:?}"),
        }
    }

    fn follow(&self) -> FillWaiter {
        match self.cache.lead_or_follow(&KEY, self.now()) {
            LeaderOrFollower::Follower(waiter) => waiter,
            other => unreachable!("expected to follow, got {other:?}"),
        }
    }

    fn store(&self, kind: EntryKind) {
        store(self.lead(), kind, "a").unwrap();
    }

    fn freshness(&self) -> Option<Freshness> {
        self.cache.lookup(&KEY, self.now()).map(|hit| hit.freshness)
    }
}

fn store(guard: FillGuard, kind: EntryKind, body: &str) -> Result<(), NoStoreReason> {
    let storable = Storable { kind, age_limits: age_limits(kind), expires_at: None, subject_id: None };
    guard.store(StatusCode::OK, &HeaderMap::new(), body.as_bytes(), storable)
}

#[test]
fn what_is_known_from_before_a_doubt_is_there_only_if_rails_fails() {
    for (kind, age, before, after) in [
        (EntryKind::Positive, 0, Some(Freshness::Fresh), Some(Freshness::Doubted)),
        (EntryKind::Positive, 60, Some(Freshness::StaleWhileRevalidate), Some(Freshness::Doubted)),
        (EntryKind::Positive, 90, Some(Freshness::StaleIfError), Some(Freshness::Doubted)),
        (EntryKind::Positive, 3_660, None, None),
        (EntryKind::Negative, 0, Some(Freshness::Fresh), None),
    ] {
        let f = Fixture::new();
        f.store(kind);
        f.time.advance(seconds(age));
        assert_eq!(f.freshness(), before, "{kind:?} {age}");
        f.cache.doubt_all();
        assert_eq!(f.freshness(), after, "{kind:?} {age}");
        // What Rails says afterwards is not in doubt.
        f.store(kind);
        assert_eq!(f.freshness(), Some(Freshness::Fresh));
        let shown = f.cache.inspect(&Selector::All, f.now(), 10).0;
        assert_eq!(shown.len(), 1, "one answer for each key");
    }
}

#[test]
fn operators_and_callers_are_not_told_that_a_doubted_answer_stays_fresh() {
    let f = Fixture::new();
    f.store(EntryKind::Positive);
    f.time.advance(seconds(20));
    let ttl = || {
        let shown = f.cache.inspect(&Selector::All, f.now(), 1).0;
        let hit = f.cache.lookup(&KEY, f.now()).unwrap();
        assert_eq!(
            (Some(hit.freshness), hit.remaining_ttl_s()),
            (shown[0].freshness, shown[0].remaining_ttl_s)
        );
        shown[0].remaining_ttl_s
    };
    assert_eq!(ttl(), 40);
    f.cache.set_alone(Some(seconds(30)));
    assert_eq!(ttl(), 10);
    f.cache.doubt_all();
    assert_eq!(ttl(), -20);
}

#[test]
fn who_comes_after_a_doubt_does_not_wait_for_an_answer_asked_for_before() {
    let f = Fixture::new();
    let before = f.lead();
    f.cache.doubt_all();
    let after = f.lead();
    drop(f.follow());
    assert_eq!(store(before, EntryKind::Positive, "old"), Err(NoStoreReason::Fenced));
    assert_eq!(f.freshness(), None);
    store(after, EntryKind::Positive, "new").unwrap();
    assert_eq!(f.freshness(), Some(Freshness::Fresh));
}

#[tokio::test]
async fn a_flight_that_nobody_has_followed_since_lands_as_doubted() {
    let f = Fixture::new();
    let (before, waiter) = (f.lead(), f.follow());
    f.cache.doubt_all();
    store(before, EntryKind::Positive, "old").unwrap();
    assert!(matches!(waiter.outcome().await, FillOutcome::Stored(_)), "it asked before the doubt, too");
    assert_eq!(f.freshness(), Some(Freshness::Doubted));
    assert!(matches!(f.cache.try_refresh(&KEY, f.now()), RefreshAttempt::Started(..)));
}

#[test]
fn while_alone_answers_are_fresh_for_a_short_time_and_not_refreshed_behind_a_callers_back() {
    let f = Fixture::new();
    f.store(EntryKind::Positive);
    f.cache.set_alone(Some(seconds(10)));
    for (age, freshness) in [
        (9_999, Some(Freshness::Fresh)),
        (10_000, Some(Freshness::Doubted)),
        (60_000, Some(Freshness::Doubted)),
        (3_659_999, Some(Freshness::Doubted)),
        (3_660_000, None),
    ] {
        let at = f.now() + Duration::from_millis(age);
        assert_eq!(f.cache.lookup(&KEY, at).map(|hit| hit.freshness), freshness, "{age}");
    }
    f.time.advance(seconds(10));
    f.store(EntryKind::Positive);
    assert_eq!(f.freshness(), Some(Freshness::Fresh), "counted from when Rails was asked");
    f.cache.set_alone(None);
    f.time.advance(seconds(60));
    assert_eq!(f.freshness(), Some(Freshness::StaleWhileRevalidate), "as configured");
    f.cache.set_alone(Some(seconds(1_000)));
    f.store(EntryKind::Negative);
    f.time.advance(seconds(5));
    assert_eq!(f.freshness(), None, "it makes nothing last longer");
}

#[test]
fn a_soft_purge_of_a_doubted_answer_leaves_it_for_an_outage() {
    let f = Fixture::new();
    f.store(EntryKind::Positive);
    f.cache.doubt_all();
    f.cache.purge(&[Selector::All], PurgeMode::Soft);
    assert_eq!(f.freshness(), Some(Freshness::Doubted));
    f.cache.purge(&[Selector::All], PurgeMode::Hard);
    assert_eq!(f.freshness(), None);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask,
    /// The flight that began so many before the last one brings an answer.
    Land(usize, EntryKind),
    Flush,
    Doubt,
    Purge,
    Alone(Option<u64>),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![3 => Just(EntryKind::Positive), 1 => Just(EntryKind::Negative)];
    let step = prop_oneof![
        4 => Just(Step::Ask),
        4 => (0..3_usize, kind).prop_map(|(back, kind)| Step::Land(back, kind)),
        1 => Just(Step::Flush),
        2 => Just(Step::Doubt),
        1 => Just(Step::Purge),
        2 => proptest::option::of(1_000..90_000_u64).prop_map(Step::Alone),
        2 => (0..100_000_u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What is known of a flight, and of the entry that it has stored.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    is_doubted: bool,
    is_fenced: bool,
    kind: EntryKind,
}

fn fence_off(flights: &mut [(FillGuard, Asked)]) {
    for (_, asked) in flights {
        asked.is_fenced = true;
    }
}

/// The same in the words of the documentation, without generations.
fn expected(entry: Option<Asked>, alone: Option<u64>, now: Instant) -> Option<Freshness> {
    let entry = entry?;
    let (age, own) = (now - entry.at, age_limits(entry.kind).freshness(now - entry.at));
    let capped = alone.is_some_and(|ttl| age >= Duration::from_millis(ttl));
    match own? {
        Freshness::Fresh if !entry.is_doubted && !capped => Some(Freshness::Fresh),
        own if !entry.is_doubted && alone.is_none() => Some(own),
        _ if entry.kind == EntryKind::Positive => Some(Freshness::Doubted),
        _ => None,
    }
}

proptest! {
    #[test]
    fn flushes_doubts_purges_and_being_alone_hold_in_any_order(steps in steps()) {
        let f = Fixture::new();
        let (mut flights, mut entry, mut alone) = (Vec::<(FillGuard, Asked)>::new(), None::<Asked>, None);
        for step in steps {
            match step {
                Step::Ask => {
                    let is_fresh = expected(entry, alone, f.now()) == Some(Freshness::Fresh);
                    let joinable = flights.iter().any(|(_, asked)| !asked.is_doubted && !asked.is_fenced);
                    match f.cache.lead_or_follow(&KEY, f.now()) {
                        LeaderOrFollower::Follower(_) => prop_assert!(joinable),
                        LeaderOrFollower::Hit(_) => prop_assert!(!joinable && is_fresh),
                        LeaderOrFollower::Leader(guard) => {
                            prop_assert!(!joinable && !is_fresh);
                            fence_off(&mut flights);
                            let (at, kind) = (f.now(), EntryKind::Positive);
                            flights.push((guard, Asked { at, is_doubted: false, is_fenced: false, kind }));
                        }
                    }
                }
                Step::Land(back, kind) if back < flights.len() => {
                    let (guard, asked) = flights.remove(flights.len() - 1 - back);
                    let stored = store(guard, kind, "a");
                    prop_assert_eq!(stored.is_err(), asked.is_fenced);
                    if !asked.is_fenced {
                        entry = Some(Asked { kind, ..asked });
                    }
                }
                Step::Land(..) => {}
                Step::Flush | Step::Purge => {
                    match step {
                        Step::Flush => f.cache.invalidate_all(),
                        _ => drop(f.cache.purge(&[Selector::UserId(7)], PurgeMode::Hard)),
                    }
                    fence_off(&mut flights);
                    entry = None;
                }
                Step::Doubt => {
                    f.cache.doubt_all();
                    let asked = flights.iter_mut().map(|(_, asked)| asked);
                    asked.chain(&mut entry).for_each(|asked| asked.is_doubted = true);
                }
                Step::Alone(ttl) => {
                    f.cache.set_alone(ttl.map(Duration::from_millis));
                    alone = ttl;
                }
                Step::Wait(ms) => f.time.advance(Duration::from_millis(ms)),
            }
            prop_assert_eq!(f.freshness(), expected(entry, alone, f.now()), "after {:?}", step);
        }
    }
}
