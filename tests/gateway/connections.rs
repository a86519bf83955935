//! Connections on both sides: how long they are kept, how many there are, and when they are used
//! again.

use super::client::{Ask, Cut, soon};
use super::fake::{Rails, Reply, Valve};
use super::stage::{Setup, Stage};

const OPEN: &str = "railgate_upstream_connections";

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

/// GitLab Shell opens a connection for every request. Rails does not have to.
#[tokio::test]
async fn many_connections_of_clients_are_few_to_rails() {
    for is_unix in [false, true] {
        let setup = Setup::new();
        let rails =
            if is_unix { Rails::on_unix(&setup.dir.file("rails.sock")) } else { Rails::on_tcp().await };
        let stage = setup.in_front_of(rails);
        for index in 0..50 {
            let peer = if index % 2 == 0 { &stage.gateway.tcp } else { &stage.gateway.unix };
            assert_eq!(peer.send(&allowed()).await.status, 200);
        }
        assert_eq!(stage.rails.count(), 50);
        // One would do. A second may be opened before the first is known to be free again.
        assert!(stage.rails.connections() <= 10, "{} connections", stage.rails.connections());
    }
}

/// What a client closes, or leaves half read, is no reason to lose a good connection to Rails.
#[tokio::test]
async fn no_more_connections_are_kept_than_wanted() {
    let stage = Setup::new().set("upstream.max_idle", 2).start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut wires = Vec::new();
    for _ in 0..10 {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&allowed().to_bytes("close")).await;
        wires.push(wire);
    }
    stage.rails.has_got(10).await;
    assert_eq!(stage.rails.connections(), 10);
    valve.open();
    for wire in &mut wires {
        assert_eq!(wire.answer().await.status, 200);
    }
    stage.rails.has_lost(8).await;
    stage.reaches(OPEN, 2).await;
}

#[tokio::test]
async fn none_is_kept_where_none_is_wanted() {
    let stage = Setup::new().set("upstream.max_idle", 0).start().await;
    for count in 1..=5 {
        assert_eq!(stage.send(&allowed()).await.status, 200);
        stage.rails.has_lost(count).await;
        assert_eq!(stage.rails.connections(), count);
    }
}

/// Puma closes them after a while, so the gateway does it first.
#[tokio::test]
async fn unused_connections_to_rails_are_closed_in_time() {
    let stage = Setup::new().text("upstream.idle_timeout", "50ms").start().await;
    assert_eq!(stage.send(&allowed()).await.status, 200);
    stage.rails.has_lost(1).await;
    stage.reaches(OPEN, 0).await;
    assert_eq!(stage.send(&allowed()).await.status, 200);
}

/// A connection that Rails has closed is not asked again.
#[tokio::test]
async fn a_closed_connection_is_not_used_again() {
    let stage = Stage::new().await;
    for is_announced in [false, true] {
        let announcement = if is_announced { "Connection: close\r\n" } else { "" };
        stage.rails.always(Reply::new(200, announcement, "{}").then_close());
        for ask in [allowed(), Ask::get("lfs").with_secret(), Ask::get("check").with_secret()] {
            let answer = stage.send(&ask).await;
            assert_eq!((answer.status, answer.all("connection")), (200, vec!["close"]), "{answer}");
            stage.reaches(OPEN, 0).await;
        }
    }
    // What Rails says about its connection says nothing about the client's.
    let mut wire = stage.gateway.tcp.connect().await;
    for _ in 0..5 {
        let answer = wire.exchange(&allowed()).await;
        assert_eq!((answer.status, answer.all("connection")), (200, vec![]), "{answer}");
        stage.reaches(OPEN, 0).await;
    }
}

/// A connection without a request on it is closed after a while, without a word.
#[tokio::test]
async fn idle_clients_are_let_go() {
    let stage = Setup::new().text("limits.idle_timeout", "100ms").start().await;
    let mut silent = stage.gateway.tcp.connect().await;
    assert_eq!(silent.rest().await, b"");
    let mut used = stage.gateway.unix.connect().await;
    used.write(&allowed().to_bytes("keep-alive")).await;
    assert_eq!(used.answer().await.status, 200);
    assert_eq!(used.rest().await, b"");
    stage.reaches("railgate_client_connections", 0).await;
}

/// A connection is not idle while Rails is at work.
#[tokio::test]
async fn waiting_for_rails_is_not_idleness() {
    let stage = Setup::new().text("limits.idle_timeout", "50ms").start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&allowed().to_bytes("keep-alive")).await;
    stage.rails.has_got(1).await;
    // By then, this one is idle for as long as the other one has been waiting.
    let mut idle = stage.gateway.tcp.connect().await;
    assert_eq!(idle.rest().await, b"");
    valve.open();
    assert_eq!(wire.answer().await.status, 200);
}

/// Whoever has begun a body has to go on with it.
#[tokio::test]
async fn a_body_that_pauses_for_too_long_is_given_up() {
    let stage = Setup::new().text("limits.idle_timeout", "100ms").start().await;
    let form = Ask::post("allowed").form("secret_token=s3cret");
    for ask in [allowed(), allowed().chunked(1), form.clone(), form.chunked(5)] {
        let bytes = ask.to_bytes("keep-alive");
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&bytes[..bytes.len() - 1]).await;
        match wire.try_answer().await {
            Ok(answer) => answer.assert_failure(400),
            Err(Cut::Head(nothing)) => assert_eq!(nothing, b""),
            Err(cut) => panic!("{cut}"),
        }
        assert_eq!(wire.rest().await, b"");
    }
    stage.reaches("railgate_requests_in_flight", 0).await;
    stage.reaches(OPEN, 0).await;
    assert_eq!(stage.rails.count(), 0);
    stage.reaches("railgate_upstream_failures_in_a_row", 0).await;
}

/// Whoever has asked has to take the answer.
#[tokio::test]
async fn an_answer_that_nobody_takes_is_given_up() {
    let stage = Setup::new().text("limits.idle_timeout", "100ms").start().await;
    stage.rails.always(Reply::new(200, "", vec![b'x'; 64 << 20]));
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&allowed().to_bytes("close")).await;
    stage.rails.has_got(1).await;
    stage.rails.has_lost(1).await;
    stage.reaches("railgate_clients_gone_total", 1).await;
    stage.reaches("railgate_requests_in_flight", 0).await;
    drop(wire);
}

/// A client that hangs up frees what was done for it.
#[tokio::test]
async fn a_client_that_leaves_is_not_waited_for() {
    let stage = Stage::new().await;
    stage.rails.always(Reply::silence());
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&allowed().to_bytes("close")).await;
    stage.rails.has_got(1).await;
    drop(wire);
    soon("the connection to Rails to be closed", stage.rails.has_lost(1)).await;
    stage.reaches("railgate_requests_in_flight", 0).await;
    stage.reaches("railgate_clients_gone_total", 1).await;
    stage.reaches("railgate_client_connections", 0).await;
}

/// Also in the middle of an answer.
#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_an_answer() {
    let stage = Stage::new().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun";
    stage.rails.always(Reply::bytes(head).then_hang());
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&allowed().to_bytes("close")).await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"begun") {
        seen.extend(wire.some().await);
    }
    drop(wire);
    soon("the connection to Rails to be closed", stage.rails.has_lost(1)).await;
    stage.reaches("railgate_clients_gone_total", 1).await;
}

/// Hundreds of requests on one connection, of all kinds.
#[tokio::test]
async fn a_kept_connection_stays_in_step() {
    let stage = Stage::new().await;
    let mut wire = stage.gateway.unix.connect().await;
    for index in 0..300 {
        let (ask, status) = match index % 7 {
            0 => (allowed(), 200),
            1 => (Ask::get("check").with_secret(), 200),
            2 => (Ask::get("check"), 401),
            3 => (Ask::new("GET", "/elsewhere"), 404),
            4 => (Ask::post("allowed").form("secret_token=s3cret").chunked(3), 200),
            5 => (Ask::new("HEAD", "/api/v4/internal/check").with_secret(), 200),
            _ => (Ask::get(&format!("discover?key_id={index}")).with_secret(), 200),
        };
        assert_eq!(wire.exchange(&ask).await.status, status, "{ask}");
    }
}
