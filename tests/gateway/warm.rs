//! A restart does not forget, and does not remember what was dropped.

use std::fs;

use railgate::config;
use serde_json::json;

use super::client::{Answer, Ask};
use super::fake::{ROOT_KEY, Rails, Reply, gitlab};
use super::log;
use super::stage::{Running, Setup, Stage};

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

/// A gateway, and what another one needs to take its place.
async fn start(setup: Setup) -> (Stage, config::Settings) {
    let rails = Rails::on_tcp().await;
    let settings = setup.settings(&rails.peer);
    (setup.in_front_of(rails), settings)
}

async fn restart(stage: &mut Stage, settings: config::Settings) {
    stop(stage).await;
    stage.gateway = Running::start(settings);
}

async fn stop(stage: &mut Stage) {
    stage.gateway.drain();
    assert!(stage.gateway.ended().await);
}

fn key() -> Ask {
    Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

fn user() -> Ask {
    Ask::get("discover?username=root").with_secret()
}

fn is_stale(answer: &Answer) -> bool {
    answer.header("cache-status").is_some_and(|status| status.contains("stale_while_revalidate"))
}

#[tokio::test]
async fn what_was_kept_is_kept() {
    let (mut stage, settings) = start(setup()).await;
    let before = [stage.send(&key()).await, stage.send(&user()).await];
    assert_eq!(stage.send(&Ask::get("discover?username=nobody").with_secret()).await.text(), "null");
    let logged = log::length();
    restart(&mut stage, settings).await;
    for (ask, before) in [key(), user()].iter().zip(before) {
        let (answer, asked) = stage.send_counting(ask).await;
        assert_eq!((answer.is_hit(), asked, answer.status), (true, 0, 200), "{answer}");
        assert_eq!((answer.text(), answer.header("etag")), (before.text(), before.header("etag")));
    }
    // Nobody is let in who was not before.
    stage.send(&Ask::get(&format!("authorized_keys?key={ROOT_KEY}"))).await.assert_unauthorized();
    // "There is no such user" is asked anew.
    let (_, asked) = stage.send_counting(&Ask::get("discover?username=nobody").with_secret()).await;
    assert_eq!(asked, 1);
    let path = stage.dir.file(FILE).display().to_string();
    let log: String = log::since(logged).lines().filter(|line| line.contains(&path)).collect();
    assert!(log.contains("cache saved") && log.contains("cache loaded"), "{log}");
    assert!(!log.contains(ROOT_KEY));
    assert!(!stage.dir.file(FILE).exists(), "a file is used once");
}

#[tokio::test]
async fn whoever_may_have_missed_an_event_asks_anew() {
    let (mut stage, settings) = start(with_hooks(setup())).await;
    stage.send(&key()).await;
    restart(&mut stage, settings).await;
    let answer = stage.send(&key()).await;
    assert!(is_stale(&answer), "{answer}");
    stage.reaches(r#"railgate_cache_refreshes_total{result="stored"}"#, 1).await;
    assert!(!is_stale(&stage.send(&key()).await));
}

/// An event that comes while the gateway starts is not overtaken by what is loaded.
#[tokio::test]
async fn an_event_at_the_start_is_not_undone() {
    let (mut stage, settings) = start(with_hooks(setup())).await;
    // Enough for the load to take longer than a hook.
    stage.rails.answer(|request| match request.param("user_id") {
        Some(id) => {
            let name = "x".repeat(60_000);
            Reply::json(200, &format!(r#"{{"id":{id},"username":"u{id}","name":"{name}"}}"#))
        }
        None => gitlab(request),
    });
    for id in 1..=400 {
        stage.send(&Ask::get(&format!("discover?user_id={}", id + 1_000)).with_secret()).await;
    }
    stage.send(&user()).await;
    stage.send(&key()).await;
    stop(&mut stage).await;
    stage.gateway = Running::start(settings);
    let line = format!("ssh-ed25519 {ROOT_KEY} root@example.com");
    let event = json!({"event_name": "key_destroy", "username": "root", "key": line, "id": 1});
    let hook = Ask::new("POST", "/hooks/gitlab").json(&event.to_string()).header("X-Gitlab-Token", "h00k");
    let hooks = stage.gateway.hooks.clone().unwrap();
    assert_eq!(hooks.send(&hook).await.status, 200);
    let (answer, asked) = stage.send_counting(&key()).await;
    assert_eq!((answer.is_hit(), asked), (false, 1), "{answer}");
    let answer = stage.send(&user()).await;
    assert!(is_stale(&answer), "the others are there: {answer}");
}

#[tokio::test]
async fn what_was_dropped_does_not_come_back() {
    let (mut stage, settings) = start(setup()).await;
    stage.send(&key()).await;
    stage.send(&user()).await;
    let purge = Ask::new("POST", "/purge").json(&json!({ "ssh_key": ROOT_KEY }).to_string());
    restart(&mut stage, settings.clone()).await;
    assert_eq!(stage.gateway.admin.send(&purge).await.json(), json!({"purged": 1}));
    restart(&mut stage, settings).await;
    let (answer, asked) = stage.send_counting(&key()).await;
    assert_eq!((answer.is_hit(), asked), (false, 1), "{answer}");
    assert!(stage.send(&user()).await.is_hit());
}

#[tokio::test]
async fn what_cannot_be_believed_is_ignored_and_told_once() {
    for (change, why) in [
        ("nothing of it", "it is damaged: it does not begin like a snapshot"),
        ("secret", "it was saved with another secret, or in front of another upstream.url"),
        ("bit", "it is damaged: its seal does not fit what is in it"),
    ] {
        let (mut stage, settings) = start(setup()).await;
        stage.send(&key()).await;
        stop(&mut stage).await;
        let file = stage.dir.file(FILE);
        let mut settings = settings;
        match change {
            "secret" => {
                settings.auth.shell_secret = railgate::secret::ShellSecret::from_text(b"another").unwrap();
            }
            "bit" => {
                let mut bytes = fs::read(&file).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&file, bytes).unwrap();
            }
            _ => fs::write(&file, "garbage, and enough of it").unwrap(),
        }
        let logged = log::length();
        stage.gateway = Running::start(settings);
        // An answer says that it has begun, whatever it is.
        stage.send(&key()).await;
        let log = log::since(logged);
        let path = file.display().to_string();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&path)).collect();
        // What is no saved cache is left alone, which is told once more.
        let is_alien = change == "nothing of it";
        assert!(lines.len() == 1 + usize::from(is_alien) && lines[0].contains(why), "{change}: {log}");
        assert_eq!(file.exists(), is_alien);
        assert_eq!(
            stage.metric(r#"railgate_cache_entries{store="positive"}"#).await,
            Some(usize::from(change != "secret"))
        );
    }
}
