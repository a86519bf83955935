//! Whether what is kept is still what Rails says: a few answers from memory are compared with Rails,
//! behind the callers' backs, so that how often they are wrong is known and not believed.
//!
//! Which answers, at random; how many, the operator says; none while Rails is slow, since a check is
//! nobody's need. Here are the draw, the budget and the verdict; who asks is the layer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;

use super::entry::{Entry, Sign};
use super::freshness::NoStore;
use super::inspect;
use super::key::Key;
use crate::route::Caching;

/// What `[cache.shadow]` of the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of how many answers from memory one is compared; 0 if none is.
    pub one_in: u64,
    /// How many are compared in a second, at most.
    pub max_per_second: u32,
    /// From which time on Rails is slow.
    pub slow: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { one_in: 1_000, max_per_second: 5, slow: Duration::from_millis(500) }
    }
}

/// How long a Rails that was slow is left alone.
const PAUSE: Duration = Duration::from_secs(30);

/// What a comparison has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Verdict {
    /// Rails says the same.
    Agreed = 0,
    /// Rails does not know, or does not let in, whom it knew.
    Revoked = 1,
    /// Rails says something else of the key or the user.
    Changed = 2,
    /// Rails knows somebody whom it did not know.
    New = 3,
    /// Rails said nothing that could be compared.
    Failed = 4,
}

impl Verdict {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Agreed, Self::Revoked, Self::Changed, Self::New, Self::Failed];

    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agreed => "agreed",
            Self::Revoked => "revoked",
            Self::Changed => "changed",
            Self::New => "new",
            Self::Failed => "failed",
        }
    }

    /// Whether what is kept is wrong.
    pub const fn is_wrong(self) -> bool {
        matches!(self, Self::Revoked | Self::Changed | Self::New)
    }
}

/// How old answers are that turn out to be wrong: up to so many seconds.
pub const AGES: [f64; 8] = [1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 3_600.0, f64::INFINITY];

/// What has been found so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Comparisons: of keys and of users, by [`Verdict`].
    pub verdicts: [[AtomicU64; Verdict::ALL.len()]; 2],
    /// Wrong answers, by the first of [`AGES`] that they are not older than.
    pub wrong: [AtomicU64; AGES.len()],
    /// The sum of their ages, in milliseconds.
    pub wrong_ms: AtomicU64,
}

/// Draws the answers that are compared.
#[derive(Debug)]
pub struct Shadow {
    settings: Settings,
    /// Numbers up to this one are drawn; `None` if none are.
    limit: Option<u64>,
    budget: Mutex<Budget>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Budget {
    second: Option<Instant>,
    spent: u32,
    paused_until: Option<Instant>,
}

impl Shadow {
    pub(super) fn new(settings: Settings) -> Self {
        let limit = u64::MAX.checked_div(settings.one_in);
        Self { settings, limit, budget: Mutex::default(), counts: Counts::default() }
    }

    /// Whether an answer from memory that has just been given is among those that are compared. Asked for
    /// each of them, so it takes no lock.
    pub fn draws(&self) -> bool {
        self.limit.is_some_and(|limit| fastrand::u64(..) <= limit)
    }

    /// Whether one more may be compared now.
    pub fn may_spend(&self, now: Instant) -> bool {
        let mut budget = self.budget.lock();
        if budget.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        if budget.second.is_none_or(|second| now >= second + Duration::from_secs(1)) {
            (budget.second, budget.spent) = (Some(now), 0);
        }
        budget.spent += 1;
        budget.spent <= self.settings.max_per_second
    }

    /// Rails needed so long for an answer, or has not given it yet.
    pub fn took(&self, time: Duration, now: Instant) {
        if time >= self.settings.slow {
            self.pause(now);
        }
    }

    /// Rails fails.
    pub fn pause(&self, now: Instant) {
        self.budget.lock().paused_until = Some(now + PAUSE);
    }

    /// From which time on Rails is slow.
    pub fn slow(&self) -> Duration {
        self.settings.slow
    }

    /// Counts what a comparison has shown of what is kept, at `asked`; and writes down what is wrong.
    pub fn found(&self, key: &Key, kept: &Entry, asked: Instant, (verdict, said): (Verdict, &[u8])) {
        let (caching, age) = (key.caching(), kept.age(asked));
        let of_endpoint = self.counts.verdicts.get(usize::from(caching == Caching::Discover));
        if let Some(count) = of_endpoint.and_then(|counts| counts.get(verdict as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if verdict.is_wrong() {
            let place = AGES.iter().position(|most| age.as_secs_f64() <= *most).unwrap_or(AGES.len() - 1);
            if let Some(count) = self.counts.wrong.get(place) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            let ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            self.counts.wrong_ms.fetch_add(ms, Ordering::Relaxed);
            tracing::warn!(
                found = verdict.as_str(),
                route = caching.as_str(),
                key = name_without_names(key),
                kept = hash(kept.body()),
                said = hash(said),
                age_s = age.as_secs_f64(),
                "an answer from memory was not what Rails says; it is dropped"
            );
        }
    }

    /// What has been found so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// Compares what is kept with what Rails says now: its status, its body, and how that is judged.
pub fn compare(kept: &Entry, status: StatusCode, body: &[u8], judged: Result<Sign, NoStore>) -> Verdict {
    let not_what_it_was = match kept.sign {
        Sign::Positive => Verdict::Revoked,
        Sign::Negative => Verdict::New,
    };
    match (kept.sign, judged) {
        (Sign::Positive, Ok(Sign::Positive)) if is_same(kept.body(), body) => Verdict::Agreed,
        (Sign::Positive, Ok(Sign::Positive)) => Verdict::Changed,
        (Sign::Negative, Ok(Sign::Negative)) => Verdict::Agreed,
        (_, Ok(_) | Err(NoStore::Disabled | NoStore::Expired)) => not_what_it_was,
        // Newer releases say so of an expired key or a blocked owner (contract §0), but they also say it
        // of a caller's credential.
        (Sign::Positive, Err(NoStore::Status)) if is_refused(status) && !is_about_the_caller(body) => {
            Verdict::Revoked
        }
        // A page that says to come back later, an answer to another question, a redirect: it says nothing
        // of the key.
        _ => Verdict::Failed,
    }
}

const fn is_refused(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// How Rails refuses a caller (contract §2.2), newer releases before they read the body too.
const REFUSALS_OF_CALLERS: [&[u8]; 3] =
    [br#"{"message":"401 Unauthorized"}"#, br#"{"error":"Unauthorized"}"#, br#"{"message":"403 Forbidden"}"#];

fn is_about_the_caller(body: &[u8]) -> bool {
    REFUSALS_OF_CALLERS.contains(&body)
}

/// What an answer of newer releases tells of a key beside what it is: each use of it changes that.
const RESTLESS: &str = "last_used_at";

fn is_same(kept: &[u8], said: &[u8]) -> bool {
    let without = |body: &[u8]| {
        let mut body = serde_json::from_slice::<Value>(body).unwrap_or_default();
        if let Value::Object(fields) = &mut body {
            fields.remove(RESTLESS);
        }
        body
    };
    kept == said || without(kept) == without(said)
}

/// An SSH key as its fingerprint; what else is asked for as the same kind of hash, of `user_id=7` and
/// the like.
fn name_without_names(key: &Key) -> String {
    match key {
        Key::SshKey(_) => inspect::name(key),
        _ => hash(inspect::name(key).as_bytes()),
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest(&SHA256, bytes)))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::cache::Lifetimes;
    use crate::cache::entry::Heads;
    use crate::cache::freshness::Storable;

    fn kept(sign: Sign, body: &str) -> Entry {
        let ages = Lifetimes::default().of(Caching::Discover, sign);
        let storable = Storable { sign, ages, expires: None, subject: None };
        let with = (&Heads::default(), 0);
        Entry::new(StatusCode::OK, &HeaderMap::new(), body.as_bytes(), storable, Instant::now(), with)
    }

    #[test]
    fn what_rails_says_now_is_a_verdict_on_what_it_said() {
        const ROW: &str = r#"{"id":1,"key":"k","last_used_at":"x"}"#;
        let (positive, negative) = (kept(Sign::Positive, ROW), kept(Sign::Negative, "null"));
        let (known, unknown) = (Ok(Sign::Positive), Ok(Sign::Negative));
        for (entry, status, body, judged, verdict) in [
            (&positive, 200, ROW, known, Verdict::Agreed),
            (&positive, 200, r#"{ "key":"k", "id":1 }"#, known, Verdict::Agreed),
            (&positive, 200, r#"{"id":1,"key":"k","last_used_at":"y"}"#, known, Verdict::Agreed),
            (&positive, 200, r#"{"id":2,"key":"k","last_used_at":"x"}"#, known, Verdict::Changed),
            (&positive, 200, r#"{"id":1,"key":"k","expires_at":"x"}"#, known, Verdict::Changed),
            (&positive, 404, "", unknown, Verdict::Revoked),
            (&positive, 404, "", Err(NoStore::Disabled), Verdict::Revoked),
            (&positive, 200, ROW, Err(NoStore::Expired), Verdict::Revoked),
            (&positive, 200, "[]", Err(NoStore::Shape), Verdict::Failed),
            (&positive, 200, "<html>", Err(NoStore::Type), Verdict::Failed),
            (&positive, 200, "", Err(NoStore::TooLarge), Verdict::Failed),
            (&positive, 401, r#"{"message":"401 Unauthorized - Key"}"#, unknown, Verdict::Revoked),
            (&positive, 403, r#"{"message":"403 Blocked"}"#, Err(NoStore::Status), Verdict::Revoked),
            (&positive, 403, r#"{"message":"403 Forbidden"}"#, Err(NoStore::Status), Verdict::Failed),
            (&positive, 401, r#"{"message":"401 Unauthorized"}"#, Err(NoStore::Status), Verdict::Failed),
            (&positive, 401, r#"{"error":"Unauthorized"}"#, Err(NoStore::Status), Verdict::Failed),
            (&positive, 404, r#"{"error":"404 Not Found"}"#, Err(NoStore::Shape), Verdict::Failed),
            (&positive, 200, ROW, Err(NoStore::Mismatch), Verdict::Failed),
            (&negative, 200, "null", unknown, Verdict::Agreed),
            (&negative, 200, ROW, known, Verdict::New),
            (&negative, 200, ROW, Err(NoStore::Disabled), Verdict::New),
            (&negative, 200, ROW, Err(NoStore::Expired), Verdict::New),
            (&negative, 401, r#"{"message":"401 Unauthorized - Key"}"#, unknown, Verdict::Agreed),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                compare(entry, status, body.as_bytes(), judged),
                verdict,
                "{status} {body} {judged:?}"
            );
        }
        for status in [301, 400, 408, 429, 500, 502, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            for entry in [&positive, &negative] {
                assert_eq!(compare(entry, status, b"", Err(NoStore::Status)), Verdict::Failed, "{status}");
            }
        }
    }

    #[test]
    fn no_more_are_drawn_than_the_budget_allows_and_none_while_rails_is_slow() {
        let all = Settings { one_in: 1, max_per_second: 3, slow: Duration::from_millis(500) };
        let (shadow, begin) = (Shadow::new(all), Instant::now());
        let ms = Duration::from_millis;
        let drawn = |at| (0..100).filter(|_| shadow.draws() && shadow.may_spend(begin + at)).count();
        assert_eq!([drawn(ms(0)), drawn(ms(999)), drawn(ms(1_000)), drawn(ms(1_500))], [3, 0, 3, 0]);
        shadow.took(ms(499), begin + ms(2_000));
        assert_eq!(drawn(ms(2_000)), 3);
        shadow.took(ms(500), begin + ms(3_000));
        assert_eq!([drawn(ms(3_000)), drawn(ms(32_999)), drawn(ms(33_000))], [0, 0, 3]);
    }

    #[test]
    fn one_in_so_many_is_drawn() {
        let of = |one_in| Shadow::new(Settings { one_in, max_per_second: u32::MAX, ..Settings::default() });
        let drawn = |shadow: &Shadow| (0..100_000).filter(|_| shadow.draws()).count();
        assert_eq!((drawn(&of(0)), drawn(&of(1))), (0, 100_000));
        // Eight standard deviations around 10,000.
        let tenth = drawn(&of(10));
        assert!((9_241..10_759).contains(&tenth), "{tenth}");
    }

    #[test]
    fn the_log_has_hashes_only() {
        let key = Key::UserByName("rubi".into());
        assert_eq!(name_without_names(&key), hash(b"username=rubi"));
        assert!(name_without_names(&Key::SshKey([7; 32])).starts_with("SHA256:BwcHB"));
    }
}
