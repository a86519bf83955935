//! Comparing answers from memory with Rails: when, and what comes of it.

use super::*;
use crate::cache::shadow::Verdict;
use crate::layer::testing::settle;
use std::sync::atomic::Ordering;

const PATH: &str = "/discover?key_id=7";

/// Every answer from memory is compared, up to three a second.
fn setting_that_compares() -> Setting {
    let mut settings = calm();
    (settings.shadow.one_in, settings.shadow.max_per_second) = (1, 3);
    setting_with(settings)
}

impl Setting {
    /// What a caller gets from memory, and what Rails says behind its back.
    async fn compare(&mut self, path: &str, said: Answer) {
        let asked = self.ask(path);
        let (request, reply) = self.taken().await;
        let answer = asked.await.unwrap().unwrap();
        assert!(status_of(&answer).starts_with("railgate; hit"), "the caller does not wait");
        assert_eq!(request.exchange.request.method(), Method::GET);
        assert_eq!(request.exchange.request.headers()["gitlab-shared-secret"], "eA==");
        reply.send_response(said);
        assert!(is_idle(&mut self.rails).await);
    }

    fn found(&self, verdict: Verdict) -> u64 {
        let counts = &self.cache.shadow().counts().verdicts;
        counts.iter().map(|of| of[verdict as usize].load(Ordering::Relaxed)).sum()
    }

    fn all_found(&self) -> [u64; 5] {
        Verdict::ALL.map(|verdict| self.found(verdict))
    }

    async fn is_kept(&mut self, path: &str) -> bool {
        // Beyond the budget, so that nothing is compared.
        while self.cache.shadow().may_spend(self.cache_time()) {}
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
async fn what_rails_says_too_is_kept() {
    let mut s = setting_that_compares();
    s.warm(PATH, USER).await;
    s.compare(PATH, Ok(json(200, USER))).await;
    assert_eq!(s.all_found(), [1, 0, 0, 0, 0]);
    assert!(s.is_kept(PATH).await);
}

#[tokio::test]
async fn what_rails_does_not_say_any_more_is_dropped() {
    let renamed = r#"{"id":7,"username":"ruby","name":"R"}"#;
    for (answer, verdict) in [
        ((200, "null"), Verdict::Revoked),
        ((401, r#"{"message":"401 Blocked"}"#), Verdict::Revoked),
        ((200, renamed), Verdict::Changed),
    ] {
        let mut s = setting_that_compares();
        s.warm(PATH, USER).await;
        s.compare(PATH, Ok(json(answer.0, answer.1))).await;
        assert_eq!(s.found(verdict), 1, "{answer:?}");
        assert!(!s.is_kept(PATH).await, "{answer:?}");
    }
    let mut s = setting_that_compares();
    s.warm(PATH, "null").await;
    s.compare(PATH, Ok(json(200, USER))).await;
    assert_eq!(s.found(Verdict::New), 1);
    assert!(!s.is_kept(PATH).await);
}

#[tokio::test]
async fn what_says_nothing_of_the_answer_changes_nothing() {
    let key = "/authorized_keys?key=AAAAC3Nz";
    let row = r#"{"id":1,"key":"ssh-ed25519 AAAAC3Nz"}"#;
    let refused = || Err(Failure::Upstream(upstream::Error::Connect("r".into(), std::io::Error::other("x"))));
    let answers: [fn() -> Answer; 5] = [
        refused,
        || Ok(json(503, "{}")),
        || Ok(json(429, "{}")),
        || Ok(json(401, r#"{"message":"401 Unauthorized"}"#)),
        || Ok(json(200, r#"{"id":2,"key":"ssh-ed25519 AAAAC3Ny"}"#)),
    ];
    for answer in answers {
        let mut s = setting_that_compares();
        s.warm(key, row).await;
        s.compare(key, answer()).await;
        assert_eq!(s.all_found(), [0, 0, 0, 0, 1]);
        assert!(s.is_kept(key).await);
    }
}

#[tokio::test]
async fn no_more_is_compared_than_may_be() {
    let mut s = setting_that_compares();
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
    assert_eq!(s.found(Verdict::Agreed), 4);
}

#[tokio::test]
async fn nothing_is_compared_that_is_stale_or_of_the_instance() {
    let mut s = setting_that_compares();
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
async fn a_slow_rails_is_left_alone() {
    let mut s = setting_that_compares();
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
    assert_eq!(s.found(Verdict::Revoked), 1, "what it says counts all the same");
}

#[tokio::test]
async fn nor_one_that_was_slow_to_answer_somebody_else_or_fails() {
    let mut s = setting_that_compares();
    s.warm(PATH, USER).await;
    let other = s.ask("/discover?key_id=8");
    let (_, reply) = s.taken().await;
    s.time.advance(Duration::from_millis(500));
    reply.send_response(Ok(json(200, USER)));
    other.await.unwrap().unwrap();
    assert!(s.ask(PATH).await.unwrap().is_ok());
    assert!(is_idle(&mut s.rails).await);

    let mut s = setting_that_compares();
    s.warm(PATH, USER).await;
    let other = s.ask("/discover?key_id=8");
    let (_, reply) = s.taken().await;
    reply.send_response(Ok(json(503, "{}")));
    other.await.unwrap().unwrap();
    assert!(s.ask(PATH).await.unwrap().is_ok());
    assert!(is_idle(&mut s.rails).await);
}

/// What is compared is the answer that the caller got. If it is gone meanwhile, nothing is brought back.
#[tokio::test]
async fn a_purge_meanwhile_is_not_undone() {
    let mut s = setting_that_compares();
    s.warm(PATH, USER).await;
    let asked = s.ask(PATH);
    let (_, reply) = s.taken().await;
    asked.await.unwrap().unwrap();
    s.cache.invalidate(&Key::UserOfKey(7));
    reply.send_response(Ok(json(200, USER)));
    assert!(is_idle(&mut s.rails).await);
    assert_eq!(s.found(Verdict::Agreed), 1);
    assert!(!s.is_kept(PATH).await);
}
