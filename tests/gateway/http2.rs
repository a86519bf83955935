//! Rails, or rather a proxy in front of it, that speaks HTTP/2.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::certificates::Authority;
use super::client::{Ask, Cut, Peer, Stream, eventually};
use super::stage::{Running, Setup};

/// What it does about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Says what it got.
    Echo,
    /// The same once the test lets it.
    Wait,
    /// Refuses the first stream, without looking at it.
    RefuseOnce,
    /// Answers the first request, and says that it takes no more.
    GoAway,
    /// Says that it takes no more, and ends the connection with the stream begun.
    GoAwayAtOnce,
    /// Resets the stream.
    Reset,
    /// Answers at once, and wants no more of the request (RFC 9113 §8.1).
    Early,
    /// Says how long its answer is, and has something behind it.
    Trailers,
    /// Ends the connection.
    HangUp,
    /// Sends more than a client that does not read will ever have.
    Flood,
}

/// How many streams a connection may have.
const STREAMS: usize = 60;

/// A server that ends when it is dropped.
struct Rails {
    peer: Peer,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    manner: Mutex<Manner>,
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Streams that are being answered.
    open: AtomicUsize,
    go_on: Semaphore,
}

impl Drop for Rails {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Rails {
    async fn new(tls: Option<TlsAcceptor>) -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), tls)
    }

    fn on(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        let peer = Peer::Tcp(listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Echo),
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
        Self { peer, shared, accepting }
    }

    fn is(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    fn counts(&self) -> (usize, usize) {
        (self.shared.connections.load(Ordering::SeqCst), self.shared.requests.load(Ordering::SeqCst))
    }

    fn open(&self) -> usize {
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
        let manner = *shared.manner.lock().unwrap();
        match manner {
            Manner::Echo | Manner::Wait | Manner::Flood | Manner::Trailers => {}
            Manner::RefuseOnce => {
                *shared.manner.lock().unwrap() = Manner::Echo;
                respond.send_reset(Reason::REFUSED_STREAM);
                continue;
            }
            Manner::GoAway => {
                *shared.manner.lock().unwrap() = Manner::Echo;
                connection.graceful_shutdown();
            }
            Manner::GoAwayAtOnce => {
                *shared.manner.lock().unwrap() = Manner::Echo;
                connection.abrupt_shutdown(Reason::NO_ERROR);
                let _ = connection.accept().await;
                return;
            }
            Manner::Reset => {
                respond.send_reset(Reason::INTERNAL_ERROR);
                continue;
            }
            Manner::Early => {
                let answer = Response::builder().status(413).body(()).unwrap();
                let mut stream = respond.send_response(answer, false).unwrap();
                stream.send_data(Bytes::from_static(b"too large"), true).unwrap();
                // That resets the stream, behind the answer.
                drop((request, stream, respond));
                continue;
            }
            Manner::HangUp => return,
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.open.fetch_add(1, Ordering::SeqCst);
            answer(request, respond, manner, &shared).await;
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    manner: Manner,
    shared: &Shared,
) {
    let (head, mut body) = request.into_parts();
    let mut length = 0;
    while let Some(Ok(piece)) = body.data().await {
        length += piece.len();
        let _ = body.flow_control().release_capacity(piece.len());
    }
    if manner == Manner::Wait {
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
    let mut answer =
        Response::builder().status(200).header("content-type", "application/json").body(()).unwrap();
    if manner == Manner::Trailers {
        answer.headers_mut().insert("content-length", said.to_string().len().into());
    }
    if let Ok(mut stream) = respond.send_response(answer, false) {
        if manner == Manner::Flood {
            let _ = stream.send_data(Bytes::from(vec![b'x'; 64 << 20]), true);
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            return;
        }
        let has_trailers = manner == Manner::Trailers;
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

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json(&format!(r#"{{"changes":"{}"}}"#, "x".repeat(300_000)))
}

#[tokio::test]
async fn requests_share_a_connection() {
    let rails = Rails::new(None).await;
    let setup = setup();
    let gateway = Running::start(setup.settings(&rails.peer));
    let said = gateway.tcp.send(&allowed()).await.json();
    let Peer::Tcp(address) = rails.peer else { panic!() };
    assert_eq!(said["uri"], format!("http://{address}/api/v4/internal/allowed"));
    assert_eq!(
        (said["length"].as_u64(), &said["host"], &said["framing"]),
        (Some(300_014), &json!(false), &json!(false))
    );
    // A body whose length nobody knows.
    let ask = Ask::post("allowed").with_secret().body(vec![b'x'; 100_000]).chunked(7_000);
    assert_eq!(gateway.tcp.send(&ask).await.json()["length"], 100_000);
    // None at all.
    assert_eq!(gateway.tcp.send(&Ask::get("lfs").with_secret()).await.json()["length"], 0);

    rails.is(Manner::Wait);
    let mut wires = Vec::new();
    for _ in 0..50 {
        let mut wire = gateway.tcp.connect().await;
        wire.write(&Ask::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        wires.push(wire);
    }
    eventually("all to be there", async || (rails.open() == 50).then_some(())).await;
    // Each class has a connection of its own.
    assert_eq!(rails.counts(), (1, 53));
    let shown = gateway.admin.send(&Ask::new("POST", "/servers").json("")).await.json();
    assert_eq!(
        (&shown["servers"][0]["requests"], &shown["servers"][0]["connections"]),
        (&json!(50), &json!(1))
    );
    // Some leave.
    wires.truncate(20);
    eventually("some to be gone", async || (rails.open() == 20).then_some(())).await;
    rails.shared.go_on.add_permits(20);
    for wire in &mut wires {
        assert_eq!(wire.answer().await.status, 200);
    }
    gateway.reaches("railgate_upstream_in_flight{class=\"access\"}", 0).await;
    eventually("no stream to be left", async || {
        let shown = gateway.admin.send(&Ask::new("POST", "/servers").json("")).await.json();
        (shown["servers"][0]["requests"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_ends_the_request() {
    let rails = Rails::new(None).await;
    let setup = setup();
    let gateway = Running::start(setup.settings(&rails.peer));
    rails.is(Manner::Early);
    for _ in 0..20 {
        let answer = gateway.tcp.send(&allowed()).await;
        assert_eq!((answer.status, answer.text()), (413, "too large"));
    }
    // The connection is none the worse for it.
    rails.is(Manner::Echo);
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    assert_eq!(rails.counts(), (1, 21));
}

/// What is under way on it comes to its end.
#[tokio::test]
async fn a_connection_that_is_too_old_gets_no_new_requests() {
    let rails = Rails::new(None).await;
    let setup = setup().text("upstream.max_connection_age", "50ms");
    let gateway = Running::start(setup.settings(&rails.peer));
    rails.is(Manner::Wait);
    let small = Ask::post("allowed").with_secret().json("{}");
    let mut wire = gateway.tcp.connect().await;
    wire.write(&small.to_bytes("close")).await;
    eventually("it to be there", async || (rails.open() == 1).then_some(())).await;
    rails.is(Manner::Echo);
    eventually("another connection", async || {
        assert_eq!(gateway.tcp.send(&small).await.status, 200);
        (rails.counts().0 >= 3).then_some(())
    })
    .await;
    rails.shared.go_on.add_permits(1);
    assert_eq!(wire.answer().await.status, 200);
    // Those without a stream are closed.
    gateway.reaches("railgate_upstream_connections", 0).await;
}

/// The client has all of the answer, though its connection has no place for what comes behind it.
#[tokio::test]
async fn an_answer_of_known_length_with_trailers_is_whole() {
    let rails = Rails::new(None).await;
    let setup = setup();
    let gateway = Running::start(setup.settings(&rails.peer));
    rails.is(Manner::Trailers);
    let ask = Ask::post("allowed").with_secret().header("X-Request-Id", "h2-with-trailers").json("{}");
    assert_eq!(gateway.tcp.send(&ask).await.json()["length"], 2);
    assert_eq!(super::log::line_of("h2-with-trailers").await["status"], 200);
}

#[tokio::test]
async fn over_tls_it_is_agreed_on() {
    let authority = Authority::new();
    let setup = setup().over_tls();
    let file = authority.file(&setup.dir, "ca.pem");
    let setup = setup.text("upstream.tls.ca_file", &file.display().to_string());
    let rails = Rails::new(Some(authority.server_of("localhost", &[b"h2"]))).await;
    let gateway = Running::start(setup.settings(&rails.peer));
    let said = gateway.tcp.send(&allowed()).await.json();
    assert!(said["uri"].as_str().unwrap().starts_with("https://localhost:"), "{said}");
    assert_eq!(said["length"], 300_014);

    // Whoever cannot is told of.
    let old = super::fake::Rails::on_tls(authority.server("localhost", None)).await;
    drop(gateway);
    let other = super::stage::Setup::new().over_tls().text("upstream.protocol", "http2");
    let gateway =
        Running::start(other.text("upstream.tls.ca_file", &file.display().to_string()).settings(&old.peer));
    gateway.tcp.send(&allowed()).await.assert_failure(502);
    assert_eq!(old.count(), 0);
}

/// A connection is not for ever: nobody notices when it ends.
#[tokio::test]
async fn what_was_not_looked_at_is_sent_again() {
    let rails = Rails::new(None).await;
    let setup = setup().text("upstream.hold", "10m");
    let gateway = Running::start(setup.settings(&rails.peer));
    let small = Ask::post("allowed").with_secret().json("{}");
    for manner in [Manner::RefuseOnce, Manner::GoAway, Manner::GoAway, Manner::RefuseOnce] {
        rails.is(manner);
        for _ in 0..5 {
            let answer = gateway.tcp.send(&small).await;
            assert_eq!(answer.status, 200, "{manner:?}: {answer}");
        }
    }
    gateway.reaches(r#"railgate_upstream_resent_total{reason="unread"}"#, 2).await;
    assert_eq!(rails.counts(), (3, 22));
    // What it has looked at is not.
    for manner in [Manner::Reset, Manner::HangUp, Manner::GoAwayAtOnce] {
        rails.is(manner);
        let (_, before) = rails.counts();
        gateway.tcp.send(&small).await.assert_failure(502);
        assert_eq!(rails.counts().1, before + 1, "{manner:?}");
    }
    rails.is(Manner::Echo);
    assert_eq!(gateway.tcp.send(&small).await.status, 200);
}

#[tokio::test]
async fn requests_wait_for_a_server_that_is_away() {
    let rails = Rails::new(None).await;
    let Peer::Tcp(address) = rails.peer else { panic!() };
    let setup = setup().text("upstream.hold", "10m");
    let gateway = Running::start(setup.settings(&rails.peer));
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    drop(rails);
    let mut wires = Vec::new();
    for _ in 0..10 {
        let mut wire = gateway.tcp.connect().await;
        wire.write(&Ask::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        wires.push(wire);
    }
    gateway.reaches("railgate_upstream_held", 10).await;
    let rails = Rails::on(TcpListener::bind(address).await.unwrap(), None);
    for wire in &mut wires {
        assert_eq!(wire.answer().await.status, 200);
    }
    assert_eq!(rails.counts(), (1, 10));
}

/// The client's fault is not the server's, and the others' connection lives on.
#[tokio::test]
async fn a_request_that_breaks_off_is_the_clients_fault() {
    let rails = Rails::new(None).await;
    let setup = setup();
    let gateway = Running::start(setup.settings(&rails.peer));
    // Who leaves while a connection is made takes that along.
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    let whole =
        Ask::post("allowed").with_secret().body(vec![b'x'; 100_000]).chunked(10_000).to_bytes("close");
    let malformed =
        Ask::post("allowed").with_secret().header("Transfer-Encoding", "chunked").to_bytes("close");
    for bytes in
        [whole[..whole.len() - 50_000].to_vec(), [&malformed, &b"5\r\nhello\r\nno chunk\r\n"[..]].concat()]
    {
        let mut wire = gateway.tcp.connect().await;
        wire.write(&bytes).await;
        wire.finish().await;
        // Who says that nothing more will come is gone, or has its answer if that was there before.
        match wire.try_answer().await {
            Ok(answer) => answer.assert_failure(400),
            Err(cut) => assert!(matches!(&cut, Cut::Head(nothing) if nothing.is_empty()), "{cut}"),
        }
        gateway.reaches("railgate_upstream_failures_in_a_row", 0).await;
    }
    // One that leaves.
    let mut wire = gateway.tcp.connect().await;
    wire.write(&whole[..whole.len() - 50_000]).await;
    drop(wire);
    gateway.reaches("railgate_requests_in_flight", 0).await;
    assert_eq!(gateway.metric("railgate_upstream_failures_in_a_row").await, Some(0));
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    assert_eq!(rails.counts().0, 1);
}

/// A server bounds how many streams a connection has; Gitaly calls back while all of `/allowed` wait for it.
#[tokio::test]
async fn classes_do_not_take_each_others_streams() {
    let rails = Rails::new(None).await;
    let setup = setup();
    let gateway = Running::start(setup.settings(&rails.peer));
    rails.is(Manner::Wait);
    let mut waiting = Vec::new();
    for _ in 0..STREAMS + 10 {
        let mut wire = gateway.tcp.connect().await;
        wire.write(&Ask::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        waiting.push(wire);
    }
    eventually("as many to be there as may", async || (rails.open() == STREAMS).then_some(())).await;
    rails.is(Manner::Echo);
    assert_eq!(gateway.tcp.send(&Ask::post("pre_receive").with_secret().json("{}")).await.status, 200);
    rails.shared.go_on.add_permits(STREAMS + 10);
    for wire in &mut waiting {
        assert_eq!(wire.answer().await.status, 200);
    }
}

/// Who does not read its answer keeps nobody else from theirs.
#[tokio::test]
async fn who_does_not_read_holds_up_nobody() {
    let rails = Rails::new(None).await;
    let setup = setup();
    let gateway = Running::start(setup.settings(&rails.peer));
    rails.is(Manner::Flood);
    let mut lazy = Vec::new();
    for _ in 0..10 {
        let mut wire = gateway.tcp.connect().await;
        wire.write(&Ask::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        lazy.push(wire);
    }
    eventually("all to be there", async || (rails.open() == 10).then_some(())).await;
    rails.is(Manner::Echo);
    for _ in 0..5 {
        assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    }
}

/// Health checks go over connections of their own, and a drained server has none.
#[tokio::test]
async fn several_servers_are_checked_and_drained() {
    let (one, other) = (Rails::new(None).await, Rails::new(None).await);
    let setup = setup().text("upstream.health.interval", "5ms");
    let servers =
        [&one, &other].map(|rails| format!("[[upstream.server]]\nurl = \"{}\"\n", rails.peer.url()));
    let gateway = Running::start(setup.settings_of(&servers.concat()));
    for _ in 0..20 {
        assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    }
    eventually("several checks", async || (one.counts().0 > 5 && other.counts().0 > 5).then_some(())).await;
    let Peer::Tcp(address) = one.peer else { panic!() };
    let drain = json!({ "server": address.to_string(), "drain": true }).to_string();
    gateway.admin.send(&Ask::new("POST", "/servers").json(&drain)).await;
    let opened = format!(r#"railgate_upstream_connections{{server="{address}"}}"#);
    // Now and then a check has one.
    eventually("none to be left", async || gateway.metric(&opened).await.filter(|count| *count == 0)).await;
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
}

#[tokio::test]
async fn a_server_that_cannot_be_connected_to_is_tried_once_for_all() {
    // Accepts nothing, and refuses nothing.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _taken = [std::net::TcpStream::connect(address).unwrap()];
    let setup = setup().text("upstream.connect_timeout", "2s");
    let gateway = Running::start(setup.settings(&Peer::Tcp(address)));
    let mut wires = Vec::new();
    for _ in 0..20 {
        let mut wire = gateway.tcp.connect().await;
        wire.write(&Ask::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        wires.push(wire);
    }
    for wire in &mut wires {
        wire.answer().await.assert_failure(503);
    }
    let failures = gateway.metric("railgate_upstream_connect_failures_total").await.unwrap();
    assert!(failures < 15, "{failures}");
}
