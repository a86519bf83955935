//! Who is let in: the shared secret in all its places, and the shell's tokens.
//!
//! The scripted Rails lets everybody in, so whatever it is asked passed the gateway.

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::client::Ask;
use super::credentials::{
    KAS_HEADER, KAS_SECRET, SECRET, SECRET_AND_LINE_FEED, SECRET_HEADER, SHELL_HEADER, SHELL_SECRET,
    kas_token, now, shell_token, token,
};
use super::fake::{CHECK, ROOT_KEY};
use super::stage::{Setup, Stage};

/// Whether a caller is let in. In or out is decided for each by itself: nothing is cached here.
async fn assert_verdicts(setup: Setup, cases: Vec<(Ask, bool)>) {
    let stage = setup
        .text("cache.authorized_keys.ttl", "0s")
        .text("cache.authorized_keys.negative_ttl", "0s")
        .text("cache.discover.ttl", "0s")
        .text("cache.discover.negative_ttl", "0s")
        .text("cache.check.ttl", "0s")
        .start()
        .await;
    for (ask, is_let_in) in cases {
        for peer in [&stage.gateway.tcp, &stage.gateway.unix] {
            let before = stage.rails.count();
            let answer = peer.send(&ask).await;
            let arrived = stage.rails.count() - before;
            assert_eq!(arrived, usize::from(is_let_in), "{ask}: {answer}");
            if is_let_in {
                assert_eq!(answer.status, 200, "{ask}: {answer}");
            } else {
                answer.assert_unauthorized();
            }
        }
    }
}

fn all(asks: Vec<Ask>, is_let_in: bool) -> Vec<(Ask, bool)> {
    asks.into_iter().map(|ask| (ask, is_let_in)).collect()
}

const LET_IN: bool = true;
const KEPT_OUT: bool = false;

fn check() -> Ask {
    Ask::get("check")
}

#[tokio::test]
async fn the_secret_may_be_in_the_header() {
    let shown = |value: &str| check().header(SECRET_HEADER, value);
    let good = [SECRET, SECRET_AND_LINE_FEED, "czNjcmV0Cg", " czNjcmV0\t", "czNjcmV0DQo="];
    let mut cases = all(good.map(shown).to_vec(), LET_IN);
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
        // One letter less, one more, another case, two line breaks, a blank before it.
        "czNjcmU=",
        "czNjcmV0Mg==",
        "UzNjcmV0",
        "czNjcmV0Cgo=",
        "IHMzY3JldA==",
        // A line break alone is no secret.
        "Cg==",
    ];
    cases.extend(all(bad.map(shown).to_vec(), KEPT_OUT));
    cases.push((check(), KEPT_OUT));
    cases.push((check().header("gitlab-SHARED-secret", SECRET), LET_IN));
    assert_verdicts(Setup::new(), cases).await;
}

#[tokio::test]
async fn the_parameter_comes_before_the_header() {
    let wrong = "eHh4";
    assert_verdicts(
        Setup::new(),
        vec![
            (Ask::get("check?secret_token=s3cret"), LET_IN),
            (Ask::get("check?secret_token=s3cret%0A"), LET_IN),
            (Ask::get("check?secret_token=s%33cret"), LET_IN),
            (Ask::get("check?a=1&secret_token=s3cret&b=2"), LET_IN),
            (Ask::get("check?secret_token=s3cret").header(SECRET_HEADER, wrong), LET_IN),
            (Ask::get("check?secret_token").with_secret(), LET_IN),
            (Ask::get("check?secret_token=bad").with_secret(), KEPT_OUT),
            (Ask::get("check?secret_token=").with_secret(), KEPT_OUT),
            (Ask::get("check?secret_token=bad"), KEPT_OUT),
            (Ask::get("check?secret_token="), KEPT_OUT),
            (Ask::get("check?secret_token"), KEPT_OUT),
            // To Rails the parameter is plain text, whatever the document says.
            (Ask::get(&format!("check?secret_token={SECRET}")), KEPT_OUT),
            (Ask::get("check?secret_token=s3cret+"), KEPT_OUT),
            (Ask::get("check?Secret_Token=s3cret"), KEPT_OUT),
            // The last one counts.
            (Ask::get("check?secret_token=bad&secret_token=s3cret"), LET_IN),
            (Ask::get("check?secret_token=s3cret&secret_token=bad"), KEPT_OUT),
            (Ask::get("check?secret_token=s3cret&secret_token=bad").with_secret(), KEPT_OUT),
            (Ask::get("check?secret_token=bad&secret_token").with_secret(), LET_IN),
        ],
    )
    .await;
}

/// Rack versions disagree on these, and one of them might see a wrong secret.
#[tokio::test]
async fn parameters_that_can_be_read_in_two_ways_open_nothing() {
    let targets = [
        "check?a=1;secret_token=s3cret",
        "check?secret_token=s3cret;b=2",
        "check?a=1;secret%5ftoken=s3cret",
        "check?secret_token[]=s3cret",
        "check?[secret_token]=s3cret",
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
        cases.push((Ask::get(target), KEPT_OUT));
        cases.push((Ask::get(target).with_secret(), KEPT_OUT));
    }
    assert_verdicts(Setup::new(), cases).await;
}

/// Every Rack since 2.0 reads these in one way: some are the credential, and the others are not and do no harm
/// beside one.
#[tokio::test]
async fn parameters_that_are_read_in_one_way_are_taken() {
    let mut cases = vec![
        (Ask::get("check?secret%5ftoken=s3cret"), LET_IN),
        (Ask::get("check?a=1&%73ecret_token=s3cret"), LET_IN),
        (Ask::get("check?a=b;c=d&secret_token=s3cret"), LET_IN),
        (Ask::get("check?secret%5ftoken=x").with_secret(), KEPT_OUT),
        (Ask::get("check?secret_token=s3cret&secret%5Ftoken=x"), KEPT_OUT),
        (Ask::get("check?secret_token=x&secret%5Ftoken=s3cret"), LET_IN),
        (Ask::post("allowed").form("secret%5ftoken=s3cret"), LET_IN),
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
        "a={b}|c^d`e",
        "a=1;b=2",
    ] {
        cases.push((Ask::get(&format!("check?{query}")), KEPT_OUT));
        cases.push((Ask::get(&format!("check?{query}")).with_secret(), LET_IN));
        cases.push((Ask::get(&format!("check?secret_token=s3cret&{query}")), LET_IN));
    }
    assert_verdicts(Setup::new(), cases).await;
}

#[tokio::test]
async fn the_secret_may_be_in_a_form_whatever_the_method() {
    let form = "application/x-www-form-urlencoded";
    let typed = |kind: &str| check().header("Content-Type", kind).body("secret_token=s3cret");
    assert_verdicts(
        Setup::new(),
        vec![
            // As the Ruby shell sends it, with the line break of the file.
            (check().form("secret_token=s3cret%0A"), LET_IN),
            (check().form("secret_token=s3cret"), LET_IN),
            (check().form("secret_token=s3cret").chunked(1), LET_IN),
            (Ask::post("allowed").form("project=a&secret_token=s3cret"), LET_IN),
            (Ask::post("allowed").form("project=a&secret_token=s3cret").chunked(3), LET_IN),
            (typed("application/x-www-form-urlencoded; charset=utf-8"), LET_IN),
            (typed("Application/X-WWW-Form-Urlencoded"), LET_IN),
            // Rack takes a POST without a type for a form, but not a GET.
            (Ask::post("allowed").body("secret_token=s3cret"), LET_IN),
            (check().body("secret_token=s3cret"), KEPT_OUT),
            (typed("text/plain"), KEPT_OUT),
            (typed("multipart/form-data; boundary=a"), KEPT_OUT),
            (Ask::post("allowed").header("Content-Type", "text/plain").body("secret_token=s3cret"), KEPT_OUT),
            // A form overrides the query.
            (Ask::get("check?secret_token=bad").form("secret_token=s3cret"), LET_IN),
            (Ask::get("check?secret_token=bad").form("secret_token=bad"), KEPT_OUT),
            (Ask::get("check?secret_token=bad").form("a=b"), KEPT_OUT),
            (check().header(SECRET_HEADER, "eHh4").form("secret_token=s3cret"), LET_IN),
            (check().header(SECRET_HEADER, "s3cret").form("secret_token=s3cret"), LET_IN),
            (check().form("secret_token=bad&secret_token=s3cret"), LET_IN),
            (check().form("secret_token=s3cret&secret_token=bad"), KEPT_OUT),
            (check().form("secret_token="), KEPT_OUT),
            (check().form("a=b"), KEPT_OUT),
            (check().form(""), KEPT_OUT),
            (check().form("a=b; secret_token=s3cret"), KEPT_OUT),
            (check().form("a=b& secret_token=s3cret"), KEPT_OUT),
            // Nobody reads a body of a type that occurs twice in one line.
            (
                check().header("Content-Type", &format!("text/plain, {form}")).body("secret_token=s3cret"),
                KEPT_OUT,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_secret_may_be_in_json_where_rails_reads_it() {
    let post = |body: &str| Ask::post("allowed").json(body);
    assert_verdicts(
        Setup::new(),
        vec![
            (post(r#"{"secret_token":"s3cret"}"#), LET_IN),
            (post(r#"{"secret_token":"s3cret\n"}"#).chunked(2), LET_IN),
            (post(r#"{"secret_token":"bad","secret_token":"s3cret"}"#), LET_IN),
            (post(r#"{"secret_token":"s3cret","secret_token":"bad"}"#), KEPT_OUT),
            (post(r#"{"secret_token":"bad"}"#), KEPT_OUT),
            (post(r#"{"secret_token":""}"#), KEPT_OUT),
            (post(r#"{"secret_token":5}"#), KEPT_OUT),
            (post(r#"{"secret_token":["s3cret"]}"#), KEPT_OUT),
            (post(r#"{"secret_token":null}"#), KEPT_OUT),
            (post(r#"{"a":{"secret_token":"s3cret"}}"#), KEPT_OUT),
            (post(r#""s3cret""#), KEPT_OUT),
            (post(r#"["s3cret"]"#), KEPT_OUT),
            (post("{"), KEPT_OUT),
            (post(&"[".repeat(100_000)), KEPT_OUT),
            (post(&"{\"a\":".repeat(100_000)), KEPT_OUT),
            (Ask::post("allowed").header("Content-Type", "application/json").body(b"\"\xff\""), KEPT_OUT),
            (post(""), KEPT_OUT),
            // Geo really sends a null beside the header.
            (post(r#"{"secret_token":null}"#).with_secret(), LET_IN),
            (post("").with_secret(), LET_IN),
            (post("[]").with_secret(), LET_IN),
            (post(r#"{"secret_token":"s3cret"}"#).header(SECRET_HEADER, "eHh4"), LET_IN),
            // On a GET, Grape does not look.
            (check().json(r#"{"secret_token":"s3cret"}"#), KEPT_OUT),
            (check().json(r#"{"secret_token":"bad"}"#).with_secret(), LET_IN),
        ],
    )
    .await;
}

/// A form of so many parameters, none of which occurs twice.
fn all_different(count: usize) -> String {
    let names: Vec<String> = (0..count).map(|index| format!("{index:x}")).collect();
    names.join("&")
}

/// Nobody has been let in yet, so a search must cost little, however odd the parameters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_costs_little_whatever_is_searched() {
    let stage = Setup::new().text("auth.shell.max_body", "1MiB").start().await;
    let different = all_different(150_000);
    let many_alike = "a=b&".repeat(250_000);
    for form in [different, many_alike, "&".repeat(1_000_000), "%41".repeat(300_000), "a[".repeat(500_000)] {
        for ask in [Ask::post("allowed").form(&form), Ask::get("check").form(&form)] {
            stage.send(&ask).await.assert_unauthorized();
        }
    }
    let query = all_different(2_000);
    stage.send(&Ask::get(&format!("check?{query}"))).await.assert_unauthorized();
}

/// What is wrong in a body beside a good header is for Rails to judge: it gets to see it, and no
/// cached answer hides it.
#[tokio::test]
async fn a_body_that_rails_would_refuse_is_shown_to_rails() {
    let stage = Stage::new().await;
    let warm = check().with_secret();
    assert_eq!(stage.send(&warm).await.text(), CHECK);
    assert!(stage.send(&warm).await.is_hit());
    for ask in [
        warm.clone().form("secret_token=bad"),
        Ask::get("check?secret_token=s3cret").form("secret_token=bad"),
        warm.clone().form("key=x"),
        warm.clone().json(r#"{"a":1}"#),
    ] {
        let (answer, seen) = stage.pass(&ask).await;
        assert!(!answer.is_hit() && ask.to_bytes("close").ends_with(&seen.body), "{ask}: {answer}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_for_a_search_is_not_searched() {
    let stage = Setup::new().text("auth.shell.max_body", "1KiB").start().await;
    let padding = "x".repeat(1024);
    for ask in [
        Ask::post("allowed").form(&format!("a={padding}&secret_token=s3cret")),
        Ask::post("allowed").form(&format!("secret_token=s3cret&a={padding}")).chunked(100),
        Ask::post("allowed").json(&format!(r#"{{"a":"{padding}","secret_token":"s3cret"}}"#)),
        Ask::get("check").form(&format!("a={padding}")).chunked(1024),
    ] {
        let (answer, arrived) = stage.send_counting(&ask).await;
        answer.assert_failure(413);
        assert_eq!(arrived, 0, "{answer}");
    }
    // With a credential elsewhere there is no search, and so no limit.
    for ask in [
        Ask::post("allowed").form(&format!("a={padding}")).with_secret(),
        Ask::post("allowed?secret_token=s3cret").form(&format!("a={padding}")).chunked(100),
        Ask::post("allowed").json(&padding).with_shell_token(),
        Ask::post("allowed").form(&format!("secret_token=s3cret&a={}", "x".repeat(1000))),
    ] {
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!(answer.status, 200, "{answer}");
        assert!(seen.body.len() > 1000);
    }
}

#[tokio::test]
async fn a_token_of_the_shell_opens_the_door() {
    let shown = |token: &str| check().header(SHELL_HEADER, token);
    let claims = |over| check().header(SHELL_HEADER, &shell_token(&over));
    let now = now();
    let usual = json!({ "iss": "gitlab-shell", "iat": now, "exp": now + 60 });
    let signed = |algorithm, secret: &[u8]| shown(&token(algorithm, secret, &usual, &json!({})));
    let good = shell_token(&json!({}));
    let unsigned = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJnaXRsYWItc2hlbGwiLCJleHAiOjQxMDI0NDQ4MDB9.";
    let mut cases = all(
        vec![
            shown(&good),
            // A minute's grace, as Rails gives.
            claims(json!({ "exp": now - 30 })),
            claims(json!({ "nbf": now + 30 })),
            claims(json!({ "iat": now + 10 })),
            claims(json!({ "iat": null })),
            claims(json!({ "iat": now - 120 })),
            claims(json!({ "iat": now + 3600 })),
            claims(json!({ "iat": "soon" })),
            claims(json!({ "gl_id": "user-1" })),
            claims(json!({ "aud": "anything" })),
            // The token decides, whatever else is shown.
            shown(&good).header(SECRET_HEADER, "eHh4"),
            Ask::get("check?secret_token=bad").header(SHELL_HEADER, &good),
            Ask::post("allowed").form("secret_token=bad").header(SHELL_HEADER, &good),
        ],
        LET_IN,
    );
    cases.extend(all(
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
            shown(SECRET),
            shown(SHELL_SECRET),
            shown(&format!("Bearer {good}")),
            shown(&format!("{good}, {good}")),
            shown(&good[..good.len() - 2]),
            check().header("Authorization", &format!("Bearer {good}")),
            check().header(KAS_HEADER, &good),
            Ask::get(&format!("check?Gitlab-Shell-Api-Request={good}")),
            // The token decides, whatever else is shown.
            claims(json!({ "iss": "x" })).with_secret(),
            shown("").with_secret(),
            Ask::get("check?secret_token=s3cret").header(SHELL_HEADER, "x"),
        ],
        KEPT_OUT,
    ));
    assert_verdicts(Setup::new(), cases).await;
}

#[tokio::test]
async fn where_only_tokens_count_the_secret_does_not() {
    let setup = Setup::new().set("auth.shell.accept", r#"["jwt"]"#);
    assert_verdicts(
        setup,
        vec![
            (check().with_shell_token(), LET_IN),
            (check().with_shell_token().with_secret(), LET_IN),
            (check().with_secret(), KEPT_OUT),
            (Ask::get("check?secret_token=s3cret"), KEPT_OUT),
            (check().form("secret_token=s3cret"), KEPT_OUT),
            (Ask::post("allowed").json(r#"{"secret_token":"s3cret"}"#), KEPT_OUT),
            (check(), KEPT_OUT),
        ],
    )
    .await;
}

#[tokio::test]
async fn where_only_the_secret_counts_tokens_do_not() {
    let setup = Setup::new().set("auth.shell.accept", r#"["shared_secret"]"#);
    assert_verdicts(
        setup,
        vec![
            (check().with_secret(), LET_IN),
            (check().form("secret_token=s3cret"), LET_IN),
            // Rails of that era does not look at the token either.
            (check().with_secret().header(SHELL_HEADER, "x"), LET_IN),
            (check().with_shell_token(), KEPT_OUT),
        ],
    )
    .await;
}

/// A warm cache is no way around the credential, whatever the spelling of the question.
#[tokio::test]
async fn a_warm_cache_answers_nobody_who_is_not_let_in() {
    let stage = Stage::new().await;
    let expired = shell_token(&json!({ "exp": now() - 120 }));
    for target in [
        "check".to_owned(),
        format!("authorized_keys?key={ROOT_KEY}"),
        "discover?key_id=1".into(),
        "discover?username=nobody".into(),
    ] {
        stage.send(&Ask::get(&target).with_secret()).await;
        assert!(stage.send(&Ask::get(&target).with_secret()).await.is_hit(), "{target}");
        let and = if target.contains('?') { '&' } else { '?' };
        let head = Ask::new("HEAD", &Ask::get(&target).target);
        for ask in [
            Ask::get(&target),
            Ask::get(&target).header(SECRET_HEADER, "eHh4"),
            Ask::get(&target).header(SHELL_HEADER, &expired),
            Ask::get(&target).header(SHELL_HEADER, "x").with_secret(),
            Ask::get(&target).with_kas_token(),
            Ask::get(&target).form("secret_token=bad"),
            Ask::get(&format!("{target}{and}secret_token=bad")).with_secret(),
            Ask::get(&format!("{target}{and}secret_token=")).with_secret(),
            Ask::get(&target).header("Gitlab_Shared_Secret", SECRET),
            Ask::get(&target).header("Authorization", "Bearer s3cret"),
        ] {
            let (answer, arrived) = stage.send_counting(&ask).await;
            answer.assert_unauthorized();
            assert_eq!(arrived, 0, "{ask}");
        }
        let answer = stage.send(&head).await;
        assert_eq!((answer.status, answer.header("age")), (401, None), "{answer}");
    }
}

/// Each request of a connection is judged by itself.
#[tokio::test]
async fn nobody_inherits_a_credential_from_the_request_before() {
    let stage = Stage::new().await;
    let mut wire = stage.gateway.tcp.connect().await;
    for _ in 0..3 {
        assert_eq!(wire.exchange(&check().with_secret()).await.status, 200);
        wire.exchange(&check()).await.assert_unauthorized();
        assert_eq!(wire.exchange(&check().with_shell_token()).await.status, 200);
        wire.exchange(&check().header(SHELL_HEADER, "x")).await.assert_unauthorized();
    }
}

/// Rails judges what a newer shell shows, and the gateway passes its verdict on.
#[tokio::test]
async fn a_refusal_by_rails_stays_its_own() {
    use super::fake::Reply;
    let stage = Stage::new().await;
    stage.rails.always(Reply::json(401, r#"{"message":"401 Unauthorized"}"#));
    for _ in 0..2 {
        let (answer, _) = stage.pass(&check().with_secret()).await;
        assert_eq!((answer.status, answer.text()), (401, r#"{"message":"401 Unauthorized"}"#));
        assert_eq!(answer.cache_status(), "railgate; fwd=miss; detail=status");
    }
}

/// As long as it says, however long that is.
#[tokio::test]
async fn a_token_that_hardly_ever_expires_is_a_token() {
    let stage = Stage::new().await;
    let token = shell_token(&json!({ "exp": i64::MAX }));
    for target in ["check", "discover?key_id=1", "lfs"] {
        let answer = stage.send(&Ask::get(target).header(SHELL_HEADER, &token)).await;
        assert_eq!(answer.status, 200, "{answer}");
    }
}
