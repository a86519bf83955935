//! Bodies, byte for byte, in both directions, whatever their framing.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::client::{Ask, Peer, chunked, noise, soon};
use super::fake::{Manners, Reply, Valve};
use super::stage::{Running, Setup, Stage};

const LARGE: usize = 5 * 1024 * 1024;

#[tokio::test]
async fn small_bodies_arrive_as_they_were_sent() {
    let stage = Stage::new().await;
    let odd: Vec<u8> = (0..=255).collect();
    for body in [&b""[..], b"x", b"\r\n\r\n0\r\n\r\n", &odd, b"GET / HTTP/1.1\r\n\r\n"] {
        for ask in [
            Ask::post("allowed").with_secret().body(body),
            Ask::post("allowed").with_secret().body(body).chunked(1),
            Ask::post("allowed").with_secret().body(body).chunked(1000),
            Ask::new("PUT", "/api/v4/internal/kubernetes/modules/starboard_vulnerability")
                .with_kas_token()
                .body(body),
            Ask::get("lfs").with_secret().body(body),
            Ask::get("lfs").with_secret().body(body).chunked(3),
            Ask::new("DELETE", "/api/v4/internal/anything").body(body).chunked(7),
        ] {
            let (answer, seen) = stage.send_counting(&ask).await;
            assert_eq!((answer.status, seen), (200, 1), "{ask}: {answer}");
            let seen = stage.rails.last();
            assert_eq!(seen.body, body, "{ask}: {}", seen.head);
            assert_eq!(seen.method, ask.method);
        }
    }
}

/// A body that is no credential could change the answer, so Rails gets to see it.
#[tokio::test]
async fn a_read_with_a_body_is_not_for_the_cache() {
    let stage = Stage::new().await;
    let plain = Ask::get("discover?key_id=1").with_secret();
    stage.send(&plain).await;
    for ask in [
        plain.clone().header("Content-Type", "a/b").body("x"),
        plain.clone().body("x"),
        plain.clone().body("x").chunked(1),
        plain.clone().json("{}"),
        plain.clone().form("key_id=7"),
        plain.clone().form("secret_token=s3cret&key_id=7"),
    ] {
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!(answer.cache_status(), "railgate; fwd=bypass; detail=request", "{ask}");
        assert_eq!(seen.method, "GET");
        assert!(!seen.body.is_empty());
    }
    assert!(stage.send(&plain.body("")).await.is_hit());
}

/// The framing is the gateway's own, and a request without a body has none.
#[tokio::test]
async fn a_request_is_framed_anew() {
    let stage = Stage::new().await;
    let framing = async |ask: Ask| {
        let (_, seen) = stage.pass(&ask.with_secret()).await;
        (
            seen.header("content-length").map(str::to_owned),
            seen.header("transfer-encoding").map(str::to_owned),
        )
    };
    let of = |length: Option<&str>, encoding: Option<&str>| {
        (length.map(str::to_owned), encoding.map(str::to_owned))
    };
    assert_eq!(framing(Ask::get("lfs")).await, of(None, None));
    assert_eq!(framing(Ask::get("lfs").body("abc")).await, of(Some("3"), None));
    assert_eq!(framing(Ask::get("lfs").body("abc").chunked(2)).await, of(None, Some("chunked")));
    assert_eq!(framing(Ask::post("allowed")).await, of(Some("0"), None));
    assert_eq!(framing(Ask::post("allowed").body("abc")).await, of(Some("3"), None));
    assert_eq!(framing(Ask::post("allowed").body("abc").chunked(2)).await, of(None, Some("chunked")));
}

/// What was read in search of the credential is sent on as it was, with the length that is known
/// by then.
#[tokio::test]
async fn a_body_that_was_searched_is_sent_on_whole() {
    let stage = Stage::new().await;
    let padding = "x".repeat(100_000);
    let form = format!("a={padding}&secret_token=s3cret%0A&b=%zz_is_no_escape");
    let json = format!(r#"{{"a":"{padding}", "secret_token" : "s3cret"}}"#);
    let form = form.replace("%zz", "%20");
    for (ask, body) in [
        (Ask::post("allowed").form(&form), &form),
        (Ask::post("allowed").form(&form).chunked(1000), &form),
        (Ask::get("lfs").form(&form), &form),
        (Ask::get("lfs").form(&form).chunked(7), &form),
        (Ask::post("allowed").json(&json), &json),
        (Ask::post("allowed").json(&json).chunked(70_000), &json),
        (Ask::post("allowed").body(&form), &form),
    ] {
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!(answer.status, 200, "{answer}");
        assert!(seen.body == body.as_bytes(), "{}", seen.head);
        assert_eq!(seen.header("content-length"), Some(body.len().to_string().as_str()));
    }
    // The form of a read that fills the cache is the credential, and goes along.
    let ask = Ask::get("discover?key_id=1").form("secret_token=s3cret%0A").chunked(4);
    let (answer, seen) = stage.pass(&ask).await;
    assert_eq!(answer.cache_status(), "railgate; fwd=miss; stored");
    assert_eq!(seen.body, b"secret_token=s3cret%0A");
    assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"));
    let (answer, arrived) = stage.send_counting(&ask).await;
    assert_eq!((arrived, answer.is_hit()), (0, true), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_uploads_stream_through() {
    let stage = Stage::new().await;
    let body = noise(LARGE);
    for ask in [
        Ask::post("allowed").with_secret().body(&body),
        Ask::post("allowed").with_secret().body(&body).chunked(65_536),
        Ask::post("allowed").with_secret().body(&body).chunked(1_000),
    ] {
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!(answer.status, 200, "{answer}");
        assert!(seen.body == body, "the upload has changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_downloads_stream_through() {
    let stage = Stage::new().await;
    let body = noise(LARGE);
    let kind = "Content-Type: application/octet-stream\r\n";
    for (reply, framing) in [
        (Reply::new(200, kind, &body), "content-length"),
        (Reply::in_chunks(200, kind, &body, 65_536), "transfer-encoding"),
        (Reply::in_chunks(200, kind, &body, 999), "transfer-encoding"),
        (
            Reply::bytes(format!("HTTP/1.1 200 OK\r\n{kind}\r\n")).then(&body).then_close(),
            "transfer-encoding",
        ),
        (
            Reply::bytes(format!("HTTP/1.0 200 OK\r\n{kind}\r\n")).then(&body).then_close(),
            "transfer-encoding",
        ),
    ] {
        stage.rails.always(reply);
        // To a cacheable endpoint too: what it does not keep, it passes on as it comes.
        for ask in [Ask::get("lfs").with_secret(), Ask::get("check").with_secret()] {
            let (answer, _) = stage.pass(&ask).await;
            assert!(answer.status == 200 && answer.body == body, "the download has changed");
            assert!(answer.header(framing).is_some(), "{:?}", answer.headers);
        }
    }
}

/// Neither side has to be done before the other begins to see something.
#[tokio::test]
async fn bodies_are_not_held_back() {
    let stage = Stage::new().await;
    let valve = Valve::shut();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\n";
    stage.rails.always(Reply::bytes(head).then("first").then_wait(&valve).then("later"));
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&Ask::get("lfs").with_secret().to_bytes("keep-alive")).await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"first") {
        seen.extend(wire.some().await);
    }
    valve.open();
    while !seen.ends_with(b"firstlater") {
        seen.extend(wire.some().await);
    }

    // Upwards: Rails answers once it has the head, while the client still has all of its body.
    stage.rails.behave(Manners::Hasty, |_| Reply::json(200, "{}"));
    // One that says that it is small is read first, so that it can be sent again.
    for (ask, rest, is_held) in [
        (
            Ask::post("allowed").with_secret().body(b"hello").chunked(5),
            &b"5\r\nhello\r\n0\r\n\r\n"[..],
            false,
        ),
        (Ask::post("pages").body(b"hello"), b"hello", false),
        (Ask::post("allowed").with_secret().body(b"hello"), b"hello", true),
    ] {
        let (ask, before) = (ask.to_bytes("keep-alive"), stage.rails.count());
        assert!(ask.ends_with(rest));
        wire.write(&ask[..ask.len() - rest.len()]).await;
        if !is_held {
            stage.rails.has_got(before + 1).await;
        }
        wire.write(rest).await;
        assert_eq!(wire.answer().await.status, 200);
        assert_eq!(stage.rails.count(), before + 1);
    }
}

#[tokio::test]
async fn an_answer_without_a_body_has_none() {
    let stage = Stage::new().await;
    for (reply, status, length) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("HTTP/1.1 304 Not Modified\r\nETag: W/\"1\"\r\n\r\n", 304, None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, Some("0")),
        ("HTTP/1.1 500 Error\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 500, None),
    ] {
        stage.rails.always(Reply::bytes(reply));
        let mut wire = stage.gateway.tcp.connect().await;
        for _ in 0..2 {
            let answer = wire.exchange(&Ask::get("lfs").with_secret()).await;
            assert_eq!((answer.status, answer.header("content-length")), (status, length), "{answer}");
            assert_eq!(answer.body, b"");
        }
    }
}

/// Trailers that the client has not asked for do not disturb the next answer.
#[tokio::test]
async fn trailers_that_nobody_wants_end_here() {
    let stage = Stage::new().await;
    let body = chunked(b"hello", 2);
    let body = [&body[..body.len() - 2], b"X-Trailer: 1\r\n\r\n"].concat();
    let head = "HTTP/1.1 200 OK\r\nTrailer: X-Trailer\r\nTransfer-Encoding: chunked\r\n\r\n";
    stage.rails.always(Reply::bytes(head).then(body));
    let mut wire = stage.gateway.tcp.connect().await;
    for _ in 0..3 {
        let answer = wire.exchange(&Ask::get("lfs").with_secret()).await;
        assert_eq!((answer.text(), answer.header("trailer")), ("hello", Some("x-trailer")));
    }
}

/// A Rails that answers while it reads, and a client that reads nothing before it has sent all.
#[tokio::test]
async fn an_early_answer_does_not_hold_up_what_is_still_being_sent() {
    const LENGTH: usize = 8 * LARGE;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rails = Peer::parse(&listener.local_addr().unwrap().to_string());
    let setup = Setup::new();
    let gateway = Running::start(setup.settings(&rails));
    let mut wire = gateway.tcp.connect().await;
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let (mut reader, mut writer) = stream.split();
        let (mut seen, answer) = (vec![0; LENGTH], vec![b'a'; LENGTH]);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        let write = async { (writer.write_all(head.as_bytes()).await, writer.write_all(&answer).await) };
        let (read, written) = tokio::join!(reader.read_exact(&mut seen), write);
        read.unwrap();
        written.0.and(written.1).unwrap();
        assert!(seen == noise(LENGTH), "not the body of the client");
    };
    let asking = async {
        let ask = Ask::new("POST", "/api/v4/internal/anything").body(noise(LENGTH));
        wire.write(&ask.to_bytes("close")).await;
        assert!(wire.answer().await.body == vec![b'a'; LENGTH], "not the answer of Rails");
    };
    soon("both to have what they want", async { tokio::join!(answering, asking) }).await;
}
