//! Authentication of GitLab Shell: the shared secret in all its places, and tokens.
//!
//! The scripted Rails accepts every caller, so a request that reaches it was accepted by the gateway.

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::client::Request;
use super::credentials::{
    ENCODED_SECRET, ENCODED_SECRET_WITH_LINE_FEED, KAS_HEADER, KAS_SECRET, SECRET_HEADER, SHELL_HEADER,
    SHELL_SECRET, kas_token, now, shell_token, token,
};
use super::fake_rails::{CHECK, ROOT_KEY};
use super::harness::{Harness, Setup};

/// Asserts for each request whether it is accepted. Nothing is cached here.
async fn assert_decisions(setup: Setup, cases: Vec<(Request, bool)>) {
    let harness = setup
        .text("cache.authorized_keys.ttl", "0s")
        .text("cache.authorized_keys.negative_ttl", "0s")
        .text("cache.discover.ttl", "0s")
        .text("cache.discover.negative_ttl", "0s")
        .text("cache.check.ttl", "0s")
        .start()
        .await;
    for (request, is_let_in) in cases {
        for address in [&harness.gateway.tcp, &harness.gateway.unix] {
            let before = harness.rails.request_count();
            let response = address.send(&request).await;
            let arrived = harness.rails.request_count() - before;
            assert_eq!(arrived, usize::from(is_let_in), "{request}: {response}");
            if is_let_in {
                assert_eq!(response.status, 200, "{request}: {response}");
                assert_eq!(harness.rails.last_request().target, request.target);
            } else {
                response.assert_unauthorized();
            }
        }
    }
}

fn with_decision(requests: Vec<Request>, is_let_in: bool) -> Vec<(Request, bool)> {
    requests.into_iter().map(|request| (request, is_let_in)).collect()
}

const ACCEPTED: bool = true;
const REFUSED: bool = false;

fn check() -> Request {
    Request::get("check")
}

#[tokio::test]
async fn the_secret_is_accepted_in_the_header() {
    let shown = |value: &str| check().header(SECRET_HEADER, value);
    let good = [ENCODED_SECRET, ENCODED_SECRET_WITH_LINE_FEED, "czNjcmV0Cg", " czNjcmV0\t", "czNjcmV0DQo="];
    let mut cases = with_decision(good.map(shown).to_vec(), ACCEPTED);
    let bad = [
        "",
        " ",
        "s3cret",
        "Basic czNjcmV0",
        "\u{e9}",
        "czNjcmV",
        "czNjcmV0=",
        "czNj cmV0",
        "czNjcmV0, czNjcmV0",
        "czNjcmV0,",
        "-zNjcmV0",
        "eHh4",
        // One letter less, one more, another case, two line breaks, a leading blank.
        "czNjcmU=",
        "czNjcmV0Mg==",
        "UzNjcmV0",
        "czNjcmV0Cgo=",
        "IHMzY3JldA==",
        // A line break alone is no secret.
        "Cg==",
    ];
    cases.extend(with_decision(bad.map(shown).to_vec(), REFUSED));
    cases.push((check(), REFUSED));
    cases.push((check().header("gitlab-SHARED-secret", ENCODED_SECRET), ACCEPTED));
    assert_decisions(Setup::new(), cases).await;
}

#[tokio::test]
async fn the_parameter_takes_precedence_over_the_header() {
    let wrong = "eHh4";
    assert_decisions(
        Setup::new(),
        vec![
            (Request::get("check?secret_token=s3cret"), ACCEPTED),
            (Request::get("check?secret_token=s3cret%0A"), ACCEPTED),
            (Request::get("check?secret_token=s%33cret"), ACCEPTED),
            (Request::get("check?a=1&secret_token=s3cret&b=2"), ACCEPTED),
            (Request::get("check?secret_token=s3cret").header(SECRET_HEADER, wrong), ACCEPTED),
            (Request::get("check?secret_token").with_secret(), ACCEPTED),
            (Request::get("check?secret_token=bad").with_secret(), REFUSED),
            (Request::get("check?secret_token=").with_secret(), REFUSED),
            (Request::get("check?secret_token=bad"), REFUSED),
            (Request::get("check?secret_token="), REFUSED),
            (Request::get("check?secret_token"), REFUSED),
            // Rails takes the parameter as plain text, unlike the documentation.
            (Request::get(&format!("check?secret_token={ENCODED_SECRET}")), REFUSED),
            (Request::get("check?secret_token=s3cret+"), REFUSED),
            (Request::get("check?Secret_Token=s3cret"), REFUSED),
            // The last value counts.
            (Request::get("check?secret_token=bad&secret_token=s3cret"), ACCEPTED),
            (Request::get("check?secret_token=s3cret&secret_token=bad"), REFUSED),
            (Request::get("check?secret_token=s3cret&secret_token=bad").with_secret(), REFUSED),
            (Request::get("check?secret_token=bad&secret_token").with_secret(), ACCEPTED),
        ],
    )
    .await;
}

/// Versions of Rack disagree on these, and one of them might see a wrong secret.
#[tokio::test]
async fn ambiguous_parameters_are_refused() {
    let targets = [
        "check?a=1;secret_token=s3cret",
        "check?secret_token=s3cret;b=2",
        "check?a=1;secret%5ftoken=s3cret",
        "check?secret_token[]=s3cret",
        "check?[secret_token]=s3cret",
        "check?[secret_token]=",
        "check?secret_token[[=s3cret",
        "check?secret_token[a]=s3cret",
        "check?secret_token=s3cret&secret_token[a]=x",
        "check?%5Bsecret_token%5D=s3cret",
        "check?secret_token]=s3cret",
        "check?secret_token=s3cret&[secret_token]=x",
        "check?secret_token=s3cret&a=%",
        "check?secret_token=s3cret&a=%zz",
        "check?secret_token=%73%3",
    ];
    let mut cases = Vec::new();
    for target in targets {
        cases.push((Request::get(target), REFUSED));
        cases.push((Request::get(target).with_secret(), REFUSED));
    }
    assert_decisions(Setup::new(), cases).await;
}

/// Every Rack since 2.0 reads these in the same way: some are the credential, and the others are harmless.
#[tokio::test]
async fn unambiguous_parameters_are_accepted() {
    let mut cases = vec![
        (Request::get("check?secret%5ftoken=s3cret"), ACCEPTED),
        (Request::get("check?a=1&%73ecret_token=s3cret"), ACCEPTED),
        (Request::get("check?a=b;c=d&secret_token=s3cret"), ACCEPTED),
        (Request::get("check?secret%5ftoken=x").with_secret(), REFUSED),
        (Request::get("check?secret_token=s3cret&secret%5Ftoken=x"), REFUSED),
        (Request::get("check?secret_token=x&secret%5Ftoken=s3cret"), ACCEPTED),
        (Request::post("allowed").form("secret%5ftoken=s3cret"), ACCEPTED),
    ];
    for query in [
        "+secret_token=s3cret",
        "%20secret_token=s3cret",
        "secret_token+=s3cret",
        "my_secret_token=s3cret",
        "secret_tokens=s3cret",
        "a[secret_token]=s3cret",
        "a[][secret_token]=s3cret",
        "{secret_token}=s3cret",
        "secret_token[=s3cret",
        "secret_token%5B=s3cret",
        "[secret_token[=s3cret",
        "secret_token][=s3cret",
        "a={b}|c^d`e",
        "a=\\\u{e9}",
        "a=1;b=2",
    ] {
        cases.push((Request::get(&format!("check?{query}")), REFUSED));
        cases.push((Request::get(&format!("check?{query}")).with_secret(), ACCEPTED));
        cases.push((Request::get(&format!("check?secret_token=s3cret&{query}")), ACCEPTED));
    }
    assert_decisions(Setup::new(), cases).await;
}

#[tokio::test]
async fn the_secret_is_accepted_in_a_form_with_any_method() {
    let form = "application/x-www-form-urlencoded";
    let typed = |kind: &str| check().header("Content-Type", kind).body("secret_token=s3cret");
    assert_decisions(
        Setup::new(),
        vec![
            // As the Ruby shell sends it, with the line break of the file.
            (check().form("secret_token=s3cret%0A"), ACCEPTED),
            (check().form("secret_token=s3cret"), ACCEPTED),
            (check().form("secret_token=s3cret").chunked(1), ACCEPTED),
            (Request::post("allowed").form("project=a&secret_token=s3cret"), ACCEPTED),
            (Request::post("allowed").form("project=a&secret_token=s3cret").chunked(3), ACCEPTED),
            (typed("application/x-www-form-urlencoded; charset=utf-8"), ACCEPTED),
            (typed("Application/X-WWW-Form-Urlencoded"), ACCEPTED),
            // Rack takes a POST without a type for a form, but not a GET.
            (Request::post("allowed").body("secret_token=s3cret"), ACCEPTED),
            (check().body("secret_token=s3cret"), REFUSED),
            (typed("text/plain"), REFUSED),
            (typed("multipart/form-data; boundary=a"), REFUSED),
            (
                Request::post("allowed").header("Content-Type", "text/plain").body("secret_token=s3cret"),
                REFUSED,
            ),
            // A form overrides the query.
            (Request::get("check?secret_token=bad").form("secret_token=s3cret"), ACCEPTED),
            (Request::get("check?secret_token=bad").form("secret_token=bad"), REFUSED),
            (Request::get("check?secret_token=bad").form("a=b"), REFUSED),
            (check().header(SECRET_HEADER, "eHh4").form("secret_token=s3cret"), ACCEPTED),
            (check().header(SECRET_HEADER, "s3cret").form("secret_token=s3cret"), ACCEPTED),
            (check().form("secret_token=bad&secret_token=s3cret"), ACCEPTED),
            (check().form("secret_token=s3cret&secret_token=bad"), REFUSED),
            (check().form("secret_token="), REFUSED),
            (check().form("a=b"), REFUSED),
            (check().form(""), REFUSED),
            (check().form("a=b; secret_token=s3cret"), REFUSED),
            (check().form("a=b& secret_token=s3cret"), REFUSED),
            // A repeated type in one line is not a form.
            (
                check().header("Content-Type", &format!("text/plain, {form}")).body("secret_token=s3cret"),
                REFUSED,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_secret_is_accepted_in_json_where_rails_reads_it() {
    let post = |body: &str| Request::post("allowed").json(body);
    assert_decisions(
        Setup::new(),
        vec![
            (post(r#"{"secret_token":"s3cret"}"#), ACCEPTED),
            (post(r#"{"secret_token":"s3cret\n"}"#).chunked(2), ACCEPTED),
            (post(r#"{"secret_token":"bad","secret_token":"s3cret"}"#), ACCEPTED),
            (post(r#"{"secret_token":"s3cret","secret_token":"bad"}"#), REFUSED),
            (post(r#"{"secret_token":"bad"}"#), REFUSED),
            (post(r#"{"secret_token":""}"#), REFUSED),
            (post(r#"{"secret_token":5}"#), REFUSED),
            (post(r#"{"secret_token":["s3cret"]}"#), REFUSED),
            (post(r#"{"secret_token":null}"#), REFUSED),
            (post(r#"{"a":{"secret_token":"s3cret"}}"#), REFUSED),
            (post(r#""s3cret""#), REFUSED),
            (post(r#"["s3cret"]"#), REFUSED),
            (post("{"), REFUSED),
            (post(&"[".repeat(100_000)), REFUSED),
            (post(&"{\"a\":".repeat(100_000)), REFUSED),
            (Request::post("allowed").header("Content-Type", "application/json").body(b"\"\xff\""), REFUSED),
            (post(""), REFUSED),
            // Geo sends a null beside the header.
            (post(r#"{"secret_token":null}"#).with_secret(), ACCEPTED),
            (post("").with_secret(), ACCEPTED),
            (post("[]").with_secret(), ACCEPTED),
            (post(r#"{"secret_token":"s3cret"}"#).header(SECRET_HEADER, "eHh4"), ACCEPTED),
            // Grape ignores JSON with GET.
            (check().json(r#"{"secret_token":"s3cret"}"#), REFUSED),
            (check().json(r#"{"secret_token":"bad"}"#).with_secret(), ACCEPTED),
        ],
    )
    .await;
}

/// A form of so many parameters with distinct names.
fn form_with_distinct_names(count: usize) -> String {
    let names: Vec<String> = (0..count).map(|index| format!("{index:x}")).collect();
    names.join("&")
}

/// The client is not authenticated yet, so that the search must be cheap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searching_a_body_is_cheap_for_any_parameters() {
    let harness = Setup::new().text("auth.shell.max_body", "1MiB").start().await;
    let different = form_with_distinct_names(150_000);
    let many_alike = "a=b&".repeat(250_000);
    for form in [different, many_alike, "&".repeat(1_000_000), "%41".repeat(300_000), "a[".repeat(500_000)] {
        for request in [Request::post("allowed").form(&form), Request::get("check").form(&form)] {
            harness.send(&request).await.assert_unauthorized();
        }
    }
    let query = form_with_distinct_names(2_000);
    harness.send(&Request::get(&format!("check?{query}"))).await.assert_unauthorized();
}

/// Rails decides about a wrong body beside a valid header, and no cached answer hides it.
#[tokio::test]
async fn a_body_with_a_wrong_secret_is_forwarded_despite_a_cached_answer() {
    let harness = Harness::new().await;
    let warm = check().with_secret();
    assert_eq!(harness.send(&warm).await.text(), CHECK);
    assert!(harness.send(&warm).await.is_hit());
    for request in [
        warm.clone().form("secret_token=bad"),
        Request::get("check?secret_token=s3cret").form("secret_token=bad"),
        warm.clone().form("key=x"),
        warm.clone().json(r#"{"a":1}"#),
    ] {
        let (response, seen) = harness.send_forwarded(&request).await;
        assert!(
            !response.is_hit() && request.to_bytes("close").ends_with(&seen.body),
            "{request}: {response}"
        );
    }
}

#[tokio::test]
async fn a_body_over_the_search_limit_is_refused() {
    let harness = Setup::new().text("auth.shell.max_body", "1KiB").start().await;
    let padding = "x".repeat(1024);
    for request in [
        Request::post("allowed").form(&format!("a={padding}&secret_token=s3cret")),
        Request::post("allowed").form(&format!("secret_token=s3cret&a={padding}")).chunked(100),
        Request::post("allowed").json(&format!(r#"{{"a":"{padding}","secret_token":"s3cret"}}"#)),
        Request::get("check").form(&format!("a={padding}")).chunked(1024),
    ] {
        let (response, arrived) = harness.send_counting(&request).await;
        response.assert_failure(413);
        assert_eq!(arrived, 0, "{response}");
    }
    // With a credential elsewhere the body is not searched, and not limited.
    for request in [
        Request::post("allowed").form(&format!("a={padding}")).with_secret(),
        Request::post("allowed?secret_token=s3cret").form(&format!("a={padding}")).chunked(100),
        Request::post("allowed").json(&padding).with_shell_token(),
        Request::post("allowed").form(&format!("secret_token=s3cret&a={}", "x".repeat(1000))),
    ] {
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!(response.status, 200, "{response}");
        assert!(seen.body.len() > 1000);
    }
}

#[tokio::test]
async fn shell_tokens_are_verified() {
    let shown = |token: &str| check().header(SHELL_HEADER, token);
    let claims = |over| check().header(SHELL_HEADER, &shell_token(&over));
    let now = now();
    let usual = json!({ "iss": "gitlab-shell", "iat": now, "exp": now + 60 });
    let signed = |algorithm, secret: &[u8]| shown(&token(algorithm, secret, &usual, &json!({})));
    let good = shell_token(&json!({}));
    let unsigned = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJnaXRsYWItc2hlbGwiLCJleHAiOjQxMDI0NDQ4MDB9.";
    let mut cases = with_decision(
        vec![
            shown(&good),
            // A leeway of a minute, as in Rails.
            claims(json!({ "exp": now - 30 })),
            claims(json!({ "nbf": now + 30 })),
            claims(json!({ "iat": now + 10 })),
            claims(json!({ "iat": null })),
            claims(json!({ "iat": now - 120 })),
            claims(json!({ "iat": now + 3600 })),
            claims(json!({ "iat": "soon" })),
            claims(json!({ "gl_id": "user-1" })),
            claims(json!({ "aud": "anything" })),
            // A token takes precedence over other credentials.
            shown(&good).header(SECRET_HEADER, "eHh4"),
            Request::get("check?secret_token=bad").header(SHELL_HEADER, &good),
            Request::post("allowed").form("secret_token=bad").header(SHELL_HEADER, &good),
        ],
        ACCEPTED,
    );
    cases.extend(with_decision(
        vec![
            claims(json!({ "exp": now - 61 })),
            claims(json!({ "exp": now - 3600, "iat": now - 3660 })),
            claims(json!({ "exp": null })),
            claims(json!({ "exp": "soon" })),
            claims(json!({ "nbf": now + 3600 })),
            claims(json!({ "iss": "gitlab-kas" })),
            claims(json!({ "iss": "Gitlab-Shell" })),
            claims(json!({ "iss": ["gitlab-shell"] })),
            claims(json!({ "iss": null })),
            claims(json!({ "iss": "" })),
            signed(Algorithm::HS512, SHELL_SECRET.as_bytes()),
            signed(Algorithm::HS384, SHELL_SECRET.as_bytes()),
            signed(Algorithm::HS256, b"s3cret\n"),
            signed(Algorithm::HS256, b""),
            signed(Algorithm::HS256, &KAS_SECRET),
            shown(unsigned),
            shown(&kas_token(&json!({}))),
            shown(""),
            shown("x"),
            shown(".."),
            shown(ENCODED_SECRET),
            shown(SHELL_SECRET),
            shown(&format!("Bearer {good}")),
            shown(&format!("{good}, {good}")),
            shown(&good[..good.len() - 2]),
            check().header("Authorization", &format!("Bearer {good}")),
            check().header(KAS_HEADER, &good),
            Request::get(&format!("check?Gitlab-Shell-Api-Request={good}")),
            // A token takes precedence over other credentials.
            claims(json!({ "iss": "x" })).with_secret(),
            shown("").with_secret(),
            Request::get("check?secret_token=s3cret").header(SHELL_HEADER, "x"),
        ],
        REFUSED,
    ));
    assert_decisions(Setup::new(), cases).await;
}

#[tokio::test]
async fn the_secret_is_refused_where_only_tokens_are_accepted() {
    let setup = Setup::new().set("auth.shell.accept", r#"["jwt"]"#);
    assert_decisions(
        setup,
        vec![
            (check().with_shell_token(), ACCEPTED),
            (check().with_shell_token().with_secret(), ACCEPTED),
            (check().with_secret(), REFUSED),
            (Request::get("check?secret_token=s3cret"), REFUSED),
            (check().form("secret_token=s3cret"), REFUSED),
            (Request::post("allowed").json(r#"{"secret_token":"s3cret"}"#), REFUSED),
            (check(), REFUSED),
        ],
    )
    .await;
}

#[tokio::test]
async fn tokens_are_refused_where_only_the_secret_is_accepted() {
    let setup = Setup::new().set("auth.shell.accept", r#"["shared_secret"]"#);
    assert_decisions(
        setup,
        vec![
            (check().with_secret(), ACCEPTED),
            (check().form("secret_token=s3cret"), ACCEPTED),
            // Rails of that era ignores the token too.
            (check().with_secret().header(SHELL_HEADER, "x"), ACCEPTED),
            (check().with_shell_token(), REFUSED),
        ],
    )
    .await;
}

/// For every spelling of a target.
#[tokio::test]
async fn a_warm_cache_requires_a_credential() {
    let harness = Harness::new().await;
    let expired = shell_token(&json!({ "exp": now() - 120 }));
    for target in [
        "check".to_owned(),
        format!("authorized_keys?key={ROOT_KEY}"),
        "discover?key_id=1".into(),
        "discover?username=nobody".into(),
    ] {
        harness.send(&Request::get(&target).with_secret()).await;
        assert!(harness.send(&Request::get(&target).with_secret()).await.is_hit(), "{target}");
        let and = if target.contains('?') { '&' } else { '?' };
        let head = Request::new("HEAD", &Request::get(&target).target);
        for request in [
            Request::get(&target),
            Request::get(&target).header(SECRET_HEADER, "eHh4"),
            Request::get(&target).header(SHELL_HEADER, &expired),
            Request::get(&target).header(SHELL_HEADER, "x").with_secret(),
            Request::get(&target).with_kas_token(),
            Request::get(&target).form("secret_token=bad"),
            Request::get(&format!("{target}{and}secret_token=bad")).with_secret(),
            Request::get(&format!("{target}{and}secret_token=")).with_secret(),
            Request::get(&target).header("Gitlab_Shared_Secret", ENCODED_SECRET),
            Request::get(&target).header("Authorization", "Bearer s3cret"),
        ] {
            let (response, arrived) = harness.send_counting(&request).await;
            response.assert_unauthorized();
            assert_eq!(arrived, 0, "{request}");
        }
        let response = harness.send(&head).await;
        assert_eq!((response.status, response.header("age")), (401, None), "{response}");
    }
}

#[tokio::test]
async fn each_request_of_a_connection_is_authenticated() {
    let harness = Harness::new().await;
    let mut connection = harness.gateway.tcp.connect().await;
    for _ in 0..3 {
        assert_eq!(connection.exchange(&check().with_secret()).await.status, 200);
        connection.exchange(&check()).await.assert_unauthorized();
        assert_eq!(connection.exchange(&check().with_shell_token()).await.status, 200);
        connection.exchange(&check().header(SHELL_HEADER, "x")).await.assert_unauthorized();
    }
}

/// Newer releases of Rails may check more.
#[tokio::test]
async fn a_refusal_by_rails_is_forwarded_unchanged() {
    use super::fake_rails::Reply;
    let harness = Harness::new().await;
    harness.rails.respond_always(Reply::json(401, r#"{"message":"401 Unauthorized"}"#));
    for _ in 0..2 {
        let (response, _) = harness.send_forwarded(&check().with_secret()).await;
        assert_eq!((response.status, response.text()), (401, r#"{"message":"401 Unauthorized"}"#));
        assert_eq!(response.cache_status(), "railgate; fwd=miss; detail=status");
    }
}

#[tokio::test]
async fn a_token_with_the_latest_expiry_is_accepted() {
    let harness = Harness::new().await;
    let token = shell_token(&json!({ "exp": i64::MAX }));
    for target in ["check", "discover?key_id=1", "lfs"] {
        let response = harness.send(&Request::get(target).header(SHELL_HEADER, &token)).await;
        assert_eq!(response.status, 200, "{response}");
    }
}
