//! Shadow checks: when they run, and what they do.

use super::*;
use crate::cache::shadow::ShadowOutcome;
use crate::layer::testing::settle;

const PATH: &str = "/discover?key_id=7";

/// Checks every fresh hit, up to three a second.
fn fixture_with_checks() -> Fixture {
    let mut settings = calm();
    (settings.shadow.one_in, settings.shadow.max_per_second) = (1, 3);
    fixture_with(settings)
}

impl Fixture {
    /// Sends a request that hits, and lets Rails answer the check with `current`.
    async fn compare(&mut self, path: &str, current: LayerResult) {
        let asked = self.ask(path);
        let (request, reply) = self.taken().await;
        let answer = asked.await.unwrap().unwrap();
        assert!(status_of(&answer).starts_with("railgate; hit"), "the caller does not wait");
        assert_eq!(request.exchange.request.method(), Method::GET);
        assert_eq!(request.exchange.request.headers()["gitlab-shared-secret"], "eA==");
        reply.send_response(current);
        assert!(is_idle(&mut self.rails).await);
    }

    fn found(&self, outcome: ShadowOutcome) -> u64 {
        let counters = self.cache.shadow().counters();
        counters.keys.get(outcome) + counters.users.get(outcome)
    }

    fn all_found(&self) -> [u64; 5] {
        ShadowOutcome::ALL.map(|outcome| self.found(outcome))
    }

    async fn is_still_cached(&mut self, path: &str) -> bool {
        // Spends the budget, so that nothing is checked.
        while self.cache.shadow().try_spend(self.cache_time()) {}
        let asked = self.ask(path);
        settle().await;
        if asked.is_finished() {
            return true;
        }
        let (_, reply) = self.taken().await;
        reply.send_response(Ok(json(500, "{}")));
        asked.await.unwrap().unwrap();
        false
    }

    fn cache_time(&self) -> Instant {
        Clock::Manual(self.time.clone()).now()
    }
}

#[tokio::test]
async fn an_entry_that_agrees_is_kept() {
    let mut s = fixture_with_checks();
    s.warm(PATH, USER).await;
    s.compare(PATH, Ok(json(200, USER))).await;
    assert_eq!(s.all_found(), [1, 0, 0, 0, 0]);
    assert!(s.is_still_cached(PATH).await);
}

#[tokio::test]
async fn an_entry_that_is_wrong_is_dropped() {
    let renamed = r#"{"id":7,"username":"ruby","name":"R"}"#;
    for (answer, outcome) in [
        ((200, "null"), ShadowOutcome::Revoked),
        ((401, r#"{"message":"401 Blocked"}"#), ShadowOutcome::Revoked),
        ((200, renamed), ShadowOutcome::Changed),
    ] {
        let mut s = fixture_with_checks();
        s.warm(PATH, USER).await;
        s.compare(PATH, Ok(json(answer.0, answer.1))).await;
        assert_eq!(s.found(outcome), 1, "{answer:?}");
        assert!(!s.is_still_cached(PATH).await, "{answer:?}");
    }
    let mut s = fixture_with_checks();
    s.warm(PATH, "null").await;
    s.compare(PATH, Ok(json(200, USER))).await;
    assert_eq!(s.found(ShadowOutcome::New), 1);
    assert!(!s.is_still_cached(PATH).await);
}

#[tokio::test]
async fn an_inconclusive_answer_changes_nothing() {
    let key = "/authorized_keys?key=AAAAC3Nz";
    let row = r#"{"id":1,"key":"ssh-ed25519 AAAAC3Nz"}"#;
    let refused =
        || Err(Failure::Upstream(upstream::Error::Connect("r".into(), std::io::Error::other("x").into())));
    let answers: [fn() -> LayerResult; 5] = [
        refused,
        || Ok(json(503, "{}")),
        || Ok(json(429, "{}")),
        || Ok(json(404, r#"{"error":"404 Not Found"}"#)),
        || Ok(json(200, r#"{"id":2,"key":"ssh-ed25519 AAAAC3Ny"}"#)),
    ];
    for answer in answers {
        let mut s = fixture_with_checks();
        s.warm(key, row).await;
        s.compare(key, answer()).await;
        assert_eq!(s.all_found(), [0, 0, 0, 0, 1]);
        assert!(s.is_still_cached(key).await);
    }
}

#[tokio::test]
async fn a_refusal_drops_the_entry_as_a_fill_would() {
    for (status, body, outcome) in [
        (404, r#"{"message":"404 Not Found"}"#, ShadowOutcome::Revoked),
        (403, r#"{"message":"403 Forbidden - Your account is blocked."}"#, ShadowOutcome::Revoked),
        // Perhaps of the caller alone.
        (401, r#"{"message":"401 Unauthorized"}"#, ShadowOutcome::Failed),
        (401, r#"{"error":"Unauthorized"}"#, ShadowOutcome::Failed),
        (403, r#"{"message":"403 Forbidden"}"#, ShadowOutcome::Failed),
    ] {
        let key = "/authorized_keys?key=AAAAC3Nz";
        for (path, cached) in [(PATH, USER), (key, r#"{"id":1,"key":"ssh-ed25519 AAAAC3Nz"}"#)] {
            let mut s = fixture_with_checks();
            s.warm(path, cached).await;
            s.compare(path, Ok(json(status, body))).await;
            assert_eq!(s.found(outcome), 1, "{path} {body}");
            assert!(!s.is_still_cached(path).await, "{path} {body}");
        }
    }
}

#[tokio::test]
async fn a_refusal_in_unknown_words_ends_only_the_use_if_rails_fails() {
    let mut s = fixture_with_checks();
    s.warm(PATH, USER).await;
    s.compare(PATH, Ok(json(403, r#"{"message":"Key is blocked"}"#))).await;
    assert_eq!(s.found(ShadowOutcome::Failed), 1);
    assert!(s.is_still_cached(PATH).await);
    s.time.advance(Duration::from_secs(100));
    assert!(!s.is_still_cached(PATH).await);
}

#[tokio::test]
async fn checks_stay_within_the_budget() {
    let mut s = fixture_with_checks();
    s.warm(PATH, USER).await;
    for _ in 0..3 {
        s.compare(PATH, Ok(json(200, USER))).await;
    }
    for _ in 0..10 {
        assert!(s.ask(PATH).await.unwrap().is_ok());
    }
    assert!(is_idle(&mut s.rails).await);
    s.time.advance(Duration::from_secs(1));
    s.compare(PATH, Ok(json(200, USER))).await;
    assert_eq!(s.found(ShadowOutcome::Agreed), 4);
}

#[tokio::test]
async fn stale_entries_and_the_instance_are_not_checked() {
    let mut s = fixture_with_checks();
    s.warm("/check", r#"{"api_version":"v4","redis":true}"#).await;
    assert!(s.ask("/check").await.unwrap().is_ok());
    assert!(is_idle(&mut s.rails).await);
    s.warm(PATH, USER).await;
    s.time.advance(Duration::from_secs(70));
    let asked = s.ask(PATH);
    let (_, reply) = s.taken().await;
    reply.send_response(Ok(json(200, USER)));
    assert!(status_of(&asked.await.unwrap().unwrap()).contains("stale"));
    assert!(is_idle(&mut s.rails).await);
    assert_eq!(s.all_found(), [0; 5]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_pauses_checks() {
    let mut s = fixture_with_checks();
    s.warm(PATH, USER).await;
    let asked = s.ask(PATH);
    let (_, reply) = s.taken().await;
    assert!(asked.await.unwrap().is_ok());
    // It has not answered yet, and is slow already.
    tokio::time::advance(Duration::from_millis(500)).await;
    s.time.advance(Duration::from_secs(29));
    assert!(s.ask(PATH).await.unwrap().is_ok());
    assert!(is_idle(&mut s.rails).await);
    reply.send_response(Ok(json(200, "null")));
    settle().await;
    assert_eq!(s.found(ShadowOutcome::Revoked), 1, "its answer counts nevertheless");
}

#[tokio::test]
async fn a_slow_or_failed_fill_pauses_checks() {
    let mut s = fixture_with_checks();
    s.warm(PATH, USER).await;
    let other = s.ask("/discover?key_id=8");
    let (_, reply) = s.taken().await;
    s.time.advance(Duration::from_millis(500));
    reply.send_response(Ok(json(200, USER)));
    other.await.unwrap().unwrap();
    assert!(s.ask(PATH).await.unwrap().is_ok());
    assert!(is_idle(&mut s.rails).await);

    let mut s = fixture_with_checks();
    s.warm(PATH, USER).await;
    let other = s.ask("/discover?key_id=8");
    let (_, reply) = s.taken().await;
    reply.send_response(Ok(json(503, "{}")));
    other.await.unwrap().unwrap();
    assert!(s.ask(PATH).await.unwrap().is_ok());
    assert!(is_idle(&mut s.rails).await);
}

/// The entry that is compared is the one that was served. If it was purged meanwhile, it does not come back.
#[tokio::test]
async fn a_check_does_not_undo_a_purge() {
    let mut s = fixture_with_checks();
    s.warm(PATH, USER).await;
    let asked = s.ask(PATH);
    let (_, reply) = s.taken().await;
    asked.await.unwrap().unwrap();
    s.cache.invalidate(&Key::UserOfKey(7));
    reply.send_response(Ok(json(200, USER)));
    assert!(is_idle(&mut s.rails).await);
    assert_eq!(s.found(ShadowOutcome::Agreed), 1);
    assert!(!s.is_still_cached(PATH).await);
}
