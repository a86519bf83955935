//! The status page of the admin listener: its files, its figures, its events, and what a browser may do with it.
//! [`status_page_in_browser`](super::status_page_in_browser) shows it in a browser.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::client::{Connection, Request, Response, eventually};
use super::fake_rails::{ROOT_KEY, Reply, UNKNOWN_KEY};
use super::harness::{Harness, Setup};

const FILES: [(&str, &str); 4] = [
    ("/", "text/html; charset=utf-8"),
    ("/status.css", "text/css; charset=utf-8"),
    ("/status.js", "text/javascript; charset=utf-8"),
    ("/icon.svg", "image/svg+xml"),
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn get(path: &str) -> Request {
    Request::new("GET", path)
}

#[track_caller]
fn assert_restricted(response: &Response) {
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(response.header(name), Some(value), "{response}");
    }
    for (name, _) in &response.headers {
        assert!(!name.to_ascii_lowercase().starts_with("access-control"), "{response}");
    }
}

#[tokio::test]
async fn the_files_of_the_page_load_nothing_from_elsewhere() {
    let harness = Harness::new().await;
    let admin = &harness.gateway.admin;
    for (path, media_type) in FILES {
        let response = admin.send(&get(path).header("Origin", "http://evil.example")).await;
        assert_eq!((response.status, response.header("content-type")), (200, Some(media_type)), "{path}");
        assert_restricted(&response);
        let text = response.text().replace("http://www.w3.org/2000/svg", "");
        for foreign in
            ["http:", "https:", "//cdn", "innerHTML", "insertAdjacentHTML", "eval(", "style=\"", "onclick"]
        {
            assert!(!text.contains(foreign), "{path} has {foreign}");
        }
        let head = admin.send(&Request::new("HEAD", path)).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
    }
    for path in FILES.map(|(path, _)| path).into_iter().chain(["/status.json", "/events"]) {
        for method in ["POST", "PUT", "DELETE"] {
            admin.send(&Request::new(method, path)).await.assert_failure(405);
        }
        admin.send(&get(path).header("Host", "evil.example")).await.assert_failure(421);
    }
    for path in ["/index.html", "/status", "/status.js.map", "/page/status.js"] {
        admin.send(&get(path)).await.assert_failure(404);
    }
    assert_eq!(harness.rails.request_count(), 0);
}

/// Traffic of every kind.
async fn send_traffic(harness: &Harness) {
    let key = |key: &str| Request::get(&format!("authorized_keys?key={key}")).with_secret();
    for request in [
        key(ROOT_KEY),
        key(ROOT_KEY),
        key(UNKNOWN_KEY),
        Request::get("check"),
        Request::get("check").header("Gitlab-Shared-Secret", "eHh4"),
        Request::get("check;a=b").with_secret(),
        Request::post("allowed").with_secret().json("{}"),
    ] {
        harness.send(&request).await;
    }
    harness.rails.respond_always(Reply::hang_up());
    harness.send(&Request::post("allowed").with_secret().json("{}").header("X-Request-Id", "abc-1")).await;
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    harness.wait_for_metric("railgate_client_connections", 0).await;
}

/// The counters of `/metrics` with this name, by one label.
fn by_label(metrics: &str, name: &str, label: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with(&format!("{name}{{"))) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value_of = series.split(&format!("{label}=\"")).nth(1).unwrap().split('"').next().unwrap();
        *sums.entry(value_of.to_owned()).or_default() += value.parse::<u64>().unwrap();
    }
    sums
}

#[tokio::test]
async fn the_figures_are_those_of_the_metrics() {
    let harness = Harness::new().await;
    send_traffic(&harness).await;
    let response = harness.gateway.admin.send(&get("/status.json")).await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    assert_restricted(&response);
    let (status, metrics) = (response.json(), harness.metrics().await);

    let routes = status["routes"].as_array().unwrap();
    let requests =
        |route: &Value| (route["route"].as_str().unwrap().to_owned(), route["requests"].as_u64().unwrap());
    assert_eq!(
        routes.iter().map(requests).collect::<BTreeMap<_, _>>(),
        by_label(&metrics, "railgate_requests_total", "route")
    );
    let mut cache = BTreeMap::<String, u64>::new();
    for (outcome, count) in routes.iter().flat_map(|route| route["cache"].as_object().unwrap()) {
        *cache.entry(outcome.clone()).or_default() += count.as_u64().unwrap();
    }
    assert_eq!(cache, by_label(&metrics, "railgate_requests_total", "cache"));
    assert_eq!(status["hit_ratio"], json!(1.0 / 3.0));
    for (member, name) in
        [("failures", "railgate_failures_total"), ("auth_refusals", "railgate_auth_refusals_total")]
    {
        assert_eq!(status[member], json!(by_label(&metrics, name, "reason")), "{member}");
    }
    for store in status["stores"].as_array().unwrap() {
        let name = store["store"].as_str().unwrap();
        for (member, family) in [("entries", "entries"), ("bytes", "bytes"), ("kept", "fills_total")] {
            let counts = by_label(&metrics, &format!("railgate_cache_{family}"), "store");
            assert_eq!(store[member], json!(counts[name]), "{name} {member}");
        }
    }
    let ages = |store: &str| {
        status["ages"].as_array().unwrap().iter().map(|age| age[store].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((ages("positive"), ages("negative")), (1, 1));
    let memory = &status["latency"][0];
    assert_eq!((&memory["answers"], &memory["count"]), (&json!("memory"), &json!(1)));
    assert!(memory["p50"].as_f64().is_some_and(|p50| p50 > 0.0), "{memory}");
    assert_eq!(status["servers"][0]["state"], "failing");
    assert_eq!((&status["operators"], &status["in_flight"]), (&json!("open"), &json!(0)));
}

#[tokio::test]
async fn the_last_refusals_have_a_reason_and_no_secret() {
    let harness = Harness::new().await;
    for _ in 0..60 {
        harness.send(&Request::get("check")).await;
    }
    send_traffic(&harness).await;
    let response = harness.gateway.admin.send(&get("/status.json")).await;
    let last = response.json()["last_failed"].as_array().unwrap().clone();
    assert_eq!(last.len(), 50);
    let newest = &last[0];
    assert_eq!(
        (
            &newest["route"],
            &newest["status"],
            &newest["failure"],
            &newest["reason"],
            &newest["correlation_id"]
        ),
        (&json!("allowed"), &json!(502), &json!("upstream_broke_off"), &Value::Null, &json!("abc-1"))
    );
    assert!(newest["at"].as_u64().is_some_and(|at| at > 1_700_000_000));
    assert_eq!((&last[1]["failure"], &last[1]["route"]), (&json!("path_parameter"), &json!("none")));
    assert_eq!((&last[2]["failure"], &last[2]["reason"]), (&json!("unauthorized"), &json!("wrong")));
    assert_eq!(last[3]["reason"], "missing");
    for secret in ["eHh4", ROOT_KEY, super::credentials::SHELL_SECRET] {
        assert!(!response.text().contains(secret), "{secret}");
    }
}

/// Reads the head of the response, and the data of the first event.
async fn first_event(connection: &mut Connection) -> Value {
    connection.write(&get("/events").to_bytes("keep-alive")).await;
    let mut read = String::new();
    while !read.split_once("data: ").is_some_and(|(_, data)| data.contains("\n\n")) {
        read.push_str(&String::from_utf8(connection.read_some().await).unwrap());
    }
    let (head, body) = read.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 200 ") && head.contains("content-type: text/event-stream\r\n"),
        "{head}"
    );
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    let data = body.split_once("data: ").unwrap().1.split("\n\n").next().unwrap();
    serde_json::from_str(data).unwrap()
}

#[tokio::test]
async fn events_have_the_figures_and_end_with_the_gateway() {
    let mut harness = Harness::new().await;
    send_traffic(&harness).await;
    let mut connection = harness.gateway.admin.connect().await;
    let event = first_event(&mut connection).await;
    assert_eq!(event["routes"], harness.gateway.admin.send(&get("/status.json")).await.json()["routes"]);
    let head = harness.gateway.admin.send(&Request::new("HEAD", "/events")).await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    harness.gateway.drain();
    connection.read_to_end().await;
    assert!(harness.gateway.wait_for_end().await);
}

#[tokio::test]
async fn sixteen_may_listen_and_the_listener_answers_others_meanwhile() {
    let harness = Harness::new().await;
    let admin = &harness.gateway.admin;
    let mut listeners = Vec::new();
    for _ in 0..16 {
        let mut connection = admin.connect().await;
        connection.write(&get("/events").to_bytes("keep-alive")).await;
        assert!(connection.read_some().await.starts_with(b"HTTP/1.1 200 "));
        listeners.push(connection);
    }
    let refused = admin.send(&get("/events")).await;
    refused.assert_failure(503);
    assert_eq!(refused.header("retry-after"), Some("10"));
    for path in ["/live", "/metrics", "/status.json", "/"] {
        assert_eq!(admin.send(&get(path)).await.status, 200, "{path}");
    }
    assert_eq!(admin.send(&Request::new("POST", "/inspect").json("")).await.status, 200);
    // A listener that leaves makes room.
    listeners.pop();
    eventually("room for another listener", async || {
        let mut connection = admin.connect().await;
        connection.write(&get("/events").to_bytes("keep-alive")).await;
        connection.read_some().await.starts_with(b"HTTP/1.1 200 ").then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_the_page_itself_may_change_anything() {
    let setup = Setup::new();
    let token = setup.dir.file("admin_token");
    fs::write(&token, "t0ken\n").unwrap();
    let harness = setup.text("admin.token_file", &token.display().to_string()).start().await;
    let admin = &harness.gateway.admin;
    let server = admin.send(&get("/status.json")).await.json()["servers"][0]["server"].clone();
    let drain =
        Request::new("POST", "/servers").json(&json!({ "server": server, "drain": true }).to_string());
    let with_token = |request: Request| request.header("Authorization", "Bearer t0ken");
    let own =
        |request: Request| request.header("Host", "localhost:9181").header("Origin", "http://localhost:9181");
    assert_eq!(admin.send(&get("/status.json")).await.json()["operators"], "token");
    for (request, status) in [
        (own(drain.clone()), 401),
        (own(with_token(drain.clone())).header("Sec-Fetch-Site", "cross-site"), 403),
        (own(with_token(drain.clone())).header("Sec-Fetch-Site", "same-site"), 403),
        (own(with_token(drain.clone())).header("Origin", "http://localhost:9181"), 403),
        (with_token(drain.clone()).header("Origin", "http://evil.example"), 403),
        (
            with_token(drain.clone())
                .header("Host", "localhost:9181")
                .header("Origin", "http://localhost:3000"),
            403,
        ),
        (with_token(drain.clone()).header("Host", "localhost").header("Origin", "null"), 403),
        (own(with_token(Request::new("POST", "/servers").form("a=b"))), 415),
    ] {
        let response = admin.send(&request).await;
        assert!(response.status == status || response.status == 400, "{request}: {response}");
        assert_eq!(admin.send(&get("/status.json")).await.json()["servers"][0]["state"], "up", "{request}");
    }
    let response = admin.send(&own(with_token(drain)).header("Sec-Fetch-Site", "same-origin")).await;
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(admin.send(&get("/status.json")).await.json()["servers"][0]["state"], "drained");
}
