//! An upstream that speaks HTTP/2: a proxy in front of Rails.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::certificates::CertificateAuthority;
use super::client::{Address, Incomplete, Request, Stream, eventually};
use super::harness::{RunningGateway, Setup};

/// What the server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behavior {
    /// Responds with a description of the request.
    Echo,
    /// The same after a test adds a permit.
    Wait,
    /// Refuses the first stream, without looking at it.
    RefuseOnce,
    /// Answers the first request, and sends GOAWAY.
    GoAway,
    /// Sends GOAWAY, and closes the connection with the stream open.
    GoAwayAtOnce,
    /// Resets the stream.
    Reset,
    /// Responds early, and resets the rest of the request (RFC 9113 §8.1).
    Early,
    /// Responds with `content-length` and trailers.
    Trailers,
    /// Responds with an order to Workhorse.
    OrderWorkhorse,
    /// Closes the connection.
    HangUp,
    /// Sends more than fits into the buffers of a client that does not read.
    Flood,
}

/// The limit of concurrent streams per connection.
const STREAMS: usize = 60;

/// A running HTTP/2 server. Stops when it is dropped.
struct Http2Rails {
    address: Address,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    behavior: Mutex<Behavior>,
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Streams that are not answered yet.
    open: AtomicUsize,
    go_on: Semaphore,
}

impl Drop for Http2Rails {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Http2Rails {
    async fn new(tls: Option<TlsAcceptor>) -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), tls)
    }

    fn on(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        let address = Address::Tcp(listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            behavior: Mutex::new(Behavior::Echo),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            go_on: Semaphore::new(0),
        });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, tls) = (Arc::clone(&serving), tls.clone());
                connections.spawn(async move {
                    let stream: Box<dyn Stream> = match tls {
                        None => Box::new(stream),
                        Some(tls) => Box::new(tls.accept(stream).await.unwrap()),
                    };
                    serve(stream, shared).await;
                });
            }
        });
        Self { address, shared, accepting }
    }

    fn set_behavior(&self, behavior: Behavior) {
        *self.shared.behavior.lock().unwrap() = behavior;
    }

    fn counts(&self) -> (usize, usize) {
        (self.shared.connections.load(Ordering::SeqCst), self.shared.requests.load(Ordering::SeqCst))
    }

    fn open_streams(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

async fn serve(stream: Box<dyn Stream>, shared: Arc<Shared>) {
    shared.connections.fetch_add(1, Ordering::SeqCst);
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(u32::try_from(STREAMS).unwrap());
    let mut connection = builder.handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let behavior = *shared.behavior.lock().unwrap();
        match behavior {
            Behavior::Echo
            | Behavior::Wait
            | Behavior::Flood
            | Behavior::Trailers
            | Behavior::OrderWorkhorse => {}
            Behavior::RefuseOnce => {
                *shared.behavior.lock().unwrap() = Behavior::Echo;
                respond.send_reset(Reason::REFUSED_STREAM);
                continue;
            }
            Behavior::GoAway => {
                *shared.behavior.lock().unwrap() = Behavior::Echo;
                connection.graceful_shutdown();
            }
            Behavior::GoAwayAtOnce => {
                *shared.behavior.lock().unwrap() = Behavior::Echo;
                connection.abrupt_shutdown(Reason::NO_ERROR);
                let _ = connection.accept().await;
                return;
            }
            Behavior::Reset => {
                respond.send_reset(Reason::INTERNAL_ERROR);
                continue;
            }
            Behavior::Early => {
                let response = http::Response::builder().status(413).body(()).unwrap();
                let mut stream = respond.send_response(response, false).unwrap();
                stream.send_data(Bytes::from_static(b"too large"), true).unwrap();
                // Dropping them resets the stream after the response.
                drop((request, stream, respond));
                continue;
            }
            Behavior::HangUp => return,
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.open.fetch_add(1, Ordering::SeqCst);
            serve_request(request, respond, behavior, &shared).await;
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn serve_request(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    behavior: Behavior,
    shared: &Shared,
) {
    let (head, mut body) = request.into_parts();
    let mut length = 0;
    while let Some(Ok(piece)) = body.data().await {
        length += piece.len();
        let _ = body.flow_control().release_capacity(piece.len());
    }
    if behavior == Behavior::Wait {
        tokio::select! {
            permit = shared.go_on.acquire() => permit.unwrap().forget(),
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return,
        }
    }
    let said = json!({
        "uri": head.uri.to_string(),
        "host": head.headers.contains_key("host"),
        "framing": head.headers.contains_key("transfer-encoding") || head.headers.contains_key("connection"),
        "length": length,
    });
    let mut response =
        http::Response::builder().status(200).header("content-type", "application/json").body(()).unwrap();
    if behavior == Behavior::Trailers {
        response.headers_mut().insert("content-length", said.to_string().len().into());
    }
    if behavior == Behavior::OrderWorkhorse {
        response.headers_mut().insert("gitlab-workhorse-send-data", "send-url:e30=".parse().unwrap());
    }
    if let Ok(mut stream) = respond.send_response(response, false) {
        if behavior == Behavior::Flood {
            let _ = stream.send_data(Bytes::from(vec![b'x'; 64 << 20]), true);
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            return;
        }
        let has_trailers = behavior == Behavior::Trailers;
        let _ = stream.send_data(Bytes::from(said.to_string()), !has_trailers);
        if has_trailers {
            let _ = stream
                .send_trailers([("x-sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect());
        }
    }
}

fn setup() -> Setup {
    // Each worker has a connection of its own.
    Setup::new().text("upstream.protocol", "http2").set("workers", 1)
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json(&format!(r#"{{"changes":"{}"}}"#, "x".repeat(300_000)))
}

/// As over HTTP/1.1.
#[tokio::test]
async fn instructions_for_workhorse_are_refused_over_http2() {
    let rails = Http2Rails::new(None).await;
    rails.set_behavior(Behavior::OrderWorkhorse);
    let setup = setup();
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    let lfs = Request::get("lfs?oid=1").with_secret();
    gateway.tcp.send(&lfs).await.assert_failure(502);
    gateway.wait_for_metric(r#"railgate_failures_total{reason="upstream_needs_workhorse"}"#, 1).await;
    assert_eq!(gateway.tcp.send(&lfs.header("Gitlab-Workhorse", "18.1")).await.status, 200);
}

#[tokio::test]
async fn requests_share_an_http2_connection() {
    let rails = Http2Rails::new(None).await;
    let setup = setup();
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    let said = gateway.tcp.send(&allowed()).await.json();
    let Address::Tcp(address) = rails.address else { panic!() };
    assert_eq!(said["uri"], format!("http://{address}/api/v4/internal/allowed"));
    assert_eq!(
        (said["length"].as_u64(), &said["host"], &said["framing"]),
        (Some(300_014), &json!(false), &json!(false))
    );
    // A body of unknown length.
    let request = Request::post("allowed").with_secret().body(vec![b'x'; 100_000]).chunked(7_000);
    assert_eq!(gateway.tcp.send(&request).await.json()["length"], 100_000);
    // No body.
    assert_eq!(gateway.tcp.send(&Request::get("lfs").with_secret()).await.json()["length"], 0);

    rails.set_behavior(Behavior::Wait);
    let mut connections = Vec::new();
    for _ in 0..50 {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&Request::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        connections.push(connection);
    }
    eventually("all to be there", async || (rails.open_streams() == 50).then_some(())).await;
    // Each class has a connection of its own.
    assert_eq!(rails.counts(), (1, 53));
    let shown = gateway.admin.send(&Request::new("POST", "/servers").json("")).await.json();
    assert_eq!(
        (&shown["servers"][0]["requests"], &shown["servers"][0]["connections"]),
        (&json!(50), &json!(1))
    );
    // Some clients disconnect.
    connections.truncate(20);
    eventually("some to be gone", async || (rails.open_streams() == 20).then_some(())).await;
    rails.shared.go_on.add_permits(20);
    for connection in &mut connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    gateway.wait_for_metric("railgate_upstream_in_flight{class=\"access\"}", 0).await;
    eventually("no stream to be left", async || {
        let shown = gateway.admin.send(&Request::new("POST", "/servers").json("")).await.json();
        (shown["servers"][0]["requests"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_early_http2_response_ends_the_request() {
    let rails = Http2Rails::new(None).await;
    let setup = setup();
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    rails.set_behavior(Behavior::Early);
    for _ in 0..20 {
        let response = gateway.tcp.send(&allowed()).await;
        assert_eq!((response.status, response.text()), (413, "too large"));
    }
    // The connection is still usable.
    rails.set_behavior(Behavior::Echo);
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    assert_eq!(rails.counts(), (1, 21));
}

/// Its running requests finish.
#[tokio::test]
async fn an_expired_http2_connection_gets_no_new_requests() {
    let rails = Http2Rails::new(None).await;
    let setup = setup().text("upstream.max_connection_age", "50ms");
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    rails.set_behavior(Behavior::Wait);
    let small = Request::post("allowed").with_secret().json("{}");
    let mut connection = gateway.tcp.connect().await;
    connection.write(&small.to_bytes("close")).await;
    eventually("it to be there", async || (rails.open_streams() == 1).then_some(())).await;
    rails.set_behavior(Behavior::Echo);
    eventually("another connection", async || {
        assert_eq!(gateway.tcp.send(&small).await.status, 200);
        (rails.counts().0 >= 3).then_some(())
    })
    .await;
    rails.shared.go_on.add_permits(1);
    assert_eq!(connection.read_response().await.status, 200);
    // Expired connections without a stream are closed.
    gateway.wait_for_metric("railgate_upstream_connections", 0).await;
}

/// The client gets the whole response, though HTTP/1.1 with a length has no place for trailers.
#[tokio::test]
async fn a_response_with_length_and_trailers_is_complete() {
    let rails = Http2Rails::new(None).await;
    let setup = setup();
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    rails.set_behavior(Behavior::Trailers);
    let request =
        Request::post("allowed").with_secret().header("X-Request-Id", "h2-with-trailers").json("{}");
    assert_eq!(gateway.tcp.send(&request).await.json()["length"], 2);
    assert_eq!(super::log::wait_for_request_line("h2-with-trailers").await["status"], 200);
}

#[tokio::test]
async fn http2_is_negotiated_over_tls() {
    let authority = CertificateAuthority::new();
    let setup = setup().over_tls();
    let file = authority.write_certificate(&setup.dir, "ca.pem");
    let setup = setup.text("upstream.tls.ca_file", &file.display().to_string());
    let rails = Http2Rails::new(Some(authority.tls_acceptor_with_protocols("localhost", &[b"h2"]))).await;
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    let said = gateway.tcp.send(&allowed()).await.json();
    assert!(said["uri"].as_str().unwrap().starts_with("https://localhost:"), "{said}");
    assert_eq!(said["length"], 300_014);

    // A server without HTTP/2 is an error.
    let old = super::fake_rails::FakeRails::listen_tls(authority.tls_acceptor("localhost", None)).await;
    drop(gateway);
    let other = super::harness::Setup::new().over_tls().text("upstream.protocol", "http2");
    let gateway = RunningGateway::start(
        other.text("upstream.tls.ca_file", &file.display().to_string()).settings(&old.address),
    );
    gateway.tcp.send(&allowed()).await.assert_failure(502);
    assert_eq!(old.request_count(), 0);
}

/// Clients do not notice the end of a connection.
#[tokio::test]
async fn unprocessed_requests_are_retried() {
    let rails = Http2Rails::new(None).await;
    let setup = setup().text("upstream.hold", "10m");
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    let small = Request::post("allowed").with_secret().json("{}");
    for behavior in [Behavior::RefuseOnce, Behavior::GoAway, Behavior::GoAway, Behavior::RefuseOnce] {
        rails.set_behavior(behavior);
        for _ in 0..5 {
            let response = gateway.tcp.send(&small).await;
            assert_eq!(response.status, 200, "{behavior:?}: {response}");
        }
    }
    gateway.wait_for_metric(r#"railgate_upstream_resent_total{reason="unread"}"#, 2).await;
    assert_eq!(rails.counts(), (3, 22));
    // Processed requests are not retried.
    for behavior in [Behavior::Reset, Behavior::HangUp, Behavior::GoAwayAtOnce] {
        rails.set_behavior(behavior);
        let (_, before) = rails.counts();
        gateway.tcp.send(&small).await.assert_failure(502);
        assert_eq!(rails.counts().1, before + 1, "{behavior:?}");
    }
    rails.set_behavior(Behavior::Echo);
    assert_eq!(gateway.tcp.send(&small).await.status, 200);
}

#[tokio::test]
async fn requests_wait_for_an_http2_server_that_is_away() {
    let rails = Http2Rails::new(None).await;
    let Address::Tcp(address) = rails.address else { panic!() };
    let setup = setup().text("upstream.hold", "10m");
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    drop(rails);
    let mut connections = Vec::new();
    for _ in 0..10 {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&Request::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        connections.push(connection);
    }
    gateway.wait_for_metric("railgate_upstream_held", 10).await;
    let rails = Http2Rails::on(TcpListener::bind(address).await.unwrap(), None);
    for connection in &mut connections {
        assert_eq!(connection.read_response().await.status, 200);
    }
    assert_eq!(rails.counts(), (1, 10));
}

/// The connection stays usable for other requests.
#[tokio::test]
async fn a_truncated_request_does_not_count_against_the_server() {
    let rails = Http2Rails::new(None).await;
    let setup = setup();
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    // A client that disconnects during the connect would cancel it.
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    let whole =
        Request::post("allowed").with_secret().body(vec![b'x'; 100_000]).chunked(10_000).to_bytes("close");
    let malformed =
        Request::post("allowed").with_secret().header("Transfer-Encoding", "chunked").to_bytes("close");
    for bytes in
        [whole[..whole.len() - 50_000].to_vec(), [&malformed, &b"5\r\nhello\r\nno chunk\r\n"[..]].concat()]
    {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&bytes).await;
        connection.shutdown_write().await;
        // After a half-close, the client gets nothing, or a refusal that was sent before.
        match connection.try_read_response().await {
            Ok(response) => response.assert_failure(400),
            Err(incomplete) => assert!(
                matches!(&incomplete, Incomplete::Head(nothing) if nothing.is_empty()),
                "{incomplete}"
            ),
        }
        gateway.wait_for_metric("railgate_upstream_failures_in_a_row", 0).await;
    }
    // A client that disconnects.
    let mut connection = gateway.tcp.connect().await;
    connection.write(&whole[..whole.len() - 50_000]).await;
    drop(connection);
    gateway.wait_for_metric("railgate_requests_in_flight", 0).await;
    assert_eq!(gateway.metric("railgate_upstream_failures_in_a_row").await, Some(0));
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    assert_eq!(rails.counts().0, 1);
}

/// A server limits the streams per connection, and Gitaly calls back while all `/allowed` requests wait for
/// it.
#[tokio::test]
async fn classes_do_not_exhaust_each_others_streams() {
    let rails = Http2Rails::new(None).await;
    let setup = setup();
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    rails.set_behavior(Behavior::Wait);
    let mut waiting = Vec::new();
    for _ in 0..STREAMS + 10 {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&Request::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        waiting.push(connection);
    }
    eventually("as many to be there as may", async || (rails.open_streams() == STREAMS).then_some(())).await;
    rails.set_behavior(Behavior::Echo);
    assert_eq!(gateway.tcp.send(&Request::post("pre_receive").with_secret().json("{}")).await.status, 200);
    rails.shared.go_on.add_permits(STREAMS + 10);
    for connection in &mut waiting {
        assert_eq!(connection.read_response().await.status, 200);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_delay_others() {
    let rails = Http2Rails::new(None).await;
    let setup = setup();
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    rails.set_behavior(Behavior::Flood);
    let mut lazy = Vec::new();
    for _ in 0..10 {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&Request::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        lazy.push(connection);
    }
    eventually("all to be there", async || (rails.open_streams() == 10).then_some(())).await;
    rails.set_behavior(Behavior::Echo);
    for _ in 0..5 {
        assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    }
}

/// Health checks use their own connections, and a drained server has none.
#[tokio::test]
async fn several_http2_servers_are_health_checked_and_drained() {
    let (one, other) = (Http2Rails::new(None).await, Http2Rails::new(None).await);
    let setup = setup().text("upstream.health.interval", "5ms");
    let servers =
        [&one, &other].map(|rails| format!("[[upstream.server]]\nurl = \"{}\"\n", rails.address.url()));
    let gateway = RunningGateway::start(setup.settings_with_servers(&servers.concat()));
    for _ in 0..20 {
        assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    }
    eventually("several checks", async || (one.counts().0 > 5 && other.counts().0 > 5).then_some(())).await;
    let Address::Tcp(address) = one.address else { panic!() };
    let drain = json!({ "server": address.to_string(), "drain": true }).to_string();
    gateway.admin.send(&Request::new("POST", "/servers").json(&drain)).await;
    let opened = format!(r#"railgate_upstream_connections{{server="{address}"}}"#);
    // A health check may have one for a moment.
    eventually("none to be left", async || gateway.metric(&opened).await.filter(|count| *count == 0)).await;
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
}

#[tokio::test]
async fn concurrent_requests_share_one_connect_attempt() {
    // A full backlog: connection attempts are neither accepted nor refused.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _taken = [std::net::TcpStream::connect(address).unwrap()];
    let setup = setup().text("upstream.connect_timeout", "2s");
    let gateway = RunningGateway::start(setup.settings(&Address::Tcp(address)));
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&Request::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        connections.push(connection);
    }
    for connection in &mut connections {
        connection.read_response().await.assert_failure(503);
    }
    let failures = gateway.metric("railgate_upstream_connect_failures_total").await.unwrap();
    assert!(failures < 15, "{failures}");
}
