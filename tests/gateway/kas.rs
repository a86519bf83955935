//! The Kubernetes agent server: its tokens, and what passes once they are judged.

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::client::Ask;
use super::credentials::{
    KAS_HEADER, KAS_SECRET, SECRET, SHELL_HEADER, SHELL_SECRET, kas_token, now, shell_token, token,
};
use super::fake::Reply;
use super::stage::{Setup, Stage};

const ENDPOINTS: [(&str, &str); 14] = [
    ("GET", "kubernetes/agent_info"),
    ("GET", "kubernetes/project_info?id=1"),
    ("POST", "kubernetes/usage_metrics"),
    ("GET", "agents/agentk/agent_info"),
    ("GET", "kubernetes/verify_project_access?id=1"),
    ("POST", "kubernetes/agent_configuration"),
    ("POST", "kubernetes/authorize_proxy_user"),
    ("POST", "kubernetes/agent_events"),
    ("GET", "kubernetes/receptive_agents"),
    ("PUT", "kubernetes/modules/starboard_vulnerability"),
    ("POST", "kubernetes/modules/starboard_vulnerability/scan_result"),
    ("GET", "kubernetes/modules/starboard_vulnerability/policies_configuration"),
    ("GET", "autoflow/repository_info?id=1"),
    ("GET", "ci/agents/runner/info"),
];

fn ask(method: &str, endpoint: &str) -> Ask {
    Ask::new(method, &format!("/api/v4/internal/{endpoint}"))
}

#[tokio::test]
async fn every_endpoint_of_kas_demands_its_token() {
    let stage = Stage::new().await;
    for (method, endpoint) in ENDPOINTS {
        for stranger in [
            ask(method, endpoint),
            ask(method, endpoint).header(KAS_HEADER, ""),
            ask(method, endpoint).header("Authorization", "Bearer agent-token"),
            ask(method, endpoint).with_secret().with_shell_token(),
        ] {
            let (answer, arrived) = stage.send_counting(&stranger).await;
            answer.assert_unauthorized_as_kas();
            assert_eq!(arrived, 0, "{stranger}");
        }
        for _ in 0..2 {
            let (answer, seen) = stage.pass(&ask(method, endpoint).with_kas_token()).await;
            assert_eq!(answer.status, 200, "{answer}");
            assert_eq!(answer.cache_status(), "railgate; fwd=bypass; detail=route", "{endpoint}");
            assert_eq!(seen.header("authorization"), Some("Bearer agent-token"));
        }
    }
}

#[tokio::test]
async fn tokens_are_judged_to_the_second() {
    let stage = Stage::new().await;
    let now = now();
    let usual = json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": now + 600 });
    let claims = |over| kas_token(&over);
    let signed = |algorithm, secret: &[u8]| token(algorithm, secret, &usual, &json!({}));
    for good in [
        claims(json!({})),
        claims(json!({ "aud": null })),
        claims(json!({ "aud": ["x", "gitlab"] })),
        claims(json!({ "nbf": null })),
        claims(json!({ "iat": now + 3600 })),
    ] {
        let ask = ask("GET", "kubernetes/agent_info").header(KAS_HEADER, &good);
        assert_eq!(stage.pass(&ask).await.0.status, 200);
    }
    for bad in [
        claims(json!({ "exp": now })),
        claims(json!({ "exp": now - 1 })),
        claims(json!({ "exp": null })),
        claims(json!({ "nbf": now + 3600 })),
        claims(json!({ "iss": "gitlab-shell" })),
        claims(json!({ "iss": null })),
        claims(json!({ "iss": ["gitlab-kas"] })),
        signed(Algorithm::HS512, &KAS_SECRET),
        signed(Algorithm::HS256, &KAS_SECRET[..31]),
        // Its Base64 is what is in the file, not what signs.
        signed(Algorithm::HS256, b"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
        signed(Algorithm::HS256, SHELL_SECRET.as_bytes()),
        shell_token(&json!({})),
        format!("Bearer {}", claims(json!({}))),
        SECRET.to_owned(),
        "x.y.z".to_owned(),
    ] {
        let ask = ask("GET", "kubernetes/agent_info").header(KAS_HEADER, &bad);
        let (answer, arrived) = stage.send_counting(&ask).await;
        answer.assert_unauthorized_as_kas();
        assert_eq!(arrived, 0, "{ask}");
    }
}

#[tokio::test]
async fn an_audience_is_demanded_where_configured() {
    let stage = Setup::new().text("auth.kas.audience", "gitlab").start().await;
    for (over, status) in [
        (json!({}), 200),
        (json!({ "aud": ["gitlab", "x"] }), 200),
        (json!({ "aud": "x" }), 401),
        (json!({ "aud": ["x"] }), 401),
        (json!({ "aud": [] }), 401),
        (json!({ "aud": null }), 401),
    ] {
        let ask = ask("GET", "kubernetes/agent_info").header(KAS_HEADER, &kas_token(&over));
        assert_eq!(stage.send(&ask).await.status, status, "{over}");
    }
}

#[tokio::test]
async fn without_a_secret_no_kas_is_let_in() {
    let stage = Setup::new().without("auth.kas.secret_file").start().await;
    let (answer, arrived) = stage.send_counting(&ask("GET", "kubernetes/agent_info").with_kas_token()).await;
    answer.assert_unauthorized_as_kas();
    assert_eq!(arrived, 0);
    stage.assert_alive().await;
}

/// What kas may not is Rails' to say, in the words of its release.
#[tokio::test]
async fn the_verdict_on_the_agent_is_rails_own() {
    let stage = Stage::new().await;
    for (status, body) in [
        (403, r#"{"message":"403 Forbidden"}"#),
        (401, r#"{"message":"401 Unauthorized"}"#),
        (404, r#"{"message":"404 Project Not Found"}"#),
        (400, r#"{"error":"gitops_sync_count is missing"}"#),
        (402, ""),
        (500, r#"{"message":"500 Internal Server Error"}"#),
    ] {
        stage.rails.always(Reply::json(status, body));
        let ask = ask("GET", "kubernetes/agent_info").header(KAS_HEADER, &kas_token(&json!({})));
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!((answer.status, answer.text()), (status, body));
        assert_eq!(seen.header("authorization"), None);
    }
    stage.rails.always(Reply::bytes("HTTP/1.1 204 No Content\r\n\r\n"));
    let metrics = Ask::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":0}"#).with_kas_token();
    let (answer, seen) = stage.pass(&metrics).await;
    assert_eq!((answer.status, answer.header("content-length")), (204, None));
    assert_eq!(seen.body, br#"{"gitops_sync_count":0}"#);
}

/// A token for one family is none for the other, even beside a good one.
#[tokio::test]
async fn families_do_not_open_each_others_doors() {
    let stage = Stage::new().await;
    let both = Ask::get("kubernetes/agent_info").header(SHELL_HEADER, "x").with_kas_token();
    assert_eq!(stage.send(&both).await.status, 200);
    let both = Ask::get("check").header(KAS_HEADER, "x").with_secret();
    assert_eq!(stage.send(&both).await.status, 200);
    stage.send(&Ask::get("check").with_kas_token()).await.assert_unauthorized();
    stage.send(&Ask::get("kubernetes/agent_info").with_shell_token()).await.assert_unauthorized_as_kas();
}
