//! What operators see: health, readiness, and every series after known traffic.

use std::collections::BTreeMap;

use super::client::{Ask, eventually};
use super::fake::{ROOT_KEY, Reply, UNKNOWN_KEY};
use super::stage::{Setup, Stage};

const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

fn get(path: &str) -> Ask {
    Ask::new("GET", path)
}

#[tokio::test]
async fn health_and_nothing_else_is_shown() {
    let stage = Stage::new().await;
    let admin = &stage.gateway.admin;
    let live = admin.send(&get("/live")).await;
    assert_eq!((live.status, live.json()["status"].as_str()), (200, Some("live")));
    let ready = eventually("the gateway to be ready", async || {
        Some(admin.send(&get("/ready")).await).filter(|answer| answer.status == 200)
    })
    .await;
    assert_eq!(ready.json()["status"], "ready");
    let metrics = admin.send(&get("/metrics")).await;
    assert_eq!(metrics.header("content-type"), Some(CLASSIC));
    for path in ["/", "/metrics/", "/ready/x", "/live.json", "/debug", "/api/v4/internal/check", "/Metrics"] {
        admin.send(&get(path).with_secret()).await.assert_failure(404);
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        admin.send(&Ask::new(method, "/metrics")).await.assert_failure(405);
        admin.send(&Ask::new(method, "/elsewhere")).await.assert_failure(404);
        let status = if method == "OPTIONS" { 204 } else { 405 };
        assert_eq!(admin.send(&Ask::new(method, "/ready")).await.status, status, "{method}");
    }
    for path in ["/live", "/metrics"] {
        let answer = admin.send(&Ask::new("HEAD", path)).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0));
    }
    assert_eq!(admin.send(&get("/live?a=b")).await.status, 200);
    assert_eq!(stage.rails.count(), 0);
}

/// The operators' door has the same threshold.
#[tokio::test]
async fn malformed_requests_are_refused_here_too() {
    let stage = Stage::new().await;
    for (bytes, status) in [
        (&b"GET /live HTTP/1.1\nHost: a\n\n"[..], 400),
        (b"GET http://b/live HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
        (b"POST /live HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"RAILGATE-REFUSED /host HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (&vec![b'A'; 70_000], 431),
    ] {
        let mut wire = stage.gateway.admin.connect().await;
        wire.write(bytes).await;
        wire.answer().await.assert_failure(status);
        assert_eq!(wire.rest().await, b"");
    }
}

#[tokio::test]
async fn readiness_tells_of_rails_and_does_not_depend_on_it() {
    let stage = Stage::new().await;
    let rails_is = async |state: &str| {
        eventually("the state of Rails", async || {
            let ready = stage.gateway.admin.send(&get("/ready")).await;
            if ready.status != 200 {
                return None;
            }
            (ready.json()["upstream"]["state"] == state).then_some(ready.json())
        })
        .await
    };
    rails_is("unknown").await;
    let ask = Ask::post("allowed").with_secret();
    stage.send(&ask).await;
    rails_is("answering").await;
    stage.rails.always(Reply::hang_up());
    for failures in 1..=3 {
        stage.send(&ask).await.assert_failure(502);
        assert_eq!(rails_is("failing").await["upstream"]["failures_in_a_row"], failures);
    }
    // A 500 is an answer.
    stage.rails.always(Reply::json(500, "{}"));
    stage.send(&ask).await;
    assert_eq!(rails_is("answering").await["upstream"]["failures_in_a_row"], 0);
}

/// A request whose body is broken, or whose caller is refused, says nothing about Rails.
#[tokio::test]
async fn what_clients_do_wrong_is_not_counted_against_rails() {
    let stage = Stage::new().await;
    for bytes in [
        "POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        "POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        "POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha",
    ] {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(bytes.as_bytes()).await;
        wire.finish().await;
        wire.rest().await;
    }
    stage.send(&Ask::get("check")).await.assert_unauthorized();
    stage.reaches("railgate_requests_in_flight", 0).await;
    stage.reaches("railgate_client_connections", 0).await;
    stage.reaches("railgate_upstream_failures_in_a_row", 0).await;
}

/// Nor does a client that takes its time over its body: Rails is still waiting for it.
#[tokio::test]
async fn a_client_that_stalls_is_not_counted_against_rails() {
    let stage = Setup::new().text("upstream.response_timeout", "100ms").start().await;
    let mut wire = stage.gateway.tcp.connect().await;
    let begun = "POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf";
    wire.write(begun.as_bytes()).await;
    let answer = wire.answer().await;
    assert_eq!(stage.metric("railgate_upstream_failures_in_a_row").await, Some(0), "{answer}");
    assert!((400..500).contains(&answer.status), "{answer}");
    assert_eq!(stage.rails.count(), 0);
}

#[tokio::test]
async fn every_request_is_counted_under_what_became_of_it() {
    let stage = Stage::new().await;
    let key = |key: &str| Ask::get(&format!("authorized_keys?key={key}"));
    for ask in [
        key(ROOT_KEY).with_secret(),
        key(ROOT_KEY).with_secret(),
        key(ROOT_KEY).with_shell_token(),
        key(UNKNOWN_KEY).with_secret(),
        key(UNKNOWN_KEY).with_secret(),
        key("odd!").with_secret(),
        key(ROOT_KEY),
        key(ROOT_KEY).header("Gitlab-Shared-Secret", "eHh4"),
        key(ROOT_KEY).header("Gitlab-Shell-Api-Request", "x"),
        Ask::get("check;a=b").with_secret(),
        Ask::get("check?a;secret_token=x"),
        Ask::get("discover?key_id=1").with_secret(),
        Ask::post("allowed").with_secret(),
        Ask::get("kubernetes/agent_info").with_kas_token(),
        Ask::get("kubernetes/agent_info"),
        Ask::get("pages"),
        Ask::get("new/thing"),
        get("/elsewhere"),
    ] {
        stage.send(&ask).await;
    }
    stage.rails.always(Reply::json(500, "{}"));
    stage.send(&Ask::get("check").with_secret()).await;
    stage.rails.always(Reply::hang_up());
    stage.send(&Ask::get("check").with_secret()).await;
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(b"GET / HTTP/1.1\nHost: a\n\n").await;
    wire.answer().await.assert_failure(400);

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
        // Of a route that was found, and of none: outside, refused by path, refused by the gate.
        (requests("check", "shared_secret", "5xx", "none"), 1),
        (requests("none", "none", "4xx", "none"), 3),
    ]);
    let counted = eventually("all requests to be counted", async || {
        let metrics = stage.metrics().await;
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
            wire.rest().await;
            stage.reaches(series, value).await;
        }
        assert_eq!(stage.metric(series).await, Some(value), "{series}\n{}", stage.metrics().await);
    }
}

/// Callers cannot make series.
#[tokio::test]
async fn labels_come_from_closed_lists() {
    let stage = Stage::new().await;
    stage.send(&Ask::get("check").with_secret()).await;
    for index in 0..50 {
        stage.send(&Ask::get(&format!("x{index}"))).await;
        stage.send(&get(&format!("/y{index}"))).await;
        let method = "M".repeat(1 + index % 20);
        stage.send(&Ask::new(&method, "/api/v4/internal/z").header("X-A", "b")).await;
    }
    let label = |route| {
        format!(
            r#"railgate_requests_total{{route="{route}",caller="left_to_rails",status="2xx",cache="never"}}"#
        )
    };
    stage.reaches(&label("other_internal"), 100).await;
    let series =
        stage.metrics().await.lines().filter(|line| line.starts_with("railgate_requests_total")).count();
    assert_eq!(series, 3);
}

/// A page in a browser can have a name of its own lead to this machine, but cannot hide it.
#[tokio::test]
async fn only_known_hosts_are_answered() {
    let stage = Setup::new().set("admin.hosts", r#"["Railgate.example.", "gateway.example"]"#).start().await;
    let admin = &stage.gateway.admin;
    let purge = || Ask::new("POST", "/purge").json(r#"{"all":true}"#);
    stage.send(&Ask::get("check").with_secret()).await;
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
        for ask in [get("/metrics"), purge(), get("/elsewhere"), Ask::new("POST", "/live")] {
            let is_for_all = ask.target == "/live";
            let answer = admin.send(&ask.clone().header("Host", host)).await;
            assert_eq!(answer.status == 421, !is_known && !is_for_all, "{host} {ask}: {answer}");
            if answer.status == 421 {
                answer.assert_failure(421);
                assert!(answer.text().contains("admin.hosts"), "{answer}");
            }
        }
        for path in ["/live", "/ready"] {
            let answer = admin.send(&get(path).header("Host", host)).await;
            assert_eq!(answer.status, 200, "{host} {path}");
        }
    }
    // Without one, it is no browser.
    let mut wire = admin.connect().await;
    wire.write(b"GET /metrics HTTP/1.0\r\n\r\n").await;
    assert_eq!(wire.answer().await.status, 200);
}

/// Which no browser can connect to.
#[tokio::test]
async fn a_unix_socket_answers_to_any_host() {
    let setup = Setup::new();
    let address = format!("unix:{}", setup.dir.file("admin.sock").display());
    let stage = setup.text("admin.address", &address).start().await;
    let answer = stage.gateway.admin.send(&get("/metrics").header("Host", "evil.example")).await;
    assert_eq!(answer.status, 200);
}
