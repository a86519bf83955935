//! Shadow checks: a few cached answers are compared with what Rails says now, in the background, so that
//! how often they are wrong is measured.
//!
//! Answers are sampled at random at a rate that the operator sets, and none while Rails is slow, since
//! no caller needs the check. Here are the sampling, the budget and the comparison; the layer sends the
//! requests.

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use parking_lot::Mutex;
use serde_json::Value;

use super::entry::Entry;
use super::key::Key;
use super::kind::EntryKind;
use super::refusal::Verdict;
use super::storable::NoStoreReason;
use crate::counters::Counters;
use crate::histogram::{Bounds, Histogram, micros};
use crate::route::Caching;

/// Section `[cache.shadow]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowSettings {
    /// One in so many fresh hits is sampled; 0 for none.
    pub one_in: u64,
    /// The most checks in a second.
    pub max_per_second: u32,
    /// A Rails that takes so long or longer counts as slow.
    pub slow_after: Duration,
}

impl Default for ShadowSettings {
    fn default() -> Self {
        Self { one_in: 1_000, max_per_second: 5, slow_after: Duration::from_millis(500) }
    }
}

/// How long there are no checks after Rails was slow or failed.
const PAUSE: Duration = Duration::from_secs(30);

/// What a check has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ShadowOutcome {
    /// Rails says the same.
    Agreed = 0,
    /// Rails does not know the key or the user any more, or refuses them.
    Revoked = 1,
    /// Rails says something else of the key or the user.
    Changed = 2,
    /// Rails knows a key or a user that it did not know.
    New = 3,
    /// Rails gave no answer that can be compared.
    Failed = 4,
}

impl ShadowOutcome {
    /// In the order of their numbers.
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

    /// Whether the cached answer is wrong.
    pub const fn is_wrong(self) -> bool {
        matches!(self, Self::Revoked | Self::Changed | Self::New)
    }
}

crate::counters::label!(ShadowOutcome);

/// For the ages of answers that turn out to be wrong.
pub const AGE_BOUNDS: Bounds<7> =
    micros([1_000_000, 5_000_000, 15_000_000, 30_000_000, 60_000_000, 300_000_000, 3_600_000_000]);

/// For the metrics.
#[derive(Debug, Default)]
pub struct ShadowCounters {
    /// Checks of keys.
    pub keys: Counters<ShadowOutcome>,
    /// Checks of users.
    pub users: Counters<ShadowOutcome>,
    /// The ages of wrong answers, within [`AGE_BOUNDS`].
    pub wrong_ages: Histogram<7>,
}

/// Samples the answers to check, and counts what was found.
#[derive(Debug)]
pub struct Shadow {
    settings: ShadowSettings,
    /// A random number up to this one is a sample; `None` if none is.
    sample_limit: Option<u64>,
    budget: Mutex<Budget>,
    counters: ShadowCounters,
}

#[derive(Debug, Default)]
struct Budget {
    window_start: Option<Instant>,
    spent: u32,
    paused_until: Option<Instant>,
}

impl Shadow {
    pub(super) fn new(settings: ShadowSettings) -> Self {
        let sample_limit = u64::MAX.checked_div(settings.one_in);
        Self { settings, sample_limit, budget: Mutex::default(), counters: ShadowCounters::default() }
    }

    /// Decides at random whether a fresh hit is checked. Called for each of them, so it takes no lock.
    pub fn sample(&self) -> bool {
        self.sample_limit.is_some_and(|limit| fastrand::u64(..) <= limit)
    }

    /// Whether one more check may run now; if so, it is counted.
    pub fn try_spend(&self, now: Instant) -> bool {
        let mut budget = self.budget.lock();
        if budget.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        if budget.window_start.is_none_or(|start| now >= start + Duration::from_secs(1)) {
            (budget.window_start, budget.spent) = (Some(now), 0);
        }
        budget.spent += 1;
        budget.spent <= self.settings.max_per_second
    }

    /// Rails took so long for an answer, or longer.
    pub fn record_latency(&self, latency: Duration, now: Instant) {
        if latency >= self.settings.slow_after {
            self.pause(now);
        }
    }

    /// Stops checks for some time.
    pub fn pause(&self, now: Instant) {
        self.budget.lock().paused_until = Some(now + PAUSE);
    }

    /// From which latency on Rails counts as slow.
    pub fn slow_after(&self) -> Duration {
        self.settings.slow_after
    }

    /// Counts the outcome of a check that began at `requested_at`, and logs one that found a wrong answer
    /// (`current` is the body that Rails gave).
    pub fn record_outcome(
        &self,
        key: &Key,
        cached: &Entry,
        requested_at: Instant,
        (outcome, current): (ShadowOutcome, &[u8]),
    ) {
        let (caching, age) = (key.caching(), cached.age(requested_at));
        let of_endpoint =
            if caching == Caching::Discover { &self.counters.users } else { &self.counters.keys };
        of_endpoint.increment(outcome);
        if outcome.is_wrong() {
            self.counters.wrong_ages.observe(age, &AGE_BOUNDS);
            let _span = crate::request_span::current().entered();
            tracing::warn!(
                found = outcome.as_str(),
                route = caching.as_str(),
                key = redacted_name(key),
                kept = hash(&cached.body()),
                said = hash(current),
                age_s = age.as_secs_f64(),
                "an answer from memory was not what Rails says; it is dropped"
            );
        }
    }

    /// For the metrics.
    pub fn counters(&self) -> &ShadowCounters {
        &self.counters
    }
}

/// Compares a cached answer with what Rails says now: the verdict on its refusal, its body, and whether that could
/// be stored.
pub fn compare(
    cached: &Entry,
    verdict: Verdict,
    body: &[u8],
    storable_kind: Result<EntryKind, NoStoreReason>,
) -> ShadowOutcome {
    let gone_or_new = match cached.kind {
        EntryKind::Positive => ShadowOutcome::Revoked,
        EntryKind::Negative => ShadowOutcome::New,
    };
    match (cached.kind, storable_kind) {
        (EntryKind::Positive, Ok(EntryKind::Positive)) if is_same(&cached.body(), body) => {
            ShadowOutcome::Agreed
        }
        (EntryKind::Positive, Ok(EntryKind::Positive)) => ShadowOutcome::Changed,
        (EntryKind::Negative, Ok(EntryKind::Negative)) => ShadowOutcome::Agreed,
        (_, Ok(_) | Err(NoStoreReason::Disabled | NoStoreReason::Expired)) => gone_or_new,
        // Newer releases answer so for a blocked owner (contract §0), but also for a caller's bad credential.
        (EntryKind::Positive, Err(NoStoreReason::Status | NoStoreReason::Shape))
            if verdict == Verdict::Refused && !is_about_caller(body) =>
        {
            ShadowOutcome::Revoked
        }
        // A page that says to come back later, an answer to another question, a redirect: it says nothing
        // of the key.
        _ => ShadowOutcome::Failed,
    }
}

/// How Rails refuses a caller (contract §2.2), newer releases before they read the body too.
const REFUSALS_OF_CALLERS: [&[u8]; 3] =
    [br#"{"message":"401 Unauthorized"}"#, br#"{"error":"Unauthorized"}"#, br#"{"message":"403 Forbidden"}"#];

fn is_about_caller(body: &[u8]) -> bool {
    REFUSALS_OF_CALLERS.contains(&body)
}

/// A field of a key in the answers of newer releases that changes with each use of the key.
const VOLATILE_FIELD: &str = "last_used_at";

fn is_same(cached: &[u8], current: &[u8]) -> bool {
    let without_volatile_field = |body: &[u8]| {
        let mut body = serde_json::from_slice::<Value>(body).unwrap_or_default();
        if let Value::Object(fields) = &mut body {
            fields.remove(VOLATILE_FIELD);
        }
        body
    };
    cached == current || without_volatile_field(cached) == without_volatile_field(current)
}

/// An SSH key as its fingerprint; any other key as the same kind of hash, of `user_id=7` and
/// the like.
fn redacted_name(key: &Key) -> String {
    match key {
        Key::SshKey(_) => key.display_name(),
        _ => hash(key.display_name().as_bytes()),
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest(&SHA256, bytes)))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::cache::headers::HeaderInterner;
    use crate::cache::lifetimes::Lifetimes;
    use crate::cache::refusal::judge;
    use crate::cache::storable::Storable;

    fn entry(kind: EntryKind, body: &str) -> Entry {
        let age_limits = Lifetimes::default().age_limits(Caching::Discover, kind);
        let storable = Storable { kind, age_limits, expires_at: None, subject_id: None };
        let with = (&HeaderInterner::default(), 0);
        Entry::new(StatusCode::OK, &HeaderMap::new(), body.as_bytes(), storable, Instant::now(), with)
    }

    #[test]
    fn a_cached_answer_is_compared_with_the_current_one() {
        const ROW: &str = r#"{"id":1,"key":"k","last_used_at":"x"}"#;
        let (positive, negative) = (entry(EntryKind::Positive, ROW), entry(EntryKind::Negative, "null"));
        let (known, unknown) = (Ok(EntryKind::Positive), Ok(EntryKind::Negative));
        for (entry, status, body, judged, outcome) in [
            (&positive, 200, ROW, known, ShadowOutcome::Agreed),
            (&positive, 200, r#"{ "key":"k", "id":1 }"#, known, ShadowOutcome::Agreed),
            (&positive, 200, r#"{"id":1,"key":"k","last_used_at":"y"}"#, known, ShadowOutcome::Agreed),
            (&positive, 200, r#"{"id":2,"key":"k","last_used_at":"x"}"#, known, ShadowOutcome::Changed),
            (&positive, 200, r#"{"id":1,"key":"k","expires_at":"x"}"#, known, ShadowOutcome::Changed),
            (&positive, 404, "", unknown, ShadowOutcome::Revoked),
            (&positive, 404, "", Err(NoStoreReason::Disabled), ShadowOutcome::Revoked),
            (&positive, 200, ROW, Err(NoStoreReason::Expired), ShadowOutcome::Revoked),
            (&positive, 200, "[]", Err(NoStoreReason::Shape), ShadowOutcome::Failed),
            (&positive, 200, "<html>", Err(NoStoreReason::Type), ShadowOutcome::Failed),
            (&positive, 200, "", Err(NoStoreReason::TooLarge), ShadowOutcome::Failed),
            (&positive, 401, r#"{"message":"401 Unauthorized - Key"}"#, unknown, ShadowOutcome::Revoked),
            (
                &positive,
                403,
                r#"{"message":"403 Blocked"}"#,
                Err(NoStoreReason::Status),
                ShadowOutcome::Revoked,
            ),
            (
                &positive,
                403,
                r#"{"message":"403 Forbidden"}"#,
                Err(NoStoreReason::Status),
                ShadowOutcome::Failed,
            ),
            (
                &positive,
                401,
                r#"{"message":"401 Unauthorized"}"#,
                Err(NoStoreReason::Status),
                ShadowOutcome::Failed,
            ),
            (
                &positive,
                401,
                r#"{"error":"Unauthorized"}"#,
                Err(NoStoreReason::Status),
                ShadowOutcome::Failed,
            ),
            (
                &positive,
                404,
                r#"{"message":"404 Not Found"}"#,
                Err(NoStoreReason::Status),
                ShadowOutcome::Revoked,
            ),
            (
                &positive,
                404,
                r#"{"message":"404 Not Found"}"#,
                Err(NoStoreReason::Shape),
                ShadowOutcome::Revoked,
            ),
            (
                &positive,
                403,
                r#"{"message":"Key is blocked"}"#,
                Err(NoStoreReason::Status),
                ShadowOutcome::Failed,
            ),
            (
                &positive,
                404,
                r#"{"error":"404 Not Found"}"#,
                Err(NoStoreReason::Shape),
                ShadowOutcome::Failed,
            ),
            (&positive, 200, ROW, Err(NoStoreReason::Mismatch), ShadowOutcome::Failed),
            (&negative, 200, "null", unknown, ShadowOutcome::Agreed),
            (&negative, 200, ROW, known, ShadowOutcome::New),
            (&negative, 200, ROW, Err(NoStoreReason::Disabled), ShadowOutcome::New),
            (&negative, 200, ROW, Err(NoStoreReason::Expired), ShadowOutcome::New),
            (&negative, 401, r#"{"message":"401 Unauthorized - Key"}"#, unknown, ShadowOutcome::Agreed),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                compare(entry, judge(status, body.as_bytes()), body.as_bytes(), judged),
                outcome,
                "{status} {body} {judged:?}"
            );
        }
        for status in [301, 400, 408, 429, 500, 502, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            for entry in [&positive, &negative] {
                assert_eq!(
                    compare(entry, judge(status, b""), b"", Err(NoStoreReason::Status)),
                    ShadowOutcome::Failed,
                    "{status}"
                );
            }
        }
    }

    #[test]
    fn checks_are_limited_and_paused_while_rails_is_slow() {
        let all = ShadowSettings { one_in: 1, max_per_second: 3, slow_after: Duration::from_millis(500) };
        let (shadow, begin) = (Shadow::new(all), Instant::now());
        let ms = Duration::from_millis;
        let drawn = |at| (0..100).filter(|_| shadow.sample() && shadow.try_spend(begin + at)).count();
        assert_eq!([drawn(ms(0)), drawn(ms(999)), drawn(ms(1_000)), drawn(ms(1_500))], [3, 0, 3, 0]);
        shadow.record_latency(ms(499), begin + ms(2_000));
        assert_eq!(drawn(ms(2_000)), 3);
        shadow.record_latency(ms(500), begin + ms(3_000));
        assert_eq!([drawn(ms(3_000)), drawn(ms(32_999)), drawn(ms(33_000))], [0, 0, 3]);
    }

    #[test]
    fn one_in_so_many_hits_is_sampled() {
        let of = |one_in| {
            Shadow::new(ShadowSettings { one_in, max_per_second: u32::MAX, ..ShadowSettings::default() })
        };
        let drawn = |shadow: &Shadow| (0..100_000).filter(|_| shadow.sample()).count();
        assert_eq!((drawn(&of(0)), drawn(&of(1))), (0, 100_000));
        // Eight standard deviations around 10,000.
        let tenth = drawn(&of(10));
        assert!((9_241..10_759).contains(&tenth), "{tenth}");
    }

    #[test]
    fn the_log_has_hashes_only() {
        let key = Key::UserByName("rubi".into());
        assert_eq!(redacted_name(&key), hash(b"username=rubi"));
        assert!(redacted_name(&Key::SshKey([7; 32])).starts_with("SHA256:BwcHB"));
    }
}
