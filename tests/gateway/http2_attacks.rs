//! Clients that break the rules of HTTP/2, or use them against the gateway. Each gets no more time, memory or places
//! than one of HTTP/1 could, and others notice nothing.

use super::credentials::{ENCODED_SECRET, SECRET_HEADER};
use super::fake_rails::Reply;
use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameClient, GOAWAY, HEADERS, Outcome, PING, PREFACE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, request,
};
use super::harness::{Harness, Setup};
use super::waiting::eventually;

const CHECK: &str = "/api/v4/internal/check";
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

fn setup() -> Setup {
    Setup::new().tcp("http2 = true")
}

async fn start() -> Harness {
    setup().start().await
}

fn secret() -> (&'static str, &'static str) {
    ("gitlab-shared-secret", ENCODED_SECRET)
}

/// A connection of its own for each, so that all are judged alike.
async fn connect(harness: &Harness) -> FrameClient {
    FrameClient::connect(&harness.gateway.tcp).await
}

async fn assert_alive(harness: &Harness) {
    let mut client = connect(harness).await;
    client.send_request(1, &request("GET", CHECK, &[secret()])).await;
    assert_eq!(client.outcome(1).await.status(), Some(200));
}

fn answered(outcome: &Outcome, status: u16) -> bool {
    outcome.status() == Some(status)
}

#[tokio::test]
async fn heads_are_judged_as_those_of_http1_are() {
    assert_eq!(SECRET_HEADER.to_ascii_lowercase(), secret().0);
    let harness = start().await;
    let base = request("GET", CHECK, &[secret()]);
    let with = |at: usize, value: &'static str| {
        let mut fields = base.clone();
        fields[at].1 = value;
        fields
    };
    let without = |name: &str| base.iter().copied().filter(|(is, _)| *is != name).collect::<Vec<_>>();
    let plus = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    let long = |length: usize| -> &'static str { "a".repeat(length).leak() };
    // What is well-formed in HTTP/2 is answered by the gateway itself.
    for (status, fields) in [
        (200, base.clone()),
        (400, with(0, "TRACE")),
        (400, with(0, "get")),
        (400, with(0, "RAILGATE-REFUSED")),
        (400, with(0, long(21))),
        (400, with(1, "ftp")),
        (400, with(2, "gateway.example:99999")),
        (400, with(3, "*")),
        (400, with(3, "/api/v4/internal/../check")),
        (400, with(3, "/api/v4/internal/%63heck")),
        (400, with(3, "/api/v4/internal;a/check")),
        (400, with(3, "/api/v4/internal/{a}")),
        (414, with(3, ["/", long(8_000)].concat().leak())),
        (414, with(3, ["/a?", long(12_000)].concat().leak())),
        (400, plus(&[("host", "other.example")])),
        (400, plus(&[("host", "gateway.example:8181"), ("host", "gateway.example:8181")])),
        (200, plus(&[("host", "GATEWAY.example:8181")])),
        (200, [without(":authority"), vec![("host", "gateway.example:8181")]].concat()),
        (400, without(":authority")),
        (400, plus(&[secret()])),
        (400, plus(&[("x", " a")])),
        (400, plus(&[("x", "a\t")])),
        (400, plus(&[(long(257), "a")])),
        (400, plus(&[("content-length", "0"), ("content-length", "0")])),
        (431, plus(&[("x", long(16_000)), ("y", long(16_000)), ("z", long(2_000))])),
        (431, plus(&[("x", "a"); 100])),
        (200, plus(&[("x", "a"); 97])),
        (200, plus(&[("te", "trailers")])),
    ] {
        let mut client = connect(&harness).await;
        send_block(&mut client, &block(&fields)).await;
        let outcome = client.outcome(1).await;
        assert!(answered(&outcome, status), "{status} for {fields:?}: {outcome:?}");
        // Refusing one request does not end the others.
        client.send_request(3, &base).await;
        while client.read_until(HEADERS).await.unwrap().stream != 3 {}
    }
    // What is malformed is reset.
    for fields in [
        with(0, "CONNECT"),
        with(0, ""),
        with(0, "G ET"),
        with(1, ""),
        with(2, "a b"),
        with(2, "u@gateway.example/"),
        with(3, ""),
        with(3, "check"),
        with(3, "http://gateway.example:8181/api/v4/internal/check"),
        with(3, "/a b"),
        without(":method"),
        without(":scheme"),
        without(":path"),
        plus(&[(":path", CHECK)]),
        plus(&[(":protocol", "websocket")]),
        plus(&[(":status", "200")]),
        plus(&[(":other", "a")]),
        plus(&[("Upper", "a")]),
        plus(&[("a b", "a")]),
        plus(&[("", "a")]),
        plus(&[("x", "a\r\nb: c")]),
        plus(&[("x", "a\0")]),
        plus(&[("connection", "close")]),
        plus(&[("connection", "gitlab-shared-secret")]),
        plus(&[("keep-alive", "1")]),
        plus(&[("proxy-connection", "close")]),
        plus(&[("transfer-encoding", "chunked")]),
        plus(&[("upgrade", "h2c")]),
        plus(&[("te", "gzip")]),
        plus(&[("content-length", "5")]),
        plus(&[("content-length", "+0")]),
        plus(&[("content-length", "0"), ("content-length", "1")]),
    ] {
        let mut client = connect(&harness).await;
        send_block(&mut client, &block(&fields)).await;
        let outcome = client.outcome(1).await;
        let is_refused = answered(&outcome, 400)
            || matches!(
                outcome,
                Outcome::Reset(PROTOCOL_ERROR) | Outcome::Closed(Some(PROTOCOL_ERROR | COMPRESSION_ERROR))
            );
        assert!(is_refused, "{fields:?}: {outcome:?}");
    }
    assert_eq!(harness.rails.request_count(), 1, "all others were hits or refused");
    assert_alive(&harness).await;
}

/// In as many frames as it takes.
async fn send_block(client: &mut FrameClient, block: &[u8]) {
    let (first, mut rest) = block.split_at(block.len().min(16_384));
    let is_whole = rest.is_empty();
    client.send(HEADERS, END_STREAM | if is_whole { END_HEADERS } else { 0 }, 1, first).await;
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rest.len().min(16_384));
        client.send(CONTINUATION, if more.is_empty() { END_HEADERS } else { 0 }, 1, piece).await;
        rest = more;
    }
}

#[tokio::test]
async fn bodies_have_the_length_that_they_announce() {
    let harness = start().await;
    harness.rails.respond_always(Reply::json(200, "{}"));
    let allowed = "/api/v4/internal/allowed";
    let fields = |length| request("POST", allowed, &[secret(), ("content-length", length)]);
    for (length, pieces, reset) in [
        ("3", vec!["ab", "c"], None),
        ("3", vec!["ab", "cd"], Some(1)),
        ("3", vec!["ab"], Some(1)),
        ("0", vec!["a"], Some(1)),
    ] {
        let mut client = connect(&harness).await;
        client.send(HEADERS, END_HEADERS, 1, &block(&fields(length))).await;
        for (at, piece) in pieces.iter().enumerate() {
            client.send(DATA, u8::from(at + 1 == pieces.len()), 1, piece.as_bytes()).await;
        }
        match (client.outcome(1).await, reset) {
            (Outcome::Answered(200, _), None) | (Outcome::Answered(400.., _), Some(_)) => {}
            (Outcome::Reset(code), Some(expected)) => assert_eq!(code, expected),
            (outcome, _) => panic!("{length} {pieces:?}: {outcome:?}"),
        }
    }
    // Trailers are read, and not passed on.
    for trailer in [("x-a", "b"), ("content-length", "9"), ("gitlab-shared-secret", "x")] {
        let mut client = connect(&harness).await;
        client.send(HEADERS, END_HEADERS, 1, &block(&request("POST", allowed, &[secret()]))).await;
        client.send(DATA, 0, 1, b"abc").await;
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[trailer])).await;
        assert_eq!(client.outcome(1).await.status(), Some(200));
        let arrived = harness.rails.last_request();
        assert_eq!((&arrived.body[..], &*arrived.trailers), (&b"abc"[..], ""));
    }
    // With pseudo-header fields they are malformed, and without an end, too.
    let count = harness.rails.request_count();
    for (flags, trailer) in [(END_STREAM, (":path", "/")), (0, ("x-a", "b"))] {
        let mut client = connect(&harness).await;
        client
            .send(
                HEADERS,
                END_HEADERS,
                1,
                &block(&request("POST", allowed, &[secret(), ("content-length", "3")])),
            )
            .await;
        client.send(HEADERS, END_HEADERS | flags, 1, &block(&[trailer])).await;
        let outcome = client.outcome(1).await;
        assert!(!answered(&outcome, 200), "{trailer:?}: {outcome:?}");
    }
    assert_eq!(harness.rails.request_count(), count);
    assert_alive(&harness).await;
}

/// hyper takes a reset without an error, or one that cancels the stream, for the end of the body. Rails must not take a
/// part of a body for the whole.
#[tokio::test]
async fn a_reset_within_a_body_does_not_end_its_request() {
    let harness = start().await;
    harness.rails.respond_always(Reply::json(200, "{}"));
    let head = block(&request("POST", "/api/v4/internal/allowed", &[secret()]));
    for (nth, reason) in [0_u32, 2, 8].into_iter().enumerate() {
        let mut client = connect(&harness).await;
        client.send(HEADERS, END_HEADERS, 1, &head).await;
        client.send(DATA, 0, 1, b"abc").await;
        let is_connected = async || (harness.rails.connection_count() > nth).then_some(());
        eventually("a connection to Rails", is_connected).await;
        client.send(RST_STREAM, 0, 1, &reason.to_be_bytes()).await;
        harness.rails.wait_for_closed(nth + 1).await;
        assert_eq!(harness.rails.request_count(), 0, "reset for {reason}");
    }
    // An end without data is one.
    let mut client = connect(&harness).await;
    client.send(HEADERS, END_HEADERS, 1, &head).await;
    client.send(DATA, 0, 1, b"abc").await;
    let is_connected = async || (harness.rails.connection_count() > 3).then_some(());
    eventually("a connection to Rails", is_connected).await;
    client.send(DATA, END_STREAM, 1, b"").await;
    assert_eq!(client.outcome(1).await.status(), Some(200));
    assert_eq!(harness.rails.last_request().body, b"abc");
    assert_alive(&harness).await;
}

/// Frames against the rules, each on a new connection with one request open, and how it ends.
#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let harness = start().await;
    harness.rails.respond_with(|request| {
        if request.is_for("nobody") { Reply::silence() } else { Reply::json(200, "{}") }
    });
    let open = frame(HEADERS, END_HEADERS, 1, &block(&request("POST", "/api/v4/internal/nobody", &[])));
    let window = |stream, size: u32| frame(WINDOW_UPDATE, 0, stream, &size.to_be_bytes());
    for (name, bytes, codes) in [
        ("data on no stream", frame(DATA, 0, 0, b"a"), &[PROTOCOL_ERROR][..]),
        ("data on an idle stream", frame(DATA, 0, 5, b"a"), &[PROTOCOL_ERROR]),
        ("headers on no stream", frame(HEADERS, END_HEADERS, 0, &block(&[])), &[PROTOCOL_ERROR]),
        (
            "headers on an even stream",
            frame(HEADERS, 5, 2, &block(&request("GET", CHECK, &[]))),
            &[PROTOCOL_ERROR],
        ),
        ("settings on a stream", frame(SETTINGS, 0, 1, &[]), &[PROTOCOL_ERROR]),
        ("settings of odd size", frame(SETTINGS, 0, 0, &[0; 5]), &[FRAME_SIZE_ERROR]),
        ("an acknowledgement with settings", frame(SETTINGS, ACK, 0, &[0; 6]), &[FRAME_SIZE_ERROR]),
        (
            "a window that is too large",
            frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
            &[FLOW_CONTROL_ERROR, PROTOCOL_ERROR],
        ),
        ("a frame size that is too small", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), &[PROTOCOL_ERROR]),
        ("a ping on a stream", frame(PING, 0, 1, &[0; 8]), &[PROTOCOL_ERROR]),
        ("a ping of odd size", frame(PING, 0, 0, &[0; 7]), &[FRAME_SIZE_ERROR]),
        ("no increment", window(0, 0), &[PROTOCOL_ERROR]),
        (
            "windows beyond their maximum",
            [window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)].concat(),
            &[FLOW_CONTROL_ERROR],
        ),
        ("a frame that is too large", frame(DATA, 0, 1, &vec![0; 16_385]), &[FRAME_SIZE_ERROR]),
        ("padding beyond the frame", frame(DATA, 8, 1, &[9, 1, 2]), &[PROTOCOL_ERROR]),
        ("a reset of an idle stream", frame(RST_STREAM, 0, 7, &[0; 4]), &[PROTOCOL_ERROR]),
        ("a push", frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), &[PROTOCOL_ERROR]),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[]), &[PROTOCOL_ERROR]),
        (
            "another frame within a block",
            [frame(HEADERS, 0, 3, &[]), frame(PING, 0, 0, &[0; 8])].concat(),
            &[PROTOCOL_ERROR],
        ),
        (
            "another stream within a block",
            [frame(HEADERS, 0, 3, &[]), frame(CONTINUATION, 4, 5, &[])].concat(),
            &[PROTOCOL_ERROR],
        ),
        ("an index of nothing", frame(HEADERS, 5, 3, &[0xff, 0xff, 0xff, 0xff, 0x0f]), &[COMPRESSION_ERROR]),
        ("a table beyond its size", frame(HEADERS, 5, 3, &[0x3f, 0xff, 0xff, 0x7f]), &[COMPRESSION_ERROR]),
        ("a block that ends early", frame(HEADERS, 5, 3, &[0x00, 5, b'a']), &[COMPRESSION_ERROR]),
        (
            "streams backwards",
            [
                open.clone(),
                frame(HEADERS, 5, 9, &block(&request("GET", CHECK, &[]))),
                frame(HEADERS, 5, 7, &block(&request("GET", CHECK, &[]))),
            ]
            .concat(),
            &[PROTOCOL_ERROR, STREAM_CLOSED],
        ),
    ] {
        let mut client = connect(&harness).await;
        client.connection.write(&open).await;
        client.connection.write(&bytes).await;
        let code = client.end().await;
        assert!(code.is_some_and(|code| codes.contains(&code) || code == PROTOCOL_ERROR), "{name}: {code:?}");
    }
    for preface in
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\n\r\n"[..], &[PREFACE, &[0; 40]].concat()]
    {
        let mut client = FrameClient::silent(harness.gateway.tcp.connect().await);
        client.connection.write(preface).await;
        client.connection.shutdown_write().await;
        client.end().await;
    }
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    assert_alive(&harness).await;
}

/// A block of a kilobyte that is a megabyte of fields: a table entry, referred to again and again.
#[tokio::test]
async fn a_compressed_block_counts_as_what_it_means() {
    let harness = start().await;
    let mut bomb = vec![0x40, 1, b'x'];
    bomb.extend([0x7f, 0xa1, 0x1e]);
    bomb.extend(vec![b'a'; 4_000]);
    let begin = block(&request("GET", CHECK, &[secret()]));
    for (count, statuses) in [(3, &[200][..]), (8, &[431]), (12_000, &[431])] {
        let mut client = connect(&harness).await;
        let bytes = [&begin[..], &bomb, &vec![0xbe; count]].concat();
        send_block(&mut client, &bytes).await;
        let outcome = client.outcome(1).await;
        let is_as_expected = outcome.status().is_some_and(|status| statuses.contains(&status));
        assert!(
            is_as_expected || count == 12_000 && matches!(outcome, Outcome::Reset(_) | Outcome::Closed(_)),
            "{count}: {outcome:?}"
        );
    }
    assert_alive(&harness).await;
}

#[tokio::test]
async fn what_does_not_come_in_time_ends_the_connection() {
    let harness = setup()
        .text("limits.first_byte_timeout", "300ms")
        .text("limits.head_timeout", "400ms")
        .text("limits.idle_timeout", "500ms")
        .start()
        .await;
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let whole = block(&request("GET", CHECK, &[secret()]));
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("a part of the preface", PREFACE[..20].to_vec()),
        ("the preface alone", PREFACE.to_vec()),
        ("a part of the settings", begin[..28].to_vec()),
        ("no request", begin.clone()),
        ("a part of a frame's head", [&begin[..], &[0, 0]].concat()),
        ("a part of a head", [&begin[..], &frame(HEADERS, 5, 1, &whole)[..40]].concat()),
        ("a head without its end", [&begin[..], &frame(HEADERS, 1, 1, &whole)].concat()),
        ("a part of a ping", [&begin[..], &frame(PING, 0, 0, &[0; 8])[..12]].concat()),
        (
            "a part of a body's frame",
            [
                &begin[..],
                &frame(HEADERS, 4, 1, &block(&request("POST", "/api/v4/internal/allowed", &[secret()]))),
                &frame(DATA, 0, 1, &[0; 99])[..50],
            ]
            .concat(),
        ),
    ] {
        let mut client = FrameClient::silent(harness.gateway.tcp.connect().await);
        client.connection.write(&bytes).await;
        let code = client.end().await;
        assert!(matches!(code, None | Some(0)), "{name}: {code:?}");
    }
    // A head that comes byte by byte has one deadline.
    let mut slow = FrameClient::connect(&harness.gateway.tcp).await;
    let head = frame(HEADERS, 5, 1, &whole);
    let dripping = async {
        for byte in head {
            slow.connection.write(&[byte]).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let closed = harness.wait_for_metric("railgate_client_connections", 0);
    tokio::select! { () = dripping => panic!("the head was awaited"), () = closed_after_open(&harness, closed) => {} }
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    assert_alive(&harness).await;
}

async fn closed_after_open(harness: &Harness, closed: impl Future<Output = ()>) {
    harness.wait_for_metric("railgate_client_connections", 1).await;
    closed.await;
}

/// The connection goes on for the others.
#[tokio::test]
async fn a_stream_that_stalls_is_reset() {
    let harness = setup().text("limits.idle_timeout", "400ms").start().await;
    harness.rails.respond_always(Reply::json(200, &"x".repeat(200_000)));
    let mut client = FrameClient::start(harness.gateway.tcp.connect().await, &[(4, 1_000)]).await;
    let post =
        |more: &[(&'static str, &'static str)]| block(&request("POST", "/api/v4/internal/allowed", more));
    // A body that does not go on, with a credential and without one.
    client.send(HEADERS, END_HEADERS, 1, &post(&[secret(), ("content-length", "9")])).await;
    client
        .send(
            HEADERS,
            END_HEADERS,
            3,
            &post(&[("content-length", "9"), ("content-type", "application/json")]),
        )
        .await;
    // A response that is not read.
    client.send(HEADERS, END_HEADERS | END_STREAM, 5, &post(&[secret()])).await;
    let mut ended = Vec::new();
    let (mut is_kept, mut at) = (true, 7);
    while ended.len() < 3 && is_kept {
        // Others keep the connection in use.
        client.send_request(at, &request("HEAD", CHECK, &[])).await;
        at += 2;
        while let Some(frame) = client.read_frame().await {
            let is_end = frame.kind == RST_STREAM || frame.kind == HEADERS && frame.flags & END_STREAM != 0;
            if is_end && frame.stream == at - 2 {
                break;
            }
            if (is_end || frame.kind == DATA && frame.flags & END_STREAM != 0) && frame.stream < 7 {
                ended.push(frame.stream);
            }
            is_kept = frame.kind != GOAWAY;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(is_kept);
    ended.sort_unstable();
    assert_eq!(ended, [1, 3, 5]);
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
}

/// It sends requests, and reads nothing at all.
#[tokio::test]
async fn a_peer_that_reads_nothing_is_disconnected() {
    let harness = setup().text("limits.idle_timeout", "500ms").start().await;
    harness.rails.respond_always(Reply::json(200, &"x".repeat(1_000_000)));
    let mut client = FrameClient::start(harness.gateway.tcp.connect().await, &[(4, 0x7fff_ffff)]).await;
    client.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()).await;
    let post = block(&request("POST", "/api/v4/internal/allowed", &[secret()]));
    for stream in (1..120).step_by(2) {
        client.send(HEADERS, END_HEADERS | END_STREAM, stream, &post).await;
    }
    harness.rails.wait_for_requests(20).await;
    harness.wait_for_metric("railgate_client_connections", 0).await;
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
}

#[tokio::test]
async fn requests_beyond_the_announced_number_are_refused() {
    let harness = start().await;
    harness.rails.respond_always(Reply::silence());
    let mut client = connect(&harness).await;
    for stream in (1..220).step_by(2) {
        client.send_request(stream, &request("GET", "/api/v4/internal/nobody", &[])).await;
    }
    for _ in 0..10 {
        let reset = client.read_until(RST_STREAM).await.unwrap();
        assert!(reset.stream > 200 && reset.payload == 7_u32.to_be_bytes(), "{reset:?}");
    }
    harness.wait_for_metric("railgate_requests_in_flight", 100).await;
}
