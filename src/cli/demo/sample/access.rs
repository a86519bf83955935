//! The acting key or user, and its permissions in a project.

use http::StatusCode;

use super::data::{self, Project, SampleKey, User, Visibility};
use super::params::SampleParams;
use super::response::SampleResponse;

const BLOCKED: &str = "Your account has been blocked.";
const NOT_FOUND: &str =
    "The project you were looking for could not be found or you don't have permission to view it.";
const NO_DOWNLOAD: &str = "You are not allowed to download code from this project.";
const NO_PUSH: &str = "You are not allowed to push code to this project.";
const NO_PUSH_BY_DEPLOY_KEY: &str = "This deploy key does not have write access to this project.";
const UNKNOWN_COMMAND: &str = "The command you're trying to execute is not allowed.";

/// The key and the user that a call names; a key brings its owner along.
pub(super) struct Actor {
    pub(super) key: Option<&'static SampleKey>,
    pub(super) user: Option<&'static User>,
}

impl Actor {
    /// From the first of these parameters. An empty one counts too, and is an unknown actor.
    pub(super) fn of(params: &SampleParams) -> Self {
        if let Some(id) = params.text("key_id") {
            return Self::with_key(data::key(&id));
        }
        if let Some(id) = params.text("user_id") {
            return Self::without_key(data::user(&id));
        }
        if let Some(name) = params.text("username") {
            return Self::without_key(data::user_named(&name));
        }
        let identifier = params.text("identifier").unwrap_or_default();
        match identifier.split_once('-') {
            Some(("key", id)) => Self::with_key(data::key(id)),
            Some(("user", id)) => Self::without_key(data::user(id)),
            _ => Self::without_key(None),
        }
    }

    fn with_key(key: Option<&'static SampleKey>) -> Self {
        let user = key.map(|key| key.owner);
        Self { key, user }
    }

    fn without_key(user: Option<&'static User>) -> Self {
        Self { key: None, user }
    }

    /// A deploy key acts for itself, not for the user who made it.
    pub(super) fn deploy_key(&self) -> Option<&'static SampleKey> {
        self.key.filter(|key| key.is_deploy_key)
    }

    fn sees(&self, project: &Project) -> bool {
        if let Some(key) = self.deploy_key() {
            return project.visibility == Visibility::Public || project.deploy_keys.contains(&key.id);
        }
        match project.visibility {
            Visibility::Public => true,
            Visibility::Internal => self.user.is_some(),
            Visibility::Private => self.user.is_some_and(|user| project.has_member(user)),
        }
    }
}

/// The project that a call names by path or by repository, such as `project-7`.
pub(super) fn project(params: &SampleParams) -> Option<&'static Project> {
    if let Some(path) = params.text("project") {
        return data::project(path.trim_start_matches('/').trim_end_matches(".git"));
    }
    let repository = params.text("gl_repository")?;
    repository.strip_prefix("project-").and_then(data::project)
}

/// The project, if the actor may perform the action of the call.
///
/// A refusal is 401 and never 403, which the shell would take for an API that cannot be reached.
pub(super) fn check(params: &SampleParams, actor: &Actor) -> Result<&'static Project, SampleResponse> {
    let forbidden = |message| Err(SampleResponse::denied(StatusCode::UNAUTHORIZED, message));
    if actor.user.is_some_and(|user| user.is_blocked) {
        return forbidden(BLOCKED);
    }
    let project = project(params)
        .filter(|project| actor.sees(project))
        .ok_or_else(|| SampleResponse::denied(StatusCode::NOT_FOUND, NOT_FOUND))?;
    // GitLab would let an unknown actor read a public project. Here it is most likely a slip in a
    // curl line, and is reported.
    let Some(user) = actor.user else {
        return forbidden(NO_DOWNLOAD);
    };
    match params.text("action").as_deref() {
        Some("git-receive-pack") if actor.deploy_key().is_some() => forbidden(NO_PUSH_BY_DEPLOY_KEY),
        Some("git-receive-pack") if !project.has_member(user) => forbidden(NO_PUSH),
        Some("git-upload-pack" | "git-upload-archive" | "git-receive-pack") => Ok(project),
        _ => forbidden(UNKNOWN_COMMAND),
    }
}
