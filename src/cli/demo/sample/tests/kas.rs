//! The Kubernetes agent server.

use super::*;

fn ask_as_agent(path: &str, agent_token: &str) -> (u16, Value) {
    let (jwt, bearer) = (kas_token(), format!("Bearer {agent_token}"));
    let headers = [("Gitlab-Kas-Api-Request", jwt.as_str()), ("Authorization", bearer.as_str())];
    ask("GET", path, &headers, "")
}

#[test]
fn agent_info_is_for_known_agents() {
    let (status, body) = ask_as_agent("/kubernetes/agent_info", data::AGENT.token);
    assert_eq!((status, &body["agent_id"], &body["project_id"]), (200, &json!(5), &json!(20)));
    assert_eq!(body["gitaly_repository"]["gl_project_path"], "ops/clusters");
    assert_eq!(ask_as_agent("/kubernetes/agent_info", "other"), unauthorized());
    let only_jwt = kas_token();
    let headers = [("Gitlab-Kas-Api-Request", only_jwt.as_str())];
    assert_eq!(ask("GET", "/kubernetes/agent_info", &headers, ""), unauthorized());
}

#[test]
fn project_info_shows_public_projects_and_the_agents_own() {
    for (query, status) in [
        ("?id=7", 200),
        ("?id=group%2Fapp", 200),
        ("?id=20", 200),
        ("?id=12", 404),
        ("?id=999", 404),
        ("", 400),
    ] {
        let path = format!("/kubernetes/project_info{query}");
        let (answered, body) = ask_as_agent(&path, data::AGENT.token);
        assert_eq!(answered, status, "{query}");
        assert!(body.get("agent_id").is_none());
        assert_eq!(ask_as_agent(&path, "other"), unauthorized());
    }
}

#[test]
fn usage_metrics_checks_the_number() {
    let missing = json!({ "error": "gitops_sync_count is missing" });
    let invalid = json!({ "error": "gitops_sync_count is invalid" });
    let negative = json!({ "message":
        "400 Bad request - gitops_sync_count must be greater than or equal to zero" });
    for (body, answer) in [
        (r#"{"gitops_sync_count":0}"#, (204, Value::Null)),
        (r#"{"gitops_sync_count":12}"#, (204, Value::Null)),
        (r#"{"gitops_sync_count":-1}"#, (400, negative)),
        (r#"{"gitops_sync_count":"many"}"#, (400, invalid)),
        ("{}", (400, missing)),
    ] {
        let jwt = kas_token();
        let headers = [("Gitlab-Kas-Api-Request", jwt.as_str()), JSON];
        assert_eq!(ask("POST", "/kubernetes/usage_metrics", &headers, body), answer, "{body}");
    }
}
