//! Clients that disconnect while their request waits in a queue: it leaves the queue, and is not sent.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::client::{Address, Connection, Request, noise};
use super::fake_rails::{FakeRails, Latch, Reply};
use super::harness::{RunningGateway, Setup};

const QUEUE: &str = r#"railgate_upstream_queue{class="access"}"#;
const IN_FLIGHT: &str = r#"railgate_upstream_in_flight{class="access"}"#;
const HELD: &str = "railgate_upstream_held";
const GONE: &str = "railgate_clients_gone_total";
const EACH: usize = 20;

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

/// Requests that hyper leaves unread, or has read and cannot forward, while the first one waits.
fn request_kinds() -> [(&'static str, Vec<u8>); 4] {
    let large = Request::post("allowed").with_secret().body(noise(100 * 1024));
    let pipelined = [allowed().to_bytes("keep-alive"), allowed().to_bytes("keep-alive")].concat();
    [
        ("a get", Request::get("lfs").with_secret().to_bytes("keep-alive")),
        ("100 KiB", large.to_bytes("keep-alive")),
        ("small chunks", allowed().chunked(1).to_bytes("keep-alive")),
        ("pipelined", pipelined),
    ]
}

async fn start_request(address: &Address, bytes: &[u8]) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..EACH {
        let mut connection = address.connect().await;
        connection.write(bytes).await;
        connections.push(connection);
    }
    connections
}

/// Closes every other connection, and only the sending side of the rest, which could still be answered, and
/// are not.
async fn disconnect(connections: Vec<Connection>) -> Vec<Connection> {
    let mut half = Vec::new();
    for (nth, mut connection) in connections.into_iter().enumerate() {
        if nth % 2 == 0 {
            connection.shutdown_write().await;
            half.push(connection);
        }
    }
    half
}

#[tokio::test]
async fn a_disconnected_request_leaves_the_admission_queue() {
    for is_unix in [false, true] {
        for (kind, bytes) in request_kinds() {
            let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
            let harness = setup.text("upstream.classes.access.queue_timeout", "10m").start().await;
            let address = if is_unix { &harness.gateway.unix } else { &harness.gateway.tcp };
            let latch = Latch::closed();
            harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
            let mut first = harness.start_request(&allowed()).await;
            harness.wait_for_metric(IN_FLIGHT, 1).await;
            let connections = start_request(address, &bytes).await;
            harness.wait_for_metric(QUEUE, EACH).await;
            let half = disconnect(connections).await;
            harness.wait_for_metric(QUEUE, 0).await;
            harness.wait_for_metric(GONE, EACH).await;
            for mut connection in half {
                assert_eq!(connection.read_to_end().await, b"", "{kind}");
            }
            latch.open();
            assert_eq!(first.read_response().await.status, 200, "{kind}");
            harness.wait_for_metric(IN_FLIGHT, 0).await;
            assert_eq!(harness.rails.request_count(), 1, "{kind}, unix: {is_unix}");
        }
    }
}

#[tokio::test]
async fn a_disconnected_request_leaves_the_hold_queue() {
    for is_unix in [false, true] {
        for (kind, bytes) in request_kinds() {
            let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
            let rails = Address::Tcp(port.local_addr().unwrap().as_socket().unwrap());
            let setup = Setup::new().text("upstream.hold", "10m");
            let gateway = RunningGateway::start(setup.settings(&rails));
            let address = if is_unix { &gateway.unix } else { &gateway.tcp };
            let connections = start_request(address, &bytes).await;
            gateway.wait_for_metric(HELD, EACH).await;
            let half = disconnect(connections).await;
            gateway.wait_for_metric(HELD, 0).await;
            gateway.wait_for_metric(GONE, EACH).await;
            port.listen(1_024).unwrap();
            port.set_nonblocking(true).unwrap();
            let rails = FakeRails::listen_on(TcpListener::from_std(port.into()).unwrap());
            for mut connection in half {
                assert_eq!(connection.read_to_end().await, b"", "{kind}");
            }
            assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
            assert_eq!(rails.request_count(), 1, "{kind}, unix: {is_unix}");
        }
    }
}

/// With a body that was not read.
#[tokio::test]
async fn a_reset_connection_is_noticed() {
    let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
    let harness = setup.text("upstream.classes.access.queue_timeout", "10m").start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut first = harness.start_request(&allowed()).await;
    harness.wait_for_metric(IN_FLIGHT, 1).await;
    let Address::Tcp(address) = harness.gateway.tcp else { panic!("no TCP") };
    for (kind, bytes) in request_kinds().into_iter().skip(1) {
        let mut connections = Vec::new();
        for _ in 0..EACH {
            let mut connection = TcpStream::connect(address).await.unwrap();
            connection.write_all(&bytes).await.unwrap();
            connections.push(connection);
        }
        harness.wait_for_metric(QUEUE, EACH).await;
        for connection in connections {
            SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
        }
        harness.wait_for_metric(QUEUE, 0).await;
        println!("{kind} is noticed");
    }
    latch.open();
    assert_eq!(first.read_response().await.status, 200);
    assert_eq!(harness.rails.request_count(), 1);
}

/// With an unread body, a pipelined request, and a large response.
#[tokio::test]
async fn clients_that_stay_connected_are_answered() {
    const LENGTH: usize = 4 << 20;
    for is_unix in [false, true] {
        let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
        let harness = setup.text("upstream.classes.access.queue_timeout", "10m").start().await;
        let address = if is_unix { &harness.gateway.unix } else { &harness.gateway.tcp };
        let latch = Latch::closed();
        harness.rails.respond_always(Reply::new(200, "", vec![b'x'; LENGTH]).after(&latch));
        let mut first = harness.start_request(&allowed()).await;
        harness.wait_for_metric(IN_FLIGHT, 1).await;
        let body = noise(300 * 1024);
        let large = Request::post("allowed").with_secret().body(&body).to_bytes("keep-alive");
        let mut connections = Vec::new();
        for nth in 0..5 {
            let mut connection = address.connect().await;
            connection.write(&large[..90_000 + nth]).await;
            connections.push(connection);
        }
        harness.wait_for_metric(QUEUE, 5).await;
        latch.open();
        assert_eq!(first.read_response().await.body.len(), LENGTH);
        let rest = connections.into_iter().enumerate().map(async |(nth, mut connection)| {
            connection.write(&large[90_000 + nth..]).await;
            connection.write(&allowed().to_bytes("keep-alive")).await;
            assert_eq!(connection.read_response().await.body.len(), LENGTH);
            assert_eq!(connection.read_response().await.body.len(), LENGTH);
        });
        futures_util::future::join_all(rest).await;
        assert_eq!(harness.rails.request_count(), 11);
        assert_eq!(harness.rails.requests().iter().filter(|request| request.body == body).count(), 5);
        assert_eq!(harness.metric(GONE).await, Some(0));
    }
}
