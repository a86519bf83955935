//! What operators drop is gone, for everybody, and only they can.

use serde_json::{Value, json};

use super::client::{Answer, Ask, Peer};
use super::fake::ROOT_KEY;
use super::stage::{Setup, Stage};

fn key() -> Ask {
    Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

fn user() -> Ask {
    Ask::get("discover?key_id=1").with_secret()
}

async fn purge(stage: &Stage, what: &Value) -> Answer {
    stage.gateway.admin.send(&Ask::new("POST", "/purge").json(&what.to_string())).await
}

#[tokio::test]
async fn what_is_purged_is_asked_of_rails_again() {
    let stage = Stage::new().await;
    let line = format!("ssh-ed25519 {ROOT_KEY} somebody@somewhere");
    for (what, asks, purged) in [
        (json!({"ssh_key": line}), &[key()][..], 1),
        (json!({"key_id": 1}), &[key(), user()], 2),
        (json!({"user_id": 1}), &[key(), user()], 2),
        (json!({"username": "ROOT"}), &[key(), user()], 2),
        (json!({"route": "discover"}), &[user()], 1),
        (json!({"all": true}), &[key(), user()], 2),
        (json!({"user_id": 404}), &[], 0),
    ] {
        for ask in [key(), user()] {
            stage.send(&ask).await;
            assert!(stage.send(&ask).await.is_hit());
        }
        let answer = purge(&stage, &what).await;
        assert_eq!(
            (answer.status, answer.json()["purged"].as_u64()),
            (200, Some(purged)),
            "{what}: {answer}"
        );
        for ask in [key(), user()] {
            let is_meant = asks.iter().any(|meant| meant.target == ask.target);
            assert_eq!(stage.send_counting(&ask).await.1, usize::from(is_meant), "{what}: {ask}");
        }
    }
    assert_eq!(stage.metric("railgate_cache_purged_total").await, Some(10));
}

#[tokio::test]
async fn a_soft_purge_leaves_something_to_fall_back_on() {
    let stage = Stage::new().await;
    stage.pass(&key()).await;
    assert_eq!(purge(&stage, &json!({"all": true, "soft": true})).await.json()["purged"], 1);
    let answer = stage.send(&key()).await;
    assert!(answer.cache_status().ends_with("; detail=stale_while_revalidate"), "{answer}");
    stage.reaches("railgate_cache_refreshes_total{result=\"stored\"}", 1).await;
    let (answer, arrived) = stage.send_counting(&key()).await;
    assert_eq!((arrived, answer.is_hit()), (0, true));
}

#[tokio::test]
async fn whoever_cannot_show_the_token_purges_nothing() {
    let setup = Setup::new();
    let file = setup.dir.file("admin_token");
    std::fs::write(&file, "t0ken\n").unwrap();
    let stage = setup.text("admin.token_file", &file.display().to_string()).start().await;
    stage.pass(&key()).await;
    let admin = &stage.gateway.admin;
    let ask = || Ask::new("POST", "/purge").json(r#"{"all":true}"#);
    for shown in ["", "t0ken", "Bearer", "Bearer t0ke", "Bearer t0kens", "Basic t0ken", "Bearer s3cret"] {
        admin.send(&ask().header("Authorization", shown)).await.assert_failure(401);
    }
    admin.send(&ask()).await.assert_failure(401);
    assert!(stage.send(&key()).await.is_hit());
    // Health and metrics are for tools that have none.
    assert_eq!(admin.send(&Ask::new("GET", "/live")).await.status, 200);
    assert_eq!(admin.send(&ask().header("Authorization", "Bearer t0ken")).await.json()["purged"], 1);
    assert!(!stage.send(&key()).await.is_hit());
}

#[tokio::test]
async fn what_is_no_purge_is_refused_with_a_reason() {
    let stage = Stage::new().await;
    stage.pass(&key()).await;
    let admin = &stage.gateway.admin;
    let post = || Ask::new("POST", "/purge");
    let all = r#"{"all":true}"#;
    for (ask, status) in [
        (post(), 415),
        (post().body(all), 415),
        (post().form("all=true"), 415),
        (post().header("Content-Type", "text/plain").body(all), 415),
        (post().json(""), 400),
        (post().json("[]"), 400),
        (post().json("{}"), 400),
        (post().json(r#"{"all":true,"key_id":1}"#), 400),
        (post().json(r#"{"key_id":"1"}"#), 400),
        (post().json(&format!(r#"{{"username":"{}"}}"#, "a".repeat(70_000))), 400),
        (post().json(all).header("Origin", "http://evil.example"), 403),
        (Ask::new("GET", "/purge"), 405),
        (Ask::new("DELETE", "/purge"), 405),
        (Ask::new("POST", "/purge/"), 404),
    ] {
        admin.send(&ask).await.assert_failure(status);
    }
    // Clients have no such page: it is a path like others there.
    assert_eq!(stage.send(&post().json(all)).await.status, 404);
    assert!(stage.send(&key()).await.is_hit());
}

/// Where others can connect, a token is not a matter of choice.
#[tokio::test]
async fn without_a_token_nobody_purges_over_a_network() {
    let stage = Setup::new().text("admin.address", "0.0.0.0:0").start().await;
    let port = match &stage.gateway.admin {
        Peer::Tcp(address) => address.port(),
        Peer::Unix(path) => panic!("{}", path.display()),
    };
    let admin = Peer::parse(&format!("127.0.0.1:{port}"));
    stage.pass(&key()).await;
    for page in ["/purge", "/inspect", "/servers"] {
        admin.send(&Ask::new("POST", page).json(r#"{"all":true}"#)).await.assert_failure(403);
    }
    assert_eq!(admin.send(&Ask::new("GET", "/live")).await.status, 200);
    assert!(stage.send(&key()).await.is_hit());
}
