//! Clients that hang up while their request waits, whatever they have sent: the request gives its place
//! up, and is not sent.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::client::{Ask, Peer, Wire, noise};
use super::fake::{Rails, Reply, Valve};
use super::stage::{Running, Setup};

const QUEUE: &str = r#"railgate_upstream_queue{class="access"}"#;
const IN_FLIGHT: &str = r#"railgate_upstream_in_flight{class="access"}"#;
const HELD: &str = "railgate_upstream_held";
const GONE: &str = "railgate_clients_gone_total";
const EACH: usize = 20;

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

/// What hyper leaves unread, or has read and cannot pass on, while the first request waits.
fn kinds() -> [(&'static str, Vec<u8>); 4] {
    let large = Ask::post("allowed").with_secret().body(noise(100 * 1024));
    let pipelined = [allowed().to_bytes("keep-alive"), allowed().to_bytes("keep-alive")].concat();
    [
        ("a get", Ask::get("lfs").with_secret().to_bytes("keep-alive")),
        ("100 KiB", large.to_bytes("keep-alive")),
        ("small chunks", allowed().chunked(1).to_bytes("keep-alive")),
        ("pipelined", pipelined),
    ]
}

async fn begin(peer: &Peer, bytes: &[u8]) -> Vec<Wire> {
    let mut wires = Vec::new();
    for _ in 0..EACH {
        let mut wire = peer.connect().await;
        wire.write(bytes).await;
        wires.push(wire);
    }
    wires
}

/// Half of them close their connections, the other half only say that nothing more will come. Those are
/// still there to be answered, and are not.
async fn hang_up(wires: Vec<Wire>) -> Vec<Wire> {
    let mut half = Vec::new();
    for (nth, mut wire) in wires.into_iter().enumerate() {
        if nth % 2 == 0 {
            wire.finish().await;
            half.push(wire);
        }
    }
    half
}

#[tokio::test]
async fn a_place_in_the_queue_is_given_up() {
    for is_unix in [false, true] {
        for (kind, bytes) in kinds() {
            let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
            let stage = setup.text("upstream.classes.access.queue_timeout", "10m").start().await;
            let peer = if is_unix { &stage.gateway.unix } else { &stage.gateway.tcp };
            let valve = Valve::shut();
            stage.rails.always(Reply::json(200, "{}").after(&valve));
            let mut first = stage.begin(&allowed()).await;
            stage.reaches(IN_FLIGHT, 1).await;
            let wires = begin(peer, &bytes).await;
            stage.reaches(QUEUE, EACH).await;
            let half = hang_up(wires).await;
            stage.reaches(QUEUE, 0).await;
            stage.reaches(GONE, EACH).await;
            for mut wire in half {
                assert_eq!(wire.rest().await, b"", "{kind}");
            }
            valve.open();
            assert_eq!(first.answer().await.status, 200, "{kind}");
            stage.reaches(IN_FLIGHT, 0).await;
            assert_eq!(stage.rails.count(), 1, "{kind}, unix: {is_unix}");
        }
    }
}

#[tokio::test]
async fn a_place_in_line_is_given_up_while_rails_is_away() {
    for is_unix in [false, true] {
        for (kind, bytes) in kinds() {
            let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
            let rails = Peer::Tcp(port.local_addr().unwrap().as_socket().unwrap());
            let setup = Setup::new().text("upstream.hold", "10m");
            let gateway = Running::start(setup.settings(&rails));
            let peer = if is_unix { &gateway.unix } else { &gateway.tcp };
            let wires = begin(peer, &bytes).await;
            gateway.reaches(HELD, EACH).await;
            let half = hang_up(wires).await;
            gateway.reaches(HELD, 0).await;
            gateway.reaches(GONE, EACH).await;
            port.listen(1_024).unwrap();
            port.set_nonblocking(true).unwrap();
            let rails = Rails::on(TcpListener::from_std(port.into()).unwrap());
            for mut wire in half {
                assert_eq!(wire.rest().await, b"", "{kind}");
            }
            assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
            assert_eq!(rails.count(), 1, "{kind}, unix: {is_unix}");
        }
    }
}

/// A reset, with a body unread.
#[tokio::test]
async fn a_reset_is_noticed_too() {
    let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
    let stage = setup.text("upstream.classes.access.queue_timeout", "10m").start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut first = stage.begin(&allowed()).await;
    stage.reaches(IN_FLIGHT, 1).await;
    let Peer::Tcp(address) = stage.gateway.tcp else { panic!("no TCP") };
    for (kind, bytes) in kinds().into_iter().skip(1) {
        let mut wires = Vec::new();
        for _ in 0..EACH {
            let mut wire = TcpStream::connect(address).await.unwrap();
            wire.write_all(&bytes).await.unwrap();
            wires.push(wire);
        }
        stage.reaches(QUEUE, EACH).await;
        for wire in wires {
            SockRef::from(&wire).set_linger(Some(Duration::ZERO)).unwrap();
        }
        stage.reaches(QUEUE, 0).await;
        println!("{kind} is noticed");
    }
    valve.open();
    assert_eq!(first.answer().await.status, 200);
    assert_eq!(stage.rails.count(), 1);
}

/// Waiting does no harm to those who stay: with a body that was not read, the next request behind the
/// first, a large answer, and whatever else comes meanwhile.
#[tokio::test]
async fn who_waits_and_stays_is_answered() {
    const LENGTH: usize = 4 << 20;
    for is_unix in [false, true] {
        let setup = Setup::new().set("upstream.classes.access.concurrency", 1);
        let stage = setup.text("upstream.classes.access.queue_timeout", "10m").start().await;
        let peer = if is_unix { &stage.gateway.unix } else { &stage.gateway.tcp };
        let valve = Valve::shut();
        stage.rails.always(Reply::new(200, "", vec![b'x'; LENGTH]).after(&valve));
        let mut first = stage.begin(&allowed()).await;
        stage.reaches(IN_FLIGHT, 1).await;
        let body = noise(300 * 1024);
        let large = Ask::post("allowed").with_secret().body(&body).to_bytes("keep-alive");
        let mut wires = Vec::new();
        for nth in 0..5 {
            let mut wire = peer.connect().await;
            wire.write(&large[..90_000 + nth]).await;
            wires.push(wire);
        }
        stage.reaches(QUEUE, 5).await;
        valve.open();
        assert_eq!(first.answer().await.body.len(), LENGTH);
        let rest = wires.into_iter().enumerate().map(async |(nth, mut wire)| {
            wire.write(&large[90_000 + nth..]).await;
            wire.write(&allowed().to_bytes("keep-alive")).await;
            assert_eq!(wire.answer().await.body.len(), LENGTH);
            assert_eq!(wire.answer().await.body.len(), LENGTH);
        });
        futures_util::future::join_all(rest).await;
        assert_eq!(stage.rails.count(), 11);
        assert_eq!(stage.rails.requests().iter().filter(|request| request.body == body).count(), 5);
        assert_eq!(stage.metric(GONE).await, Some(0));
    }
}
