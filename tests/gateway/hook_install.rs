//! `railgate hook install` in front of a GitLab whose API is the test's.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::certificates::Authority;
use super::fake::{Rails, Reply, Request};
use super::stage::Scratch;

struct Operator {
    dir: Scratch,
}

const URL: &str = "http://127.0.0.1:8282/hooks/gitlab";

impl Operator {
    fn new() -> Self {
        let dir = Scratch::new();
        for (name, text) in [("shell_secret", "s3cret"), ("hook_token", "h00k"), ("api_token", "glpat-a\n")] {
            fs::write(dir.file(name), text).unwrap();
        }
        let path = dir.path().display();
        let config = format!(
            "upstream.url = 'http://127.0.0.1:1'\n[auth.shell]\nsecret_file = '{path}/shell_secret'\n\
             [hooks]\naddress = '127.0.0.1:8282'\ntoken_file = '{path}/hook_token'\n"
        );
        fs::write(dir.file("railgate.toml"), config).unwrap();
        Self { dir }
    }

    /// Runs the command, and says how it ended and what it printed.
    async fn install(&self, gitlab: &str, more: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.args(["hook", "install", "--gitlab", gitlab]);
        command.arg("--config").arg(self.dir.file("railgate.toml"));
        command.arg("--api-token-file").arg(self.dir.file("api_token")).args(more);
        let Output { status, stdout, stderr } =
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let told = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(!told.contains("glpat-a") && !told.contains("h00k"), "{told}");
        (status.success(), told)
    }
}

/// A GitLab with these hooks; one more is number 9.
fn gitlab(hooks: Value) -> impl Fn(&Request) -> Reply + Send + Sync {
    move |request| {
        let is_shown = request.header("authorization") == Some("Bearer glpat-a");
        match (request.method.as_str(), request.target.as_str()) {
            _ if !is_shown => Reply::json(401, r#"{"message":"401 Unauthorized"}"#),
            ("GET", "/git/api/v4/hooks?per_page=100&page=1") => Reply::json(200, &hooks.to_string()),
            ("GET", "/git/api/v4/hooks?per_page=100&page=2") => Reply::json(200, "[]"),
            ("POST", "/git/api/v4/hooks") => Reply::json(201, r#"{"id":9}"#),
            _ => Reply::json(404, r#"{"error":"404 Not Found"}"#),
        }
    }
}

#[tokio::test]
async fn a_hook_is_installed_once() {
    let (operator, rails) = (Operator::new(), Rails::on_tcp().await);
    let url = format!("{}/git", rails.peer.url());
    // A page that is full has another one behind it.
    let others: Vec<Value> = (0..100).map(|id| json!({"id": id, "url": "http://other"})).collect();
    rails.answer(gitlab(json!(others)));
    let (is_done, told) = operator.install(&url, &[]).await;
    assert!(is_done && told.contains("from now on (System Hook 9)"), "{told}");
    assert_eq!(rails.count(), 3);
    let asked: Value = serde_json::from_slice(&rails.last().body).unwrap();
    assert_eq!(
        (&asked["url"], &asked["token"], &asked["push_events"]),
        (&json!(URL), &json!("h00k"), &json!(false))
    );

    rails.answer(gitlab(json!([{"id": 3, "url": "http://other"}, {"id": 4, "url": URL}])));
    let (is_done, told) = operator.install(&url, &[]).await;
    assert!(is_done && told.contains("already (System Hook 4)"), "{told}");
    assert_eq!((rails.count(), rails.last().method.as_str()), (4, "GET"));
}

#[tokio::test]
async fn over_tls_gitlab_has_to_prove_who_it_is() {
    let (operator, authority) = (Operator::new(), Authority::new());
    let rails = Rails::on_tls(authority.server("localhost", None)).await;
    rails.answer(gitlab(json!([])));
    let url = rails.peer.url().replace("http://127.0.0.1", "https://localhost") + "/git";
    let file = authority.file(&operator.dir, "ca.pem").display().to_string();
    let (is_done, told) = operator.install(&url, &["--ca-file", &file]).await;
    assert!(is_done && told.contains("System Hook 9"), "{told}");
    let file = Authority::new().file(&operator.dir, "other.pem").display().to_string();
    let (is_done, told) = operator.install(&url, &["--ca-file", &file]).await;
    assert!(!is_done && told.contains("invalid peer certificate"), "{told}");
    assert_eq!(rails.count(), 2);
}

#[tokio::test]
async fn what_goes_wrong_is_told_with_what_to_do() {
    let (operator, rails) = (Operator::new(), Rails::on_tcp().await);
    let url = rails.peer.url();
    for (answer, told) in [
        (Reply::json(401, r#"{"message":"401 Unauthorized"}"#), "401 Unauthorized; the API token is wrong"),
        (Reply::json(403, r#"{"message":"403 Forbidden"}"#), "the scope `api`"),
        (Reply::json(404, r#"{"error":"404 Not Found"}"#), "is this the URL of a GitLab"),
        (Reply::json(422, r#"{"message":{"url":["is blocked"]}}"#), "allow requests to the local network"),
        (Reply::json(302, ""), "it redirects elsewhere"),
        (Reply::json(200, r#"{"id":1}"#), "not that of GitLab's API"),
        (Reply::new(200, "", "<html>"), "not that of GitLab's API"),
        (Reply::hang_up(), "no answer of http://127.0.0.1"),
    ] {
        rails.always(answer.clone());
        let (is_done, said) = operator.install(&url, &[]).await;
        assert!(!is_done && said.contains(told), "{answer:?}: {said}");
    }
    for (gitlab, more, told) in [
        ("http://gitlab.example.com", &[][..], "would send the API token in clear"),
        ("gitlab.example.com", &[], "must begin with"),
        ("http://localhost", &["--ca-file", "/nowhere"], "is for a --gitlab that begins with https://"),
        ("https://gitlab.example.com", &["--ca-file", "/nowhere"], "--ca-file /nowhere: cannot be read"),
    ] {
        let (is_done, said) = operator.install(gitlab, more).await;
        assert!(!is_done && said.contains(told), "{gitlab}: {said}");
    }
    fs::write(operator.dir.file("api_token"), "").unwrap();
    let (is_done, said) = operator.install(&url, &[]).await;
    assert!(!is_done && said.contains("api_token: is empty"), "{said}");
}
