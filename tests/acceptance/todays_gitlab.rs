//! A GitLab of 2026: it authenticates requests with a JSON body before it reads the body, bounds the body,
//! has no HEAD and no OPTIONS, and distinguishes more kinds of keys. See
//! `tests/rails/app/json_validation.rb`.

use serde_json::json;

use super::cases;
use super::client::{Request, Response};
use super::credentials::{KAS_HEADER, SECRET_HEADER, SHELL_HEADER, kas_token, shell_token};
use super::harness::{Gateway, Harness, Transport};
use super::keys;

fn harness_and_gateway() -> (Harness, Gateway) {
    let harness = Harness::with_era("today");
    let gateway = harness.gateway_accepting(Transport::Tcp, r#"["jwt"]"#);
    (harness, gateway)
}

/// The parts of a response that clients look at.
fn comparable(response: &Response) -> (u16, Option<&str>, Option<&str>, &[u8]) {
    (response.status, response.header("content-type"), response.header("retry-after"), &response.body)
}

/// The secret of a request is replaced by a token. The text of a 401 is the gateway's own: whether Rails
/// says `message` or `error` depends on its release.
#[test]
fn every_request_gets_the_response_of_rails() {
    let (harness, gateway) = harness_and_gateway();
    let usual = cases::equal().into_iter().map(|case| (case.request, true));
    let unusual = cases::unusual().into_iter().map(|test_request| (test_request, false));
    for (test_request, is_usual) in usual.chain(unusual) {
        let request = with_token(test_request.build());
        let (name, direct) = (&test_request.name, harness.tcp.send(&request));
        for address in gateway.addresses() {
            let (arrived, response) = harness.arrivals(|| address.send(&request));
            let comparison = format!("{name} ({request})\nRails:   {direct}\ngateway: {response}\n");
            let is_refused = (arrived == 0 || !is_usual) && (400..500).contains(&response.status);
            assert!(is_refused || comparable(&response) == comparable(&direct), "{comparison}");
            assert!(arrived <= 1, "{comparison}");
            if is_usual && direct.status < 400 {
                assert_eq!(response.status, direct.status, "{comparison}");
            }
        }
    }
}

fn with_token(mut request: Request) -> Request {
    let before = request.headers.len();
    request.headers.retain(|(name, value)| name != SECRET_HEADER || value != "czNjcmV0");
    let shows_secret =
        request.headers.len() < before && !request.headers.iter().any(|(name, _)| name == SHELL_HEADER);
    if shows_secret { request.with_shell_token() } else { request }
}

#[test]
fn unauthenticated_requests_are_refused_without_rails() {
    let (harness, gateway) = harness_and_gateway();
    let unauthenticated = |request: &Request| (request.clone(), br#"{"error":"Unauthorized"}"#.as_slice());
    for (request, expected) in [
        (Request::get("check"), br#"{"message":"401 Unauthorized"}"#.as_slice()),
        unauthenticated(&Request::post("allowed").json("{}")),
        unauthenticated(&Request::post("allowed").json("{no JSON")),
        unauthenticated(&Request::post("pre_receive")),
        unauthenticated(&Request::post("kubernetes/usage_metrics").json("{}")),
    ] {
        let direct = harness.tcp.send(&request);
        assert_eq!((direct.status, direct.body.as_slice()), (401, expected), "{request}: {direct}");
        let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
        assert_eq!((response.status, arrived), (401, 0), "{request}: {response}");
        assert!(response.json()["message"].is_string(), "{request}: {response}");
    }
}

#[test]
fn oversized_json_is_refused_by_rails() {
    let (harness, gateway) = harness_and_gateway();
    let deep = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    let array = |items: usize| format!("[{}0]", "0,".repeat(items - 1));
    let hash = |items: usize| {
        let pairs: Vec<String> = (0..items).map(|nth| format!(r#""k{nth}":0"#)).collect();
        format!("{{{}}}", pairs.join(","))
    };
    let nested =
        |array: &str, times: usize| format!(r#"{{"a":[{array}{}]}}"#, format!(",{array}").repeat(times - 1));
    for (json, error) in [
        (deep(32), None),
        (deep(33), Some("Parameters nested too deeply")),
        (nested(&array(50_000), 1), None),
        (nested(&array(50_001), 1), Some("Array parameter too large")),
        (hash(50_000), None),
        (hash(50_001), Some("Hash parameter too large")),
        // There is no limit of all together,
        (nested(&array(50_000), 3), None),
        (format!(r#"{{"a":{}}}"#, "1".repeat(1001)), Some("Invalid JSON format")),
        (format!(r#"{{"a":"{}"}}"#, "x".repeat(10 << 20)), Some("JSON body too large")),
        ("{no JSON".to_owned(), Some("Invalid JSON format")),
        (String::new(), None),
    ] {
        let request = || Request::post("pre_receive").json(&json).with_shell_token();
        let (direct, response) = (harness.tcp.send(&request()), gateway.tcp.send(&request()));
        let status = if error.is_some() { 400 } else { 200 };
        assert_eq!(direct.status, status, "{json:.40}: {direct}");
        assert_eq!(comparable(&response), comparable(&direct), "{json:.40}");
        assert_eq!(response.json()["error"].as_str(), error, "{json:.40}");
    }
    // but of other methods.
    for (json, is_refused) in [(nested(&array(40_000), 2), false), (nested(&array(40_000), 3), true)] {
        let path = "/api/v4/internal/kubernetes/modules/starboard_vulnerability";
        let request = || Request::new("PUT", path).json(&json).with_kas_token();
        let (direct, response) = (harness.tcp.send(&request()), gateway.tcp.send(&request()));
        assert_eq!(direct.status == 400, is_refused, "{direct}");
        assert!(!is_refused || direct.json()["error"] == "Too many total parameters", "{direct}");
        assert_eq!(comparable(&response), comparable(&direct));
    }
}

#[test]
fn head_and_options_are_answered_by_rails() {
    let (harness, gateway) = harness_and_gateway();
    let discover = Request::get("discover?key_id=1");
    let head = |request: &Request| Request::new("HEAD", &request.target).with_shell_token();
    let options = |request: &Request| Request::new("OPTIONS", &request.target).with_shell_token();
    for request in [Request::get("check"), discover] {
        assert_eq!(gateway.tcp.send(&request.clone().with_shell_token()).status, 200);
        for (request, body) in [(head(&request), ""), (options(&request), r#"{"error":"Unauthorized"}"#)] {
            let direct = harness.tcp.send(&request);
            assert_eq!((direct.status, &direct.body[..]), (401, body.as_bytes()), "{request}: {direct}");
            let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
            assert_eq!(comparable(&response), comparable(&direct), "{request}: {response}");
            assert_eq!(arrived, 1, "{request}");
        }
        // The refusal is about the method, not about the key.
        let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request.clone().with_shell_token()));
        assert_eq!((response.status, arrived), (200, 0), "{request}: {response}");
    }
}

#[test]
fn an_expired_key_is_answered_like_an_unknown_one() {
    let (harness, gateway) = harness_and_gateway();
    for key in [keys::expired(), keys::unknown()] {
        let request = || Request::get(&format!("authorized_keys?key={key}")).with_shell_token();
        let (arrived, responses) = harness.arrivals(|| [0; 3].map(|_| gateway.tcp.send(&request())));
        assert_eq!(arrived, 1);
        let direct = harness.tcp.send(&request());
        assert_eq!((direct.status, &direct.body[..]), (404, &br#"{"message":"404 Key Not Found"}"#[..]));
        assert!(responses.iter().all(|response| comparable(response) == comparable(&direct)));
    }
}

/// Briefly, like an unknown key: otherwise each login attempt would reach Rails.
#[test]
fn the_refusal_of_a_blocked_users_key_is_cached() {
    let (harness, gateway) = harness_and_gateway();
    let request = || Request::get(&format!("authorized_keys?key={}", keys::of_blocked())).with_shell_token();
    let (arrived, responses) = harness.arrivals(|| [0; 3].map(|_| gateway.tcp.send(&request())));
    assert_eq!(arrived, 1);
    for response in &responses {
        assert_eq!(
            (response.status, &response.body[..]),
            (401, &br#"{"message":"401 Unauthorized - Key"}"#[..])
        );
    }
    assert_eq!(harness.control("POST", "/-/unblock/11").body, b"1");
    assert_eq!(gateway.tcp.send(&request()).status, 401, "until it is purged, or its time is over");
    assert_eq!(
        gateway.admin.send(&Request::new("POST", "/purge").json(r#"{"username":"barred"}"#)).status,
        200
    );
    let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request()));
    assert_eq!((response.status, arrived), (200, 1), "{response}");
}

#[test]
fn the_refusal_of_a_blocked_users_key_is_dropped_by_a_system_hook() {
    let harness = Harness::with_era("today");
    let (gateway, hooks) = harness.gateway_with_hooks(Transport::Tcp);
    let request = || Request::get(&format!("authorized_keys?key={}", keys::of_blocked())).with_shell_token();
    let attempt = || harness.arrivals(|| gateway.tcp.send(&request()).status);
    assert_eq!([attempt(), attempt()], [(1, 401), (0, 401)]);
    let event = json!({ "event_name": "user_failed_login", "user_id": 11, "username": "barred" });
    let hook = Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Event", "System Hook");
    let hook = hook.header("X-Gitlab-Token", "h00k").json(&event.to_string());
    assert_eq!(hooks.send(&hook).status, 200);
    assert_eq!([attempt(), attempt()], [(1, 401), (0, 401)]);
    harness.control("POST", "/-/unblock/11");
    assert_eq!(hooks.send(&hook).status, 200);
    assert_eq!(attempt(), (1, 200));
}

/// It has no content type, and is not JSON.
#[test]
fn a_429_of_workhorse_is_forwarded_unchanged() {
    let (harness, gateway) = harness_and_gateway();
    for _ in 0..2 {
        let request = Request::post("allowed?project=outcome%2Flimited").json("{}").with_shell_token();
        let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
        assert_eq!(comparable(&response), (429, None, Some("60"), &b"Too Many Requests\n"[..]));
        assert_eq!(arrived, 1);
    }
}

#[test]
fn the_audience_of_kas_tokens_is_verified_as_by_rails() {
    let (harness, gateway) = harness_and_gateway();
    for (aud, status, is_passed) in [
        (json!("gitlab"), 200, true),
        (json!(["x", "gitlab"]), 200, true),
        (json!(null), 401, true),
        (json!("x"), 401, false),
        (json!([]), 401, false),
    ] {
        let token = || kas_token(&json!({ "aud": aud }));
        let request =
            || Request::get("kubernetes/agent_info").with_agent_token().header(KAS_HEADER, &token());
        let direct = harness.tcp.send(&request());
        let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request()));
        assert_eq!((direct.status, response.status), (status, status), "{aud}: {response}");
        assert_eq!((response.body, arrived), (direct.body, u64::from(is_passed)), "{aud}");
    }
}

/// Rails checks `exp` and `nbf` by its own clock, and ignores `iat`.
#[test]
fn tokens_with_clock_skew_are_verified_as_by_rails() {
    let (harness, gateway) = harness_and_gateway();
    let now = super::credentials::now();
    for claims in [json!({ "iat": now + 7200 }), json!({ "iat": "soon" }), json!({ "iat": null })] {
        let request = || Request::get("check").header(SHELL_HEADER, &shell_token(&claims));
        assert_eq!(
            (harness.tcp.send(&request()).status, gateway.tcp.send(&request()).status),
            (200, 200),
            "{claims}"
        );
    }
}
