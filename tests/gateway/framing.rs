//! Hostile bytes. Whatever two readers could understand differently is refused, the connection is
//! closed, and Rails never hears of it.

use std::time::Duration;

use super::client::{Ask, Wire, noise};
use super::credentials::SECRET;
use super::fake::{Manners, Reply, Valve};
use super::stage::{Setup, Stage};

/// A request head as these lines, with a credential, so that nothing but the framing is wrong.
fn head(lines: &[&str]) -> Vec<u8> {
    let mut head = format!("{}\r\nGitlab-Shared-Secret: {SECRET}\r\n", lines[0]);
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

/// A request that must never be understood as one.
const SMUGGLED: &str = "GET /api/v4/internal/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Each is refused with this status: alone, behind a good request on the same connection, and
/// followed by bytes that would be a request to a reader who disagrees.
async fn assert_refused(cases: Vec<(Vec<u8>, u16)>) {
    let stage = Stage::new().await;
    for (bytes, status) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let before = stage.rails.count();
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&bytes).await;
        assert_refusal(&mut wire, status, &shown).await;

        let mut wire = stage.gateway.unix.connect().await;
        wire.write(&[&bytes, SMUGGLED.as_bytes()].concat()).await;
        assert_refusal(&mut wire, status, &shown).await;

        let mut wire = stage.gateway.tcp.connect().await;
        let good = Ask::post("allowed").with_secret().json("{}");
        wire.write(&[good.to_bytes("keep-alive"), bytes, SMUGGLED.into()].concat()).await;
        assert_eq!(wire.answer().await.status, 200, "before {shown}");
        assert_refusal(&mut wire, status, &shown).await;
        assert_eq!(stage.rails.count(), before + 1, "only the good request reached Rails: {shown}");
    }
    assert_eq!(stage.rails.fragments(), Vec::<Vec<u8>>::new());
    stage.assert_alive().await;
}

/// The refusal, and after it nothing.
async fn assert_refusal(wire: &mut Wire, status: u16, shown: &str) {
    let answer = wire.try_answer().await.unwrap_or_else(|cut| panic!("{cut}: {shown}"));
    assert_eq!(answer.status, status, "{answer}: {shown}");
    answer.assert_failure(status);
    assert_eq!(answer.header("connection"), Some("close"), "{answer}: {shown}");
    assert_eq!(wire.rest().await, b"", "{shown}");
}

fn bad(cases: Vec<Vec<u8>>) -> Vec<(Vec<u8>, u16)> {
    cases.into_iter().map(|bytes| (bytes, 400)).collect()
}

#[tokio::test]
async fn lines_end_in_crlf_and_hold_no_controls() {
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
async fn header_lines_have_one_form() {
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
async fn request_lines_have_one_form() {
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
        // A target may name the host, but no other one, no scheme of another port, and no user.
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
        head(&[&format!("GET http://a{path} HTTP/1.0")]),
        line(&format!("GET http://a/x/..{path} HTTP/1.1")),
        line("GET api/v4/internal/check HTTP/1.1"),
        line("GET ?a=b HTTP/1.1"),
        // The gate's own way to say that it refused something is no request of a client's.
        line(&format!("RAILGATE-REFUSED {path} HTTP/1.1")),
        line("RAILGATE-REFUSED /host HTTP/1.1"),
        line("railgate-refused /host HTTP/1.1"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ]))
    .await;
}

#[tokio::test]
async fn there_is_one_host() {
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
async fn a_body_is_framed_in_one_way() {
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
async fn a_path_has_one_spelling() {
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
        below("/check?a=\u{e9}"),
        below("/check?a=\0"),
        below("/check?a=\""),
        below("/check?a=<"),
        below("/check?a=>"),
        below("/check?a=\\"),
    ]))
    .await;
}

/// Rack would join them, and each reader could pick another part.
#[tokio::test]
async fn what_decides_something_is_said_once() {
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
async fn a_head_has_bounds() {
    let stage = Setup::new().text("limits.head", "2KiB").set("limits.headers", 20).start().await;
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
        // Far more than anybody reads before answering, and without an end.
        (vec![b'A'; 100_000], 431),
        (get(&[&format!("A: {}", "b".repeat(1 << 20))]), 431),
        // Its first line is no request line, so nobody waits for how long it gets.
        ("A: b\r\n".repeat(1_000).into_bytes(), 400),
    ] {
        let shown = format!("{} bytes", bytes.len());
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&bytes).await;
        if status == 200 {
            assert_eq!(wire.answer().await.status, 200, "{shown}");
        } else {
            assert_refusal(&mut wire, status, &shown).await;
        }
    }
    assert_eq!(stage.rails.count(), 1, "the second good one was a hit");
}

/// Beyond what Puma's parser takes, it answers nothing at all, so the gateway does.
#[tokio::test]
async fn names_and_targets_have_bounds() {
    let stage = Stage::new().await;
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
        let before = stage.rails.count();
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&bytes).await;
        if matches!(status, 200 | 404) {
            assert_eq!(wire.answer().await.status, status, "{shown}");
        } else {
            assert_refusal(&mut wire, status, &shown).await;
        }
        assert_eq!(stage.rails.count() - before, usize::from(status == 200), "{shown}");
    }
}

/// Whatever the operator allows is served.
#[tokio::test]
async fn generous_bounds_hold_too() {
    let stage = Setup::new().text("limits.head", "64KiB").set("limits.headers", 1_000).start().await;
    let frame = get(&["A: "]).len();
    let padded = |length: usize| get(&[&format!("A: {}", "b".repeat(length - frame))]);
    for (bytes, status) in [
        (padded(40_000), 200),
        (padded(65_536), 200),
        (padded(65_537), 431),
        (get(&vec!["A: b"; 998]), 200),
        (get(&vec!["A: b"; 999]), 431),
    ] {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&bytes).await;
        if status == 200 {
            assert_eq!(wire.answer().await.status, 200, "{} bytes", bytes.len());
        } else {
            assert_refusal(&mut wire, status, "beyond").await;
        }
    }
}

/// A head that has begun must end. It is refused in words, also on a connection that was used.
#[tokio::test]
async fn a_head_must_come_in_time() {
    let stage = Setup::new().text("limits.head_timeout", "100ms").start().await;
    let whole = get(&[]);
    for sent in [&b"G"[..], b"GET /api/v4/internal/check HTTP/1.1\r\nHost: a\r", &whole[..whole.len() - 1]] {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(sent).await;
        assert_refusal(&mut wire, 408, "alone").await;
        let mut wire = stage.gateway.unix.connect().await;
        wire.write(&[&whole, sent].concat()).await;
        assert_eq!(wire.answer().await.status, 200);
        assert_refusal(&mut wire, 408, "behind a good one").await;
    }
    assert_eq!(stage.rails.count(), 1);
}

/// A drop at a time is no way around the limit.
#[tokio::test]
async fn a_head_that_trickles_in_is_late_all_the_same() {
    let stage = Setup::new().text("limits.head_timeout", "100ms").start().await;
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(b"GET /api/v4/internal/check HTTP/1.1\r\n").await;
    while !wire.has_something_within(Duration::from_millis(5)).await {
        wire.write(b"A: b\r\n").await;
    }
    assert_refusal(&mut wire, 408, "trickling").await;
}

/// However the bytes are cut on their way, they mean the same.
#[tokio::test]
async fn requests_may_come_in_drops() {
    let stage = Stage::new().await;
    let ask = Ask::post("allowed").with_secret().json(r#"{"a":"b\r\n\r\n"}"#);
    for bytes in [ask.to_bytes("close"), ask.chunked(1).to_bytes("close")] {
        let mut wire = stage.gateway.tcp.connect().await;
        for byte in bytes {
            wire.write(&[byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(wire.answer().await.status, 200);
        assert_eq!(stage.rails.last().body, br#"{"a":"b\r\n\r\n"}"#);
    }
}

/// Many requests at once on one connection, answered in their order; then one that is none.
#[tokio::test]
async fn requests_in_a_row_are_answered_in_their_order() {
    let stage = Stage::new().await;
    let mut bytes = Vec::new();
    for index in 0..20 {
        let ask = Ask::post(&format!("allowed?n={index}")).with_secret();
        bytes.extend(match index % 3 {
            0 => ask.body(format!("body {index}")).to_bytes("keep-alive"),
            1 => ask.body(format!("body {index}")).chunked(2).to_bytes("keep-alive"),
            _ => ask.to_bytes("keep-alive"),
        });
    }
    bytes.extend_from_slice(b"GET /api/v4/internal/check HTTP/1.1\nHost: a\n\n");
    bytes.extend_from_slice(SMUGGLED.as_bytes());
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&bytes).await;
    for index in 0..20 {
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.json()["nth"].as_u64()), (200, Some(index)), "{answer}");
    }
    assert_refusal(&mut wire, 400, "at the end").await;
    let targets: Vec<String> = stage.rails.requests().into_iter().map(|request| request.target).collect();
    let expected: Vec<String> = (0..20).map(|index| format!("/api/v4/internal/allowed?n={index}")).collect();
    assert_eq!(targets, expected);
}

/// The good request is still with Rails when the bad one comes.
#[tokio::test]
async fn a_refusal_waits_for_its_turn() {
    let stage = Stage::new().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut wire = stage.gateway.tcp.connect().await;
    let good = Ask::post("allowed").with_secret();
    wire.write(&[good.to_bytes("keep-alive"), b"GET / HTTP/1.1\nHost: a\n\n".to_vec()].concat()).await;
    stage.rails.has_got(1).await;
    valve.open();
    assert_eq!(wire.answer().await.status, 200);
    assert_refusal(&mut wire, 400, "after its turn").await;
}

/// A body that is malformed further on: its request may be on its way already, but Rails never
/// sees it whole, and what follows is never taken for a request.
#[tokio::test]
async fn malformed_chunks_end_a_request() {
    let stage = Stage::new().await;
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
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&[post(&[typed, chunked], body), SMUGGLED.into()].concat()).await;
        assert_refusal(&mut wire, 400, body).await;
        // Collected: the credential could be in the body.
        let mut wire = stage.gateway.unix.connect().await;
        let head =
            format!("POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\n{typed}\r\n{chunked}\r\n\r\n");
        wire.write(format!("{head}{body}{SMUGGLED}").as_bytes()).await;
        assert_refusal(&mut wire, 400, body).await;
        assert_eq!(stage.rails.count(), 0, "{body:?}");
    }
    // A credential does not come too late.
    let trailer = "5\r\nhello\r\n0\r\nGitlab-Shared-Secret: eA==\r\nX-Trailer: a\r\n\r\n";
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&post(&["Transfer-Encoding: chunked", "Trailer: X-Trailer", "TE: trailers"], trailer)).await;
    assert_eq!(wire.answer().await.status, 200);
    let seen = stage.rails.last();
    assert_eq!(seen.body, b"hello");
    assert_eq!((seen.header("trailer"), seen.trailers.as_str()), (None, ""), "none of them passes");
}

/// A client that leaves in the middle of its body leaves no whole request behind.
#[tokio::test]
async fn a_body_that_breaks_off_is_no_request() {
    let stage = Stage::new().await;
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 1].to_vec();
    let form = Ask::post("allowed").form("secret_token=s3cret&a=b");
    let streamed = form.clone().with_secret();
    let asks = [form.clone(), form.chunked(5), streamed.clone(), streamed.chunked(5)];
    for ask in &asks {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&cut(ask.to_bytes("close"))).await;
        wire.finish().await;
        drop(wire);
    }
    // The four are over once nothing is in flight; then their connections to Rails are, too.
    stage.reaches("railgate_requests_in_flight", 0).await;
    stage.reaches("railgate_upstream_connections", 0).await;
    assert_eq!(stage.rails.count(), 0);
    stage.assert_alive().await;
    assert_eq!(stage.rails.count(), 1);
}

/// `Content-Length` frames the body of a GET too; what is in it is no request.
#[tokio::test]
async fn the_body_of_a_get_is_no_place_to_hide_a_request() {
    let stage = Stage::new().await;
    let length = SMUGGLED.len();
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&get(&[&format!("Content-Length: {length}")])).await;
    wire.write(SMUGGLED.as_bytes()).await;
    let answer = wire.answer().await;
    assert_eq!(answer.status, 200, "{answer}");
    assert_eq!(stage.rails.last().body, SMUGGLED.as_bytes());
    // The underscore is Rack's to misread, so the line is dropped and the length counts.
    wire.write(&post(&["Transfer_Encoding: chunked", "Content-Length: 5"], "0\r\n\r\n")).await;
    assert_eq!(wire.answer().await.status, 200);
    let seen = stage.rails.last();
    assert_eq!((seen.body.as_slice(), seen.header("transfer-encoding")), (&b"0\r\n\r\n"[..], None));
    assert_eq!((seen.header("transfer_encoding"), stage.rails.count()), (None, 2));
}

/// Rails answers before it has heard everything; the rest of the body is still no request.
#[tokio::test]
async fn the_rest_of_an_answered_request_is_no_request() {
    let stage = Stage::new().await;
    stage.rails.behave(Manners::Hasty, |_| Reply::json(403, "{}"));
    let mut wire = stage.gateway.tcp.connect().await;
    // An endpoint whose small bodies are not read before they are sent on.
    let length = 3 + SMUGGLED.len();
    let begun =
        format!("POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nabc");
    wire.write(begun.as_bytes()).await;
    assert_eq!(wire.answer().await.status, 403);
    wire.write(SMUGGLED.as_bytes()).await;
    wire.write(&Ask::get("pages").to_bytes("close")).await;
    // Either the connection is closed, or what was announced is read as a body.
    wire.rest().await;
    let smuggled = stage.rails.requests().iter().filter(|request| request.is_for("smuggled")).count();
    assert_eq!(smuggled, 0, "the body was taken for a request");
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_is_asked_if_it_is_let_in() {
    let stage = Stage::new().await;
    let expecting = ["Expect: 100-continue", "Content-Length: 5"];
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&post(&expecting, "")).await;
    wire.interim().await;
    wire.write(b"hello").await;
    let answer = wire.answer().await;
    assert_eq!(answer.status, 200, "{answer}");
    let seen = stage.rails.last();
    assert_eq!((seen.body.as_slice(), seen.header("expect")), (&b"hello"[..], None));
    for head in [
        "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        "POST /api/v4/internal/../x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        "POST /elsewhere HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    ] {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(head.replace("Length: 5\r\n", "Length: 5\r\nContent-Type: a/b\r\n").as_bytes()).await;
        let answer = wire.answer().await;
        assert!(matches!(answer.status, 400 | 401 | 404), "{answer}");
        assert_eq!(answer.interim, Vec::<u16>::new(), "{answer}");
        // What it may still send is no request: either is closed, or the body is taken as one.
        wire.finish().await;
        assert_eq!(wire.rest().await, b"");
    }
    assert_eq!(stage.rails.count(), 1);
}

/// So is one whose credential can only be in what it still has to send.
#[tokio::test]
async fn a_client_is_asked_for_a_body_that_has_to_be_searched() {
    let stage = Stage::new().await;
    let body = "secret_token=s3cret";
    let ask = Ask::post("allowed").form(body).header("Expect", "100-continue");
    let bytes = ask.to_bytes("close");
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&bytes[..bytes.len() - body.len()]).await;
    wire.interim().await;
    wire.write(body.as_bytes()).await;
    assert_eq!(wire.answer().await.status, 200);
    assert_eq!(stage.rails.last().body, body.as_bytes());
}

/// The body of a request that was refused is still a body.
#[tokio::test]
async fn the_body_of_a_refused_request_is_no_request() {
    let stage = Stage::new().await;
    for size in [1, 10, 1_000, 20_000] {
        let body = SMUGGLED.repeat(size);
        for ask in [
            Ask::post("allowed").header("Gitlab-Shell-Api-Request", "x").body(&body),
            Ask::post("allowed").header("Gitlab-Shell-Api-Request", "x").body(&body).chunked(5_000),
            Ask::post("allowed").header("Content-Type", "a/b").body(&body),
            Ask::get("check").body(&body),
            Ask::new("POST", "/elsewhere").body(&body),
            Ask::post("allowed;a").body(&body),
        ] {
            let mut wire = stage.gateway.tcp.connect().await;
            wire.write(&ask.to_bytes("keep-alive")).await;
            wire.write(&Ask::get("pages").to_bytes("close")).await;
            let answer = wire.answer().await;
            answer.assert_failure(answer.status);
            // Either the connection is closed, or the request behind the body is answered.
            wire.rest().await;
        }
    }
    assert!(stage.rails.requests().iter().all(|request| request.is_for("pages")));
}

/// After what was to be the last request, nothing is a request.
#[tokio::test]
async fn what_follows_the_last_request_is_not_read() {
    let stage = Stage::new().await;
    let old = b"GET /api/v4/internal/pages HTTP/1.0\r\nHost: a\r\n\r\n".to_vec();
    for last in [Ask::get("pages").to_bytes("close"), Ask::post("pages").body("x").to_bytes("CLOSE"), old] {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&[&last, SMUGGLED.as_bytes()].concat()).await;
        assert_eq!(wire.answer().await.status, 200);
        assert_eq!(wire.rest().await, b"");
    }
    assert!(stage.rails.requests().iter().all(|request| request.is_for("pages")));
    assert_eq!(stage.rails.count(), 3);
}

/// Many requests of all kinds on one connection, cut anywhere: Rails sees each as it was sent.
#[tokio::test]
async fn requests_may_be_cut_anywhere() {
    let stage = Stage::with(|request| Reply::json(200, &format!("{:?}", request.target))).await;
    let dice = noise(1 << 20);
    let mut dice = dice.chunks(2).map(|pair| usize::from(pair[0]) << 8 | usize::from(pair[1]));
    let mut roll = |sides: usize| dice.next().unwrap() % sides;
    for round in 0..40 {
        let asks: Vec<Ask> = (0..10)
            .map(|index| {
                let ask = Ask::post(&format!("allowed?n={round}-{index}")).with_secret();
                let body = noise([0, 1, 50, 5_000, 20_000][roll(5)]);
                match roll(4) {
                    0 => ask,
                    1 => ask.body(body).chunked(1 + roll(5_000)),
                    2 => ask.body(body).header("X-Padding", &"x".repeat(roll(10_000))),
                    _ => ask.body(body),
                }
            })
            .collect();
        let bytes: Vec<u8> = asks.iter().flat_map(|ask| ask.to_bytes("keep-alive")).collect();
        let before = stage.rails.count();
        let mut wire = stage.gateway.unix.connect().await;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let longest = [3, 100, 20_000][roll(3)];
            let (piece, others) = rest.split_at((1 + roll(longest)).min(rest.len()));
            wire.write(piece).await;
            rest = others;
            if roll(2) == 0 {
                tokio::task::yield_now().await;
            }
        }
        for ask in &asks {
            assert_eq!(wire.answer().await.text(), format!("{:?}", ask.target));
        }
        for (ask, seen) in asks.iter().zip(&stage.rails.requests()[before..]) {
            assert!(seen.target == ask.target && seen.body == ask.plain_body(), "{ask}: {}", seen.head);
        }
    }
}

#[tokio::test]
async fn old_clients_are_answered_in_their_way() {
    let stage = Stage::new().await;
    stage.rails.always(Reply::in_chunks(200, "Content-Type: text/plain\r\n", "hello", 2));
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&head(&["POST /api/v4/internal/allowed HTTP/1.0", "Host: a", "Content-Length: 2"])).await;
    wire.write(b"{}").await;
    let answer = wire.answer().await;
    assert_eq!((answer.status, answer.text(), answer.header("transfer-encoding")), (200, "hello", None));
    assert_eq!(stage.rails.last().body, b"{}");
    assert_eq!(wire.rest().await, b"");
}
