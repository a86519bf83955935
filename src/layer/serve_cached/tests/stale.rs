//! Stale entries: when they are served, when they are not, and which requests Rails gets meanwhile.

use super::*;
use crate::cache::storable::Storable;
use crate::cache::{EntryKind, Lifetimes};
use crate::layer::testing::settle;
use crate::progress::LastAnswer;
use crate::upstream::{ShedReason, TimeLimit};

mod doubted;
mod unusable;

const PATH: &str = "/discover?key_id=7";
const SWR: &str = "; detail=stale_while_revalidate";
const SIE: &str = "; detail=stale_if_error";
const RENEWED: &str = r#"{"id":7,"username":"ruby","name":"R"}"#;

fn timed_out(limit: TimeLimit, is_silent: bool) -> upstream::Error {
    upstream::Error::Timeout { after: Duration::from_secs(10), limit, is_silent, unreachable: None }
}

fn refused() -> LayerResult {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    Err(Failure::Upstream(upstream::Error::Connect("rails".into(), refused.into())))
}

impl Fixture {
    fn after(&self, seconds: u64) {
        self.time.advance(Duration::from_secs(seconds));
    }

    fn now(&self) -> Instant {
        Clock::Manual(self.time.clone()).now()
    }

    /// Moves the manual clock together with tokio's; with `answers`, the server answers all the time.
    fn ticks(&self, answers: Option<Arc<LastAnswer>>) -> JoinHandle<()> {
        const TICK: Duration = Duration::from_millis(100);
        let time = self.time.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                time.advance(TICK);
                if let Some(last) = &answers {
                    last.record(Clock::Manual(time.clone()).now());
                }
            }
        })
    }

    async fn reply(&mut self, answer: LayerResult) {
        let (_, reply) = self.taken().await;
        reply.send_response(answer);
        // Background work has to end first.
        assert!(is_idle(&mut self.rails).await);
    }

    /// The result of a request that Rails gets and answers with `answer`.
    async fn ask_with(&mut self, path: &str, answer: LayerResult) -> LayerResult {
        let asked = self.ask(path);
        self.reply(answer).await;
        asked.await.unwrap()
    }

    /// The `Cache-Status` of a request that is answered without waiting for Rails.
    async fn ask_memory(&mut self, path: &str) -> String {
        let asked = self.ask(path);
        settle().await;
        assert!(asked.is_finished(), "has to wait for Rails");
        status_of(&asked.await.unwrap().unwrap()).to_owned()
    }
}

#[tokio::test]
async fn a_stale_answer_is_served_while_one_refresh_runs() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(70);
    let asked = s.ask(PATH);
    let (request, reply) = s.taken().await;
    assert_eq!(request.exchange.request.uri().query(), Some("key_id=7"));
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(status_of(&answer), format!("railgate; hit; ttl=-10{SWR}"));
    assert_eq!(answer.headers()["age"], "70");
    assert_eq!(text(answer).await, USER);
    for _ in 0..10 {
        assert!(s.ask_memory(PATH).await.ends_with(SWR));
    }
    assert!(is_idle(&mut s.rails).await, "one refresh a key");
    reply.send_response(Ok(json(200, RENEWED)));
    assert!(is_idle(&mut s.rails).await);
    let answer = s.ask(PATH).await.unwrap().unwrap();
    assert_eq!(status_of(&answer), "railgate; hit; ttl=60");
    assert_eq!(text(answer).await, RENEWED);
}

#[tokio::test]
async fn after_the_revalidate_window_callers_wait_for_rails() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    let answer = s.ask_with(PATH, Ok(json(200, RENEWED))).await.unwrap();
    assert_eq!(status_of(&answer), "railgate; fwd=miss; stored");
    assert_eq!(text(answer).await, RENEWED);
}

#[tokio::test]
async fn a_rails_failure_is_covered_by_the_stale_answer() {
    let timeout = || Err(Failure::Upstream(timed_out(TimeLimit::Response, true)));
    let hold_full = || {
        Err(Failure::Upstream(upstream::Error::HoldFull(
            "rails".into(),
            std::io::Error::other("away").into(),
        )))
    };
    let broke_off = || {
        let stalled = crate::body::Error::Stalled(Duration::from_secs(1));
        Err(Failure::Upstream(upstream::Error::ResponseBody(stalled)))
    };
    let hung = || Err(Failure::Upstream(timed_out(TimeLimit::Total, true)));
    let failures: [fn() -> LayerResult; 9] = [
        refused,
        hold_full,
        timeout,
        hung,
        broke_off,
        || Ok(json(500, "{}")),
        || Ok(json(502, "{}")),
        || Ok(json(503, "{}")),
        || Ok(json(504, "{}")),
    ];
    for failure in failures {
        let mut s = fixture();
        s.warm(PATH, USER).await;
        s.after(100);
        let answer = s.ask_with(PATH, failure()).await.unwrap();
        assert_eq!(status_of(&answer), format!("railgate; hit; ttl=-40{SIE}"));
        assert_eq!(answer.headers()["age"], "100");
        assert_eq!(text(answer).await, USER);
    }
}

/// Or revoked keys would be served for as long as other requests keep Rails busy.
#[tokio::test]
async fn a_busy_rails_is_not_covered_by_a_stale_answer() {
    let failures: [fn() -> upstream::Error; 10] = [
        // Too many open files.
        || upstream::Error::Connect("rails".into(), std::io::Error::from_raw_os_error(24).into()),
        || upstream::Error::HoldFull("rails".into(), std::io::Error::from_raw_os_error(24).into()),
        || upstream::Error::Shed(ShedReason::QueueFull),
        || upstream::Error::Shed(ShedReason::QueueTimeout),
        || upstream::Error::Shed(ShedReason::QueueTooSlow),
        || upstream::Error::CredentialExpires("rails".into(), None),
        || timed_out(TimeLimit::Response, false),
        || timed_out(TimeLimit::Total, false),
        || timed_out(TimeLimit::Shortened, false),
        || upstream::Error::Unusable("x"),
    ];
    for failure in failures {
        let mut s = fixture();
        s.warm(PATH, USER).await;
        s.after(100);
        let (leads, follows) = (s.ask(PATH), s.ask(PATH));
        let (_, reply) = s.taken().await;
        reply.send_response(Err(Failure::Upstream(failure())));
        let leads = leads.await.unwrap();
        assert!(leads.is_err(), "{:?}", failure());
        // The follower gets the same error, or asks Rails itself.
        settle().await;
        if !follows.is_finished() {
            s.reply(Err(Failure::Upstream(failure()))).await;
        }
        assert_eq!(follows.await.unwrap().unwrap_err().status(), leads.unwrap_err().status());
        // Nor does it start an outage, or drop the entry.
        let asked = s.ask(PATH);
        let (request, reply) = s.taken().await;
        assert_eq!(request.wait_policy, WaitPolicy::ForPermit, "{:?}", failure());
        reply.send_response(refused());
        assert!(status_of(&asked.await.unwrap().unwrap()).ends_with(SIE));
    }
}

#[tokio::test]
async fn during_an_outage_no_caller_waits_and_one_request_a_second_is_sent() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    assert!(s.ask_with(PATH, refused()).await.is_ok());
    for _ in 0..3 {
        for _ in 0..50 {
            assert!(s.ask_memory(PATH).await.ends_with(SIE));
        }
        assert!(is_idle(&mut s.rails).await);
        s.after(1);
        for _ in 0..50 {
            assert!(s.ask_memory(PATH).await.ends_with(SIE));
        }
        s.reply(refused()).await;
    }
    // The greatest age still holds.
    s.after(3_600);
    assert!(s.ask_with(PATH, refused()).await.is_err());
}

#[tokio::test]
async fn after_an_outage_concurrent_refreshes_are_limited() {
    let mut s = fixture_with(CacheSettings { max_refreshes: 2, ..calm() });
    let path = |id: usize| format!("/discover?key_id={id}");
    for id in 1..=20 {
        s.warm(&path(id), USER).await;
    }
    s.after(100);
    assert!(s.ask_with(&path(1), refused()).await.is_ok());
    s.after(1);
    assert!(status_of(&s.ask_with(&path(1), Ok(json(200, USER))).await.unwrap()).ends_with(SIE));
    assert_eq!(s.ask_memory(&path(1)).await, "railgate; hit; ttl=60");
    let mut renewals = 0;
    for _ in 0..9 {
        for id in 2..=20 {
            assert!(s.ask_memory(&path(id)).await.starts_with("railgate; hit"));
        }
        let (_, first) = s.taken().await;
        let (_, second) = s.taken().await;
        renewals += 2;
        assert!(is_idle(&mut s.rails).await, "two at a time");
        for reply in [first, second] {
            reply.send_response(Ok(json(200, USER)));
        }
        assert!(is_idle(&mut s.rails).await);
    }
    assert_eq!(renewals, 18);
    // After the recovery, callers of the other keys wait for Rails again.
    s.after(10);
    assert!(!s.ask(&path(20)).is_finished() && !is_idle(&mut s.rails).await);
}

#[tokio::test]
async fn many_callers_with_a_stale_answer_cause_one_request_and_see_no_failure() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    let callers: Vec<_> = (0..1_000).map(|_| s.ask(PATH)).collect();
    let (_, reply) = s.taken().await;
    assert!(is_idle(&mut s.rails).await);
    // The leader may hang up.
    callers[0].abort();
    assert!(is_idle(&mut s.rails).await);
    reply.send_response(refused());
    for caller in callers.into_iter().skip(1) {
        assert!(status_of(&caller.await.unwrap().unwrap()).ends_with(SIE));
    }
    assert!(is_idle(&mut s.rails).await);
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_stale_answer_waits_for_stale_wait_only() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    let _ticking = s.ticks(None);
    let (leads, follows) = (s.ask(PATH), s.ask(PATH));
    let (request, reply) = s.taken().await;
    // The time in the queue does not count.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!leads.is_finished() && !follows.is_finished());
    let begun = tokio::time::Instant::now();
    request.progress.unwrap().record_sent(s.now(), &Arc::new(LastAnswer::new(s.now())));
    for asked in [leads, follows] {
        assert!(status_of(&asked.await.unwrap().unwrap()).ends_with(SIE));
    }
    let (took, stale_wait) = (begun.elapsed(), CacheSettings::default().stale_wait);
    assert!(took >= stale_wait && took < stale_wait + Duration::from_secs(2), "{took:?}");
    assert!(s.ask_memory(PATH).await.ends_with(SIE));
    reply.send_response(Ok(json(200, RENEWED)));
    assert!(is_idle(&mut s.rails).await);
    assert!(s.ask_memory(PATH).await.starts_with("railgate; hit; ttl=3"), "as old as the question");
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_waited_for() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    let last = Arc::new(LastAnswer::new(s.now()));
    let ticking = s.ticks(Some(Arc::clone(&last)));
    let (leads, follows) = (s.ask(PATH), s.ask(PATH));
    let (request, _reply) = s.taken().await;
    request.progress.unwrap().record_sent(s.now(), &last);
    tokio::time::sleep(CacheSettings::default().stale_wait * 10).await;
    assert!(!leads.is_finished() && !follows.is_finished(), "it is busy");
    ticking.abort();
    let _ticking = s.ticks(None);
    for asked in [leads, follows] {
        assert!(status_of(&asked.await.unwrap().unwrap()).ends_with(SIE), "now it hangs");
    }
}

#[tokio::test]
async fn followers_with_a_stale_answer_do_not_ask_a_failing_rails() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    let callers: Vec<_> = (0..200).map(|_| s.ask(PATH)).collect();
    s.reply(Ok(json(503, "{}"))).await;
    for caller in callers {
        assert!(status_of(&caller.await.unwrap().unwrap()).ends_with(SIE));
    }
    assert!(is_idle(&mut s.rails).await);
}

#[tokio::test]
async fn a_failing_check_starts_no_outage_of_other_endpoints() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    assert_eq!(s.ask_with("/check", Ok(json(503, "{}"))).await.unwrap().status().as_u16(), 503);
    s.after(100);
    let answer = s.ask_with(PATH, Ok(json(200, RENEWED))).await.unwrap();
    assert_eq!(status_of(&answer), "railgate; fwd=miss; stored");
}

#[tokio::test]
async fn an_outage_ends_some_time_after_the_last_failure() {
    let mut s = fixture();
    s.warm(PATH, USER).await;
    s.after(100);
    assert!(s.ask_with(PATH, refused()).await.is_ok());
    s.after(30);
    let answer = s.ask_with(PATH, Ok(json(200, RENEWED))).await.unwrap();
    assert_eq!(status_of(&answer), "railgate; fwd=miss; stored");
}
