//! No credential, SSH key or body appears in any log line, series or failure.

use std::fs::File;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::Algorithm;
use serde_json::json;

use super::client::{Address, Request, eventually, within_deadline};
use super::credentials::{KAS_HEADER, SECRET_HEADER, SHELL_HEADER, kas_token, now, token};
use super::fake_rails::{FakeRails, Reply, gitlab};
use super::harness::{Harness, Setup};
use super::log;

/// As Rails generates it: 32 hex digits.
const SECRET: &str = "c0ffeec0ffeec0ffeec0ffeec0ffeec0";
/// The middle of the key occurs nowhere else in this file.
const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGCanaryCanaryCanaryCanaryCanaryCanaryCanaryCan";
const IN_ANSWERS: &str = "glpat-canary-in-an-answer";

/// Texts that must not appear.
fn forbidden(tokens: &[String]) -> Vec<String> {
    let mut forbidden = vec![
        SECRET.to_owned(),
        STANDARD.encode(SECRET),
        STANDARD.encode(format!("{SECRET}\n"))[..40].to_owned(),
        "CanaryCanary".to_owned(),
        IN_ANSWERS.to_owned(),
        "agent-token".to_owned(),
        "canary-in-a-body".to_owned(),
        "canary-password".to_owned(),
    ];
    // Each part of a token alone is secret.
    forbidden.extend(tokens.iter().flat_map(|token| token.split('.').skip(1)).map(str::to_owned));
    forbidden
}

fn shell_token(exp: i64) -> String {
    let claims = json!({ "iss": "gitlab-shell", "iat": now(), "exp": exp });
    token(Algorithm::HS256, SECRET.as_bytes(), &claims, &json!({}))
}

/// Well-formed requests with every credential in every place where one belongs.
fn well_formed(shell: &str, kas: &str) -> Vec<Request> {
    let encoded = STANDARD.encode(SECRET);
    let key = format!("authorized_keys?key={KEY}");
    vec![
        Request::get(&key).header(SECRET_HEADER, &encoded),
        Request::get(&key).header(SECRET_HEADER, &encoded),
        Request::get(&key).header(SHELL_HEADER, shell),
        Request::get(&key),
        Request::get(&key).header(SECRET_HEADER, SECRET),
        Request::get(&format!("{key}&secret_token={SECRET}")),
        Request::get(&format!("{key};secret_token={SECRET}")),
        Request::get(&format!("{key}&secret%5ftoken={SECRET}")),
        Request::get(&format!("{key}&secret_token[]={SECRET}")),
        Request::get(&format!("{key}&secret_token={SECRET}%zz")),
        Request::get(&format!("{key}&key_id=1;secret_token={SECRET}")),
        Request::get(&format!("authorized_keys?fingerprint={KEY}&key={KEY}")).header(SECRET_HEADER, &encoded),
        Request::get(&format!("authorized_keys.json?key={KEY}")).header(SECRET_HEADER, &encoded),
        Request::get(&format!("authorized_keys/?key=ssh-ed25519+{KEY}+me")).header(SECRET_HEADER, &encoded),
        Request::get(&format!("authorized_certs?key={KEY}")).header(SHELL_HEADER, shell),
        Request::get(&format!("check?secret_token={SECRET}")),
        Request::get(&format!("check?secret_token={SECRET}x")),
        Request::get("check").form(&format!("secret_token={SECRET}")),
        Request::post("allowed").form(&format!("secret_token={SECRET}&changes=canary-in-a-body")),
        Request::post("allowed")
            .json(&format!(r#"{{"secret_token":"{SECRET}","changes":"canary-in-a-body"}}"#)),
        Request::post("allowed").json(&format!(r#"{{"secret_token":["{SECRET}"]}}"#)),
        Request::post("allowed").json(&format!(r#"{{"secret_token":"{SECRET}", malformed"#)),
        Request::post("allowed").header(SHELL_HEADER, &shell_token(now() - 600)).body("canary-in-a-body"),
        Request::post("allowed").header(SHELL_HEADER, &format!("Bearer {shell}")),
        Request::post("personal_access_token").header(SHELL_HEADER, shell).form("name=a&scopes[]=api"),
        Request::get("kubernetes/agent_info")
            .header(KAS_HEADER, kas)
            .header("Authorization", "Bearer agent-token"),
        Request::get("kubernetes/agent_info").header("Authorization", "Bearer agent-token"),
        Request::get("check")
            .header("Authorization", &format!("Basic {}", STANDARD.encode("u:canary-password"))),
        Request::get("pages").header("Gitlab-Pages-Api-Request", shell),
        Request::get(&format!("new/thing?token={SECRET}&private_token=agent-token")),
        Request::new("GET", &format!("/elsewhere?secret_token={SECRET}")),
        Request::get("check").header("Gitlab_Shared_Secret", &encoded),
        Request::get("check").header("Cookie", "a=canary-password"),
    ]
}

/// Bytes that are refused before a credential is looked for.
fn malformed() -> Vec<String> {
    let encoded = STANDARD.encode(SECRET);
    let get = format!("GET /api/v4/internal/authorized_keys?key={KEY}&secret_token={SECRET}");
    let rest = format!("Host: a\r\nGitlab-Shared-Secret: {encoded}\r\n");
    vec![
        format!("{get} HTTP/1.1\nHost: a\n\n"),
        format!("{get} HTTP/1.1\r\n{rest}X : y\r\n\r\n"),
        format!("{get} HTTP/1.1\r\n{rest}{rest}\r\n"),
        format!("{get} HTTP/3\r\n{rest}\r\n"),
        format!("{get}#x HTTP/1.1\r\n{rest}\r\n"),
        format!("{get}\0 HTTP/1.1\r\n{rest}\r\n"),
        format!("GET http://u:{SECRET}@a/api/v4/internal/check HTTP/1.1\r\n{rest}\r\n"),
        format!("GET /api/v4/internal/../check?secret_token={SECRET} HTTP/1.1\r\n{rest}\r\n"),
        format!("{SECRET} / HTTP/1.1\r\n{rest}: x\r\n{SECRET}"),
        format!("{SECRET}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{SECRET}: x\r\n{SECRET}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: u:{SECRET}@a\r\n\r\n"),
        format!(
            "POST /api/v4/internal/allowed HTTP/1.1\r\n{rest}Transfer-Encoding: chunked\r\n\r\n{SECRET}\r\n\r\n"
        ),
        format!(
            "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\nsecret_token={SECRET}"
        ),
        format!("GET /{} HTTP/1.1\r\n{rest}\r\n", KEY.repeat(1_000)),
    ]
}

/// Sends everything, and returns the ids under which it was logged.
async fn send_all(address: &Address, requests: Vec<Request>) -> Vec<String> {
    let mut ids = Vec::new();
    for request in requests {
        let response = address.send(&request).await;
        ids.push(response.header("x-request-id").unwrap().to_owned());
    }
    for bytes in malformed() {
        let mut connection = address.connect().await;
        connection.write(bytes.as_bytes()).await;
        connection.shutdown_write().await;
        connection.read_to_end().await;
    }
    ids
}

/// A Rails whose responses contain secrets too, and sometimes break off.
fn script(request: &super::fake_rails::ReceivedRequest) -> Reply {
    let secret = format!(r#"{{"id":1,"key":"ssh-ed25519 {KEY} u","username":"u","token":"{IN_ANSWERS}"}}"#);
    if request.is_for("personal_access_token") || request.is_for("kubernetes/agent_info") {
        return Reply::json(200, &secret);
    }
    if request.is_for("allowed") {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n";
        return Reply::bytes(head).then(secret).then_close();
    }
    if request.is_for("authorized_certs") {
        return Reply::bytes(format!("{IN_ANSWERS} is no HTTP\r\n\r\n")).then_close();
    }
    if request.is_for("authorized_keys") { Reply::json(200, &secret) } else { gitlab(request) }
}

fn assert_contains_none(what: &str, text: &str, forbidden: &[String]) {
    for line in text.lines() {
        for secret in forbidden {
            assert!(!line.contains(secret.as_str()), "{secret:?} is in {what}: {line}");
        }
    }
}

async fn logged(harness: &Harness, ids: &[String], since: usize) -> String {
    // At every level, so that successful requests are logged too.
    eventually("a line for each request", async || {
        let log = log::since(since);
        ids.iter().all(|id| log.contains(id.as_str())).then_some(())
    })
    .await;
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    harness.wait_for_metric("railgate_client_connections", 0).await;
    log::since(since)
}

#[tokio::test]
async fn secrets_appear_in_no_log_metric_or_failure() {
    let harness = Setup::new().shell_secret(SECRET).start().await;
    let start = log::position();
    harness.rails.respond_with(script);
    let (shell, kas) = (shell_token(now() + 60), kas_token(&json!({ "jti": "canary" })));
    let mut requests = well_formed(&shell, &kas);
    requests.retain(|request| !request.target.ends_with("/allowed"));
    let ids = send_all(&harness.gateway.tcp, requests).await;
    let forbidden = forbidden(&[shell.clone(), kas.clone()]);
    let lines = logged(&harness, &ids, start).await;
    assert_contains_none("the log", &lines, &forbidden);
    assert_contains_none("a series", &harness.metrics().await, &forbidden);

    // Requests whose response breaks off.
    let mut ids = Vec::new();
    for request in
        well_formed(&shell, &kas).into_iter().filter(|request| request.target.ends_with("/allowed"))
    {
        ids.push(format!("breaks-off-{}", ids.len()));
        let mut connection = harness.gateway.unix.connect().await;
        connection.write(&request.header("X-Request-Id", &ids[ids.len() - 1]).to_bytes("close")).await;
        connection.read_to_end().await;
    }
    let lines = logged(&harness, &ids, start).await;
    assert!(ids.len() > 3 && lines.contains("upstream_broke_off"));
    assert_contains_none("the log", &lines, &forbidden);

    // Requests that fail.
    for reply in
        [Reply::hang_up(), Reply::bytes(format!("HTTP/1.1 200 {SECRET}\r\n{SECRET}\r\n\r\n")).then_close()]
    {
        harness.rails.respond_always(reply);
        for request in [
            Request::get(&format!("authorized_keys?key={KEY}AAAA&secret_token={SECRET}")),
            Request::post(&format!("lfs_authenticate?secret_token={SECRET}")).body("canary-in-a-body"),
        ] {
            let response = harness.send(&request).await;
            response.assert_failure(502);
            assert_contains_none("a failure", &response.to_string(), &forbidden);
        }
    }
    assert_contains_none("the log", &logged(&harness, &ids, start).await, &forbidden);
    assert_contains_none("a series", &harness.metrics().await, &forbidden);
}

/// It contains what is needed to find a request, and only harmless values.
#[tokio::test]
async fn a_log_line_describes_its_request() {
    let harness = Harness::new().await;
    let (id, start) = ("a-line-tells-what-happened", log::position());
    let request = Request::get("discover?key_id=7&username=root&x=y")
        .with_secret()
        .header("X-Request-Id", id)
        .header("User-Agent", "Me/1");
    harness.send(&request).await;
    let line = eventually("the line", async || {
        let lines = log::since(start);
        let line = lines.lines().find(|line| line.contains(id))?;
        Some(serde_json::from_str::<serde_json::Value>(line).unwrap())
    })
    .await;
    for (field, value) in [
        ("correlation_id", json!(id)),
        ("method", json!("GET")),
        ("uri", json!("/api/v4/internal/discover?key_id=7&username=[FILTERED]&[FILTERED]")),
        ("status", json!(200)),
        ("route", json!("discover")),
        ("caller", json!("shared_secret")),
        ("cache", json!("bypass")),
        ("remote_ip", json!("127.0.0.1")),
        ("ua", json!("Me/1")),
        ("level", json!("INFO")),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
}

/// Credentials in places where none belongs, by mistake.
#[tokio::test]
async fn misplaced_secrets_are_not_logged() {
    let secret = "facadefacadefacadefacadefacade00";
    let key = "AAAAC3NzaC1lZDI1NTE5AAAAIGMisplacedMisplacedMisplacedMisplacedMisplaced";
    let harness = Setup::new().shell_secret(secret).start().await;
    let start = log::position();
    let mut ids = Vec::new();
    let as_a_method = harness.send(&Request::new(secret, "/api/v4/internal/check")).await;
    ids.push(as_a_method.header("x-request-id").unwrap().to_owned());
    for target in [
        format!("check;secret_token={secret}"),
        format!("check?{secret}"),
        format!("check?{secret}="),
        format!("check?{secret}=x"),
        format!("check?{secret}&secret_token"),
        format!("discover?key_id={key}"),
        format!("discover?username={key}"),
        format!("discover?username=ssh-ed25519+{key}"),
        format!("discover?identifier={secret}"),
        format!("discover?user_id={secret}"),
        format!("discover?key_id=1%3Bsecret_token={secret}"),
        format!("discover?key_id=1%26secret_token={secret}"),
        format!("authorized_keys/{key}"),
        format!("authorized_keys/{secret}?key_id=1"),
    ] {
        let response = harness.send(&Request::get(&target)).await;
        ids.push(response.header("x-request-id").unwrap().to_owned());
    }
    let lines = logged(&harness, &ids, start).await;
    let leaks = lines.lines().filter(|line| line.contains(secret) || line.contains("MisplacedMisplaced"));
    let leaks: Vec<&str> = leaks.collect();
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}

/// At every level, right or wrong, and whatever else a browser on this machine adds.
#[tokio::test]
async fn credentials_of_operators_and_hooks_are_not_logged() {
    let setup = Setup::new();
    let (admin_token, hook_token) = (setup.dir.file("admin_token"), setup.dir.file("hook_token"));
    std::fs::write(&admin_token, "canary-of-an-operator").unwrap();
    std::fs::write(&hook_token, "canary-of-a-hook").unwrap();
    let setup = setup
        .text("admin.token_file", &admin_token.display().to_string())
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &hook_token.display().to_string());
    let harness = setup.start().await;
    let since = log::position();
    for wrong in ["", "-and-more"] {
        let request =
            Request::new("POST", "/purge").json(r#"{"all":true}"#).header("Cookie", "canary-of-a-page");
        let request = request.header("Authorization", &format!("Bearer canary-of-an-operator{wrong}"));
        let response = harness.gateway.admin.send(&request).await;
        assert_eq!(response.status, if wrong.is_empty() { 200 } else { 401 });
        let request = Request::new("POST", "/hooks/gitlab").json(r#"{"event_name":"user_create"}"#);
        let request = request
            .header("X-Gitlab-Token", &format!("canary-of-a-hook{wrong}"))
            .header("webhook-signature", "v1,canary-of-a-signature");
        let response = harness.gateway.hooks.as_ref().unwrap().send(&request).await;
        assert_eq!(response.status, if wrong.is_empty() { 200 } else { 401 });
    }
    // A wrong host is logged, with the request.
    for path in ["/canary-of-a-path", "/metrics?canary-of-a-query"] {
        let request = Request::new("GET", path).header("Host", "evil.example");
        harness.gateway.admin.send(&request).await.assert_failure(421);
    }
    let logged = log::since(since);
    let refused = logged.lines().find(|line| line.contains("an operator was refused")).unwrap();
    assert!(refused.contains(r#""path":"/purge""#), "{refused}");
    assert!(!logged.contains("canary-of-a"), "{logged}");
}

/// At the log level `debug`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_logs_no_secrets_in_any_format() {
    for format in ["json", "pretty"] {
        let setup = Setup::new().shell_secret(SECRET).text("log.level", "debug").text("log.format", format);
        let rails = FakeRails::listen_tcp().await;
        rails.respond_with(script);
        let (config, output) = (setup.dir.file("railgate.toml"), setup.dir.file("output"));
        std::fs::write(&config, setup.config(&rails.address)).unwrap();
        let file = File::create(&output).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_railgate"))
            .arg("run")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(file.try_clone().unwrap())
            .stdout(file)
            .spawn()
            .unwrap();
        let address = Address::Unix(setup.socket());
        eventually("the gateway to listen", async || address.try_connect().await.ok()).await;
        let (shell, kas) = (shell_token(now() + 60), kas_token(&json!({ "jti": "canary" })));
        let mut requests = well_formed(&shell, &kas);
        requests.retain(|request| !request.target.ends_with("/allowed"));
        let ids = send_all(&address, requests).await;
        let pid = process.id().to_string();
        assert!(Command::new("kill").arg("-TERM").arg(pid).status().unwrap().success());
        let status =
            within_deadline("the process to end", tokio::task::spawn_blocking(move || process.wait()));
        let status = status.await.unwrap().unwrap();
        let text = std::fs::read_to_string(&output).unwrap();
        assert!(status.success(), "{text}");
        for id in ids {
            assert!(text.contains(&id), "{id} is not in\n{text}");
        }
        assert_contains_none("the log", &text, &forbidden(&[shell, kas]));
    }
}
