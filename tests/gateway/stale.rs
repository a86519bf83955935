//! What Rails said before: for whom it has to do, and for how long.

use super::client::{Answer, Ask, eventually};
use super::fake::{CHECK, ROOT_KEY, Reply, gitlab};
use super::log;
use super::stage::{Setup, Stage};

fn key() -> Ask {
    Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

/// What is kept is stale almost at once.
async fn stage(while_revalidate: &str, if_error: &str) -> Stage {
    let mut setup = Setup::new();
    for route in ["authorized_keys", "discover"] {
        setup = setup
            .text(&format!("cache.{route}.ttl"), "1ms")
            .text(&format!("cache.{route}.stale_while_revalidate"), while_revalidate)
            .text(&format!("cache.{route}.stale_if_error"), if_error);
    }
    setup.start().await
}

fn is_stale(answer: &Answer, why: &str) -> bool {
    let status = answer.cache_status();
    status.starts_with("railgate; hit; ttl=") && status.ends_with(&format!("; detail={why}"))
}

#[tokio::test]
async fn a_stale_answer_is_given_at_once_and_renewed_behind_the_callers_back() {
    let stage = stage("1h", "1h").await;
    let (first, _) = stage.pass(&key()).await;
    let answer = eventually("a stale answer", async || {
        let answer = stage.send(&key()).await;
        is_stale(&answer, "stale_while_revalidate").then_some(answer)
    })
    .await;
    assert_eq!((answer.status, answer.text()), (200, first.text()));
    assert!(answer.header("age").is_some());
    eventually("every refresh to be counted", async || {
        let stored = stage.metric("railgate_cache_refreshes_total{result=\"stored\"}").await?;
        (stored > 0 && stored == stage.rails.count() - 1).then_some(())
    })
    .await;
    assert_eq!(stage.metric("railgate_cache_outage{route=\"authorized_keys\"}").await, Some(0));
    // The one that renews it says who asked, and nothing else.
    assert!(stage.rails.last().header("Gitlab-Shared-Secret").is_some());
}

#[tokio::test]
async fn who_was_known_stays_known_while_rails_fails() {
    let place = log::length();
    let stage = stage("0s", "1h").await;
    let user = Ask::get("discover?key_id=1").with_secret();
    for ask in [key(), user.clone()] {
        stage.pass(&ask).await;
    }
    // Each failure as it comes over the wire. What is not kept fails.
    for failure in [Reply::hang_up(), Reply::json(502, "{}"), Reply::json(503, "{}"), Reply::json(504, "{}")]
    {
        stage.rails.always(failure);
        for ask in [key(), user.clone()] {
            let answer = eventually("no fresh answer", async || {
                let answer = stage.send(&ask).await;
                (!answer.cache_status().ends_with("stored")).then_some(answer)
            })
            .await;
            assert!(
                answer.status == 200 && (answer.is_hit() || is_stale(&answer, "stale_if_error")),
                "{answer}"
            );
        }
        assert!(stage.send(&Ask::get("check").with_secret()).await.status >= 502);
        assert!(stage.send(&Ask::get("discover?key_id=2").with_secret()).await.status >= 502);
        stage.send(&Ask::new("GET", &key().target)).await.assert_unauthorized();
    }
    eventually("the outage to be seen", async || {
        stage.send(&key()).await;
        (stage.metric("railgate_cache_outage{route=\"authorized_keys\"}").await == Some(1)).then_some(())
    })
    .await;
    let log = log::since(place);
    assert!(log.contains("Rails fails; known keys and users are answered from memory"), "{log}");
    assert!(log.contains(r#""cache":"stale_if_error""#), "{log}");

    stage.rails.recover();
    eventually("Rails to be asked again", async || {
        stage.send(&key()).await;
        log::since(place).contains("Rails answers again").then_some(())
    })
    .await;
}

/// What Rails says of a key that it does not know any more, or of a blocked user, is never covered up.
#[tokio::test]
async fn a_key_that_rails_refuses_is_forgotten() {
    for refusal in [Reply::json(401, r#"{"message":"401 Unauthorized"}"#), Reply::json(403, "{}")] {
        let stage = stage("0s", "1h").await;
        stage.pass(&key()).await;
        stage.rails.always(refusal);
        eventually("the refusal", async || (stage.send(&key()).await.status / 100 == 4).then_some(())).await;
        stage.rails.always(Reply::hang_up());
        let answer = stage.send(&key()).await;
        answer.assert_failure(502);
    }
}

#[tokio::test]
async fn nothing_stale_is_given_where_it_is_switched_off() {
    let stage = stage("0s", "0s").await;
    stage.pass(&key()).await;
    stage.rails.answer(|request| if request.is_for("check") { gitlab(request) } else { Reply::hang_up() });
    eventually("the end of the entry", async || (stage.send(&key()).await.status == 502).then_some(())).await;
    let check = stage.send(&Ask::get("check").with_secret()).await;
    assert_eq!((check.status, check.text()), (200, CHECK));
}
