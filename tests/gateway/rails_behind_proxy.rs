//! A proxy in front of Rails, such as Workhorse or nginx, accepts connections and reports that Rails is
//! away.

use super::admission::requests_by_idempotency;
use super::client::{Request, eventually};
use super::fake_rails::{ReceivedRequest, Reply, gitlab};
use super::harness::{Harness, Setup};
use super::log;

const HELD: &str = "railgate_upstream_held";
const READINESS: &str = "/-/readiness";

fn away_response() -> Reply {
    Reply::new(502, "Content-Type: text/html\r\n", "GitLab is not responding")
}

fn setup() -> Setup {
    Setup::new().text("upstream.hold", "10m").set("upstream.resend_percent", 100)
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

fn user(id: usize) -> Request {
    Request::get(&format!("discover?user_id={id}")).with_secret()
}

/// How many requests reached Rails, health checks aside.
fn forwarded_count(harness: &Harness) -> usize {
    harness.rails.requests().iter().filter(|request| request.target != READINESS).count()
}

#[tokio::test]
async fn requests_wait_while_a_proxy_reports_rails_away() {
    for reply in
        [away_response(), Reply::new(504, "", ""), Reply::new(503, "Content-Type: text/html\r\n", "")]
    {
        let harness = setup().start().await;
        harness.rails.respond_always(reply);
        let logged = log::position();
        // It may have been executed, so it is not retried.
        assert!(harness.send(&allowed()).await.status > 500);
        let mut connections = Vec::new();
        for id in 0..10 {
            connections.push(harness.start_request(&allowed()).await);
            connections.push(harness.start_request(&user(id)).await);
        }
        harness.wait_for_metric(HELD, 20).await;
        assert_eq!(forwarded_count(&harness), 1, "no other request was sent there");
        harness.rails.recover();
        for connection in &mut connections {
            assert_eq!(connection.read_response().await.status, 200);
        }
        assert_eq!(forwarded_count(&harness), 21, "each once");
        assert_eq!(harness.send(&allowed()).await.status, 200);
        harness.wait_for_metric(HELD, 0).await;
        eventually("both to be logged", async || {
            let log = log::since(logged);
            let is_logged = |text: &str| log.contains(text);
            (is_logged("a proxy answers that Rails is away") && is_logged("Rails answers again"))
                .then_some(())
        })
        .await;
    }
}

/// Reads are safe to repeat.
#[tokio::test]
async fn a_read_is_retried_when_rails_is_back() {
    let harness = setup().start().await;
    harness.rails.respond_always(away_response());
    let mut connection = harness.start_request(&user(1)).await;
    harness.wait_for_metric(HELD, 1).await;
    harness.rails.recover();
    assert_eq!(connection.read_response().await.status, 200);
    assert_eq!(forwarded_count(&harness), 2);
    harness.wait_for_metric(r#"railgate_upstream_resent_total{reason="read"}"#, 1).await;
}

#[tokio::test]
async fn reads_that_write_are_not_retried() {
    for (nth, (request, may_be_resent)) in requests_by_idempotency().into_iter().enumerate() {
        let harness = setup().start().await;
        harness.rails.respond_always(away_response());
        let id = format!("behind-a-proxy-{nth}");
        let request = request.header("X-Request-Id", &id);
        let mut connection = harness.start_request(&request).await;
        if may_be_resent {
            harness.wait_for_metric(HELD, 1).await;
            harness.rails.recover();
        }
        let response = connection.read_response_to(&request).await;
        let expected = if may_be_resent { (200, 2) } else { (502, 1) };
        assert_eq!((response.status, forwarded_count(&harness)), expected, "{request}");
        let line = log::wait_for_request_line(&id).await;
        assert_eq!(line["resent"].as_bool(), may_be_resent.then_some(true), "{line}");
    }
}

/// The proxy may only lack the health check's endpoint.
#[tokio::test]
async fn a_request_is_sent_when_its_hold_ends() {
    let setup = setup().text("upstream.hold", "50ms");
    let harness = setup.start().await;
    let only_asks = |request: &ReceivedRequest| {
        if request.target == READINESS { away_response() } else { gitlab(request) }
    };
    harness.rails.respond_always(away_response());
    assert_eq!(harness.send(&allowed()).await.status, 502);
    assert_eq!(harness.send(&allowed()).await.status, 502, "the response of the proxy, after the hold");
    harness.rails.respond_with(only_asks);
    assert_eq!(harness.send(&allowed()).await.status, 200);
    // From then on no request is held.
    let holds = harness.metric("railgate_upstream_holds_total").await;
    for _ in 0..10 {
        assert_eq!(harness.send(&allowed()).await.status, 200);
    }
    assert_eq!(harness.metric("railgate_upstream_holds_total").await, holds);
}

#[tokio::test]
async fn other_responses_do_not_start_a_hold() {
    for (request, reply, setup) in [
        (allowed(), Reply::json(503, r#"{"status":false}"#), setup()),
        (allowed(), Reply::json(500, "{}"), setup()),
        (user(1), Reply::json(404, "{}"), setup()),
        // An endpoint without authentication, possibly of another service.
        (Request::get("pages/status"), away_response(), setup()),
        (allowed(), away_response(), setup().text("upstream.hold", "0s")),
    ] {
        let harness = setup.start().await;
        harness.rails.respond_always(reply.clone());
        let before = harness.send(&request).await.status;
        harness.rails.recover();
        assert_eq!(harness.send(&allowed()).await.status, 200);
        assert_eq!(harness.metric("railgate_upstream_holds_total").await, Some(0), "{reply:?} {before}");
        assert!(harness.rails.requests().iter().all(|request| request.target != READINESS));
    }
}

#[tokio::test]
async fn requests_with_a_stale_answer_and_health_checks_do_not_wait() {
    let harness = setup().text("cache.discover.ttl", "1ms").start().await;
    assert_eq!(harness.send(&user(1)).await.status, 200);
    harness.rails.respond_always(away_response());
    assert_eq!(harness.send(&allowed()).await.status, 502);
    eventually("the entry to be stale", async || {
        let response = harness.send(&user(1)).await;
        assert_eq!(response.status, 200, "{response}");
        response.header("cache-status").unwrap().contains("stale").then_some(())
    })
    .await;
    assert_eq!(harness.send(&Request::get("check").with_secret()).await.status, 502);
}
