//! Shadow checks: cached answers are compared with Rails.

use super::client::Request;
use super::fake_rails::{ROOT_KEY, ReceivedRequest, Reply};
use super::harness::{Harness, Setup};
use super::log;

/// A gateway that compares every cached answer.
async fn harness() -> Harness {
    let setup = Setup::new().set("cache.shadow.one_in", 1).set("cache.shadow.max_per_second", 10_000);
    let setup = setup.text("cache.shadow.slow", "1h").text("cache.authorized_keys.negative_ttl", "0s");
    setup.start().await
}

/// A Rails that knows no key and no user.
fn rails_without_users(request: &ReceivedRequest) -> Reply {
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
async fn revoked_entries_are_found_counted_and_dropped() {
    log::capture();
    let harness = harness().await;
    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    let user = Request::get("discover?username=root").with_secret();
    for request in [&key, &user, &key] {
        assert_eq!(harness.send(request).await.status, 200);
    }
    harness.wait_for_metric(AGREED, 1).await;
    harness.rails.respond_with(rails_without_users);
    let logged = log::position();
    assert!(
        harness.send(&key).await.is_hit() && harness.send(&user).await.is_hit(),
        "the callers do not wait"
    );
    harness.wait_for_metric(REVOKED, 1).await;
    harness.wait_for_metric(REVOKED_USER, 1).await;
    harness.wait_for_metric("railgate_shadow_wrong_age_seconds_count", 2).await;
    assert_eq!(harness.send(&key).await.status, 404);
    assert_eq!(harness.send(&user).await.text(), "null");

    let log = log::since(logged);
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("was not what Rails says")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    for line in lines {
        assert!(line.contains(r#""found":"revoked""#) && line.contains(r#""key":"SHA256:"#), "{line}");
        assert!(!line.contains(ROOT_KEY) && !line.contains("root"), "{line}");
    }
}

#[tokio::test]
async fn refused_requests_are_not_compared() {
    let harness = harness().await;
    let key = format!("authorized_keys?key={ROOT_KEY}");
    assert_eq!(harness.send(&Request::get(&key).with_secret()).await.status, 200);
    let (response, asked) = harness.send_counting(&Request::get(&key)).await;
    assert_eq!((response.status, asked), (401, 0));
    assert_eq!(harness.metric(AGREED).await, Some(0));
}
