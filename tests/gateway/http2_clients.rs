//! HTTP/2 from clients: by ALPN and by prior knowledge, each request as it would be over HTTP/1.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::ClientConfig;
use tokio::task::JoinHandle;

use super::certificates::CertificateAuthority;
use super::client::{Address, Request, eventually, noise};
use super::collector::{Collector, assert_nested, named};
use super::fake_rails::{Latch, ReceivedRequest, Reply};
use super::frames::{self, FrameClient};
use super::harness::{Harness, Setup};
use super::log;

fn setup() -> Setup {
    Setup::new().tcp("http2 = true").unix("http2 = true")
}

/// A gateway with TLS on its TCP listener.
async fn start_tls() -> (Harness, Arc<ClientConfig>) {
    let authority = CertificateAuthority::new();
    let setup = setup();
    let [certificate, key] = authority.issue_to_files(&setup.dir, "localhost");
    let tls = format!(
        "tls = {{ certificate_file = {:?}, key_file = {:?} }}",
        certificate.display().to_string(),
        key.display().to_string()
    );
    let harness = setup.tcp(tls).start().await;
    (harness, with_protocols(&authority.client_config(None), &[b"h2", b"http/1.1"]))
}

fn with_protocols(config: &ClientConfig, protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A client as those of GitLab's languages are: one connection for all requests.
struct Client {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    async fn connect(address: &Address) -> Self {
        Self::over(address.connect().await.into_stream()).await
    }

    async fn connect_tls(address: &Address, config: &Arc<ClientConfig>) -> Self {
        Self::over(address.connect_tls(config).await.unwrap().into_stream()).await
    }

    async fn over(stream: Box<dyn super::client::Stream>) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 24);
        let (requests, connection) = builder.handshake(stream).await.unwrap();
        Self { requests, connection: tokio::spawn(connection) }
    }

    fn send(&self, request: &Request) -> JoinHandle<Result<(u16, String), h2::Error>> {
        let mut head = http::Request::builder()
            .method(&*request.method)
            .uri(format!("http://gateway.example:8181{}", request.target));
        for (name, value) in &request.headers {
            head = head.header(name, value);
        }
        let (requests, body) = (self.requests.clone(), Bytes::from(request.body_bytes().to_vec()));
        if request.method == "POST" {
            head = head.header("content-length", body.len());
        }
        let head = head.body(()).unwrap();
        tokio::spawn(async move {
            let (response, mut stream) = requests.ready().await?.send_request(head, body.is_empty())?;
            let mut rest = body;
            while !rest.is_empty() {
                stream.reserve_capacity(rest.len());
                let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
                let piece = rest.split_to(room.min(rest.len()));
                stream.send_data(piece, rest.is_empty())?;
            }
            let (head, mut body) = response.await?.into_parts();
            let mut text = Vec::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                text.extend_from_slice(&data);
            }
            Ok((head.status.as_u16(), String::from_utf8(text).unwrap()))
        })
    }

    async fn exchange(&self, request: &Request) -> (u16, String) {
        self.send(request).await.unwrap().unwrap()
    }

    /// The gateway ends the connection, without an error, after all that was asked is answered. The client takes leave
    /// by a GOAWAY of its own, which may meet a socket that is closed already.
    async fn end(self) {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        if let Err(error) = self.connection.await.unwrap() {
            let kind = error.get_io().map(std::io::Error::kind);
            assert!(matches!(kind, Some(BrokenPipe | ConnectionReset)), "{error:?}");
        }
    }
}

/// Without what names the request.
fn head(request: &ReceivedRequest) -> Vec<String> {
    let mut lines: Vec<_> = request
        .head
        .lines()
        .map(str::to_ascii_lowercase)
        .filter(|line| !line.starts_with("x-request-id") && !line.starts_with("via"))
        .collect();
    lines[1..].sort();
    lines
}

fn requests() -> Vec<Request> {
    vec![
        Request::get("check").with_secret(),
        Request::get("discover?key_id=1&x=%20%2B").with_secret().header("user-agent", "Go-http-client/2.0"),
        Request::post("allowed").with_secret().json("{\"a\":1}"),
        Request::post("allowed").with_secret().body(noise(300_000)),
        Request::post("post_receive").with_secret().form("a=b&c=d"),
        Request::post("allowed").with_secret().body(""),
        Request::get("kubernetes/agent_info").with_kas_token(),
        Request::get("nobody?a=1").header("cookie", "a=b; c=d").header("x-forwarded-for", "1.2.3.4"),
        Request::new("HEAD", "/api/v4/internal/nobody"),
        Request::new("GET", "//api/v4/internal/nobody"),
    ]
}

#[tokio::test]
async fn rails_gets_the_requests_that_it_gets_over_http1() {
    let (tls, config) = start_tls().await;
    let plain = setup().start().await;
    for harness in [&plain, &tls] {
        let is_tls = std::ptr::eq(harness, &raw const tls);
        harness.rails.respond_with(|request| Reply::json(200, &format!("{{\"at\":{}}}", request.body.len())));
        let tcp = &harness.gateway.tcp;
        let client =
            if is_tls { Client::connect_tls(tcp, &config).await } else { Client::connect(tcp).await };
        for request in requests() {
            let mut one = if is_tls {
                tcp.connect_tls(&with_protocols(&config, &[b"http/1.1"])).await.unwrap()
            } else {
                tcp.connect().await
            };
            one.write(&request.to_bytes("close")).await;
            let first = one.read_response_to(&request).await;
            let over_http1 = harness.rails.last_request();
            let all = Request::new("POST", "/purge").json("{\"all\":true}");
            assert_eq!(harness.gateway.admin.send(&all).await.status, 200);
            let count = harness.rails.request_count();
            let (status, text) = client.exchange(&request).await;
            assert_eq!((status, text.as_str()), (first.status, first.text()), "{request}");
            assert_eq!(harness.rails.request_count(), count + 1, "{request}");
            let over_http2 = harness.rails.last_request();
            assert_eq!(head(&over_http2), head(&over_http1), "{request}");
            assert!(over_http2.body == over_http1.body, "{request}");
        }
    }
}

#[tokio::test]
async fn requests_that_need_no_rails_are_answered_in_the_same_way() {
    let harness = setup().start().await;
    for address in [&harness.gateway.tcp, &harness.gateway.unix] {
        let client = Client::connect(address).await;
        for request in [
            Request::get("check"),
            Request::post("allowed").json("{}"),
            Request::post("allowed").header("gitlab-shared-secret", "wrong").body(noise(100_000)),
            Request::get("%41").with_secret(),
            Request::get("../users").with_secret(),
            Request::new("GET", "/elsewhere").with_secret(),
        ] {
            let first = address.send(&request).await;
            let (status, text) = client.exchange(&request).await;
            assert_eq!((status, text.as_str()), (first.status, first.text()), "{request}");
        }
        // Rails has answered one, so that it is a hit.
        let key = Request::get("discover?key_id=1").with_secret();
        let first = address.send(&key).await;
        let count = harness.rails.request_count();
        assert_eq!(client.exchange(&key).await, (200, first.text().to_owned()));
        assert_eq!(harness.rails.request_count(), count);
    }
}

#[tokio::test]
async fn a_hundred_parallel_requests_get_each_its_own_answer() {
    let harness = setup().start().await;
    let latch = Latch::closed();
    let held = latch.clone();
    harness.rails.respond_with(move |request| {
        let id = request.param("key_id").unwrap();
        Reply::json(200, &format!("{{\"id\":{id},\"username\":\"user{id}\",\"name\":\"n\"}}")).after(&held)
    });
    let client = Client::connect(&harness.gateway.tcp).await;
    let pending: Vec<_> = (1..=150)
        .map(|id| (id, client.send(&Request::get(&format!("discover?key_id={id}")).with_secret())))
        .collect();
    // No more at one time than the gateway has announced; the client has the others wait.
    harness.wait_for_metric("railgate_requests_in_flight", 100).await;
    latch.open();
    for (id, pending) in pending {
        let (status, text) = pending.await.unwrap().unwrap();
        assert_eq!(status, 200);
        assert!(text.contains(&format!("\"id\":{id},")), "{id}: {text}");
    }
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    assert_eq!(harness.rails.request_count(), 150);
    assert_eq!(harness.metric("railgate_client_connections").await, Some(1));
}

#[tokio::test]
async fn big_responses_and_slow_readers_do_not_hinder_others() {
    let harness = setup().start().await;
    let large = "y".repeat(3_000_000);
    let body = large.clone();
    harness
        .rails
        .respond_with(move |request| Reply::json(200, if request.is_for("allowed") { &body } else { "{}" }));
    let client = Client::connect(&harness.gateway.tcp).await;
    let all: Vec<_> =
        (0..8).map(|_| client.send(&Request::post("allowed").with_secret().json("{}"))).collect();
    for one in all {
        let (status, text) = one.await.unwrap().unwrap();
        assert!(status == 200 && text == large);
    }
    // One that gives no room for an answer has no answers of others wait.
    let mut slow = FrameClient::start(harness.gateway.tcp.connect().await, &[(4, 0)]).await;
    let secret = Request::get("check").with_secret().headers;
    let fields: Vec<_> =
        secret.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    slow.send_request(1, &frames::request("GET", "/api/v4/internal/check", &fields)).await;
    let head = slow.read_until(frames::HEADERS).await.unwrap();
    assert_eq!(head.flags & frames::END_STREAM, 0);
    slow.send_request(3, &frames::request("HEAD", "/api/v4/internal/check", &fields)).await;
    while slow.read_until(frames::HEADERS).await.unwrap().stream != 3 {}
    slow.send(frames::WINDOW_UPDATE, 0, 1, &1_000_u32.to_be_bytes()).await;
    assert!(slow.read_until(frames::DATA).await.unwrap().flags & frames::END_STREAM != 0);
}

#[tokio::test]
async fn http2_is_spoken_only_where_it_is_switched_on() {
    let harness = Harness::new().await;
    let mut client = FrameClient::connect(&harness.gateway.tcp).await;
    client.connection.read_response().await.assert_failure(400);
    // Where it is, HTTP/1 is, too, whatever the pieces that its first bytes come in.
    let harness = setup().start().await;
    for split in 0..6 {
        for address in [&harness.gateway.tcp, &harness.gateway.unix] {
            let request = Request::post("allowed").with_secret().json("{}");
            let bytes = request.to_bytes("close");
            let mut connection = address.connect().await;
            connection.write(&bytes[..split]).await;
            tokio::task::yield_now().await;
            connection.write(&bytes[split..]).await;
            assert_eq!(connection.read_response_to(&request).await.status, 200);
        }
    }
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await;
    connection.read_response().await.assert_failure(400);
    // In TLS, the client chooses.
    let (harness, config) = start_tls().await;
    let tcp = &harness.gateway.tcp;
    for protocols in [&[&b"http/1.1"[..]][..], &[]] {
        let mut connection = tcp.connect_tls(&with_protocols(&config, protocols)).await.unwrap();
        assert_eq!(connection.exchange(&Request::get("check").with_secret()).await.status, 200);
    }
    let client = Client::connect_tls(tcp, &config).await;
    assert_eq!(client.exchange(&Request::get("check").with_secret()).await.0, 200);
}

#[tokio::test]
async fn streams_in_flight_are_answered_while_the_gateway_drains() {
    let mut harness = setup().start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, r#"{"late":true}"#).after(&latch));
    let busy = Client::connect(&harness.gateway.tcp).await;
    let idle = Client::connect(&harness.gateway.unix).await;
    idle.exchange(&Request::get("check")).await;
    // It never acknowledges anything.
    let mut silent = FrameClient::connect(&harness.gateway.tcp).await;
    let mut unfinished = FrameClient::silent(harness.gateway.tcp.connect().await);
    unfinished.connection.write(&frames::PREFACE[..7]).await;
    let pending: Vec<_> =
        (0..10).map(|_| busy.send(&Request::post("allowed").with_secret().json("{}"))).collect();
    harness.rails.wait_for_requests(10).await;
    harness.wait_for_metric("railgate_client_connections", 13).await;
    harness.gateway.drain();
    assert_eq!(silent.end().await, Some(0), "GOAWAY, no error");
    assert_eq!(unfinished.end().await, None);
    idle.end().await;
    eventually("no more streams", async || {
        let late = busy.send(&Request::get("check").with_secret()).await.unwrap();
        late.is_err().then_some(())
    })
    .await;
    latch.open();
    for pending in pending {
        assert_eq!(pending.await.unwrap().unwrap(), (200, r#"{"late":true}"#.to_owned()));
    }
    busy.end().await;
    assert!(harness.gateway.wait_for_end().await, "nothing had to be dropped");
}

/// The gateway has written all of it, and the client has not received it yet, while it still says something.
#[tokio::test]
async fn the_end_of_a_connection_does_not_cut_off_its_last_answer() {
    const LENGTH: usize = 200_000;
    let mut harness = setup().start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::new(200, "", vec![b'x'; LENGTH]).after(&latch));
    let windows = [(4, 1 << 30)];
    let connection = harness.gateway.tcp.connect_with_small_buffer().await;
    let mut client = FrameClient::start(connection, &windows).await;
    client.send(frames::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()).await;
    client.send_request(1, &frames::request("GET", "/api/v4/internal/nobody", &[])).await;
    harness.rails.wait_for_requests(1).await;
    harness.gateway.drain();
    // This tells the gateway that its GOAWAY has arrived.
    let ping = client.read_until(frames::PING).await.unwrap();
    client.send(frames::PING, frames::ACK, 0, &ping.payload).await;
    latch.open();
    let mut received = 0;
    while let Some(frame) = client.read_frame().await {
        if frame.kind == frames::DATA {
            received += frame.payload.len();
            client.send(frames::WINDOW_UPDATE, 0, 0, &1_000_u32.to_be_bytes()).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    assert_eq!(received, LENGTH);
    assert!(harness.gateway.wait_for_end().await);
}

#[tokio::test]
async fn a_request_that_is_given_up_is_dropped() {
    let harness = setup().start().await;
    harness.rails.respond_always(Reply::silence());
    let mut client = FrameClient::connect(&harness.gateway.tcp).await;
    let fields = frames::request("GET", "/api/v4/internal/nobody", &[]);
    for stream in [1, 3, 5] {
        client.send_request(stream, &fields).await;
    }
    harness.wait_for_metric("railgate_requests_in_flight", 3).await;
    client.send(frames::RST_STREAM, 0, 3, &8_u32.to_be_bytes()).await;
    harness.wait_for_metric("railgate_requests_in_flight", 2).await;
    // The end of the connection is the end of all.
    drop(client);
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    harness.wait_for_metric("railgate_client_connections", 0).await;
}

#[tokio::test]
async fn an_idle_connection_gives_way_and_one_in_use_does_not() {
    let harness = setup().tcp("connections = 4").start().await;
    let latch = Latch::closed();
    let held = latch.clone();
    harness.rails.respond_with(move |request| {
        let reply = Reply::json(200, "{}");
        if request.is_for("allowed") { reply.after(&held) } else { reply }
    });
    let tcp = &harness.gateway.tcp;
    let (idle, busy) = (Client::connect(tcp).await, Client::connect(tcp).await);
    assert_eq!(idle.exchange(&Request::get("check").with_secret()).await.0, 200);
    let pending = busy.send(&Request::post("allowed").with_secret().json("{}"));
    harness.rails.wait_for_requests(2).await;
    // The requests beyond the first count as connections, too.
    let more: Vec<_> =
        (0..2).map(|_| busy.send(&Request::post("allowed").with_secret().json("{}"))).collect();
    harness.rails.wait_for_requests(4).await;
    assert_eq!(harness.metric("railgate_client_connections").await, Some(4));
    let mut next = tcp.connect().await;
    assert_eq!(next.exchange(&Request::get("check").with_secret()).await.status, 200);
    // It is closed: with what error depends on what was unread.
    let _ = idle.connection.await.unwrap();
    latch.open();
    for pending in more.into_iter().chain([pending]) {
        assert_eq!(pending.await.unwrap().unwrap().0, 200);
    }
    harness.wait_for_metric("railgate_client_connections", 2).await;
}

#[tokio::test]
async fn unauthenticated_streams_take_no_more_places_than_connections_would() {
    let harness = setup().tcp("connections = 8").start().await;
    harness.rails.respond_with(|request| {
        if request.is_for("nobody") { Reply::silence() } else { Reply::json(200, "{}") }
    });
    let known = Client::connect(&harness.gateway.tcp).await;
    assert_eq!(known.exchange(&Request::get("check").with_secret()).await.0, 200);
    let mut flood = FrameClient::connect(&harness.gateway.tcp).await;
    for stream in (1..200).step_by(2) {
        flood.send_request(stream, &frames::request("GET", "/api/v4/internal/nobody", &[])).await;
    }
    // Three quarters of the places; the others wait for a while, and are refused.
    harness.wait_for_metric("railgate_client_connections", 7).await;
    for _ in 6..100 {
        let reset = flood.read_until(frames::RST_STREAM).await.unwrap();
        assert_eq!(reset.payload, 7_u32.to_be_bytes(), "REFUSED_STREAM: it may be sent again");
    }
    assert_eq!(harness.metric("railgate_client_connections").await, Some(7));
    // The last quarter is for those who have shown a credential.
    let allowed = Request::post("allowed").with_secret().json("{}");
    for pending in [known.send(&allowed), known.send(&allowed)] {
        assert_eq!(pending.await.unwrap().unwrap().0, 200);
    }
}

/// As many newcomers as if each stream were a connection, whichever of them has begun first.
#[tokio::test]
async fn a_busy_stream_keeps_no_places_for_others_that_wait_for_their_client() {
    for is_first in [true, false] {
        let harness = setup().tcp("connections = 16").start().await;
        let latch = Latch::closed();
        let held = latch.clone();
        harness.rails.respond_with(move |_| Reply::json(200, "{}").after(&held));
        let since = log::position();
        let Address::Tcp(address) = &harness.gateway.tcp else { unreachable!("it is TCP") };
        let mut flood = FrameClient::connect(&harness.gateway.tcp).await;
        let busy = if is_first { 1 } else { 29 };
        let fields = [("content-length", "9"), ("content-type", "application/json")];
        for stream in (1..30).step_by(2) {
            if stream == busy {
                flood.send_request(stream, &frames::request("GET", "/api/v4/internal/nobody", &[])).await;
            } else {
                let fields = frames::request("POST", "/api/v4/internal/allowed", &fields);
                flood.send(frames::HEADERS, frames::END_HEADERS, stream, &frames::block(&fields)).await;
            }
        }
        harness.rails.wait_for_requests(1).await;
        harness.wait_for_metric("railgate_client_connections", 12).await;
        let mut newcomers = Vec::new();
        for count in 1..=8 {
            let mut newcomer = harness.gateway.tcp.connect().await;
            newcomer.write(&Request::get("nobody").to_bytes("close")).await;
            harness.rails.wait_for_requests(1 + count).await;
            newcomers.push(newcomer);
        }
        latch.open();
        for newcomer in &mut newcomers {
            assert_eq!(newcomer.read_response().await.status, 200);
        }
        // Meanwhile, others were reset.
        let series = |name: &str| format!("railgate_listener_{name}{{listener=\"{address}\"}}");
        let evictions = harness.metric(&series("evictions_total")).await.unwrap();
        let (mut resets, mut is_answered) = (0, false);
        while !is_answered || resets < evictions {
            let frame = flood.read_frame().await.unwrap();
            resets += usize::from(frame.kind == frames::RST_STREAM);
            if frame.kind == frames::RST_STREAM {
                assert!(frame.stream != busy && frame.payload == 8_u32.to_be_bytes(), "{frame:?}");
            }
            is_answered |= frame.kind == frames::HEADERS && frame.stream == busy;
        }
        // Three of the fifteen streams have found no place at first.
        assert!(resets >= 8 + 3, "{resets}");
        assert_eq!(harness.metric(&series("turned_away_total")).await, Some(0));
        assert_eq!(harness.metric(&series("evictions_total")).await, Some(resets));
        let lines = log::since(since);
        let is_warning =
            |line: &&str| line.contains("a listener is full") && line.contains(&address.to_string());
        assert_eq!(lines.lines().filter(is_warning).count(), 1, "{lines}");
    }
}

/// Over HTTP/1, the one is answered by a `100 Continue`, and the other is refused.
#[tokio::test]
async fn no_interim_answer_is_sent_and_a_fragment_is_cut_off() {
    let harness = setup().start().await;
    let secret = Request::get("check").with_secret().headers.remove(0);
    let secret = (secret.0.to_ascii_lowercase(), secret.1);
    let secret = (&*secret.0, &*secret.1);
    let mut client = FrameClient::connect(&harness.gateway.tcp).await;
    let fields = [secret, ("content-length", "2"), ("expect", "100-continue")];
    let fields = frames::request("POST", "/api/v4/internal/allowed", &fields);
    client.send(frames::HEADERS, frames::END_HEADERS, 1, &frames::block(&fields)).await;
    harness.wait_for_metric("railgate_requests_in_flight", 1).await;
    client.send(frames::PING, 0, 0, &[7; 8]).await;
    loop {
        let frame = client.read_frame().await.unwrap();
        assert_ne!(frame.kind, frames::HEADERS, "{frame:?}");
        if frame.kind == frames::PING && frame.payload == [7; 8] {
            break;
        }
    }
    client.send(frames::DATA, frames::END_STREAM, 1, b"{}").await;
    assert_eq!(client.outcome(1).await.status(), Some(200));
    assert_eq!(harness.rails.last_request().header("expect"), None);

    let target = "/api/v4/internal/discover?key_id=1";
    let with_fragment = format!("{target}#/../../users");
    let mut one = harness.gateway.tcp.connect().await;
    one.exchange(&Request::new("GET", &with_fragment).with_secret()).await.assert_failure(400);
    let mut client = FrameClient::connect(&harness.gateway.tcp).await;
    client.send_request(1, &frames::request("GET", &with_fragment, &[secret])).await;
    assert_eq!(client.outcome(1).await.status(), Some(200));
    assert_eq!(harness.rails.last_request().target, target);
}

#[tokio::test]
async fn each_stream_has_a_trace_and_the_first_one_shows_the_accept() {
    let collector = Collector::start().await;
    let harness = collector.setup().tcp("http2 = true").start().await;
    let client = Client::connect(&harness.gateway.tcp).await;
    for (id, is_first) in [("stream-1", true), ("stream-2", false)] {
        let request = Request::get("discover?key_id=1").with_secret().header("X-Request-Id", id);
        assert_eq!(client.exchange(&request).await.0, 200);
        assert_nested(&collector.trace_of(id).await);
        let spans = collector.whole_trace_of(id).await;
        let server = named(&spans, "GET /api/v4/internal/discover");
        assert_eq!(server.attribute("network.protocol.version"), Some("2"));
        assert_eq!(spans.iter().any(|span| span.name == "accept"), is_first, "{spans:#?}");
    }
}
