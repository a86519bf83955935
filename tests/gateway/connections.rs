//! Connections on both sides: how long they are kept, how many there are, and when they are reused.

use super::client::{Incomplete, Request, within_deadline};
use super::fake_rails::{FakeRails, Latch, Reply};
use super::harness::{Harness, Setup};

const OPEN: &str = "railgate_upstream_connections";

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

/// GitLab Shell opens a connection for every request.
#[tokio::test]
async fn many_client_connections_share_few_upstream_connections() {
    for is_unix in [false, true] {
        let setup = Setup::new();
        let rails = if is_unix {
            FakeRails::listen_unix(&setup.dir.file("rails.sock"))
        } else {
            FakeRails::listen_tcp().await
        };
        let harness = setup.start_with(rails);
        for index in 0..50 {
            let address = if index % 2 == 0 { &harness.gateway.tcp } else { &harness.gateway.unix };
            assert_eq!(address.send(&allowed()).await.status, 200);
        }
        assert_eq!(harness.rails.request_count(), 50);
        // One would suffice. A second one may be opened before the first is known to be free again.
        assert!(harness.rails.connection_count() <= 10, "{} connections", harness.rails.connection_count());
    }
}

#[tokio::test]
async fn no_more_than_max_idle_connections_are_kept() {
    let harness = Setup::new().set("upstream.max_idle", 2).start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut connections = Vec::new();
    for _ in 0..10 {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&allowed().to_bytes("close")).await;
        connections.push(connection);
    }
    harness.rails.wait_for_requests(10).await;
    assert_eq!(harness.rails.connection_count(), 10);
    latch.open();
    for connection in &mut connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    harness.rails.wait_for_closed(8).await;
    harness.wait_for_metric(OPEN, 2).await;
}

#[tokio::test]
async fn no_idle_connections_are_kept_if_max_idle_is_zero() {
    let harness = Setup::new().set("upstream.max_idle", 0).start().await;
    for count in 1..=5 {
        assert_eq!(harness.send(&allowed()).await.status, 200);
        harness.rails.wait_for_closed(count).await;
        assert_eq!(harness.rails.connection_count(), count);
    }
}

/// Puma closes idle connections after a while, so the gateway does it first.
#[tokio::test]
async fn idle_upstream_connections_are_closed_after_idle_timeout() {
    let harness = Setup::new().text("upstream.idle_timeout", "50ms").start().await;
    assert_eq!(harness.send(&allowed()).await.status, 200);
    harness.rails.wait_for_closed(1).await;
    harness.wait_for_metric(OPEN, 0).await;
    assert_eq!(harness.send(&allowed()).await.status, 200);
}

#[tokio::test]
async fn a_closed_upstream_connection_is_not_reused() {
    let harness = Harness::new().await;
    for is_announced in [false, true] {
        let announcement = if is_announced { "Connection: close\r\n" } else { "" };
        harness.rails.respond_always(Reply::new(200, announcement, "{}").then_close());
        for request in [allowed(), Request::get("lfs").with_secret(), Request::get("check").with_secret()] {
            let response = harness.send(&request).await;
            assert_eq!(
                (response.status, response.header_values("connection")),
                (200, vec!["close"]),
                "{response}"
            );
            harness.wait_for_metric(OPEN, 0).await;
        }
    }
    // `Connection: close` of Rails does not close the client's connection.
    let mut connection = harness.gateway.tcp.connect().await;
    for _ in 0..5 {
        let response = connection.exchange(&allowed()).await;
        assert_eq!((response.status, response.header_values("connection")), (200, vec![]), "{response}");
        harness.wait_for_metric(OPEN, 0).await;
    }
}

#[tokio::test]
async fn idle_client_connections_are_closed() {
    let harness = Setup::new().text("limits.idle_timeout", "100ms").start().await;
    let mut silent = harness.gateway.tcp.connect().await;
    assert_eq!(silent.read_to_end().await, b"");
    let mut used = harness.gateway.unix.connect().await;
    used.write(&allowed().to_bytes("keep-alive")).await;
    assert_eq!(used.read_response().await.status, 200);
    assert_eq!(used.read_to_end().await, b"");
    harness.wait_for_metric("railgate_client_connections", 0).await;
}

#[tokio::test]
async fn a_client_waiting_for_rails_is_not_idle() {
    let harness = Setup::new().text("limits.idle_timeout", "50ms").start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&allowed().to_bytes("keep-alive")).await;
    harness.rails.wait_for_requests(1).await;
    // When this one has been closed, the other one has waited as long.
    let mut idle = harness.gateway.tcp.connect().await;
    assert_eq!(idle.read_to_end().await, b"");
    latch.open();
    assert_eq!(connection.read_response().await.status, 200);
}

/// A client that has begun a body must continue it.
#[tokio::test]
async fn a_body_that_pauses_for_too_long_is_given_up() {
    let harness = Setup::new().text("limits.idle_timeout", "100ms").start().await;
    let form = Request::post("allowed").form("secret_token=s3cret");
    for request in [allowed(), allowed().chunked(1), form.clone(), form.chunked(5)] {
        let bytes = request.to_bytes("keep-alive");
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&bytes[..bytes.len() - 1]).await;
        match connection.try_read_response().await {
            Ok(response) => response.assert_failure(400),
            Err(Incomplete::Head(nothing)) => assert_eq!(nothing, b""),
            Err(incomplete) => panic!("{incomplete}"),
        }
        assert_eq!(connection.read_to_end().await, b"");
    }
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    harness.wait_for_metric(OPEN, 0).await;
    assert_eq!(harness.rails.request_count(), 0);
    harness.wait_for_metric("railgate_upstream_failures_in_a_row", 0).await;
}

#[tokio::test]
async fn a_response_that_the_client_does_not_read_is_cancelled() {
    let harness = Setup::new().text("limits.idle_timeout", "100ms").start().await;
    harness.rails.respond_always(Reply::new(200, "", vec![b'x'; 64 << 20]));
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&allowed().to_bytes("close")).await;
    harness.rails.wait_for_requests(1).await;
    harness.rails.wait_for_closed(1).await;
    harness.wait_for_metric("railgate_clients_gone_total", 1).await;
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    drop(connection);
}

#[tokio::test]
async fn a_disconnected_client_frees_its_upstream_connection() {
    let harness = Harness::new().await;
    harness.rails.respond_always(Reply::silence());
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&allowed().to_bytes("close")).await;
    harness.rails.wait_for_requests(1).await;
    drop(connection);
    within_deadline("the connection to Rails to be closed", harness.rails.wait_for_closed(1)).await;
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    harness.wait_for_metric("railgate_clients_gone_total", 1).await;
    harness.wait_for_metric("railgate_client_connections", 0).await;
}

#[tokio::test]
async fn a_client_disconnecting_mid_response_frees_its_upstream_connection() {
    let harness = Harness::new().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun";
    harness.rails.respond_always(Reply::bytes(head).then_hang());
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&allowed().to_bytes("close")).await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"begun") {
        seen.extend(connection.read_some().await);
    }
    drop(connection);
    within_deadline("the connection to Rails to be closed", harness.rails.wait_for_closed(1)).await;
    harness.wait_for_metric("railgate_clients_gone_total", 1).await;
}

/// Hundreds of requests on one connection, of all kinds.
#[tokio::test]
async fn responses_on_a_kept_connection_stay_in_order() {
    let harness = Harness::new().await;
    let mut connection = harness.gateway.unix.connect().await;
    for index in 0..300 {
        let (request, status) = match index % 7 {
            0 => (allowed(), 200),
            1 => (Request::get("check").with_secret(), 200),
            2 => (Request::get("check"), 401),
            3 => (Request::new("GET", "/elsewhere"), 404),
            4 => (Request::post("allowed").form("secret_token=s3cret").chunked(3), 200),
            5 => (Request::new("HEAD", "/api/v4/internal/check").with_secret(), 200),
            _ => (Request::get(&format!("discover?key_id={index}")).with_secret(), 200),
        };
        assert_eq!(connection.exchange(&request).await.status, status, "{request}");
    }
}
