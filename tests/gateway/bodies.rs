//! Bodies, byte for byte, in both directions, whatever their framing.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::client::{Address, Request, chunked, noise, within_deadline};
use super::fake_rails::{Behavior, Latch, Reply};
use super::harness::{Harness, RunningGateway, Setup};

const LARGE: usize = 5 * 1024 * 1024;

#[tokio::test]
async fn small_bodies_arrive_unchanged() {
    let harness = Harness::new().await;
    let odd: Vec<u8> = (0..=255).collect();
    for body in [&b""[..], b"x", b"\r\n\r\n0\r\n\r\n", &odd, b"GET / HTTP/1.1\r\n\r\n"] {
        for request in [
            Request::post("allowed").with_secret().body(body),
            Request::post("allowed").with_secret().body(body).chunked(1),
            Request::post("allowed").with_secret().body(body).chunked(1000),
            Request::new("PUT", "/api/v4/internal/kubernetes/modules/starboard_vulnerability")
                .with_kas_token()
                .body(body),
            Request::get("lfs").with_secret().body(body),
            Request::get("lfs").with_secret().body(body).chunked(3),
            Request::new("DELETE", "/api/v4/internal/anything").body(body).chunked(7),
        ] {
            let (response, seen) = harness.send_counting(&request).await;
            assert_eq!((response.status, seen), (200, 1), "{request}: {response}");
            let seen = harness.rails.last_request();
            assert_eq!(seen.body, body, "{request}: {}", seen.head);
            assert_eq!(seen.method, request.method);
        }
    }
}

/// A body other than the credential could change the response, so Rails gets it.
#[tokio::test]
async fn a_read_with_a_body_bypasses_the_cache() {
    let harness = Harness::new().await;
    let plain = Request::get("discover?key_id=1").with_secret();
    harness.send(&plain).await;
    for request in [
        plain.clone().header("Content-Type", "a/b").body("x"),
        plain.clone().body("x"),
        plain.clone().body("x").chunked(1),
        plain.clone().json("{}"),
        plain.clone().form("key_id=7"),
        plain.clone().form("secret_token=s3cret&key_id=7"),
    ] {
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!(response.cache_status(), "railgate; fwd=bypass; detail=request", "{request}");
        assert_eq!(seen.method, "GET");
        assert!(!seen.body.is_empty());
    }
    assert!(harness.send(&plain.body("")).await.is_hit());
}

/// A request without a body has no framing.
#[tokio::test]
async fn the_gateway_writes_its_own_framing() {
    let harness = Harness::new().await;
    let framing = async |request: Request| {
        let (_, seen) = harness.send_forwarded(&request.with_secret()).await;
        (
            seen.header("content-length").map(str::to_owned),
            seen.header("transfer-encoding").map(str::to_owned),
        )
    };
    let of = |length: Option<&str>, encoding: Option<&str>| {
        (length.map(str::to_owned), encoding.map(str::to_owned))
    };
    assert_eq!(framing(Request::get("lfs")).await, of(None, None));
    assert_eq!(framing(Request::get("lfs").body("abc")).await, of(Some("3"), None));
    assert_eq!(framing(Request::get("lfs").body("abc").chunked(2)).await, of(None, Some("chunked")));
    assert_eq!(framing(Request::post("allowed")).await, of(Some("0"), None));
    assert_eq!(framing(Request::post("allowed").body("abc")).await, of(Some("3"), None));
    assert_eq!(framing(Request::post("allowed").body("abc").chunked(2)).await, of(None, Some("chunked")));
}

/// The body that was read to find the credential is sent unchanged, with its length, which is known by then.
#[tokio::test]
async fn a_searched_body_is_forwarded_completely() {
    let harness = Harness::new().await;
    let padding = "x".repeat(100_000);
    let form = format!("a={padding}&secret_token=s3cret%0A&b=%zz_is_no_escape");
    let json = format!(r#"{{"a":"{padding}", "secret_token" : "s3cret"}}"#);
    let form = form.replace("%zz", "%20");
    for (request, body) in [
        (Request::post("allowed").form(&form), &form),
        (Request::post("allowed").form(&form).chunked(1000), &form),
        (Request::get("lfs").form(&form), &form),
        (Request::get("lfs").form(&form).chunked(7), &form),
        (Request::post("allowed").json(&json), &json),
        (Request::post("allowed").json(&json).chunked(70_000), &json),
        (Request::post("allowed").body(&form), &form),
    ] {
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!(response.status, 200, "{response}");
        assert!(seen.body == body.as_bytes(), "{}", seen.head);
        assert_eq!(seen.header("content-length"), Some(body.len().to_string().as_str()));
    }
    // The form of a cache fill is the credential, and is forwarded.
    let request = Request::get("discover?key_id=1").form("secret_token=s3cret%0A").chunked(4);
    let (response, seen) = harness.send_forwarded(&request).await;
    assert_eq!(response.cache_status(), "railgate; fwd=miss; stored");
    assert_eq!(seen.body, b"secret_token=s3cret%0A");
    assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"));
    let (response, arrived) = harness.send_counting(&request).await;
    assert_eq!((arrived, response.is_hit()), (0, true), "{response}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_uploads_are_streamed() {
    let harness = Harness::new().await;
    let body = noise(LARGE);
    for request in [
        Request::post("allowed").with_secret().body(&body),
        Request::post("allowed").with_secret().body(&body).chunked(65_536),
        Request::post("allowed").with_secret().body(&body).chunked(1_000),
    ] {
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!(response.status, 200, "{response}");
        assert!(seen.body == body, "the upload has changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_downloads_are_streamed() {
    let harness = Harness::new().await;
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
        harness.rails.respond_always(reply);
        // Also from a cacheable endpoint: what is not stored is streamed.
        for request in [Request::get("lfs").with_secret(), Request::get("check").with_secret()] {
            let (response, _) = harness.send_forwarded(&request).await;
            assert!(response.status == 200 && response.body == body, "the download has changed");
            assert!(response.header(framing).is_some(), "{:?}", response.headers);
        }
    }
}

/// Neither side has to finish before the other one gets the first bytes.
#[tokio::test]
async fn bodies_are_not_delayed() {
    let harness = Harness::new().await;
    let latch = Latch::closed();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\n";
    harness.rails.respond_always(Reply::bytes(head).then("first").then_wait(&latch).then("later"));
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&Request::get("lfs").with_secret().to_bytes("keep-alive")).await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"first") {
        seen.extend(connection.read_some().await);
    }
    latch.open();
    while !seen.ends_with(b"firstlater") {
        seen.extend(connection.read_some().await);
    }

    // Uploads: Rails answers after the head, before the client has sent its body.
    harness.rails.set_behavior(Behavior::RespondAfterHead, |_| Reply::json(200, "{}"));
    // A body with a small Content-Length is read first, so that it can be sent again; and that of a request that any
    // client can send, so that it takes no permit before it is there.
    for (request, rest, is_held) in [
        (
            Request::post("allowed").with_secret().body(b"hello").chunked(5),
            &b"5\r\nhello\r\n0\r\n\r\n"[..],
            false,
        ),
        (Request::post("pages").body(b"hello"), b"hello", true),
        (Request::post("allowed").with_secret().body(b"hello"), b"hello", true),
    ] {
        let (request, before) = (request.to_bytes("keep-alive"), harness.rails.request_count());
        assert!(request.ends_with(rest));
        connection.write(&request[..request.len() - rest.len()]).await;
        if !is_held {
            harness.rails.wait_for_requests(before + 1).await;
        }
        connection.write(rest).await;
        assert_eq!(connection.read_response().await.status, 200);
        assert_eq!(harness.rails.request_count(), before + 1);
    }
}

#[tokio::test]
async fn responses_without_a_body_stay_without() {
    let harness = Harness::new().await;
    for (reply, status, length) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("HTTP/1.1 304 Not Modified\r\nETag: W/\"1\"\r\n\r\n", 304, None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, Some("0")),
        ("HTTP/1.1 500 Error\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 500, None),
    ] {
        harness.rails.respond_always(Reply::bytes(reply));
        let mut connection = harness.gateway.tcp.connect().await;
        for _ in 0..2 {
            let response = connection.exchange(&Request::get("lfs").with_secret()).await;
            assert_eq!((response.status, response.header("content-length")), (status, length), "{response}");
            assert_eq!(response.body, b"");
        }
    }
}

/// They do not disturb the next response.
#[tokio::test]
async fn unrequested_trailers_are_dropped() {
    let harness = Harness::new().await;
    let body = chunked(b"hello", 2);
    let body = [&body[..body.len() - 2], b"X-Trailer: 1\r\n\r\n"].concat();
    let head = "HTTP/1.1 200 OK\r\nTrailer: X-Trailer\r\nTransfer-Encoding: chunked\r\n\r\n";
    harness.rails.respond_always(Reply::bytes(head).then(body));
    let mut connection = harness.gateway.tcp.connect().await;
    for _ in 0..3 {
        let response = connection.exchange(&Request::get("lfs").with_secret()).await;
        assert_eq!((response.text(), response.header("trailer")), ("hello", Some("x-trailer")));
    }
}

/// Rails responds while it reads, and the client reads nothing before it has sent everything.
#[tokio::test]
async fn an_early_response_does_not_block_the_upload() {
    const LENGTH: usize = 8 * LARGE;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rails = Address::parse(&listener.local_addr().unwrap().to_string());
    let setup = Setup::new();
    let gateway = RunningGateway::start(setup.settings(&rails));
    let mut connection = gateway.tcp.connect().await;
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let (mut reader, mut writer) = stream.split();
        let (mut seen, response) = (vec![0; LENGTH], vec![b'a'; LENGTH]);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        let write = async { (writer.write_all(head.as_bytes()).await, writer.write_all(&response).await) };
        let (read, written) = tokio::join!(reader.read_exact(&mut seen), write);
        read.unwrap();
        written.0.and(written.1).unwrap();
        assert!(seen == noise(LENGTH), "not the body of the client");
    };
    let asking = async {
        let request = Request::new("POST", "/api/v4/internal/anything").body(noise(LENGTH));
        connection.write(&request.to_bytes("close")).await;
        assert!(connection.read_response().await.body == vec![b'a'; LENGTH], "not the answer of Rails");
    };
    within_deadline("both to have what they want", async { tokio::join!(answering, asking) }).await;
}
