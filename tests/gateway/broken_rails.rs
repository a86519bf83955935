//! A Rails that is unreachable, breaks off, or sends nonsense: the client gets a failure, the next request
//! works, and nothing of it is stored.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::{Address, Incomplete, Request, Response, eventually, noise};
use super::fake_rails::{Behavior, FakeRails, Latch, Reply};
use super::harness::{Harness, RunningGateway, Scratch, Setup};

/// hyper skips interim responses without any limit.
#[tokio::test]
async fn endless_interim_responses_are_cancelled() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup::new();
    let gateway =
        RunningGateway::start(setup.settings(&Address::parse(&listener.local_addr().unwrap().to_string())));
    let mut connection = gateway.tcp.connect().await;
    connection.write(&Request::post("allowed").with_secret().json("{}").to_bytes("close")).await;
    let (mut rails, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"{}") {
        rails.read_buf(&mut request).await.unwrap();
    }
    let flood = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(40);
    let flooding = tokio::spawn(async move { while rails.write_all(&flood).await.is_ok() {} });
    connection.read_response().await.assert_failure(502);
    flooding.await.unwrap();
}

#[tokio::test]
async fn a_head_arriving_byte_by_byte_after_an_interim_response_is_read() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup::new();
    let gateway =
        RunningGateway::start(setup.settings(&Address::parse(&listener.local_addr().unwrap().to_string())));
    let mut connection = gateway.tcp.connect().await;
    connection.write(&Request::post("allowed").with_secret().json("{}").to_bytes("close")).await;
    let (mut rails, _) = listener.accept().await.unwrap();
    rails.set_nodelay(true).unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"{}") {
        rails.read_buf(&mut request).await.unwrap();
    }
    for byte in
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    {
        rails.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(connection.read_response().await.status, 200);
}

/// What the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The gateway's own answer.
    Failure(u16),
    /// The head and a truncated body, or nothing at all. A cache fill is read into memory first, so that its
    /// client gets a 502 instead.
    Incomplete,
    /// The answer, with this body.
    Response(&'static str),
}

use Outcome::{Failure, Incomplete as Truncated};

fn user(id: usize) -> Request {
    Request::get(&format!("discover?key_id={id}")).with_secret()
}

/// Sends each kind of request to a Rails with this reply, then again after it has recovered.
async fn assert_outcomes(setup: Setup, cases: Vec<(Reply, Outcome)>) {
    let harness = setup.start().await;
    for (index, (reply, outcome)) in cases.into_iter().enumerate() {
        let requests = [
            Request::post("allowed").with_secret().json("{}"),
            Request::get("lfs").with_secret(),
            Request::post("allowed").with_secret().body(noise(100_000)).chunked(10_000),
            user(1_000 + index),
        ];
        for request in requests {
            let shown = format!("{request} answered by {reply:?}");
            harness.rails.respond_always(reply.clone());
            let mut connection = harness.gateway.tcp.connect().await;
            connection.write(&request.to_bytes("close")).await;
            assert_outcome(connection.try_read_response().await, outcome, &request, &shown);
            assert_eq!(connection.read_to_end().await, b"", "{shown}");

            harness.rails.recover();
            let (response, arrived) = harness.send_counting(&request).await;
            assert_eq!((response.status, arrived), (200, 1), "after {shown}: {response}");
            assert!(
                response.text() == "null" || response.text().contains("nth"),
                "after {shown}: {response}"
            );
        }
    }
    assert_no_resource_leaked(&harness).await;
}

/// No permit, queue entry, cache fill, request or busy connection outlives a failure.
async fn assert_no_resource_leaked(harness: &Harness) {
    for class in ["lookup", "access", "callback", "kas", "other"] {
        harness.wait_for_metric(&format!("railgate_upstream_in_flight{{class=\"{class}\"}}"), 0).await;
        harness.wait_for_metric(&format!("railgate_upstream_queue{{class=\"{class}\"}}"), 0).await;
    }
    for series in ["railgate_upstream_held", "railgate_cache_flights", "railgate_requests_in_flight"] {
        harness.wait_for_metric(series, 0).await;
    }
    eventually("no connection to be in use", async || {
        let shown = harness.gateway.admin.send(&Request::new("POST", "/servers").json("")).await.json();
        (shown["servers"][0]["requests"] == 0).then_some(())
    })
    .await;
}

fn assert_outcome(response: Result<Response, Incomplete>, outcome: Outcome, request: &Request, shown: &str) {
    let is_collected = request.target.contains("discover");
    match (outcome, response) {
        (Failure(status), Ok(response)) => {
            assert_eq!(response.status, status, "{shown}: {response}");
            response.assert_failure(status);
        }
        (Truncated, Ok(response)) if is_collected => response.assert_failure(502),
        (Truncated, Err(Incomplete::Body(response))) if !is_collected => {
            assert_eq!(response.status, 200, "{shown}");
        }
        (Truncated, Err(Incomplete::Head(nothing))) if !is_collected => assert_eq!(nothing, b"", "{shown}"),
        (Outcome::Response(body), Ok(response)) => {
            assert_eq!((response.status, response.text()), (200, body), "{shown}");
            assert_eq!(response.interim, Vec::<u16>::new(), "{shown}");
        }
        (_, response) => panic!("{response:?}: {shown}"),
    }
}

/// A response whose body these header lines frame.
fn framed(headers: &str, body: &str) -> Reply {
    Reply::bytes(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{headers}\r\n{body}"))
}

#[tokio::test]
async fn a_connection_closed_without_a_response_is_a_502() {
    assert_outcomes(
        Setup::new(),
        vec![
            (Reply::hang_up(), Failure(502)),
            (Reply::bytes("\r\n").then_close(), Failure(502)),
            (Reply::bytes("HTTP/1.1").then_close(), Failure(502)),
            (Reply::bytes("HTTP/1.1 200 OK\r\nContent-Ty").then_close(), Failure(502)),
            (Reply::bytes("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n").then_close(), Failure(502)),
            (Reply::bytes("HTTP/1.1 100 Continue\r\n\r\n").then_close(), Failure(502)),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_response_timeout_is_a_504() {
    let harness = Setup::new().text("upstream.response_timeout", "250ms").start().await;
    for (index, reply) in [
        Reply::silence(),
        Reply::bytes("HTTP/1.1 200 OK\r\nContent-Le").then_hang(),
        Reply::bytes("HTTP/1.1 100 Continue\r\n\r\n").then_hang(),
    ]
    .into_iter()
    .enumerate()
    {
        harness.rails.respond_always(reply);
        for request in [Request::post("allowed").with_secret().json("{}"), user(1_000 + index)] {
            harness.send(&request).await.assert_failure(504);
        }
        harness.rails.recover();
        // Rails is well again, but on a busy machine it may be late for once.
        let response = eventually("an answer", async || {
            let response = harness.send(&user(1_000 + index)).await;
            (response.status == 200).then_some(response)
        });
        assert_eq!(response.await.cache_status(), "railgate; fwd=miss; stored");
    }
}

/// It is Rails that takes too long, not the client, unless the client itself has nothing more to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rails_that_does_not_read_a_body_is_told_from_a_client_that_does_not_send_it() {
    // The system accepts connections, and takes in what its buffers hold.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = Scratch::new();
    let socket = dir.file("rails.sock");
    let unix_listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for rails in [Address::parse(&listener.local_addr().unwrap().to_string()), Address::Unix(socket)] {
        let setup = Setup::new().text("upstream.response_timeout", "5s");
        let gateway = RunningGateway::start(setup.settings(&rails));
        let request = Request::post("allowed").with_secret().body(noise(MORE_THAN_BUFFERS));
        gateway.tcp.send(&request).await.assert_failure(504);
        gateway.tcp.send(&request.chunked(100_000)).await.assert_failure(504);
        let timeouts = r#"railgate_failures_total{reason="upstream_timeout"}"#;
        assert_eq!(gateway.metric(timeouts).await, Some(2));
        let mut connection = gateway.tcp.connect().await;
        let bytes = Request::post("allowed").with_secret().body(noise(100_000)).to_bytes("close");
        connection.write(&bytes[..bytes.len() - 1]).await;
        connection.read_response().await.assert_failure(400);
    }
    drop(unix_listener);
}

/// Those of the system, for one connection over loopback.
const MORE_THAN_BUFFERS: usize = 16 << 20;

/// They must not reach the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_responses_are_discarded() {
    let harness = Setup::new().text("upstream.response_timeout", "250ms").start().await;
    for index in 0..5 {
        let latch = Latch::closed();
        let (held, evil) = (latch.clone(), r#"{"id":666,"username":"attacker"}"#);
        harness.rails.respond_with(move |_| Reply::json(200, evil).after(&held));
        let before = harness.rails.request_count();
        // One request has timed out, and the client of the other one has disconnected.
        harness.send(&Request::post("allowed").with_secret()).await.assert_failure(504);
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
        harness.rails.wait_for_requests(before + 2).await;
        drop(connection);
        harness.wait_for_metric("railgate_requests_in_flight", 0).await;
        harness.rails.recover();
        latch.open();
        for id in 0..5 {
            let response = harness.send(&user(1_000 + 10 * index + id)).await;
            assert!(response.text() == "null" || response.status == 504, "{response}");
        }
    }
}

#[tokio::test]
async fn bytes_that_are_not_http_are_a_502() {
    let huge = format!("X: {}\r\n", "x".repeat(2 << 20));
    let many = "X: x\r\n".repeat(300);
    let mut cases: Vec<(Reply, Outcome)> = [
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
        "hello\r\n\r\n",
        "{\"id\":1}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/0.9 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 -20 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "SSH-2.0-GitLab-SSHD\r\n\r\n",
        "HTTP/1.1 200 OK\r\n A: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA B: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\0c\r\nContent-Length: 0\r\n\r\n",
    ]
    .iter()
    .map(|bytes| (Reply::bytes(bytes).then_close(), Failure(502)))
    .collect();
    cases.push((framed(&format!("{huge}Content-Length: 4\r\n"), "null").then_close(), Failure(502)));
    cases.push((framed(&format!("{many}Content-Length: 4\r\n"), "null").then_close(), Failure(502)));
    assert_outcomes(Setup::new(), cases).await;
}

/// Two readers could disagree on where such a response ends, so no client gets it.
#[tokio::test]
async fn ambiguously_framed_responses_are_refused() {
    let chunks = "4\r\nnull\r\n0\r\n\r\n";
    let mut cases = Vec::new();
    for (headers, body) in [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", chunks),
        ("Transfer-Encoding: chunked\r\nContent-Length: 14\r\n", chunks),
        ("Content-Length: 4\r\nContent-Length: 4\r\n", "null"),
        ("Content-Length: 4\r\nContent-Length: 5\r\n", "null!"),
        ("Content-Length: 4, 4\r\n", "null"),
        ("Content-Length: 4, 5\r\n", "null"),
        ("Content-Length: +4\r\n", "null"),
        ("Content-Length: -4\r\n", "null"),
        ("Content-Length: 0x4\r\n", "null"),
        ("Content-Length: four\r\n", "null"),
        ("Content-Length:\r\n", "null"),
        ("Content-Length: 99999999999999999999\r\n", "null"),
        ("Transfer-Encoding: gzip\r\n", "null"),
        ("Transfer-Encoding: identity\r\n", "null"),
        ("Transfer-Encoding: gzip, chunked\r\n", chunks),
        ("Transfer-Encoding: chunked, gzip\r\n", chunks),
        ("Transfer-Encoding: chunked, chunked\r\n", chunks),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Transfer-Encoding: xchunked\r\n", chunks),
        ("Transfer-Encoding:\r\n", chunks),
        // Blanks in front of the colon, and folded lines.
        ("Content-Length : 4\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Content-Length: 14\r\nTransfer-Encoding\t: chunked\r\n", chunks),
        ("Content-Length: 4\r\n 4\r\n", "null"),
        ("Content-Length: 1\r\n\t4\r\n", "null"),
        ("Transfer-Encoding:\r\n gzip\r\n", "null"),
        ("Transfer-Encoding: gzip,\r\n chunked\r\n", chunks),
        ("Transfer-Encoding : chunked\r\nTransfer-Encoding: chunked\r\n", chunks),
    ] {
        // With and without a close behind it, which some readers take for the end.
        cases.push((framed(headers, body), Failure(502)));
        cases.push((framed(headers, body).then_close(), Failure(502)));
    }
    let old = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    cases.push((Reply::bytes(old).then(chunks).then_close(), Failure(502)));
    assert_outcomes(Setup::new(), cases).await;
}

#[tokio::test]
async fn truncated_responses_are_truncated_for_the_client() {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut cases = vec![
        (framed("Content-Length: 5\r\n", "null"), Truncated),
        (framed("Content-Length: 5\r\n", ""), Truncated),
        (framed("Content-Length: 9999\r\n", "null"), Truncated),
        (framed("Content-Length: 60000\r\n", "null"), Truncated),
    ];
    for body in [
        "",
        "4",
        "4\r\n",
        "4\r\nnul",
        "4\r\nnull",
        "4\r\nnull\r\n",
        "4\r\nnull\r\n0",
        "4\r\nnull\r\n0\r\n",
        "4\r\nnull0\r\n\r\n",
        "4\r\nnullX\r\n0\r\n\r\n",
        "4\r\nnull\r\nx\r\n\r\n",
        "4\r\nnull\r\n-1\r\n\r\n",
        "4\r\nnull\r\nfffffffffffffffff\r\n",
        "4\r\nnull\r\n\r\n",
        "4\r\nnull\r\n0\r\nA: b",
    ] {
        cases.push((framed(chunked, body), Truncated));
    }
    let cases = cases.into_iter().map(|(reply, outcome)| (reply.then_close(), outcome)).collect();
    assert_outcomes(Setup::new(), cases).await;
}

/// The gateway never asks for another protocol.
#[tokio::test]
async fn protocol_upgrades_are_refused() {
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_outcomes(
        Setup::new(),
        vec![
            (Reply::bytes(format!("{upgrade}\r\n")).then_close(), Failure(502)),
            (Reply::bytes(format!("{upgrade}\r\n")).then("raw bytes").then_hang(), Failure(502)),
            (Reply::bytes(format!("{upgrade}Content-Length: 4\r\n\r\nnull")).then_close(), Failure(502)),
        ],
    )
    .await;
    // Not even if the client asked for one: the gateway does not forward the offer.
    let harness = Harness::new().await;
    harness.rails.respond_always(Reply::bytes(format!("{upgrade}\r\n")).then_hang());
    let request = Request::get("lfs").with_secret().header("Connection", "Upgrade").header("Upgrade", "h2c");
    let (response, seen) = {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&request.to_bytes("close")).await;
        (connection.read_response().await, harness.rails.last_request())
    };
    response.assert_failure(502);
    assert_eq!(seen.header("upgrade"), None);
}

#[tokio::test]
async fn interim_responses_are_skipped() {
    let good = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull";
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 9\r\n\r\n";
    let interims = ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n", hints];
    let cases = interims.into_iter().flat_map(|interim| {
        let replies = [Reply::bytes(interim).then(good), Reply::bytes(interim.repeat(50)).then(good)];
        replies.map(|reply| (reply, Outcome::Response("null")))
    });
    let harness = Harness::new().await;
    for (index, (reply, outcome)) in cases.enumerate() {
        harness.rails.respond_always(reply.clone());
        for request in [Request::post("allowed").with_secret().json("{}"), user(1_000 + index)] {
            let mut connection = harness.gateway.tcp.connect().await;
            connection.write(&request.to_bytes("close")).await;
            assert_outcome(
                connection.try_read_response().await,
                outcome,
                &request,
                &format!("{request}: {reply:?}"),
            );
        }
    }
}

/// They must not answer the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn surplus_bytes_on_a_connection_are_discarded() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 32\r\n\r\n\
                {\"id\":666,\"username\":\"attacker\"} ";
    let null = framed("Content-Length: 4\r\n", "null");
    let harness = Harness::new().await;
    let mut next = 1_000;
    for poisoned in [
        null.clone().then(evil),
        null.clone().then(evil.repeat(5)),
        null.clone().then("\r\n").then(evil),
        null.clone().then("x"),
        framed("Transfer-Encoding: chunked\r\n", "4\r\nnull\r\n0\r\n\r\n").then(evil),
        framed("Transfer-Encoding: chunked\r\n", "4\r\nnull\r\n0\r\n\r\n0\r\n\r\n").then(evil),
        // For a reader that believes the wrong one of two lengths.
        framed("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n").then(evil),
        framed("Content-Length: 0\r\nContent-Length: 4\r\n", "null").then(evil),
        // These statuses have no body, whatever the head says.
        Reply::bytes("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello").then(evil),
        Reply::bytes("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n").then(evil),
    ] {
        for request in [Request::post("allowed").with_secret(), Request::get("lfs").with_secret()] {
            harness.rails.respond_always(poisoned.clone());
            let mut connection = harness.gateway.tcp.connect().await;
            connection.write(&request.to_bytes("close")).await;
            let first = connection.read_response().await;
            assert!(!first.text().contains("666"), "{first}: {poisoned:?}");
            assert_eq!(connection.read_to_end().await, b"", "{poisoned:?}");
            harness.rails.recover();
            for _ in 0..5 {
                next += 1;
                let (response, arrived) = harness.send_counting(&user(next)).await;
                assert_eq!((response.text(), arrived), ("null", 1), "after {poisoned:?}: {response}");
            }
        }
    }
    // The response to a HEAD has no body either.
    harness.rails.respond_always(framed("Content-Length: 4\r\n", "null").then(evil));
    let head = Request::new("HEAD", "/api/v4/internal/lfs").with_secret();
    assert_eq!(harness.send(&head).await.status, 200);
    harness.rails.recover();
    assert_eq!(harness.send(&user(999)).await.text(), "null");
}

#[tokio::test]
async fn unsolicited_bytes_close_the_connection() {
    let harness = Harness::new().await;
    let unasked = Latch::closed();
    let evil = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nevil";
    harness.rails.respond_always(framed("Content-Length: 4\r\n", "null").then_wait(&unasked).then(evil));
    assert_eq!(harness.send(&Request::post("allowed").with_secret()).await.text(), "null");
    unasked.open();
    harness.rails.wait_for_closed(1).await;
    harness.rails.recover();
    let (response, seen) = harness.send_forwarded(&user(1_000)).await;
    assert_eq!((response.text(), seen.connection), ("null", 1));
}

#[tokio::test]
async fn connections_closed_on_accept_are_a_502() {
    let harness = Harness::new().await;
    for index in 0..5 {
        harness.rails.set_behavior(Behavior::CloseOnAccept, |_| Reply::hang_up());
        for request in [Request::post("allowed").with_secret().json("{}"), user(1_000 + index)] {
            harness.send(&request).await.assert_failure(502);
        }
        harness.rails.recover();
        assert_eq!(harness.send(&user(1_000 + index)).await.text(), "null");
        harness.assert_alive().await;
    }
}

/// That is not the client's fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rails_closes_the_connection_during_an_upload() {
    let harness = Harness::new().await;
    harness.rails.set_behavior(Behavior::RespondAfterHead, |_| Reply::hang_up());
    let body = noise(5 << 20);
    for request in [
        Request::post("allowed").with_secret().body(&body),
        Request::post("allowed").with_secret().body(&body).chunked(65_536),
    ] {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&request.to_bytes("close")).await;
        connection.read_response().await.assert_failure(502);
    }
    harness.rails.recover();
    harness.assert_alive().await;
}

/// Rails refuses the upload without reading all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_response_during_an_upload_is_forwarded() {
    let harness = Harness::new().await;
    harness.rails.set_behavior(Behavior::RespondAfterHead, |_| Reply::json(413, r#"{"error":"too much"}"#));
    let body = noise(5 << 20);
    for request in [
        Request::post("allowed").with_secret().body(&body),
        Request::post("allowed").with_secret().body(&body).chunked(65_536),
    ] {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&request.to_bytes("close")).await;
        let response = connection.read_response().await;
        assert_eq!((response.status, response.text()), (413, r#"{"error":"too much"}"#));
    }
    harness.rails.recover();
    harness.assert_alive().await;
}

/// The first request after Rails listens again is answered.
#[tokio::test]
async fn refused_connections_are_a_503() {
    let setup = Setup::new();
    let socket = setup.dir.file("rails.sock");
    let gateway = RunningGateway::start(setup.settings(&Address::Unix(socket.clone())));
    for _ in 0..2 {
        for request in [Request::post("allowed").with_secret(), user(1_000)] {
            gateway.tcp.send(&request).await.assert_failure(503);
        }
    }
    let rails = FakeRails::listen_unix(&socket);
    assert_eq!(gateway.tcp.send(&user(1_000)).await.text(), "null");
    assert_eq!(rails.request_count(), 1);

    // A port that is bound but not listening.
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = held.local_addr().unwrap().as_socket().unwrap();
    let harness = RunningGateway::start(Setup::new().settings(&Address::Tcp(address)));
    for request in [Request::post("allowed").with_secret(), user(1_000)] {
        harness.tcp.send(&request).await.assert_failure(503);
    }
    held.listen(128).unwrap();
    held.set_nonblocking(true).unwrap();
    let rails = FakeRails::listen_on(tokio::net::TcpListener::from_std(held.into()).unwrap());
    assert_eq!(harness.tcp.send(&user(1_000)).await.text(), "null");
    assert_eq!(rails.request_count(), 1);
}

/// A server that listens and never accepts.
#[tokio::test]
async fn a_full_accept_queue_is_a_503() {
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    held.listen(0).unwrap();
    let address = held.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    let setup = Setup::new().text("upstream.connect_timeout", "100ms");
    let gateway = RunningGateway::start(setup.settings(&Address::Tcp(address)));
    for request in [Request::post("allowed").with_secret(), user(1_000)] {
        gateway.tcp.send(&request).await.assert_failure(503);
    }
}

/// The text says what happened, and nothing about this machine.
#[tokio::test]
async fn failure_texts_reveal_no_internals() {
    let setup = Setup::new().text("upstream.response_timeout", "100ms");
    let dir = setup.dir.path().display().to_string();
    let rails = FakeRails::listen_unix(&setup.dir.file("rails.sock"));
    let harness = setup.start_with(rails);
    for reply in [Reply::hang_up(), Reply::silence(), Reply::bytes("s3cret nonsense\r\n\r\n").then_close()] {
        harness.rails.respond_always(reply);
        let response = harness.send(&Request::post("allowed").with_secret()).await;
        response.assert_failure(response.status);
        let text = format!("{response}");
        for hidden in [dir.as_str(), "rails.sock", "s3cret", "nonsense", "hyper", "os error"] {
            assert!(!text.contains(hidden), "{hidden} in {text}");
        }
        assert!(response.text().contains("GitLab"), "{response}");
    }
}
