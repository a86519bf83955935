//! A GitLab of 2026: it judges requests with a JSON body before it reads that, bounds the body, has no HEAD
//! and no OPTIONS, and says more of keys. See `tests/rails/app/json_validation.rb`.

use serde_json::json;

use super::cases;
use super::credentials::{KAS_HEADER, SECRET_HEADER, SHELL_HEADER, kas_token, shell_token};
use super::keys;
use super::stage::{Gateway, Stage, Way};
use super::wire::{Answer, Ask};

fn today() -> (Stage, Gateway) {
    let stage = Stage::of_era("today");
    let gateway = stage.gateway_that_accepts(Way::Tcp, r#"["jwt"]"#);
    (stage, gateway)
}

/// What clients look at.
fn essence(answer: &Answer) -> (u16, Option<&str>, Option<&str>, &[u8]) {
    (answer.status, answer.header("content-type"), answer.header("retry-after"), &answer.body)
}

/// With a token where a question shows the secret. But for the words of a 401, which is the gateway's own: whether Rails says `message` or `error` hangs on
/// its release.
#[test]
fn every_question_gets_the_answer_of_rails() {
    let (stage, gateway) = today();
    let plain = cases::equal().into_iter().map(|case| (case.question, true));
    let odd = cases::odd().into_iter().map(|question| (question, false));
    for (question, is_plain) in plain.chain(odd) {
        let ask = with_token(question.ask());
        let (name, direct) = (&question.name, stage.tcp.send(&ask));
        for peer in gateway.peers() {
            let (arrived, answer) = stage.arrivals(|| peer.send(&ask));
            let told = format!("{name} ({ask})\nRails:   {direct}\ngateway: {answer}\n");
            let is_refused = (arrived == 0 || !is_plain) && (400..500).contains(&answer.status);
            assert!(is_refused || essence(&answer) == essence(&direct), "{told}");
            assert!(arrived <= 1, "{told}");
            if is_plain && direct.status < 400 {
                assert_eq!(answer.status, direct.status, "{told}");
            }
        }
    }
}

fn with_token(mut ask: Ask) -> Ask {
    let before = ask.headers.len();
    ask.headers.retain(|(name, value)| name != SECRET_HEADER || value != "czNjcmV0");
    let shows_secret =
        ask.headers.len() < before && !ask.headers.iter().any(|(name, _)| name == SHELL_HEADER);
    if shows_secret { ask.with_shell_token() } else { ask }
}

#[test]
fn who_is_not_let_in_is_refused_without_rails() {
    let (stage, gateway) = today();
    let stranger = |ask: &Ask| (ask.clone(), br#"{"error":"Unauthorized"}"#.as_slice());
    for (ask, said) in [
        (Ask::get("check"), br#"{"message":"401 Unauthorized"}"#.as_slice()),
        stranger(&Ask::post("allowed").json("{}")),
        stranger(&Ask::post("allowed").json("{no JSON")),
        stranger(&Ask::post("pre_receive")),
        stranger(&Ask::post("kubernetes/usage_metrics").json("{}")),
    ] {
        let direct = stage.tcp.send(&ask);
        assert_eq!((direct.status, direct.body.as_slice()), (401, said), "{ask}: {direct}");
        let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
        assert_eq!((answer.status, arrived), (401, 0), "{ask}: {answer}");
        assert!(answer.json()["message"].is_string(), "{ask}: {answer}");
    }
}

#[test]
fn a_body_that_rails_finds_too_much_is_its_to_refuse() {
    let (stage, gateway) = today();
    let deep = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    let wide = |items: usize| format!(r#"{{"a":[{}0]}}"#, "0,".repeat(items));
    for (json, error) in [
        (deep(32), None),
        (deep(33), Some("Parameters nested too deeply")),
        (wide(49_000), None),
        (wide(51_000), Some("Too many total parameters")),
        (format!(r#"{{"a":{}}}"#, "1".repeat(1001)), Some("Invalid JSON format")),
        (format!(r#"{{"a":"{}"}}"#, "x".repeat(10 << 20)), Some("JSON body too large")),
        ("{no JSON".to_owned(), Some("Invalid JSON format")),
        (String::new(), None),
    ] {
        let ask = || Ask::post("pre_receive").json(&json).with_shell_token();
        let (direct, answer) = (stage.tcp.send(&ask()), gateway.tcp.send(&ask()));
        let status = if error.is_some() { 400 } else { 200 };
        assert_eq!(direct.status, status, "{json:.40}: {direct}");
        assert_eq!(essence(&answer), essence(&direct), "{json:.40}");
        assert_eq!(answer.json()["error"].as_str(), error, "{json:.40}");
    }
}

#[test]
fn head_and_options_are_answered_by_rails() {
    let (stage, gateway) = today();
    let discover = Ask::get("discover?key_id=1");
    let head = |ask: &Ask| Ask::new("HEAD", &ask.target).with_shell_token();
    let options = |ask: &Ask| Ask::new("OPTIONS", &ask.target).with_shell_token();
    for ask in [Ask::get("check"), discover] {
        assert_eq!(gateway.tcp.send(&ask.clone().with_shell_token()).status, 200);
        for odd in [head(&ask), options(&ask)] {
            let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&odd));
            assert_eq!((answer.status, arrived), (401, 1), "{odd}: {answer}");
        }
        // It is said of the method, not of the key.
        let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask.clone().with_shell_token()));
        assert_eq!((answer.status, arrived), (200, 0), "{ask}: {answer}");
    }
}

#[test]
fn a_key_that_has_expired_is_as_good_as_none() {
    let (stage, gateway) = today();
    for key in [keys::expired(), keys::unknown()] {
        let ask = || Ask::get(&format!("authorized_keys?key={key}")).with_shell_token();
        let (arrived, answers) = stage.arrivals(|| [0; 3].map(|_| gateway.tcp.send(&ask())));
        assert_eq!(arrived, 1);
        let direct = stage.tcp.send(&ask());
        assert_eq!((direct.status, &direct.body[..]), (404, &br#"{"message":"404 Key Not Found"}"#[..]));
        assert!(answers.iter().all(|answer| essence(answer) == essence(&direct)));
    }
}

/// As an unknown key, briefly: each attempt to log in would reach Rails otherwise.
#[test]
fn a_key_of_a_blocked_user_is_known_as_such_until_that_ends() {
    let (stage, gateway) = today();
    let ask = || Ask::get(&format!("authorized_keys?key={}", keys::of_blocked())).with_shell_token();
    let (arrived, answers) = stage.arrivals(|| [0; 3].map(|_| gateway.tcp.send(&ask())));
    assert_eq!(arrived, 1);
    for answer in &answers {
        assert_eq!((answer.status, &answer.body[..]), (401, &br#"{"message":"401 Unauthorized - Key"}"#[..]));
    }
    assert_eq!(stage.control("POST", "/-/unblock/11").body, b"1");
    assert_eq!(gateway.tcp.send(&ask()).status, 401, "until it is purged, or its time is over");
    assert_eq!(gateway.admin.send(&Ask::new("POST", "/purge").json(r#"{"username":"barred"}"#)).status, 200);
    let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask()));
    assert_eq!((answer.status, arrived), (200, 1), "{answer}");
}

/// It has no type, and is not JSON.
#[test]
fn a_429_of_workhorse_is_passed_on_as_it_is() {
    let (stage, gateway) = today();
    for _ in 0..2 {
        let ask = Ask::post("allowed?project=outcome%2Flimited").json("{}").with_shell_token();
        let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
        assert_eq!(essence(&answer), (429, None, Some("60"), &b"Too Many Requests\n"[..]));
        assert_eq!(arrived, 1);
    }
}

#[test]
fn a_token_of_kas_is_for_gitlab() {
    let (stage, gateway) = today();
    for (aud, status, is_passed) in [
        (json!("gitlab"), 200, true),
        (json!(["x", "gitlab"]), 200, true),
        (json!(null), 401, true),
        (json!("x"), 401, false),
        (json!([]), 401, false),
    ] {
        let token = || kas_token(&json!({ "aud": aud }));
        let ask = || Ask::get("kubernetes/agent_info").with_agent_token().header(KAS_HEADER, &token());
        let direct = stage.tcp.send(&ask());
        let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask()));
        assert_eq!((direct.status, answer.status), (status, status), "{aud}: {answer}");
        assert_eq!((answer.body, arrived), (direct.body, u64::from(is_passed)), "{aud}");
    }
}

/// Rails looks at `exp` and `nbf`, by its own clock, and not at when a token was issued.
#[test]
fn tokens_of_clocks_that_differ_are_judged_as_rails_does() {
    let (stage, gateway) = today();
    let now = super::credentials::now();
    for claims in [json!({ "iat": now + 7200 }), json!({ "iat": "soon" }), json!({ "iat": null })] {
        let ask = || Ask::get("check").header(SHELL_HEADER, &shell_token(&claims));
        assert_eq!((stage.tcp.send(&ask()).status, gateway.tcp.send(&ask()).status), (200, 200), "{claims}");
    }
}
