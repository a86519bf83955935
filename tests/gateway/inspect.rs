//! What operators see of cache entries: key, age and state, never the response.

use serde_json::{Value, json};

use super::client::{Request, Response};
use super::fake_rails::{PADDED_KEY, ROOT_KEY, UNKNOWN_KEY};
use super::harness::{Harness, Setup};

async fn inspect(harness: &Harness, what: &str) -> Response {
    harness.gateway.admin.send(&Request::new("POST", "/inspect").json(what)).await
}

async fn request(harness: &Harness, target: &str) {
    assert!(harness.send(&Request::get(target).with_secret()).await.status < 500);
}

#[tokio::test]
async fn entries_are_listed_with_their_state() {
    let harness = Harness::new().await;
    let key = format!("authorized_keys?key={ROOT_KEY}");
    for target in
        [&key, &key, &key, "discover?key_id=1", &format!("authorized_keys?key={UNKNOWN_KEY}"), "check"]
    {
        request(&harness, target).await;
    }
    let response =
        inspect(&harness, &json!({ "ssh_key": format!("ssh-ed25519 {ROOT_KEY} x") }).to_string()).await;
    let shown = response.json();
    assert_eq!(
        (shown["of"].as_u64(), shown["entries"].as_array().unwrap().len()),
        (Some(1), 1),
        "{response}"
    );
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
    assert!(!response.text().contains(ROOT_KEY) && !response.text().contains("ssh-ed25519"), "{response}");
    // A listed fingerprint can be used as a filter.
    assert_eq!(inspect(&harness, &json!({ "ssh_key": fingerprint }).to_string()).await.json(), shown);

    for (what, count) in [
        (r#"{"key_id":1}"#, 2),
        (r#"{"user_id":1}"#, 2),
        (r#"{"username":"ROOT"}"#, 2),
        (r#"{"route":"check"}"#, 1),
        (r#"{"route":"authorized_keys"}"#, 2),
        (r#"{"all":true}"#, 4),
        (r#"{"user_id":404}"#, 0),
    ] {
        assert_eq!(inspect(&harness, what).await.json()["of"].as_u64(), Some(count), "{what}");
    }
    let totals = inspect(&harness, "").await.json();
    let expected: Value = json!({
        "authorized_keys": {"positive": 1, "negative": 1},
        "discover": {"positive": 1, "negative": 0},
        "check": {"positive": 1, "negative": 0},
    });
    assert_eq!(totals, expected);
    // Inspecting changes nothing.
    assert!(harness.send(&Request::get(&key).with_secret()).await.is_hit());
}

#[tokio::test]
async fn at_most_a_hundred_entries_are_listed() {
    let harness = Harness::new().await;
    for id in 1..=120 {
        request(&harness, &format!("discover?key_id={id}")).await;
    }
    let shown = inspect(&harness, r#"{"route":"discover"}"#).await.json();
    assert_eq!((shown["entries"].as_array().unwrap().len(), shown["of"].as_u64()), (100, Some(120)));
}

#[tokio::test]
async fn inspecting_requires_the_admin_token() {
    let setup = Setup::new();
    let file = setup.dir.file("admin_token");
    std::fs::write(&file, "t0ken").unwrap();
    let harness = setup.text("admin.token_file", &file.display().to_string()).start().await;
    request(&harness, &format!("authorized_keys?key={}", PADDED_KEY.replace('+', "%2B"))).await;
    inspect(&harness, "").await.assert_failure(401);
    inspect(&harness, r#"{"all":true}"#).await.assert_failure(401);
    let admin = &harness.gateway.admin;
    let shown = Request::new("POST", "/inspect").header("Authorization", "Bearer t0ken");
    admin.send(&shown).await.assert_failure(415);
    let shown = Request::new("POST", "/inspect").header("Authorization", "Bearer t0ken");
    assert_eq!(admin.send(&shown.json(r#"{"all":true}"#)).await.json()["of"], 1);
    admin.send(&Request::new("GET", "/inspect")).await.assert_failure(405);
    inspect(&harness, "{").await.assert_failure(401);
}
