//! GitLab says what has changed: just that is forgotten, and only GitLab can say it.

use std::process::{Command, Stdio};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{Answer, Ask, Peer, eventually, soon};
use super::credentials::now;
use super::fake::{ROOT_KEY, Rails, Valve, gitlab};
use super::stage::{Setup, Stage};

fn key() -> Ask {
    Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

fn user() -> Ask {
    Ask::get("discover?key_id=1").with_secret()
}

fn event(body: &Value) -> Ask {
    Ask::new("POST", "/hooks/gitlab").header("X-Gitlab-Event", "System Hook").json(&body.to_string())
}

fn key_event(name: &str) -> Value {
    json!({"event_name": name, "key": format!("ssh-ed25519 {ROOT_KEY} me@home"), "id": 1, "username": "root"})
}

/// The settle delay does not pass, unless a test says so.
async fn stage_with(change: impl FnOnce(Setup) -> Setup) -> (Stage, Peer) {
    let setup = Setup::new();
    let (token, signing) = (setup.dir.file("hook_token"), setup.dir.file("signing_token"));
    std::fs::write(&token, "h00k\n").unwrap();
    std::fs::write(&signing, format!("whsec_{}\n", STANDARD.encode("signing"))).unwrap();
    let setup = setup
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &token.display().to_string())
        .text("hooks.signing_token_file", &signing.display().to_string())
        .text("hooks.settle", "1h");
    let stage = change(setup).start().await;
    let hooks = stage.gateway.hooks.clone().unwrap();
    (stage, hooks)
}

async fn stage() -> (Stage, Peer) {
    stage_with(|setup| setup).await
}

/// Whether the key and the user are in memory, each.
async fn kept(stage: &Stage) -> (bool, bool) {
    (stage.send(&key()).await.is_hit(), stage.send(&user()).await.is_hit())
}

async fn told(hooks: &Peer, body: &Value) -> Answer {
    hooks.send(&event(body).header("X-Gitlab-Token", "h00k")).await
}

#[tokio::test]
async fn an_event_ends_what_it_makes_wrong_and_nothing_else() {
    let (stage, hooks) = stage().await;
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
        kept(&stage).await;
        assert_eq!(kept(&stage).await, (true, true));
        for _ in 0..2 {
            let answer = told(&hooks, &body).await;
            assert_eq!(answer.status, 200, "{body}: {answer}");
        }
        assert_eq!(kept(&stage).await, still_kept, "{body}");
    }
    assert_eq!(stage.metric("railgate_hooks_total{event=\"key_destroy\"}").await, Some(6));
    assert_eq!(stage.metric("railgate_hooks_total{event=\"other\"}").await, Some(4));
}

#[tokio::test]
async fn an_answer_that_was_on_its_way_is_not_kept() {
    let (stage, hooks) = stage().await;
    let valve = Valve::shut();
    let held = valve.clone();
    stage.rails.answer(move |request| gitlab(request).after(&held));
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&key().to_bytes("close")).await;
    stage.rails.has_got(1).await;
    assert_eq!(told(&hooks, &key_event("key_destroy")).await.status, 200);
    valve.open();
    assert_eq!(wire.answer().await.cache_status(), "railgate; fwd=miss; detail=fenced");
    assert!(!stage.send(&key()).await.is_hit());
}

/// A read replica may not have heard yet when the next caller asks.
#[tokio::test]
async fn what_is_wrong_is_dropped_once_more_after_a_while() {
    let (stage, hooks) = stage_with(|setup| setup.text("hooks.settle", "300ms")).await;
    stage.pass(&key()).await;
    told(&hooks, &key_event("key_destroy")).await;
    let purged = stage.metric("railgate_cache_purged_total").await.unwrap();
    stage.send(&key()).await;
    stage.reaches("railgate_cache_purged_total", purged + 1).await;
    assert!(!stage.send(&key()).await.is_hit());
}

#[tokio::test]
async fn nobody_else_can_say_it() {
    let (stage, hooks) = stage().await;
    kept(&stage).await;
    let body = key_event("key_destroy");
    let tokens = ["", "h00", "h00k2", "H00K", " ", "s3cret"];
    for token in tokens {
        hooks.send(&event(&body).header("X-Gitlab-Token", token)).await.assert_failure(401);
    }
    hooks.send(&event(&body)).await.assert_failure(401);
    assert_eq!(kept(&stage).await, (true, true));
    let refused = tokens.len() + 1;
    assert_eq!(stage.metric("railgate_hooks_refused_total").await, Some(refused));
    for (ask, status) in [
        (Ask::new("GET", "/hooks/gitlab"), 405),
        (Ask::new("POST", "/hooks/gitlab/"), 404),
        (Ask::new("POST", "/purge").json(r#"{"all":true}"#), 404),
        (event(&json!([])), 400),
        (event(&json!({})), 400),
        (Ask::new("POST", "/hooks/gitlab").json("{"), 400),
    ] {
        hooks.send(&ask.header("X-Gitlab-Token", "h00k")).await.assert_failure(status);
    }
    // Nor can it be said elsewhere.
    let elsewhere = event(&body).header("X-Gitlab-Token", "h00k");
    stage.send(&elsewhere).await.assert_failure(404);
    stage.gateway.admin.send(&elsewhere).await.assert_failure(404);
    // An event of a megabyte is not about a key.
    let large = json!({"event_name": "push", "x": "y".repeat(2 << 20)});
    assert_eq!(told(&hooks, &large).await.status, 200);
    assert_eq!(kept(&stage).await, (true, true));
}

#[tokio::test]
async fn a_signature_is_as_good_as_the_token() {
    let (stage, hooks) = stage().await;
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
    kept(&stage).await;
    for wrong in [
        at(now() - 600),
        at(now() + 600),
        signed(now(), &(now() - 1).to_string(), &body),
        at(now()).body(key_event("key_create").to_string()),
        event(&body).header("webhook-signature", "v1,AAAA"),
    ] {
        hooks.send(&wrong).await.assert_failure(401);
    }
    assert_eq!(kept(&stage).await, (true, true));
    assert_eq!(hooks.send(&at(now())).await.status, 200);
    assert_eq!(kept(&stage).await, (false, false));
}

/// Signed by a holder of the token, `time` seconds from now.
fn signed_by(token: &[u8], time: i64, body: &[u8]) -> Ask {
    let time = (now() + time).to_string();
    let text = [b"msg_1.", time.as_bytes(), b".", body].concat();
    let signature = STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, token), &text));
    Ask::new("POST", "/hooks/gitlab")
        .header("Content-Type", "application/json")
        .header("webhook-id", "msg_1")
        .header("webhook-timestamp", &time)
        .header("webhook-signature", &format!("v1,{signature}"))
        .body(body)
}

/// The head alone of a request that says it has a body of so many bytes.
fn head_of(ask: &Ask, length: usize) -> Vec<u8> {
    let bytes = ask.clone().body("").to_bytes("close");
    String::from_utf8(bytes)
        .unwrap()
        .replace("Content-Length: 0", &format!("Content-Length: {length}"))
        .into()
}

fn with_header(mut ask: Ask, name: &str, value: Option<&str>) -> Ask {
    ask.headers.retain(|(is, _)| is != name);
    match value {
        Some(value) => ask.header(name, value),
        None => ask,
    }
}

/// What no body could make right is refused by its head, so its body costs nothing.
#[tokio::test]
async fn what_cannot_be_right_is_refused_before_its_body() {
    let (stage, hooks) = stage().await;
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
    for ask in refused {
        let mut wire = hooks.connect().await;
        wire.write(&head_of(&ask, 1 << 20)).await;
        wire.answer().await.assert_failure(401);
    }
    assert_eq!(stage.metric("railgate_hooks_refused_total").await, Some(count));
    // What may be right is read, and then it is not.
    for ask in [good(), signature(&[one.as_str(); 8].join(" "))] {
        let mut wire = hooks.connect().await;
        wire.write(&head_of(&ask, 4)).await;
        assert!(!wire.has_something_within(std::time::Duration::from_millis(20)).await);
        wire.write(b"null").await;
        wire.answer().await.assert_failure(401);
    }
    assert_eq!(stage.metric("railgate_hooks_refused_total").await, Some(count + 2));
}

/// Large bodies that may be a stranger's share a few places. GitLab's events do not wait for one.
#[tokio::test]
async fn a_flood_of_large_bodies_keeps_no_event_that_matters() {
    let (stage, hooks) = stage().await;
    let mut stalled = Vec::new();
    for length in [1 << 20, 1 << 20, 1 << 20, 64 * 1024 + 1, 1 << 20, 100_000] {
        let mut wire = hooks.connect().await;
        wire.write(&head_of(&signed_by(b"stranger", 0, b"{}"), length)).await;
        wire.write(b"{").await;
        stalled.push(wire);
    }
    let body = key_event("key_destroy").to_string();
    for large in [false, true] {
        kept(&stage).await;
        assert_eq!(hooks.send(&signed_by(b"signing", 0, body.as_bytes())).await.status, 200);
        assert_eq!(kept(&stage).await, (false, false));
        let padded = format!("{}{body}", " ".repeat(if large { 500_000 } else { 0 }));
        let shown = Ask::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", "h00k").json(&padded);
        assert_eq!(hooks.send(&shown).await.status, 200);
        assert_eq!(kept(&stage).await, (false, false));
    }
    // Those that do not get a place are told so before GitLab would give up.
    stage.reaches("railgate_hooks_shed_total", 2).await;
    let mut answers = Vec::new();
    for wire in &mut stalled {
        answers.push(wire.answer().await.status);
    }
    answers.sort_unstable();
    assert_eq!(answers, [400, 400, 400, 400, 503, 503]);
    // There is room again.
    let padded = format!("{}{body}", " ".repeat(500_000));
    assert_eq!(hooks.send(&signed_by(b"signing", 0, padded.as_bytes())).await.status, 200);
    assert_eq!(hooks.send(&signed_by(b"signing", 0, padded.as_bytes()).chunked(7)).await.status, 200);
    hooks.send(&signed_by(b"stranger", 0, padded.as_bytes())).await.assert_failure(401);
}

/// The binary, while seven of them come at once, each with a megabyte and a header full of signatures.
#[tokio::test]
async fn hooks_that_cost_all_they_can_keep_neither_operators_nor_the_end() {
    let setup = Setup::new();
    let (signing, config) = (setup.dir.file("signing_token"), setup.dir.file("railgate.toml"));
    std::fs::write(&signing, format!("whsec_{}", STANDARD.encode("signing"))).unwrap();
    let (admin, at) = (setup.dir.file("admin.sock"), setup.dir.file("hooks.sock"));
    let setup = setup
        .text("admin.address", &format!("unix:{}", admin.display()))
        .text("hooks.address", &format!("unix:{}", at.display()))
        .text("hooks.signing_token_file", &signing.display().to_string());
    let rails = Rails::on_tcp().await;
    std::fs::write(&config, setup.config(&rails.peer)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.arg("run").arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
    let mut process = command.stderr(Stdio::null()).spawn().unwrap();
    let (admin, hooks) = (Peer::Unix(admin), Peer::Unix(at));
    let live = async || {
        let mut wire = admin.try_connect().await.ok()?;
        wire.write(&Ask::new("GET", "/live").to_bytes("close")).await;
        Some(wire.answer().await).filter(|answer| answer.status == 200)
    };
    eventually("the gateway to run", live).await;
    let body = vec![b' '; 1 << 20];
    let one = format!("v1,{}", STANDARD.encode([7; 32]));
    let eight = [one.as_str(); 8].join(" ");
    let thousands = vec!["v1,AAAA"; 3_500].join(" ");
    let mut flood = Vec::new();
    for signatures in [&eight, &thousands, &eight, &thousands, &eight, &thousands, &eight] {
        let ask = with_header(signed_by(b"stranger", 0, &body), "webhook-signature", Some(signatures));
        let hooks = hooks.clone();
        flood.push(tokio::spawn(async move { hooks.send(&ask).await.status }));
    }
    for _ in 0..20 {
        assert!(live().await.is_some());
    }
    for refused in flood {
        assert_eq!(refused.await.unwrap(), 401);
    }
    let ask = with_header(signed_by(b"stranger", 0, &body), "webhook-signature", Some(&eight));
    let mut last = hooks.connect().await;
    last.write(&ask.to_bytes("close")).await;
    let pid = process.id().to_string();
    assert!(Command::new("kill").arg("-TERM").arg(pid).status().unwrap().success());
    let ended = tokio::task::spawn_blocking(move || process.wait());
    assert!(soon("the process to end", ended).await.unwrap().unwrap().success());
}

/// Whose keys they are, nothing says any more once the user is dropped.
#[tokio::test]
async fn the_keys_of_a_user_are_dropped_once_more_too() {
    let (stage, hooks) = stage_with(|setup| setup.text("hooks.settle", "300ms")).await;
    kept(&stage).await;
    let body = json!({"event_name": "user_failed_login", "user_id": 1, "username": "root"});
    assert_eq!(told(&hooks, &body).await.status, 200);
    let purged = stage.metric("railgate_cache_purged_total").await.unwrap();
    assert_eq!(purged, 2);
    stage.send(&key()).await;
    stage.reaches("railgate_cache_purged_total", purged + 1).await;
    assert!(!stage.send(&key()).await.is_hit());
}

/// Whoever reaches this port and sends nothing more does not keep operators out.
#[tokio::test]
async fn idle_hooks_do_not_block_operators() {
    let (stage, hooks) = stage().await;
    let mut wires = Vec::new();
    for _ in 0..80 {
        let mut wire = hooks.connect().await;
        wire.write(
            b"POST /hooks/gitlab HTTP/1.1\r\nHost: a\r\nX-Gitlab-Token: h00k\r\nContent-Length: 9\r\n\r\n",
        )
        .await;
        wires.push(wire);
    }
    assert_eq!(stage.gateway.admin.send(&Ask::new("GET", "/live")).await.status, 200);
}
