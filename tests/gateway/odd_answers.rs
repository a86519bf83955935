//! Answers that are odd, but have one meaning only, reach the client in good form; of others, the failure
//! says what is wrong with them.

use std::fmt::Write as _;

use super::client::{Ask, Wire};
use super::fake::Reply;
use super::stage::{Setup, Stage};

const JSON: &str = "Content-Type: application/json\r\n";

/// One with so many fields in all, of which each is `X-N: n`.
fn with_fields(count: usize) -> Reply {
    let mut headers = String::new();
    // Content-Length is the last.
    for nth in 1..count {
        write!(headers, "X-{nth}: {nth}\r\n").unwrap();
    }
    Reply::new(200, &headers, "{}")
}

#[tokio::test]
async fn heads_that_have_one_meaning_are_repaired() {
    let stage = Setup::new().set("workers", 1).start().await;
    let head = |lines: &str| Reply::bytes(format!("HTTP/1.1 200 OK\r\n{lines}\r\n"));
    for (reply, name, value) in [
        (head("X-A : 1\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1"),
        (head("X-A\t: 1\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1"),
        (head("X-A \t  :1\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1"),
        // What is repaired counts.
        (head("X-A: 1\r\nContent-Length : 2\r\n").then("{}"), "content-length", "2"),
        (head("X-A: 1\r\nTransfer-Encoding : chunked\r\n").then("2\r\n{}\r\n0\r\n\r\n"), "x-a", "1"),
        (head("X-A: 1\r\n 2\r\n\t3\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1 2 3"),
        (head("X-A:\r\n 1\r\nContent-Length: 2\r\n").then("{}"), "x-a", "1"),
        (head("Content-Length: 2\r\nX-A: 1\r\n \r\n").then("{}"), "x-a", "1"),
        (with_fields(120), "x-119", "119"),
        (with_fields(256), "x-255", "255"),
    ] {
        stage.rails.always(reply.clone());
        for ask in [Ask::post("allowed").with_secret(), Ask::get("discover?key_id=9").with_secret()] {
            let (answer, _) = stage.pass(&ask).await;
            assert_eq!((answer.status, answer.text()), (200, "{}"), "{reply:?}: {answer}");
            assert_eq!(answer.header(name), Some(value), "{reply:?}: {answer}");
        }
    }
    // The connection is as good as any other.
    assert_eq!(stage.rails.connections(), 1);
}

#[tokio::test]
async fn what_is_wrong_with_others_is_said() {
    let stage = Stage::new().await;
    let head = |lines: &str| Reply::bytes(format!("HTTP/1.1 200 OK\r\n{lines}\r\n{{}}"));
    for (nth, (reply, reason, text)) in [
        (with_fields(257), "upstream_head_too_large", "more than 256 fields or 32768 bytes"),
        (
            head(&format!("X-A: {}\r\n", "a".repeat(40_000))),
            "upstream_head_too_large",
            "more than 256 fields",
        ),
        (head("X A: 1\r\nContent-Length: 2\r\n"), "upstream_malformed", "is no answer in HTTP/1.1"),
        (head(": 1\r\nContent-Length: 2\r\n"), "upstream_malformed", "is no answer in HTTP/1.1"),
        // Of a server that wants TLS.
        (
            Reply::bytes(b"\x15\x03\x01\x00\x02\x02\x46"),
            "upstream_malformed",
            "upstream.url has to begin with https://",
        ),
        (Reply::bytes("SSH-2.0-OpenSSH_10.0\r\n"), "upstream_malformed", "look at its host and port"),
        // A repair does not hide that there are two of them.
        (head("Content-Length : 2\r\nTransfer-Encoding: chunked\r\n"), "upstream_unusable", "both"),
        (head("Content-Length: 2\r\nContent-Length : 3\r\n"), "upstream_malformed", ""),
        (head("Content-Length: 2\r\n 3\r\n"), "upstream_malformed", ""),
        (Reply::hang_up(), "upstream_broke_off", "the connection failed before"),
    ]
    .into_iter()
    .enumerate()
    {
        stage.rails.always(reply.clone().then_close());
        let series = format!(r#"railgate_failures_total{{reason="{reason}"}}"#);
        let before = stage.metric(&series).await.unwrap_or(0);
        let id = format!("odd-answer-{nth}");
        let ask = Ask::post("allowed").with_secret().header("X-Request-Id", &id);
        stage.send(&ask).await.assert_failure(502);
        let line = super::log::line_of(&id).await;
        assert_eq!(line["failure"], reason, "{reply:?}: {line}");
        assert!(line["error"].as_str().unwrap().contains(text), "{reply:?}: {line}");
        stage.reaches(&series, before + 1).await;
    }
    stage.rails.recover();
    stage.assert_alive().await;
}

/// Rails has answered, and the client has all of it.
#[tokio::test]
async fn an_answer_with_trailers_is_whole() {
    let stage = Setup::new().set("workers", 1).start().await;
    let chunked = format!("HTTP/1.1 200 OK\r\n{JSON}Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (nth, (body, te)) in [
        ("2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", "trailers"),
        ("2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", ""),
        // Of these, none may pass.
        ("2\r\n{}\r\n0\r\nSet-Cookie: a=b\r\n\r\n", "trailers"),
        ("0\r\nX-Sum: 1\r\n\r\n", "trailers"),
        ("2\r\n{}\r\n0\r\n\r\n", "trailers"),
    ]
    .into_iter()
    .enumerate()
    {
        stage.rails.always(Reply::bytes(&chunked).then(body));
        for (version, kind) in [("1.1", "now"), ("1.0", "old")] {
            let id = format!("with-trailers-{nth}-{kind}");
            let mut ask = Ask::post("allowed").with_secret().header("X-Request-Id", &id);
            if !te.is_empty() {
                ask = ask.header("TE", te).header("Connection", "close, TE");
            }
            let bytes = String::from_utf8(ask.to_bytes("close")).unwrap();
            let mut wire: Wire = stage.gateway.tcp.connect().await;
            wire.write(bytes.replacen("HTTP/1.1", &format!("HTTP/{version}"), 1).as_bytes()).await;
            let got = String::from_utf8(wire.rest().await).unwrap();
            assert!(got.contains(" 200 OK\r\n"), "{got}");
            let line = super::log::line_of(&id).await;
            assert_eq!(line["status"], 200, "{body:?} {version}: {line}");
        }
    }
    // What comes behind an answer is read, so that the connection carries the next one.
    assert_eq!(stage.rails.connections(), 1);
}

/// A client that leaves in front of them has not had it.
#[tokio::test]
async fn an_answer_whose_end_is_not_there_yet_is_not_whole() {
    let stage = Stage::new().await;
    let chunked = format!("HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n");
    stage.rails.always(Reply::bytes(chunked).then_hang());
    let ask = Ask::post("allowed").with_secret().header("X-Request-Id", "leaves-in-front-of-trailers");
    let mut wire = stage.begin(&ask).await;
    let mut got = Vec::new();
    while !got.ends_with(b"{}\r\n") {
        got.extend(wire.some().await);
    }
    drop(wire);
    assert_eq!(super::log::line_of("leaves-in-front-of-trailers").await["status"], 499);
}
