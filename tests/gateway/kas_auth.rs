//! Authentication of the Kubernetes agent server (kas).

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::client::Request;
use super::credentials::{
    ENCODED_SECRET, KAS_HEADER, KAS_SECRET, SHELL_HEADER, SHELL_SECRET, kas_token, now, shell_token, token,
};
use super::fake_rails::Reply;
use super::harness::{Harness, Setup};

/// With the id of the row of each.
const ENDPOINTS: [(&str, &str, &str); 25] = [
    ("GET", "kubernetes/agent_info", "agent_info"),
    ("GET", "kubernetes/project_info?id=1", "project_info"),
    ("POST", "kubernetes/usage_metrics", "usage_metrics"),
    ("GET", "agents/agentk/agent_info", "agentk_agent_info"),
    ("GET", "agents/agentw/agent_info", "agentw_agent_info"),
    ("GET", "agents/agentw/server_config", "agentw_server_config"),
    ("GET", "agents/agentw/authorize_user_access?workspace_host=a&user_id=1", "agentw_authorize_user_access"),
    ("GET", "kubernetes/verify_project_access?id=1", "verify_project_access"),
    ("POST", "kubernetes/agent_configuration", "agent_configuration"),
    ("POST", "kubernetes/authorize_proxy_user", "authorize_proxy_user"),
    ("POST", "kubernetes/agent_events", "agent_events"),
    ("GET", "kubernetes/receptive_agents", "receptive_agents"),
    ("PUT", "kubernetes/modules/starboard_vulnerability", "starboard_vulnerability"),
    ("POST", "kubernetes/modules/starboard_vulnerability/scan_result", "starboard_scan_result"),
    ("GET", "kubernetes/modules/starboard_vulnerability/policies_configuration", "policies_configuration"),
    ("POST", "kubernetes/modules/remote_development/reconcile", "remote_development_reconcile"),
    ("GET", "kubernetes/modules/remote_development/prerequisites", "remote_development_prerequisites"),
    ("GET", "kubernetes/modules/new/thing", "kubernetes_modules"),
    ("PATCH", "kubernetes/modules/newer", "kubernetes_modules"),
    ("GET", "autoflow/repository_info?id=1", "autoflow_repository_info"),
    ("GET", "ci/agents/runner/info", "runner_info"),
    ("GET", "ci/agents/runnerc/info", "runnerc_info"),
    ("POST", "ci/job_router/jobs/request", "job_router_request"),
    ("PUT", "ci/job_router/jobs/7", "job_router_job"),
    ("GET", "ci/job_router/runner_controllers/job_admission", "job_router_admission"),
];

fn request(method: &str, endpoint: &str) -> Request {
    Request::new(method, &format!("/api/v4/internal/{endpoint}"))
}

#[tokio::test]
async fn every_kas_endpoint_requires_a_kas_token() {
    for (method, endpoint, route) in ENDPOINTS {
        let harness = Harness::new().await;
        for unauthenticated in [
            request(method, endpoint),
            request(method, endpoint).header(KAS_HEADER, ""),
            request(method, endpoint).header("Authorization", "Bearer agent-token"),
            request(method, endpoint).with_secret().with_shell_token(),
        ] {
            let (response, arrived) = harness.send_counting(&unauthenticated).await;
            response.assert_unauthorized_as_kas();
            assert_eq!(arrived, 0, "{unauthenticated}");
        }
        for _ in 0..2 {
            let (response, seen) = harness.send_forwarded(&request(method, endpoint).with_kas_token()).await;
            assert_eq!(response.status, 200, "{response}");
            assert_eq!(response.cache_status(), "railgate; fwd=bypass; detail=route", "{endpoint}");
            assert_eq!(seen.header("authorization"), Some("Bearer agent-token"));
        }
        let counted = |caller: &str, status: &str, cache: &str| {
            let labels = format!(r#"route="{route}",caller="{caller}",status="{status}",cache="{cache}""#);
            format!("railgate_requests_total{{{labels}}}")
        };
        harness.wait_for_metric(&counted("kas", "2xx", "never"), 2).await;
        harness.wait_for_metric(&counted("none", "4xx", "none"), 4).await;
    }
}

#[tokio::test]
async fn kas_tokens_have_no_leeway() {
    let harness = Harness::new().await;
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
        let request = request("GET", "kubernetes/agent_info").header(KAS_HEADER, &good);
        assert_eq!(harness.send_forwarded(&request).await.0.status, 200);
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
        // The file holds Base64; the decoded bytes sign.
        signed(Algorithm::HS256, b"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
        signed(Algorithm::HS256, SHELL_SECRET.as_bytes()),
        shell_token(&json!({})),
        format!("Bearer {}", claims(json!({}))),
        ENCODED_SECRET.to_owned(),
        "x.y.z".to_owned(),
    ] {
        let request = request("GET", "kubernetes/agent_info").header(KAS_HEADER, &bad);
        let (response, arrived) = harness.send_counting(&request).await;
        response.assert_unauthorized_as_kas();
        assert_eq!(arrived, 0, "{request}");
    }
}

#[tokio::test]
async fn a_configured_audience_is_required() {
    let harness = Setup::new().text("auth.kas.audience", "gitlab").start().await;
    for (over, status) in [
        (json!({}), 200),
        (json!({ "aud": ["gitlab", "x"] }), 200),
        (json!({ "aud": "x" }), 401),
        (json!({ "aud": ["x"] }), 401),
        (json!({ "aud": [] }), 401),
        (json!({ "aud": null }), 401),
    ] {
        let request = request("GET", "kubernetes/agent_info").header(KAS_HEADER, &kas_token(&over));
        assert_eq!(harness.send(&request).await.status, status, "{over}");
    }
}

#[tokio::test]
async fn kas_is_refused_without_a_configured_secret() {
    let harness = Setup::new().without("auth.kas.secret_file").start().await;
    let (response, arrived) =
        harness.send_counting(&request("GET", "kubernetes/agent_info").with_kas_token()).await;
    response.assert_unauthorized_as_kas();
    assert_eq!(arrived, 0);
    harness.assert_alive().await;
}

/// Authorization of kas and its agents is up to Rails.
#[tokio::test]
async fn the_response_of_rails_about_an_agent_is_forwarded() {
    let harness = Harness::new().await;
    for (status, body) in [
        (403, r#"{"message":"403 Forbidden"}"#),
        (401, r#"{"message":"401 Unauthorized"}"#),
        (404, r#"{"message":"404 Project Not Found"}"#),
        (400, r#"{"error":"gitops_sync_count is missing"}"#),
        (402, ""),
        (500, r#"{"message":"500 Internal Server Error"}"#),
    ] {
        harness.rails.respond_always(Reply::json(status, body));
        let request = request("GET", "kubernetes/agent_info").header(KAS_HEADER, &kas_token(&json!({})));
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!((response.status, response.text()), (status, body));
        assert_eq!(seen.header("authorization"), None);
    }
    harness.rails.respond_always(Reply::bytes("HTTP/1.1 204 No Content\r\n\r\n"));
    let metrics =
        Request::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":0}"#).with_kas_token();
    let (response, seen) = harness.send_forwarded(&metrics).await;
    assert_eq!((response.status, response.header("content-length")), (204, None));
    assert_eq!(seen.body, br#"{"gitops_sync_count":0}"#);
}

#[tokio::test]
async fn credentials_of_one_family_are_refused_by_the_other() {
    let harness = Harness::new().await;
    let both = Request::get("kubernetes/agent_info").header(SHELL_HEADER, "x").with_kas_token();
    assert_eq!(harness.send(&both).await.status, 200);
    let both = Request::get("check").header(KAS_HEADER, "x").with_secret();
    assert_eq!(harness.send(&both).await.status, 200);
    harness.send(&Request::get("check").with_kas_token()).await.assert_unauthorized();
    harness
        .send(&Request::get("kubernetes/agent_info").with_shell_token())
        .await
        .assert_unauthorized_as_kas();
}
