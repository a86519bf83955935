//! Load balancing over several servers of Rails.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Address, Request, Response, eventually};
use super::fake_rails::{Behavior, FakeRails, ReceivedRequest, Reply, gitlab};
use super::harness::{RunningGateway, Setup};

const READINESS: &str = "/-/readiness";

/// A gateway in front of several servers.
struct Harness {
    rails: Vec<FakeRails>,
    gateway: RunningGateway,
    setup: Setup,
}

impl Harness {
    /// So many servers, alternately on TCP and unix sockets; the last one may be a backup.
    async fn new(count: usize, setup: Setup, has_backup: bool) -> Self {
        let mut rails = Vec::new();
        for nth in 0..count {
            rails.push(if nth % 2 == 0 {
                FakeRails::listen_tcp().await
            } else {
                FakeRails::listen_unix(&setup.dir.file(&format!("rails-{nth}.sock")))
            });
        }
        let mut servers = String::new();
        for (nth, rails) in rails.iter().enumerate() {
            let (url, is_backup) = (rails.address.url(), has_backup && nth + 1 == count);
            write!(servers, "[[upstream.server]]\nurl = \"{url}\"\nbackup = {is_backup}\n").unwrap();
        }
        let mut settings = setup.settings_with_servers(&servers);
        // A server that was slow once, on a busy machine, is used again soon.
        settings.upstream.load_decay = Duration::from_millis(1);
        let gateway = RunningGateway::start(settings);
        Self { rails, gateway, setup }
    }

    async fn send(&self, request: &Request) -> Response {
        self.gateway.tcp.send(request).await
    }

    async fn send_many(&self, count: usize, request: &Request) {
        for _ in 0..count {
            let response = self.send(request).await;
            assert_eq!(response.status, 200, "{response}");
        }
    }

    /// How many requests each server has got, health checks aside.
    fn request_counts(&self) -> Vec<usize> {
        let is_asked = |request: &&ReceivedRequest| request.target != READINESS;
        self.rails.iter().map(|rails| rails.requests().iter().filter(is_asked).count()).collect()
    }

    /// The name of a server in logs and metrics.
    fn server_name(&self, nth: usize) -> String {
        match &self.rails[nth].address {
            Address::Tcp(address) => address.to_string(),
            Address::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    async fn wait_for_state(&self, nth: usize, state: &str) {
        let series = format!(
            r#"railgate_upstream_server_state{{server="{}",state="{state}"}}"#,
            self.server_name(nth)
        );
        self.gateway.wait_for_metric(&series, 1).await;
    }

    async fn post_servers(&self, body: &Value) -> Response {
        let request = Request::new("POST", "/servers");
        let request = if body.is_null() { request.json("") } else { request.json(&body.to_string()) };
        self.gateway.admin.send(&request).await
    }
}

/// No health checks, and ejections last for an hour.
fn setup() -> Setup {
    Setup::new()
        .text("upstream.health.interval", "0s")
        .text("upstream.ejection.pause", "1h")
        .text("upstream.ejection.longest_pause", "1h")
        .text("upstream.slow_start", "0s")
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

fn user(id: usize) -> Request {
    Request::get(&format!("discover?key_id={id}")).with_secret()
}

#[tokio::test]
async fn all_servers_get_requests() {
    let harness = Harness::new(3, setup(), false).await;
    harness.send_many(300, &allowed()).await;
    let counts = harness.request_counts();
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), 300);
    // Each gets its own address as the host.
    let Address::Tcp(address) = harness.rails[0].address else { panic!() };
    assert_eq!(harness.rails[0].last_request().header("host"), Some(address.to_string().as_str()));
    assert_eq!(harness.rails[1].last_request().header("host"), Some("localhost"));
    for (nth, count) in counts.into_iter().enumerate() {
        let series = format!(
            r#"railgate_upstream_server_duration_seconds_count{{server="{}"}}"#,
            harness.server_name(nth)
        );
        harness.gateway.wait_for_metric(&series, count).await;
    }
}

/// A failed connect is safe to retry on another server.
#[tokio::test]
async fn requests_are_answered_while_one_server_is_unreachable() {
    let mut harness = Harness::new(3, setup().set("upstream.max_idle", 0), false).await;
    harness.send_many(50, &allowed()).await;
    drop(harness.rails.remove(2));
    let before = harness.request_counts();
    harness.send_many(100, &allowed()).await;
    let after = harness.request_counts();
    assert_eq!(after.iter().sum::<usize>(), before.iter().sum::<usize>() + 100, "each was sent once");
    // After five failures it is ejected.
    harness.gateway.wait_for_metric(r#"railgate_upstream_ejections_total{reason="unreachable"}"#, 1).await;
    harness.gateway.wait_for_metric(r#"railgate_upstream_resent_total{reason="unreachable"}"#, 5).await;
    harness.send_many(100, &allowed()).await;
    assert_eq!(
        harness.gateway.metric(r#"railgate_upstream_resent_total{reason="unreachable"}"#).await,
        Some(5)
    );
}

/// Unread requests are retried on another server, whatever they are; read ones only if they are reads.
#[tokio::test]
async fn an_unread_request_is_sent_to_another_server() {
    let harness = Harness::new(2, setup().set("upstream.resend_percent", 100), false).await;
    harness.rails[0].set_behavior(Behavior::CloseUnread, gitlab);
    harness.send_many(30, &allowed()).await;
    assert_eq!(harness.request_counts(), [0, 30]);
    harness.wait_for_state(0, "ejected").await;

    let harness = Harness::new(2, setup().set("upstream.resend_percent", 100), false).await;
    harness.rails[0].respond_always(Reply::hang_up());
    for id in 0..30 {
        let response = harness.send(&user(id)).await;
        assert!(response.status < 500, "{response}");
    }
    let failed = harness.request_counts()[0];
    assert!((1..=5).contains(&failed), "{failed}");
    harness.gateway.wait_for_metric(r#"railgate_upstream_resent_total{reason="read"}"#, failed).await;

    let harness = Harness::new(2, setup(), false).await;
    harness.rails[0].respond_always(Reply::hang_up());
    let mut lost = 0;
    for _ in 0..30 {
        lost += usize::from(harness.send(&allowed()).await.status == 502);
    }
    assert_eq!((lost, harness.request_counts()[0]), (5, 5), "never retried, and not used after its ejection");
}

/// A proxy reports a missing Rails by its status. A 503 of Rails itself means that Gitaly is missing.
#[tokio::test]
async fn a_proxy_without_rails_behind_it_is_ejected() {
    let html = "Content-Type: text/html\r\n";
    for (reply, is_ejected) in [
        (Reply::new(502, html, "no"), true),
        (Reply::new(504, html, "no"), true),
        (Reply::new(503, html, "no"), true),
        (Reply::json(503, r#"{"status":false}"#), false),
        (Reply::json(500, "{}"), false),
        (Reply::json(404, "{}"), false),
    ] {
        let harness = Harness::new(2, setup(), false).await;
        harness.rails[0].respond_always(reply.clone());
        for _ in 0..60 {
            harness.send(&allowed()).await;
        }
        let count = harness.request_counts()[0];
        assert_eq!(count == 5, is_ejected, "{reply:?}: {count}");
        harness.wait_for_state(0, if is_ejected { "ejected" } else { "up" }).await;
    }
}

#[tokio::test]
async fn one_request_probes_an_ejected_server_after_its_pause() {
    let setup = setup().text("upstream.ejection.pause", "1ms").set("upstream.ejection.failures", 1);
    let harness = Harness::new(2, setup, false).await;
    harness.rails[0].respond_always(Reply::new(502, "", "no"));
    let found = eventually("several probes", || async {
        harness.send(&allowed()).await;
        (harness.request_counts()[0] > 3).then_some(())
    });
    found.await;
    harness.rails[0].recover();
    let is_back = eventually("it is back", || async {
        harness.send(&allowed()).await;
        let series =
            format!(r#"railgate_upstream_server_state{{server="{}",state="up"}}"#, harness.server_name(0));
        harness.gateway.metric(&series).await.filter(|is| *is == 1)
    });
    is_back.await;
    let before = harness.request_counts()[0];
    harness.send_many(50, &allowed()).await;
    assert!(harness.request_counts()[0] > before + 5);
}

#[tokio::test]
async fn a_backup_is_used_only_while_the_others_are_unreachable() {
    let setup = setup().text("upstream.ejection.pause", "1ms").set("upstream.max_idle", 0);
    let mut harness = Harness::new(3, setup, true).await;
    harness.send_many(50, &allowed()).await;
    assert_eq!(harness.request_counts()[2], 0);
    let one = harness.rails.remove(0);
    harness.send_many(50, &allowed()).await;
    assert_eq!(harness.request_counts()[1], 0);
    let other = harness.rails.remove(0);
    let (Address::Tcp(address), Address::Unix(path)) = (one.address.clone(), other.address.clone()) else {
        panic!()
    };
    drop((one, other));
    harness.send_many(50, &allowed()).await;
    assert_eq!(harness.request_counts(), [50]);
    // Afterwards it is not used any more.
    std::fs::remove_file(&path).unwrap();
    let back = FakeRails::listen_unix(&path);
    let _also = FakeRails::listen_on(tokio::net::TcpListener::bind(address).await.unwrap());
    let is_asked = eventually("the other servers are used again", || async {
        harness.send(&allowed()).await;
        (back.request_count() > 10).then_some(())
    });
    is_asked.await;
    let before = harness.request_counts();
    harness.send_many(20, &allowed()).await;
    assert_eq!(harness.request_counts(), before);
}

/// Every client can send these requests, and make them fail.
#[tokio::test]
async fn unauthenticated_requests_cannot_eject_a_server() {
    let setup = setup().text("upstream.response_timeout", "50ms");
    let harness = Harness::new(2, setup, false).await;
    for reply in [Reply::new(502, "", "no"), Reply::hang_up(), Reply::silence()] {
        for rails in &harness.rails {
            rails.respond_always(reply.clone());
        }
        for _ in 0..15 {
            assert!(harness.send(&Request::get("pages/status")).await.status >= 500);
        }
    }
    harness.wait_for_state(0, "up").await;
    harness.wait_for_state(1, "up").await;
    assert_eq!(harness.gateway.metric("railgate_upstream_holds_total").await, Some(0));
}

/// As if GitLab did not allow the gateway's address: 404 for all.
#[tokio::test]
async fn failing_health_checks_are_ignored_when_all_servers_fail_them() {
    let setup = Setup::new()
        .text("upstream.health.interval", "5ms")
        .text("upstream.ejection.pause", "1h")
        .text("upstream.ejection.longest_pause", "1h")
        .text("upstream.hold", "10m");
    let harness = Harness::new(3, setup, true).await;
    let unknown = |request: &ReceivedRequest| {
        if request.target == READINESS { Reply::json(404, "{}") } else { gitlab(request) }
    };
    for rails in &harness.rails {
        rails.respond_with(unknown);
    }
    for nth in 0..3 {
        harness.wait_for_state(nth, "unhealthy").await;
    }
    let before = harness.request_counts();
    harness.send_many(60, &allowed()).await;
    let counts = harness.request_counts();
    assert_eq!(counts[2], before[2], "the backup is not needed");
    assert!(counts[0] > before[0] + 5 && counts[1] > before[1] + 5, "{counts:?}");
    harness.rails[0].respond_with(|request| {
        if request.target == READINESS { Reply::json(404, "{}") } else { Reply::new(502, "", "no") }
    });
    for _ in 0..60 {
        harness.send(&allowed()).await;
    }
    assert_eq!(harness.request_counts()[0], counts[0] + 5, "then it is ejected");
    assert_eq!(
        harness.gateway.metric("railgate_upstream_holds_total").await,
        Some(0),
        "other servers are there"
    );
}

/// It is retried on the same server instead.
#[tokio::test]
async fn a_read_is_not_retried_on_an_unhealthy_server() {
    let setup = Setup::new().text("upstream.health.interval", "5ms").set("upstream.resend_percent", 100);
    let harness = Harness::new(2, setup, false).await;
    harness.rails[1].respond_always(Reply::json(500, "{}"));
    let hangs_up = std::sync::atomic::AtomicBool::new(true);
    harness.rails[0].respond_with(move |request| match request.target.as_str() {
        READINESS => Reply::json(200, "{}"),
        _ if hangs_up.swap(false, std::sync::atomic::Ordering::SeqCst) => Reply::hang_up(),
        _ => gitlab(request),
    });
    harness.wait_for_state(1, "unhealthy").await;
    harness.wait_for_state(0, "up").await;
    let before = harness.request_counts();
    let response = harness.send(&user(1)).await;
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(harness.request_counts(), [before[0] + 2, before[1]]);
}

/// A server that only fails its health checks is better than one that reports Rails away.
#[tokio::test]
async fn a_read_is_retried_on_a_server_that_only_fails_health_checks() {
    let setup = Setup::new()
        .text("upstream.health.interval", "5ms")
        .set("upstream.resend_percent", 100)
        .text("upstream.hold", "10m");
    let harness = Harness::new(2, setup, false).await;
    harness.rails[0].respond_with(|request| {
        if request.target == READINESS { Reply::json(200, "{}") } else { Reply::new(502, "", "no") }
    });
    harness.rails[1].respond_with(|request| {
        if request.target == READINESS { Reply::json(404, "{}") } else { gitlab(request) }
    });
    harness.wait_for_state(0, "up").await;
    harness.wait_for_state(1, "unhealthy").await;
    let before = harness.request_counts();
    let response = harness.send(&user(1)).await;
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(harness.request_counts(), [before[0] + 1, before[1] + 1]);
    assert_eq!(harness.gateway.metric("railgate_upstream_holds_total").await, Some(0));
}

/// Retrying on another server takes no waiting.
#[tokio::test]
async fn a_read_is_retried_on_another_server_without_hold() {
    let harness = Harness::new(2, setup().set("upstream.resend_percent", 100), false).await;
    harness.rails[0].respond_always(Reply::new(502, "", "no"));
    for id in 1_000..1_020 {
        let response = harness.send(&user(id)).await;
        assert_eq!(response.status, 200, "{response}");
    }
    let counts = harness.request_counts();
    assert!((1..=5).contains(&counts[0]) && counts[1] == 20, "{counts:?}");
}

/// A deployment behind several proxies, with hardly any traffic: no server has been ejected yet.
#[tokio::test]
async fn requests_wait_while_rails_is_away_behind_all_proxies() {
    let setup = Setup::new().text("upstream.health.interval", "5ms").text("upstream.hold", "10m");
    let harness = Harness::new(2, setup, false).await;
    for rails in &harness.rails {
        rails.respond_always(Reply::new(502, "", "no"));
    }
    harness.wait_for_state(0, "unhealthy").await;
    harness.wait_for_state(1, "unhealthy").await;
    assert_eq!(harness.send(&allowed()).await.status, 502, "it may have been executed");
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&allowed().to_bytes("close")).await;
    harness.gateway.wait_for_metric("railgate_upstream_held", 1).await;
    harness.rails.iter().for_each(FakeRails::recover);
    assert_eq!(connection.read_response().await.status, 200);
}

#[tokio::test]
async fn requests_wait_while_all_servers_are_drained() {
    let harness = Harness::new(2, setup().text("upstream.hold", "10m"), false).await;
    for nth in 0..2 {
        harness.post_servers(&json!({ "server": harness.server_name(nth), "drain": true })).await;
    }
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&allowed().to_bytes("close")).await;
    harness.gateway.wait_for_metric("railgate_upstream_held", 1).await;
    harness.post_servers(&json!({ "server": harness.server_name(1), "drain": false })).await;
    assert_eq!(connection.read_response().await.status, 200);
    assert_eq!(harness.request_counts(), [0, 1]);
}

/// Using servers out of rotation cannot be worse than using none.
#[tokio::test]
async fn all_servers_are_used_when_all_are_ejected() {
    let harness = Harness::new(2, setup(), false).await;
    for rails in &harness.rails {
        rails.respond_always(Reply::new(502, "", "no"));
    }
    for _ in 0..40 {
        assert_eq!(harness.send(&allowed()).await.status, 502, "what Rails says");
    }
    harness.wait_for_state(0, "ejected").await;
    harness.wait_for_state(1, "ejected").await;
    harness.rails.iter().for_each(FakeRails::recover);
    harness.send_many(40, &allowed()).await;
    harness.gateway.wait_for_metric(r#"railgate_upstream_server_state{state="up"}"#, 1).await;
}

#[tokio::test]
async fn requests_wait_for_the_first_server_that_accepts_connections() {
    let setup = setup().text("upstream.hold", "10m");
    let mut harness = Harness::new(2, setup, false).await;
    let (unix, tcp) = (harness.rails.remove(1), harness.rails.remove(0));
    let Address::Unix(path) = unix.address.clone() else { panic!() };
    drop((tcp, unix));
    std::fs::remove_file(&path).unwrap();
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&allowed().to_bytes("close")).await;
        connections.push(connection);
    }
    harness.gateway.wait_for_metric("railgate_upstream_held", 20).await;
    let back = FakeRails::listen_unix(&path);
    for connection in &mut connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    assert_eq!(back.request_count(), 20);
    drop(harness.setup);
}

#[tokio::test]
async fn an_unhealthy_server_gets_no_requests() {
    let ready = |request: &ReceivedRequest| {
        if request.target == READINESS { Reply::json(200, r#"{"status":"ok"}"#) } else { gitlab(request) }
    };
    let unready = |request: &ReceivedRequest| {
        if request.target == READINESS { Reply::json(503, "{}") } else { gitlab(request) }
    };
    let setup = Setup::new().text("upstream.health.interval", "5ms").text("upstream.slow_start", "0s");
    let harness = Harness::new(2, setup, false).await;
    harness.rails[0].respond_with(ready);
    harness.rails[1].respond_with(unready);
    harness.wait_for_state(1, "unhealthy").await;
    harness.wait_for_state(0, "up").await;
    let before = harness.request_counts();
    harness.send_many(50, &allowed()).await;
    assert_eq!(harness.request_counts(), [before[0] + 50, before[1]]);
    // It got only health checks, without a credential.
    let seen = harness.rails[1].requests().into_iter().find(|request| request.target == READINESS).unwrap();
    assert_eq!((seen.method.as_str(), seen.header("host"), seen.body.len()), ("GET", Some("localhost"), 0));
    assert!(!seen.head.to_lowercase().contains("gitlab-shared-secret"), "{}", seen.head);
    harness.rails[1].respond_with(ready);
    harness.wait_for_state(1, "up").await;
    harness.send_many(50, &allowed()).await;
    assert!(harness.request_counts()[1] > before[1] + 5);
    assert!(
        harness.gateway.metric(r#"railgate_upstream_health_checks_total{result="bad"}"#).await >= Some(3)
    );
}

#[tokio::test]
async fn a_server_that_never_answers_its_health_checks_is_unhealthy() {
    let setup = Setup::new().text("upstream.health.interval", "5ms").text("upstream.health.timeout", "20ms");
    let harness = Harness::new(2, setup, false).await;
    harness.rails[0].respond_with(|_| Reply::json(200, "{}"));
    harness.rails[1].respond_always(Reply::silence());
    harness.wait_for_state(1, "unhealthy").await;
    harness.send_many(20, &allowed()).await;
}

#[tokio::test]
async fn an_operator_drains_and_restores_a_server() {
    let harness = Harness::new(2, setup(), false).await;
    harness.send_many(40, &allowed()).await;
    let (first, second) = (harness.server_name(0), harness.server_name(1));
    let response = harness.post_servers(&json!({ "server": first, "drain": true })).await;
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.json()["servers"][0]["state"], "drained");
    let before = harness.request_counts();
    harness.send_many(40, &allowed()).await;
    assert_eq!(harness.request_counts(), [before[0], before[1] + 40]);
    // With both drained, none is used.
    harness.post_servers(&json!({ "server": second, "drain": true })).await;
    harness.send(&allowed()).await.assert_failure(503);
    harness.post_servers(&json!({ "server": first, "drain": false })).await;
    harness.send_many(10, &allowed()).await;
    assert_eq!(harness.request_counts(), [before[0] + 10, before[1] + 40]);
    let shown = harness.post_servers(&Value::Null).await.json();
    assert_eq!(shown["servers"][1]["state"], "drained");
    assert_eq!(
        (&shown["servers"][0]["server"], &shown["servers"][0]["requests"]),
        (&json!(first), &json!(0))
    );

    for (body, message) in [
        (json!({ "server": "10.0.0.1:80", "drain": true }), "there is no such server; there is "),
        (json!({ "server": first }), "say nothing, or which server"),
        (json!({ "server": first, "drain": "yes" }), "say nothing, or which server"),
        (json!({ "server": first, "drain": true, "x": 1 }), "say nothing, or which server"),
        (json!([]), "say nothing, or which server"),
    ] {
        let response = harness.post_servers(&body).await;
        assert_eq!(response.status, 400, "{response}");
        assert!(response.text().contains(message), "{response}");
    }
    let plain = Request::new("POST", "/servers").header("Content-Type", "text/plain");
    assert_eq!(harness.gateway.admin.send(&plain).await.status, 415);
    assert_eq!(harness.gateway.admin.send(&Request::new("GET", "/servers")).await.status, 405);
}

#[tokio::test]
async fn a_drained_server_finishes_its_requests() {
    let harness = Harness::new(2, setup(), false).await;
    let latch = super::fake_rails::Latch::closed();
    let waits = latch.clone();
    harness.rails[0].respond_with(move |request| gitlab(request).after(&waits));
    let mut connections = Vec::new();
    while harness.rails[0].request_count() == 0 {
        let before: usize = harness.request_counts().iter().sum();
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&allowed().to_bytes("close")).await;
        eventually("it arrives", || async {
            (harness.request_counts().iter().sum::<usize>() > before).then_some(())
        })
        .await;
        connections.push(connection);
    }
    harness.post_servers(&json!({ "server": harness.server_name(0), "drain": true })).await;
    let shown = harness.post_servers(&Value::Null).await.json();
    assert_eq!(shown["servers"][0]["requests"], 1, "{shown}");
    latch.open();
    for connection in &mut connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    eventually("nothing is left", || async {
        let shown = harness.post_servers(&Value::Null).await.json();
        (shown["servers"][0]["connections"] == 0).then_some(())
    })
    .await;
}
