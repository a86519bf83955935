//! Rails is away: which requests are held, for how long, and with which outcome.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::client::{Address, Connection, Request, Response, eventually};
use super::collector::{Collector, assert_nested, named};
use super::credentials::{KAS_HEADER, kas_token, now};
use super::fake_rails::{Behavior, FakeRails, ROOT_KEY, Reply, gitlab};
use super::harness::{RunningGateway, Setup};
use super::log;

/// What the kernel says of a port on which nothing listens.
const REFUSED: &str = "Connection refused";
const HELD: &str = "railgate_upstream_held";
const UNREAD: &str = r#"railgate_upstream_resent_total{reason="unread"}"#;

/// A gateway in front of a port that refuses connections until `start_rails` is called.
struct Harness {
    gateway: RunningGateway,
    port: Socket,
}

impl Harness {
    fn new(setup: Setup) -> Self {
        let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = port.local_addr().unwrap().as_socket().unwrap();
        Self { gateway: RunningGateway::start(setup.settings(&Address::Tcp(address))), port }
    }

    /// Rails starts to listen on the port.
    fn start_rails(self) -> (RunningGateway, FakeRails) {
        self.port.listen(1_024).unwrap();
        self.port.set_nonblocking(true).unwrap();
        (self.gateway, FakeRails::listen_on(tokio::net::TcpListener::from_std(self.port.into()).unwrap()))
    }

    async fn request(&self, request: &Request) -> Connection {
        let mut connection = self.gateway.tcp.connect().await;
        connection.write(&request.to_bytes("close")).await;
        connection
    }
}

fn setup_with_hold() -> Setup {
    Setup::new().text("upstream.hold", "10m")
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

fn assert_retry_later(response: &Response) {
    response.assert_failure(503);
    assert_eq!(response.header("retry-after"), Some("1"), "{response}");
}

#[tokio::test]
async fn requests_are_held_while_rails_is_away() {
    let harness = Harness::new(setup_with_hold());
    let mut connections = Vec::new();
    for nth in 0..100 {
        let request = if nth % 2 == 0 { allowed() } else { Request::get("lfs").with_secret() };
        connections.push(harness.request(&request).await);
    }
    harness.gateway.wait_for_metric(HELD, 100).await;
    let (gateway, rails) = harness.start_rails();
    for connection in &mut connections {
        let response = connection.read_response().await;
        assert_eq!(response.status, 200, "{response}");
    }
    assert_eq!(rails.request_count(), 100, "each is asked once");
    gateway.wait_for_metric(HELD, 0).await;
    gateway.wait_for_metric("railgate_upstream_holds_total", 100).await;
    gateway.wait_for_metric(r#"railgate_upstream_queue_seconds_count{route="allowed"}"#, 50).await;
    // From now on no request is held.
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    gateway.wait_for_metric("railgate_upstream_holds_total", 100).await;
}

#[tokio::test]
async fn holding_is_bounded_in_number_and_time() {
    let harness = Harness::new(setup_with_hold().set("upstream.max_held", 2));
    let _waiting = [harness.request(&allowed()).await, harness.request(&allowed()).await];
    harness.gateway.wait_for_metric(HELD, 2).await;
    assert_retry_later(&harness.gateway.tcp.send(&allowed()).await);
    harness.gateway.wait_for_metric(r#"railgate_failures_total{reason="hold_full"}"#, 1).await;

    let harness = Harness::new(Setup::new().text("upstream.hold", "50ms"));
    let mut connections = [harness.request(&allowed()).await, harness.request(&allowed()).await];
    for connection in &mut connections {
        assert_retry_later(&connection.read_response().await);
    }
    harness.gateway.wait_for_metric(HELD, 0).await;
    let (gateway, rails) = harness.start_rails();
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    assert_eq!(rails.request_count(), 1);
}

#[tokio::test]
async fn hold_is_configurable_per_class() {
    let harness = Harness::new(setup_with_hold().text("upstream.classes.lookup.hold", "0s"));
    let _waiting = harness.request(&allowed()).await;
    harness.gateway.wait_for_metric(HELD, 1).await;
    assert_retry_later(&harness.gateway.tcp.send(&Request::get("discover?key_id=1").with_secret()).await);
    harness.gateway.wait_for_metric(HELD, 1).await;
}

/// The question is whether Rails is there now.
#[tokio::test]
async fn health_checks_are_not_held() {
    let harness = Harness::new(setup_with_hold());
    assert_retry_later(&harness.gateway.tcp.send(&Request::get("check").with_secret()).await);
    harness.gateway.wait_for_metric(HELD, 0).await;
}

#[tokio::test]
async fn a_disconnected_request_is_not_held() {
    let harness = Harness::new(setup_with_hold());
    let first = harness.request(&allowed()).await;
    harness.gateway.wait_for_metric(HELD, 1).await;
    let mut second = harness.request(&allowed()).await;
    harness.gateway.wait_for_metric(HELD, 2).await;
    drop(first);
    harness.gateway.wait_for_metric(HELD, 1).await;
    let (_gateway, rails) = harness.start_rails();
    assert_eq!(second.read_response().await.status, 200);
    assert_eq!(rails.request_count(), 1);
}

/// A kas token lives for seconds. A request whose token will have expired is not sent.
#[tokio::test]
async fn a_request_is_not_held_beyond_its_token_expiry() {
    let harness = Harness::new(setup_with_hold());
    let request = Request::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":1}"#);
    let claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": now() + 7 });
    let with = |id: &str| request.clone().header(KAS_HEADER, &kas_token(&claims)).header("X-Request-Id", id);
    let mut connection = harness.request(&with("expires-first")).await;
    // Wherever it is in the queue.
    let _other = harness.request(&allowed()).await;
    harness.gateway.wait_for_metric(HELD, 2).await;
    let mut behind = harness.request(&with("expires-behind")).await;
    assert_retry_later(&connection.read_response().await);
    assert_retry_later(&behind.read_response().await);
    harness.gateway.wait_for_metric(HELD, 1).await;
    harness.gateway.wait_for_metric(r#"railgate_failures_total{reason="credential_expires"}"#, 2).await;
    for id in ["expires-first", "expires-behind"] {
        assert_cause_logged(id).await;
    }
}

#[tokio::test]
async fn a_stale_answer_is_served_without_hold() {
    let rails = FakeRails::listen_tcp().await;
    // No upstream connection is kept from the first request.
    let setup = setup_with_hold().set("upstream.max_idle", 0).text("cache.stale_wait", "1h");
    let setup = setup.text("cache.authorized_keys.ttl", "1ms");
    let setup = setup.text("cache.authorized_keys.stale_while_revalidate", "0s");
    let harness = setup.text("cache.authorized_keys.stale_if_error", "1h").start_with(rails);
    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    assert_eq!(harness.send(&key).await.status, 200);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let super::harness::Harness { rails, gateway, dir: _dir } = harness;
    drop(rails);
    // A request without a cached answer is held.
    let mut waiting = gateway.tcp.connect().await;
    waiting.write(&allowed().to_bytes("close")).await;
    gateway.wait_for_metric(HELD, 1).await;
    for _ in 0..3 {
        let response = gateway.tcp.send(&key).await;
        assert!(response.cache_status().ends_with("detail=stale_if_error"), "{response}");
    }
    gateway.wait_for_metric(HELD, 1).await;
}

#[tokio::test]
async fn all_workers_share_one_hold_queue() {
    let harness = Harness::new(setup_with_hold().set("workers", 4));
    let mut connections = Vec::new();
    for _ in 0..40 {
        connections.push(harness.request(&allowed()).await);
    }
    harness.gateway.wait_for_metric(HELD, 40).await;
    let (gateway, rails) = harness.start_rails();
    rails.respond_with(|_| Reply::json(200, "{}"));
    for connection in &mut connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    assert_eq!(rails.request_count(), 40);
    gateway.wait_for_metric(HELD, 0).await;
}

/// Rails stops at that moment and no longer reads its connections. Even requests that must not be executed
/// twice are not lost.
#[tokio::test]
async fn unread_requests_are_retried() {
    for is_unix in [false, true] {
        let setup = setup_with_hold();
        let rails = if is_unix {
            FakeRails::listen_unix(&setup.dir.file("rails.sock"))
        } else {
            FakeRails::listen_tcp().await
        };
        let harness = setup.start_with(rails);
        harness.rails.set_behavior(Behavior::CloseUnread, gitlab);
        let mut connections = Vec::new();
        for request in [
            allowed(),
            Request::post("pre_receive").with_secret().form("a=b"),
            Request::get("lfs").with_secret(),
        ] {
            let mut connection = harness.gateway.tcp.connect().await;
            connection.write(&request.to_bytes("close")).await;
            connections.push(connection);
        }
        eventually("it to be sent again", async || harness.metric(UNREAD).await.filter(|count| *count > 0))
            .await;
        assert_eq!(harness.rails.request_count(), 0);
        harness.rails.recover();
        for connection in &mut connections {
            let response = connection.read_response().await;
            assert_eq!(response.status, 200, "{response}");
        }
        assert_eq!(harness.rails.request_count(), 3, "each once");
    }
}

/// A reset is a strong sign that nothing was read, but no proof: a process can cause one.
#[tokio::test]
async fn unread_requests_are_sent_at_most_three_times() {
    for is_unix in [false, true] {
        let setup = setup_with_hold();
        let rails = if is_unix {
            FakeRails::listen_unix(&setup.dir.file("rails.sock"))
        } else {
            FakeRails::listen_tcp().await
        };
        let harness = setup.start_with(rails);
        harness.rails.set_behavior(Behavior::CloseUnread, gitlab);
        harness.send(&allowed()).await.assert_failure(502);
        harness.send(&Request::get("lfs").with_secret()).await.assert_failure(502);
        assert_eq!(harness.metric(UNREAD).await, Some(4));
        harness.gateway.wait_for_metric(HELD, 0).await;
    }
}

/// Rails may have executed what it has read.
#[tokio::test]
async fn read_requests_are_not_retried() {
    let harness = setup_with_hold().start().await;
    harness.rails.respond_always(Reply::hang_up());
    let (response, asked) = harness.send_counting(&allowed()).await;
    response.assert_failure(502);
    assert_eq!((asked, harness.metric(UNREAD).await), (1, Some(0)));
    // Nor bodies that are too large to be replayed, nor with `resend_unread = false`.
    harness.rails.set_behavior(Behavior::CloseUnread, gitlab);
    let large = Request::post("allowed").with_secret().body(vec![b'x'; 70_000]);
    harness.send(&large).await.assert_failure(502);
    let harness = setup_with_hold().set("upstream.resend_unread", false).start().await;
    harness.rails.set_behavior(Behavior::CloseUnread, gitlab);
    harness.send(&allowed()).await.assert_failure(502);
    assert_eq!(harness.metric(UNREAD).await, Some(0));
}

/// All held requests get the same failure, and the time on hold does not count as Rails' time.
#[tokio::test]
async fn an_expired_hold_is_a_503() {
    let harness = Harness::new(Setup::new().text("upstream.hold", "100ms"));
    let mut connections = Vec::new();
    for _ in 0..5 {
        connections.push(harness.request(&allowed()).await);
    }
    for connection in &mut connections {
        assert_retry_later(&connection.read_response().await);
    }
    harness.gateway.wait_for_metric(r#"railgate_failures_total{reason="upstream_unreachable"}"#, 5).await;
    harness.gateway.wait_for_metric(r#"railgate_upstream_queue_seconds_count{route="allowed"}"#, 5).await;
    let slow = r#"railgate_upstream_duration_seconds_bucket{le="0.05",route="allowed"}"#;
    let metrics = harness.gateway.metrics().await;
    let quick = metrics.lines().find_map(|line| line.strip_prefix(slow));
    let quick = quick.or_else(|| {
        metrics.lines().find_map(|line| {
            line.strip_prefix(r#"railgate_upstream_duration_seconds_bucket{route="allowed",le="0.05"}"#)
        })
    });
    assert_eq!(quick.map(str::trim), Some("5"), "{metrics}");
}

/// Also where it is the cache that says so, whose requests are sent by tasks of their own.
#[tokio::test]
async fn the_log_says_which_request_met_the_outage() {
    let harness = Harness::new(Setup::new().text("upstream.hold", "10ms"));
    for (request, id, messages) in [
        (allowed(), "first-in-the-outage", &["Rails cannot be reached", "Rails is still away"][..]),
        (Request::get("discover?key_id=1").with_secret(), "second-in-the-outage", &["Rails fails"]),
    ] {
        harness.gateway.tcp.send(&request.header("X-Request-Id", id)).await.assert_failure(503);
        let id = format!("\"correlation_id\":\"{id}\"");
        let lines = log::wait_for_lines(&id, messages.len() + 1).await;
        for message in messages {
            assert!(lines.iter().any(|line| line.contains(message)), "{message}: {lines:#?}");
        }
    }
}

#[tokio::test]
async fn holding_ends_at_the_total_timeout() {
    let harness = Harness::new(setup_with_hold().text("upstream.total_timeout", "100ms"));
    let ids = ["total-timeout-0", "total-timeout-1"];
    let mut connections = Vec::new();
    for id in ids {
        connections.push(harness.request(&allowed().header("X-Request-Id", id)).await);
    }
    for connection in &mut connections {
        connection.read_response().await.assert_failure(504);
    }
    harness.gateway.wait_for_metric(r#"railgate_failures_total{reason="upstream_total_timeout"}"#, 2).await;
    for id in ids {
        assert_cause_logged(id).await;
    }
    let (_gateway, rails) = harness.start_rails();
    assert_eq!(rails.request_count(), 0);
}

/// Asserts that the line of a failed request says why Rails cannot be reached, whatever ended the wait.
async fn assert_cause_logged(id: &str) {
    let line = log::wait_for_request_line(id).await;
    let error = line["error"].as_str().unwrap_or_default();
    assert!(error.contains(REFUSED), "{line}");
}

/// Only one of them asks Rails, and all of them have to say what is wrong.
#[tokio::test]
async fn the_cause_is_logged_for_all_who_wait_for_one_lookup() {
    let harness = Harness::new(Setup::new().text("upstream.classes.lookup.hold", "1s"));
    let lookup = Request::get("discover?key_id=1").with_secret();
    let ids = ["lookup-0", "lookup-1", "lookup-2"];
    let mut connections = Vec::new();
    for id in ids {
        connections.push(harness.request(&lookup.clone().header("X-Request-Id", id)).await);
    }
    for connection in &mut connections {
        assert_retry_later(&connection.read_response().await);
    }
    for id in ids {
        assert_cause_logged(id).await;
    }
}

#[tokio::test]
async fn the_wait_of_a_held_request_is_in_its_trace() {
    let collector = Collector::start().await;
    let harness = Harness::new(collector.setup().text("upstream.hold", "10m"));
    let mut waiting = harness.request(&allowed().header("X-Request-Id", "held")).await;
    harness.gateway.wait_for_metric(HELD, 1).await;
    let (_gateway, _rails) = harness.start_rails();
    assert_eq!(waiting.read_response().await.status, 200);
    let spans = collector.trace_of("held").await;
    assert_nested(&spans);
    let (server, hold) = (named(&spans, "POST /api/v4/internal/allowed"), named(&spans, "hold"));
    assert_eq!(hold.parent, server.id);
    let answered = spans.iter().find(|span| span.attribute("http.response.status_code") == Some("200"));
    assert!(answered.is_some_and(|attempt| attempt.name == "POST" && hold.end <= attempt.end), "{spans:#?}");
}
