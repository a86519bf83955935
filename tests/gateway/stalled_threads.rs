//! A stalled thread is reported, and blocks neither other threads nor operators nor shutdown.

use serde_json::json;

use super::client::{Request, Response, eventually};
use super::fake_rails::ROOT_KEY;
use super::harness::{Harness, Setup};
use super::log::{self, LogBlocker};

fn get(path: &str) -> Request {
    Request::new("GET", path)
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

/// Waits until `/live` returns this status.
async fn wait_for_live_status(harness: &Harness, status: u16) -> Response {
    eventually("another word of /live", async || {
        Some(harness.gateway.admin.send(&get("/live")).await).filter(|response| response.status == status)
    })
    .await
}

async fn stall_count(harness: &Harness, thread: &str) -> Option<usize> {
    harness.metric(&format!("railgate_thread_stalls_total{{thread=\"{thread}\"}}")).await
}

/// All pages of the admin listener have to work while a thread is stalled.
async fn assert_admin_pages_answer(harness: &Harness) {
    let admin = &harness.gateway.admin;
    let json = |path: &str, body: &str| Request::new("POST", path).json(body);
    for request in [
        get("/live"),
        get("/ready"),
        get("/metrics"),
        json("/purge", r#"{"key_id":7}"#),
        json("/inspect", ""),
        json("/servers", ""),
    ] {
        let response = admin.send(&request).await;
        assert_eq!(response.status, 200, "{request}: {response}");
    }
}

#[tokio::test]
async fn a_stalled_worker_is_reported_and_the_others_continue() {
    let mut harness = setup().start().await;
    assert_eq!(wait_for_live_status(&harness, 200).await.json(), json!({"status": "live"}));
    let logged = log::position();
    let hang = LogBlocker::on(r#""correlation_id":"the-one-that-hangs""#);
    let mut stuck = harness.gateway.tcp.connect().await;
    let request = Request::get("check").with_secret().header("X-Request-Id", "the-one-that-hangs");
    stuck.write(&request.to_bytes("close")).await;
    eventually("the worker to hang", async || {
        log::since(logged).contains("the-one-that-hangs").then_some(())
    })
    .await;
    assert_admin_pages_answer(&harness).await;
    // All workers share the unix socket, so a free one accepts.
    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    assert_eq!(harness.gateway.unix.send(&key).await.status, 200);

    let said = wait_for_live_status(&harness, 503).await.json();
    assert_eq!(said["status"], "hanging", "{said}");
    let [hanging] = said["threads"].as_array().unwrap().as_slice() else { panic!("{said}") };
    let worker = hanging["thread"].as_str().unwrap();
    assert!(worker.starts_with("worker-") && hanging["silent_s"].as_u64() >= Some(10), "{said}");
    assert_eq!(harness.gateway.admin.send(&get("/ready")).await.status, 200);
    for number in 0..3 {
        let name = format!("worker-{number}");
        assert_eq!(stall_count(&harness, &name).await, Some(usize::from(name == worker)));
    }
    assert_eq!(stall_count(&harness, "hooks").await, Some(0));
    let log = log::since(logged);
    let is_logged = |what: &str| log.lines().any(|line| line.contains(what) && line.contains(worker));
    assert!(is_logged("a thread hangs"));

    // Once it runs again, the gateway is live, and a drain is no stall.
    drop(hang);
    wait_for_live_status(&harness, 200).await;
    assert_eq!(stall_count(&harness, worker).await, Some(1));
    harness.gateway.drain();
    assert!(harness.gateway.wait_for_end().await);
}

#[tokio::test]
async fn a_stalled_worker_does_not_block_shutdown() {
    let mut harness = setup().start().await;
    wait_for_live_status(&harness, 200).await;
    let logged = log::position();
    let _hang = LogBlocker::on(r#""correlation_id":"another-one-that-hangs""#);
    let mut stuck = harness.gateway.tcp.connect().await;
    let request = Request::get("check").with_secret().header("X-Request-Id", "another-one-that-hangs");
    stuck.write(&request.to_bytes("close")).await;
    eventually("the worker to hang", async || {
        log::since(logged).contains("another-one-that-hangs").then_some(())
    })
    .await;
    harness.gateway.drain();
    assert!(!harness.gateway.wait_for_end().await, "something was dropped");
}

/// Bodies of hooks are read, verified and parsed on their own thread.
#[tokio::test]
async fn a_stalled_hooks_thread_blocks_nothing_else() {
    let mut harness = setup().start().await;
    let hooks = harness.gateway.hooks.clone().unwrap();
    let event = json!({"event_name": "key_destroy", "id": 1}).to_string();
    let hook = Request::new("POST", "/hooks/gitlab").json(&event);
    assert_eq!(hooks.send(&hook.clone().header("X-Gitlab-Token", "h00k")).await.status, 200);
    let logged = log::position();
    let _hang = LogBlocker::on(r#""remote_ip":"127.0.0.77""#);
    let mut stuck = hooks.connect_from("127.0.0.77").await;
    stuck.write(&hook.to_bytes("close")).await;
    eventually("the thread of the hooks to hang", async || {
        log::since(logged).contains("127.0.0.77").then_some(())
    })
    .await;
    assert_admin_pages_answer(&harness).await;
    harness.assert_alive().await;
    let said = wait_for_live_status(&harness, 503).await.json();
    assert_eq!(said["threads"][0]["thread"], "hooks", "{said}");
    assert_ready_and_metrics_answer(&harness).await;
    harness.gateway.drain();
    assert!(harness.gateway.wait_for_end().await, "no request was dropped");
}

async fn assert_ready_and_metrics_answer(harness: &Harness) {
    for path in ["/ready", "/metrics"] {
        assert_eq!(harness.gateway.admin.send(&get(path)).await.status, 200);
    }
}
