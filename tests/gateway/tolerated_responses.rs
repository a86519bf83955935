//! Unusual responses with only one meaning are repaired; others are refused, with the reason in the log.

use std::fmt::Write as _;

use super::client::{Connection, Request};
use super::fake_rails::Reply;
use super::harness::{Harness, Setup};

const JSON: &str = "Content-Type: application/json\r\n";

/// A response with so many fields in all, each `X-N: n`.
fn response_with_fields(count: usize) -> Reply {
    let mut headers = String::new();
    // Content-Length is the last.
    for nth in 1..count {
        write!(headers, "X-{nth}: {nth}\r\n").unwrap();
    }
    Reply::new(200, &headers, "{}")
}

#[tokio::test]
async fn unambiguous_heads_are_repaired() {
    let harness = Setup::new().set("workers", 1).start().await;
    let head = |lines: &str| Reply::bytes(format!("HTTP/1.1 200 OK\r\n{lines}\r\n"));
    for (reply, name, value) in [
        (head("X-A : 1\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1"),
        (head("X-A\t: 1\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1"),
        (head("X-A \t  :1\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1"),
        // Repaired fields take effect.
        (head("X-A: 1\r\nContent-Length : 2\r\n").then("{}"), "content-length", "2"),
        (head("X-A: 1\r\nTransfer-Encoding : chunked\r\n").then("2\r\n{}\r\n0\r\n\r\n"), "x-a", "1"),
        (head("X-A: 1\r\n 2\r\n\t3\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1 2 3"),
        (head("X-A:\r\n 1\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1"),
        (head("Content-Length: 2\r\nX-A: 1\r\n \r\n").then("{}"), "x-a", "1"),
        (response_with_fields(120), "x-119", "119"),
        (response_with_fields(256), "x-255", "255"),
    ] {
        harness.rails.respond_always(reply.clone());
        for request in
            [Request::post("allowed").with_secret(), Request::get("discover?key_id=9").with_secret()]
        {
            let (response, _) = harness.send_forwarded(&request).await;
            assert_eq!((response.status, response.text()), (200, "{}"), "{reply:?}: {response}");
            assert_eq!(response.header(name), Some(value), "{reply:?}: {response}");
        }
    }
    // The connection is still reused.
    assert_eq!(harness.rails.connection_count(), 1);
}

#[tokio::test]
async fn other_heads_are_refused_with_a_reason() {
    let harness = Harness::new().await;
    let head = |lines: &str| Reply::bytes(format!("HTTP/1.1 200 OK\r\n{lines}\r\n{{}}"));
    for (nth, (reply, reason, text)) in [
        (response_with_fields(257), "upstream_head_too_large", "more than 256 fields or 32768 bytes"),
        (
            head(&format!("X-A: {}\r\n", "a".repeat(40_000))),
            "upstream_head_too_large",
            "more than 256 fields",
        ),
        (head("X A: 1\r\nContent-Length: 2\r\n"), "upstream_malformed", "is not HTTP/1.1"),
        (head(": 1\r\nContent-Length: 2\r\n"), "upstream_malformed", "is not HTTP/1.1"),
        // From a server that expects TLS.
        (
            Reply::bytes(b"\x15\x03\x01\x00\x02\x02\x46"),
            "upstream_malformed",
            "upstream.url has to begin with https://",
        ),
        (Reply::bytes("SSH-2.0-OpenSSH_10.0\r\n"), "upstream_malformed", "check its host and port"),
        // Repairs do not hide that there are two lengths.
        (head("Content-Length : 2\r\nTransfer-Encoding: chunked\r\n"), "upstream_unusable", "both"),
        (head("Content-Length: 2\r\nContent-Length : 3\r\n"), "upstream_malformed", ""),
        (head("Content-Length: 2\r\n 3\r\n"), "upstream_malformed", ""),
        (Reply::hang_up(), "upstream_broke_off", "the connection failed before"),
    ]
    .into_iter()
    .enumerate()
    {
        harness.rails.respond_always(reply.clone().then_close());
        let series = format!(r#"railgate_failures_total{{reason="{reason}"}}"#);
        let before = harness.metric(&series).await.unwrap_or(0);
        let id = format!("odd-answer-{nth}");
        let request = Request::post("allowed").with_secret().header("X-Request-Id", &id);
        harness.send(&request).await.assert_failure(502);
        let line = super::log::wait_for_request_line(&id).await;
        assert_eq!(line["failure"], reason, "{reply:?}: {line}");
        assert!(line["error"].as_str().unwrap().contains(text), "{reply:?}: {line}");
        harness.wait_for_metric(&series, before + 1).await;
    }
    harness.rails.recover();
    harness.assert_alive().await;
}

/// It is logged as complete.
#[tokio::test]
async fn a_response_with_trailers_is_complete() {
    let harness = Setup::new().set("workers", 1).start().await;
    let chunked = format!("HTTP/1.1 200 OK\r\n{JSON}Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (nth, (body, te)) in [
        ("2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", "trailers"),
        ("2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", ""),
        // These trailers are not forwarded.
        ("2\r\n{}\r\n0\r\nSet-Cookie: a=b\r\n\r\n", "trailers"),
        ("0\r\nX-Sum: 1\r\n\r\n", "trailers"),
        ("2\r\n{}\r\n0\r\n\r\n", "trailers"),
    ]
    .into_iter()
    .enumerate()
    {
        harness.rails.respond_always(Reply::bytes(&chunked).then(body));
        for (version, kind) in [("1.1", "now"), ("1.0", "old")] {
            let id = format!("with-trailers-{nth}-{kind}");
            let mut request = Request::post("allowed").with_secret().header("X-Request-Id", &id);
            if !te.is_empty() {
                request = request.header("TE", te).header("Connection", "close, TE");
            }
            let bytes = String::from_utf8(request.to_bytes("close")).unwrap();
            let mut connection: Connection = harness.gateway.tcp.connect().await;
            connection.write(bytes.replacen("HTTP/1.1", &format!("HTTP/{version}"), 1).as_bytes()).await;
            let got = String::from_utf8(connection.read_to_end().await).unwrap();
            assert!(got.contains(" 200 OK\r\n"), "{got}");
            let line = super::log::wait_for_request_line(&id).await;
            assert_eq!(line["status"], 200, "{body:?} {version}: {line}");
        }
    }
    // Trailers are read, so that the connection can be reused.
    assert_eq!(harness.rails.connection_count(), 1);
    assert_eq!(harness.metric("railgate_clients_gone_total").await, Some(0));
}

/// A client that disconnects before it has not got the whole response.
#[tokio::test]
async fn a_response_is_incomplete_before_its_last_chunk() {
    let harness = Harness::new().await;
    let chunked = format!("HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n");
    harness.rails.respond_always(Reply::bytes(chunked).then_hang());
    let request =
        Request::post("allowed").with_secret().header("X-Request-Id", "leaves-in-front-of-trailers");
    let mut connection = harness.start_request(&request).await;
    let mut got = Vec::new();
    while !got.ends_with(b"{}\r\n") {
        got.extend(connection.read_some().await);
    }
    drop(connection);
    assert_eq!(super::log::wait_for_request_line("leaves-in-front-of-trailers").await["status"], 499);
    harness.wait_for_metric("railgate_clients_gone_total", 1).await;
}
