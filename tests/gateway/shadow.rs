//! Answers from memory are compared with Rails, and what operators see of that.

use super::client::Ask;
use super::fake::{ROOT_KEY, Reply, Request};
use super::log;
use super::stage::{Setup, Stage};

/// A gateway that compares every answer from memory.
async fn setting() -> Stage {
    let setup = Setup::new().set("cache.shadow.one_in", 1).set("cache.shadow.max_per_second", 10_000);
    let setup = setup.text("cache.shadow.slow", "1h").text("cache.authorized_keys.negative_ttl", "0s");
    setup.start().await
}

/// A Rails that knows nobody.
fn forgetful(request: &Request) -> Reply {
    if request.is_for("discover") {
        Reply::json(200, "null")
    } else {
        Reply::json(404, r#"{"message":"404 Key Not Found"}"#)
    }
}

const AGREED: &str = r#"railgate_shadow_checks_total{route="authorized_keys",result="agreed"}"#;
const REVOKED: &str = r#"railgate_shadow_checks_total{route="authorized_keys",result="revoked"}"#;
const REVOKED_USER: &str = r#"railgate_shadow_checks_total{route="discover",result="revoked"}"#;

#[tokio::test]
async fn what_rails_has_forgotten_is_noticed_counted_and_dropped() {
    log::capture();
    let stage = setting().await;
    let key = Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    let user = Ask::get("discover?username=root").with_secret();
    for ask in [&key, &user, &key] {
        assert_eq!(stage.send(ask).await.status, 200);
    }
    stage.reaches(AGREED, 1).await;
    stage.rails.answer(forgetful);
    let logged = log::length();
    assert!(stage.send(&key).await.is_hit() && stage.send(&user).await.is_hit(), "who asks does not wait");
    stage.reaches(REVOKED, 1).await;
    stage.reaches(REVOKED_USER, 1).await;
    stage.reaches("railgate_shadow_wrong_age_seconds_count", 2).await;
    assert_eq!(stage.send(&key).await.status, 404);
    assert_eq!(stage.send(&user).await.text(), "null");

    let log = log::since(logged);
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("was not what Rails says")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    for line in lines {
        assert!(line.contains(r#""found":"revoked""#) && line.contains(r#""key":"SHA256:"#), "{line}");
        assert!(!line.contains(ROOT_KEY) && !line.contains("root"), "{line}");
    }
}

#[tokio::test]
async fn what_is_refused_compares_nothing() {
    let stage = setting().await;
    let key = format!("authorized_keys?key={ROOT_KEY}");
    assert_eq!(stage.send(&Ask::get(&key).with_secret()).await.status, 200);
    let (answer, asked) = stage.send_counting(&Ask::get(&key)).await;
    assert_eq!((answer.status, asked), (401, 0));
    assert_eq!(stage.metric(AGREED).await, Some(0));
}
