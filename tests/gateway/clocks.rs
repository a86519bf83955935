//! Clocks that differ: what tokens say of it is shown, and decides nothing that it does not decide in Rails.

use serde_json::json;

use super::client::Ask;
use super::credentials::{KAS_HEADER, SHELL_HEADER, kas_token, now, shell_token, token};
use super::log;
use super::stage::Stage;

#[tokio::test]
async fn a_clock_that_is_slow_here_is_shown_and_told() {
    let stage = Stage::new().await;
    assert_eq!(skews(&stage).await, [None, None], "no token has come");

    let logged = log::length();
    let ahead = shell_token(&json!({ "iat": now() + 7777 }));
    assert_eq!(stage.send(&Ask::get("check").header(SHELL_HEADER, &ahead)).await.status, 200);
    let [shell, kas] = skews(&stage).await;
    assert!(shell.is_some_and(|seconds| (7700..=7777).contains(&seconds)), "{shell:?}");
    assert_eq!(kas, None);
    let log = log::since(logged);
    let mut lines = log.lines().filter(|line| line.contains(r#""seconds":77"#));
    assert!(lines.next().is_some_and(|line| line.contains("a token was issued in the future")), "{log}");

    // One that is refused says something too, unless it is signed with another key.
    let early = json!({ "nbf": now() + 30, "iat": now() + 30 });
    let forged = token(jsonwebtoken::Algorithm::HS256, &[1; 32], &json!({ "iat": now() + 9000 }), &json!({}));
    for token in [kas_token(&early), forged] {
        let ask = Ask::get("kubernetes/agent_info").header(KAS_HEADER, &token);
        assert_eq!(stage.send(&ask).await.status, 401);
    }
    let [_, kas] = skews(&stage).await;
    assert!(kas.is_some_and(|seconds| (20..=30).contains(&seconds)), "{kas:?}");
}

#[tokio::test]
async fn the_token_that_came_fastest_says_most() {
    let stage = Stage::new().await;
    for iat in [json!(now()), json!(now() - 40), json!("soon"), json!(null)] {
        let ask = Ask::get("check").header(SHELL_HEADER, &shell_token(&json!({ "iat": iat })));
        assert_eq!(stage.send(&ask).await.status, 200);
    }
    let [shell, _] = skews(&stage).await;
    assert!(shell.is_some_and(|seconds| (-30..=0).contains(&seconds)), "{shell:?}");
}

/// What the tokens of the shell and of kas say.
async fn skews(stage: &Stage) -> [Option<i64>; 2] {
    let metrics = stage.metrics().await;
    ["shell_jwt", "kas"].map(|caller| {
        let series = format!(r#"railgate_clock_skew_seconds{{caller="{caller}"}} "#);
        metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
    })
}
