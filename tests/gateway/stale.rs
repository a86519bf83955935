//! Stale answers: when they are served, and for how long.

use super::client::{Request, Response, eventually};
use super::fake_rails::{CHECK, ROOT_KEY, Reply, gitlab};
use super::harness::{Harness, Setup};
use super::log;

fn key() -> Request {
    Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

/// A gateway whose entries are stale after a millisecond.
async fn harness(while_revalidate: &str, if_error: &str) -> Harness {
    let mut setup = Setup::new();
    for route in ["authorized_keys", "discover"] {
        setup = setup
            .text(&format!("cache.{route}.ttl"), "1ms")
            .text(&format!("cache.{route}.stale_while_revalidate"), while_revalidate)
            .text(&format!("cache.{route}.stale_if_error"), if_error);
    }
    setup.start().await
}

fn is_stale(response: &Response, why: &str) -> bool {
    let status = response.cache_status();
    status.starts_with("railgate; hit; ttl=") && status.ends_with(&format!("; detail={why}"))
}

#[tokio::test]
async fn a_stale_answer_is_served_immediately_and_refreshed_in_the_background() {
    let harness = harness("1h", "1h").await;
    let (first, _) = harness.send_forwarded(&key()).await;
    let response = eventually("a stale answer", async || {
        let response = harness.send(&key()).await;
        is_stale(&response, "stale_while_revalidate").then_some(response)
    })
    .await;
    assert_eq!((response.status, response.text()), (200, first.text()));
    assert!(response.header("age").is_some());
    eventually("every refresh to be counted", async || {
        let stored = harness.metric("railgate_cache_refreshes_total{result=\"stored\"}").await?;
        (stored > 0 && stored == harness.rails.request_count() - 1).then_some(())
    })
    .await;
    assert_eq!(harness.metric("railgate_cache_outage{route=\"authorized_keys\"}").await, Some(0));
    // The refresh carries the caller's credential.
    assert!(harness.rails.last_request().header("Gitlab-Shared-Secret").is_some());
}

#[tokio::test]
async fn known_keys_and_users_stay_known_while_rails_fails() {
    let place = log::position();
    let harness = harness("0s", "1h").await;
    let user = Request::get("discover?key_id=1").with_secret();
    for request in [key(), user.clone()] {
        harness.send_forwarded(&request).await;
    }
    // For each kind of failure. What is not cached fails.
    for failure in [
        Reply::hang_up(),
        Reply::json(500, "{}"),
        Reply::json(502, "{}"),
        Reply::json(503, "{}"),
        Reply::json(504, "{}"),
    ] {
        harness.rails.respond_always(failure);
        for request in [key(), user.clone()] {
            let response = eventually("no fresh answer", async || {
                let response = harness.send(&request).await;
                (!response.cache_status().ends_with("stored")).then_some(response)
            })
            .await;
            assert!(
                response.status == 200 && (response.is_hit() || is_stale(&response, "stale_if_error")),
                "{response}"
            );
        }
        assert!(harness.send(&Request::get("check").with_secret()).await.status >= 500);
        assert!(harness.send(&Request::get("discover?key_id=2").with_secret()).await.status >= 500);
        harness.send(&Request::new("GET", &key().target)).await.assert_unauthorized();
    }
    eventually("the outage to be seen", async || {
        harness.send(&key()).await;
        (harness.metric("railgate_cache_outage{route=\"authorized_keys\"}").await == Some(1)).then_some(())
    })
    .await;
    let log = log::since(place);
    for route in ["authorized_keys", "discover", "check"] {
        let (message, route) = ("Rails fails; stale answers are served", format!(r#""route":"{route}""#));
        assert!(log.lines().any(|line| line.contains(message) && line.contains(&route)), "{route}: {log}");
    }
    assert!(log.contains(r#""cache":"stale_if_error""#), "{log}");

    harness.rails.recover();
    eventually("Rails to be asked again", async || {
        harness.send(&key()).await;
        log::since(place).contains("Rails answers again").then_some(())
    })
    .await;
}

/// The refusal of a removed key or a blocked user is never hidden.
#[tokio::test]
async fn a_refusal_by_rails_removes_the_entry() {
    for (status, body, is_kept) in [
        (401, r#"{"message":"401 Unauthorized"}"#, false),
        (401, r#"{"message":"401 Unauthorized - Key"}"#, true),
        (403, r#"{"message":"403 Forbidden"}"#, false),
        (404, r#"{"message":"404 Key Not Found"}"#, true),
    ] {
        let harness = harness("0s", "1h").await;
        harness.send_forwarded(&key()).await;
        harness.rails.respond_always(Reply::json(status, body));
        eventually("the refusal", async || (harness.send(&key()).await.status == status).then_some(())).await;
        harness.rails.respond_always(Reply::hang_up());
        let response = harness.send(&key()).await;
        assert_eq!(response.status, if is_kept { status } else { 502 }, "{response}");
    }
}

/// What stands in front of Rails knows nothing of keys.
#[tokio::test]
async fn an_answer_of_something_in_front_of_rails_does_not_remove_the_entry() {
    let user = Request::get("discover?key_id=1").with_secret();
    for (answer, status) in [
        (Reply::new(302, "Location: https://login.example.com/\r\n", ""), 302),
        (Reply::new(429, "Content-Type: text/plain\r\n", "Retry later"), 429),
        (Reply::new(200, "Content-Type: text/html\r\n", "<html>"), 200),
        (Reply::json(404, r#"{"message":"no Route matched with those values"}"#), 404),
        (Reply::json(404, r#"{"error":"404 Not Found"}"#), 404),
    ] {
        let harness = harness("0s", "1h").await;
        for request in [key(), user.clone()] {
            harness.send_forwarded(&request).await;
        }
        harness.rails.respond_always(answer);
        for request in [key(), user.clone()] {
            eventually("the answer in front of Rails", async || {
                let response = harness.send(&request).await;
                (response.status == status && !response.is_hit()).then_some(())
            })
            .await;
        }
        harness.rails.respond_always(Reply::json(503, "{}"));
        for request in [key(), user.clone()] {
            let response = harness.send(&request).await;
            assert!(is_stale(&response, "stale_if_error"), "after {status}: {response}");
        }
    }
}

/// A newer Rails may refuse a key in other words. Once a minute at most, the log says that some are unknown.
#[tokio::test]
async fn after_a_refusal_in_unknown_words_the_entry_is_not_used_if_rails_fails() {
    let place = log::position();
    let harness = harness("0s", "1h").await;
    let user = Request::get("discover?key_id=1").with_secret();
    for request in [key(), user.clone()] {
        harness.send_forwarded(&request).await;
    }
    harness.rails.respond_always(Reply::json(403, r#"{"message":"Key is blocked"}"#));
    for request in [key(), user.clone()] {
        let request = request.header("X-Request-Id", "refused-in-unknown-words");
        eventually("the refusal", async || (harness.send(&request).await.status == 403).then_some(())).await;
    }
    harness.rails.respond_always(Reply::json(503, "{}"));
    for request in [key(), user.clone()] {
        assert_eq!(harness.send(&request).await.status, 503);
    }
    let log = log::since(place);
    let warnings = log.lines().filter(|line| line.contains("a refusal in unknown words"));
    let warnings: Vec<_> = warnings.filter(|line| line.contains("refused-in-unknown-words")).collect();
    assert!(matches!(warnings[..], [one] if one.contains(r#""level":"WARN""#)), "{log}");
}

#[tokio::test]
async fn stale_answers_are_not_served_when_disabled() {
    let harness = harness("0s", "0s").await;
    harness.send_forwarded(&key()).await;
    harness
        .rails
        .respond_with(|request| if request.is_for("check") { gitlab(request) } else { Reply::hang_up() });
    eventually("the end of the entry", async || (harness.send(&key()).await.status == 502).then_some(()))
        .await;
    let check = harness.send(&Request::get("check").with_secret()).await;
    assert_eq!((check.status, check.text()), (200, CHECK));
}
