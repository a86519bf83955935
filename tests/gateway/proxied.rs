//! A proxy in front of Rails, as Workhorse or nginx, that accepts connections and says that Rails is away.

use super::client::{Ask, eventually};
use super::fake::{Reply, Request, gitlab};
use super::log;
use super::stage::{Setup, Stage};

const HELD: &str = "railgate_upstream_held";
const READINESS: &str = "/-/readiness";

fn away() -> Reply {
    Reply::new(502, "Content-Type: text/html\r\n", "GitLab is not responding")
}

fn setup() -> Setup {
    Setup::new().text("upstream.hold", "10m").set("upstream.resend_percent", 100)
}

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

fn user(id: usize) -> Ask {
    Ask::get(&format!("discover?user_id={id}")).with_secret()
}

/// How often Rails was asked for something else than whether it is there.
fn asked(stage: &Stage) -> usize {
    stage.rails.requests().iter().filter(|request| request.target != READINESS).count()
}

#[tokio::test]
async fn who_comes_while_rails_is_away_waits_for_it_behind_its_proxy_too() {
    for reply in [away(), Reply::new(504, "", ""), Reply::new(503, "Content-Type: text/html\r\n", "")] {
        let stage = setup().start().await;
        stage.rails.always(reply);
        let logged = log::length();
        // It may have been done, so it is over.
        assert!(stage.send(&allowed()).await.status > 500);
        let mut wires = Vec::new();
        for id in 0..10 {
            wires.push(stage.begin(&allowed()).await);
            wires.push(stage.begin(&user(id)).await);
        }
        stage.reaches(HELD, 20).await;
        assert_eq!(asked(&stage), 1, "nobody else was sent there");
        stage.rails.recover();
        for wire in &mut wires {
            assert_eq!(wire.answer().await.status, 200);
        }
        assert_eq!(asked(&stage), 21, "each once");
        assert_eq!(stage.send(&allowed()).await.status, 200);
        stage.reaches(HELD, 0).await;
        eventually("both to be told", async || {
            let log = log::since(logged);
            let is_told = |text: &str| log.contains(text);
            (is_told("a proxy answers that Rails is away") && is_told("Rails answers again")).then_some(())
        })
        .await;
    }
}

/// Asking changes nothing.
#[tokio::test]
async fn a_read_that_finds_rails_away_is_asked_again_when_it_is_back() {
    let stage = setup().start().await;
    stage.rails.always(away());
    let mut wire = stage.begin(&user(1)).await;
    stage.reaches(HELD, 1).await;
    stage.rails.recover();
    assert_eq!(wire.answer().await.status, 200);
    assert_eq!(asked(&stage), 2);
    stage.reaches(r#"railgate_upstream_resent_total{reason="read"}"#, 1).await;
}

/// Perhaps it is only that the proxy does not know the question.
#[tokio::test]
async fn whose_time_is_over_is_sent_all_the_same() {
    let setup = setup().text("upstream.hold", "50ms");
    let stage = setup.start().await;
    let only_asks = |request: &Request| if request.target == READINESS { away() } else { gitlab(request) };
    stage.rails.always(away());
    assert_eq!(stage.send(&allowed()).await.status, 502);
    assert_eq!(stage.send(&allowed()).await.status, 502, "what the proxy says, after a while");
    stage.rails.answer(only_asks);
    assert_eq!(stage.send(&allowed()).await.status, 200);
    // From then on nobody waits.
    let holds = stage.metric("railgate_upstream_holds_total").await;
    for _ in 0..10 {
        assert_eq!(stage.send(&allowed()).await.status, 200);
    }
    assert_eq!(stage.metric("railgate_upstream_holds_total").await, holds);
}

#[tokio::test]
async fn what_is_no_such_answer_holds_nobody() {
    for (ask, reply, setup) in [
        (allowed(), Reply::json(503, r#"{"status":false}"#), setup()),
        (allowed(), Reply::json(500, "{}"), setup()),
        (user(1), Reply::json(404, "{}"), setup()),
        // Anybody may ask for that, and what is behind it may be somebody else.
        (Ask::get("pages/status"), away(), setup()),
        (allowed(), away(), setup().text("upstream.hold", "0s")),
    ] {
        let stage = setup.start().await;
        stage.rails.always(reply.clone());
        let before = stage.send(&ask).await.status;
        stage.rails.recover();
        assert_eq!(stage.send(&allowed()).await.status, 200);
        assert_eq!(stage.metric("railgate_upstream_holds_total").await, Some(0), "{reply:?} {before}");
        assert!(stage.rails.requests().iter().all(|request| request.target != READINESS));
    }
}

/// Who has another answer does not wait, nor who asks whether Rails is well.
#[tokio::test]
async fn who_could_not_wait_does_not() {
    let stage = setup().text("cache.discover.ttl", "1ms").start().await;
    assert_eq!(stage.send(&user(1)).await.status, 200);
    stage.rails.always(away());
    assert_eq!(stage.send(&allowed()).await.status, 502);
    eventually("the entry to be stale", async || {
        let answer = stage.send(&user(1)).await;
        assert_eq!(answer.status, 200, "{answer}");
        answer.header("cache-status").unwrap().contains("stale").then_some(())
    })
    .await;
    assert_eq!(stage.send(&Ask::get("check").with_secret()).await.status, 502);
}
