//! The calls of the Kubernetes agent server.

use http::StatusCode;
use serde_json::{Value, json};

use super::answer::Answer;
use super::data::{self, Project, Visibility};
use super::{Call, auth};

/// The agent whose token this is, and where its project lives.
pub(super) fn agent_info(call: &Call<'_>) -> Answer {
    let Some(agent) = auth::agent(call.headers) else {
        return Answer::unauthorized();
    };
    Answer::ok(json!({
        "project_id": agent.project.id,
        "agent_id": agent.id,
        "agent_name": agent.name,
        "gitaly_info": gitaly_info(),
        "gitaly_repository": gitaly_repository(agent.project),
    }))
}

/// Where a project lives that the agent may read: a public one, or its own.
pub(super) fn project_info(call: &Call<'_>) -> Answer {
    let Some(agent) = auth::agent(call.headers) else {
        return Answer::unauthorized();
    };
    let Some(id) = call.params.text("id") else {
        return Answer::error(StatusCode::BAD_REQUEST, "id is missing");
    };
    match data::project(&id) {
        Some(project) if project.visibility == Visibility::Public || project.id == agent.project.id => {
            Answer::ok(json!({
                "project_id": project.id,
                "gitaly_info": gitaly_info(),
                "gitaly_repository": gitaly_repository(project),
            }))
        }
        _ => Answer::message(StatusCode::NOT_FOUND, "404 Not Found"),
    }
}

/// Counts; this GitLab only checks the number.
pub(super) fn usage_metrics(call: &Call<'_>) -> Answer {
    let count = call.params.text("gitops_sync_count");
    match count.map(|count| count.parse::<i64>()) {
        None => Answer::error(StatusCode::BAD_REQUEST, "gitops_sync_count is missing"),
        Some(Err(_)) => Answer::error(StatusCode::BAD_REQUEST, "gitops_sync_count is invalid"),
        Some(Ok(..0)) => Answer::message(
            StatusCode::BAD_REQUEST,
            "400 Bad request - gitops_sync_count must be greater than or equal to zero",
        ),
        Some(Ok(0..)) => Answer::no_content(),
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
