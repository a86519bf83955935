//! How much Rails is asked at one time, what is sent again, and how long anything may take.

use super::client::Ask;
use super::credentials::{KAS_HEADER, kas_token, now};
use super::fake::{Reply, Valve};
use super::stage::Setup;

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

fn user(id: usize) -> Ask {
    Ask::get(&format!("discover?user_id={id}")).with_secret()
}

const IN_FLIGHT: &str = r#"railgate_upstream_in_flight{class="access"}"#;
const QUEUE: &str = r#"railgate_upstream_queue{class="access"}"#;

/// A limit that `/allowed` and what Gitaly calls meanwhile shared would never let go.
#[tokio::test]
async fn gitaly_gets_through_while_allowed_waits_for_it() {
    let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
    let stage = setup.set("upstream.classes.callback.concurrency", 1).start().await;
    let called_back = Valve::shut();
    let until = called_back.clone();
    stage.rails.answer(move |request| {
        let reply = Reply::json(200, "{}");
        if request.is_for("allowed") { reply.after(&until) } else { reply }
    });
    let mut deciding = stage.begin(&allowed()).await;
    stage.rails.has_got(1).await;
    let mut next = stage.begin(&allowed()).await;
    stage.reaches(QUEUE, 1).await;
    for endpoint in ["pre_receive", "post_receive"] {
        let ask = Ask::post(endpoint).with_secret().json("{}");
        assert_eq!(stage.send(&ask).await.status, 200, "{endpoint}");
    }
    called_back.open();
    assert_eq!((deciding.answer().await.status, next.answer().await.status), (200, 200));
}

#[tokio::test]
async fn what_rails_has_too_much_of_is_shed() {
    let setup = Setup::new().set("upstream.classes.access.concurrency", 2);
    let stage = setup.set("upstream.classes.access.queue", 1).start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut wires = vec![stage.begin(&allowed()).await, stage.begin(&allowed()).await];
    stage.reaches(IN_FLIGHT, 2).await;
    wires.push(stage.begin(&allowed()).await);
    stage.reaches(QUEUE, 1).await;
    let shed = stage.send(&allowed()).await;
    shed.assert_failure(503);
    assert_eq!(shed.header("retry-after"), Some("1"), "{shed}");
    stage.reaches(r#"railgate_upstream_shed_total{class="access",reason="queue_full"}"#, 1).await;
    assert_eq!(stage.rails.count(), 2);
    // Others are not concerned.
    let left_alone = stage.begin(&user(1)).await;
    stage.rails.has_got(3).await;
    drop(left_alone);
    valve.open();
    for mut wire in wires {
        assert_eq!(wire.answer().await.status, 200);
    }
    stage.reaches(IN_FLIGHT, 0).await;
}

#[tokio::test]
async fn who_has_waited_for_too_long_is_told() {
    let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
    let stage = setup.text("upstream.classes.access.queue_timeout", "50ms").start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let _first = stage.begin(&allowed()).await;
    stage.reaches(IN_FLIGHT, 1).await;
    stage.send(&allowed()).await.assert_failure(503);
    stage.reaches(r#"railgate_upstream_shed_total{class="access",reason="queue_timeout"}"#, 1).await;
    stage.reaches(QUEUE, 0).await;
}

/// A token that would be dead by then is not kept waiting either.
#[tokio::test]
async fn nobody_queues_with_a_token_that_expires() {
    let stage = Setup::new().set("upstream.classes.kas.concurrency", 1).start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let _first = stage.begin(&Ask::get("kubernetes/agent_info").with_kas_token()).await;
    stage.rails.has_got(1).await;
    let claims = serde_json::json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": now() + 3 });
    let ask = Ask::get("kubernetes/agent_info").header(KAS_HEADER, &kas_token(&claims));
    stage.send(&ask).await.assert_failure(503);
    stage.reaches(r#"railgate_failures_total{reason="credential_expires"}"#, 1).await;
    assert_eq!(stage.rails.count(), 1);
}

/// Nor is it sent again with what is left of a read's chances: kas takes a 401 for an answer.
#[tokio::test]
async fn nothing_is_sent_again_with_a_token_that_expires() {
    let stage = Setup::new().set("upstream.resend_percent", 100).start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::hang_up().after(&valve));
    let expires = now() + 4;
    let claims = serde_json::json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": expires });
    let ask = Ask::get("kubernetes/receptive_agents").header(KAS_HEADER, &kas_token(&claims));
    let mut wire = stage.begin(&ask).await;
    stage.rails.has_got(1).await;
    // Two seconds before its end, it is not worth anything any more.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    valve.open();
    wire.answer().await.assert_failure(502);
    assert_eq!(stage.rails.count(), 1);
}

/// That it has enough to do does not mean that it fails: nobody else is given stale answers for that.
#[tokio::test]
async fn a_rails_that_is_busy_is_no_rails_that_fails() {
    let setup = Setup::new().set("upstream.classes.lookup.concurrency", 1).text("cache.discover.ttl", "1ms");
    let stage = setup.text("cache.discover.stale_while_revalidate", "1h").start().await;
    let root = Ask::get("discover?username=root").with_secret();
    assert_eq!(stage.send(&root).await.status, 200);
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "null").after(&valve));
    let _first = stage.begin(&user(1)).await;
    stage.rails.has_got(2).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert!(stage.send(&root).await.cache_status().contains("stale_while_revalidate"));
    stage.reaches(r#"railgate_upstream_shed_total{class="lookup",reason="busy"}"#, 1).await;
    stage.reaches(r#"railgate_cache_refreshes_total{result="failed"}"#, 1).await;
    assert_eq!(stage.metric(r#"railgate_cache_outage{route="discover"}"#).await, Some(0));
}

/// What is being read is still Rails' work.
#[tokio::test]
async fn a_permit_is_given_back_when_the_answer_has_ended() {
    let stage = Setup::new().set("upstream.classes.access.concurrency", 1).start().await;
    let valve = Valve::shut();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab";
    stage.rails.always(Reply::bytes(head).then_wait(&valve).then("cd"));
    let mut first = stage.begin(&allowed()).await;
    stage.rails.has_got(1).await;
    let mut second = stage.begin(&allowed()).await;
    stage.reaches(QUEUE, 1).await;
    assert_eq!(stage.rails.count(), 1);
    valve.open();
    assert_eq!((first.answer().await.text(), second.answer().await.text()), ("abcd", "abcd"));
    stage.reaches(IN_FLIGHT, 0).await;

    // And when the client has left.
    let valve = Valve::shut();
    stage.rails.always(Reply::bytes(head).then_wait(&valve).then("cd"));
    let gone = stage.begin(&allowed()).await;
    stage.rails.has_got(3).await;
    drop(gone);
    stage.reaches(IN_FLIGHT, 0).await;
}

#[tokio::test]
async fn a_read_is_sent_again_and_nothing_else() {
    let stage = Setup::new().set("upstream.resend_percent", 100).start().await;
    let hang_up_once = |request: &super::fake::Request| {
        if request.nth.is_multiple_of(2) { Reply::hang_up() } else { Reply::json(200, "null") }
    };
    stage.rails.answer(hang_up_once);
    let (answer, asked) = stage.send_counting(&user(1)).await;
    assert_eq!((answer.status, answer.text(), asked), (200, "null", 2), "{answer}");
    stage.reaches(r#"railgate_upstream_resent_total{reason="read"}"#, 1).await;
    // As long as nobody has a part of the answer, it is not too late.
    let break_off_once = |request: &super::fake::Request| {
        let half = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnu";
        if request.nth.is_multiple_of(2) { Reply::bytes(half).then_close() } else { Reply::json(200, "null") }
    };
    stage.rails.answer(break_off_once);
    let (answer, asked) = stage.send_counting(&user(7)).await;
    assert_eq!((answer.status, answer.text(), asked), (200, "null", 2), "{answer}");
    for ask in [
        allowed(),
        Ask::post("pre_receive").with_secret().json("{}"),
        Ask::post("personal_access_token").with_secret().json("{}"),
    ] {
        stage.rails.always(Reply::hang_up());
        let (answer, asked) = stage.send_counting(&ask).await;
        answer.assert_failure(502);
        assert_eq!(asked, 1, "{ask}");
    }
    // Once.
    let (answer, asked) = stage.send_counting(&user(2)).await;
    answer.assert_failure(502);
    assert_eq!(asked, 2);
    // What came and is no answer is not asked for again.
    stage.rails.always(Reply::bytes("nonsense\r\n\r\n").then_close());
    let (answer, asked) = stage.send_counting(&user(3)).await;
    answer.assert_failure(502);
    assert_eq!(asked, 1);
}

/// A Rails that is sick is not beaten.
#[tokio::test]
async fn what_is_sent_again_has_a_budget() {
    let stage = Setup::new().set("upstream.resend_percent", 10).start().await;
    stage.rails.always(Reply::hang_up());
    for id in 1..=100 {
        stage.send(&user(id)).await.assert_failure(502);
    }
    let resent = stage.rails.count() - 100;
    // A tenth of a hundred, and one for each second of the ten that the budget remembers.
    assert!((1..=21).contains(&resent), "{resent}");
    let (counted, spent) = (
        stage.metric(r#"railgate_upstream_resent_total{reason="read"}"#).await,
        stage.metric("railgate_upstream_not_resent_total").await,
    );
    assert_eq!((counted, spent), (Some(resent), Some(100 - resent)));
}

#[tokio::test]
async fn a_body_that_pauses_for_too_long_is_given_up() {
    let stage = Setup::new().text("upstream.body_timeout", "50ms").start().await;
    stage.rails.always(Reply::bytes("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").then_hang());
    let mut wire = stage.begin(&allowed()).await;
    assert!(wire.try_answer().await.is_err());
    stage.reaches(r#"railgate_failures_total{reason="upstream_body_timeout"}"#, 1).await;
    stage.reaches(IN_FLIGHT, 0).await;
    stage.reaches("railgate_upstream_connections", 0).await;
}

#[tokio::test]
async fn all_of_it_has_to_be_there_in_time() {
    let stage = Setup::new().text("upstream.total_timeout", "50ms").start().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab";
    for reply in [Reply::silence(), Reply::bytes(head).then_hang()] {
        stage.rails.always(reply.clone());
        let mut wire = stage.begin(&allowed()).await;
        match wire.try_answer().await {
            Ok(answer) => answer.assert_failure(504),
            Err(cut) => assert!(format!("{reply:?}").contains("Content-Length"), "{cut}"),
        }
    }
    stage.reaches(r#"railgate_failures_total{reason="upstream_total_timeout"}"#, 2).await;
}

/// However slowly a client reads, it does not keep Rails for ever.
#[tokio::test]
async fn a_client_that_drips_is_given_up() {
    const LENGTH: usize = 64 << 20;
    let stage = Setup::new().text("upstream.total_timeout", "200ms").start().await;
    stage.rails.always(Reply::new(200, "", vec![b'x'; LENGTH]));
    let mut wire = stage.begin(&allowed()).await;
    let mut read = 0;
    loop {
        let piece = wire.drip(100_000).await;
        if piece == 0 {
            break;
        }
        read += piece;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(read < LENGTH, "it got all of it");
    stage.reaches(IN_FLIGHT, 0).await;
    stage.reaches(r#"railgate_failures_total{reason="upstream_total_timeout"}"#, 1).await;
}
