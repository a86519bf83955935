//! Methods and paths beside the twelve endpoints.

use super::super::wire::Ask;
use super::{By, Case, Question};

pub fn all() -> Vec<Case> {
    let internal = |method: &str, path: &str| Ask::new(method, &format!("/api/v4/internal/{path}"));
    let none = |ask: Ask| Case::new(format!("{} {}", ask.method, ask.target), ask, 404, By::Rails);
    vec![
        // The gateway does not know them, so Rails says what they are; nobody has to log in for that.
        none(internal("GET", "nothing")),
        none(internal("GET", "Check")),
        none(internal("POST", "nothing").json("{}")),
        none(internal("PUT", "check")),
        none(internal("DELETE", "allowed")),
        none(internal("PATCH", "discover")),
        none(internal("GET", "allowed")),
        none(internal("POST", "kubernetes/agent_info")),
        Case::new("HEAD of a read", internal("HEAD", "check").with_secret(), 200, By::Rails),
        Case::new("HEAD, nobody", internal("HEAD", "check"), 401, By::Gateway),
        // Rails answers the same to these as to the endpoint itself.
        Case::new("suffix .json", internal("GET", "check.json").with_secret(), 200, By::Rails),
        Case::new("suffix .txt", internal("GET", "check.txt").with_secret(), 200, By::Rails),
        Case::new("suffix, nobody", internal("GET", "check.json"), 401, By::Gateway),
        Case::new("slash at the end", internal("GET", "check/").with_secret(), 200, By::Rails),
        Case::new("slash at the end, nobody", internal("GET", "check/"), 401, By::Gateway),
    ]
}

/// Paths that say one thing and mean another, and methods in disguise.
pub fn odd() -> Vec<Question> {
    let get = |target: &str| Ask::new("GET", target).with_secret();
    let rows = vec![
        ("doubled slash", get("/api/v4/internal//check")),
        ("doubled slash, nobody", Ask::new("GET", "/api/v4/internal//check")),
        ("escaped letter", get("/api/v4/internal/chec%6b")),
        ("escaped letter, nobody", Ask::new("GET", "/api/v4/internal/chec%6b")),
        ("escaped slash", get("/api/v4/internal%2Fcheck")),
        ("dot segment", get("/api/v4/internal/x/../check")),
        ("escaped dot segment", get("/api/v4/internal/x/%2e%2e/check")),
        ("method in a form", Ask::post("check").form("_method=GET").with_secret()),
        ("method in a form, nobody", Ask::post("check").form("_method=GET")),
        ("method in a header", Ask::post("check").header("X-HTTP-Method-Override", "GET").with_secret()),
        ("header with underscores", Ask::get("check").header("Gitlab_Shared_Secret", "czNjcmV0")),
        ("options", Ask::new("OPTIONS", "/api/v4/internal/check").with_secret()),
        ("options, nobody", Ask::new("OPTIONS", "/api/v4/internal/check")),
        ("outside of the internal API", get("/api/v4/projects")),
        ("outside of the API", get("/")),
        ("conditional", get("/api/v4/internal/check").header("If-None-Match", "*")),
    ];
    rows.into_iter().map(|(name, ask)| Question::new(name, ask)).collect()
}
