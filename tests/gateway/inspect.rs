//! What operators see of what is kept: what it is about, how old and what for, and never an answer.

use serde_json::{Value, json};

use super::client::{Answer, Ask};
use super::fake::{PADDED_KEY, ROOT_KEY, UNKNOWN_KEY};
use super::stage::{Setup, Stage};

async fn inspect(stage: &Stage, what: &str) -> Answer {
    stage.gateway.admin.send(&Ask::new("POST", "/inspect").json(what)).await
}

async fn ask(stage: &Stage, target: &str) {
    assert!(stage.send(&Ask::get(target).with_secret()).await.status < 500);
}

#[tokio::test]
async fn entries_are_shown_with_what_they_are_good_for() {
    let stage = Stage::new().await;
    let key = format!("authorized_keys?key={ROOT_KEY}");
    for target in
        [&key, &key, &key, "discover?key_id=1", &format!("authorized_keys?key={UNKNOWN_KEY}"), "check"]
    {
        ask(&stage, target).await;
    }
    let answer =
        inspect(&stage, &json!({ "ssh_key": format!("ssh-ed25519 {ROOT_KEY} x") }).to_string()).await;
    let shown = answer.json();
    assert_eq!((shown["of"].as_u64(), shown["entries"].as_array().unwrap().len()), (Some(1), 1), "{answer}");
    let entry = &shown["entries"][0];
    let fingerprint = entry["key"].as_str().unwrap();
    assert!(fingerprint.starts_with("SHA256:") && fingerprint.len() == 50, "{fingerprint}");
    for (name, value) in [
        ("route", json!("authorized_keys")),
        ("store", json!("positive")),
        ("state", json!("fresh")),
        ("hits", json!(2)),
        ("id", json!(1)),
    ] {
        assert_eq!(entry[name], value, "{name} of {entry}");
    }
    assert!(entry["ttl_s"].as_i64() > Some(3_000) && entry["age_s"].as_u64().is_some(), "{entry}");
    assert!(!answer.text().contains(ROOT_KEY) && !answer.text().contains("ssh-ed25519"), "{answer}");
    // A fingerprint that was shown can be asked for.
    assert_eq!(inspect(&stage, &json!({ "ssh_key": fingerprint }).to_string()).await.json(), shown);

    for (what, count) in [
        (r#"{"key_id":1}"#, 2),
        (r#"{"user_id":1}"#, 2),
        (r#"{"username":"ROOT"}"#, 2),
        (r#"{"route":"check"}"#, 1),
        (r#"{"route":"authorized_keys"}"#, 2),
        (r#"{"all":true}"#, 4),
        (r#"{"user_id":404}"#, 0),
    ] {
        assert_eq!(inspect(&stage, what).await.json()["of"].as_u64(), Some(count), "{what}");
    }
    let totals = inspect(&stage, "").await.json();
    let expected: Value = json!({
        "authorized_keys": {"positive": 1, "negative": 1},
        "discover": {"positive": 1, "negative": 0},
        "check": {"positive": 1, "negative": 0},
    });
    assert_eq!(totals, expected);
    // To look changes nothing.
    assert!(stage.send(&Ask::get(&key).with_secret()).await.is_hit());
}

#[tokio::test]
async fn no_more_than_a_hundred_are_shown() {
    let stage = Stage::new().await;
    for id in 1..=120 {
        ask(&stage, &format!("discover?key_id={id}")).await;
    }
    let shown = inspect(&stage, r#"{"route":"discover"}"#).await.json();
    assert_eq!((shown["entries"].as_array().unwrap().len(), shown["of"].as_u64()), (100, Some(120)));
}

#[tokio::test]
async fn whoever_may_not_purge_may_not_look() {
    let setup = Setup::new();
    let file = setup.dir.file("admin_token");
    std::fs::write(&file, "t0ken").unwrap();
    let stage = setup.text("admin.token_file", &file.display().to_string()).start().await;
    ask(&stage, &format!("authorized_keys?key={}", PADDED_KEY.replace('+', "%2B"))).await;
    inspect(&stage, "").await.assert_failure(401);
    inspect(&stage, r#"{"all":true}"#).await.assert_failure(401);
    let admin = &stage.gateway.admin;
    let shown = Ask::new("POST", "/inspect").header("Authorization", "Bearer t0ken");
    admin.send(&shown).await.assert_failure(415);
    let shown = Ask::new("POST", "/inspect").header("Authorization", "Bearer t0ken");
    assert_eq!(admin.send(&shown.json(r#"{"all":true}"#)).await.json()["of"], 1);
    admin.send(&Ask::new("GET", "/inspect")).await.assert_failure(405);
    inspect(&stage, "{").await.assert_failure(401);
}
