//! What operators see: health, readiness, and every series after known traffic.

use std::collections::BTreeMap;
use std::io::Read as _;

use super::client::{Request, eventually};
use super::fake_rails::{ROOT_KEY, Reply, UNKNOWN_KEY};
use super::harness::{Harness, Setup};

const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

fn get(path: &str) -> Request {
    Request::new("GET", path)
}

#[tokio::test]
async fn only_health_and_metrics_are_served() {
    let harness = Harness::new().await;
    let admin = &harness.gateway.admin;
    let live = admin.send(&get("/live")).await;
    assert_eq!((live.status, live.json()["status"].as_str()), (200, Some("live")));
    let ready = eventually("the gateway to be ready", async || {
        Some(admin.send(&get("/ready")).await).filter(|response| response.status == 200)
    })
    .await;
    assert_eq!(ready.json()["status"], "ready");
    let metrics = admin.send(&get("/metrics")).await;
    assert_eq!(metrics.header("content-type"), Some(CLASSIC));
    for path in
        ["/index.html", "/metrics/", "/ready/x", "/live.json", "/debug", "/api/v4/internal/check", "/Metrics"]
    {
        admin.send(&get(path).with_secret()).await.assert_failure(404);
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        admin.send(&Request::new(method, "/metrics")).await.assert_failure(405);
        admin.send(&Request::new(method, "/elsewhere")).await.assert_failure(404);
        let status = if method == "OPTIONS" { 204 } else { 405 };
        assert_eq!(admin.send(&Request::new(method, "/ready")).await.status, status, "{method}");
    }
    for path in ["/live", "/metrics"] {
        let response = admin.send(&Request::new("HEAD", path)).await;
        assert_eq!((response.status, response.body.len()), (200, 0));
    }
    assert_eq!(admin.send(&get("/live?a=b")).await.status, 200);
    assert_eq!(harness.rails.request_count(), 0);
}

/// The admin listener uses the same strict parser.
#[tokio::test]
async fn malformed_requests_are_refused_on_the_admin_listener() {
    let harness = Harness::new().await;
    for (bytes, status) in [
        (&b"GET /live HTTP/1.1\nHost: a\n\n"[..], 400),
        (b"GET http://b/live HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
        (b"POST /live HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"RAILGATE-REFUSED /host HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (&vec![b'A'; 70_000], 431),
    ] {
        let mut connection = harness.gateway.admin.connect().await;
        connection.write(bytes).await;
        connection.read_response().await.assert_failure(status);
        assert_eq!(connection.read_to_end().await, b"");
    }
}

#[tokio::test]
async fn readiness_reports_the_state_of_rails_without_depending_on_it() {
    let harness = Harness::new().await;
    let rails_is = async |state: &str| {
        eventually("the state of Rails", async || {
            let ready = harness.gateway.admin.send(&get("/ready")).await;
            if ready.status != 200 {
                return None;
            }
            (ready.json()["upstream"]["state"] == state).then_some(ready.json())
        })
        .await
    };
    rails_is("unknown").await;
    let request = Request::post("allowed").with_secret();
    harness.send(&request).await;
    rails_is("answering").await;
    harness.rails.respond_always(Reply::hang_up());
    for failures in 1..=3 {
        harness.send(&request).await.assert_failure(502);
        assert_eq!(rails_is("failing").await["upstream"]["failures_in_a_row"], failures);
    }
    // A 500 shows that Rails answers.
    harness.rails.respond_always(Reply::json(500, "{}"));
    harness.send(&request).await;
    assert_eq!(rails_is("answering").await["upstream"]["failures_in_a_row"], 0);
}

/// A request whose body is broken, or whose caller is refused, says nothing about Rails.
#[tokio::test]
async fn client_errors_do_not_count_against_rails() {
    let harness = Harness::new().await;
    for bytes in [
        "POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        "POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        "POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha",
    ] {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(bytes.as_bytes()).await;
        connection.shutdown_write().await;
        connection.read_to_end().await;
    }
    harness.send(&Request::get("check")).await.assert_unauthorized();
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    harness.wait_for_metric("railgate_client_connections", 0).await;
    harness.wait_for_metric("railgate_upstream_failures_in_a_row", 0).await;
}

/// Rails is still waiting for its body.
#[tokio::test]
async fn a_stalled_client_does_not_count_against_rails() {
    let harness = Setup::new().text("upstream.response_timeout", "100ms").start().await;
    let mut connection = harness.gateway.tcp.connect().await;
    let begun = "POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf";
    connection.write(begun.as_bytes()).await;
    let response = connection.read_response().await;
    assert_eq!(harness.metric("railgate_upstream_failures_in_a_row").await, Some(0), "{response}");
    assert!((400..500).contains(&response.status), "{response}");
    assert_eq!(harness.rails.request_count(), 0);
}

#[tokio::test]
async fn every_request_is_counted_by_its_outcome() {
    let harness = Harness::new().await;
    let key = |key: &str| Request::get(&format!("authorized_keys?key={key}"));
    for request in [
        key(ROOT_KEY).with_secret(),
        key(ROOT_KEY).with_secret(),
        key(ROOT_KEY).with_shell_token(),
        key(UNKNOWN_KEY).with_secret(),
        key(UNKNOWN_KEY).with_secret(),
        key("odd!").with_secret(),
        key(ROOT_KEY),
        key(ROOT_KEY).header("Gitlab-Shared-Secret", "eHh4"),
        key(ROOT_KEY).header("Gitlab-Shell-Api-Request", "x"),
        Request::get("check;a=b").with_secret(),
        Request::get("check?a;secret_token=x"),
        Request::get("discover?key_id=1").with_secret(),
        Request::post("allowed").with_secret(),
        Request::get("kubernetes/agent_info").with_kas_token(),
        Request::get("kubernetes/agent_info"),
        Request::get("pages"),
        Request::get("new/thing"),
        get("/elsewhere"),
    ] {
        harness.send(&request).await;
    }
    harness.rails.respond_always(Reply::json(500, "{}"));
    harness.send(&Request::get("check").with_secret()).await;
    harness.rails.respond_always(Reply::hang_up());
    harness.send(&Request::get("check").with_secret()).await;
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(b"GET / HTTP/1.1\nHost: a\n\n").await;
    connection.read_response().await.assert_failure(400);

    let requests = |route: &str, caller: &str, status: &str, cache: &str| {
        format!(
            r#"railgate_requests_total{{route="{route}",caller="{caller}",status="{status}",cache="{cache}"}}"#
        )
    };
    let expected = BTreeMap::from([
        (requests("authorized_keys", "shared_secret", "2xx", "miss_stored"), 1),
        (requests("authorized_keys", "shared_secret", "2xx", "hit"), 1),
        (requests("authorized_keys", "shell_jwt", "2xx", "hit"), 1),
        (requests("authorized_keys", "shared_secret", "4xx", "miss_stored"), 1),
        (requests("authorized_keys", "shared_secret", "4xx", "hit"), 1),
        (requests("authorized_keys", "shared_secret", "4xx", "bypass"), 1),
        (requests("authorized_keys", "none", "4xx", "none"), 3),
        (requests("check", "none", "4xx", "none"), 1),
        (requests("discover", "shared_secret", "2xx", "miss_stored"), 1),
        (requests("allowed", "shared_secret", "2xx", "never"), 1),
        (requests("agent_info", "kas", "2xx", "never"), 1),
        (requests("agent_info", "none", "4xx", "none"), 1),
        (requests("pages", "left_to_rails", "2xx", "never"), 1),
        (requests("other_internal", "left_to_rails", "2xx", "never"), 1),
        (requests("check", "shared_secret", "5xx", "miss_unstored"), 1),
        // With a route: a failure of Rails. Without one: outside of the API, refused by its path, refused by
        // the parser.
        (requests("check", "shared_secret", "5xx", "none"), 1),
        (requests("none", "none", "4xx", "none"), 3),
    ]);
    let counted = eventually("all requests to be counted", async || {
        let metrics = harness.metrics().await;
        let counted: BTreeMap<String, i32> = metrics
            .lines()
            .filter(|line| line.starts_with("railgate_requests_total"))
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap();
                (series.to_owned(), value.parse().unwrap())
            })
            .collect();
        (counted.values().sum::<i32>() >= expected.values().sum()).then_some(counted)
    })
    .await;
    assert_eq!(counted, expected);

    for (series, value) in [
        (r#"railgate_auth_refusals_total{reason="missing"}"#, 2),
        (r#"railgate_auth_refusals_total{reason="wrong"}"#, 1),
        (r#"railgate_auth_refusals_total{reason="malformed"}"#, 1),
        (r#"railgate_auth_refusals_total{reason="ambiguous"}"#, 1),
        (r#"railgate_failures_total{reason="unauthorized"}"#, 5),
        (r#"railgate_failures_total{reason="outside_internal_api"}"#, 1),
        (r#"railgate_failures_total{reason="path_parameter"}"#, 1),
        (r#"railgate_failures_total{reason="bare_line_feed"}"#, 1),
        (r#"railgate_failures_total{reason="upstream_broke_off"}"#, 1),
        (r#"railgate_cache_unstored_total{reason="status"}"#, 1),
        (r#"railgate_cache_entries{store="positive"}"#, 2),
        (r#"railgate_cache_entries{store="negative"}"#, 1),
        (r#"railgate_cache_fills_total{store="positive"}"#, 2),
        (r#"railgate_cache_fills_total{store="negative"}"#, 1),
        ("railgate_cache_flights", 0),
        ("railgate_requests_in_flight", 0),
        ("railgate_clients_gone_total", 0),
        (r#"railgate_hit_duration_seconds_bucket{le="+Inf"}"#, 3),
        (r#"railgate_upstream_duration_seconds_count{route="authorized_keys"}"#, 3),
        (r#"railgate_upstream_duration_seconds_count{route="check"}"#, 2),
        ("railgate_upstream_failures_in_a_row", 1),
        ("railgate_client_connections", 0),
        ("railgate_client_connections_accepted_total", 21),
    ] {
        if series == "railgate_client_connections" {
            connection.read_to_end().await;
            harness.wait_for_metric(series, value).await;
        }
        assert_eq!(harness.metric(series).await, Some(value), "{series}\n{}", harness.metrics().await);
    }
}

#[tokio::test]
async fn clients_cannot_create_series() {
    let harness = Harness::new().await;
    harness.send(&Request::get("check").with_secret()).await;
    for index in 0..50 {
        harness.send(&Request::get(&format!("x{index}"))).await;
        harness.send(&get(&format!("/y{index}"))).await;
        let method = "M".repeat(1 + index % 20);
        harness.send(&Request::new(&method, "/api/v4/internal/z").header("X-A", "b")).await;
    }
    let label = |route| {
        format!(
            r#"railgate_requests_total{{route="{route}",caller="left_to_rails",status="2xx",cache="never"}}"#
        )
    };
    harness.wait_for_metric(&label("other_internal"), 100).await;
    let series =
        harness.metrics().await.lines().filter(|line| line.starts_with("railgate_requests_total")).count();
    assert_eq!(series, 3);
}

/// A web page can make a name of its own resolve to this machine (DNS rebinding), but cannot hide it.
#[tokio::test]
async fn unknown_hosts_are_refused_on_the_admin_listener() {
    let harness =
        Setup::new().set("admin.hosts", r#"["Railgate.example.", "gateway.example"]"#).start().await;
    let admin = &harness.gateway.admin;
    let purge = || Request::new("POST", "/purge").json(r#"{"all":true}"#);
    harness.send(&Request::get("check").with_secret()).await;
    for (host, is_known) in [
        ("127.0.0.1:9181", true),
        ("[::1]", true),
        ("localhost", true),
        ("grafana.localhost:1", true),
        ("railgate.EXAMPLE:9181", true),
        ("evil.example", false),
        ("evil.example:9181", false),
        ("localhost.evil.example", false),
        ("127.0.0.1.nip.example", false),
    ] {
        for request in [get("/metrics"), purge(), get("/elsewhere"), Request::new("POST", "/live")] {
            let is_for_all = request.target == "/live";
            let response = admin.send(&request.clone().header("Host", host)).await;
            assert_eq!(response.status == 421, !is_known && !is_for_all, "{host} {request}: {response}");
            if response.status == 421 {
                response.assert_failure(421);
                assert!(response.text().contains("admin.hosts"), "{response}");
            }
        }
        for path in ["/live", "/ready"] {
            let response = admin.send(&get(path).header("Host", host)).await;
            assert_eq!(response.status, 200, "{host} {path}");
        }
    }
    // A browser always sends a host.
    for target in ["/metrics", "http://gw.example/metrics", "http://gw.example/ready"] {
        let mut connection = admin.connect().await;
        connection.write(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes()).await;
        assert_eq!(connection.read_response().await.status, 200, "{target}");
    }
}

/// No browser can connect to one.
#[tokio::test]
async fn any_host_is_accepted_on_a_unix_socket() {
    let setup = Setup::new();
    let address = format!("unix:{}", setup.dir.file("admin.sock").display());
    let harness = setup.text("admin.address", &address).start().await;
    let response = harness.gateway.admin.send(&get("/metrics").header("Host", "evil.example")).await;
    assert_eq!(response.status, 200);
}

fn unzipped(body: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(body).read_to_string(&mut text).unwrap();
    text
}

/// The text without its values, which differ from scrape to scrape.
fn without_values(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 })
        .collect()
}

#[tokio::test]
async fn metrics_are_compressed_only_for_clients_that_ask_for_gzip() {
    let harness = Harness::new().await;
    let admin = &harness.gateway.admin;
    harness.wait_for_fingerprints().await;
    let with = |path: &str, accepted: &str| get(path).header("Accept-Encoding", accepted);
    let plain = admin.send(&get("/metrics")).await;
    assert_eq!(plain.header("content-length"), Some(&*plain.body.len().to_string()));
    for accepted in ["gzip", "GZip", "gzip, deflate, br, zstd", "br;q=1.0, gzip;q=0.8, *;q=0.1"] {
        let response = admin.send(&with("/metrics", accepted)).await;
        let headers = ["content-encoding", "content-type", "vary"].map(|name| response.header(name));
        assert_eq!((response.status, headers), (200, [Some("gzip"), Some(CLASSIC), Some("accept-encoding")]));
        assert!(response.body.len() < plain.body.len() / 3, "{accepted}: {} bytes", response.body.len());
        assert_eq!(without_values(&unzipped(&response.body)), without_values(plain.text()), "{accepted}");
    }
    for accepted in ["", "identity", "gzip;q=0", "br", "deflate", "*", "identity;q=0", "*;q=0"] {
        let response = admin.send(&with("/metrics", accepted)).await;
        assert_eq!((response.status, response.header("content-encoding")), (200, None), "{accepted}");
        assert_eq!(without_values(response.text()), without_values(plain.text()), "{accepted}");
    }
    for (path, status) in [("/live", 200), ("/servers", 405), ("/elsewhere", 404)] {
        for accepted in ["gzip", "identity;q=0"] {
            let response = admin.send(&with(path, accepted)).await;
            let headers = ["content-encoding", "vary"].map(|name| response.header(name));
            assert_eq!((response.status, headers), (status, [None, None]), "{path} {accepted}");
        }
    }
    let head = admin.send(&Request::new("HEAD", "/metrics").header("Accept-Encoding", "gzip")).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test]
async fn bodies_of_operators_are_bounded() {
    let setup = Setup::new();
    let file = setup.dir.file("admin_token");
    std::fs::write(&file, "t0ken\n").unwrap();
    let harness = setup.text("admin.token_file", &file.display().to_string()).start().await;
    let admin = &harness.gateway.admin;
    let purge = |length: usize| {
        let body = format!("{{\"all\":true}}{}", " ".repeat(length - 12));
        Request::new("POST", "/purge").json(&body)
    };
    let authorized = |request: Request| request.header("Authorization", "Bearer t0ken");
    for request in [purge(64 * 1024), purge(64 * 1024).chunked(1000)] {
        assert_eq!(admin.send(&authorized(request)).await.status, 200);
    }
    for request in [purge(64 * 1024 + 1), purge(64 * 1024 + 1).chunked(1000)] {
        let response = admin.send(&authorized(request.clone())).await;
        response.assert_failure(400);
        let message = "400 Bad Request: the body is incomplete, too slow, or has more than 64 KiB";
        assert_eq!(
            (response.json()["message"].as_str(), response.header("content-type")),
            (Some(message), Some("application/json"))
        );
        admin.send(&request).await.assert_failure(401);
    }
    // Where no body is read, its length does not matter.
    let mut scrape = get("/metrics").body(vec![b'x'; 64 * 1024 + 1]);
    assert_eq!(admin.send(&scrape).await.status, 200);
    scrape.method = "POST".to_owned();
    admin.send(&scrape).await.assert_failure(405);
}
