use std::fs;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::*;
use crate::cache::fill::LeaderOrFollower;
use crate::cache::purge::{PurgeMode, Selector};
use crate::cache::storable::Storable;
use crate::cache::{CacheSettings, Freshness};
use crate::clock::{Clock, ManualClock};

mod files;

struct Fixture {
    dir: PathBuf,
    time: ManualClock,
    cache: Arc<Cache>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

const BEGIN: i64 = 1_700_000_000;
const KEY: Key = Key::UserById(7);
const USER: &str = r#"{"id":7,"username":"rubi"}"#;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn sealed(path: PathBuf, secret: &str, upstream: &str) -> SnapshotFile {
    SnapshotFile::new(path, &ShellSecret::from_text(secret.as_bytes()).unwrap(), upstream)
}

impl Fixture {
    fn new() -> Self {
        let name = format!("railgate-snapshot-{}-{:x}", std::process::id(), fastrand::u64(..));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        let time = ManualClock::at(BEGIN);
        let cache = Cache::with_clock(&CacheSettings::default(), Clock::Manual(time.clone()));
        Self { dir, time, cache }
    }

    fn snapshot(&self) -> SnapshotFile {
        sealed(self.dir.join("cache"), "s3cret", "rails")
    }

    fn now(&self) -> SnapshotTime {
        let clock = Clock::Manual(self.time.clone());
        SnapshotTime { instant: clock.now(), unix: clock.unix_time() }
    }

    fn keep(&self, key: &Key, kind: EntryKind, body: &str) {
        self.keep_until(key, kind, body, None);
    }

    fn keep_until(&self, key: &Key, kind: EntryKind, body: &str, expires_at: Option<i64>) {
        let LeaderOrFollower::Leader(guard) = self.cache.lead_or_follow(key, self.now().instant) else {
            unreachable!("{key:?} is there");
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if key != &Key::UserById(8) {
            headers.insert(header::ETAG, HeaderValue::from_static("W/\"1\""));
        }
        let age_limits = Lifetimes::default().age_limits(key.caching(), kind);
        let storable = Storable { kind, age_limits, expires_at, subject_id: Some(7) };
        guard.store(StatusCode::OK, &headers, body.as_bytes(), storable).unwrap();
    }

    fn save(&self) -> usize {
        self.cache.save(&self.snapshot(), self.now()).unwrap()
    }

    /// Loads into the cache of a gateway that is started now.
    fn load_with(
        &self,
        from: &SnapshotFile,
        lifetimes: &Lifetimes,
    ) -> (Arc<Cache>, Result<LoadSummary, LoadError>) {
        let cache = Cache::with_clock(&CacheSettings::default(), Clock::Manual(self.time.clone()));
        let loaded = cache.load(from, self.now(), lifetimes, false);
        (cache, loaded)
    }

    fn load(&self) -> (Arc<Cache>, Result<LoadSummary, LoadError>) {
        self.load_with(&self.snapshot(), &Lifetimes::default())
    }
}

#[test]
fn loaded_entries_equal_the_saved_ones_and_keep_their_age() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.keep(&Key::UserById(8), EntryKind::Positive, r#"{"id":8}"#);
    s.keep(&Key::UserByName("Rubi".into()), EntryKind::Positive, USER);
    s.keep(&Key::SshKey([9; 32]), EntryKind::Positive, "a row");
    s.keep(&Key::UserOfKey(404), EntryKind::Negative, "null");
    s.time.advance(seconds(20));
    assert_eq!(s.save(), 4);
    s.time.advance(seconds(5));
    let (cache, loaded) = s.load();
    assert_eq!(loaded.unwrap(), LoadSummary { entries: 4, left_out: 0, saved_ago: seconds(5) });
    let now = s.now().instant;
    for (key, body, etag) in [
        (KEY, USER, true),
        (Key::UserById(8), r#"{"id":8}"#, false),
        (Key::UserByName("Rubi".into()), USER, true),
        (Key::SshKey([9; 32]), "a row", true),
    ] {
        let hit = cache.lookup(&key, now).unwrap();
        assert_eq!(
            (hit.freshness, hit.entry.age(now), hit.entry.subject_id()),
            (Freshness::Fresh, seconds(25), Some(7))
        );
        let answer = hit.entry.to_response(seconds(25), &[b"x"]);
        assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::OK, body.as_bytes()));
        let had = s.cache.lookup(&key, now).unwrap().entry.to_response(seconds(25), &[b"x"]);
        assert_eq!((answer.headers(), answer.headers().contains_key("etag")), (had.headers(), etag));
    }
    assert!(cache.lookup(&Key::UserOfKey(404), now).is_none());
    for (after, freshness) in [
        (34, Some(Freshness::Fresh)),
        (1, Some(Freshness::StaleWhileRevalidate)),
        (30, Some(Freshness::StaleIfError)),
    ] {
        s.time.advance(seconds(after));
        assert_eq!(cache.lookup(&KEY, s.now().instant).map(|hit| hit.freshness), freshness);
    }
    assert!(cache.counters().bytes.get(EntryKind::Positive) > 0);
}

/// It was refused in unknown words, and a restart does not make that undone.
#[test]
fn a_doubted_entry_is_not_used_if_rails_fails_after_a_restart_either() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.cache.doubt(&KEY, StatusCode::FORBIDDEN, s.now().instant);
    s.save();
    let (loaded, _) = s.load();
    for cache in [&s.cache, &loaded] {
        let at = |age| cache.lookup(&KEY, s.now().instant + seconds(age)).map(|hit| hit.freshness);
        assert_eq!(at(59), Some(Freshness::Fresh));
        assert_eq!([at(60), at(89)], [Some(Freshness::StaleWhileRevalidate); 2]);
        assert_eq!(at(90), None);
    }
}

#[test]
fn entries_beyond_their_lifetime_are_left_out() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.keep(&Key::SshKey([9; 32]), EntryKind::Positive, "a row");
    s.save();
    s.time.advance(seconds(3_660));
    let (_, loaded) = s.load();
    assert_eq!(loaded.unwrap(), LoadSummary { entries: 0, left_out: 2, saved_ago: seconds(3_660) });

    s.cache.invalidate_all();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.keep(&Key::SshKey([9; 32]), EntryKind::Positive, "a row");
    s.save();
    s.time.advance(seconds(10));
    let mut lifetimes = Lifetimes::default();
    lifetimes.authorized_keys.ttl = seconds(10);
    // None of these is loaded, however long they could be stale.
    lifetimes.discover.ttl = Duration::ZERO;
    let (cache, loaded) = s.load_with(&s.snapshot(), &lifetimes);
    assert_eq!(loaded.unwrap(), LoadSummary { entries: 1, left_out: 1, saved_ago: seconds(10) });
    let hit = cache.lookup(&Key::SshKey([9; 32]), s.now().instant).unwrap();
    assert_eq!(hit.freshness, Freshness::StaleWhileRevalidate);
}

#[test]
fn loaded_entries_are_stale_if_changes_may_have_been_missed() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.save();
    let cache = Cache::new(&CacheSettings::default());
    cache.load(&s.snapshot(), s.now(), &Lifetimes::default(), true).unwrap();
    assert_eq!(cache.lookup(&KEY, s.now().instant).unwrap().freshness, Freshness::StaleWhileRevalidate);
    // An entry that was marked stale before it was saved stays stale.
    s.cache.purge(&[Selector::All], PurgeMode::Soft);
    s.save();
    assert_eq!(s.load().0.lookup(&KEY, s.now().instant).unwrap().freshness, Freshness::StaleWhileRevalidate);
}

#[test]
fn a_restart_ends_no_doubt() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.cache.doubt_all();
    s.keep(&Key::SshKey([9; 32]), EntryKind::Positive, "a row");
    s.save();
    let (cache, _) = s.load();
    let freshness = |key, age| cache.lookup(key, s.now().instant + seconds(age)).map(|hit| hit.freshness);
    for (age, trusted) in [(0, Freshness::Fresh), (60, Freshness::StaleWhileRevalidate)] {
        assert_eq!(freshness(&KEY, age), Some(Freshness::StaleIfError), "{age}");
        assert_eq!(freshness(&Key::SshKey([9; 32]), age), Some(trusted));
    }
}

/// With hooks configured, and no use of stale answers.
#[test]
fn entries_that_may_not_be_used_stale_are_left_out() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.save();
    let mut lifetimes = Lifetimes::default();
    lifetimes.discover.stale_while_revalidate = Duration::ZERO;
    lifetimes.discover.stale_if_error = Duration::ZERO;
    let loaded =
        Cache::new(&CacheSettings::default()).load(&s.snapshot(), s.now(), &lifetimes, true).unwrap();
    assert_eq!((loaded.entries, loaded.left_out), (0, 1));
}

/// By the wall clock, whichever way it was set while the gateway was down or is running.
#[test]
fn expired_entries_are_neither_saved_nor_loaded() {
    let s = Fixture::new();
    let other = Key::SshKey([9; 32]);
    s.keep_until(&KEY, EntryKind::Positive, USER, Some(BEGIN + 20));
    s.keep_until(&other, EntryKind::Positive, "a row", Some(BEGIN + 1_000));
    assert_eq!(s.save(), 2);
    s.time.step_wall(30);
    let (cache, loaded) = s.load();
    assert_eq!(loaded.unwrap(), LoadSummary { entries: 1, left_out: 1, saved_ago: seconds(30) });
    assert!(cache.lookup(&other, s.now().instant).is_some());
    // A loaded entry still expires.
    s.time.step_wall(970);
    assert!(cache.lookup(&other, s.now().instant).is_none());
    assert_eq!(s.save(), 0);
    s.time.step_wall(-900);
    assert_eq!(s.save(), 1, "it is usable again once the clock is set right");
}

/// A file of this version has to read the same in every release: raise the version if this fails.
#[test]
fn the_file_format_matches_its_version() {
    let s = Fixture::new();
    let keys =
        [Key::SshKey([9; 32]), Key::UserOfKey(300), Key::UserById(300), Key::UserByName("rubi".into())];
    let digests = keys.map(|key| {
        s.cache.invalidate_all();
        s.keep(&key, EntryKind::Positive, USER);
        s.save();
        let file = fs::read(s.snapshot().path()).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &file);
        digest.as_ref()[..4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    });
    assert_eq!(digests, GOLDEN, "{digests:#x?}");
}

const GOLDEN: [u32; 4] = [0x06d8_59b2, 0xdd93_3b18, 0x4a0c_8705, 0x6c15_32da];

/// A purge ends before anything is saved, even if the client that asked for it has hung up.
#[tokio::test]
async fn running_blocking_tasks_are_waited_for() {
    let cache = Cache::new(&CacheSettings::default());
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let purging = cache.run_blocking(move |_| wait.recv());
    drop(purging);
    let mut quiet = Box::pin(cache.wait_for_blocking_tasks());
    assert!(futures_util::FutureExt::now_or_never(quiet.as_mut()).is_none());
    go.send(()).unwrap();
    quiet.await;
}

#[test]
fn purged_entries_are_not_saved() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.keep(&Key::UserById(8), EntryKind::Positive, USER);
    s.cache.invalidate(&KEY);
    assert_eq!(s.save(), 1);
    s.cache.invalidate_all();
    assert_eq!(s.save(), 0);
}
