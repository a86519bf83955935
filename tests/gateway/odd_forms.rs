//! Requests that are odd and have one meaning all the same: they are taken, and go on to Rails in the usual form.

use super::client::{Ask, Wire, eventually};
use super::credentials::{SECRET, SECRET_HEADER};
use super::fake::{Reply, Request, Valve};
use super::log;
use super::stage::{Setup, Stage};

const ALLOWED: &str = "/api/v4/internal/allowed";

/// A request with a credential, byte for byte.
fn raw(first: &str, lines: &[&str], body: &str) -> Vec<u8> {
    let lines: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
    format!("{first}\r\n{SECRET_HEADER}: {SECRET}\r\n{lines}\r\n{body}").into_bytes()
}

/// Sends it over one connection, twice, and shows what Rails saw of it.
async fn pass(stage: &Stage, bytes: &[u8]) -> Request {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let before = stage.rails.count();
    let mut wire = stage.gateway.tcp.connect().await;
    for _ in 0..2 {
        wire.write(bytes).await;
        assert_eq!(answered(&mut wire, &shown).await, 200, "{shown}");
    }
    assert_eq!(stage.rails.count() - before, 2, "{shown}");
    assert_eq!(stage.rails.fragments(), Vec::<Vec<u8>>::new(), "{shown}");
    stage.rails.last()
}

async fn answered(wire: &mut Wire, shown: &str) -> u16 {
    wire.try_answer().await.unwrap_or_else(|cut| panic!("{cut}: {shown}")).status
}

/// Clients that put a path behind a URL that ends in a slash send more of them: no host is meant by what follows.
#[tokio::test]
async fn slashes_in_front_of_a_path_are_one() {
    let stage = Stage::new().await;
    for slashes in ["/", "//", "///", "////////"] {
        for (target, arrived) in [
            (format!("{slashes}api/v4/internal/allowed?a=//b"), format!("{ALLOWED}?a=//b")),
            (format!("http://gw{slashes}api/v4/internal/allowed"), ALLOWED.to_owned()),
        ] {
            let bytes = raw(&format!("POST {target} HTTP/1.1"), &["Host: gw", "Content-Length: 0"], "");
            let seen = pass(&stage, &bytes).await;
            assert_eq!((seen.target, seen.method.as_str()), (arrived, "POST"));
        }
        // It is the same question, and the same endpoint: no way around its credential.
        let ask = Ask::new("GET", &format!("{slashes}api/v4/internal/discover?key_id=1"));
        let (answer, arrived) = stage.send_counting(&ask.clone().with_secret()).await;
        assert_eq!((answer.status, answer.is_hit(), arrived == 0), (200, slashes != "/", slashes != "/"));
        stage.send(&ask).await.assert_unauthorized();
    }
    let before = stage.rails.count();
    for target in ["//evil.example/api/v4/internal/check", "//gateway.example:8181/x", "//", "//?a=b", "///x"]
    {
        stage.send(&Ask::new("GET", target).with_secret()).await.assert_failure(404);
    }
    assert_eq!(stage.rails.count(), before);
}

#[tokio::test]
async fn slashes_behind_the_root_are_one() {
    let setup = Setup::new().below("/gitlab").set("upstream.forward_prefixes", r#"["/api/v4/geo/"]"#);
    let stage = setup.start().await;
    for target in [
        "//api/v4/internal/allowed?a=b",
        "//gitlab/api/v4/internal/allowed?a=b",
        "/gitlab//api/v4/internal/allowed?a=b",
        "//gitlab////api/v4/internal/allowed?a=b",
    ] {
        let (_, seen) = stage.pass(&Ask::new("POST", target).with_secret()).await;
        assert_eq!(seen.target, "/gitlab/api/v4/internal/allowed?a=b", "{target}");
        stage.send(&Ask::new("POST", target)).await.assert_unauthorized();
    }
    let (_, seen) = stage.pass(&Ask::new("GET", "/gitlab//api/v4/geo/x")).await;
    assert_eq!(seen.target, "/gitlab/api/v4/geo/x");
    for target in ["/gitlab/api//v4/internal/check", "/gitlab//api//v4/internal/check", "/git//lab/api"] {
        let (answer, arrived) = stage.send_counting(&Ask::new("GET", target).with_secret()).await;
        assert_eq!((answer.status, arrived), (400, 0), "{target}");
    }
}

/// What is logged is what is matched and sent.
#[tokio::test]
async fn the_log_shows_one_slash() {
    let stage = Stage::new().await;
    let ask = Ask::new("POST", "///api/v4/internal/allowed?key_id=4711").with_secret();
    stage.send(&ask.header("X-Request-Id", "of-slashes")).await;
    let lines = log::mentioning("\"correlation_id\":\"of-slashes\"", 1).await;
    assert!(lines.iter().any(|line| line.contains("/api/v4/internal/allowed?key_id=4711")), "{lines:?}");
    assert!(lines.iter().all(|line| !line.contains("//api")), "{lines:?}");
}

#[tokio::test]
async fn a_target_may_name_the_host() {
    let stage = Stage::new().await;
    for (target, host, forwarded) in [
        ("http://gw/api/v4/internal/allowed?a=b", "gw", "gw"),
        ("http://gw:8181/api/v4/internal/allowed?a=b", "gw:8181", "gw:8181"),
        ("HTTP://GW/api/v4/internal/allowed?a=b", "gw", "gw"),
        ("http://gw:80/api/v4/internal/allowed?a=b", "gw", "gw"),
        ("http://gw/api/v4/internal/allowed?a=b", "gw:80", "gw:80"),
        ("http://[::1]:81/api/v4/internal/allowed?a=b", "[::1]:81", "[::1]:81"),
        // As it is, with a colon and no port.
        ("/api/v4/internal/allowed?a=b", "localhost:", "localhost"),
        ("/api/v4/internal/allowed?a=b", "[::1]:", "[::1]"),
        ("http://gw:/api/v4/internal/allowed?a=b", "gw", "gw"),
    ] {
        let host_line = format!("Host: {host}");
        let bytes = raw(&format!("POST {target} HTTP/1.1"), &[&host_line, "Content-Length: 2"], "{}");
        let seen = pass(&stage, &bytes).await;
        assert_eq!(
            (seen.target.as_str(), seen.body.as_slice()),
            ("/api/v4/internal/allowed?a=b", &b"{}"[..])
        );
        assert_eq!(seen.header("x-forwarded-host"), Some(forwarded), "{target}");
        let host = seen.header("host").unwrap();
        assert!(host.starts_with("127.0.0.1:"), "{host}");
    }
    let mut wire = stage.gateway.tcp.connect().await;
    for target in ["http://gw", "http://gw?a=b", "http://gw/", "http://gw/api/v4/projects"] {
        wire.write(&raw(&format!("GET {target} HTTP/1.1"), &["Host: gw"], "")).await;
        assert_eq!(answered(&mut wire, target).await, 404, "{target}");
    }
}

/// Of HTTP/1.0, which had none.
#[tokio::test]
async fn an_old_request_needs_no_host() {
    let stage = Stage::new().await;
    for (connection, forwarded) in [("close", None), ("keep-alive", None), ("close", Some("evil.example"))] {
        let connection = format!("Connection: {connection}");
        let forwarded = forwarded.map(|host| format!("X-Forwarded-Host: {host}"));
        let lines: Vec<&str> =
            [connection.as_str(), "Content-Length: 2"].into_iter().chain(forwarded.as_deref()).collect();
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&raw(&format!("POST {ALLOWED} HTTP/1.0"), &lines, "{}")).await;
        assert_eq!(answered(&mut wire, "an old request").await, 200);
        let seen = stage.rails.last();
        assert!(seen.header("host").unwrap().starts_with("127.0.0.1:"), "{}", seen.head);
        assert_eq!(seen.all("x-forwarded-host"), Vec::<&str>::new(), "{}", seen.head);
    }
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(b"GET /api/v4/internal/check HTTP/1.0\r\n\r\n").await;
    wire.answer().await.assert_unauthorized();
}

/// What load balancers send by default.
#[tokio::test]
async fn load_balancers_ask_the_operators_listener_in_their_way() {
    let mut stage = Stage::new().await;
    eventually("the gateway to be ready", async || {
        let answer = stage.gateway.admin.send(&Ask::new("GET", "/ready")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    let ask = async |stage: &Stage, request: &str| {
        let mut wire = stage.gateway.admin.connect().await;
        wire.write(request.as_bytes()).await;
        let answer = wire.try_answer().await.unwrap_or_else(|cut| panic!("{cut}: {request:?}"));
        (answer.status, answer.body.len(), answer.header("allow").map(str::to_owned))
    };
    let methods = Some("GET, HEAD, OPTIONS".to_owned());
    for path in ["/", "/ready", "/live"] {
        for rest in [
            " HTTP/1.0\r\n\r\n",
            " HTTP/1.0\r\nConnection: close\r\n\r\n",
            " HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        ] {
            let asked = ask(&stage, &format!("OPTIONS {path}{rest}")).await;
            assert_eq!(asked, (204, 0, methods.clone()), "{path}{rest}");
        }
    }
    for (request, status) in [
        ("GET /ready HTTP/1.0\r\n\r\n", 200),
        ("GET //ready HTTP/1.0\r\n\r\n", 200),
        ("GET http://127.0.0.1/ready HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", 200),
        ("\r\nGET /ready HTTP/1.1\r\nHost: localhost:\r\n\r\n", 200),
        ("GET /metrics HTTP/1.1\r\nHost: localhost:\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 404),
        ("OPTIONS /metrics HTTP/1.0\r\n\r\n", 405),
        ("OPTIONS /purge HTTP/1.0\r\n\r\n", 405),
        ("OPTIONS * HTTP/1.0\r\n\r\n", 400),
    ] {
        assert_eq!(ask(&stage, request).await.0, status, "{request:?}");
    }
    // One that drains is not ready, in whichever way it is asked.
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut running = stage.begin(&Ask::post("allowed").with_secret()).await;
    stage.rails.has_got(1).await;
    stage.gateway.drain();
    eventually("the gateway to drain", async || {
        (ask(&stage, "OPTIONS / HTTP/1.0\r\n\r\n").await.0 == 503).then_some(())
    })
    .await;
    assert_eq!(ask(&stage, "OPTIONS /ready HTTP/1.0\r\n\r\n").await.0, 503);
    assert_eq!(ask(&stage, "OPTIONS /live HTTP/1.0\r\n\r\n").await.0, 204);
    valve.open();
    assert_eq!(running.answer().await.status, 200);
    assert!(stage.gateway.ended().await);
}

#[tokio::test]
async fn an_empty_line_in_front_of_a_request_is_nothing() {
    let stage = Stage::new().await;
    let ask = |nth: usize| Ask::post(&format!("allowed?n={nth}")).with_secret().body(format!("body {nth}"));
    // On a new connection, behind a body, and cut at any place.
    for size in [1, 2, 3, 10_000] {
        let mut wire = stage.gateway.unix.connect().await;
        let bytes: Vec<u8> =
            (0..3).flat_map(|nth| [b"\r\n".to_vec(), ask(nth).to_bytes("keep-alive")].concat()).collect();
        for piece in bytes.chunks(size) {
            wire.write(piece).await;
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            assert_eq!(answered(&mut wire, "behind an empty line").await, 200);
        }
        let seen = stage.rails.requests();
        for (nth, seen) in seen[seen.len() - 3..].iter().enumerate() {
            assert_eq!(seen.body, format!("body {nth}").into_bytes());
            assert_eq!(seen.target, format!("/api/v4/internal/allowed?n={nth}"));
        }
    }
}

/// An old client's line behind its last body begins no request, and nothing is said about one that does not come.
#[tokio::test]
async fn an_empty_line_alone_begins_no_request() {
    let setup = Setup::new().text("limits.head_timeout", "1ms").text("limits.first_byte_timeout", "200ms");
    let stage = setup.text("limits.idle_timeout", "300ms").start().await;
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(b"\r\n").await;
    assert_eq!(wire.rest().await, b"", "closed as an idle one");
}

/// What a client offers, a server need not take (RFC 9110 §7.8): it is answered in HTTP/1.1, and Rails is not
/// told of the offer.
#[tokio::test]
async fn offers_of_another_protocol_are_ignored() {
    let stage = Stage::new().await;
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
            let bytes =
                raw(&format!("POST {ALLOWED} HTTP/1.1"), &[&["Host: a"], offer, body].concat(), framed);
            let seen = pass(&stage, &bytes).await;
            assert_eq!(seen.body, b"hello", "{offer:?}");
            for name in ["upgrade", "connection", "http2-settings"] {
                assert_eq!(seen.all(name), Vec::<&str>::new(), "{offer:?}: {}", seen.head);
            }
        }
        // From memory too.
        let bytes = raw("GET /api/v4/internal/check HTTP/1.1", &[&["Host: a"], offer].concat(), "");
        let mut wire = stage.gateway.tcp.connect().await;
        for _ in 0..2 {
            wire.write(&bytes).await;
            assert_eq!(answered(&mut wire, "a look-up").await, 200);
        }
    }
}

/// They say something to the next server only (RFC 9112 §7.1.1), and it has no use for them.
#[tokio::test]
async fn extensions_of_chunks_are_read_and_dropped() {
    let stage = Stage::new().await;
    for body in [
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "5;a\r\nhello\r\n0;last\r\n\r\n",
        "2;a=\"b;c\"\r\nhe\r\n3 ; d = e ;f\r\nllo\r\n0\r\n\r\n",
        "1;a\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1;b\r\nl\r\n1\r\no\r\n0\r\n\r\n",
        "5;a=\"\\\"\\\\ 0\"\r\nhello\r\n000;b=c\r\nX-Trailer: 1\r\n\r\n",
    ] {
        let typed = "Content-Type: application/x-www-form-urlencoded";
        let lines = ["Host: a", typed, "Transfer-Encoding: chunked"];
        let seen = pass(&stage, &raw(&format!("POST {ALLOWED} HTTP/1.1"), &lines, body)).await;
        assert_eq!(seen.body, b"hello", "{body:?}");
        assert!(!seen.head.contains(';'), "{}", seen.head);
    }
    // Where the body is searched for the credential, too.
    let form = "6;a=b\r\nsecret\r\nd;c\r\n_token=s3cret\r\n0\r\n\r\n";
    let head = format!("POST {ALLOWED} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(format!("{head}{form}").as_bytes()).await;
    assert_eq!(answered(&mut wire, form).await, 200);
    assert_eq!(stage.rails.last().body, b"secret_token=s3cret");
    // As many as there may be, and one more.
    for (count, status) in [(128, 200), (129, 400)] {
        let chunk = format!("1;{}\r\na\r\n", "b".repeat(127));
        let body = chunk.repeat(count) + "0\r\n\r\n";
        let mut wire = stage.gateway.tcp.connect().await;
        let lines = ["Host: a", "Transfer-Encoding: chunked"];
        wire.write(&raw(&format!("POST {ALLOWED} HTTP/1.1"), &lines, &body)).await;
        assert_eq!(answered(&mut wire, "many").await, status, "{count}");
    }
}

/// Clients forget to encode them, and every reader takes them for themselves.
#[tokio::test]
async fn a_query_may_hold_what_clients_forget_to_encode() {
    let stage = Stage::new().await;
    for query in ["?a={b}", "?a=b|c", "?a=^`", "?{|}^`={|}^`", "?|", "?a[]={}&`"] {
        let ask = Ask::post(&format!("allowed{query}")).with_secret();
        let (_, seen) = stage.pass(&ask).await;
        assert_eq!(seen.target, ask.target);
    }
    let below = Setup::new().below("/gitlab").start().await;
    let ask = Ask::post("allowed?{|}^`={|}^`").with_secret();
    assert_eq!(below.pass(&ask).await.1.target, format!("/gitlab{}", ask.target));
    // What is asked for stays the same question only in the same form.
    let key = "discover?username=a|b";
    let (answer, seen) = stage.pass(&Ask::get(key).with_secret()).await;
    assert_eq!(seen.target, format!("/api/v4/internal/{key}"), "{answer}");
}

/// As long as Gitaly's longest question, if the operator says that Puma can take it.
#[tokio::test]
async fn a_long_query_passes_if_it_may() {
    let pools: Vec<String> = (0..500)
        .map(|nth| format!("disk_paths%5B%5D=%40pools/{:02x}/{:02x}/{nth:064x}.git", nth % 256, nth / 256))
        .collect();
    let long = Ask::get(&format!("gitaly/object_pool_members?storage=default&{}", pools.join("&")));
    assert!(long.target.len() > 50_000 && long.target.len() < 60 * 1024, "{}", long.target.len());
    let setup = Setup::new().text("limits.target", "60KiB").text("limits.head", "64KiB");
    let stage = setup.start().await;
    let (_, seen) = stage.pass(&long.clone().with_secret()).await;
    assert_eq!(seen.target, long.target);
    stage.send(&long).await.assert_unauthorized();
    let of = |path: usize, query: usize| {
        Ask::new("POST", &format!("{ALLOWED}{}?{}", "a".repeat(path - ALLOWED.len()), "b".repeat(query - 1)))
    };
    for (ask, status) in [
        (of(1024, 59 * 1024), 200),
        (of(ALLOWED.len(), 59 * 1024), 200),
        (of(ALLOWED.len(), 59 * 1024 + 1), 414),
        (of(2048, 58 * 1024 + 1), 414),
        (of(7 * 1024, 1), 200),
        (of(7 * 1024 + 1, 1), 414),
    ] {
        let (answer, arrived) = stage.send_counting(&ask.with_secret()).await;
        assert_eq!((answer.status, arrived), (status, usize::from(status == 200)), "{answer}");
    }
    // By default it is what Puma takes as it is built by default.
    let stage = Stage::new().await;
    let (answer, arrived) = stage.send_counting(&long.with_secret()).await;
    assert_eq!((answer.status, arrived), (431, 0), "{answer}");
    let stage = Setup::new().text("limits.head", "64KiB").text("limits.target", "4KiB").start().await;
    for (ask, status) in
        [(of(1024, 3 * 1024), 200), (of(1024, 3 * 1024 + 1), 414), (of(4 * 1024 + 1, 1), 414)]
    {
        assert_eq!(stage.send(&ask.with_secret()).await.status, status);
    }
}
