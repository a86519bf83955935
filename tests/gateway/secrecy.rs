//! No credential, no SSH key and no body in any log line, series or failure, whatever is sent.

use std::fs::File;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::Algorithm;
use serde_json::json;

use super::client::{Ask, Peer, eventually, soon};
use super::credentials::{KAS_HEADER, SECRET_HEADER, SHELL_HEADER, kas_token, now, token};
use super::fake::{Rails, Reply, gitlab};
use super::log;
use super::stage::{Setup, Stage};

/// As Rails generates it: 32 hex digits.
const SECRET: &str = "c0ffeec0ffeec0ffeec0ffeec0ffeec0";
/// The middle of each of these keys, which no other part of the test says.
const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGCanaryCanaryCanaryCanaryCanaryCanaryCanaryCan";
const IN_ANSWERS: &str = "glpat-canary-in-an-answer";

/// What must be nowhere.
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
    // Of a token, each part alone says too much.
    forbidden.extend(tokens.iter().flat_map(|token| token.split('.').skip(1)).map(str::to_owned));
    forbidden
}

fn shell_token(exp: i64) -> String {
    let claims = json!({ "iss": "gitlab-shell", "iat": now(), "exp": exp });
    token(Algorithm::HS256, SECRET.as_bytes(), &claims, &json!({}))
}

/// Well-formed requests with every credential in every place where one belongs.
fn well_formed(shell: &str, kas: &str) -> Vec<Ask> {
    let encoded = STANDARD.encode(SECRET);
    let key = format!("authorized_keys?key={KEY}");
    vec![
        Ask::get(&key).header(SECRET_HEADER, &encoded),
        Ask::get(&key).header(SECRET_HEADER, &encoded),
        Ask::get(&key).header(SHELL_HEADER, shell),
        Ask::get(&key),
        Ask::get(&key).header(SECRET_HEADER, SECRET),
        Ask::get(&format!("{key}&secret_token={SECRET}")),
        Ask::get(&format!("{key};secret_token={SECRET}")),
        Ask::get(&format!("{key}&secret%5ftoken={SECRET}")),
        Ask::get(&format!("{key}&secret_token[]={SECRET}")),
        Ask::get(&format!("{key}&secret_token={SECRET}%zz")),
        Ask::get(&format!("{key}&key_id=1;secret_token={SECRET}")),
        Ask::get(&format!("authorized_keys?fingerprint={KEY}&key={KEY}")).header(SECRET_HEADER, &encoded),
        Ask::get(&format!("authorized_keys.json?key={KEY}")).header(SECRET_HEADER, &encoded),
        Ask::get(&format!("authorized_keys/?key=ssh-ed25519+{KEY}+me")).header(SECRET_HEADER, &encoded),
        Ask::get(&format!("authorized_certs?key={KEY}")).header(SHELL_HEADER, shell),
        Ask::get(&format!("check?secret_token={SECRET}")),
        Ask::get(&format!("check?secret_token={SECRET}x")),
        Ask::get("check").form(&format!("secret_token={SECRET}")),
        Ask::post("allowed").form(&format!("secret_token={SECRET}&changes=canary-in-a-body")),
        Ask::post("allowed").json(&format!(r#"{{"secret_token":"{SECRET}","changes":"canary-in-a-body"}}"#)),
        Ask::post("allowed").json(&format!(r#"{{"secret_token":["{SECRET}"]}}"#)),
        Ask::post("allowed").json(&format!(r#"{{"secret_token":"{SECRET}", malformed"#)),
        Ask::post("allowed").header(SHELL_HEADER, &shell_token(now() - 600)).body("canary-in-a-body"),
        Ask::post("allowed").header(SHELL_HEADER, &format!("Bearer {shell}")),
        Ask::post("personal_access_token").header(SHELL_HEADER, shell).form("name=a&scopes[]=api"),
        Ask::get("kubernetes/agent_info")
            .header(KAS_HEADER, kas)
            .header("Authorization", "Bearer agent-token"),
        Ask::get("kubernetes/agent_info").header("Authorization", "Bearer agent-token"),
        Ask::get("check").header("Authorization", &format!("Basic {}", STANDARD.encode("u:canary-password"))),
        Ask::get("pages").header("Gitlab-Pages-Api-Request", shell),
        Ask::get(&format!("new/thing?token={SECRET}&private_token=agent-token")),
        Ask::new("GET", &format!("/elsewhere?secret_token={SECRET}")),
        Ask::get("check").header("Gitlab_Shared_Secret", &encoded),
        Ask::get("check").header("Cookie", "a=canary-password"),
    ]
}

/// Bytes that are refused before anybody looks for a credential in them.
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
async fn send_all(peer: &Peer, asks: Vec<Ask>) -> Vec<String> {
    let mut ids = Vec::new();
    for ask in asks {
        let answer = peer.send(&ask).await;
        ids.push(answer.header("x-request-id").unwrap().to_owned());
    }
    for bytes in malformed() {
        let mut wire = peer.connect().await;
        wire.write(bytes.as_bytes()).await;
        wire.finish().await;
        wire.rest().await;
    }
    ids
}

/// A Rails whose answers hold secrets too, and which sometimes breaks off in their middle.
fn script(request: &super::fake::Request) -> Reply {
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

fn assert_clean(what: &str, text: &str, forbidden: &[String]) {
    for line in text.lines() {
        for secret in forbidden {
            assert!(!line.contains(secret.as_str()), "{secret:?} is in {what}: {line}");
        }
    }
}

async fn logged(stage: &Stage, ids: &[String], since: usize) -> String {
    // At every level: also where a request went well.
    eventually("a line for each request", async || {
        let log = log::since(since);
        ids.iter().all(|id| log.contains(id.as_str())).then_some(())
    })
    .await;
    stage.reaches("railgate_requests_in_flight", 0).await;
    stage.reaches("railgate_client_connections", 0).await;
    log::since(since)
}

#[tokio::test]
async fn nothing_secret_is_logged_counted_or_told() {
    let stage = Setup::new().shell_secret(SECRET).start().await;
    let begin = log::length();
    stage.rails.answer(script);
    let (shell, kas) = (shell_token(now() + 60), kas_token(&json!({ "jti": "canary" })));
    let mut asks = well_formed(&shell, &kas);
    asks.retain(|ask| !ask.target.ends_with("/allowed"));
    let ids = send_all(&stage.gateway.tcp, asks).await;
    let forbidden = forbidden(&[shell.clone(), kas.clone()]);
    let lines = logged(&stage, &ids, begin).await;
    assert_clean("the log", &lines, &forbidden);
    assert_clean("a series", &stage.metrics().await, &forbidden);

    // Those whose answer breaks off.
    let mut ids = Vec::new();
    for ask in well_formed(&shell, &kas).into_iter().filter(|ask| ask.target.ends_with("/allowed")) {
        ids.push(format!("breaks-off-{}", ids.len()));
        let mut wire = stage.gateway.unix.connect().await;
        wire.write(&ask.header("X-Request-Id", &ids[ids.len() - 1]).to_bytes("close")).await;
        wire.rest().await;
    }
    let lines = logged(&stage, &ids, begin).await;
    assert!(ids.len() > 3 && lines.contains("upstream_broke_off"));
    assert_clean("the log", &lines, &forbidden);

    // And those that never reach Rails, or do and are not answered.
    for reply in
        [Reply::hang_up(), Reply::bytes(format!("HTTP/1.1 200 {SECRET}\r\n{SECRET}\r\n\r\n")).then_close()]
    {
        stage.rails.always(reply);
        for ask in [
            Ask::get(&format!("authorized_keys?key={KEY}AAAA&secret_token={SECRET}")),
            Ask::post(&format!("lfs_authenticate?secret_token={SECRET}")).body("canary-in-a-body"),
        ] {
            let answer = stage.send(&ask).await;
            answer.assert_failure(502);
            assert_clean("a failure", &answer.to_string(), &forbidden);
        }
    }
    assert_clean("the log", &logged(&stage, &ids, begin).await, &forbidden);
    assert_clean("a series", &stage.metrics().await, &forbidden);
}

/// A line says what is needed to find a request again, and shows what is harmless.
#[tokio::test]
async fn a_line_tells_what_happened() {
    let stage = Stage::new().await;
    let (id, begin) = ("a-line-tells-what-happened", log::length());
    let ask = Ask::get("discover?key_id=7&username=root&x=y")
        .with_secret()
        .header("X-Request-Id", id)
        .header("User-Agent", "Me/1");
    stage.send(&ask).await;
    let line = eventually("the line", async || {
        let lines = log::since(begin);
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

/// Credentials in places where none belongs, put there by a slip: they are no less secret.
#[tokio::test]
async fn what_is_in_the_wrong_place_is_not_logged_either() {
    let secret = "facadefacadefacadefacadefacade00";
    let key = "AAAAC3NzaC1lZDI1NTE5AAAAIGMisplacedMisplacedMisplacedMisplacedMisplaced";
    let stage = Setup::new().shell_secret(secret).start().await;
    let begin = log::length();
    let mut ids = Vec::new();
    let as_a_method = stage.send(&Ask::new(secret, "/api/v4/internal/check")).await;
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
        let answer = stage.send(&Ask::get(&target)).await;
        ids.push(answer.header("x-request-id").unwrap().to_owned());
    }
    let lines = logged(&stage, &ids, begin).await;
    let leaks = lines.lines().filter(|line| line.contains(secret) || line.contains("MisplacedMisplaced"));
    let leaks: Vec<&str> = leaks.collect();
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}

/// The binary, with its own formats, at its most talkative.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_logs_nothing_secret_in_any_format() {
    for format in ["json", "pretty"] {
        let setup = Setup::new().shell_secret(SECRET).text("log.level", "debug").text("log.format", format);
        let rails = Rails::on_tcp().await;
        rails.answer(script);
        let (config, output) = (setup.dir.file("railgate.toml"), setup.dir.file("output"));
        std::fs::write(&config, setup.config(&rails.peer)).unwrap();
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
        let peer = Peer::Unix(setup.socket());
        eventually("the gateway to listen", async || peer.try_connect().await.ok()).await;
        let (shell, kas) = (shell_token(now() + 60), kas_token(&json!({ "jti": "canary" })));
        let mut asks = well_formed(&shell, &kas);
        asks.retain(|ask| !ask.target.ends_with("/allowed"));
        let ids = send_all(&peer, asks).await;
        let pid = process.id().to_string();
        assert!(Command::new("kill").arg("-TERM").arg(pid).status().unwrap().success());
        let status = soon("the process to end", tokio::task::spawn_blocking(move || process.wait()));
        let status = status.await.unwrap().unwrap();
        let text = std::fs::read_to_string(&output).unwrap();
        assert!(status.success(), "{text}");
        for id in ids {
            assert!(text.contains(&id), "{id} is not in\n{text}");
        }
        assert_clean("the log", &text, &forbidden(&[shell, kas]));
    }
}
