//! The calls of the Kubernetes agent server.

use http::StatusCode;
use serde_json::{Value, json};

use super::auth;
use super::call::ApiCall;
use super::data::{self, Project, Visibility};
use super::response::SampleResponse;

/// The agent with this token, and where its project is stored.
pub(super) fn agent_info(call: &ApiCall<'_>) -> SampleResponse {
    let Some(agent) = auth::agent(call.headers) else {
        return SampleResponse::unauthorized();
    };
    SampleResponse::ok(json!({
        "project_id": agent.project.id,
        "agent_id": agent.id,
        "agent_name": agent.name,
        "gitaly_info": gitaly_info(),
        "gitaly_repository": gitaly_repository(agent.project),
    }))
}

/// Where a project is stored that the agent may read: a public one, or its own.
pub(super) fn project_info(call: &ApiCall<'_>) -> SampleResponse {
    let Some(agent) = auth::agent(call.headers) else {
        return SampleResponse::unauthorized();
    };
    let Some(id) = call.params.text("id") else {
        return SampleResponse::error(StatusCode::BAD_REQUEST, "id is missing");
    };
    match data::project(&id) {
        Some(project) if project.visibility == Visibility::Public || project.id == agent.project.id => {
            SampleResponse::ok(json!({
                "project_id": project.id,
                "gitaly_info": gitaly_info(),
                "gitaly_repository": gitaly_repository(project),
            }))
        }
        _ => SampleResponse::message(StatusCode::NOT_FOUND, "404 Not Found"),
    }
}

/// Counters; this GitLab only checks the number.
pub(super) fn usage_metrics(call: &ApiCall<'_>) -> SampleResponse {
    let count = call.params.text("gitops_sync_count");
    match count.map(|count| count.parse::<i64>()) {
        None => SampleResponse::error(StatusCode::BAD_REQUEST, "gitops_sync_count is missing"),
        Some(Err(_)) => SampleResponse::error(StatusCode::BAD_REQUEST, "gitops_sync_count is invalid"),
        Some(Ok(..0)) => SampleResponse::message(
            StatusCode::BAD_REQUEST,
            "400 Bad request - gitops_sync_count must be greater than or equal to zero",
        ),
        Some(Ok(0..)) => SampleResponse::no_content(),
    }
}

fn gitaly_info() -> Value {
    json!({ "address": data::GITALY_ADDRESS, "token": data::GITALY_TOKEN, "features": {} })
}

fn gitaly_repository(project: &Project) -> Value {
    json!({
        "storage_name": "default",
        "relative_path": project.relative_path(),
        "gl_repository": project.gl_repository(),
        "gl_project_path": project.path,
    })
}
