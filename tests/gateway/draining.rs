//! Start and shutdown: the listening sockets, and the connections that are open during a drain.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use railgate::Gateway;

use super::client::{Address, Request, eventually};
use super::fake_rails::{Latch, Reply};
use super::harness::{Harness, Setup};

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

/// Waits until connections are refused. The file of a unix socket may stay here, since a process that another test starts has
/// a copy of each socket for a moment; `hand_over.rs` shows with processes of its own that it is removed.
pub(super) async fn wait_until_closed(address: &Address) {
    eventually("the listener to close", async || address.try_connect().await.err()).await;
}

#[tokio::test]
async fn running_requests_finish_and_no_new_ones_begin() {
    let mut harness = Harness::new().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, r#"{"late":true}"#).after(&latch));
    let mut running = harness.gateway.tcp.connect().await;
    running.write(&allowed().to_bytes("keep-alive")).await;
    let mut behind_it = harness.gateway.unix.connect().await;
    behind_it.write(&allowed().to_bytes("keep-alive")).await;
    harness.rails.wait_for_requests(2).await;
    let mut idle = harness.gateway.tcp.connect().await;
    idle.exchange(&Request::get("check")).await.assert_unauthorized();
    let mut silent = harness.gateway.unix.connect().await;
    let mut half = harness.gateway.tcp.connect().await;
    half.write(b"GET /api/v4/internal/check HTTP/1.1\r\nHo").await;
    harness.wait_for_metric("railgate_client_connections", 5).await;

    harness.gateway.drain();
    wait_until_closed(&harness.gateway.tcp).await;
    wait_until_closed(&harness.gateway.unix).await;
    for connection in [&mut idle, &mut silent, &mut half] {
        assert_eq!(connection.read_to_end().await, b"");
    }
    // Operators see the drain while it lasts.
    let ready = harness.gateway.admin.send(&Request::new("GET", "/ready")).await;
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("draining")), "{ready}");
    assert_eq!(harness.gateway.admin.send(&Request::new("GET", "/live")).await.status, 200);
    harness.wait_for_metric("railgate_requests_in_flight", 2).await;

    latch.open();
    for connection in [&mut running, &mut behind_it] {
        let response = connection.read_response().await;
        assert_eq!((response.status, response.text()), (200, r#"{"late":true}"#));
        assert_eq!(response.header("connection"), Some("close"), "{response}");
        assert_eq!(connection.read_to_end().await, b"");
    }
    assert!(harness.gateway.wait_for_end().await, "nothing had to be dropped");
    wait_until_closed(&harness.gateway.unix).await;
    wait_until_closed(&harness.gateway.admin).await;
}

/// A request is running once its head has arrived.
#[tokio::test]
async fn a_request_body_may_still_arrive() {
    let mut harness = Harness::new().await;
    let mut connections = Vec::new();
    for request in [allowed(), Request::post("allowed").form("secret_token=s3cret"), allowed().chunked(1)] {
        let bytes = request.to_bytes("keep-alive");
        let (begun, rest) = bytes.split_at(bytes.len() - 1);
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(begun).await;
        connections.push((connection, rest.to_vec()));
    }
    harness.wait_for_metric("railgate_requests_in_flight", 3).await;
    harness.gateway.drain();
    wait_until_closed(&harness.gateway.tcp).await;
    for (connection, rest) in &mut connections {
        connection.write(rest).await;
        let response = connection.read_response().await;
        assert_eq!((response.status, response.header("connection")), (200, Some("close")), "{response}");
    }
    assert!(harness.gateway.wait_for_end().await);
    assert_eq!(harness.rails.request_count(), 3);
}

#[tokio::test]
async fn pipelined_requests_do_not_begin() {
    // One worker may have closed its listener before another one starts to drain.
    let mut harness = Setup::new().set("workers", 1).start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&[allowed().to_bytes("keep-alive"), allowed().to_bytes("keep-alive")].concat()).await;
    harness.rails.wait_for_requests(1).await;
    harness.gateway.drain();
    wait_until_closed(&harness.gateway.tcp).await;
    latch.open();
    assert_eq!(connection.read_response().await.status, 200);
    assert_eq!(connection.read_to_end().await, b"");
    assert!(harness.gateway.wait_for_end().await);
    assert_eq!(harness.rails.request_count(), 1);
}

#[tokio::test]
async fn a_response_that_has_begun_is_delivered() {
    let mut harness = Harness::new().await;
    let latch = Latch::closed();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
    harness.rails.respond_always(Reply::bytes(head).then("first").then_wait(&latch).then("later"));
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&Request::get("lfs").with_secret().to_bytes("keep-alive")).await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"first") {
        seen.extend(connection.read_some().await);
    }
    harness.gateway.drain();
    wait_until_closed(&harness.gateway.tcp).await;
    latch.open();
    seen.extend(connection.read_to_end().await);
    assert!(seen.ends_with(b"firstlater"));
    assert!(harness.gateway.wait_for_end().await);
}

#[tokio::test]
async fn requests_are_dropped_after_the_drain_timeout() {
    let setup = Setup::new().text("limits.drain_timeout", "50ms");
    let mut harness = setup.start().await;
    harness.rails.respond_always(Reply::silence());
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&allowed().to_bytes("close")).await;
    harness.rails.wait_for_requests(1).await;
    harness.gateway.drain();
    assert!(!harness.gateway.wait_for_end().await, "something was dropped");
    assert_eq!(connection.read_to_end().await, b"");
    harness.rails.wait_for_closed(1).await;
}

#[tokio::test]
async fn an_idle_gateway_stops_immediately() {
    for _ in 0..5 {
        let mut harness = Harness::new().await;
        harness.send(&Request::get("check").with_secret()).await;
        harness.gateway.drain();
        assert!(harness.gateway.wait_for_end().await);
        wait_until_closed(&harness.gateway.unix).await;
    }
}

#[tokio::test]
async fn a_gateway_can_be_restarted_at_the_same_address() {
    let setup = Setup::new();
    let rails = super::fake_rails::FakeRails::listen_tcp().await;
    for _ in 0..3 {
        let mut gateway = super::harness::RunningGateway::start(setup.settings(&rails.address));
        assert_eq!(gateway.unix.send(&allowed()).await.status, 200);
        gateway.drain();
        assert!(gateway.wait_for_end().await);
        wait_until_closed(&gateway.unix).await;
    }
}

#[tokio::test]
async fn the_unix_socket_has_the_configured_mode() {
    for (mode, bits) in [(None, 0o660), (Some("0600"), 0o600), (Some("0666"), 0o666), (Some("777"), 0o777)] {
        let setup = Setup::new();
        let setup = if let Some(mode) = mode { setup.mode(mode) } else { setup };
        let harness = setup.start().await;
        let metadata = fs::metadata(harness.dir.file("gateway.sock")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, bits);
    }
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced() {
    let setup = Setup::new();
    drop(std::os::unix::net::UnixListener::bind(setup.socket()).unwrap());
    assert!(setup.socket().exists());
    let harness = setup.start().await;
    assert_eq!(harness.gateway.unix.send(&allowed()).await.status, 200);
}

/// Files and sockets of other processes are left alone.
#[tokio::test]
async fn an_address_in_use_is_an_error_before_anything_runs() {
    let rails = Address::Unix("/nowhere".into());
    let fails = |setup: &Setup, kind: ErrorKind| {
        let error =
            Gateway::bind(setup.settings(&rails), Arc::default()).map(drop).expect_err("the place is taken");
        assert_eq!(error.kind(), kind, "{error}");
        error.to_string()
    };
    let setup = Setup::new();
    let taken = std::os::unix::net::UnixListener::bind(setup.socket()).unwrap();
    let text = fails(&setup, ErrorKind::AddrInUse);
    assert!(text.contains("gateway.sock") && text.contains("choose another"), "{text}");
    assert!(setup.socket().exists());
    drop(taken);

    let setup = Setup::new();
    fs::write(setup.socket(), "precious").unwrap();
    fails(&setup, ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(setup.socket()).unwrap(), "precious");

    let setup = Setup::new();
    std::os::unix::fs::symlink(setup.dir.file("shell_secret"), setup.socket()).unwrap();
    fails(&setup, ErrorKind::AlreadyExists);
    assert!(setup.dir.file("shell_secret").exists());

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup::new().text("admin.address", &taken.local_addr().unwrap().to_string());
    fails(&setup, ErrorKind::AddrInUse);
    assert!(!setup.socket().exists(), "what was bound before is undone");
}
