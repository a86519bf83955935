use http::{HeaderMap, StatusCode};

use super::*;
use crate::cache::fill::LeaderOrFollower;
use crate::cache::storable::{NoStoreReason, Storable};
use crate::cache::{CacheSettings, EntryKind, Freshness, Key, Lifetimes};
use crate::route::Caching;

fn purger() -> Arc<Purger> {
    Arc::new(Purger::new(Cache::new(&CacheSettings::default()), Arc::default(), Clock::System))
}

fn user(id: u64) -> Key {
    Key::UserById(id)
}

/// Rails is asked now, and answers when this is called.
fn ask(cache: &Arc<Cache>, id: u64) -> impl FnOnce() -> Result<(), NoStoreReason> + use<> {
    let now = Clock::System.now();
    let LeaderOrFollower::Leader(guard) = cache.lead_or_follow(&user(id), now) else { unreachable!("{id}") };
    move || {
        let age_limits = Lifetimes::default().age_limits(Caching::Discover, EntryKind::Positive);
        let storable =
            Storable { kind: EntryKind::Positive, age_limits, expires_at: None, subject_id: Some(id) };
        guard.store(StatusCode::OK, &HeaderMap::new(), br#"{"username":"root"}"#, storable)
    }
}

fn state(purger: &Purger, id: u64) -> Option<Freshness> {
    purger.cache.lookup(&user(id), Clock::System.now()).map(|hit| hit.freshness)
}

fn purge(selector: Selector, mode: PurgeMode, settle_s: u64) -> Purge {
    let (settle, at) = (Duration::from_secs(settle_s), Clock::System.unix_time());
    Purge::new(&[selector], mode, settle, at)
}

/// Until there is nothing to do now.
async fn work(purger: &Arc<Purger>) {
    loop {
        let step = purger.work.lock().next_step(Clock::System.now());
        match step {
            Step::Drop(look) => purger.look(look).await,
            Step::Doubt => purger.doubt(DoubtReason::Overflow),
            Step::Rest(_) => return,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_heard_is_dropped_and_once_more_after_it_has_settled() {
    let purger = purger();
    for id in [1, 2] {
        ask(&purger.cache, id)().unwrap();
    }
    let on_its_way = ask(&purger.cache, 3);
    purger.push(purge(Selector::Username("root".into()), PurgeMode::Hard, 5), true, Clock::System.now());
    assert_eq!(purger.progress(), (1, 0));
    assert_eq!(on_its_way(), Err(NoStoreReason::Fenced), "flights are fenced off at once");
    work(&purger).await;
    assert_eq!(purger.progress(), (1, 1));
    assert_eq!([1, 2, 3].map(|id| state(&purger, id)), [None; 3]);
    assert_eq!(purger.counters.heard.load(std::sync::atomic::Ordering::Relaxed), 1);
    // A replica of Rails' database that is behind.
    ask(&purger.cache, 1)().unwrap();
    tokio::time::advance(Duration::from_millis(4_900)).await;
    work(&purger).await;
    assert_eq!(state(&purger, 1), Some(Freshness::Fresh));
    tokio::time::advance(Duration::from_millis(200)).await;
    work(&purger).await;
    assert_eq!(state(&purger, 1), None);
    ask(&purger.cache, 1)().unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    work(&purger).await;
    assert_eq!(state(&purger, 1), Some(Freshness::Fresh), "only once more");
}

#[tokio::test(start_paused = true)]
async fn a_soft_purge_by_key_drops_nothing() {
    let purger = purger();
    ask(&purger.cache, 1)().unwrap();
    let on_its_way = ask(&purger.cache, 2);
    purger.push(purge(Selector::UserId(1), PurgeMode::Soft, 0), true, Clock::System.now());
    assert_eq!(state(&purger, 1), Some(Freshness::Fresh), "until it was looked for");
    work(&purger).await;
    assert_eq!(state(&purger, 1), Some(Freshness::StaleWhileRevalidate));
    purger.push(purge(Selector::UserId(2), PurgeMode::Soft, 0), true, Clock::System.now());
    assert_eq!(on_its_way(), Err(NoStoreReason::Fenced));
}

#[tokio::test(start_paused = true)]
async fn more_than_can_wait_is_doubted_once_and_once_more_after_it_has_settled() {
    let purger = purger();
    ask(&purger.cache, 1)().unwrap();
    let doubts = |purger: &Purger| purger.counters.doubts.get(DoubtReason::Overflow);
    for id in 0..=10_000 {
        assert_eq!(doubts(&purger), 0);
        purger.push(purge(Selector::KeyId(id), PurgeMode::Hard, 5), true, Clock::System.now());
    }
    for id in 0..1_000 {
        purger.push(purge(Selector::KeyId(id), PurgeMode::Hard, 0), true, Clock::System.now());
    }
    assert_eq!((doubts(&purger), state(&purger, 1)), (1, Some(Freshness::Doubted)));
    work(&purger).await;
    ask(&purger.cache, 1)().unwrap();
    assert_eq!(state(&purger, 1), Some(Freshness::Fresh));
    tokio::time::advance(Duration::from_secs(5)).await;
    work(&purger).await;
    assert_eq!((doubts(&purger), state(&purger, 1)), (2, Some(Freshness::Doubted)));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_remembered_until_it_settles_is_doubted_then() {
    let purger = purger();
    let now = Clock::System.now();
    let at = now + Duration::from_secs(5);
    for _ in 0..=MAX_PURGES {
        purger.work.lock().drop_later(at, vec![Selector::KeyId(7)], PurgeMode::Hard);
    }
    ask(&purger.cache, 1)().unwrap();
    work(&purger).await;
    assert_eq!(state(&purger, 1), Some(Freshness::Fresh));
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(matches!(purger.work.lock().next_step(Clock::System.now()), Step::Doubt));
    assert!(
        matches!(purger.work.lock().next_step(Clock::System.now()), Step::Drop(look) if look.heard.is_empty())
    );
}

/// A doubt that is put off with each purge would not come while there are any.
#[test]
fn what_settles_is_doubted_in_time_though_more_comes() {
    let (mut work, begin) = (Work::default(), Instant::now());
    let at = |s| begin + Duration::from_secs(s);
    let mut doubts = Vec::new();
    for second in 0..100 {
        if second < 50 {
            work.doubt_later(at(second + 10));
        }
        if matches!(work.next_step(at(second)), Step::Doubt) {
            doubts.push(second);
        }
    }
    assert_eq!(doubts, [10, 20, 30, 40, 50, 59]);
}

#[test]
fn purges_share_a_look_in_their_order() {
    let mut work = Work::default();
    let modes = [PurgeMode::Hard, PurgeMode::Hard, PurgeMode::Soft, PurgeMode::Hard];
    work.heard.extend(modes.map(|mode| (purge(Selector::All, mode, 0), true)));
    let many: Vec<Selector> = (0..256).map(Selector::KeyId).collect();
    let large = Purge::new(&many, PurgeMode::Hard, Duration::ZERO, Duration::ZERO);
    work.heard.extend([(); 5].map(|()| (large.clone(), true)));
    let looks: Vec<_> = std::iter::from_fn(|| match work.next_step(Instant::now()) {
        Step::Drop(look) => Some((look.mode, look.heard.len())),
        _ => None,
    })
    .collect();
    let (hard, soft) = (PurgeMode::Hard, PurgeMode::Soft);
    assert_eq!(looks, [(hard, 2), (soft, 1), (hard, 4), (hard, 2)]);
}

/// A look may take longer than the time between two purges, each of which is dropped once more.
#[test]
fn what_is_heard_and_what_has_settled_is_in_one_of_the_next_looks_though_more_comes() {
    const LOOK: u64 = 2;
    const SETTLE: u64 = 5;
    let (hard, soft) = (PurgeMode::Hard, PurgeMode::Soft);
    // Seconds between two purges, and of how many looks the last one has each.
    for (modes, interval, looks) in [([hard, hard], 1, 2), ([soft, soft], 1, 2), ([hard, soft], 8, 3)] {
        let (mut work, begin) = (Work::default(), Instant::now());
        let (mut now, mut next, mut done) = (0, 0, [0; 2]);
        while now < 200 {
            while next * interval <= now {
                let mode = modes[usize::try_from(next).unwrap() % 2];
                work.heard.push_back((purge(Selector::KeyId(next * interval), mode, SETTLE), true));
                next += 1;
            }
            let Step::Drop(look) = work.next_step(begin + Duration::from_secs(now)) else {
                now += 1;
                continue;
            };
            now += LOOK;
            let times = |selectors: Vec<Selector>| {
                selectors.into_iter().map(|selector| match selector {
                    Selector::KeyId(time) => time,
                    other => unreachable!("{other:?}"),
                })
            };
            let first: Vec<Selector> = look.heard_selectors().collect();
            done[0] += first.len();
            done[1] += look.settled.len();
            let late = times(first.clone()).map(|heard_at| now - heard_at).max();
            assert!(late <= Some(looks * LOOK), "{late:?} s after it was heard");
            // It was dropped first within that time.
            let late = times(look.settled).map(|heard_at| now - heard_at).max();
            assert!(late <= Some(2 * looks * LOOK + SETTLE), "{late:?} s after it was heard, once more");
            if !first.is_empty() {
                work.drop_later(begin + Duration::from_secs(now + SETTLE), first, look.mode);
            }
        }
        let expected = usize::try_from(200 / interval).unwrap();
        assert!(done.iter().all(|done| *done + 15 >= expected), "{done:?} of {expected}");
    }
}
