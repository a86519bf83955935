//! A restart restores the cache, but nothing that was dropped.

use std::fs;

use railgate::config;
use serde_json::json;

use super::client::{Request, Response};
use super::fake_rails::{FakeRails, ROOT_KEY, Reply, gitlab};
use super::harness::{Harness, RunningGateway, Setup};
use super::log;

const FILE: &str = "cache";

fn setup() -> Setup {
    let setup = Setup::new();
    let (file, token) = (setup.dir.file(FILE), setup.dir.file("hook_token"));
    fs::write(&token, "h00k").unwrap();
    setup.text("cache.snapshot", &file.display().to_string())
}

fn with_hooks(setup: Setup) -> Setup {
    let token = setup.dir.file("hook_token").display().to_string();
    setup.text("hooks.address", "127.0.0.1:0").text("hooks.token_file", &token).text("hooks.settle", "0s")
}

/// A gateway, and the settings to start its successor.
async fn start(setup: Setup) -> (Harness, config::GatewayConfig) {
    let rails = FakeRails::listen_tcp().await;
    let settings = setup.settings(&rails.address);
    (setup.start_with(rails), settings)
}

async fn restart(harness: &mut Harness, settings: config::GatewayConfig) {
    stop(harness).await;
    harness.gateway = RunningGateway::start(settings);
}

async fn stop(harness: &mut Harness) {
    harness.gateway.drain();
    assert!(harness.gateway.wait_for_end().await);
    super::draining::wait_until_closed(&harness.gateway.unix).await;
}

fn key() -> Request {
    Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

fn user() -> Request {
    Request::get("discover?username=root").with_secret()
}

fn is_stale(response: &Response) -> bool {
    response.header("cache-status").is_some_and(|status| status.contains("stale_while_revalidate"))
}

#[tokio::test]
async fn saved_entries_are_restored() {
    let (mut harness, settings) = start(setup()).await;
    let before = [harness.send(&key()).await, harness.send(&user()).await];
    assert_eq!(harness.send(&Request::get("discover?username=nobody").with_secret()).await.text(), "null");
    let logged = log::position();
    restart(&mut harness, settings).await;
    for (request, before) in [key(), user()].iter().zip(before) {
        let (response, asked) = harness.send_counting(request).await;
        assert_eq!((response.is_hit(), asked, response.status), (true, 0, 200), "{response}");
        assert_eq!((response.text(), response.header("etag")), (before.text(), before.header("etag")));
    }
    // A credential is still required.
    harness.send(&Request::get(&format!("authorized_keys?key={ROOT_KEY}"))).await.assert_unauthorized();
    // Negative entries are not saved.
    let (_, asked) = harness.send_counting(&Request::get("discover?username=nobody").with_secret()).await;
    assert_eq!(asked, 1);
    let path = harness.dir.file(FILE).display().to_string();
    let log: String = log::since(logged).lines().filter(|line| line.contains(&path)).collect();
    assert!(log.contains("cache saved") && log.contains("cache loaded"), "{log}");
    assert!(!log.contains(ROOT_KEY));
    assert!(!harness.dir.file(FILE).exists(), "a file is used once");
}

#[tokio::test]
async fn restored_entries_are_stale_where_hooks_may_have_been_missed() {
    let (mut harness, settings) = start(with_hooks(setup())).await;
    harness.send(&key()).await;
    restart(&mut harness, settings).await;
    let response = harness.send(&key()).await;
    assert!(is_stale(&response), "{response}");
    harness.wait_for_metric(r#"railgate_cache_refreshes_total{result="stored"}"#, 1).await;
    assert!(!is_stale(&harness.send(&key()).await));
}

/// It is not overtaken by the entries that are loaded.
#[tokio::test]
async fn an_event_during_startup_is_not_undone() {
    let (mut harness, settings) = start(with_hooks(setup())).await;
    // Enough entries for the load to take longer than a hook.
    harness.rails.respond_with(|request| match request.param("user_id") {
        Some(id) => {
            let name = "x".repeat(60_000);
            Reply::json(200, &format!(r#"{{"id":{id},"username":"u{id}","name":"{name}"}}"#))
        }
        None => gitlab(request),
    });
    for id in 1..=400 {
        harness.send(&Request::get(&format!("discover?user_id={}", id + 1_000)).with_secret()).await;
    }
    harness.send(&user()).await;
    harness.send(&key()).await;
    stop(&mut harness).await;
    harness.gateway = RunningGateway::start(settings);
    let line = format!("ssh-ed25519 {ROOT_KEY} root@example.com");
    let event = json!({"event_name": "key_destroy", "username": "root", "key": line, "id": 1});
    let hook =
        Request::new("POST", "/hooks/gitlab").json(&event.to_string()).header("X-Gitlab-Token", "h00k");
    let hooks = harness.gateway.hooks.clone().unwrap();
    assert_eq!(hooks.send(&hook).await.status, 200);
    let (response, asked) = harness.send_counting(&key()).await;
    assert_eq!((response.is_hit(), asked), (false, 1), "{response}");
    let response = harness.send(&user()).await;
    assert!(is_stale(&response), "the others are there: {response}");
}

#[tokio::test]
async fn purged_entries_are_not_restored() {
    let (mut harness, settings) = start(setup()).await;
    harness.send(&key()).await;
    harness.send(&user()).await;
    let purge = Request::new("POST", "/purge").json(&json!({ "ssh_key": ROOT_KEY }).to_string());
    restart(&mut harness, settings.clone()).await;
    assert_eq!(harness.gateway.admin.send(&purge).await.json(), json!({"purged": 1, "fleet": "off"}));
    restart(&mut harness, settings).await;
    let (response, asked) = harness.send_counting(&key()).await;
    assert_eq!((response.is_hit(), asked), (false, 1), "{response}");
    assert!(harness.send(&user()).await.is_hit());
}

#[tokio::test]
async fn an_unusable_snapshot_is_ignored_and_logged_once() {
    for (change, why) in [
        ("nothing of it", "it is damaged: it does not begin like a snapshot"),
        ("secret", "it was saved with another secret, or in front of another upstream.url"),
        ("bit", "it is damaged: its MAC does not match its content"),
    ] {
        let (mut harness, settings) = start(setup()).await;
        harness.send(&key()).await;
        stop(&mut harness).await;
        let file = harness.dir.file(FILE);
        let mut settings = settings;
        match change {
            "secret" => {
                settings.auth.shell_secret = railgate::secret::ShellSecret::from_text(b"another").unwrap();
                fs::write(harness.dir.file("shell_secret"), "another").unwrap();
            }
            "bit" => {
                let mut bytes = fs::read(&file).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&file, bytes).unwrap();
            }
            _ => fs::write(&file, "garbage, and enough of it").unwrap(),
        }
        let logged = log::position();
        harness.gateway = RunningGateway::start(settings);
        // A response shows that the gateway has started.
        harness.send(&key()).await;
        let log = log::since(logged);
        let path = file.display().to_string();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&path)).collect();
        // A file that is not a snapshot is left alone, which is logged as well.
        let is_alien = change == "nothing of it";
        assert!(lines.len() == 1 + usize::from(is_alien) && lines[0].contains(why), "{change}: {log}");
        assert_eq!(file.exists(), is_alien);
        assert_eq!(
            harness.metric(r#"railgate_cache_entries{store="positive"}"#).await,
            Some(usize::from(change != "secret"))
        );
    }
}
