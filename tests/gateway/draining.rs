//! How the gateway comes and goes: its sockets, and what becomes of those who are still there.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use railgate::Gateway;

use super::client::{Ask, Peer, eventually};
use super::fake::{Reply, Valve};
use super::stage::{Setup, Stage};

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

/// Waits until nobody is let in any more.
async fn is_closed(peer: &Peer) {
    eventually("the listener to close", async || peer.try_connect().await.err()).await;
}

#[tokio::test]
async fn what_runs_may_finish_and_nothing_new_begins() {
    let mut stage = Stage::new().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, r#"{"late":true}"#).after(&valve));
    let mut running = stage.gateway.tcp.connect().await;
    running.write(&allowed().to_bytes("keep-alive")).await;
    let mut behind_it = stage.gateway.unix.connect().await;
    behind_it.write(&allowed().to_bytes("keep-alive")).await;
    stage.rails.has_got(2).await;
    let mut idle = stage.gateway.tcp.connect().await;
    idle.exchange(&Ask::get("check")).await.assert_unauthorized();
    let mut silent = stage.gateway.unix.connect().await;
    let mut half = stage.gateway.tcp.connect().await;
    half.write(b"GET /api/v4/internal/check HTTP/1.1\r\nHo").await;
    stage.reaches("railgate_client_connections", 5).await;

    stage.gateway.drain();
    is_closed(&stage.gateway.tcp).await;
    is_closed(&stage.gateway.unix).await;
    for wire in [&mut idle, &mut silent, &mut half] {
        assert_eq!(wire.rest().await, b"");
    }
    // The operators see it, while there is still something to see.
    let ready = stage.gateway.admin.send(&Ask::new("GET", "/ready")).await;
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("draining")), "{ready}");
    assert_eq!(stage.gateway.admin.send(&Ask::new("GET", "/live")).await.status, 200);
    stage.reaches("railgate_requests_in_flight", 2).await;

    valve.open();
    for wire in [&mut running, &mut behind_it] {
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.text()), (200, r#"{"late":true}"#));
        assert_eq!(answer.header("connection"), Some("close"), "{answer}");
        assert_eq!(wire.rest().await, b"");
    }
    assert!(stage.gateway.ended().await, "nothing had to be dropped");
    assert!(!stage.dir.file("gateway.sock").exists());
    is_closed(&stage.gateway.admin).await;
}

/// A request whose head is there is running, even if its body is still on its way.
#[tokio::test]
async fn a_body_on_its_way_may_arrive() {
    let mut stage = Stage::new().await;
    let mut wires = Vec::new();
    for ask in [allowed(), Ask::post("allowed").form("secret_token=s3cret"), allowed().chunked(1)] {
        let bytes = ask.to_bytes("keep-alive");
        let (begun, rest) = bytes.split_at(bytes.len() - 1);
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(begun).await;
        wires.push((wire, rest.to_vec()));
    }
    stage.reaches("railgate_requests_in_flight", 3).await;
    stage.gateway.drain();
    is_closed(&stage.gateway.tcp).await;
    for (wire, rest) in &mut wires {
        wire.write(rest).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{answer}");
    }
    assert!(stage.gateway.ended().await);
    assert_eq!(stage.rails.count(), 3);
}

/// A request that waits behind another one on its connection has not begun.
#[tokio::test]
async fn what_waits_for_its_turn_does_not_begin() {
    // A caller may meet the closed door of one worker while another one has not heard of it yet.
    let mut stage = Setup::new().set("workers", 1).start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&[allowed().to_bytes("keep-alive"), allowed().to_bytes("keep-alive")].concat()).await;
    stage.rails.has_got(1).await;
    stage.gateway.drain();
    is_closed(&stage.gateway.tcp).await;
    valve.open();
    assert_eq!(wire.answer().await.status, 200);
    assert_eq!(wire.rest().await, b"");
    assert!(stage.gateway.ended().await);
    assert_eq!(stage.rails.count(), 1);
}

/// A large answer that has begun is delivered whole.
#[tokio::test]
async fn an_answer_that_has_begun_is_delivered() {
    let mut stage = Stage::new().await;
    let valve = Valve::shut();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
    stage.rails.always(Reply::bytes(head).then("first").then_wait(&valve).then("later"));
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&Ask::get("lfs").with_secret().to_bytes("keep-alive")).await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"first") {
        seen.extend(wire.some().await);
    }
    stage.gateway.drain();
    is_closed(&stage.gateway.tcp).await;
    valve.open();
    seen.extend(wire.rest().await);
    assert!(seen.ends_with(b"firstlater"));
    assert!(stage.gateway.ended().await);
}

#[tokio::test]
async fn what_takes_too_long_is_dropped() {
    let setup = Setup::new().text("limits.drain_timeout", "50ms");
    let mut stage = setup.start().await;
    stage.rails.always(Reply::silence());
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&allowed().to_bytes("close")).await;
    stage.rails.has_got(1).await;
    stage.gateway.drain();
    assert!(!stage.gateway.ended().await, "something was dropped");
    assert_eq!(wire.rest().await, b"");
    stage.rails.has_lost(1).await;
}

#[tokio::test]
async fn an_idle_gateway_stops_at_once() {
    for _ in 0..5 {
        let mut stage = Stage::new().await;
        stage.send(&Ask::get("check").with_secret()).await;
        stage.gateway.drain();
        assert!(stage.gateway.ended().await);
        assert!(!stage.dir.file("gateway.sock").exists());
    }
}

/// One can follow the other at the same place.
#[tokio::test]
async fn a_gateway_makes_room_for_the_next() {
    let setup = Setup::new();
    let rails = super::fake::Rails::on_tcp().await;
    for _ in 0..3 {
        let mut gateway = super::stage::Running::start(setup.settings(&rails.peer));
        assert_eq!(gateway.unix.send(&allowed()).await.status, 200);
        gateway.drain();
        assert!(gateway.ended().await);
    }
}

#[tokio::test]
async fn the_unix_socket_has_the_mode_that_was_asked_for() {
    for (mode, bits) in [(None, 0o660), (Some("0600"), 0o600), (Some("0666"), 0o666), (Some("777"), 0o777)] {
        let setup = Setup::new();
        let setup = if let Some(mode) = mode { setup.mode(mode) } else { setup };
        let stage = setup.start().await;
        let metadata = fs::metadata(stage.dir.file("gateway.sock")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, bits);
    }
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_in_nobodys_way() {
    let setup = Setup::new();
    drop(std::os::unix::net::UnixListener::bind(setup.socket()).unwrap());
    assert!(setup.socket().exists());
    let stage = setup.start().await;
    assert_eq!(stage.gateway.unix.send(&allowed()).await.status, 200);
}

/// What belongs to somebody else stays.
#[tokio::test]
async fn a_place_that_is_taken_is_an_error_before_anything_runs() {
    let rails = Peer::Unix("/nowhere".into());
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
