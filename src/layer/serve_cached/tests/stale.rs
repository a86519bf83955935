//! What is stale: when it is used, when it is not, and who asks Rails meanwhile.

use super::*;
use crate::cache::freshness::Storable;
use crate::cache::{Lifetimes, Sign};
use crate::layer::testing::settle;
use crate::progress::LastAnswer;
use crate::upstream::lanes::Shed;

const PATH: &str = "/discover?key_id=7";
const SWR: &str = "; detail=stale_while_revalidate";
const SIE: &str = "; detail=stale_if_error";
const RENEWED: &str = r#"{"id":7,"username":"ruby","name":"R"}"#;

fn refused() -> Answer {
    let refused = std::io::ErrorKind::ConnectionRefused.into();
    Err(Failure::Upstream(upstream::Error::Connect("rails".into(), refused)))
}

impl Setting {
    fn after(&self, seconds: u64) {
        self.time.advance(Duration::from_secs(seconds));
    }

    fn now(&self) -> Instant {
        Clock::Manual(self.time.clone()).now()
    }

    /// The manual clock goes as tokio's does, and perhaps a server answers all the time.
    fn ticks(&self, answers: Option<Arc<LastAnswer>>) -> JoinHandle<()> {
        const TICK: Duration = Duration::from_millis(100);
        let time = self.time.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                time.advance(TICK);
                if let Some(last) = &answers {
                    last.is_now(Clock::Manual(time.clone()).now());
                }
            }
        })
    }

    async fn reply(&mut self, answer: Answer) {
        let (_, reply) = self.taken().await;
        reply.send_response(answer);
        // What goes on behind the callers' backs has to come to its end.
        assert!(is_idle(&mut self.rails).await);
    }

    /// What a caller gets while Rails answers with `answer`, which it must be asked for.
    async fn ask_with(&mut self, path: &str, answer: Answer) -> Answer {
        let asked = self.ask(path);
        self.reply(answer).await;
        asked.await.unwrap()
    }

    /// What a caller gets who does not wait for Rails.
    async fn ask_memory(&mut self, path: &str) -> String {
        let asked = self.ask(path);
        settle().await;
        assert!(asked.is_finished(), "has to wait for Rails");
        status_of(&asked.await.unwrap().unwrap()).to_owned()
    }
}

#[tokio::test]
async fn a_stale_answer_is_given_while_rails_is_asked_once() {
    let mut s = setting();
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
async fn beyond_that_rails_is_waited_for() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    let answer = s.ask_with(PATH, Ok(json(200, RENEWED))).await.unwrap();
    assert_eq!(status_of(&answer), "railgate; fwd=miss; stored");
    assert_eq!(text(answer).await, RENEWED);
}

#[tokio::test]
async fn for_failures_on_the_list_what_is_stale_has_to_do() {
    let timeout = || Err(Failure::Upstream(upstream::Error::Timeout(Duration::from_secs(60))));
    let hold_full =
        || Err(Failure::Upstream(upstream::Error::HoldFull("rails".into(), std::io::Error::other("away"))));
    let broke_off = || {
        let stalled = crate::body::Error::Stalled(Duration::from_secs(1));
        Err(Failure::Upstream(upstream::Error::BrokeOff(stalled)))
    };
    let hung = || Err(Failure::Upstream(upstream::Error::Hung(Duration::from_secs(4))));
    let failures: [fn() -> Answer; 9] = [
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
        let mut s = setting();
        s.warm(PATH, USER).await;
        s.after(100);
        let answer = s.ask_with(PATH, failure()).await.unwrap();
        assert_eq!(status_of(&answer), format!("railgate; hit; ttl=-40{SIE}"));
        assert_eq!(answer.headers()["age"], "100");
        assert_eq!(text(answer).await, USER);
    }
}

/// A caller would be given what Rails does not say any more, for as long as others keep Rails busy.
#[tokio::test]
async fn a_rails_that_is_busy_is_no_reason_for_a_stale_answer() {
    let failures: [fn() -> upstream::Error; 9] = [
        // Too many open files, and more wait for one than may.
        || upstream::Error::Connect("rails".into(), std::io::Error::from_raw_os_error(24)),
        || upstream::Error::HoldFull("rails".into(), std::io::Error::from_raw_os_error(24)),
        || upstream::Error::Shed(Shed::QueueFull),
        || upstream::Error::Shed(Shed::QueueTimeout),
        || upstream::Error::Shed(Shed::QueueTooSlow),
        || upstream::Error::Expires("rails".into()),
        || upstream::Error::Slow(Duration::from_secs(10)),
        || upstream::Error::TotalTimeout(Duration::from_secs(10)),
        || upstream::Error::Unusable("x"),
    ];
    for failure in failures {
        let mut s = setting();
        s.warm(PATH, USER).await;
        s.after(100);
        let (leads, follows) = (s.ask(PATH), s.ask(PATH));
        let (_, reply) = s.taken().await;
        reply.send_response(Err(Failure::Upstream(failure())));
        let leads = leads.await.unwrap();
        assert!(leads.is_err(), "{:?}", failure());
        // The other is told so, or asks by itself.
        settle().await;
        if !follows.is_finished() {
            s.reply(Err(Failure::Upstream(failure()))).await;
        }
        assert_eq!(follows.await.unwrap().unwrap_err().status(), leads.unwrap_err().status());
        // Nor does it say anything to others, or end what is kept.
        let asked = s.ask(PATH);
        let (request, reply) = s.taken().await;
        assert_eq!(request.may_wait, MayWait::ForItsTurn, "{:?}", failure());
        reply.send_response(refused());
        assert!(status_of(&asked.await.unwrap().unwrap()).ends_with(SIE));
    }
}

/// What has been said in another form, or to a caller who asked alone, was said.
#[tokio::test]
async fn what_rails_has_called_unknown_once_is_never_brought_back() {
    let key = "/authorized_keys?key=AAAAC3Nz";
    let row = r#"{"id":7,"title":"t","key":"ssh-rsa AAAAC3Nz R (x)"}"#;
    for (path, kept, status, body, ends) in [
        (PATH, USER, 404, "{}", true),
        (PATH, USER, 401, "{}", true),
        (PATH, USER, 403, "{}", true),
        (PATH, USER, 200, "null", true),
        (PATH, USER, 200, USER, false),
        (PATH, USER, 200, "nul", false),
        (PATH, USER, 302, "{}", false),
        (PATH, USER, 500, "{}", false),
        (PATH, USER, 503, "{}", false),
        (key, row, 404, "{}", true),
        (key, row, 401, "{}", true),
        (key, row, 200, row, false),
    ] {
        let mut s = setting();
        s.warm(path, kept).await;
        let conditional = call(Method::GET, path, &[("if-none-match", "\"x\"")]);
        let asked = tokio::spawn(s.service.clone().oneshot(conditional));
        s.reply(Ok(json(status, body))).await;
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(status_of(&answer), "railgate; fwd=bypass; detail=request");
        assert_eq!((answer.status().as_u16(), text(answer).await.as_str()), (status, body));
        s.after(100);
        let answer = s.ask_with(path, refused()).await;
        assert_eq!(answer.is_err(), ends, "{path} {status} {body}");
    }
}

#[tokio::test]
async fn an_answer_to_one_who_asked_alone_wins_over_an_older_question() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    let (leads, follows) = (s.ask(PATH), s.ask(PATH));
    let (_, reply) = s.taken().await;
    // Of another caller, perhaps: the question is asked anew.
    let conditional = call(Method::GET, PATH, &[("range", "bytes=0-1")]);
    let other = tokio::spawn(s.service.clone().oneshot(conditional));
    s.reply(Ok(json(404, "{}"))).await;
    assert_eq!(other.await.unwrap().unwrap().status(), 404);
    reply.send_response(Ok(json(200, USER)));
    assert_eq!(leads.await.unwrap().unwrap().status(), 200, "it asked before");
    s.reply(Ok(json(404, "{}"))).await;
    assert_eq!(follows.await.unwrap().unwrap().status(), 404);
    assert!(s.ask_with(PATH, refused()).await.is_err(), "nothing is kept");
}

#[tokio::test]
async fn any_other_answer_is_the_answer_and_what_rails_says_of_the_key_ends_what_was_kept() {
    for (phase, age) in [("revalidate", 70), ("on error", 100)] {
        for (status, body, ends) in [
            (401, "{}", true),
            (403, "{}", true),
            (404, r#"{"message":"404 Not found"}"#, true),
            (302, "{}", false),
            (429, "{}", false),
            (400, "{}", false),
            (200, "[]", false),
            (200, r#"{"id":7}"#, false),
            (200, "null", true),
        ] {
            let mut s = setting();
            s.warm(PATH, USER).await;
            s.after(age);
            let answer = s.ask_with(PATH, Ok(json(status, body))).await.unwrap();
            if phase == "revalidate" {
                assert!(status_of(&answer).ends_with(SWR), "{status}: who asked has his answer already");
            } else {
                assert_eq!(answer.status().as_u16(), status);
            }
            // Beyond the life of a negative answer.
            s.after(30);
            let answer = s.ask_with(PATH, Ok(json(503, "{}"))).await.unwrap();
            assert_eq!(answer.status().as_u16(), if ends { 503 } else { 200 }, "{phase}: {status} {body}");
        }
    }
}

/// A page of something in front of Rails, whatever its status.
#[tokio::test]
async fn what_is_no_json_says_nothing_of_a_key() {
    let page = |status: u16| {
        let page = Response::builder().status(status).header("content-type", "text/html");
        page.body(Body::from(Bytes::from_static(b"<html>"))).unwrap()
    };
    for status in [200, 401, 403, 404] {
        let mut s = setting();
        s.warm(PATH, USER).await;
        s.after(100);
        let answer = s.ask_with(PATH, Ok(page(status))).await.unwrap();
        assert_eq!((answer.status().as_u16(), text(answer).await.as_str()), (status, "<html>"));
        let answer = s.ask_with(PATH, refused()).await.unwrap();
        assert!(status_of(&answer).ends_with(SIE), "{status}");
    }
}

/// Each attempt of a blocked user would go to Rails.
#[tokio::test]
async fn that_the_owner_of_a_key_is_blocked_is_kept_briefly() {
    let path = "/authorized_keys?key=AAAAC3Nz";
    let row = r#"{"id":7,"title":"t","key":"ssh-rsa AAAAC3Nz R (x)"}"#;
    let blocked = || Ok(json(401, r#"{"message":"401 Unauthorized - Key"}"#));
    let mut s = setting();
    s.warm(path, row).await;
    s.after(100);
    assert_eq!(s.ask_with(path, blocked()).await.unwrap().status(), 401);
    let answer = s.ask(path).await.unwrap().unwrap();
    assert_eq!((answer.status().as_u16(), status_of(&answer)), (401, "railgate; hit; ttl=5"));
    s.after(5);
    assert!(s.ask_with(path, refused()).await.is_err(), "the row is not brought back");
    // The caller's own credential is another matter.
    let unauthorized = || Ok(json(401, r#"{"message":"401 Unauthorized"}"#));
    for _ in 0..2 {
        assert_eq!(s.ask_with(path, unauthorized()).await.unwrap().status(), 401);
    }
}

#[tokio::test]
async fn what_must_not_be_stale_is_not() {
    let key = "/authorized_keys?key=AAAAC3Nz";
    for (path, status, body, ttl) in [
        ("/check", 200, r#"{"api_version":"v4","redis":true}"#, 1),
        (PATH, 200, "null", 5),
        (key, 404, r#"{"message":"404 Key Not Found"}"#, 5),
    ] {
        let mut s = setting();
        let answer = s.ask_with(path, Ok(json(status, body))).await.unwrap();
        assert_eq!(status_of(&answer), "railgate; fwd=miss; stored", "{path}");
        s.after(ttl);
        assert!(s.ask_with(path, refused()).await.is_err(), "{path}");
    }
}

#[tokio::test]
async fn while_rails_fails_nobody_waits_and_one_in_a_while_asks() {
    let mut s = setting();
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
    // Its time is up all the same.
    s.after(3_600);
    assert!(s.ask_with(PATH, refused()).await.is_err());
}

#[tokio::test]
async fn when_rails_is_back_a_few_keys_at_a_time_are_renewed() {
    let mut s = setting_with(Settings { max_refreshes: 2, ..calm() });
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
    // Once that is over, whatever is left is asked for like anything else.
    s.after(10);
    assert!(!s.ask(&path(20)).is_finished() && !is_idle(&mut s.rails).await);
}

#[tokio::test]
async fn a_crowd_with_a_stale_answer_makes_one_request_and_has_no_failure() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    let callers: Vec<_> = (0..1_000).map(|_| s.ask(PATH)).collect();
    let (_, reply) = s.taken().await;
    assert!(is_idle(&mut s.rails).await);
    // Whoever asks may leave.
    callers[0].abort();
    assert!(is_idle(&mut s.rails).await);
    reply.send_response(refused());
    for caller in callers.into_iter().skip(1) {
        assert!(status_of(&caller.await.unwrap().unwrap()).ends_with(SIE));
    }
    assert!(is_idle(&mut s.rails).await);
}

#[tokio::test(start_paused = true)]
async fn who_could_have_an_answer_does_not_wait_long_for_a_better_one() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    let _ticking = s.ticks(None);
    let (leads, follows) = (s.ask(PATH), s.ask(PATH));
    let (request, reply) = s.taken().await;
    // The time for which it waits here for its turn does not count.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!leads.is_finished() && !follows.is_finished());
    let begun = tokio::time::Instant::now();
    request.progress.unwrap().is_sent(s.now(), &Arc::new(LastAnswer::new(s.now())));
    for asked in [leads, follows] {
        assert!(status_of(&asked.await.unwrap().unwrap()).ends_with(SIE));
    }
    let (took, stale_wait) = (begun.elapsed(), Settings::default().stale_wait);
    assert!(took >= stale_wait && took < stale_wait + Duration::from_secs(2), "{took:?}");
    assert!(s.ask_memory(PATH).await.ends_with(SIE));
    reply.send_response(Ok(json(200, RENEWED)));
    assert!(is_idle(&mut s.rails).await);
    assert!(s.ask_memory(PATH).await.starts_with("railgate; hit; ttl=3"), "as old as the question");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_others_is_waited_for() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    let last = Arc::new(LastAnswer::new(s.now()));
    let ticking = s.ticks(Some(Arc::clone(&last)));
    let (leads, follows) = (s.ask(PATH), s.ask(PATH));
    let (request, _reply) = s.taken().await;
    request.progress.unwrap().is_sent(s.now(), &last);
    tokio::time::sleep(Settings::default().stale_wait * 10).await;
    assert!(!leads.is_finished() && !follows.is_finished(), "it is busy");
    ticking.abort();
    let _ticking = s.ticks(None);
    for asked in [leads, follows] {
        assert!(status_of(&asked.await.unwrap().unwrap()).ends_with(SIE), "now it hangs");
    }
}

#[tokio::test]
async fn an_invalidation_wins_over_a_refresh_and_over_what_is_stale() {
    for age in [70, 100] {
        let mut s = setting();
        s.warm(PATH, USER).await;
        s.after(age);
        let asked = s.ask(PATH);
        let (_, reply) = s.taken().await;
        s.cache.invalidate(&Key::UserOfKey(7));
        reply.send_response(Ok(json(200, USER)));
        assert!(asked.await.unwrap().is_ok());
        assert!(is_idle(&mut s.rails).await);
        assert!(s.ask_with(PATH, refused()).await.is_err(), "{age}: nothing is left to fall back on");
    }
}

#[tokio::test]
async fn what_is_purged_while_rails_is_asked_is_not_fallen_back_on() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    let asked = [s.ask(PATH), s.ask(PATH)];
    let (_, reply) = s.taken().await;
    s.cache.invalidate(&Key::UserOfKey(7));
    reply.send_response(refused());
    for asked in asked {
        assert!(asked.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_refusal_is_not_covered_up_by_a_failure_behind_it() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    let (leads, follows) = (s.ask(PATH), s.ask(PATH));
    let (_, reply) = s.taken().await;
    settle().await;
    reply.send_response(Ok(json(403, "{}")));
    assert_eq!(leads.await.unwrap().unwrap().status(), StatusCode::FORBIDDEN);
    s.reply(Ok(json(503, "{}"))).await;
    assert_eq!(follows.await.unwrap().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_crowd_that_could_do_without_does_not_press_upon_a_rails_that_fails() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    let callers: Vec<_> = (0..200).map(|_| s.ask(PATH)).collect();
    s.reply(Ok(json(503, "{}"))).await;
    for caller in callers {
        assert!(status_of(&caller.await.unwrap().unwrap()).ends_with(SIE));
    }
    assert!(is_idle(&mut s.rails).await);
}

/// An endpoint that fails alone says nothing of the others.
#[tokio::test]
async fn a_check_that_fails_makes_nobody_stale() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    assert_eq!(s.ask_with("/check", Ok(json(503, "{}"))).await.unwrap().status().as_u16(), 503);
    s.after(100);
    let answer = s.ask_with(PATH, Ok(json(200, RENEWED))).await.unwrap();
    assert_eq!(status_of(&answer), "railgate; fwd=miss; stored");
}

/// One failure some time ago is no outage.
#[tokio::test]
async fn after_a_while_without_news_rails_is_waited_for_again() {
    let mut s = setting();
    s.warm(PATH, USER).await;
    s.after(100);
    assert!(s.ask_with(PATH, refused()).await.is_ok());
    s.after(30);
    let answer = s.ask_with(PATH, Ok(json(200, RENEWED))).await.unwrap();
    assert_eq!(status_of(&answer), "railgate; fwd=miss; stored");
}

/// How old an answer is counts from when Rails was asked.
#[tokio::test]
async fn the_time_that_rails_takes_is_part_of_the_age() {
    let mut s = setting();
    let asked = s.ask(PATH);
    let (_, reply) = s.taken().await;
    s.after(50);
    reply.send_response(Ok(json(200, USER)));
    asked.await.unwrap().unwrap();
    assert_eq!(s.ask_memory(PATH).await, "railgate; hit; ttl=10");
}

/// Whatever an answer would be good for by its age: fresh, stale, or in place of a Rails that fails.
#[tokio::test]
async fn what_has_ended_by_the_wall_clock_is_given_in_no_phase() {
    let ends = r#"{"id":7,"username":"rubi","name":"R","expires_at":"2023-11-14T23:13:20Z"}"#;
    for after in [0, 70, 100] {
        for stepped in [0, 3_600] {
            let mut s = setting();
            s.warm(PATH, ends).await;
            s.after(after);
            s.time.step_wall(stepped);
            let asked = s.ask(PATH);
            settle().await;
            assert_eq!(asked.is_finished(), stepped == 0 && after < 90, "{after} {stepped}");
            if asked.is_finished() {
                assert!(asked.await.unwrap().is_ok_and(|answer| status_of(&answer).contains("; hit; ")));
                continue;
            }
            // By then, it is Rails that is asked; and if that fails, only what has not ended does instead.
            let (_, reply) = s.taken().await;
            reply.send_response(refused());
            let answer = asked.await.unwrap();
            assert_eq!(answer.is_ok(), stepped == 0, "{after} {stepped}");
        }
    }
}

/// It ends between the moment it is stored and the one at which a caller who waited is told.
#[tokio::test]
async fn what_has_ended_meanwhile_is_not_shared() {
    for (stepped, is_shared) in [(0, true), (3_600, false)] {
        let mut s = setting();
        let (key, now) = (Key::UserOfKey(7), Clock::Manual(s.time.clone()).now());
        let Boarding::Lead(lease) = s.cache.board(&key, now) else { unreachable!("nothing is there") };
        let waiting = s.ask(PATH);
        settle().await;
        let storable = Storable {
            sign: Sign::Positive,
            ages: Lifetimes::default().of(Caching::Discover, Sign::Positive),
            expires: Some(1_700_000_045),
            subject: None,
        };
        lease.store(StatusCode::OK, &http::HeaderMap::new(), USER.as_bytes(), storable).unwrap();
        s.time.step_wall(stepped);
        settle().await;
        assert_eq!(waiting.is_finished(), is_shared, "{stepped}");
        if !is_shared {
            let (_, reply) = s.taken().await;
            reply.send_response(Ok(json(404, "{}")));
        }
        let answer = waiting.await.unwrap().unwrap();
        assert_eq!(answer.status() == 200, is_shared, "{}", status_of(&answer));
    }
}
