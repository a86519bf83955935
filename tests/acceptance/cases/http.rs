//! Methods and paths beside the twelve endpoints.

use super::super::client::Request;
use super::{AnsweredBy, Case, TestRequest};

pub fn all() -> Vec<Case> {
    let internal = |method: &str, path: &str| Request::new(method, &format!("/api/v4/internal/{path}"));
    let none = |request: Request| {
        Case::new(format!("{} {}", request.method, request.target), request, 404, AnsweredBy::Rails)
    };
    vec![
        // Unknown to the gateway, so they are left to Rails without authentication.
        none(internal("GET", "nothing")),
        none(internal("GET", "Check")),
        none(internal("POST", "nothing").json("{}")),
        none(internal("PUT", "check")),
        none(internal("DELETE", "allowed")),
        none(internal("PATCH", "discover")),
        none(internal("GET", "allowed")),
        none(internal("POST", "kubernetes/agent_info")),
        Case::new("HEAD of a read", internal("HEAD", "check").with_secret(), 200, AnsweredBy::Rails),
        Case::new("HEAD, no credential", internal("HEAD", "check"), 401, AnsweredBy::Gateway),
        // Rails routes these to the endpoint itself.
        Case::new("suffix .json", internal("GET", "check.json").with_secret(), 200, AnsweredBy::Rails),
        Case::new("suffix .txt", internal("GET", "check.txt").with_secret(), 200, AnsweredBy::Rails),
        Case::new("suffix, no credential", internal("GET", "check.json"), 401, AnsweredBy::Gateway),
        Case::new("slash at the end", internal("GET", "check/").with_secret(), 200, AnsweredBy::Rails),
        Case::new("slash at the end, no credential", internal("GET", "check/"), 401, AnsweredBy::Gateway),
    ]
}

/// Ambiguous paths, and overridden methods.
pub fn unusual() -> Vec<TestRequest> {
    let get = |target: &str| Request::new("GET", target).with_secret();
    let rows = vec![
        ("doubled slash", get("/api/v4/internal//check")),
        ("doubled slash, no credential", Request::new("GET", "/api/v4/internal//check")),
        ("escaped letter", get("/api/v4/internal/chec%6b")),
        ("escaped letter, no credential", Request::new("GET", "/api/v4/internal/chec%6b")),
        ("escaped slash", get("/api/v4/internal%2Fcheck")),
        ("dot segment", get("/api/v4/internal/x/../check")),
        ("escaped dot segment", get("/api/v4/internal/x/%2e%2e/check")),
        ("method in a form", Request::post("check").form("_method=GET").with_secret()),
        ("method in a form, no credential", Request::post("check").form("_method=GET")),
        ("method in a header", Request::post("check").header("X-HTTP-Method-Override", "GET").with_secret()),
        ("header with underscores", Request::get("check").header("Gitlab_Shared_Secret", "czNjcmV0")),
        ("options", Request::new("OPTIONS", "/api/v4/internal/check").with_secret()),
        ("options, no credential", Request::new("OPTIONS", "/api/v4/internal/check")),
        ("outside of the internal API", get("/api/v4/projects")),
        ("outside of the API", get("/")),
        ("conditional", get("/api/v4/internal/check").header("If-None-Match", "*")),
    ];
    rows.into_iter().map(|(name, request)| TestRequest::new(name, request)).collect()
}
