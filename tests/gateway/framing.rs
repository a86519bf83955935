//! Hostile bytes. What two readers could understand differently is refused, the connection is closed, and
//! nothing reaches Rails.

use std::time::Duration;

use super::client::{Connection, Request, noise};
use super::credentials::ENCODED_SECRET;
use super::fake_rails::{Behavior, Latch, Reply};
use super::harness::{Harness, Setup};

/// A request head of these lines, with a valid credential, so that only the framing is wrong.
fn head(lines: &[&str]) -> Vec<u8> {
    let mut head = format!("{}\r\nGitlab-Shared-Secret: {ENCODED_SECRET}\r\n", lines[0]);
    for line in &lines[1..] {
        head.push_str(line);
        head.push_str("\r\n");
    }
    (head + "\r\n").into_bytes()
}

fn get(lines: &[&str]) -> Vec<u8> {
    head(&[&["GET /api/v4/internal/check HTTP/1.1", "Host: a"], lines].concat())
}

fn post(lines: &[&str], body: &str) -> Vec<u8> {
    let mut bytes = head(&[&["POST /api/v4/internal/allowed HTTP/1.1", "Host: a"], lines].concat());
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

fn to(target: &str) -> Vec<u8> {
    head(&[&format!("GET {target} HTTP/1.1"), "Host: a"])
}

/// Bytes that must never be read as a request.
const SMUGGLED: &str = "GET /api/v4/internal/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Each is refused with this status: alone, behind a good request on the same connection, and
/// followed by bytes that would be a request to a reader who disagrees.
async fn assert_refused(cases: Vec<(Vec<u8>, u16)>) {
    let harness = Harness::new().await;
    for (bytes, status) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let before = harness.rails.request_count();
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&bytes).await;
        assert_refusal(&mut connection, status, &shown).await;

        let mut connection = harness.gateway.unix.connect().await;
        connection.write(&[&bytes, SMUGGLED.as_bytes()].concat()).await;
        assert_refusal(&mut connection, status, &shown).await;

        let mut connection = harness.gateway.tcp.connect().await;
        let good = Request::post("allowed").with_secret().json("{}");
        connection.write(&[good.to_bytes("keep-alive"), bytes, SMUGGLED.into()].concat()).await;
        assert_eq!(connection.read_response().await.status, 200, "before {shown}");
        assert_refusal(&mut connection, status, &shown).await;
        assert_eq!(harness.rails.request_count(), before + 1, "only the good request reached Rails: {shown}");
    }
    assert_eq!(harness.rails.incomplete_requests(), Vec::<Vec<u8>>::new());
    harness.assert_alive().await;
}

/// Asserts a refusal and the end of the connection.
async fn assert_refusal(connection: &mut Connection, status: u16, shown: &str) {
    let response =
        connection.try_read_response().await.unwrap_or_else(|incomplete| panic!("{incomplete}: {shown}"));
    assert_eq!(response.status, status, "{response}: {shown}");
    response.assert_failure(status);
    assert_eq!(response.header("connection"), Some("close"), "{response}: {shown}");
    assert_eq!(connection.read_to_end().await, b"", "{shown}");
}

fn bad(cases: Vec<Vec<u8>>) -> Vec<(Vec<u8>, u16)> {
    cases.into_iter().map(|bytes| (bytes, 400)).collect()
}

#[tokio::test]
async fn bare_line_feeds_and_control_characters_are_refused() {
    let lenient = |text: &str| text.as_bytes().to_vec();
    assert_refused(bad(vec![
        lenient("GET /api/v4/internal/check HTTP/1.1\nHost: a\r\n\r\n"),
        lenient("GET /api/v4/internal/check HTTP/1.1\r\nHost: a\n\r\n"),
        lenient("GET /api/v4/internal/check HTTP/1.1\r\nHost: a\r\n\n"),
        lenient("GET /api/v4/internal/check HTTP/1.1\nHost: a\n\n"),
        lenient("\r\n\r\nGET /api/v4/internal/check HTTP/1.1\r\nHost: a\r\n\r\n"),
        lenient("\r\n \r\nGET /api/v4/internal/check HTTP/1.1\r\nHost: a\r\n\r\n"),
        lenient("\r\n\nGET /api/v4/internal/check HTTP/1.1\r\nHost: a\r\n\r\n"),
        lenient("\n"),
        lenient("\r\n\r\n"),
        get(&["A: b\0c"]),
        get(&["A: b\0"]),
        get(&["A\0: b"]),
        get(&["\0"]),
        get(&["A: b\rc"]),
        get(&["A: b\r"]),
        get(&["\rA: b"]),
        get(&["A: \x01"]),
        get(&["A: \x0b"]),
        get(&["A: \x7f"]),
        get(&["A: \x1b[31m"]),
    ]))
    .await;
}

#[tokio::test]
async fn malformed_header_lines_are_refused() {
    assert_refused(bad(vec![
        get(&["A : b"]),
        get(&["A\t: b"]),
        get(&[" A: b"]),
        get(&["\tA: b"]),
        get(&["A: b", " c"]),
        get(&["A: b", "\tc"]),
        get(&["A: b", " "]),
        get(&["A"]),
        get(&[": b"]),
        get(&["A B: c"]),
        get(&["A(b): c"]),
        get(&["A/b: c"]),
        get(&["A\u{e9}: c"]),
        get(&["\"A\": c"]),
        get(&["Transfer-Encoding : chunked"]),
        get(&["Content-Length : 5"]),
        // Before the first header there is nothing to fold.
        head(&["GET /api/v4/internal/check HTTP/1.1\r\n Host: a", "Host: a"]),
    ]))
    .await;
}

#[tokio::test]
async fn malformed_request_lines_are_refused() {
    let line = |line: &str| head(&[line, "Host: a"]);
    let path = "/api/v4/internal/check";
    assert_refused(bad(vec![
        line(&format!("GET  {path} HTTP/1.1")),
        line(&format!("GET {path}  HTTP/1.1")),
        line(&format!("GET {path} HTTP/1.1 ")),
        line(&format!(" GET {path} HTTP/1.1")),
        line(&format!("GET\t{path} HTTP/1.1")),
        line(&format!("GET {path}\tHTTP/1.1")),
        line(&format!("GET {path} x HTTP/1.1")),
        line(&format!("GET {path}")),
        line(&format!("GET {path} ")),
        line(&format!("GET {path} HTTP/0.9")),
        line(&format!("GET {path} HTTP/1.2")),
        line(&format!("GET {path} HTTP/2.0")),
        line(&format!("GET {path} HTTP/1.10")),
        line(&format!("GET {path} http/1.1")),
        line(&format!("GET {path} HTTP/1.1\0")),
        line(&format!("G\0T {path} HTTP/1.1")),
        line(&format!("GE(T {path} HTTP/1.1")),
        line(&format!("CONNECT {path} HTTP/1.1")),
        line(&format!("TRACE {path} HTTP/1.1")),
        line("CONNECT a:80 HTTP/1.1"),
        line("PRI * HTTP/2.0"),
        line("OPTIONS * HTTP/1.1"),
        // A target may name the host, but only the one in `Host`, without another scheme, port or user.
        line(&format!("GET http://b{path} HTTP/1.1")),
        line(&format!("GET HTTP://B{path} HTTP/1.1")),
        line(&format!("GET http://a:81{path} HTTP/1.1")),
        line(&format!("GET http://a.b{path} HTTP/1.1")),
        line(&format!("GET http://u@a{path} HTTP/1.1")),
        line(&format!("GET http://a@b{path} HTTP/1.1")),
        line(&format!("GET https://a{path} HTTP/1.1")),
        line(&format!("GET http+unix://a{path} HTTP/1.1")),
        line(&format!("GET http:/a{path} HTTP/1.1")),
        line(&format!("GET http://{path} HTTP/1.1")),
        line("OPTIONS http://a HTTP/1.1"),
        head(&[&format!("GET http://a{path} HTTP/1.1"), "Host: a", "Host: a"]),
        head(&[&format!("GET http://a{path} HTTP/1.1"), "Host: b", "Host: a"]),
        head(&[&format!("GET http://a{path} HTTP/1.1"), "A: b"]),
        head(&[&format!("GET http://a{path} HTTP/1.0"), "Host: a", "Host: a"]),
        head(&[&format!("GET http://a{path} HTTP/1.0"), "Host: b"]),
        head(&[&format!("GET http://u@a{path} HTTP/1.0")]),
        head(&[&format!("GET http://{path} HTTP/1.0")]),
        head(&[&format!("GET https://a{path} HTTP/1.0")]),
        line(&format!("GET http://a/x/..{path} HTTP/1.1")),
        line("GET api/v4/internal/check HTTP/1.1"),
        line("GET ?a=b HTTP/1.1"),
        // The gateway's internal mark of a refused request is not accepted from clients.
        line(&format!("RAILGATE-REFUSED {path} HTTP/1.1")),
        line("RAILGATE-REFUSED /host HTTP/1.1"),
        line("railgate-refused /host HTTP/1.1"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ]))
    .await;
}

#[tokio::test]
async fn missing_repeated_and_malformed_hosts_are_refused() {
    let hosts = |hosts: &[&str]| head(&[&["GET /api/v4/internal/check HTTP/1.1"], hosts].concat());
    let old = |hosts: &[&str]| head(&[&["GET /api/v4/internal/check HTTP/1.0"], hosts].concat());
    assert_refused(bad(vec![
        hosts(&[]),
        old(&["Host: a", "Host: a"]),
        old(&["Host:"]),
        old(&["Host: a b"]),
        hosts(&["Host: a", "Host: a"]),
        hosts(&["Host: a", "Host: b"]),
        hosts(&["Host: a", "hOST: b"]),
        hosts(&["Host:"]),
        hosts(&["Host: a b"]),
        hosts(&["Host: a, b"]),
        hosts(&["Host: a/b"]),
        hosts(&["Host: u@a"]),
        hosts(&["Host: a:b"]),
        hosts(&["Host: a::"]),
        hosts(&["Host: a:80:"]),
        hosts(&["Host: :"]),
        hosts(&["Host: a:80:80"]),
        hosts(&["Host: a:99999"]),
        hosts(&["Host: :80"]),
        hosts(&["Host: [::1"]),
        hosts(&["Host: http://a"]),
        hosts(&["Host: a?b"]),
        hosts(&["Host: a#b"]),
        hosts(&["Host: a\\b"]),
        hosts(&["Host: \u{e9}"]),
    ]))
    .await;
}

#[tokio::test]
async fn ambiguously_framed_bodies_are_refused() {
    let chunks = "0\r\n\r\n";
    assert_refused(bad(vec![
        post(&["Content-Length: 5", "Transfer-Encoding: chunked"], chunks),
        post(&["Transfer-Encoding: chunked", "Content-Length: 5"], chunks),
        post(&["Transfer-Encoding: chunked", "Content-Length: 0"], chunks),
        post(&["Content-Length: 5", "Content-Length: 5"], "hello"),
        post(&["Content-Length: 5", "Content-Length: 6"], "hello"),
        post(&["Content-Length: 0", "content-length: 30"], ""),
        post(&["Content-Length: 5, 5"], "hello"),
        post(&["Content-Length: 5,"], "hello"),
        post(&["Content-Length: +5"], "hello"),
        post(&["Content-Length: -5"], "hello"),
        post(&["Content-Length: 5.0"], "hello"),
        post(&["Content-Length: 5e0"], "hello"),
        post(&["Content-Length: 0x5"], "hello"),
        post(&["Content-Length: 5 5"], "hello"),
        post(&["Content-Length: \"5\""], "hello"),
        post(&["Content-Length: \u{ff15}"], "hello"),
        post(&["Content-Length:"], "hello"),
        post(&["Content-Length: 18446744073709551621"], "hello"),
        post(&["Content-Length: 99999999999999999999999999"], "hello"),
        post(&["Transfer-Encoding: gzip"], chunks),
        post(&["Transfer-Encoding: identity"], chunks),
        post(&["Transfer-Encoding: gzip, chunked"], chunks),
        post(&["Transfer-Encoding: chunked, gzip"], chunks),
        post(&["Transfer-Encoding: chunked, chunked"], chunks),
        post(&["Transfer-Encoding: chunked,"], chunks),
        post(&["Transfer-Encoding: , chunked"], chunks),
        post(&["Transfer-Encoding: chunked;q=1"], chunks),
        post(&["Transfer-Encoding: \"chunked\""], chunks),
        post(&["Transfer-Encoding: xchunked"], chunks),
        post(&["Transfer-Encoding: chunkedx"], chunks),
        post(&["Transfer-Encoding: chunke\u{e4}"], chunks),
        post(&["Transfer-Encoding:"], chunks),
        post(&["Transfer-Encoding: \x0bchunked"], chunks),
        post(&["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], chunks),
        post(&["Transfer-Encoding: chunked", "transfer-encoding: identity"], chunks),
        post(&["Transfer-Encoding: identity", "Transfer-Encoding: chunked"], chunks),
        post(&["X: y", " Transfer-Encoding: chunked", "Content-Length: 5"], chunks),
        head(&["POST /api/v4/internal/allowed HTTP/1.0", "Host: a", "Transfer-Encoding: chunked"]),
    ]))
    .await;
}

#[tokio::test]
async fn ambiguous_paths_are_refused() {
    let below = |rest: &str| to(&format!("/api/v4/internal{rest}"));
    assert_refused(bad(vec![
        to("/api//v4/internal/check"),
        to("//api//v4/internal/check"),
        to("//./api/v4/internal/check"),
        to("//../api/v4/internal/check"),
        to("/%2fapi/v4/internal/check"),
        to("//%2fapi/v4/internal/check"),
        to("/./api/v4/internal/check"),
        to("//gitlab//api/v4/internal/check"),
        below("//check"),
        below("/check//"),
        below("/./check"),
        below("/check/."),
        below("/check/.."),
        below("/../internal/check"),
        to("/.."),
        to("/x/../api/v4/internal/check"),
        below("/%2e/check"),
        below("/%2E%2e/internal/check"),
        below("/.%2e/internal/check"),
        below("%2fcheck"),
        below("%2Fcheck"),
        below("/check%2f"),
        below("%5ccheck"),
        below("/%63heck"),
        below("/%43heck"),
        below("/ch%65ck"),
        below("/two%5Ffactor_config"),
        below("/check%00"),
        below("/check%0d%0aA:b"),
        below("/check%7f"),
        below("/check%3fa=b"),
        below("/check%23a"),
        below("/check%253f"),
        below("/check%"),
        below("/check%2"),
        below("/check%zz"),
        below("/check%u0041"),
        below("/check;a=b"),
        below("/check;"),
        below("/check%3ba=b"),
        below(";a=b/check"),
        below("/check#a"),
        below("\\check"),
        below("/\u{e9}"),
        below("/check\0"),
        below("/check\"a"),
        below("/check<a>"),
        below("/check^"),
        below("/check|a"),
        below("/check`"),
        below("/{check}"),
        below("/check?a=b#c"),
        below("/check?a=\u{e9}\u{7f}"),
        below("/check?a=\0"),
        below("/check?a=\""),
        below("/check?a=<"),
        below("/check?a=>"),
        below("/check?a=\\<"),
    ]))
    .await;
}

/// Rack would join repeated values, and each reader could pick another one.
#[tokio::test]
async fn repeated_singleton_headers_are_refused() {
    let twice = |line: &str| get(&[line, line]);
    assert_refused(bad(vec![
        get(&["Gitlab-Shared-Secret: czNjcmV0"]),
        get(&["gitlab-shared-secret: x"]),
        twice("Gitlab-Shell-Api-Request: x"),
        twice("Gitlab-Kas-Api-Request: x"),
        twice("Authorization: Bearer x"),
        twice("Content-Type: application/json"),
        get(&["Content-Type: text/plain", "content-type: application/x-www-form-urlencoded"]),
    ]))
    .await;
}

#[tokio::test]
async fn the_head_size_is_limited() {
    let harness = Setup::new().text("limits.head", "2KiB").set("limits.headers", 20).start().await;
    // `Host` and the credential are counted too.
    let of_headers = |count: usize| get(&vec!["A: b"; count - 2]);
    let of_bytes = |count: usize| {
        let frame = get(&["A: "]).len();
        get(&[&format!("A: {}", "b".repeat(count - frame))])
    };
    assert_eq!(of_bytes(2048).len(), 2048);
    for (bytes, status) in [
        (of_headers(20), 200),
        (of_headers(21), 431),
        (of_headers(500), 431),
        (of_bytes(2048), 200),
        (of_bytes(2049), 431),
        (of_bytes(3000), 431),
        (to(&format!("/api/v4/internal/check?{}", "a".repeat(3000))), 431),
        // More than is read before the refusal, and without an end.
        (vec![b'A'; 100_000], 431),
        (get(&[&format!("A: {}", "b".repeat(1 << 20))]), 431),
        // The first line is not a request line, so its size does not matter.
        ("A: b\r\n".repeat(1_000).into_bytes(), 400),
    ] {
        let shown = format!("{} bytes", bytes.len());
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&bytes).await;
        if status == 200 {
            assert_eq!(connection.read_response().await.status, 200, "{shown}");
        } else {
            assert_refusal(&mut connection, status, &shown).await;
        }
    }
    assert_eq!(harness.rails.request_count(), 1, "the second good one was a hit");
}

/// Puma closes the connection without a response beyond its limits, so the gateway answers.
#[tokio::test]
async fn names_and_targets_are_limited() {
    let harness = Harness::new().await;
    let path = |length: usize| to(&format!("/{}", "a".repeat(length - 1)));
    let below = |length: usize| to(&format!("/api/v4/internal/{}", "a".repeat(length - 17)));
    let query = |length: usize| to(&format!("/api/v4/internal/check?{}", "a".repeat(length - 1)));
    let both =
        |path: usize, query: usize| to(&format!("/{}?{}", "a".repeat(path - 1), "b".repeat(query - 1)));
    let method = |name: &str| head(&[&format!("{name} /api/v4/internal/check HTTP/1.1"), "Host: a"]);
    let name = |length: usize| get(&[&format!("{}: b", "a".repeat(length)), "Range: bytes=0-1"]);
    for (bytes, status) in [
        (path(7_168), 404),
        (path(7_169), 414),
        (below(7_168), 200),
        (below(7_169), 414),
        (query(10_240), 200),
        (query(10_241), 414),
        (both(7_000, 4_264), 404),
        (both(7_000, 4_265), 414),
        (query(30_000), 414),
        (name(256), 200),
        (name(257), 400),
        (method("ABCDEFGHIJKLMNOPQRST"), 200),
        (method("ABCDEFGHIJKLMNOPQRSTU"), 400),
        (method("get"), 400),
        (method("Get"), 400),
        (method("M-SEARCH"), 400),
        (method("G3T"), 400),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..40]).into_owned();
        let before = harness.rails.request_count();
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&bytes).await;
        if matches!(status, 200 | 404) {
            assert_eq!(connection.read_response().await.status, status, "{shown}");
        } else {
            assert_refusal(&mut connection, status, &shown).await;
        }
        assert_eq!(harness.rails.request_count() - before, usize::from(status == 200), "{shown}");
    }
}

#[tokio::test]
async fn raised_limits_are_honoured() {
    let harness = Setup::new().text("limits.head", "64KiB").set("limits.headers", 1_000).start().await;
    let frame = get(&["A: "]).len();
    let padded = |length: usize| get(&[&format!("A: {}", "b".repeat(length - frame))]);
    for (bytes, status) in [
        (padded(40_000), 200),
        (padded(65_536), 200),
        (padded(65_537), 431),
        (get(&vec!["A: b"; 998]), 200),
        (get(&vec!["A: b"; 999]), 431),
    ] {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&bytes).await;
        if status == 200 {
            assert_eq!(connection.read_response().await.status, 200, "{} bytes", bytes.len());
        } else {
            assert_refusal(&mut connection, status, "beyond").await;
        }
    }
}

/// It is refused with a 408, also on a used connection.
#[tokio::test]
async fn a_late_head_is_refused() {
    let harness = Setup::new().text("limits.head_timeout", "100ms").start().await;
    let whole = get(&[]);
    for sent in [&b"G"[..], b"GET /api/v4/internal/check HTTP/1.1\r\nHost: a\r", &whole[..whole.len() - 1]] {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(sent).await;
        assert_refusal(&mut connection, 408, "alone").await;
        let mut connection = harness.gateway.unix.connect().await;
        connection.write(&[&whole, sent].concat()).await;
        assert_eq!(connection.read_response().await.status, 200);
        assert_refusal(&mut connection, 408, "behind a good one").await;
    }
    assert_eq!(harness.rails.request_count(), 1);
}

#[tokio::test]
async fn a_trickling_head_is_refused() {
    let harness = Setup::new().text("limits.head_timeout", "100ms").start().await;
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(b"GET /api/v4/internal/check HTTP/1.1\r\n").await;
    while !connection.is_readable_within(Duration::from_millis(5)).await {
        connection.write(b"A: b\r\n").await;
    }
    assert_refusal(&mut connection, 408, "trickling").await;
}

#[tokio::test]
async fn requests_may_arrive_byte_by_byte() {
    let harness = Harness::new().await;
    let request = Request::post("allowed").with_secret().json(r#"{"a":"b\r\n\r\n"}"#);
    for bytes in [request.to_bytes("close"), request.chunked(1).to_bytes("close")] {
        let mut connection = harness.gateway.tcp.connect().await;
        for byte in bytes {
            connection.write(&[byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(connection.read_response().await.status, 200);
        assert_eq!(harness.rails.last_request().body, br#"{"a":"b\r\n\r\n"}"#);
    }
}

/// With a malformed one at the end.
#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let harness = Harness::new().await;
    let mut bytes = Vec::new();
    for index in 0..20 {
        let request = Request::post(&format!("allowed?n={index}")).with_secret();
        bytes.extend(match index % 3 {
            0 => request.body(format!("body {index}")).to_bytes("keep-alive"),
            1 => request.body(format!("body {index}")).chunked(2).to_bytes("keep-alive"),
            _ => request.to_bytes("keep-alive"),
        });
    }
    bytes.extend_from_slice(b"GET /api/v4/internal/check HTTP/1.1\nHost: a\n\n");
    bytes.extend_from_slice(SMUGGLED.as_bytes());
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&bytes).await;
    for index in 0..20 {
        let response = connection.read_response().await;
        assert_eq!((response.status, response.json()["nth"].as_u64()), (200, Some(index)), "{response}");
    }
    assert_refusal(&mut connection, 400, "at the end").await;
    let targets: Vec<String> = harness.rails.requests().into_iter().map(|request| request.target).collect();
    let expected: Vec<String> = (0..20).map(|index| format!("/api/v4/internal/allowed?n={index}")).collect();
    assert_eq!(targets, expected);
}

/// The good request still waits for Rails when the bad one comes.
#[tokio::test]
async fn a_refusal_is_sent_after_earlier_responses() {
    let harness = Harness::new().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut connection = harness.gateway.tcp.connect().await;
    let good = Request::post("allowed").with_secret();
    connection.write(&[good.to_bytes("keep-alive"), b"GET / HTTP/1.1\nHost: a\n\n".to_vec()].concat()).await;
    harness.rails.wait_for_requests(1).await;
    latch.open();
    assert_eq!(connection.read_response().await.status, 200);
    assert_refusal(&mut connection, 400, "after its turn").await;
}

/// The request may be on its way already, but Rails never gets it completely, and what follows is not taken
/// for a request.
#[tokio::test]
async fn malformed_chunks_are_refused() {
    let harness = Harness::new().await;
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;=b\r\nhello\r\n0\r\n\r\n",
        "5;a=\r\nhello\r\n0\r\n\r\n",
        "5;a=b\nc\r\nhello\r\n0\r\n\r\n",
        "5;a=b\n\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\nb\"\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\r\nb\"\r\nhello\r\n0\r\n\r\n",
        "5;a=\"b\r\nhello\r\n0\r\n\r\n",
        "5;a\r\r\nhello\r\n0\r\n\r\n",
        "5;a=\0\r\nhello\r\n0\r\n\r\n",
        "5,a=b\r\nhello\r\n0\r\n\r\n",
        ";a=b\r\nhello\r\n0\r\n\r\n",
        "10000000000000005;a\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "00000000000000000005\r\nhello\r\n0\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\nA: b\n\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\nA: b\0\r\n\r\n",
        "0\r\nGET / HTTP/1.1\r\n\r\n",
    ] {
        let typed = "Content-Type: application/x-www-form-urlencoded";
        let chunked = "Transfer-Encoding: chunked";
        // Streamed: the credential is in the header.
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&[post(&[typed, chunked], body), SMUGGLED.into()].concat()).await;
        assert_refusal(&mut connection, 400, body).await;
        // Buffered: the credential could be in the body.
        let mut connection = harness.gateway.unix.connect().await;
        let head =
            format!("POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\n{typed}\r\n{chunked}\r\n\r\n");
        connection.write(format!("{head}{body}{SMUGGLED}").as_bytes()).await;
        assert_refusal(&mut connection, 400, body).await;
        assert_eq!(harness.rails.request_count(), 0, "{body:?}");
    }
    // Credentials in trailers are dropped.
    let trailer = "5\r\nhello\r\n0\r\nGitlab-Shared-Secret: eA==\r\nX-Trailer: a\r\n\r\n";
    let mut connection = harness.gateway.tcp.connect().await;
    connection
        .write(&post(&["Transfer-Encoding: chunked", "Trailer: X-Trailer", "TE: trailers"], trailer))
        .await;
    assert_eq!(connection.read_response().await.status, 200);
    let seen = harness.rails.last_request();
    assert_eq!(seen.body, b"hello");
    assert_eq!((seen.header("trailer"), seen.trailers.as_str()), (None, ""), "none of them passes");
}

/// The client disconnects in the middle of its body.
#[tokio::test]
async fn a_truncated_body_never_reaches_rails() {
    let harness = Harness::new().await;
    let incomplete = |bytes: Vec<u8>| bytes[..bytes.len() - 1].to_vec();
    let form = Request::post("allowed").form("secret_token=s3cret&a=b");
    let streamed = form.clone().with_secret();
    let requests = [form.clone(), form.chunked(5), streamed.clone(), streamed.chunked(5)];
    for request in &requests {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&incomplete(request.to_bytes("close"))).await;
        connection.shutdown_write().await;
        drop(connection);
    }
    // The four are over once nothing is in flight; then their connections to Rails are, too.
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    harness.wait_for_metric("railgate_upstream_connections", 0).await;
    assert_eq!(harness.rails.request_count(), 0);
    harness.assert_alive().await;
    assert_eq!(harness.rails.request_count(), 1);
}

/// `Content-Length` frames the body of a GET too.
#[tokio::test]
async fn the_body_of_a_get_is_not_a_request() {
    let harness = Harness::new().await;
    let length = SMUGGLED.len();
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&get(&[&format!("Content-Length: {length}")])).await;
    connection.write(SMUGGLED.as_bytes()).await;
    let response = connection.read_response().await;
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(harness.rails.last_request().body, SMUGGLED.as_bytes());
    // Rack would misread the underscore, so the line is dropped and the length counts.
    connection.write(&post(&["Transfer_Encoding: chunked", "Content-Length: 5"], "0\r\n\r\n")).await;
    assert_eq!(connection.read_response().await.status, 200);
    let seen = harness.rails.last_request();
    assert_eq!((seen.body.as_slice(), seen.header("transfer-encoding")), (&b"0\r\n\r\n"[..], None));
    assert_eq!((seen.header("transfer_encoding"), harness.rails.request_count()), (None, 2));
}

/// Rails responds before it has read everything.
#[tokio::test]
async fn the_rest_of_an_answered_request_is_not_a_request() {
    let harness = Harness::new().await;
    harness.rails.set_behavior(Behavior::RespondAfterHead, |_| Reply::json(403, "{}"));
    let mut connection = harness.gateway.tcp.connect().await;
    // A body that is too large to be read before it is sent on.
    let rest = SMUGGLED.repeat(70_000 / SMUGGLED.len());
    let begun = Request::post("allowed").with_secret().body(format!("abc{rest}")).to_bytes("keep-alive");
    connection.write(&begun[..begun.len() - rest.len()]).await;
    assert_eq!(connection.read_response().await.status, 403);
    connection.write(rest.as_bytes()).await;
    connection.write(&Request::get("pages").to_bytes("close")).await;
    // Either the connection is closed, or what was announced is read as a body.
    connection.read_to_end().await;
    let smuggled = harness.rails.requests().iter().filter(|request| request.is_for("smuggled")).count();
    assert_eq!(smuggled, 0, "the body was taken for a request");
}

#[tokio::test]
async fn expect_continue_is_answered_after_authentication() {
    let harness = Harness::new().await;
    let expecting = ["Expect: 100-continue", "Content-Length: 5"];
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&post(&expecting, "")).await;
    connection.read_interim().await;
    connection.write(b"hello").await;
    let response = connection.read_response().await;
    assert_eq!(response.status, 200, "{response}");
    let seen = harness.rails.last_request();
    assert_eq!((seen.body.as_slice(), seen.header("expect")), (&b"hello"[..], None));
    for head in [
        "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        "POST /api/v4/internal/../x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        "POST /elsewhere HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    ] {
        let mut connection = harness.gateway.tcp.connect().await;
        connection
            .write(head.replace("Length: 5\r\n", "Length: 5\r\nContent-Type: a/b\r\n").as_bytes())
            .await;
        let response = connection.read_response().await;
        assert!(matches!(response.status, 400 | 401 | 404), "{response}");
        assert_eq!(response.interim, Vec::<u16>::new(), "{response}");
        // What it may still send is no request: either is closed, or the body is taken as one.
        connection.shutdown_write().await;
        assert_eq!(connection.read_to_end().await, b"");
    }
    assert_eq!(harness.rails.request_count(), 1);
}

/// The credential can only be in the body.
#[tokio::test]
async fn expect_continue_is_answered_for_a_body_to_be_searched() {
    let harness = Harness::new().await;
    let body = "secret_token=s3cret";
    let request = Request::post("allowed").form(body).header("Expect", "100-continue");
    let bytes = request.to_bytes("close");
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&bytes[..bytes.len() - body.len()]).await;
    connection.read_interim().await;
    connection.write(body.as_bytes()).await;
    assert_eq!(connection.read_response().await.status, 200);
    assert_eq!(harness.rails.last_request().body, body.as_bytes());
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_not_a_request() {
    let harness = Harness::new().await;
    for size in [1, 10, 1_000, 20_000] {
        let body = SMUGGLED.repeat(size);
        for request in [
            Request::post("allowed").header("Gitlab-Shell-Api-Request", "x").body(&body),
            Request::post("allowed").header("Gitlab-Shell-Api-Request", "x").body(&body).chunked(5_000),
            Request::post("allowed").header("Content-Type", "a/b").body(&body),
            Request::get("check").body(&body),
            Request::new("POST", "/elsewhere").body(&body),
            Request::post("allowed;a").body(&body),
        ] {
            let mut connection = harness.gateway.tcp.connect().await;
            connection.write(&request.to_bytes("keep-alive")).await;
            connection.write(&Request::get("pages").to_bytes("close")).await;
            let response = connection.read_response().await;
            response.assert_failure(response.status);
            // Either the connection is closed, or the request behind the body is answered.
            connection.read_to_end().await;
        }
    }
    assert!(harness.rails.requests().iter().all(|request| request.is_for("pages")));
}

#[tokio::test]
async fn bytes_after_the_last_request_are_not_read() {
    let harness = Harness::new().await;
    let old = b"GET /api/v4/internal/pages HTTP/1.0\r\nHost: a\r\n\r\n".to_vec();
    for last in
        [Request::get("pages").to_bytes("close"), Request::post("pages").body("x").to_bytes("CLOSE"), old]
    {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&[&last, SMUGGLED.as_bytes()].concat()).await;
        assert_eq!(connection.read_response().await.status, 200);
        assert_eq!(connection.read_to_end().await, b"");
    }
    assert!(harness.rails.requests().iter().all(|request| request.is_for("pages")));
    assert_eq!(harness.rails.request_count(), 3);
}

/// Many requests of all kinds on one connection: Rails gets each as it was sent.
#[tokio::test]
async fn requests_may_be_split_anywhere() {
    let harness = Harness::with(|request| Reply::json(200, &format!("{:?}", request.target))).await;
    let dice = noise(1 << 20);
    let mut dice = dice.chunks(2).map(|pair| usize::from(pair[0]) << 8 | usize::from(pair[1]));
    let mut roll = |sides: usize| dice.next().unwrap() % sides;
    for round in 0..40 {
        let requests: Vec<Request> = (0..10)
            .map(|index| {
                let request = Request::post(&format!("allowed?n={round}-{index}")).with_secret();
                let body = noise([0, 1, 50, 5_000, 20_000][roll(5)]);
                match roll(4) {
                    0 => request,
                    1 => request.body(body).chunked(1 + roll(5_000)),
                    2 => request.body(body).header("X-Padding", &"x".repeat(roll(10_000))),
                    _ => request.body(body),
                }
            })
            .collect();
        let bytes: Vec<u8> = requests.iter().flat_map(|request| request.to_bytes("keep-alive")).collect();
        let before = harness.rails.request_count();
        let mut connection = harness.gateway.unix.connect().await;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let longest = [3, 100, 20_000][roll(3)];
            let (piece, others) = rest.split_at((1 + roll(longest)).min(rest.len()));
            connection.write(piece).await;
            rest = others;
            if roll(2) == 0 {
                tokio::task::yield_now().await;
            }
        }
        for request in &requests {
            assert_eq!(connection.read_response().await.text(), format!("{:?}", request.target));
        }
        for (request, seen) in requests.iter().zip(&harness.rails.requests()[before..]) {
            assert!(
                seen.target == request.target && seen.body == request.body_bytes(),
                "{request}: {}",
                seen.head
            );
        }
    }
}

#[tokio::test]
async fn http10_clients_get_http10_framing() {
    let harness = Harness::new().await;
    harness.rails.respond_always(Reply::in_chunks(200, "Content-Type: text/plain\r\n", "hello", 2));
    let mut connection = harness.gateway.tcp.connect().await;
    connection
        .write(&head(&["POST /api/v4/internal/allowed HTTP/1.0", "Host: a", "Content-Length: 2"]))
        .await;
    connection.write(b"{}").await;
    let response = connection.read_response().await;
    assert_eq!(
        (response.status, response.text(), response.header("transfer-encoding")),
        (200, "hello", None)
    );
    assert_eq!(harness.rails.last_request().body, b"{}");
    assert_eq!(connection.read_to_end().await, b"");
}
