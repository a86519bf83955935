//! Clock skew is measured from tokens and shown; it affects no decision that it does not affect in Rails.

use serde_json::json;

use super::client::Request;
use super::credentials::{KAS_HEADER, SHELL_HEADER, kas_token, now, shell_token, token};
use super::harness::Harness;
use super::log;

#[tokio::test]
async fn a_slow_clock_is_shown_in_metrics_and_logged() {
    let harness = Harness::new().await;
    assert_eq!(skews(&harness).await, [None, None], "no token has come");

    let logged = log::position();
    let ahead = shell_token(&json!({ "iat": now() + 7777 }));
    assert_eq!(harness.send(&Request::get("check").header(SHELL_HEADER, &ahead)).await.status, 200);
    let [shell, kas] = skews(&harness).await;
    assert!(shell.is_some_and(|seconds| (7700..=7777).contains(&seconds)), "{shell:?}");
    assert_eq!(kas, None);
    let log = log::since(logged);
    let mut lines = log.lines().filter(|line| line.contains(r#""seconds":77"#));
    assert!(lines.next().is_some_and(|line| line.contains("a token was issued in the future")), "{log}");

    // A refused token counts too, unless its signature is wrong.
    let early = json!({ "nbf": now() + 30, "iat": now() + 30 });
    let forged = token(jsonwebtoken::Algorithm::HS256, &[1; 32], &json!({ "iat": now() + 9000 }), &json!({}));
    for token in [kas_token(&early), forged] {
        let request = Request::get("kubernetes/agent_info").header(KAS_HEADER, &token);
        assert_eq!(harness.send(&request).await.status, 401);
    }
    let [_, kas] = skews(&harness).await;
    assert!(kas.is_some_and(|seconds| (20..=30).contains(&seconds)), "{kas:?}");
}

#[tokio::test]
async fn the_smallest_token_delay_determines_the_skew() {
    let harness = Harness::new().await;
    for iat in [json!(now()), json!(now() - 40), json!("soon"), json!(null)] {
        let request = Request::get("check").header(SHELL_HEADER, &shell_token(&json!({ "iat": iat })));
        assert_eq!(harness.send(&request).await.status, 200);
    }
    let [shell, _] = skews(&harness).await;
    assert!(shell.is_some_and(|seconds| (-30..=0).contains(&seconds)), "{shell:?}");
}

/// The measured skew of shell tokens and kas tokens, in seconds.
async fn skews(harness: &Harness) -> [Option<i64>; 2] {
    let metrics = harness.metrics().await;
    ["shell_jwt", "kas"].map(|caller| {
        let series = format!(r#"railgate_clock_skew_seconds{{caller="{caller}"}} "#);
        metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
    })
}
