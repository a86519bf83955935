use std::convert::Infallible;
use std::future::Future;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::connection::ClientSide;
use super::*;
use crate::header::ClientScheme;

const IDLE: Duration = Duration::from_secs(75);
const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

type Answered = Result<Response<Full<Bytes>>, Infallible>;

/// A connection to a server that responds with `answer`, over a pipe of `buffer` bytes.
fn connect<F>(buffer: usize, answer: impl Fn() -> F + Send + 'static) -> DuplexStream
where
    F: Future<Output = Answered> + Send + 'static,
{
    let service = tower::service_fn(move |_: Inbound| answer());
    connect_to(&Arc::new(Mutex::new(service)), buffer)
}

/// A connection to a server with this service.
fn connect_to<S>(service: &Arc<Mutex<S>>, buffer: usize) -> DuplexStream
where
    S: RequestService,
{
    let (peer, socket) = duplex(buffer);
    let limits = ServerLimits { first_byte_timeout: IDLE, idle_timeout: IDLE, ..ServerLimits::default() };
    let (server, capacity) = (HttpServer::new(limits), Capacity::new("test", 1, false));
    let permit = capacity.try_take(1).unwrap();
    let client = ClientSide { peer: None, scheme: ClientScheme::Http, accept: None, proxies: None };
    server.spawn(socket, server.registry.register(permit, true), client, service);
    peer
}

fn text(text: impl Into<Bytes>) -> Answered {
    Ok(Response::new(Full::new(text.into())))
}

/// How long it takes until the server closes the connection.
async fn closed_after(peer: &mut DuplexStream) -> Duration {
    let begun = Instant::now();
    let closed = tokio::time::timeout(IDLE * 20, peer.read_to_end(&mut Vec::new())).await;
    closed.expect("the connection stays open").unwrap();
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_idle_from_the_end_of_its_response() {
    // Before, at and after the end of the wait that began with the connection.
    for (begins, takes) in [(0, 0), (10, 0), (70, 0), (70, 30), (0, 74), (0, 75), (0, 76), (74, 500)] {
        let takes = Duration::from_secs(takes);
        let mut peer = connect(64 * 1024, move || async move {
            sleep(takes).await;
            text("ok")
        });
        sleep(Duration::from_secs(begins)).await;
        peer.write_all(REQUEST).await.unwrap();
        let closed = closed_after(&mut peer).await;
        // Timers have a resolution of a millisecond.
        let late = closed.checked_sub(takes + IDLE).expect("not before its time");
        assert!(late <= Duration::from_millis(2), "begins at {begins}, takes {takes:?}: {late:?} late");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_request_may_arrive_until_the_idle_timeout() {
    let mut peer = connect(64 * 1024, || async { text("ok") });
    let mut answer = [0; 1024];
    for _ in 0..5 {
        peer.write_all(REQUEST).await.unwrap();
        let count = peer.read(&mut answer).await.unwrap();
        assert!(answer[..count].ends_with(b"ok"));
        sleep(IDLE * 99 / 100).await;
    }
}

/// All of it is in hyper's buffer at once, so for the stack the request is answered.
#[tokio::test(start_paused = true)]
async fn a_connection_whose_response_is_read_slowly_is_not_idle() {
    const LENGTH: usize = 20 * 1024;
    let mut peer = connect(1024, || async { text(vec![b'x'; LENGTH]) });
    peer.write_all(REQUEST).await.unwrap();
    let (mut seen, mut piece) = (0, [0; 1024]);
    while seen < LENGTH {
        sleep(Duration::from_secs(10)).await;
        let count = peer.read(&mut piece).await.unwrap();
        assert!(count > 0, "cut off after {seen} bytes");
        seen += count;
    }
    let closed = closed_after(&mut peer).await;
    assert!(closed >= IDLE * 3 / 4 && closed <= IDLE + Duration::from_secs(1), "{closed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_is_disconnected() {
    let mut peer = connect(1024, || async { text(vec![b'x'; 20 * 1024]) });
    peer.write_all(REQUEST).await.unwrap();
    sleep(IDLE + Duration::from_millis(10)).await;
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() <= 1024, "{} bytes", rest.len());
}

/// kas keeps its connections for 90 s, and would send requests over connections that were just closed here.
#[test]
fn idle_connections_are_kept_for_longer_than_clients_keep_them() {
    assert!(ServerLimits::default().idle_timeout > Duration::from_secs(90));
}

/// The limit is of `tower`, around the whole service.
#[tokio::test(start_paused = true)]
async fn a_request_that_the_service_is_not_ready_for_is_answered_with_503() {
    let service = tower::service_fn(|_: Inbound| async {
        sleep(Duration::from_secs(1)).await;
        text("ok")
    });
    let service = Arc::new(Mutex::new(tower::limit::ConcurrencyLimit::new(service, 1)));
    let mut peers = [connect_to(&service, 1024), connect_to(&service, 1024), connect_to(&service, 1024)];
    // The permit that comes back goes to the next request, whatever its connection.
    for at in 0..peers.len() {
        peers[at].write_all(REQUEST).await.unwrap();
        tokio::task::yield_now().await;
        for (_, peer) in peers.iter_mut().enumerate().filter(|(other, _)| *other != at) {
            peer.write_all(REQUEST).await.unwrap();
            let response = read_response(peer).await;
            assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
            assert!(response.contains("\r\nretry-after: 1\r\n"), "{response}");
            assert!(response.ends_with(r#"again shortly."}"#), "{response}");
        }
        let response = read_response(&mut peers[at]).await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("ok"), "{response}");
    }
}

async fn read_response(peer: &mut DuplexStream) -> String {
    let mut response = [0; 1024];
    let count = peer.read(&mut response).await.unwrap();
    String::from_utf8_lossy(&response[..count]).into_owned()
}
