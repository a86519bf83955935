//! The calls of GitLab Shell and of Gitaly's hooks.

use http::StatusCode;
use serde_json::{Value, json};

use super::access::{self, Actor};
use super::auth::lenient_base64;
use super::call::ApiCall;
use super::data::{self, HOST, Project, SampleKey, User};
use super::params::SampleParams;
use super::response::SampleResponse;

/// The scopes that a personal access token can have, in GitLab's order.
const SCOPES: [&str; 6] = ["api", "read_api", "read_repository", "read_user", "sudo", "write_repository"];

/// May the actor run this Git command on this project?
pub(super) fn allowed(call: &ApiCall<'_>) -> SampleResponse {
    let actor = Actor::of(&call.params);
    match access::check(&call.params, &actor) {
        Ok(project) => SampleResponse::ok(permission(&actor, project)),
        Err(denial) => denial,
    }
}

fn permission(actor: &Actor, project: &Project) -> Value {
    let key_type = |key: &SampleKey| {
        if key.is_deploy_key { "deploy_key" } else { "key" }
    };
    json!({
        "status": true,
        "gl_repository": project.gl_repository(),
        "gl_project_path": project.path,
        "gl_project_id": project.id,
        "gl_root_namespace_id": project.namespace_id,
        "gl_id": actor.user.map(|user| format!("user-{}", user.id)),
        "gl_username": actor.user.map(|user| user.username),
        "git_config_options": [],
        "gitaly": {
            "repository": {
                "storage_name": "default",
                "relative_path": project.relative_path(),
                "git_object_directory": "",
                "git_alternate_object_directories": [],
                "gl_repository": project.gl_repository(),
                "gl_project_path": project.path,
            },
            "address": data::GITALY_ADDRESS,
            "token": data::GITALY_TOKEN,
            "features": {},
        },
        "gl_console_messages": [],
        "need_audit": false,
        "gl_key_type": actor.key.map(key_type),
        "gl_key_id": actor.key.map(|key| key.id),
    })
}

/// A short-lived password for Git LFS.
pub(super) fn lfs_authenticate(call: &ApiCall<'_>) -> SampleResponse {
    let actor = Actor::of(&call.params);
    // The two spellings are GitLab's: without a project LFS is off, without an actor a record is
    // missing.
    let Some(project) = access::project(&call.params) else {
        return SampleResponse::message(StatusCode::NOT_FOUND, "404 Not Found");
    };
    let Some(user) = actor.user else {
        return SampleResponse::message(StatusCode::NOT_FOUND, "404 Not found");
    };
    let username = match actor.deploy_key() {
        Some(key) => format!("lfs+deploy-key-{}", key.id),
        None => user.username.to_owned(),
    };
    SampleResponse::ok(json!({
        "username": username,
        "lfs_token": call.fresh("lfs token"),
        "repository_http_path": format!("http://{HOST}/{}.git", project.path),
        "expires_in": 1800,
    }))
}

/// The key with this blob. Without one Rails raises an error rather than answer 400.
pub(super) fn authorized_keys(call: &ApiCall<'_>) -> SampleResponse {
    let Some(blob) = call.params.text("key") else {
        return SampleResponse::broken();
    };
    let Some(key) = data::key_with_blob(&lenient_base64(&blob)) else {
        return SampleResponse::message(StatusCode::NOT_FOUND, "404 Key Not Found");
    };
    SampleResponse::ok(json!({
        "id": key.id,
        "title": key.title,
        "created_at": key.created_at,
        "expires_at": null,
        "key": format!("{} {} {} ({HOST})", key.kind, key.blob, key.owner.name),
        "usage_type": "auth_and_signing",
    }))
}

/// The user of a key, an id or a name; an unknown one is `null`, not a 404.
pub(super) fn discover(call: &ApiCall<'_>) -> SampleResponse {
    let user = Actor::of(&call.params).user;
    SampleResponse::ok(
        user.map_or(
            Value::Null,
            |user| json!({ "id": user.id, "username": user.username, "name": user.name }),
        ),
    )
}

/// The version and health of this GitLab.
pub(super) fn check(_: &ApiCall<'_>) -> SampleResponse {
    SampleResponse::ok(json!({
        "api_version": "v4",
        "gitlab_version": "15.4.0",
        "gitlab_rev": "5a4e91c2b07",
        "redis": true,
    }))
}

/// Ten new recovery codes, for a user with two-factor authentication.
pub(super) fn two_factor_recovery_codes(call: &ApiCall<'_>) -> SampleResponse {
    match acting_user(&call.params, "retrieve recovery codes") {
        Err(refusal) => refusal,
        Ok(user) if !user.has_two_factor => {
            SampleResponse::unsuccessful("Two-factor authentication is not enabled for this user")
        }
        Ok(_) => {
            let code = |n| call.fresh(&format!("code {n}")).split_off(48);
            let codes: Vec<String> = (0..10).map(code).collect();
            SampleResponse::ok(json!({ "success": true, "recovery_codes": codes }))
        }
    }
}

/// A new personal access token.
pub(super) fn personal_access_token(call: &ApiCall<'_>) -> SampleResponse {
    if let Err(refusal) = acting_user(&call.params, "create personal access tokens") {
        return refusal;
    }
    if call.params.text("name").is_none_or(|name| name.trim().is_empty()) {
        return SampleResponse::unsuccessful("No token name specified");
    }
    let scopes = call.params.list("scopes");
    if scopes.is_empty() {
        return SampleResponse::unsuccessful("No token scopes specified");
    }
    if let Some(scope) = scopes.iter().find(|scope| !SCOPES.contains(scope)) {
        let message = format!("Invalid scope: '{scope}'. Valid scopes are: {SCOPES:?}");
        return SampleResponse::unsuccessful(&message);
    }
    let expires_at = call.params.text("expires_at");
    if let Some(date) = expires_at.as_deref().filter(|date| !looks_like_date(date)) {
        return SampleResponse::unsuccessful(&format!("Invalid token expiry date: '{date}'"));
    }
    SampleResponse::ok(json!({
        "success": true,
        "token": call.fresh("token").split_off(44),
        "scopes": scopes,
        "expires_at": expires_at,
    }))
}

/// The acting user, who cannot act by a deploy key here.
fn acting_user(params: &SampleParams, what: &str) -> Result<&'static User, SampleResponse> {
    let actor = Actor::of(params);
    if actor.deploy_key().is_some() {
        return Err(SampleResponse::unsuccessful(&format!("Deploy keys cannot be used to {what}")));
    }
    actor.user.ok_or_else(|| {
        if params.value("key_id").is_some() {
            SampleResponse::unsuccessful("Could not find the given key")
        } else if params.value("user_id").is_some() {
            SampleResponse::unsuccessful("Could not find the given user")
        } else {
            // Rails calls a method on `nil`, which is an error.
            SampleResponse::broken()
        }
    })
}

/// Year, month and day, without a check of the length of the month.
fn looks_like_date(text: &str) -> bool {
    let parts: Vec<Option<u16>> = text.split('-').map(|part| part.parse().ok()).collect();
    matches!(parts.as_slice(), [Some(2000..=9999), Some(1..=12), Some(1..=31)])
}

/// The start of a push. GitLab does not check whether the repository exists.
pub(super) fn pre_receive(_: &ApiCall<'_>) -> SampleResponse {
    SampleResponse::ok(json!({ "reference_counter_increased": true }))
}

/// The end of a push: a hint for each pushed branch.
pub(super) fn post_receive(call: &ApiCall<'_>) -> SampleResponse {
    let changes = call.params.text("changes").unwrap_or_default();
    let project = access::project(&call.params);
    let hint = |line: &str| Some(merge_request_hint(project?, line.split(' ').nth(2)?));
    let messages: Vec<Value> = changes.lines().filter_map(hint).collect();
    SampleResponse::ok(json!({ "messages": messages, "reference_counter_decreased": true }))
}

fn merge_request_hint(project: &Project, reference: &str) -> Value {
    let branch = reference.trim_start_matches("refs/heads/");
    let path = project.path;
    let escaped = branch.replace('/', "%2F");
    let link =
        format!("http://{HOST}/{path}/-/merge_requests/new?merge_request%5Bsource_branch%5D={escaped}");
    json!({
        "message": format!("To create a merge request for {branch}, visit:\n  {link}"),
        "type": "basic",
    })
}
