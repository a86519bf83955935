//! The configuration is read again while the gateway runs, and nothing is lost by that.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::client::{Address, Request, Response, eventually};
use super::fake_rails::{FakeRails, Latch, Reply, gitlab};
use super::harness::{RunningGateway, Setup};
use super::log;

/// A gateway with a configuration file.
struct Harness {
    rails: FakeRails,
    gateway: RunningGateway,
    setup: Setup,
    file: PathBuf,
}

impl Harness {
    async fn new(setup: Setup) -> Self {
        let rails = FakeRails::listen_tcp().await;
        let file = setup.dir.file("railgate.toml");
        std::fs::write(&file, setup.config(&rails.address)).unwrap();
        Self { gateway: RunningGateway::start_with_file(&file), rails, setup, file }
    }

    /// Changes keys, and reads the file again.
    async fn reload_with(&mut self, keys: &[(&str, &str)]) -> Response {
        let setup = std::mem::replace(&mut self.setup, Setup::new());
        self.setup = keys.iter().fold(setup, |setup, (key, value)| setup.set(key, value));
        let text = self.setup.config(&self.rails.address);
        self.reload_text(&text).await
    }

    async fn reload_text(&self, text: &str) -> Response {
        std::fs::write(&self.file, text).unwrap();
        reload(&self.gateway.admin).await
    }
}

async fn reload(admin: &Address) -> Response {
    admin.send(&Request::new("POST", "/reload").json("")).await
}

fn key_of(number: usize) -> Request {
    Request::get(&format!("discover?user_id={number}")).with_secret()
}

/// The connections of clients, those to Rails and the cache are the same afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_fail_no_request() {
    const CLIENTS: usize = 16;
    const REQUESTS: usize = 10_000;
    let harness = Harness::new(Setup::new().set("workers", 2)).await;
    assert_eq!(harness.gateway.tcp.send(&key_of(1)).await.status, 200);
    let (sent, failed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (address, sent, failed) =
                (harness.gateway.tcp.clone(), Arc::clone(&sent), Arc::clone(&failed));
            tokio::spawn(async move {
                let mut connection = address.connect().await;
                while sent.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                    let hit = connection.exchange(&key_of(1)).await;
                    let pass = connection.exchange(&Request::post("allowed").with_shell_token()).await;
                    failed.fetch_add(usize::from(hit.status != 200 || pass.status != 200), Ordering::Relaxed);
                }
            })
        })
        .collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let mut reloads = 0;
    while !is_over.load(Ordering::Relaxed) {
        let (ttl, concurrency) = (60 + reloads % 2, 100 + reloads % 3);
        let text = harness.setup.config(&harness.rails.address).replace("cache.discover.ttl = \"1h\"", "");
        let text = format!(
            "cache.discover.ttl = \"{ttl}m\"\nupstream.classes.access.concurrency = {concurrency}\n\
             cache.discover.stale_if_error = \"0s\"\nlog.requests = {}\n{text}",
            reloads % 2 == 0
        );
        let answer = harness.reload_text(&text).await;
        assert_eq!(answer.status, 200, "{answer}");
        reloads += 1;
        is_over.store(clients.iter().all(tokio::task::JoinHandle::is_finished), Ordering::Relaxed);
    }
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(failed.load(Ordering::Relaxed), 0, "after {reloads} reloads");
    assert!(reloads > 3, "{reloads}");
    let accepted = harness.gateway.metric("railgate_client_connections_accepted_total").await;
    assert_eq!(accepted, Some(1 + CLIENTS), "no client had to connect again");
    let discovered = harness.rails.requests().iter().filter(|request| request.is_for("discover")).count();
    assert_eq!(discovered, 1, "the cache was kept");
    assert!(harness.rails.connection_count() <= 2 * CLIENTS, "{}", harness.rails.connection_count());
    println!("{REQUESTS} times two requests, {reloads} reloads, 0 failures");
}

#[tokio::test]
async fn a_file_with_mistakes_changes_nothing_and_all_of_them_are_named() {
    let harness = Harness::new(Setup::new()).await;
    let good = harness.setup.config(&harness.rails.address);
    let successful = "railgate_config_last_reload_successful";
    harness.gateway.wait_for_metric(successful, 1).await;
    let place = log::position();
    let bad = good
        .replace("cache.discover.ttl = \"1h\"", "cache.discover.ttl = \"1 h\"\ncache.dicsover.ttl = \"1s\"");
    let bad = bad.replace("cache.check.ttl = \"1h\"", "cache.check.ttl = \"0s\"");
    let answer = harness.reload_text(&bad).await;
    assert_eq!(answer.status, 422, "{answer}");
    let body = answer.json();
    let mistakes: Vec<_> = body["mistakes"].as_array().unwrap().iter().collect();
    let line = bad.lines().position(|line| line.starts_with("cache.discover.ttl")).unwrap() + 1;
    let keys: Vec<_> = mistakes.iter().map(|mistake| mistake["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["cache.discover.ttl", "cache.dicsover"], "{body}");
    assert_eq!(mistakes[0]["line"], line);
    assert_eq!(mistakes[0]["file"].as_str(), harness.file.to_str());
    assert!(mistakes[0]["message"].as_str().unwrap().contains("expected a duration"), "{body}");
    harness.gateway.wait_for_metric(successful, 0).await;
    let logged = log::since(place);
    let logged = logged.lines().find(|line| line.contains("the configuration was not changed")).unwrap();
    assert!(logged.contains("cache.discover.ttl") && logged.contains("cache.dicsover"), "{logged}");
    // What was right in the file is not in effect either: `check` is still kept for an hour.
    for _ in 0..2 {
        assert_eq!(harness.gateway.tcp.send(&Request::get("check").with_secret()).await.status, 200);
    }
    assert_eq!(harness.rails.request_count(), 1);
    // A file that is gone is a mistake too.
    std::fs::remove_file(&harness.file).unwrap();
    assert_eq!(reload(&harness.gateway.admin).await.status, 422);
    assert_eq!(harness.reload_text(&good).await.status, 200);
    harness.gateway.wait_for_metric(successful, 1).await;
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named_and_the_others_take_effect() {
    let mut harness = Harness::new(Setup::new()).await;
    let none = harness.reload_with(&[]).await;
    assert_eq!((none.status, none.json()["restart_needed"].clone()), (200, json!([])));
    let check = Request::get("check").with_secret();
    for _ in 0..2 {
        assert_eq!(harness.gateway.tcp.send(&check).await.status, 200);
    }
    assert_eq!(harness.rails.request_count(), 1);
    let answer = harness
        .reload_with(&[
            ("workers", "3"),
            ("cache.max_bytes", "\"64MiB\""),
            ("cache.check.ttl", "\"0s\""),
            ("cache.discover.stale_if_error", "\"168h\""),
            ("limits.connections", "5"),
            ("admin.hosts", r#"["other.example"]"#),
        ])
        .await;
    assert_eq!(answer.status, 200, "{answer}");
    let keys = ["workers", "cache.max_bytes", "limits.connections", "cache.discover"];
    assert_eq!(answer.json()["restart_needed"], json!(keys));
    let mut metrics = Request::new("GET", "/metrics");
    assert_eq!(harness.gateway.admin.send(&metrics).await.status, 421, "admin.hosts are others now");
    metrics = metrics.header("Host", "other.example");
    let series = harness.gateway.admin.send(&metrics).await;
    assert!(series.text().contains("railgate_listener_max_connections"), "{series}");
    assert!(!series.text().contains("railgate_listener_max_connections{listener=\"127.0.0.1:0\"} 5"));
    // `check` is not kept any more.
    for _ in 0..2 {
        assert_eq!(harness.gateway.tcp.send(&check).await.status, 200);
    }
    assert_eq!(harness.rails.request_count(), 3);
}

fn servers(all: &[&FakeRails]) -> String {
    let sections = all.iter().map(|rails| format!("[[upstream.server]]\nurl = \"{}\"", rails.address.url()));
    sections.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn servers_of_rails_come_and_go() {
    // A worker has connections of its own.
    let setup = Setup::new().text("upstream.health.interval", "0s").set("workers", 1);
    let (stays, goes, comes) =
        (FakeRails::listen_tcp().await, FakeRails::listen_tcp().await, FakeRails::listen_tcp().await);
    let file = setup.dir.file("railgate.toml");
    let text = |all: &[&FakeRails]| {
        let text = setup.config(&stays.address);
        let url = text.lines().find(|line| line.starts_with("upstream.url")).unwrap();
        format!("{}\n{}", text.replace(url, ""), servers(all))
    };
    std::fs::write(&file, text(&[&stays, &goes])).unwrap();
    let gateway = RunningGateway::start_with_file(&file);
    let allowed = Request::post("allowed").with_secret();
    let latch = Latch::closed();
    let (held, opened) = (Reply::json(200, "{}").after(&latch), latch.clone());
    goes.respond_with(
        move |request| if request.is_for("lfs_authenticate") { held.clone() } else { gitlab(request) },
    );
    stays.respond_with(|request| {
        if request.is_for("lfs_authenticate") { Reply::json(403, "{}") } else { gitlab(request) }
    });
    while stays.request_count() == 0 || goes.request_count() == 0 {
        assert_eq!(gateway.tcp.send(&allowed).await.status, 200);
    }
    // A request that is at the server which goes.
    let slow = loop {
        let before = goes.request_count();
        let mut connection = gateway.tcp.connect().await;
        connection.write(&Request::post("lfs_authenticate").with_secret().to_bytes("close")).await;
        let is_there = async || (goes.request_count() > before).then_some(true);
        let is_refused = connection.is_readable_within(std::time::Duration::from_millis(200)).await;
        if !is_refused {
            eventually("the request to be at Rails", is_there).await;
            break connection;
        }
    };
    let shown = |body: Value| -> Vec<String> {
        let all = body["servers"].as_array().unwrap().clone();
        all.iter().map(|one| one["server"].as_str().unwrap().to_owned()).collect()
    };
    let state = async || gateway.admin.send(&Request::new("POST", "/servers").json("")).await.json();
    let name = |rails: &FakeRails| rails.address.url().replace("http://", "");
    assert_eq!(shown(state().await), [name(&stays), name(&goes)]);
    let opened_before = stays.connection_count();
    std::fs::write(&file, text(&[&comes, &stays])).unwrap();
    let answer = reload(&gateway.admin).await;
    assert_eq!((answer.status, answer.json()["restart_needed"].clone()), (200, json!([])), "{answer}");
    let after = state().await;
    assert_eq!(shown(after.clone()), [name(&comes), name(&stays)]);
    assert_eq!(after["servers"][0]["state"], "slow_start", "{after}");
    let gone = goes.request_count();
    while comes.request_count() == 0 {
        assert_eq!(gateway.tcp.send(&allowed).await.status, 200);
    }
    for _ in 0..20 {
        assert_eq!(gateway.tcp.send(&allowed).await.status, 200);
    }
    assert_eq!(goes.request_count(), gone, "it gets no more requests");
    assert_eq!(stays.connection_count(), opened_before, "its connection was kept");
    opened.open();
    let mut slow = slow;
    let response = slow.read_response().await;
    assert_eq!(response.status, 200, "what runs ends where it began: {response}");
}

#[tokio::test]
async fn limits_of_a_class_change_for_requests_that_run() {
    let mut harness = Harness::new(
        Setup::new().set("upstream.classes.access.concurrency", 4).set("upstream.classes.access.queue", 100),
    )
    .await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut running = Vec::new();
    for count in 1..=4 {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
        harness.rails.wait_for_requests(count).await;
        running.push(connection);
    }
    let fewer = harness.reload_with(&[("upstream.classes.access.concurrency", "2")]).await;
    assert_eq!(fewer.status, 200, "{fewer}");
    let mut waits = harness.gateway.tcp.connect().await;
    waits.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
    harness.gateway.wait_for_metric(r#"railgate_upstream_queue{class="access"}"#, 1).await;
    let more = harness.reload_with(&[("upstream.classes.access.concurrency", "5")]).await;
    assert_eq!(more.status, 200, "{more}");
    // Five at one time, of which four were there before.
    harness.rails.wait_for_requests(5).await;
    latch.open();
    running.push(waits);
    for mut connection in running {
        assert_eq!(connection.read_response().await.status, 200);
    }
}

/// Rails has moved while it was away: what waits for it is not left to wait at the place where it was.
#[tokio::test]
async fn requests_that_wait_for_rails_go_to_where_it_is_now() {
    let setup = Setup::new().set("workers", 1).text("upstream.classes.access.hold", "10m");
    let (before, after) = (FakeRails::listen_tcp().await, FakeRails::listen_tcp().await);
    let file = setup.dir.file("railgate.toml");
    std::fs::write(&file, setup.config(&before.address)).unwrap();
    let gateway = RunningGateway::start_with_file(&file);
    drop(before);
    let mut waiting = Vec::new();
    for count in 1..=5 {
        let mut connection = gateway.tcp.connect().await;
        connection.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
        gateway.wait_for_metric("railgate_upstream_held", count).await;
        waiting.push(connection);
    }
    // Not there either: the requests go on waiting.
    let nowhere = FakeRails::listen_tcp().await;
    std::fs::write(&file, setup.config(&nowhere.address)).unwrap();
    drop(nowhere);
    assert_eq!(reload(&gateway.admin).await.status, 200);
    std::fs::write(&file, setup.config(&after.address)).unwrap();
    assert_eq!(reload(&gateway.admin).await.status, 200);
    for mut connection in waiting {
        assert_eq!(connection.read_response().await.status, 200);
    }
    assert_eq!(after.request_count(), 5);
    gateway.wait_for_metric("railgate_upstream_held", 0).await;
}

#[tokio::test]
async fn reloading_takes_the_rights_of_an_operator() {
    let setup = Setup::new();
    std::fs::write(setup.dir.file("token"), "t0ken\n").unwrap();
    let path = setup.dir.file("token").display().to_string();
    let mut harness = Harness::new(setup.text("admin.token_file", &path)).await;
    let request = || Request::new("POST", "/reload").json("");
    let authorized = || request().header("Authorization", "Bearer t0ken");
    for (request, status) in [
        (request(), 401),
        (Request::new("GET", "/reload"), 405),
        (Request::new("POST", "/reload").header("Authorization", "Bearer t0ken"), 415),
        (authorized().header("Origin", "http://evil.example"), 403),
        (authorized().header("Host", "evil.example"), 421),
        (Request::new("POST", "/reload").header("Authorization", "Bearer t0ken").json("[1]"), 400),
        (authorized(), 200),
    ] {
        let answer = harness.gateway.admin.send(&request).await;
        assert_eq!(answer.status, status, "{request}: {answer}");
    }
    // The token itself is one of the things that change.
    std::fs::write(harness.setup.dir.file("token2"), "other\n").unwrap();
    let second = format!("{:?}", harness.setup.dir.file("token2").display().to_string());
    harness.setup = std::mem::replace(&mut harness.setup, Setup::new()).set("admin.token_file", second);
    std::fs::write(&harness.file, harness.setup.config(&harness.rails.address)).unwrap();
    assert_eq!(harness.gateway.admin.send(&authorized()).await.status, 200);
    assert_eq!(harness.gateway.admin.send(&authorized()).await.status, 401);
}

#[tokio::test]
async fn the_level_of_the_log_is_shown_and_set() {
    let harness = Harness::new(Setup::new()).await;
    let admin = &harness.gateway.admin;
    let get = || Request::new("GET", "/log");
    assert_eq!(admin.send(&get()).await.json(), json!({ "level": "info" }));
    for (body, status) in [
        (r#"{"level": "debug"}"#, 200),
        (r#"{"level": "verbose"}"#, 400),
        (r#"{"level": 1}"#, 400),
        (r#"{"level": "warn", "for": "1h"}"#, 400),
        ("debug", 400),
    ] {
        let answer = admin.send(&Request::new("POST", "/log").json(body)).await;
        assert_eq!(answer.status, status, "{body}: {answer}");
    }
    assert_eq!(admin.send(&get()).await.json(), json!({ "level": "debug" }));
    // Until the configuration says something else.
    assert_eq!(reload(admin).await.status, 200);
    assert_eq!(admin.send(&get()).await.json(), json!({ "level": "info" }));
}
