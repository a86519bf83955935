//! Bursts of kas after a pause. kas limits itself to 50 requests a second, 250 in a burst.

use std::time::Duration;

use super::client::{Connection, Request};
use super::fake_rails::{Latch, Reply};
use super::harness::{Harness, Setup};

const BURST: usize = 250;
/// The default concurrency of the class.
const AT_ONCE: usize = 100;

/// However slow the machine is, no more than these are sent, and other classes still reach Rails.
#[tokio::test]
async fn a_burst_of_kas_requests_is_queued() {
    let harness = Setup::new().text("upstream.classes.kas.queue_timeout", "10m").start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let request = Request::get("agents/agentk/agent_info").with_kas_token();
    let mut connections = Vec::new();
    for _ in 0..BURST {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&request.to_bytes("keep-alive")).await;
        connections.push(connection);
    }
    harness.wait_for_metric(r#"railgate_upstream_in_flight{class="kas"}"#, AT_ONCE).await;
    harness.wait_for_metric(r#"railgate_upstream_queue{class="kas"}"#, BURST - AT_ONCE).await;
    harness.rails.wait_for_requests(AT_ONCE).await;
    // Meanwhile another class is served.
    let mut login = harness.start_request(&Request::get("discover?key_id=1").with_secret()).await;
    harness.rails.wait_for_requests(AT_ONCE + 1).await;
    latch.open();
    assert_eq!(login.read_response().await.status, 200);
    for mut connection in connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    assert_eq!(harness.rails.request_count(), BURST + 1);
}

async fn start_requests(harness: &Harness, count: usize) -> Vec<Connection> {
    let request = Request::get("agents/agentk/agent_info").with_kas_token();
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(harness.start_request(&request).await);
    }
    connections
}

async fn assert_all_answered(harness: &Harness, connections: Vec<Connection>) {
    let count = connections.len();
    for mut connection in connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    assert_eq!(harness.rails.request_count(), count);
}

/// With the default limits, in front of a Rails that takes half a second for each request.
#[tokio::test]
async fn a_burst_of_kas_requests_is_answered_within_the_default_queue_timeout() {
    let harness = Setup::new().start().await;
    harness.rails.respond_always(Reply::json(200, "{}").after_pause(Duration::from_millis(500)));
    let connections = start_requests(&harness, BURST).await;
    assert_all_answered(&harness, connections).await;
}

/// The same in front of a Rails that takes one and a half.
#[tokio::test]
async fn the_usual_rate_of_kas_is_answered_within_the_default_limits() {
    const A_SECOND: usize = 50;
    let harness = Setup::new().start().await;
    harness.rails.respond_always(Reply::json(200, "{}").after_pause(Duration::from_millis(1_500)));
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut connections = Vec::new();
    for _ in 0..40 {
        ticks.tick().await;
        connections.extend(start_requests(&harness, A_SECOND / 10).await);
    }
    assert_all_answered(&harness, connections).await;
}
