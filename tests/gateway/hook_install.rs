//! `railgate hook install` with a scripted API of GitLab.

use std::fs;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::certificates::CertificateAuthority;
use super::fake_rails::{FakeRails, ReceivedRequest, Reply};
use super::harness::Scratch;

struct Operator {
    dir: Scratch,
}

const URL: &str = "http://127.0.0.1:8282/hooks/gitlab";

const TOKEN: &str = "token_file";
const SIGNING_TOKEN: &str = "signing_token_file";

impl Operator {
    /// For a gateway with `token_file`.
    fn new() -> Self {
        Self::with(&[TOKEN], 32)
    }

    /// For a gateway with these token files, and a signing token of so many bytes.
    fn with(kinds: &[&str], length: usize) -> Self {
        let dir = Scratch::new();
        for (name, text) in [("shell_secret", "s3cret"), (TOKEN, "h00k"), ("api_token", "glpat-a\n")] {
            fs::write(dir.file(name), text).unwrap();
        }
        fs::write(dir.file(SIGNING_TOKEN), signing_token(length) + "\n").unwrap();
        let path = dir.path().display();
        let config = format!(
            "upstream.url = 'http://127.0.0.1:1'\n[auth.shell]\nsecret_file = '{path}/shell_secret'\n\
             [hooks]\naddress = '127.0.0.1:8282'\n"
        );
        let keys = kinds.iter().map(|kind| format!("{kind} = '{path}/{kind}'\n"));
        let config = config + &keys.collect::<String>();
        fs::write(dir.file("railgate.toml"), config).unwrap();
        Self { dir }
    }

    /// Runs the command. Returns whether it succeeded, and its output.
    async fn install(&self, gitlab: &str, more: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.args(["hook", "install", "--gitlab", gitlab]);
        command.arg("--config").arg(self.dir.file("railgate.toml"));
        command.arg("--api-token-file").arg(self.dir.file("api_token")).args(more);
        let Output { status, stdout, stderr } =
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let output = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(
            !output.contains("glpat-a") && !output.contains("h00k") && !output.contains("whsec_B"),
            "{output}"
        );
        (status.success(), output)
    }
}

fn signing_token(length: usize) -> String {
    format!("whsec_{}", STANDARD.encode(vec![7; length]))
}

/// A GitLab of unknown release with these hooks, which can be changed; a new one gets the id 9.
fn gitlab(hooks: Value) -> impl Fn(&ReceivedRequest) -> Reply + Send + Sync {
    move |request| {
        let is_shown = request.header("authorization") == Some("Bearer glpat-a");
        match (request.method.as_str(), request.target.as_str()) {
            _ if !is_shown => Reply::json(401, r#"{"message":"401 Unauthorized"}"#),
            ("GET", "/git/api/v4/hooks?per_page=100&page=1") => Reply::json(200, &hooks.to_string()),
            ("GET", "/git/api/v4/hooks?per_page=100&page=2") => Reply::json(200, "[]"),
            ("POST", "/git/api/v4/hooks") => Reply::json(201, r#"{"id":9}"#),
            ("PUT", "/git/api/v4/hooks/4") => Reply::json(200, r#"{"id":4}"#),
            _ => Reply::json(404, r#"{"error":"404 Not Found"}"#),
        }
    }
}

#[tokio::test]
async fn a_hook_is_installed_once() {
    let (operator, rails) = (Operator::new(), FakeRails::listen_tcp().await);
    let url = format!("{}/git", rails.address.url());
    // After a full page, the next one is requested.
    let others: Vec<Value> = (0..100).map(|id| json!({"id": id, "url": "http://other"})).collect();
    rails.respond_with(gitlab(json!(others)));
    let (is_done, output) = operator.install(&url, &[]).await;
    assert!(is_done && output.contains("from now on (System Hook 9)"), "{output}");
    assert_eq!(rails.request_count(), 3);
    let asked: Value = serde_json::from_slice(&rails.last_request().body).unwrap();
    assert_eq!(
        (&asked["url"], &asked["token"], &asked["push_events"]),
        (&json!(URL), &json!("h00k"), &json!(false))
    );

    rails.respond_with(gitlab(json!([{"id": 3, "url": "http://other"}, {"id": 4, "url": URL}])));
    let (is_done, output) = operator.install(&url, &[]).await;
    assert!(is_done && output.contains("already (System Hook 4), with the tokens"), "{output}");
    assert_eq!((rails.request_count(), rails.last_request().method.as_str()), (5, "PUT"));
    assert_eq!(
        serde_json::from_slice::<Value>(&rails.last_request().body).unwrap(),
        json!({"url": URL, "token": "h00k"})
    );

    // Not all releases can change a hook.
    for status in [404, 405] {
        let script = gitlab(json!([{"id": 4, "url": URL}]));
        rails.respond_with(move |request| match request.method.as_str() {
            "PUT" => Reply::json(status, r#"{"error":"no"}"#),
            _ => script(request),
        });
        let (is_done, output) = operator.install(&url, &[]).await;
        let advice = "already (System Hook 4), and cannot change a hook over its API. If its tokens are not";
        assert!(is_done && output.contains(advice), "{output}");
    }
}

/// By release of GitLab and configured tokens: what is sent, and what is printed.
#[tokio::test]
async fn a_signing_token_is_set_where_gitlab_supports_it() {
    const UNSURE: &str =
        "from now on (System Hook 9).\nIf railgate_hooks_refused_total rises, it does not sign";
    const SURE: &str = "from now on (System Hook 9).\n";
    const TOO_OLD: &str = "which does not sign: set hooks.token_file to a file with one word";
    for (version, kinds, sent, expected) in [
        (Some("18.9.1-ee"), &[SIGNING_TOKEN][..], Some((false, true)), UNSURE),
        (Some("19.0.1"), &[TOKEN, SIGNING_TOKEN], Some((true, true)), SURE),
        (Some("19.0.1"), &[TOKEN], Some((true, false)), SURE),
        (Some("17.11.3"), &[TOKEN, SIGNING_TOKEN], Some((true, false)), SURE),
        (Some("17.11.3"), &[SIGNING_TOKEN], None, TOO_OLD),
        (Some("8.9.0"), &[SIGNING_TOKEN], None, TOO_OLD),
        (Some("unknown"), &[SIGNING_TOKEN], Some((false, true)), UNSURE),
        (None, &[SIGNING_TOKEN], Some((false, true)), UNSURE),
        (None, &[TOKEN, SIGNING_TOKEN], Some((true, true)), SURE),
    ] {
        let (operator, rails) = (Operator::with(kinds, 32), FakeRails::listen_tcp().await);
        let script = gitlab(json!([]));
        rails.respond_with(move |request| match (request.target.as_str(), version) {
            ("/git/api/v4/version", Some(version)) => {
                Reply::json(200, &json!({"version": version, "revision": "a1"}).to_string())
            }
            _ => script(request),
        });
        let (is_done, output) = operator.install(&format!("{}/git", rails.address.url()), &[]).await;
        assert!(is_done == sent.is_some() && output.contains(expected), "{version:?} {kinds:?}: {output}");
        assert_eq!(output.contains("If railgate_hooks_refused_total"), expected == UNSURE, "{output}");
        let posted = rails.requests().into_iter().find(|request| request.method == "POST");
        let posted = posted.map(|request| {
            let hook: Value = serde_json::from_slice(&request.body).unwrap();
            let (token, signing) = (hook.get("token").cloned(), hook.get("signing_token").cloned());
            assert!(token.iter().all(|token| token == "h00k"), "{hook}");
            assert!(signing.iter().all(|token| *token == signing_token(32)), "{hook}");
            (token.is_some(), signing.is_some())
        });
        assert_eq!(posted, sent, "{version:?} {kinds:?}");
    }
}

#[tokio::test]
async fn an_existing_hook_gets_the_signing_token() {
    let (operator, rails) = (Operator::with(&[SIGNING_TOKEN], 32), FakeRails::listen_tcp().await);
    rails.respond_with(gitlab(json!([{"id": 4, "url": URL}])));
    let (is_done, output) = operator.install(&format!("{}/git", rails.address.url()), &[]).await;
    assert!(is_done && output.contains("with the tokens") && output.contains("it does not sign"), "{output}");
    let put: Value = serde_json::from_slice(&rails.last_request().body).unwrap();
    assert_eq!(put, json!({"url": URL, "signing_token": signing_token(32)}));
}

#[tokio::test]
async fn an_invalid_signing_token_is_reported_before_any_request() {
    for length in [1, 24, 31, 33, 64] {
        let (operator, rails) =
            (Operator::with(&[TOKEN, SIGNING_TOKEN], length), FakeRails::listen_tcp().await);
        let (is_done, output) = operator.install(&rails.address.url(), &[]).await;
        let expected = format!("Base64 of 32 bytes, and this has {length}: write what `printf 'whsec_%s");
        assert!(!is_done && output.contains(&expected), "{output}");
        assert_eq!(rails.request_count(), 0);
    }
}

#[tokio::test]
async fn the_certificate_of_gitlab_is_verified() {
    let (operator, authority) = (Operator::new(), CertificateAuthority::new());
    let rails = FakeRails::listen_tls(authority.tls_acceptor("localhost", None)).await;
    rails.respond_with(gitlab(json!([])));
    let url = rails.address.url().replace("http://127.0.0.1", "https://localhost") + "/git";
    let file = authority.write_certificate(&operator.dir, "ca.pem").display().to_string();
    let (is_done, output) = operator.install(&url, &["--ca-file", &file]).await;
    assert!(is_done && output.contains("System Hook 9"), "{output}");
    let file =
        CertificateAuthority::new().write_certificate(&operator.dir, "other.pem").display().to_string();
    let (is_done, output) = operator.install(&url, &["--ca-file", &file]).await;
    assert!(!is_done && output.contains("invalid peer certificate"), "{output}");
    assert_eq!(rails.request_count(), 2);
}

#[tokio::test]
async fn errors_are_reported_with_a_remedy() {
    let (operator, rails) = (Operator::new(), FakeRails::listen_tcp().await);
    let url = rails.address.url();
    for (response, expected) in [
        (Reply::json(401, r#"{"message":"401 Unauthorized"}"#), "401 Unauthorized; the API token is wrong"),
        (Reply::json(403, r#"{"message":"403 Forbidden"}"#), "the scope `api`"),
        (Reply::json(404, r#"{"error":"404 Not Found"}"#), "is this the URL of a GitLab"),
        (Reply::json(422, r#"{"message":{"url":["is blocked"]}}"#), "allow requests to the local network"),
        (Reply::json(302, ""), "it redirects elsewhere"),
        (
            Reply::json(429, r#"{"message":{"error":"This endpoint has been requested too many times."}}"#),
            "too many times.\"}; GitLab lets one user change System Hooks 5 times a minute: wait for a minute, and run",
        ),
        (
            Reply::new(429, "Retry-After: 42\r\n", "Retry later\n"),
            "answered 429 Too Many Requests; GitLab lets one",
        ),
        (Reply::json(500, ""), "answered 500 Internal Server Error; look at its log"),
        (Reply::json(200, r#"{"id":1}"#), "not that of GitLab's API"),
        (Reply::json(200, &json!([{"id": "4", "url": URL}]).to_string()), "not that of GitLab's API"),
        (Reply::json(200, &json!([{"url": URL}]).to_string()), "not that of GitLab's API"),
        (Reply::new(200, "", "<html>"), "not that of GitLab's API"),
        (Reply::hang_up(), "no answer from http://127.0.0.1"),
    ] {
        rails.respond_always(response.clone());
        let (is_done, output) = operator.install(&url, &[]).await;
        assert!(!is_done && output.contains(expected), "{response:?}: {output}");
    }
    for (gitlab, more, expected) in [
        ("http://gitlab.example.com", &[][..], "would send the API token unencrypted"),
        ("gitlab.example.com", &[], "must begin with"),
        ("http://localhost", &["--ca-file", "/nowhere"], "is for a --gitlab that begins with https://"),
        ("https://gitlab.example.com", &["--ca-file", "/nowhere"], "--ca-file /nowhere: cannot be read"),
    ] {
        let (is_done, output) = operator.install(gitlab, more).await;
        assert!(!is_done && output.contains(expected), "{gitlab}: {output}");
    }
    fs::write(operator.dir.file("api_token"), "").unwrap();
    let (is_done, output) = operator.install(&url, &[]).await;
    assert!(!is_done && output.contains("api_token: is empty"), "{output}");
}
