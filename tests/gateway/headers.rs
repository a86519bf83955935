//! Which headers the gateway forwards in each direction, and which it writes itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::client::Request;
use super::credentials::{ENCODED_SECRET, KAS_HEADER, SECRET_HEADER, SHELL_HEADER, shell_token};
use super::fake_rails::{FakeRails, Latch, ROOT_KEY, ReceivedRequest, Reply, gitlab};
use super::harness::{Harness, Setup};

/// A forwarded request and a cache fill: they are handled on different paths. Each call uses another user,
/// so that nothing is cached.
fn for_both_paths(request: impl Fn(Request) -> Request) -> [Request; 2] {
    static USER: AtomicUsize = AtomicUsize::new(1_000);
    let user = USER.fetch_add(1, Ordering::Relaxed);
    [
        request(Request::post("allowed").with_secret()),
        request(Request::get(&format!("discover?key_id={user}")).with_secret()),
    ]
}

/// Rack makes one variable of `Gitlab_Shared_Secret` and `Gitlab-Shared-Secret`.
#[tokio::test]
async fn headers_with_underscores_are_dropped_and_do_not_authenticate() {
    let harness = Harness::new().await;
    let token = shell_token(&json!({}));
    for (name, value) in [
        ("Gitlab_Shared_Secret", ENCODED_SECRET),
        ("Gitlab-Shared_Secret", ENCODED_SECRET),
        ("GITLAB_SHARED_SECRET", ENCODED_SECRET),
        ("Gitlab_Shell_Api_Request", &token),
        ("_", ENCODED_SECRET),
    ] {
        for request in [Request::get("check"), Request::post("allowed"), Request::get("discover?key_id=1")] {
            harness.send(&request.header(name, value)).await.assert_unauthorized();
        }
        assert_eq!(harness.rails.request_count(), 0, "{name}");
    }
    let spoofed = |request: Request| {
        request
            .header("Gitlab_Shared_Secret", "eHh4")
            .header("X_Forwarded_For", "1.1.1.1")
            .header("X_Forwarded-Host", "evil.example")
            .header("Content_Type", "text/plain")
            .header("Gitlab_Kas_Api_Request", "x")
            .header("x_request_id", "x")
            .header("_", "x")
    };
    for request in for_both_paths(spoofed) {
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!(response.status, 200, "{response}");
        assert!(seen.headers.iter().all(|(name, _)| !name.contains('_')), "{}", seen.head);
        assert_eq!(seen.header(SECRET_HEADER), Some(ENCODED_SECRET));
    }
}

/// With these a client could show Rails another request than the one that the gateway checked.
#[tokio::test]
async fn headers_that_could_mislead_rails_are_dropped() {
    let harness = Harness::new().await;
    let names = [
        "Forwarded",
        "Proxy",
        "Client-IP",
        "X-Accel-Mapping",
        "X-Accel-Redirect",
        "Version",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Scheme",
        "X-Forwarded-Server",
        "X-Forwarded-SSL",
        "X-HTTP-Method-Override",
        "X-Original-URL",
        "X-Real-IP",
        "X-Rewrite-URL",
        "X-Sendfile",
        "X-Sendfile-Type",
    ];
    for name in names {
        for request in
            for_both_paths(|request| request.header(name, "/evil").header(&name.to_uppercase(), "for=evil"))
        {
            let (_, seen) = harness.send_forwarded(&request).await;
            assert_eq!(seen.header_values(name), Vec::<&str>::new(), "{}", seen.head);
            assert!(!seen.head.contains("evil"), "{}", seen.head);
        }
    }
}

#[tokio::test]
async fn hop_by_hop_headers_are_not_forwarded() {
    let harness = Harness::new().await;
    let headers = "Content-Type: application/json\r\nConnection: X-Of-Rails, Keep-Alive\r\nX-Of-Rails: 1\r\n\
                   Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: trailers\r\n\
                   Proxy-Authenticate: Basic\r\nX-Kept: 1\r\n";
    harness.rails.respond_always(Reply::new(200, headers, r#"{"id":1,"username":"root","name":"r"}"#));
    let hop_by_hop = |request: Request| {
        request
            .header("Connection", "X-Mine, close, X-OTHER,, Upgrade")
            .header("Connection", "x-third")
            .header("X-Mine", "1")
            .header("X-Other", "1")
            .header("X-Third", "1")
            .header("Keep-Alive", "timeout=5")
            .header("Proxy-Connection", "close")
            .header("Proxy-Authorization", "Basic x")
            .header("TE", "gzip")
            .header("Upgrade", "h2c")
    };
    for request in for_both_paths(hop_by_hop) {
        let (response, seen) = harness.send_forwarded(&request).await;
        for name in [
            "X-Mine",
            "X-Other",
            "X-Third",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy-Authorization",
            "TE",
            "Upgrade",
        ] {
            assert_eq!(seen.header_values(name), Vec::<&str>::new(), "{}", seen.head);
        }
        // The connection to Rails is kept, so it needs none.
        assert_eq!(seen.header("connection"), None, "{}", seen.head);
        for name in ["X-Of-Rails", "Keep-Alive", "Proxy-Connection", "Upgrade", "TE", "Proxy-Authenticate"] {
            assert_eq!(response.header_values(name), Vec::<&str>::new(), "{response}");
        }
        assert_eq!(response.header("connection"), Some("close"), "{response}");
        assert_eq!(response.header("x-kept"), Some("1"), "{response}");
    }
}

/// Although named in `Connection`: Rails must decide by the same values as the gateway.
#[tokio::test]
async fn connection_cannot_remove_essential_headers() {
    let harness = Harness::new().await;
    let names = [
        "Host",
        "Content-Length",
        "Content-Type",
        "Authorization",
        SECRET_HEADER,
        SHELL_HEADER,
        KAS_HEADER,
        "X-Request-Id",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
    ];
    for name in names {
        let request = Request::post("allowed")
            .with_secret()
            .with_shell_token()
            .header(KAS_HEADER, "x")
            .header("Authorization", "Bearer x")
            .header("X-Request-Id", "mine")
            .header("Connection", &format!("close, {}", name.to_lowercase()))
            .header("X-Forwarded-For", "203.0.113.7")
            .json("{}");
        let (_, seen) = harness.send_forwarded(&request).await;
        assert!(seen.header(name).is_some(), "{name} was named away: {}", seen.head);
        assert_eq!(seen.body, b"{}");
    }
}

#[tokio::test]
async fn forwarded_headers_tell_rails_the_client() {
    let harness = Harness::new().await;
    // The host of one client must not get into a response that others share.
    let hosts = [Some("gateway.example:8181"), None];
    for (request, host) in for_both_paths(|request| request).into_iter().zip(hosts) {
        let (_, seen) = harness.send_forwarded(&request).await;
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(seen.header("x-forwarded-host"), host);
        assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    }
    let claims = |request: Request| {
        request
            .header("X-Forwarded-For", "203.0.113.7")
            .header("X-Forwarded-For", "198.51.100.1, 198.51.100.2")
            .header("X-Forwarded-Host", "evil.example")
            .header("X-Forwarded-Proto", "https")
    };
    for (request, host) in for_both_paths(claims).into_iter().zip(hosts) {
        let (_, seen) = harness.send_forwarded(&request).await;
        let chain = "203.0.113.7, 198.51.100.1, 198.51.100.2, 127.0.0.1";
        assert_eq!(seen.header("x-forwarded-for"), Some(chain));
        assert_eq!(seen.header("x-forwarded-host"), host);
        assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    }
    // A peer on a unix socket has no address.
    harness.gateway.unix.send(&Request::post("allowed").with_secret()).await;
    assert_eq!(harness.rails.last_request().header("x-forwarded-for"), None);
    let request = Request::post("allowed").with_secret().header("X-Forwarded-For", "203.0.113.7");
    harness.gateway.unix.send(&request).await;
    assert_eq!(harness.rails.last_request().header("x-forwarded-for"), Some("203.0.113.7"));
}

#[tokio::test]
async fn rails_gets_the_configured_host() {
    let harness = Harness::new().await;
    let (_, seen) = harness.send_forwarded(&Request::post("allowed").with_secret()).await;
    assert_eq!(Some(format!("http://{}", seen.header("host").unwrap())), Some(harness.rails.address.url()));

    let harness = Setup::new().text("upstream.host", "gitlab.example:443").start().await;
    for request in for_both_paths(|request| request) {
        let (_, seen) = harness.send_forwarded(&request).await;
        assert_eq!(seen.header("host"), Some("gitlab.example:443"));
    }

    let setup = Setup::new();
    let rails = FakeRails::listen_unix(&setup.dir.file("rails.sock"));
    let harness = setup.start_with(rails);
    let (_, seen) = harness.send_forwarded(&Request::post("allowed").with_secret()).await;
    assert_eq!(seen.header("host"), Some("localhost"));
}

#[tokio::test]
async fn a_request_has_one_id_in_request_and_response() {
    let harness = Harness::new().await;
    let key = format!("authorized_keys?key={ROOT_KEY}");
    for good in ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "a-b_c@d", &"a".repeat(255)] {
        let request = Request::post("allowed").with_secret().header("X-Request-Id", good);
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!((response.header("x-request-id"), seen.header("x-request-id")), (Some(good), Some(good)));
        // Also on a hit.
        let request = Request::get(&key).with_secret().header("X-Request-Id", good);
        assert_eq!(harness.send(&request).await.header("x-request-id"), Some(good));
    }
    // Rails would drop these, and the two logs could not be matched.
    let mut ids = Vec::new();
    for bad in ["", "a b", "a.b", "a\"b", "\u{e9}", &"a".repeat(256)] {
        let request = Request::post("allowed").with_secret().header("X-Request-Id", bad);
        let (response, seen) = harness.send_forwarded(&request).await;
        let id = response.header("x-request-id").unwrap().to_owned();
        assert_eq!(seen.header("x-request-id"), Some(id.as_str()));
        assert_ne!(id, bad);
        ids.push(id);
    }
    let twice =
        Request::post("allowed").with_secret().header("X-Request-Id", "a").header("X-Request-Id", "b");
    let (response, seen) = harness.send_forwarded(&twice).await;
    assert_eq!(response.header("x-request-id"), seen.header("x-request-id"));
    for request in [
        Request::get(&key).with_secret(),
        Request::get("check"),
        Request::new("GET", "/"),
        Request::new("GET", "/.."),
    ] {
        ids.push(harness.send(&request).await.header("x-request-id").unwrap().to_owned());
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id was given twice");
}

#[tokio::test]
async fn all_other_headers_are_forwarded_unchanged() {
    let harness = Harness::new().await;
    let sent = [
        ("User-Agent", "GitLab-Shell"),
        ("X-GitLab-Client-Name", "gitlab-shell"),
        ("Gitlab-Agent-Api-Request", "agent-token"),
        ("Authorization", "Basic dTpw"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "gzip"),
        ("If-None-Match", "W/\"1\""),
        ("Range", "bytes=0-1"),
        ("Cookie", "a=b; c=d"),
        ("X-Empty", ""),
        ("X-Odd", "!#$%&'*+-.^_`|~ \"(),/:;<=>?@[\\]{}\t\u{e9}"),
    ];
    let mut request =
        Request::post("allowed").with_secret().json("{}").header("X-Twice", "1").header("X-Twice", "2");
    request = request.header("Via", "1.1 x");
    for (name, value) in sent {
        request = request.header(name, value);
    }
    let answered = "Content-Type: application/json\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\
                    X-Odd: \"(),/:;<=>?@[\\]{}\r\nX-Empty:\r\nServer: rails\r\nETag: W/\"1\"\r\n\
                    Retry-After: 60\r\nWWW-Authenticate: Basic\r\nX_Under: score\r\nVia: 1.1 rails\r\n\
                    Date: Mon, 01 Jan 2001 00:00:00 GMT\r\nCache-Status: other; hit\r\n";
    harness.rails.respond_always(Reply::new(200, answered, "{}"));
    let (response, seen) = harness.send_forwarded(&request).await;
    for (name, value) in sent {
        assert_eq!(seen.header(name), Some(value), "{}", seen.head);
    }
    assert_eq!(seen.header_values("x-twice"), ["1", "2"]);
    // The gateway appends its own name to `Via`.
    let [before, own] = seen.header_values("via")[..] else { panic!("{}", seen.head) };
    assert!(before == "1.1 x" && own.starts_with("1.1 railgate-"), "{}", seen.head);
    assert_eq!(response.header_values("set-cookie"), ["a=b", "c=d"]);
    for (name, value) in [
        ("x-odd", "\"(),/:;<=>?@[\\]{}"),
        ("x-empty", ""),
        ("server", "rails"),
        ("etag", "W/\"1\""),
        ("retry-after", "60"),
        ("www-authenticate", "Basic"),
        ("x_under", "score"),
        ("via", "1.1 rails"),
        ("date", "Mon, 01 Jan 2001 00:00:00 GMT"),
    ] {
        assert_eq!(response.header(name), Some(value), "{response}");
    }
    assert_eq!(response.header_values("cache-status"), ["other; hit", "railgate; fwd=bypass; detail=route"]);
}

/// A proxy between the gateway and Rails may require Basic authentication (`http_settings` of GitLab Shell
/// has a user and a password for it).
#[tokio::test]
async fn basic_credentials_are_forwarded_on_every_path() {
    let harness = Harness::new().await;
    for request in for_both_paths(|request| request.header("Authorization", "Basic dTpw")) {
        let (_, seen) = harness.send_forwarded(&request).await;
        assert_eq!(seen.header("authorization"), Some("Basic dTpw"), "{request}: {}", seen.head);
    }
}

/// A refusal has to be readable: it ends what is kept, however it was asked for.
#[tokio::test]
async fn the_endpoints_whose_answers_are_kept_are_asked_for_answers_that_are_not_compressed() {
    let harness = Harness::new().await;
    let user = "discover?username=root";
    for (request, is_sent) in [
        (Request::get(user), false),
        (Request::get(user).header("If-None-Match", "W/\"1\""), false),
        (Request::new("HEAD", &Request::get(user).target), false),
        (Request::get("discover"), false),
        (Request::get("check").header("Range", "bytes=0-1"), false),
        (Request::get("lfs"), true),
        (Request::post("allowed").json("{}"), true),
    ] {
        let request = request.with_secret().header("Accept-Encoding", "gzip");
        let (_, seen) = harness.send_forwarded(&request).await;
        assert_eq!(seen.header("accept-encoding"), is_sent.then_some("gzip"), "{}", seen.head);
    }
}

/// The request must not contain anything that could make the response specific to one client.
#[tokio::test]
async fn a_cache_fill_requests_the_plain_response() {
    let harness = Harness::new().await;
    let request = Request::get("discover?key_id=1")
        .with_secret()
        .header("Content-Type", "application/json")
        .header("User-Agent", "GitLab-Shell")
        .header("X-GitLab-Client-Name", "gitlab-shell")
        .header("Accept-Encoding", "gzip")
        .header("Accept", "text/html")
        .header("Accept-Language", "de")
        .header("Cookie", "locale=de")
        .header("Origin", "https://evil.example")
        .header("X-Anything", "1")
        .header("Expect", "100-continue")
        .header("Cache-Control", "no-cache");
    let request = with_trace(request.header("Via", "1.1 x"));
    let (response, seen) = harness.send_forwarded(&request).await;
    assert_eq!(response.cache_status(), "railgate; fwd=miss; stored");
    for name in [
        "Accept-Encoding",
        "Accept",
        "Accept-Language",
        "Cookie",
        "Origin",
        "X-Anything",
        "Expect",
        "Cache-Control",
        "Content-Length",
        "Transfer-Encoding",
    ] {
        assert_eq!(seen.header_values(name), Vec::<&str>::new(), "{}", seen.head);
    }
    assert_eq!(seen.header("user-agent"), Some("GitLab-Shell"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("x-gitlab-client-name"), Some("gitlab-shell"));
    assert_eq!(seen.header(SECRET_HEADER), Some(ENCODED_SECRET));
    assert_eq!(seen.header_values("via")[0], "1.1 x");
    assert_traced(&seen);
}

/// Adds the headers by which a request is found in a trace. `tracestate` may come in several lines (W3C Trace
/// Context §3.3.1.1).
fn with_trace(request: Request) -> Request {
    request
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("tracestate", "rojo=00f067aa0ba902b7")
        .header("tracestate", "congo=t61rcWkgMzE")
        .header("baggage", "userId=alice;p=1, serverNode=DF%2028")
}

fn assert_traced(seen: &ReceivedRequest) {
    for (name, values) in [
        ("traceparent", &["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"][..]),
        ("tracestate", &["rojo=00f067aa0ba902b7", "congo=t61rcWkgMzE"]),
        ("baggage", &["userId=alice;p=1, serverNode=DF%2028"]),
    ] {
        assert_eq!(seen.header_values(name), values, "{}", seen.head);
    }
}

/// Also on requests that the gateway sends at another time than its caller's.
#[tokio::test]
async fn background_refreshes_and_lone_followers_keep_their_trace() {
    let setup = Setup::new().text("cache.discover.ttl", "1ms");
    let harness = setup.text("cache.discover.stale_while_revalidate", "1h").start().await;
    let root = Request::get("discover?username=root").with_secret();
    harness.send(&root).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let response = harness.send(&with_trace(root)).await;
    assert!(response.cache_status().contains("stale_while_revalidate"), "{response}");
    harness.rails.wait_for_requests(2).await;
    assert_traced(&harness.rails.last_request());

    let harness = Setup::new().text("cache.wait", "50ms").start().await;
    let latch = Latch::closed();
    let held = latch.clone();
    harness.rails.respond_with(
        move |request| {
            if request.nth == 0 { gitlab(request).after(&held) } else { gitlab(request) }
        },
    );
    let request = Request::get("discover?key_id=1").with_secret();
    let mut leader = harness.start_request(&request).await;
    harness.rails.wait_for_requests(1).await;
    let response = harness.send(&with_trace(request)).await;
    assert_eq!(response.cache_status(), "railgate; fwd=miss; detail=alone");
    assert_traced(&harness.rails.last_request());
    latch.open();
    assert_eq!(leader.read_response().await.status, 200);
}
