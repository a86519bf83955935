//! Unauthenticated clients cannot take slots, time or servers from authenticated ones, nor bring back
//! revoked answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::client::{Address, Connection, Request, eventually};
use super::fake_rails::{FakeRails, Latch, ROOT_KEY, Reply, gitlab};
use super::harness::{RunningGateway, Setup};

/// A request to an unknown endpoint, which requires no credential here.
fn unauthenticated_request() -> Request {
    Request::get("nobody")
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

fn key() -> Request {
    Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

const IN_FLIGHT: &str = r#"railgate_upstream_in_flight{class="other"}"#;
const QUEUE: &str = r#"railgate_upstream_queue{class="other"}"#;
const HELD: &str = "railgate_upstream_held";

async fn start_unauthenticated_requests(gateway: &RunningGateway, count: usize) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&unauthenticated_request().to_bytes("close")).await;
        connections.push(connection);
    }
    connections
}

#[tokio::test]
async fn unauthenticated_requests_get_a_small_share_of_the_concurrency() {
    for (threads, share) in [(None, 16), (Some(40), 5), (Some(4), 1), (Some(4_000), 16)] {
        let setup = threads.map_or_else(Setup::new, |threads| Setup::new().set("upstream.threads", threads));
        let harness = setup.start().await;
        harness.rails.respond_with(|request| {
            let reply = gitlab(request);
            if request.is_for("nobody") { reply.after(&Latch::closed()) } else { reply }
        });
        let _pending = start_unauthenticated_requests(&harness.gateway, 40).await;
        harness.wait_for_metric(IN_FLIGHT, share).await;
        harness.wait_for_metric(QUEUE, 40 - share).await;
        for request in [allowed(), key(), Request::get("kubernetes/agent_info").with_kas_token()] {
            let response = harness.send(&request).await;
            assert_eq!(response.status, 200, "{request} beside {share}: {response}");
        }
        assert_eq!(harness.metric(QUEUE).await, Some(40 - share), "no unauthenticated request was admitted");
    }
}

/// The first sixteen are with Rails for 40 s in all, longer than a burst may be.
#[tokio::test]
async fn a_flood_of_unauthenticated_requests_gets_the_long_run_share() {
    let harness = Setup::new().start().await;
    let (burst, flood) = (Latch::closed(), Latch::closed());
    let latch = Arc::new(Mutex::new(burst.clone()));
    let held_by = Arc::clone(&latch);
    harness.rails.respond_with(move |request| {
        let reply = gitlab(request);
        if request.is_for("nobody") { reply.after(&held_by.lock().unwrap()) } else { reply }
    });
    let limit = r#"railgate_upstream_concurrency_limit{class="other"}"#;
    let pending = start_unauthenticated_requests(&harness.gateway, 16).await;
    harness.wait_for_metric(IN_FLIGHT, 16).await;
    assert_eq!(harness.metric(limit).await, Some(16));
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    *latch.lock().unwrap() = flood;
    burst.open();
    for mut connection in pending {
        assert_eq!(connection.read_response().await.status, 200);
    }
    let _pending = start_unauthenticated_requests(&harness.gateway, 2).await;
    harness.wait_for_metric(QUEUE, 1).await;
    assert_eq!(harness.metric(IN_FLIGHT).await, Some(1));
    assert_eq!(harness.metric(limit).await, Some(1));
    for class in ["lookup", "access", "callback", "kas"] {
        let limit = harness.metric(&limit.replace("other", class)).await;
        assert_eq!(limit, Some(if class == "kas" { 100 } else { 256 }), "{class}");
    }
}

/// Rails works on a request whose client has left, so its permit is not free before Rails has answered.
#[tokio::test]
async fn clients_that_hang_up_do_not_get_more_of_rails() {
    let harness = Setup::new().set("upstream.classes.other.concurrency", 3).start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    for _ in 0..3 {
        drop(start_unauthenticated_requests(&harness.gateway, 3).await);
    }
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    let waiting = start_unauthenticated_requests(&harness.gateway, 4).await;
    harness.wait_for_metric(QUEUE, 4).await;
    assert_eq!(harness.metric(IN_FLIGHT).await, Some(3));
    assert_eq!(harness.rails.requests().len(), 3);
    drop(waiting);
    harness.wait_for_metric(QUEUE, 0).await;
    latch.open();
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    assert_eq!(harness.rails.requests().len(), 3, "those that only waited are not sent");
    assert_eq!(harness.send(&unauthenticated_request()).await.status, 200);
}

/// A body that does not come takes no permit, declared or in chunks.
#[tokio::test]
async fn stalled_bodies_do_not_take_the_permits_of_others() {
    let harness = Setup::new().set("upstream.classes.other.concurrency", 1).start().await;
    let mut stalled = Vec::new();
    for framing in ["content-length: 10\r\n\r\n1", "transfer-encoding: chunked\r\n\r\n5\r\n1"] {
        let mut connection = harness.gateway.tcp.connect().await;
        let head = "POST /api/v4/internal/nobody HTTP/1.1\r\nhost: gitlab\r\ncontent-type: text/plain\r\n";
        connection.write(format!("{head}{framing}").as_bytes()).await;
        stalled.push(connection);
    }
    harness.wait_for_metric("railgate_requests_in_flight", 2).await;
    assert_eq!(harness.metric(IN_FLIGHT).await, Some(0));
    assert_eq!(harness.send(&unauthenticated_request()).await.status, 200);
    let rest = ["234567890", "2345\r\n0\r\n\r\n"];
    for (connection, rest) in stalled.iter_mut().zip(rest) {
        connection.write(rest.as_bytes()).await;
        assert_eq!(connection.read_response().await.status, 200);
    }
    let bodies: Vec<_> = harness.rails.requests().iter().map(|seen| seen.body.clone()).collect();
    assert_eq!(bodies.iter().map(Vec::len).collect::<Vec<_>>(), [0, 10, 5]);
}

/// Puma serves kept connections before new ones, so those of unauthenticated requests are not kept, and they
/// get no kept ones.
#[tokio::test]
async fn unauthenticated_requests_have_their_own_connections() {
    let harness = Setup::new().set("workers", 1).start().await;
    let mut connections = 0;
    for request in [
        allowed(),
        unauthenticated_request(),
        allowed(),
        unauthenticated_request(),
        unauthenticated_request().json("{}"),
        allowed(),
    ] {
        let is_apart = request.target.ends_with("nobody");
        connections += usize::from(is_apart || connections == 0);
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!(response.status, 200, "{response}");
        assert_eq!(seen.header("connection"), is_apart.then_some("close"), "{request}");
        assert_eq!(harness.rails.connection_count(), connections, "{request}");
    }
}

#[tokio::test]
async fn the_share_of_unauthenticated_requests_is_configurable() {
    let harness = Setup::new().set("upstream.classes.other.concurrency", 3).start().await;
    harness.rails.respond_always(Reply::json(200, "{}").after(&Latch::closed()));
    let _pending = start_unauthenticated_requests(&harness.gateway, 5).await;
    harness.wait_for_metric(IN_FLIGHT, 3).await;
    harness.wait_for_metric(QUEUE, 2).await;
}

/// Neither by failures nor by successes.
#[tokio::test]
async fn unauthenticated_requests_do_not_affect_server_health() {
    let failures = "railgate_upstream_failures_in_a_row";
    for reply in [Reply::hang_up(), Reply::json(502, "{}"), Reply::json(503, "{}")] {
        let setup = Setup::new().text("upstream.health.interval", "0s").set("upstream.ejection.failures", 2);
        let (one, other) = (FakeRails::listen_tcp().await, FakeRails::listen_tcp().await);
        let servers =
            [&one, &other].map(|rails| format!("[[upstream.server]]\nurl = \"{}\"\n", rails.address.url()));
        let gateway = RunningGateway::start(setup.settings_with_servers(&servers.concat()));
        for rails in [&one, &other] {
            rails.respond_always(reply.clone());
        }
        for _ in 0..20 {
            gateway.tcp.send(&unauthenticated_request()).await;
        }
        let shown = gateway.metrics().await;
        let ejections = shown.lines().filter(|line| line.starts_with("railgate_upstream_ejections_total{"));
        assert!(ejections.into_iter().all(|line| line.ends_with(" 0")), "{shown}");
        let in_a_row = shown.lines().filter(|line| line.starts_with(failures) && !line.ends_with(" 0"));
        assert_eq!(in_a_row.count(), 0, "{shown}");
        let ready = gateway.admin.send(&Request::new("GET", "/ready")).await.json();
        assert_eq!(ready["upstream"]["state"], "unknown", "{ready}");
        // Both are in rotation.
        for rails in [&one, &other] {
            rails.recover();
        }
        for _ in 0..8 {
            assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
        }
    }
}

/// Not even if the connect fails, with and without hold.
#[tokio::test]
async fn refused_unauthenticated_requests_do_not_affect_server_health() {
    for hold in ["0s", "100ms"] {
        let setup = Setup::new().text("upstream.hold", hold).set("upstream.ejection.failures", 2);
        let harness =
            setup.text("upstream.health.interval", "0s").set("upstream.classes.other.queue", 2).start().await;
        let mut connections = {
            let gone = harness.rails;
            drop(gone);
            start_unauthenticated_requests(&harness.gateway, 8).await
        };
        for connection in &mut connections {
            connection.read_response().await.assert_failure(503);
        }
        let ready = harness.gateway.admin.send(&Request::new("GET", "/ready")).await.json();
        assert_eq!(ready["upstream"]["state"], "unknown", "{ready}");
        harness.gateway.tcp.send(&allowed()).await.assert_failure(503);
        let ready = harness.gateway.admin.send(&Request::new("GET", "/ready")).await.json();
        assert_eq!(ready["upstream"]["state"], "failing", "{ready}");
    }
}

/// A busy Rails is no reason to serve a stale answer that may be revoked.
#[tokio::test]
async fn revoked_entries_are_not_served_while_rails_is_busy() {
    let mut setup = Setup::new()
        .set("upstream.classes.lookup.concurrency", 1)
        .text("upstream.classes.lookup.queue_timeout", "100ms");
    for route in ["authorized_keys", "discover"] {
        setup = setup
            .text(&format!("cache.{route}.ttl"), "1ms")
            .text(&format!("cache.{route}.negative_ttl"), "1ms")
            .text(&format!("cache.{route}.stale_while_revalidate"), "0s")
            .text(&format!("cache.{route}.stale_if_error"), "1h");
    }
    let harness = setup.start().await;
    let user = Request::get("discover?key_id=1").with_secret();
    for request in [key(), user.clone()] {
        assert_eq!(harness.send(&request).await.status, 200);
    }
    let latch = Latch::closed();
    let until = latch.clone();
    harness.rails.respond_with(move |request| {
        let unknown = Reply::json(404, r#"{"message":"404 Key Not Found"}"#);
        if request.target.contains("user_id") { unknown.after(&until) } else { unknown }
    });
    let mut slow = harness.start_request(&Request::get("discover?user_id=9").with_secret()).await;
    harness.wait_for_metric(r#"railgate_upstream_in_flight{class="lookup"}"#, 1).await;
    for request in [key(), user.clone()] {
        for _ in 0..3 {
            harness.send(&request).await.assert_failure(503);
        }
    }
    for route in ["authorized_keys", "discover"] {
        let outage = format!("railgate_cache_outage{{route=\"{route}\"}}");
        assert_eq!(harness.metric(&outage).await, Some(0));
    }
    latch.open();
    assert_eq!(slow.read_response().await.status, 404);
    for request in [key(), user.clone()] {
        assert_eq!(harness.send(&request).await.status, 404);
    }
    // When Rails fails later, no entry is left.
    harness.rails.respond_always(Reply::json(502, "{}"));
    for request in [key(), user] {
        eventually("what is unknown to be asked anew", async || {
            let response = harness.send(&request).await;
            assert_ne!(response.status, 200, "{response}");
            (response.status == 502).then_some(())
        })
        .await;
    }
}

/// Each class has its own limit in the hold queue.
#[tokio::test]
async fn unauthenticated_requests_do_not_fill_the_hold_queue() {
    let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = Address::Tcp(port.local_addr().unwrap().as_socket().unwrap());
    let setup = Setup::new()
        .text("upstream.hold", "10m")
        .set("upstream.max_held", 5)
        .set("upstream.classes.other.queue", 3);
    let gateway = RunningGateway::start(setup.settings(&address));
    let mut unauthenticated = start_unauthenticated_requests(&gateway, 3).await;
    gateway.wait_for_metric(HELD, 3).await;
    gateway.tcp.send(&unauthenticated_request()).await.assert_failure(503);
    gateway.wait_for_metric(r#"railgate_failures_total{reason="hold_full"}"#, 1).await;
    let mut callers = Vec::new();
    for request in [allowed(), key(), Request::post("pre_receive").with_secret().form("a=b")] {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&request.to_bytes("close")).await;
        callers.push(connection);
    }
    gateway.wait_for_metric(HELD, 6).await;
    port.listen(1_024).unwrap();
    port.set_nonblocking(true).unwrap();
    let rails = FakeRails::listen_on(tokio::net::TcpListener::from_std(port.into()).unwrap());
    for connection in callers.iter_mut().chain(&mut unauthenticated) {
        assert!(connection.read_response().await.status < 500);
    }
    let order: Vec<bool> = rails.requests().iter().map(|request| request.is_for("nobody")).collect();
    assert_eq!(order, [false, false, false, true, true, true], "those with a credential go first");
}

/// A server that answers nothing hangs; one that answers other requests is busy.
#[tokio::test]
async fn a_timeout_on_a_server_that_answers_others_is_no_outage() {
    for is_busy in [true, false] {
        let harness = Setup::new()
            .text("cache.authorized_keys.ttl", "1ms")
            .text("cache.authorized_keys.stale_while_revalidate", "0s")
            .text("cache.stale_wait", "1s")
            .text("upstream.response_timeout", "1500ms")
            .start()
            .await;
        assert_eq!(harness.send(&key()).await.status, 200);
        harness.rails.respond_with(move |request| {
            if request.target.contains("authorized_keys") || !is_busy {
                Reply::silence()
            } else {
                gitlab(request)
            }
        });
        let mut connection = harness.start_request(&key()).await;
        harness.rails.wait_for_requests(2).await;
        let others = async {
            for id in 1_000.. {
                if is_busy {
                    let user = Request::get(&format!("discover?key_id={id}")).with_secret();
                    assert_eq!(harness.send(&user).await.status, 200);
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let response = tokio::select! {
            response = connection.read_response() => response,
            () = others => unreachable!("they go on for ever"),
        };
        if is_busy {
            response.assert_failure(504);
        } else {
            assert!(
                response.status == 200 && response.cache_status().ends_with("stale_if_error"),
                "{response}"
            );
        }
        let outage = harness.metric("railgate_cache_outage{route=\"authorized_keys\"}").await;
        assert_eq!(outage, Some(usize::from(!is_busy)));
    }
}
