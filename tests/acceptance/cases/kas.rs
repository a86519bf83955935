//! The three endpoints of the Kubernetes agent server.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::credentials::{KAS_HEADER, KAS_SECRET, SHELL_SECRET, kas_token, now, sign};
use super::super::wire::Ask;
use super::{By, Case};

fn endpoints() -> Vec<(Ask, u16)> {
    vec![
        (Ask::get("kubernetes/agent_info").with_agent_token(), 200),
        (Ask::get("kubernetes/project_info?id=1").with_agent_token(), 200),
        (Ask::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":1}"#), 204),
    ]
}

/// Makes a token when it is needed.
type Make = fn() -> String;

/// Tokens that are refused, each for one reason.
fn bad_tokens() -> Vec<(&'static str, Make)> {
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

/// Puts the token of kas on a request, and no agent's.
fn as_kas(ask: Ask) -> Ask {
    ask.header(KAS_HEADER, &kas_token(&json!({})))
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (ask, status) in endpoints() {
        let name = |what: &str| format!("{} with {what}", ask.target);
        let refused = |what: &str, ask: Ask| Case::new(name(what), ask, 401, By::Gateway);
        cases.push(Case::new(name("a token"), ask.clone(), status, By::Rails).showing(as_kas));
        cases.push(refused("nothing", ask.clone()));
        cases.push(refused("the shell's secret", ask.clone().with_secret()));
        cases.push(refused("the shell's token", ask.clone()).showing(Ask::with_shell_token));
        for (what, token) in bad_tokens() {
            cases.push(refused(what, ask.clone()).showing(move |ask| ask.header(KAS_HEADER, &token())));
        }
    }
    cases.extend(agents());
    cases.extend(projects());
    cases.extend(metrics());
    cases
}

/// The agent's own token is judged by Rails.
fn agents() -> Vec<Case> {
    let case = |name, ask| Case::new(name, ask, 403, By::Rails).showing(as_kas);
    let ask = || Ask::get("kubernetes/agent_info");
    vec![
        case("no agent token", ask()),
        case("no agent token", Ask::get("kubernetes/project_info?id=1")),
        case("another agent token", ask().header("Authorization", "Bearer x")),
        case("agent token as Basic", ask().header("Authorization", "Basic eDp5")),
    ]
}

fn projects() -> Vec<Case> {
    let rows = [
        ("?id=2", 200), // private, but the agent's own
        ("?id=gnuwget%2Fwget2", 200),
        ("?id=3", 404), // internal
        ("?id=4", 404), // somebody else's
        ("?id=6", 404), // public, but for its code
        ("?id=404", 404),
        ("?id=no%2Fsuch", 404),
        ("", 404),
    ];
    let case = |(query, status): (&str, u16)| {
        let target = format!("kubernetes/project_info{query}");
        Case::new(target.clone(), Ask::get(&target), status, By::Rails).showing(Ask::with_kas_token)
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
        let ask = Ask::post("kubernetes/usage_metrics").json(json);
        Case::new(format!("usage_metrics {json}"), ask, status, By::Rails).showing(as_kas)
    };
    rows.map(case).into()
}
