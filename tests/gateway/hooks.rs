//! System Hooks of GitLab drop exactly the entries they concern, and only GitLab can send them.

use std::process::{Command, Stdio};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{Address, Request, Response, eventually, within_deadline};
use super::credentials::now;
use super::fake_rails::{FakeRails, Latch, ROOT_KEY, Reply, gitlab};
use super::harness::{Harness, Setup};

fn key() -> Request {
    Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

fn user() -> Request {
    Request::get("discover?key_id=1").with_secret()
}

fn event(body: &Value) -> Request {
    Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Event", "System Hook").json(&body.to_string())
}

fn key_event(name: &str) -> Value {
    json!({"event_name": name, "key": format!("ssh-ed25519 {ROOT_KEY} me@home"), "id": 1, "username": "root"})
}

/// The settle delay is longer than any test, unless a test changes it.
async fn harness_with(change: impl FnOnce(Setup) -> Setup) -> (Harness, Address) {
    let setup = Setup::new();
    let (token, signing) = (setup.dir.file("hook_token"), setup.dir.file("signing_token"));
    std::fs::write(&token, "h00k\n").unwrap();
    std::fs::write(&signing, format!("whsec_{}\n", STANDARD.encode("signing"))).unwrap();
    let setup = setup
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &token.display().to_string())
        .text("hooks.signing_token_file", &signing.display().to_string())
        .text("hooks.settle", "1h");
    let harness = change(setup).start().await;
    let hooks = harness.gateway.hooks.clone().unwrap();
    (harness, hooks)
}

async fn harness() -> (Harness, Address) {
    harness_with(|setup| setup).await
}

/// Whether the key and the user are answered from the cache.
async fn cached(harness: &Harness) -> (bool, bool) {
    (harness.send(&key()).await.is_hit(), harness.send(&user()).await.is_hit())
}

async fn send_hook(hooks: &Address, body: &Value) -> Response {
    hooks.send(&event(body).header("X-Gitlab-Token", "h00k")).await
}

#[tokio::test]
async fn an_event_drops_exactly_the_entries_it_outdates() {
    let (harness, hooks) = harness().await;
    let user_event = |name: &str| json!({"event_name": name, "user_id": 1, "username": "ROOT"});
    for (body, still_kept) in [
        (key_event("key_destroy"), (false, false)),
        (key_event("key_create"), (false, false)),
        (key_event("deploykey_destroy"), (false, false)),
        (user_event("user_failed_login"), (false, false)),
        (user_event("user_create"), (false, false)),
        (user_event("user_destroy"), (false, false)),
        (
            json!({"event_name": "user_rename", "user_id": 9, "username": "x", "old_username": "root"}),
            (false, false),
        ),
        (json!({"event_name": "key_destroy", "key": "ssh-rsa AAAA x", "id": 404}), (true, true)),
        (json!({"event_name": "user_destroy", "user_id": 404, "username": "x"}), (false, true)),
        (json!({"event_name": "project_create", "id": 1, "user_id": 1}), (true, true)),
        (json!({"object_kind": "push"}), (true, true)),
    ] {
        cached(&harness).await;
        assert_eq!(cached(&harness).await, (true, true));
        for _ in 0..2 {
            let response = send_hook(&hooks, &body).await;
            assert_eq!(response.status, 200, "{body}: {response}");
        }
        assert_eq!(cached(&harness).await, still_kept, "{body}");
    }
    assert_eq!(harness.metric("railgate_hooks_total{event=\"key_destroy\"}").await, Some(6));
    assert_eq!(harness.metric("railgate_hooks_total{event=\"other\"}").await, Some(4));
}

/// The refusal does not name the owner, so an event about any user may be about this one.
#[tokio::test]
async fn the_refusal_of_a_blocked_owners_key_is_dropped_by_events_about_users() {
    let (harness, hooks) = harness().await;
    let blocked = r#"{"message":"401 Unauthorized - Key"}"#;
    harness.rails.respond_always(Reply::json(401, blocked));
    let user_event = |name: &str| json!({"event_name": name, "user_id": 11, "username": "barred"});
    for (event, is_asked_again) in [
        (user_event("user_failed_login"), true),
        (user_event("user_create"), true),
        (user_event("user_destroy"), true),
        (key_event("key_create"), true),
        (json!({"event_name": "project_create", "id": 1, "user_id": 11}), false),
    ] {
        harness.send(&key()).await;
        let (response, asked) = harness.send_counting(&key()).await;
        assert_eq!((response.status, response.text(), asked), (401, blocked, 0), "{response}");
        assert_eq!(send_hook(&hooks, &event).await.status, 200);
        let (response, asked) = harness.send_counting(&key()).await;
        assert_eq!((response.status, asked), (401, usize::from(is_asked_again)), "{event}");
    }
    // Once the owner is let in, the next event ends the refusal.
    harness.rails.recover();
    assert_eq!(harness.send(&key()).await.status, 401);
    send_hook(&hooks, &user_event("user_failed_login")).await;
    assert_eq!(harness.send(&key()).await.status, 200);
}

#[tokio::test]
async fn a_response_in_flight_during_an_event_is_not_stored() {
    let (harness, hooks) = harness().await;
    let latch = Latch::closed();
    let held = latch.clone();
    harness.rails.respond_with(move |request| gitlab(request).after(&held));
    let mut connection = harness.gateway.tcp.connect().await;
    connection.write(&key().to_bytes("close")).await;
    harness.rails.wait_for_requests(1).await;
    assert_eq!(send_hook(&hooks, &key_event("key_destroy")).await.status, 200);
    latch.open();
    assert_eq!(connection.read_response().await.cache_status(), "railgate; fwd=miss; detail=fenced");
    assert!(!harness.send(&key()).await.is_hit());
}

/// A read replica may not have the change yet when the next request comes.
#[tokio::test]
async fn outdated_entries_are_dropped_again_after_the_settle_delay() {
    let (harness, hooks) = harness_with(|setup| setup.text("hooks.settle", "300ms")).await;
    harness.send_forwarded(&key()).await;
    send_hook(&hooks, &key_event("key_destroy")).await;
    let purged = harness.metric("railgate_cache_purged_total").await.unwrap();
    harness.send(&key()).await;
    harness.wait_for_metric("railgate_cache_purged_total", purged + 1).await;
    assert!(!harness.send(&key()).await.is_hit());
}

#[tokio::test]
async fn events_require_the_token() {
    let (harness, hooks) = harness().await;
    cached(&harness).await;
    let body = key_event("key_destroy");
    let tokens = ["", "h00", "h00k2", "H00K", " ", "s3cret"];
    for token in tokens {
        hooks.send(&event(&body).header("X-Gitlab-Token", token)).await.assert_failure(401);
    }
    hooks.send(&event(&body)).await.assert_failure(401);
    assert_eq!(cached(&harness).await, (true, true));
    let refused = tokens.len() + 1;
    assert_eq!(harness.metric("railgate_hooks_refused_total").await, Some(refused));
    for (request, status) in [
        (Request::new("GET", "/hooks/gitlab"), 405),
        (Request::new("POST", "/hooks/gitlab/"), 404),
        (Request::new("POST", "/purge").json(r#"{"all":true}"#), 404),
        (event(&json!([])), 400),
        (event(&json!({})), 400),
        (Request::new("POST", "/hooks/gitlab").json("{"), 400),
    ] {
        hooks.send(&request.header("X-Gitlab-Token", "h00k")).await.assert_failure(status);
    }
    // Other listeners do not accept events.
    let elsewhere = event(&body).header("X-Gitlab-Token", "h00k");
    harness.send(&elsewhere).await.assert_failure(404);
    harness.gateway.admin.send(&elsewhere).await.assert_failure(404);
    // Events of a megabyte are acknowledged and ignored.
    let large = json!({"event_name": "push", "x": "y".repeat(2 << 20)});
    assert_eq!(send_hook(&hooks, &large).await.status, 200);
    assert_eq!(cached(&harness).await, (true, true));
}

#[tokio::test]
async fn a_signature_is_accepted_instead_of_the_token() {
    let (harness, hooks) = harness().await;
    let body = key_event("key_destroy");
    let signed = |time: i64, over: &str, body: &Value| {
        let text = format!("msg_1.{over}.{body}");
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"signing"), text.as_bytes());
        event(body)
            .header("webhook-id", "msg_1")
            .header("webhook-timestamp", &time.to_string())
            .header("webhook-signature", &format!("v1,AAAA v1,{}", STANDARD.encode(signature)))
    };
    let at = |time: i64| signed(time, &time.to_string(), &body);
    cached(&harness).await;
    for wrong in [
        at(now() - 600),
        at(now() + 600),
        signed(now(), &(now() - 1).to_string(), &body),
        at(now()).body(key_event("key_create").to_string()),
        event(&body).header("webhook-signature", "v1,AAAA"),
    ] {
        hooks.send(&wrong).await.assert_failure(401);
    }
    assert_eq!(cached(&harness).await, (true, true));
    assert_eq!(hooks.send(&at(now())).await.status, 200);
    assert_eq!(cached(&harness).await, (false, false));
}

/// An event signed with this token, `time` seconds from now.
fn signed_by(token: &[u8], time: i64, body: &[u8]) -> Request {
    let time = (now() + time).to_string();
    let text = [b"msg_1.", time.as_bytes(), b".", body].concat();
    let signature = STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, token), &text));
    Request::new("POST", "/hooks/gitlab")
        .header("Content-Type", "application/json")
        .header("webhook-id", "msg_1")
        .header("webhook-timestamp", &time)
        .header("webhook-signature", &format!("v1,{signature}"))
        .body(body)
}

/// Only the head, announcing a body of so many bytes.
fn head_of(request: &Request, length: usize) -> Vec<u8> {
    let bytes = request.clone().body("").to_bytes("close");
    String::from_utf8(bytes)
        .unwrap()
        .replace("Content-Length: 0", &format!("Content-Length: {length}"))
        .into()
}

fn with_header(mut request: Request, name: &str, value: Option<&str>) -> Request {
    request.headers.retain(|(is, _)| is != name);
    match value {
        Some(value) => request.header(name, value),
        None => request,
    }
}

/// If no body could make the signature valid, the body is not read.
#[tokio::test]
async fn hopeless_hooks_are_refused_before_their_body() {
    let (harness, hooks) = harness().await;
    let good = || signed_by(b"signing", 0, b"{}");
    let one = format!("v1,{}", STANDARD.encode([7; 32]));
    let signature = |value: &str| with_header(good(), "webhook-signature", Some(value));
    let refused = [
        event(&json!({})),
        event(&json!({})).header("X-Gitlab-Token", "wrong"),
        with_header(good(), "webhook-id", None),
        with_header(good(), "webhook-timestamp", None),
        with_header(good(), "webhook-timestamp", Some("soon")),
        signed_by(b"signing", -301, b"{}"),
        signed_by(b"signing", 400, b"{}"),
        with_header(good(), "webhook-signature", None),
        signature("v1,"),
        signature("v1,AAAA"),
        signature(&one.replace("v1", "v2")),
        signature(&format!("{one} x")),
        signature(&[one.as_str(); 9].join(" ")),
        signature(&vec!["v1,AAAA"; 3_000].join(" ")),
    ];
    let count = refused.len();
    for request in refused {
        let mut connection = hooks.connect().await;
        connection.write(&head_of(&request, 1 << 20)).await;
        connection.read_response().await.assert_failure(401);
    }
    assert_eq!(harness.metric("railgate_hooks_refused_total").await, Some(count));
    // Possibly valid ones are read, and then refused.
    for request in [good(), signature(&[one.as_str(); 8].join(" "))] {
        let mut connection = hooks.connect().await;
        connection.write(&head_of(&request, 4)).await;
        assert!(!connection.is_readable_within(std::time::Duration::from_millis(20)).await);
        connection.write(b"null").await;
        connection.read_response().await.assert_failure(401);
    }
    assert_eq!(harness.metric("railgate_hooks_refused_total").await, Some(count + 2));
}

/// No event about a key or a user is that large. One that is signed cannot be verified without its end.
#[tokio::test]
async fn events_that_are_too_large_are_not_read() {
    let (harness, hooks) = harness().await;
    let largest = format!("{}{{}}", " ".repeat((1 << 20) - 2));
    let larger = format!(" {largest}");
    let with_token =
        |body: &str| Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", "h00k").json(body);
    let signed = |body: &str| signed_by(b"signing", 0, body.as_bytes());
    for (request, status) in [
        (with_token(&largest), 400),
        (with_token(&largest).chunked(100_000), 400),
        (with_token(&larger), 200),
        (with_token(&larger).chunked(100_000), 200),
        (signed(&larger), 400),
        (signed(&larger).chunked(100_000), 400),
    ] {
        let response = hooks.send(&request).await;
        assert_eq!((response.status, response.header("content-type")), (status, Some("application/json")));
        let message = response.json()["message"].as_str().unwrap().to_owned();
        assert_eq!(message.contains("not an event"), request.body_bytes().len() == 1 << 20, "{message}");
    }
    // It is refused before its body, whose length does not matter then.
    let mut connection = hooks.connect().await;
    connection.write(&head_of(&event(&json!({})), 1 << 30)).await;
    connection.read_response().await.assert_failure(401);
    harness.assert_alive().await;
}

/// Large unverified bodies share a few slots. Events of GitLab do not wait for one.
#[tokio::test]
async fn a_flood_of_large_bodies_does_not_delay_events() {
    let (harness, hooks) = harness().await;
    let mut stalled = Vec::new();
    for length in [1 << 20, 1 << 20, 1 << 20, 64 * 1024 + 1, 1 << 20, 100_000] {
        let mut connection = hooks.connect().await;
        connection.write(&head_of(&signed_by(b"forged", 0, b"{}"), length)).await;
        connection.write(b"{").await;
        stalled.push(connection);
    }
    let body = key_event("key_destroy").to_string();
    for large in [false, true] {
        cached(&harness).await;
        assert_eq!(hooks.send(&signed_by(b"signing", 0, body.as_bytes())).await.status, 200);
        assert_eq!(cached(&harness).await, (false, false));
        let padded = format!("{}{body}", " ".repeat(if large { 500_000 } else { 0 }));
        let shown = Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", "h00k").json(&padded);
        assert_eq!(hooks.send(&shown).await.status, 200);
        assert_eq!(cached(&harness).await, (false, false));
    }
    // Requests without a slot are rejected before GitLab would give up.
    harness.wait_for_metric("railgate_hooks_shed_total", 2).await;
    let mut responses = Vec::new();
    for connection in &mut stalled {
        responses.push(connection.read_response().await.status);
    }
    responses.sort_unstable();
    assert_eq!(responses, [400, 400, 400, 400, 503, 503]);
    // The slots are free again.
    let padded = format!("{}{body}", " ".repeat(500_000));
    assert_eq!(hooks.send(&signed_by(b"signing", 0, padded.as_bytes())).await.status, 200);
    assert_eq!(hooks.send(&signed_by(b"signing", 0, padded.as_bytes()).chunked(7)).await.status, 200);
    hooks.send(&signed_by(b"forged", 0, padded.as_bytes())).await.assert_failure(401);
}

/// Seven at once, each with a megabyte and a header full of signatures.
#[tokio::test]
async fn expensive_hooks_delay_neither_operators_nor_shutdown() {
    let setup = Setup::new();
    let (signing, config) = (setup.dir.file("signing_token"), setup.dir.file("railgate.toml"));
    std::fs::write(&signing, format!("whsec_{}", STANDARD.encode("signing"))).unwrap();
    let (admin, at) = (setup.dir.file("admin.sock"), setup.dir.file("hooks.sock"));
    let setup = setup
        .text("admin.address", &format!("unix:{}", admin.display()))
        .text("hooks.address", &format!("unix:{}", at.display()))
        .text("hooks.signing_token_file", &signing.display().to_string());
    let rails = FakeRails::listen_tcp().await;
    std::fs::write(&config, setup.config(&rails.address)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.arg("run").arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
    let mut process = command.stderr(Stdio::null()).spawn().unwrap();
    let (admin, hooks) = (Address::Unix(admin), Address::Unix(at));
    let live = async || {
        let mut connection = admin.try_connect().await.ok()?;
        connection.write(&Request::new("GET", "/live").to_bytes("close")).await;
        Some(connection.read_response().await).filter(|response| response.status == 200)
    };
    eventually("the gateway to run", live).await;
    let body = vec![b' '; 1 << 20];
    let one = format!("v1,{}", STANDARD.encode([7; 32]));
    let eight = [one.as_str(); 8].join(" ");
    let thousands = vec!["v1,AAAA"; 3_500].join(" ");
    let mut flood = Vec::new();
    for signatures in [&eight, &thousands, &eight, &thousands, &eight, &thousands, &eight] {
        let request = with_header(signed_by(b"forged", 0, &body), "webhook-signature", Some(signatures));
        let hooks = hooks.clone();
        flood.push(tokio::spawn(async move { hooks.send(&request).await.status }));
    }
    for _ in 0..20 {
        assert!(live().await.is_some());
    }
    for refused in flood {
        assert_eq!(refused.await.unwrap(), 401);
    }
    let request = with_header(signed_by(b"forged", 0, &body), "webhook-signature", Some(&eight));
    let mut last = hooks.connect().await;
    last.write(&request.to_bytes("close")).await;
    let pid = process.id().to_string();
    assert!(Command::new("kill").arg("-TERM").arg(pid).status().unwrap().success());
    let ended = tokio::task::spawn_blocking(move || process.wait());
    assert!(within_deadline("the process to end", ended).await.unwrap().unwrap().success());
}

/// Once the entry of the user is dropped, nothing links the keys to the user.
#[tokio::test]
async fn keys_of_a_user_are_dropped_again_after_the_settle_delay() {
    let (harness, hooks) = harness_with(|setup| setup.text("hooks.settle", "300ms")).await;
    cached(&harness).await;
    let body = json!({"event_name": "user_failed_login", "user_id": 1, "username": "root"});
    assert_eq!(send_hook(&hooks, &body).await.status, 200);
    let purged = harness.metric("railgate_cache_purged_total").await.unwrap();
    assert_eq!(purged, 2);
    harness.send(&key()).await;
    harness.wait_for_metric("railgate_cache_purged_total", purged + 1).await;
    assert!(!harness.send(&key()).await.is_hit());
}

#[tokio::test]
async fn idle_hook_connections_do_not_block_operators() {
    let (harness, hooks) = harness().await;
    let mut connections = Vec::new();
    for _ in 0..80 {
        let mut connection = hooks.connect().await;
        connection.write(
            b"POST /hooks/gitlab HTTP/1.1\r\nHost: a\r\nX-Gitlab-Token: h00k\r\nContent-Length: 9\r\n\r\n",
        )
        .await;
        connections.push(connection);
    }
    assert_eq!(harness.gateway.admin.send(&Request::new("GET", "/live")).await.status, 200);
}
