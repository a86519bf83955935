//! A thread that hangs is told of, and keeps up no other: neither the other threads, nor operators, nor
//! the end.

use serde_json::json;

use super::client::{Answer, Ask, eventually};
use super::fake::ROOT_KEY;
use super::log::{self, Hang};
use super::stage::{Setup, Stage};

fn get(path: &str) -> Ask {
    Ask::new("GET", path)
}

fn setup() -> Setup {
    let setup = Setup::new();
    let token = setup.dir.file("hook_token");
    std::fs::write(&token, "h00k").unwrap();
    setup
        .set("workers", 3)
        .text("limits.drain_timeout", "100ms")
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &token.display().to_string())
}

/// What `/live` says once it says this.
async fn live(stage: &Stage, status: u16) -> Answer {
    eventually("another word of /live", async || {
        Some(stage.gateway.admin.send(&get("/live")).await).filter(|answer| answer.status == status)
    })
    .await
}

async fn stalls(stage: &Stage, thread: &str) -> Option<usize> {
    stage.metric(&format!("railgate_thread_stalls_total{{thread=\"{thread}\"}}")).await
}

/// Everything that operators have, all of which has to be answered while a thread hangs.
async fn operators_are_answered(stage: &Stage) {
    let admin = &stage.gateway.admin;
    let json = |path: &str, body: &str| Ask::new("POST", path).json(body);
    for ask in [
        get("/live"),
        get("/ready"),
        get("/metrics"),
        json("/purge", r#"{"key_id":7}"#),
        json("/inspect", ""),
        json("/servers", ""),
    ] {
        let answer = admin.send(&ask).await;
        assert_eq!(answer.status, 200, "{ask}: {answer}");
    }
}

#[tokio::test]
async fn a_worker_that_hangs_is_told_of_and_the_others_go_on() {
    let mut stage = setup().start().await;
    assert_eq!(live(&stage, 200).await.json(), json!({"status": "live"}));
    let logged = log::length();
    let hang = Hang::on(r#""correlation_id":"the-one-that-hangs""#);
    let mut stuck = stage.gateway.tcp.connect().await;
    let ask = Ask::get("check").with_secret().header("X-Request-Id", "the-one-that-hangs");
    stuck.write(&ask.to_bytes("close")).await;
    eventually("the worker to hang", async || {
        log::since(logged).contains("the-one-that-hangs").then_some(())
    })
    .await;
    operators_are_answered(&stage).await;
    // A unix socket is shared by all workers, so one that is free takes it.
    let key = Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    assert_eq!(stage.gateway.unix.send(&key).await.status, 200);

    let said = live(&stage, 503).await.json();
    assert_eq!(said["status"], "hanging", "{said}");
    let [hanging] = said["threads"].as_array().unwrap().as_slice() else { panic!("{said}") };
    let worker = hanging["thread"].as_str().unwrap();
    assert!(worker.starts_with("worker-") && hanging["silent_s"].as_u64() >= Some(10), "{said}");
    assert_eq!(stage.gateway.admin.send(&get("/ready")).await.status, 200);
    for number in 0..3 {
        let name = format!("worker-{number}");
        assert_eq!(stalls(&stage, &name).await, Some(usize::from(name == worker)));
    }
    assert_eq!(stalls(&stage, "hooks").await, Some(0));
    let log = log::since(logged);
    let told = |what: &str| log.lines().any(|line| line.contains(what) && line.contains(worker));
    assert!(told("a thread does not turn any more"));

    // Once it turns again, all is well, and a drain is none.
    drop(hang);
    live(&stage, 200).await;
    assert_eq!(stalls(&stage, worker).await, Some(1));
    stage.gateway.drain();
    assert!(stage.gateway.ended().await);
}

#[tokio::test]
async fn a_worker_that_hangs_does_not_keep_the_process() {
    let mut stage = setup().start().await;
    live(&stage, 200).await;
    let logged = log::length();
    let _hang = Hang::on(r#""correlation_id":"another-one-that-hangs""#);
    let mut stuck = stage.gateway.tcp.connect().await;
    let ask = Ask::get("check").with_secret().header("X-Request-Id", "another-one-that-hangs");
    stuck.write(&ask.to_bytes("close")).await;
    eventually("the worker to hang", async || {
        log::since(logged).contains("another-one-that-hangs").then_some(())
    })
    .await;
    stage.gateway.drain();
    assert!(!stage.gateway.ended().await, "something was dropped");
}

/// Its bodies are read, verified and understood on a thread of their own, whatever that costs.
#[tokio::test]
async fn hooks_keep_neither_operators_nor_requests_nor_the_end() {
    let mut stage = setup().start().await;
    let hooks = stage.gateway.hooks.clone().unwrap();
    let event = json!({"event_name": "key_destroy", "id": 1}).to_string();
    let hook = Ask::new("POST", "/hooks/gitlab").json(&event);
    assert_eq!(hooks.send(&hook.clone().header("X-Gitlab-Token", "h00k")).await.status, 200);
    let logged = log::length();
    let _hang = Hang::on(r#""remote_ip":"127.0.0.77""#);
    let mut stuck = hooks.connect_from("127.0.0.77").await;
    stuck.write(&hook.to_bytes("close")).await;
    eventually("the thread of the hooks to hang", async || {
        log::since(logged).contains("127.0.0.77").then_some(())
    })
    .await;
    operators_are_answered(&stage).await;
    stage.assert_alive().await;
    let said = live(&stage, 503).await.json();
    assert_eq!(said["threads"][0]["thread"], "hooks", "{said}");
    operators_are_still_answered(&stage).await;
    stage.gateway.drain();
    assert!(stage.gateway.ended().await, "no request was dropped");
}

async fn operators_are_still_answered(stage: &Stage) {
    for path in ["/ready", "/metrics"] {
        assert_eq!(stage.gateway.admin.send(&get(path)).await.status, 200);
    }
}
