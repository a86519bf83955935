//! The three endpoints of the Kubernetes agent server.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::client::Request;
use super::super::credentials::{KAS_HEADER, KAS_SECRET, SHELL_SECRET, kas_token, now, sign};
use super::{AnsweredBy, Case};

fn endpoints() -> Vec<(Request, u16)> {
    vec![
        (Request::get("kubernetes/agent_info").with_agent_token(), 200),
        (Request::get("kubernetes/project_info?id=1").with_agent_token(), 200),
        (Request::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":1}"#), 204),
    ]
}

/// Makes a token when it is needed.
type MakeToken = fn() -> String;

/// Invalid tokens, each for one reason.
fn bad_tokens() -> Vec<(&'static str, MakeToken)> {
    vec![
        ("an empty token", String::new),
        ("rubbish", || "rubbish".into()),
        ("a token that is past by a second", || kas_token(&json!({ "exp": now() - 1 }))),
        ("a token of the future", || kas_token(&json!({ "nbf": now() + 600 }))),
        ("a token of another issuer", || kas_token(&json!({ "iss": "gitlab-shell" }))),
        ("a token of several issuers", || kas_token(&json!({ "iss": ["gitlab-kas"] }))),
        ("a token of no issuer", || kas_token(&json!({ "iss": null }))),
        ("a token of the shell's key", || sign(&claims(), SHELL_SECRET.as_bytes())),
        ("a token of the key still in Base64", || sign(&claims(), STANDARD.encode(KAS_SECRET).as_bytes())),
    ]
}

fn claims() -> Value {
    json!({ "iss": "gitlab-kas", "exp": now() + 60 })
}

/// Adds a kas token, but no agent's token.
fn as_kas(request: Request) -> Request {
    request.header(KAS_HEADER, &kas_token(&json!({})))
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (request, status) in endpoints() {
        let name = |what: &str| format!("{} with {what}", request.target);
        let refused = |what: &str, request: Request| Case::new(name(what), request, 401, AnsweredBy::Gateway);
        cases.push(
            Case::new(name("a token"), request.clone(), status, AnsweredBy::Rails).with_credential(as_kas),
        );
        cases.push(refused("nothing", request.clone()));
        cases.push(refused("the shell's secret", request.clone().with_secret()));
        cases.push(refused("the shell's token", request.clone()).with_credential(Request::with_shell_token));
        for (what, token) in bad_tokens() {
            cases.push(
                refused(what, request.clone())
                    .with_credential(move |request| request.header(KAS_HEADER, &token())),
            );
        }
    }
    cases.extend(agents());
    cases.extend(projects());
    cases.extend(metrics());
    cases
}

/// Rails verifies the agent's own token.
fn agents() -> Vec<Case> {
    let case = |name, request| Case::new(name, request, 403, AnsweredBy::Rails).with_credential(as_kas);
    let request = || Request::get("kubernetes/agent_info");
    vec![
        case("no agent token", request()),
        case("no agent token", Request::get("kubernetes/project_info?id=1")),
        case("another agent token", request().header("Authorization", "Bearer x")),
        case("agent token as Basic", request().header("Authorization", "Basic eDp5")),
    ]
}

fn projects() -> Vec<Case> {
    let rows = [
        ("?id=2", 200), // private, but the agent's own
        ("?id=gnuwget%2Fwget2", 200),
        ("?id=3", 404), // internal
        ("?id=4", 404), // another user's
        ("?id=6", 404), // public, but for its code
        ("?id=404", 404),
        ("?id=no%2Fsuch", 404),
        ("", 404),
    ];
    let case = |(query, status): (&str, u16)| {
        let target = format!("kubernetes/project_info{query}");
        Case::new(target.clone(), Request::get(&target), status, AnsweredBy::Rails)
            .with_credential(Request::with_kas_token)
    };
    rows.map(case).into()
}

fn metrics() -> Vec<Case> {
    let rows = [
        (r#"{"gitops_sync_count":0}"#, 204),
        (r#"{"gitops_sync_count":-1}"#, 400),
        (r#"{"gitops_sync_count":"many"}"#, 400),
        ("{}", 400),
        ("", 400),
        ("{no JSON", 400),
    ];
    let case = |(json, status): (&str, u16)| {
        let request = Request::post("kubernetes/usage_metrics").json(json);
        Case::new(format!("usage_metrics {json}"), request, status, AnsweredBy::Rails).with_credential(as_kas)
    };
    rows.map(case).into()
}
