//! Concurrency limits and queues in front of Rails, retries, and time-outs.

use super::client::Request;
use super::credentials::{KAS_HEADER, kas_token, now};
use super::fake_rails::{Latch, Reply};
use super::harness::Setup;
use super::log;

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

fn user(id: usize) -> Request {
    Request::get(&format!("discover?user_id={id}")).with_secret()
}

const IN_FLIGHT: &str = r#"railgate_upstream_in_flight{class="access"}"#;
const QUEUE: &str = r#"railgate_upstream_queue{class="access"}"#;

/// `/allowed` waits for Gitaly, which calls back meanwhile: with one limit for both, neither would ever
/// finish.
#[tokio::test]
async fn callbacks_are_admitted_while_allowed_is_full() {
    let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
    let harness = setup.set("upstream.classes.callback.concurrency", 1).start().await;
    let called_back = Latch::closed();
    let until = called_back.clone();
    harness.rails.respond_with(move |request| {
        let reply = Reply::json(200, "{}");
        if request.is_for("allowed") { reply.after(&until) } else { reply }
    });
    let mut deciding = harness.start_request(&allowed()).await;
    harness.rails.wait_for_requests(1).await;
    let mut next = harness.start_request(&allowed()).await;
    harness.wait_for_metric(QUEUE, 1).await;
    for endpoint in ["pre_receive", "post_receive"] {
        let request = Request::post(endpoint).with_secret().json("{}");
        assert_eq!(harness.send(&request).await.status, 200, "{endpoint}");
    }
    called_back.open();
    assert_eq!((deciding.read_response().await.status, next.read_response().await.status), (200, 200));
}

#[tokio::test]
async fn requests_beyond_the_queue_are_shed() {
    let setup = Setup::new().set("upstream.classes.access.concurrency", 2);
    let harness = setup.set("upstream.classes.access.queue", 1).start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut connections =
        vec![harness.start_request(&allowed()).await, harness.start_request(&allowed()).await];
    harness.wait_for_metric(IN_FLIGHT, 2).await;
    connections.push(harness.start_request(&allowed()).await);
    harness.wait_for_metric(QUEUE, 1).await;
    let shed = harness.send(&allowed()).await;
    shed.assert_failure(503);
    assert_eq!(shed.header("retry-after"), Some("1"), "{shed}");
    harness.wait_for_metric(r#"railgate_upstream_shed_total{class="access",reason="queue_full"}"#, 1).await;
    assert_eq!(harness.rails.request_count(), 2);
    // Other classes are not affected.
    let left_alone = harness.start_request(&user(1)).await;
    harness.rails.wait_for_requests(3).await;
    drop(left_alone);
    latch.open();
    for mut connection in connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    harness.wait_for_metric(IN_FLIGHT, 0).await;
}

#[tokio::test]
async fn requests_are_rejected_after_queue_timeout() {
    let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
    let harness = setup.text("upstream.classes.access.queue_timeout", "50ms").start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let _first = harness.start_request(&allowed()).await;
    harness.wait_for_metric(IN_FLIGHT, 1).await;
    harness.send(&allowed()).await.assert_failure(503);
    harness
        .wait_for_metric(r#"railgate_upstream_shed_total{class="access",reason="queue_timeout"}"#, 1)
        .await;
    harness.wait_for_metric(QUEUE, 0).await;
}

/// A token that will have expired by then is rejected immediately.
#[tokio::test]
async fn a_request_is_not_queued_beyond_its_token_expiry() {
    let harness = Setup::new().set("upstream.classes.kas.concurrency", 1).start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let _first = harness.start_request(&Request::get("kubernetes/agent_info").with_kas_token()).await;
    harness.rails.wait_for_requests(1).await;
    let claims = serde_json::json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": now() + 3 });
    let request = Request::get("kubernetes/agent_info").header(KAS_HEADER, &kas_token(&claims));
    harness.send(&request).await.assert_failure(503);
    harness.wait_for_metric(r#"railgate_failures_total{reason="credential_expires"}"#, 1).await;
    assert_eq!(harness.rails.request_count(), 1);
}

/// kas takes the 401 to an expired token for a final answer.
#[tokio::test]
async fn a_request_is_not_retried_with_an_expiring_token() {
    let harness = Setup::new().set("upstream.resend_percent", 100).start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::hang_up().after(&latch));
    let expires = now() + 4;
    let claims = serde_json::json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": expires });
    let request = Request::get("kubernetes/receptive_agents").header(KAS_HEADER, &kas_token(&claims));
    let mut connection = harness.start_request(&request).await;
    harness.rails.wait_for_requests(1).await;
    // Two seconds before its expiry, a token is no longer sent.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    latch.open();
    connection.read_response().await.assert_failure(502);
    assert_eq!(harness.rails.request_count(), 1);
}

/// Other requests get no stale answers because of that.
#[tokio::test]
async fn a_busy_rails_does_not_count_as_failing() {
    let setup = Setup::new().set("upstream.classes.lookup.concurrency", 1).text("cache.discover.ttl", "1ms");
    let harness = setup.text("cache.discover.stale_while_revalidate", "1h").start().await;
    let root = Request::get("discover?username=root").with_secret();
    assert_eq!(harness.send(&root).await.status, 200);
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "null").after(&latch));
    let _first = harness.start_request(&user(1)).await;
    harness.rails.wait_for_requests(2).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert!(harness.send(&root).await.cache_status().contains("stale_while_revalidate"));
    harness.wait_for_metric(r#"railgate_upstream_shed_total{class="lookup",reason="busy"}"#, 1).await;
    harness.wait_for_metric(r#"railgate_cache_refreshes_total{result="failed"}"#, 1).await;
    assert_eq!(harness.metric(r#"railgate_cache_outage{route="discover"}"#).await, Some(0));
}

/// While its body is read, a response still occupies Rails.
#[tokio::test]
async fn a_permit_is_released_at_the_end_of_the_response() {
    let harness = Setup::new().set("upstream.classes.access.concurrency", 1).start().await;
    let latch = Latch::closed();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab";
    harness.rails.respond_always(Reply::bytes(head).then_wait(&latch).then("cd"));
    let mut first = harness.start_request(&allowed()).await;
    harness.rails.wait_for_requests(1).await;
    let mut second = harness.start_request(&allowed()).await;
    harness.wait_for_metric(QUEUE, 1).await;
    assert_eq!(harness.rails.request_count(), 1);
    latch.open();
    assert_eq!((first.read_response().await.text(), second.read_response().await.text()), ("abcd", "abcd"));
    harness.wait_for_metric(IN_FLIGHT, 0).await;

    // Also when the client disconnects.
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::bytes(head).then_wait(&latch).then("cd"));
    let gone = harness.start_request(&allowed()).await;
    harness.rails.wait_for_requests(3).await;
    drop(gone);
    harness.wait_for_metric(IN_FLIGHT, 0).await;
}

#[tokio::test]
async fn only_reads_are_retried() {
    let harness = Setup::new().set("upstream.resend_percent", 100).start().await;
    let hang_up_once = |request: &super::fake_rails::ReceivedRequest| {
        if request.nth.is_multiple_of(2) { Reply::hang_up() } else { Reply::json(200, "null") }
    };
    harness.rails.respond_with(hang_up_once);
    let (response, asked) = harness.send_counting(&user(1)).await;
    assert_eq!((response.status, response.text(), asked), (200, "null", 2), "{response}");
    harness.wait_for_metric(r#"railgate_upstream_resent_total{reason="read"}"#, 1).await;
    // A read can be retried until the client has got a part of the response.
    let break_off_once = |request: &super::fake_rails::ReceivedRequest| {
        let half = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnu";
        if request.nth.is_multiple_of(2) { Reply::bytes(half).then_close() } else { Reply::json(200, "null") }
    };
    harness.rails.respond_with(break_off_once);
    let (response, asked) = harness.send_counting(&user(7)).await;
    assert_eq!((response.status, response.text(), asked), (200, "null", 2), "{response}");
    for request in [
        allowed(),
        Request::post("pre_receive").with_secret().json("{}"),
        Request::post("personal_access_token").with_secret().json("{}"),
    ] {
        harness.rails.respond_always(Reply::hang_up());
        let (response, asked) = harness.send_counting(&request).await;
        response.assert_failure(502);
        assert_eq!(asked, 1, "{request}");
    }
    // Only one retry.
    let (response, asked) = harness.send_counting(&user(2)).await;
    response.assert_failure(502);
    assert_eq!(asked, 2);
    // A malformed response is not retried.
    harness.rails.respond_always(Reply::bytes("nonsense\r\n\r\n").then_close());
    let (response, asked) = harness.send_counting(&user(3)).await;
    response.assert_failure(502);
    assert_eq!(asked, 1);
}

/// Requests, and whether each only reads. Some GETs write: they count failures, record when a token was
/// last used, or write audit events. Other spellings are not known well enough.
pub(super) fn requests_by_idempotency() -> Vec<(Request, bool)> {
    let kas = |endpoint: &str| Request::get(endpoint).with_kas_token();
    let shell = |endpoint: &str| Request::get(endpoint).with_secret();
    vec![
        (shell("authorized_certs?key=x&user_identifier=root"), false),
        (kas("agents/agentk/agent_info"), false),
        (kas("kubernetes/verify_project_access?id=1"), false),
        (kas("kubernetes/modules/starboard_vulnerability/policies_configuration"), false),
        (kas("kubernetes/modules/remote_development/prerequisites"), false),
        (kas("ci/agents/runnerc/info"), false),
        (shell("check.json"), false),
        (shell("lfs?oid=1&gl_repository=project-1"), true),
        (shell("gitaly/object_pool_members?storage=default"), true),
        (Request::new("HEAD", "/api/v4/internal/lfs?oid=1").with_secret(), true),
        (kas("kubernetes/receptive_agents"), true),
    ]
}

#[tokio::test]
async fn reads_that_write_are_sent_once() {
    let harness = Setup::new().set("upstream.resend_percent", 100).start().await;
    harness.rails.respond_always(Reply::hang_up());
    for (nth, (request, may_be_resent)) in requests_by_idempotency().into_iter().enumerate() {
        let id = format!("reads-that-write-{nth}");
        let (response, asked) = harness.send_counting(&request.header("X-Request-Id", &id)).await;
        assert_eq!((response.status, asked), (502, 1 + usize::from(may_be_resent)), "{response}");
        let line = log::wait_for_request_line(&id).await;
        assert_eq!(line["resent"].as_bool(), may_be_resent.then_some(true), "{line}");
    }
}

/// Retries must not add to the load of a Rails that fails.
#[tokio::test]
async fn retries_have_a_budget() {
    let harness = Setup::new().set("upstream.resend_percent", 10).start().await;
    harness.rails.respond_always(Reply::hang_up());
    for id in 1..=100 {
        harness.send(&user(id)).await.assert_failure(502);
    }
    let resent = harness.rails.request_count() - 100;
    // A tenth of a hundred, and one for each second of the ten that the budget remembers.
    assert!((1..=21).contains(&resent), "{resent}");
    let (counted, spent) = (
        harness.metric(r#"railgate_upstream_resent_total{reason="read"}"#).await,
        harness.metric("railgate_upstream_not_resent_total").await,
    );
    assert_eq!((counted, spent), (Some(resent), Some(100 - resent)));
}

#[tokio::test]
async fn a_body_that_pauses_for_too_long_is_given_up() {
    let harness = Setup::new().text("upstream.body_timeout", "50ms").start().await;
    harness.rails.respond_always(Reply::bytes("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").then_hang());
    let mut connection = harness.start_request(&allowed()).await;
    assert!(connection.try_read_response().await.is_err());
    harness.wait_for_metric(r#"railgate_failures_total{reason="upstream_body_timeout"}"#, 1).await;
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    harness.wait_for_metric("railgate_upstream_connections", 0).await;
}

#[tokio::test]
async fn the_total_timeout_covers_the_response_body() {
    let harness = Setup::new().text("upstream.total_timeout", "50ms").start().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab";
    for reply in [Reply::silence(), Reply::bytes(head).then_hang()] {
        harness.rails.respond_always(reply.clone());
        let mut connection = harness.start_request(&allowed()).await;
        match connection.try_read_response().await {
            Ok(response) => response.assert_failure(504),
            Err(incomplete) => assert!(format!("{reply:?}").contains("Content-Length"), "{incomplete}"),
        }
    }
    harness.wait_for_metric(r#"railgate_failures_total{reason="upstream_total_timeout"}"#, 2).await;
}

/// A slow client must not occupy Rails for ever.
#[tokio::test]
async fn a_slow_reader_is_cut_off_at_the_total_timeout() {
    const LENGTH: usize = 64 << 20;
    let harness = Setup::new().text("upstream.total_timeout", "200ms").start().await;
    harness.rails.respond_always(Reply::new(200, "", vec![b'x'; LENGTH]));
    let mut connection = harness.start_request(&allowed()).await;
    let mut read = 0;
    loop {
        let piece = connection.read_at_most(100_000).await;
        if piece == 0 {
            break;
        }
        read += piece;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(read < LENGTH, "it got all of it");
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    harness.wait_for_metric(r#"railgate_failures_total{reason="upstream_total_timeout"}"#, 1).await;
}
