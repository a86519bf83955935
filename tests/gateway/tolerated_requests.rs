//! Unusual requests with only one meaning are accepted, and forwarded in the usual form.

use super::client::{Connection, Request, eventually};
use super::credentials::{ENCODED_SECRET, SECRET_HEADER};
use super::fake_rails::{Latch, ReceivedRequest, Reply};
use super::harness::{Harness, Setup};
use super::log;

const ALLOWED: &str = "/api/v4/internal/allowed";

/// The bytes of a request with a valid credential.
fn authenticated_bytes(first: &str, lines: &[&str], body: &str) -> Vec<u8> {
    let lines: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
    format!("{first}\r\n{SECRET_HEADER}: {ENCODED_SECRET}\r\n{lines}\r\n{body}").into_bytes()
}

/// Sends it twice over one connection, and returns what Rails got.
async fn send_twice(harness: &Harness, bytes: &[u8]) -> ReceivedRequest {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let before = harness.rails.request_count();
    let mut connection = harness.gateway.tcp.connect().await;
    for _ in 0..2 {
        connection.write(bytes).await;
        assert_eq!(status_of_next(&mut connection, &shown).await, 200, "{shown}");
    }
    assert_eq!(harness.rails.request_count() - before, 2, "{shown}");
    assert_eq!(harness.rails.incomplete_requests(), Vec::<Vec<u8>>::new(), "{shown}");
    harness.rails.last_request()
}

async fn status_of_next(connection: &mut Connection, shown: &str) -> u16 {
    connection.try_read_response().await.unwrap_or_else(|incomplete| panic!("{incomplete}: {shown}")).status
}

/// Clients that append a path to a URL with a slash at its end send more than one; what follows is not a
/// host.
#[tokio::test]
async fn leading_slashes_are_merged() {
    let harness = Harness::new().await;
    for slashes in ["/", "//", "///", "////////"] {
        for (target, arrived) in [
            (format!("{slashes}api/v4/internal/allowed?a=//b"), format!("{ALLOWED}?a=//b")),
            (format!("http://gw{slashes}api/v4/internal/allowed"), ALLOWED.to_owned()),
        ] {
            let bytes = authenticated_bytes(
                &format!("POST {target} HTTP/1.1"),
                &["Host: gw", "Content-Length: 0"],
                "",
            );
            let seen = send_twice(&harness, &bytes).await;
            assert_eq!((seen.target, seen.method.as_str()), (arrived, "POST"));
        }
        // The same cache entry and the same credential.
        let request = Request::new("GET", &format!("{slashes}api/v4/internal/discover?key_id=1"));
        let (response, arrived) = harness.send_counting(&request.clone().with_secret()).await;
        assert_eq!((response.status, response.is_hit(), arrived == 0), (200, slashes != "/", slashes != "/"));
        harness.send(&request).await.assert_unauthorized();
    }
    let before = harness.rails.request_count();
    for target in ["//evil.example/api/v4/internal/check", "//gateway.example:8181/x", "//", "//?a=b", "///x"]
    {
        harness.send(&Request::new("GET", target).with_secret()).await.assert_failure(404);
    }
    assert_eq!(harness.rails.request_count(), before);
}

#[tokio::test]
async fn slashes_after_the_relative_root_are_merged() {
    let setup = Setup::new().root_path("/gitlab").set("upstream.forward_prefixes", r#"["/api/v4/geo/"]"#);
    let harness = setup.start().await;
    for target in [
        "//api/v4/internal/allowed?a=b",
        "//gitlab/api/v4/internal/allowed?a=b",
        "/gitlab//api/v4/internal/allowed?a=b",
        "//gitlab////api/v4/internal/allowed?a=b",
    ] {
        let (_, seen) = harness.send_forwarded(&Request::new("POST", target).with_secret()).await;
        assert_eq!(seen.target, "/gitlab/api/v4/internal/allowed?a=b", "{target}");
        harness.send(&Request::new("POST", target)).await.assert_unauthorized();
    }
    let (_, seen) = harness.send_forwarded(&Request::new("GET", "/gitlab//api/v4/geo/x")).await;
    assert_eq!(seen.target, "/gitlab/api/v4/geo/x");
    for target in ["/gitlab/api//v4/internal/check", "/gitlab//api//v4/internal/check", "/git//lab/api"] {
        let (response, arrived) = harness.send_counting(&Request::new("GET", target).with_secret()).await;
        assert_eq!((response.status, arrived), (400, 0), "{target}");
    }
}

/// The target is logged as it is matched and sent.
#[tokio::test]
async fn merged_slashes_are_logged() {
    let harness = Harness::new().await;
    let request = Request::new("POST", "///api/v4/internal/allowed?key_id=4711").with_secret();
    harness.send(&request.header("X-Request-Id", "of-slashes")).await;
    let lines = log::wait_for_lines("\"correlation_id\":\"of-slashes\"", 1).await;
    assert!(lines.iter().any(|line| line.contains("/api/v4/internal/allowed?key_id=4711")), "{lines:?}");
    assert!(lines.iter().all(|line| !line.contains("//api")), "{lines:?}");
}

#[tokio::test]
async fn absolute_form_targets_are_accepted() {
    let harness = Harness::new().await;
    for (target, host, forwarded) in [
        ("http://gw/api/v4/internal/allowed?a=b", "gw", "gw"),
        ("http://gw:8181/api/v4/internal/allowed?a=b", "gw:8181", "gw:8181"),
        ("HTTP://GW/api/v4/internal/allowed?a=b", "gw", "gw"),
        ("http://gw:80/api/v4/internal/allowed?a=b", "gw", "gw"),
        ("http://gw/api/v4/internal/allowed?a=b", "gw:80", "gw:80"),
        ("http://[::1]:81/api/v4/internal/allowed?a=b", "[::1]:81", "[::1]:81"),
        // Origin-form, and a host with a colon but no port.
        ("/api/v4/internal/allowed?a=b", "localhost:", "localhost"),
        ("/api/v4/internal/allowed?a=b", "[::1]:", "[::1]"),
        ("http://gw:/api/v4/internal/allowed?a=b", "gw", "gw"),
    ] {
        let host_line = format!("Host: {host}");
        let bytes =
            authenticated_bytes(&format!("POST {target} HTTP/1.1"), &[&host_line, "Content-Length: 2"], "{}");
        let seen = send_twice(&harness, &bytes).await;
        assert_eq!(
            (seen.target.as_str(), seen.body.as_slice()),
            ("/api/v4/internal/allowed?a=b", &b"{}"[..])
        );
        assert_eq!(seen.header("x-forwarded-host"), Some(forwarded), "{target}");
        let host = seen.header("host").unwrap();
        assert!(host.starts_with("127.0.0.1:"), "{host}");
    }
    let mut connection = harness.gateway.tcp.connect().await;
    for target in ["http://gw", "http://gw?a=b", "http://gw/", "http://gw/api/v4/projects"] {
        connection.write(&authenticated_bytes(&format!("GET {target} HTTP/1.1"), &["Host: gw"], "")).await;
        assert_eq!(status_of_next(&mut connection, target).await, 404, "{target}");
    }
}

/// HTTP/1.0 has no `Host`.
#[tokio::test]
async fn an_http10_request_needs_no_host() {
    let harness = Harness::new().await;
    for (connection, forwarded) in [("close", None), ("keep-alive", None), ("close", Some("evil.example"))] {
        let connection = format!("Connection: {connection}");
        let forwarded = forwarded.map(|host| format!("X-Forwarded-Host: {host}"));
        let lines: Vec<&str> =
            [connection.as_str(), "Content-Length: 2"].into_iter().chain(forwarded.as_deref()).collect();
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&authenticated_bytes(&format!("POST {ALLOWED} HTTP/1.0"), &lines, "{}")).await;
        assert_eq!(status_of_next(&mut connection, "an old request").await, 200);
        let seen = harness.rails.last_request();
        assert!(seen.header("host").unwrap().starts_with("127.0.0.1:"), "{}", seen.head);
        assert_eq!(seen.header_values("x-forwarded-host"), Vec::<&str>::new(), "{}", seen.head);
    }
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(b"GET /api/v4/internal/check HTTP/1.0\r\n\r\n").await;
    connection.read_response().await.assert_unauthorized();
}

/// As load balancers send them by default.
#[tokio::test]
async fn health_checks_of_load_balancers_are_answered() {
    let mut harness = Harness::new().await;
    eventually("the gateway to be ready", async || {
        let response = harness.gateway.admin.send(&Request::new("GET", "/ready")).await;
        (response.status == 200).then_some(())
    })
    .await;
    let status_of = async |harness: &Harness, request: &str| {
        let mut connection = harness.gateway.admin.connect().await;
        connection.write(request.as_bytes()).await;
        let response = connection
            .try_read_response()
            .await
            .unwrap_or_else(|incomplete| panic!("{incomplete}: {request:?}"));
        (response.status, response.body.len(), response.header("allow").map(str::to_owned))
    };
    let methods = Some("GET, HEAD, OPTIONS".to_owned());
    for path in ["/", "/ready", "/live"] {
        for rest in [
            " HTTP/1.0\r\n\r\n",
            " HTTP/1.0\r\nConnection: close\r\n\r\n",
            " HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        ] {
            let asked = status_of(&harness, &format!("OPTIONS {path}{rest}")).await;
            assert_eq!(asked, (204, 0, methods.clone()), "{path}{rest}");
        }
    }
    for (request, status) in [
        ("GET /ready HTTP/1.0\r\n\r\n", 200),
        ("GET //ready HTTP/1.0\r\n\r\n", 200),
        ("GET http://127.0.0.1/ready HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", 200),
        ("\r\nGET /ready HTTP/1.1\r\nHost: localhost:\r\n\r\n", 200),
        ("GET /metrics HTTP/1.1\r\nHost: localhost:\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 200),
        ("GET /nothing HTTP/1.0\r\n\r\n", 404),
        ("OPTIONS /metrics HTTP/1.0\r\n\r\n", 405),
        ("OPTIONS /purge HTTP/1.0\r\n\r\n", 405),
        ("OPTIONS * HTTP/1.0\r\n\r\n", 400),
    ] {
        assert_eq!(status_of(&harness, request).await.0, status, "{request:?}");
    }
    // A draining gateway is not ready, for every form of the check.
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut running = harness.start_request(&Request::post("allowed").with_secret()).await;
    harness.rails.wait_for_requests(1).await;
    harness.gateway.drain();
    eventually("the gateway to drain", async || {
        (status_of(&harness, "OPTIONS / HTTP/1.0\r\n\r\n").await.0 == 503).then_some(())
    })
    .await;
    assert_eq!(status_of(&harness, "OPTIONS /ready HTTP/1.0\r\n\r\n").await.0, 503);
    assert_eq!(status_of(&harness, "OPTIONS /live HTTP/1.0\r\n\r\n").await.0, 204);
    latch.open();
    assert_eq!(running.read_response().await.status, 200);
    assert!(harness.gateway.wait_for_end().await);
}

#[tokio::test]
async fn an_empty_line_before_a_request_is_skipped() {
    let harness = Harness::new().await;
    let request =
        |nth: usize| Request::post(&format!("allowed?n={nth}")).with_secret().body(format!("body {nth}"));
    // On a new connection, behind a body, and split at any place.
    for size in [1, 2, 3, 10_000] {
        let mut connection = harness.gateway.unix.connect().await;
        let bytes: Vec<u8> =
            (0..3).flat_map(|nth| [b"\r\n".to_vec(), request(nth).to_bytes("keep-alive")].concat()).collect();
        for piece in bytes.chunks(size) {
            connection.write(piece).await;
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            assert_eq!(status_of_next(&mut connection, "behind an empty line").await, 200);
        }
        let seen = harness.rails.requests();
        for (nth, seen) in seen[seen.len() - 3..].iter().enumerate() {
            assert_eq!(seen.body, format!("body {nth}").into_bytes());
            assert_eq!(seen.target, format!("/api/v4/internal/allowed?n={nth}"));
        }
    }
}

/// Old clients send an empty line after their last body. No 408 is sent for it.
#[tokio::test]
async fn an_empty_line_alone_does_not_begin_a_request() {
    let setup = Setup::new().text("limits.head_timeout", "1ms").text("limits.first_byte_timeout", "200ms");
    let harness = setup.text("limits.idle_timeout", "300ms").start().await;
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(b"\r\n").await;
    assert_eq!(connection.read_to_end().await, b"", "closed as an idle one");
}

/// A server may ignore an offer (RFC 9110 §7.8): the response is HTTP/1.1, and the offer is not forwarded.
#[tokio::test]
async fn upgrade_offers_are_ignored() {
    let harness = Harness::new().await;
    for offer in [
        &["Upgrade: TLS/1.2"][..],
        &["Connection: upgrade", "Upgrade: TLS/1.2"],
        &["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
        &["Connection: upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        &["Connection: upgrade", "Upgrade: TLS/1.2, HTTP/2.0, x/1"],
        &["Connection: upgrade", "Upgrade: a/1", "Upgrade: b/2"],
        &["Connection: upgrade", "Upgrade:"],
        &["Connection: keep-alive, upgrade", "Upgrade: \"odd\""],
    ] {
        for body in [&["Content-Length: 5"][..], &["Transfer-Encoding: chunked"]] {
            let framed = if body[0].starts_with('C') { "hello" } else { "5\r\nhello\r\n0\r\n\r\n" };
            let bytes = authenticated_bytes(
                &format!("POST {ALLOWED} HTTP/1.1"),
                &[&["Host: a"], offer, body].concat(),
                framed,
            );
            let seen = send_twice(&harness, &bytes).await;
            assert_eq!(seen.body, b"hello", "{offer:?}");
            for name in ["upgrade", "connection", "http2-settings"] {
                assert_eq!(seen.header_values(name), Vec::<&str>::new(), "{offer:?}: {}", seen.head);
            }
        }
        // Cache hits too.
        let bytes =
            authenticated_bytes("GET /api/v4/internal/check HTTP/1.1", &[&["Host: a"], offer].concat(), "");
        let mut connection = harness.gateway.tcp.connect().await;
        for _ in 0..2 {
            connection.write(&bytes).await;
            assert_eq!(status_of_next(&mut connection, "a look-up").await, 200);
        }
    }
}

/// They are for the next server only (RFC 9112 §7.1.1), which has no use for them.
#[tokio::test]
async fn chunk_extensions_are_read_and_dropped() {
    let harness = Harness::new().await;
    for body in [
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "5;a\r\nhello\r\n0;last\r\n\r\n",
        "2;a=\"b;c\"\r\nhe\r\n3 ; d = e ;f\r\nllo\r\n0\r\n\r\n",
        "1;a\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1;b\r\nl\r\n1\r\no\r\n0\r\n\r\n",
        "5;a=\"\\\"\\\\ 0\"\r\nhello\r\n000;b=c\r\nX-Trailer: 1\r\n\r\n",
    ] {
        let typed = "Content-Type: application/x-www-form-urlencoded";
        let lines = ["Host: a", typed, "Transfer-Encoding: chunked"];
        let seen =
            send_twice(&harness, &authenticated_bytes(&format!("POST {ALLOWED} HTTP/1.1"), &lines, body))
                .await;
        assert_eq!(seen.body, b"hello", "{body:?}");
        assert!(!seen.head.contains(';'), "{}", seen.head);
    }
    // Also where the body is searched for the credential.
    let form = "6;a=b\r\nsecret\r\nd;c\r\n_token=s3cret\r\n0\r\n\r\n";
    let head = format!("POST {ALLOWED} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(format!("{head}{form}").as_bytes()).await;
    assert_eq!(status_of_next(&mut connection, form).await, 200);
    assert_eq!(harness.rails.last_request().body, b"secret_token=s3cret");
    // At the limit, and beyond it.
    for (count, status) in [(128, 200), (129, 400)] {
        let chunk = format!("1;{}\r\na\r\n", "b".repeat(127));
        let body = chunk.repeat(count) + "0\r\n\r\n";
        let mut connection = harness.gateway.tcp.connect().await;
        let lines = ["Host: a", "Transfer-Encoding: chunked"];
        connection.write(&authenticated_bytes(&format!("POST {ALLOWED} HTTP/1.1"), &lines, &body)).await;
        assert_eq!(status_of_next(&mut connection, "many").await, status, "{count}");
    }
}

/// Clients forget to encode them, and every reader takes them literally.
#[tokio::test]
async fn unencoded_characters_in_a_query_are_accepted() {
    let harness = Harness::new().await;
    for query in [
        "?a={b}",
        "?a=b|c",
        "?a=^`",
        "?{|}^`={|}^`",
        "?|",
        "?a[]={}&`",
        "?a=\\",
        "?\\=C:\\n",
        "?a=\u{e9}",
        "?\u{43a}\u{43b}\u{44e}\u{447}=\u{1f511}&b=%c3%a9",
    ] {
        let request = Request::post(&format!("allowed{query}")).with_secret();
        let (_, seen) = harness.send_forwarded(&request).await;
        assert_eq!(seen.target, request.target);
    }
    let below = Setup::new().root_path("/gitlab").start().await;
    let request = Request::post("allowed?{|}^`={|}^`\\\u{e9}").with_secret();
    assert_eq!(below.send_forwarded(&request).await.1.target, format!("/gitlab{}", request.target));
    // They are not canonical for the cache.
    for key in ["discover?username=a|b", "discover?username=a\\", "discover?username=\u{e9}"] {
        for _ in 0..2 {
            let (response, seen) = harness.send_forwarded(&Request::get(key).with_secret()).await;
            assert_eq!(seen.target, format!("/api/v4/internal/{key}"), "{response}");
        }
    }
}

/// For Gitaly's longest request, if the operator has configured Puma for it.
#[tokio::test]
async fn a_long_query_is_accepted_within_the_configured_limit() {
    let pools: Vec<String> = (0..500)
        .map(|nth| format!("disk_paths%5B%5D=%40pools/{:02x}/{:02x}/{nth:064x}.git", nth % 256, nth / 256))
        .collect();
    let long = Request::get(&format!("gitaly/object_pool_members?storage=default&{}", pools.join("&")));
    assert!(long.target.len() > 50_000 && long.target.len() < 60 * 1024, "{}", long.target.len());
    let setup = Setup::new().text("limits.target", "60KiB").text("limits.head", "64KiB");
    let harness = setup.start().await;
    let (_, seen) = harness.send_forwarded(&long.clone().with_secret()).await;
    assert_eq!(seen.target, long.target);
    harness.send(&long).await.assert_unauthorized();
    let of = |path: usize, query: usize| {
        Request::new(
            "POST",
            &format!("{ALLOWED}{}?{}", "a".repeat(path - ALLOWED.len()), "b".repeat(query - 1)),
        )
    };
    for (request, status) in [
        (of(1024, 59 * 1024), 200),
        (of(ALLOWED.len(), 59 * 1024), 200),
        (of(ALLOWED.len(), 59 * 1024 + 1), 414),
        (of(2048, 58 * 1024 + 1), 414),
        (of(7 * 1024, 1), 200),
        (of(7 * 1024 + 1, 1), 414),
    ] {
        let (response, arrived) = harness.send_counting(&request.with_secret()).await;
        assert_eq!((response.status, arrived), (status, usize::from(status == 200)), "{response}");
    }
    // The default limit is that of Puma's default build.
    let harness = Harness::new().await;
    let (response, arrived) = harness.send_counting(&long.with_secret()).await;
    assert_eq!((response.status, arrived), (431, 0), "{response}");
    let harness = Setup::new().text("limits.head", "64KiB").text("limits.target", "4KiB").start().await;
    for (request, status) in
        [(of(1024, 3 * 1024), 200), (of(1024, 3 * 1024 + 1), 414), (of(4 * 1024 + 1, 1), 414)]
    {
        assert_eq!(harness.send(&request.with_secret()).await.status, status);
    }
}
