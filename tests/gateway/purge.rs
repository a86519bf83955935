//! Purging by operators.

use serde_json::{Value, json};

use super::client::{Address, Request, Response, eventually};
use super::demo::Process;
use super::fake_rails::{FakeRails, ROOT_KEY};
use super::harness::{Harness, Setup};
use super::log;

fn key() -> Request {
    Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

fn user() -> Request {
    Request::get("discover?key_id=1").with_secret()
}

async fn purge(harness: &Harness, what: &Value) -> Response {
    harness.gateway.admin.send(&Request::new("POST", "/purge").json(&what.to_string())).await
}

#[tokio::test]
async fn purged_entries_are_fetched_from_rails_again() {
    let harness = Harness::new().await;
    let line = format!("ssh-ed25519 {ROOT_KEY} a@somewhere");
    for (what, requests, purged) in [
        (json!({"ssh_key": line}), &[key()][..], 1),
        (json!({"key_id": 1}), &[key(), user()], 2),
        (json!({"user_id": 1}), &[key(), user()], 2),
        (json!({"username": "ROOT"}), &[key(), user()], 2),
        (json!({"route": "discover"}), &[user()], 1),
        (json!({"all": true}), &[key(), user()], 2),
        (json!({"user_id": 404}), &[], 0),
    ] {
        for request in [key(), user()] {
            harness.send(&request).await;
            assert!(harness.send(&request).await.is_hit());
        }
        let response = purge(&harness, &what).await;
        assert_eq!(
            (response.status, response.json()["purged"].as_u64()),
            (200, Some(purged)),
            "{what}: {response}"
        );
        for request in [key(), user()] {
            let is_meant = requests.iter().any(|meant| meant.target == request.target);
            assert_eq!(harness.send_counting(&request).await.1, usize::from(is_meant), "{what}: {request}");
        }
    }
    assert_eq!(harness.metric("railgate_cache_purged_total").await, Some(10));
}

#[tokio::test]
async fn a_soft_purge_leaves_stale_entries() {
    let harness = Harness::new().await;
    harness.send_forwarded(&key()).await;
    assert_eq!(purge(&harness, &json!({"all": true, "soft": true})).await.json()["purged"], 1);
    let response = harness.send(&key()).await;
    assert!(response.cache_status().ends_with("; detail=stale_while_revalidate"), "{response}");
    harness.wait_for_metric("railgate_cache_refreshes_total{result=\"stored\"}", 1).await;
    let (response, arrived) = harness.send_counting(&key()).await;
    assert_eq!((arrived, response.is_hit()), (0, true));
}

#[tokio::test]
async fn a_purge_requires_the_admin_token() {
    let setup = Setup::new();
    let file = setup.dir.file("admin_token");
    std::fs::write(&file, "t0ken\n").unwrap();
    let harness = setup.text("admin.token_file", &file.display().to_string()).start().await;
    harness.send_forwarded(&key()).await;
    let admin = &harness.gateway.admin;
    let request = || Request::new("POST", "/purge").json(r#"{"all":true}"#);
    for shown in ["", "t0ken", "Bearer", "Bearer t0ke", "Bearer t0kens", "Basic t0ken", "Bearer s3cret"] {
        admin.send(&request().header("Authorization", shown)).await.assert_failure(401);
    }
    admin.send(&request()).await.assert_failure(401);
    assert!(harness.send(&key()).await.is_hit());
    // Health and metrics need no token.
    assert_eq!(admin.send(&Request::new("GET", "/live")).await.status, 200);
    assert_eq!(admin.send(&request().header("Authorization", "Bearer t0ken")).await.json()["purged"], 1);
    assert!(!harness.send(&key()).await.is_hit());
}

#[tokio::test]
async fn invalid_purges_are_refused_with_a_reason() {
    let harness = Harness::new().await;
    harness.send_forwarded(&key()).await;
    let admin = &harness.gateway.admin;
    let post = || Request::new("POST", "/purge");
    let all = r#"{"all":true}"#;
    for (request, status) in [
        (post(), 415),
        (post().body(all), 415),
        (post().form("all=true"), 415),
        (post().header("Content-Type", "text/plain").body(all), 415),
        (post().json(""), 400),
        (post().json("[]"), 400),
        (post().json("{}"), 400),
        (post().json(r#"{"all":true,"key_id":1}"#), 400),
        (post().json(r#"{"key_id":"1"}"#), 400),
        (post().json(&format!(r#"{{"username":"{}"}}"#, "a".repeat(70_000))), 400),
        (post().json(all).header("Origin", "http://evil.example"), 403),
        (Request::new("GET", "/purge"), 405),
        (Request::new("DELETE", "/purge"), 405),
        (Request::new("POST", "/purge/"), 404),
    ] {
        admin.send(&request).await.assert_failure(status);
    }
    // There is no such endpoint for clients.
    assert_eq!(harness.send(&post().json(all)).await.status, 404);
    assert!(harness.send(&key()).await.is_hit());
}

#[tokio::test]
async fn purging_over_a_network_requires_a_configured_token() {
    let harness = Setup::new().text("admin.address", "0.0.0.0:0").start().await;
    let port = match &harness.gateway.admin {
        Address::Tcp(address) => address.port(),
        Address::Unix(path) => panic!("{}", path.display()),
    };
    let admin = Address::parse(&format!("127.0.0.1:{port}"));
    harness.send_forwarded(&key()).await;
    for page in ["/purge", "/inspect", "/servers"] {
        admin.send(&Request::new("POST", page).json(r#"{"all":true}"#)).await.assert_failure(403);
    }
    assert_eq!(admin.send(&Request::new("GET", "/live")).await.status, 200);
    assert!(harness.send(&key()).await.is_hit());
}

/// Who, what, and how it ended; without keys and names of users.
#[tokio::test]
async fn each_change_by_an_operator_is_one_line_of_the_audit_log() {
    let setup = Setup::new();
    let file = setup.dir.file("admin_token");
    std::fs::write(&file, "t0ken\n").unwrap();
    let harness = setup.text("admin.token_file", &file.display().to_string()).start().await;
    let server = match &harness.rails.address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => panic!("{}", path.display()),
    };
    let send = async |path: &str, body: &str, token: &str| {
        let logged = log::position();
        let request = Request::new("POST", path).json(body);
        let shown = format!("Bearer {token}");
        let status = harness.gateway.admin.send(&request.header("Authorization", &shown)).await.status;
        let lines = log::since(logged);
        // Other tests log at the same time, most of them without a token.
        let is_audit = |line: &&str| {
            line.contains(&format!("\"{path}\""))
                && (line.contains("was refused") || line.contains(r#""by":"token""#))
        };
        (status, lines.lines().filter(is_audit).map(str::to_owned).collect::<Vec<_>>())
    };
    let drain = format!(r#"{{"server":"{server}","drain":true}}"#);
    for (path, body, what, status) in [
        ("/purge", r#"{"key_id":7654321}"#, "key_id=7654321", 200),
        ("/purge", r#"{"username":"s3cret-name"}"#, "username", 200),
        ("/purge", r#"{"nonsense":"s3cret-name"}"#, "", 400),
        ("/servers", &*drain, &*format!("drain=true server={server}"), 200),
    ] {
        let (got, lines) = send(path, body, "t0ken").await;
        let of_this = |line: &&String| line.contains(&format!("\"what\":\"{what}\""));
        let lines: Vec<&String> = lines.iter().filter(of_this).collect();
        let [line] = lines[..] else { panic!("{body}: {lines:?}") };
        assert_eq!(got, status, "{body}");
        let failed = if status == 200 { "" } else { " failed" };
        for part in [
            format!(r#""message":"a change by an operator{failed}""#),
            r#""by":"token""#.to_owned(),
            format!(r#""status":{status}"#),
            r#""remote_ip":"127.0.0.1""#.to_owned(),
        ] {
            assert!(line.contains(&part), "{part}: {line}");
        }
        assert!(!line.contains("s3cret"), "{line}");
    }
    let (status, lines) = send("/purge", r#"{"all":true}"#, "wr0ng").await;
    assert!(status == 401 && lines.iter().any(|line| line.contains("an operator was refused")), "{lines:?}");
    let shown = send("/inspect", "", "t0ken").await;
    assert!(shown.0 == 200 && !shown.1.iter().any(|line| line.contains("a change")), "{shown:?}");
}

/// Also while the lines of requests, and even warnings, are left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_is_written_at_every_level() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let (token, socket) = (setup.dir.file("admin_token"), setup.dir.file("admin.sock"));
    std::fs::write(&token, "t0ken\n").unwrap();
    let (client, admin) = (Address::Unix(setup.socket()), Address::Unix(socket.clone()));
    let setup = setup
        .text("admin.address", &format!("unix:{}", socket.display()))
        .text("admin.token_file", &token.display().to_string())
        .text("log.level", "error");
    let config = setup.dir.file("railgate.toml");
    std::fs::write(&config, setup.config(&rails.address)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.arg("run").arg("--config").arg(&config);
    let mut gateway = Process::spawn_piped(command);
    eventually("the admin listener", || std::future::ready(socket.exists().then_some(()))).await;
    let purge = |token: &str| {
        let shown = format!("Bearer {token}");
        Request::new("POST", "/purge").json(r#"{"all":true}"#).header("Authorization", &shown)
    };
    assert_eq!(client.send(&key()).await.status, 200);
    assert_eq!(admin.send(&purge("t0ken")).await.status, 200);
    assert_eq!(admin.send(&purge("wr0ng")).await.status, 401);
    assert_eq!(admin.send(&Request::new("POST", "/purge").json("{}")).await.status, 401);
    gateway.wait_for_output("an operator was refused").await;
    gateway.signal("-TERM");
    assert_eq!(gateway.wait_for_end().await.code(), Some(0));
    let printed = gateway.printed();
    let lines: Vec<&str> = printed.lines().collect();
    let [change, refused, _] = lines[..] else { panic!("only the audit log: {printed}") };
    for part in [r#""message":"a change by an operator""#, r#""what":"all=true""#, r#""path":"/purge""#] {
        assert!(change.contains(part), "{change}");
    }
    assert!(refused.contains(r#""status":401"#) && refused.contains(r#""path":"/purge""#), "{refused}");
}

/// A page of another origin may read nothing, and no preflight lets it send JSON.
#[tokio::test]
async fn no_answer_of_the_admin_listener_has_a_cors_header() {
    let harness = Harness::new().await;
    for path in ["/", "/metrics", "/live", "/ready", "/purge", "/inspect", "/servers", "/elsewhere"] {
        for method in ["GET", "HEAD", "POST", "OPTIONS"] {
            let request = Request::new(method, path)
                .header("Origin", "http://localhost:3000")
                .header("Access-Control-Request-Method", "POST")
                .header("Access-Control-Request-Headers", "content-type, authorization");
            let response = harness.gateway.admin.send(&request).await;
            let is_cors =
                |(name, _): &(String, String)| name.to_ascii_lowercase().starts_with("access-control-");
            assert!(!response.headers.iter().any(is_cors), "{method} {path}: {response}");
        }
    }
}
