//! Secrets are replaced in their files while the gateway runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Value, json};

use super::client::{Address, Request, eventually};
use super::credentials::{KAS_HEADER, SECRET_HEADER, SHELL_HEADER, now, token};
use super::fake_rails::FakeRails;
use super::harness::{Harness, RunningGateway, Setup};
use super::log;

const OLD: &str = super::credentials::SHELL_SECRET;
const NEW: &str = "an0ther";

/// Replaces a file as careful programs do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn by_token(request: Request, secret: &str) -> Request {
    let claims = json!({ "iss": "gitlab-shell", "iat": now(), "exp": now() + 60 });
    request.header(SHELL_HEADER, &token(Algorithm::HS256, secret.as_bytes(), &claims, &json!({})))
}

fn by_secret(request: Request, secret: &str) -> Request {
    request.header(SECRET_HEADER, &STANDARD.encode(secret))
}

async fn status_of(address: &Address, request: &Request) -> u16 {
    address.send(request).await.status
}

/// Each client takes up the new secret as soon as it is in the file, as a GitLab Shell does that reads it for each
/// login, or goes on with the old one, as a Gitaly does until it is restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_secret_is_replaced_under_load() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 4_000;
    let harness = Setup::new().set("workers", 2).start().await;
    let file = harness.dir.file("shell_secret");
    let sent = Arc::<AtomicUsize>::default();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|nth| {
            let (address, sent, file) = (harness.gateway.tcp.clone(), Arc::clone(&sent), file.clone());
            tokio::spawn(async move {
                let mut connection = address.connect().await;
                let mut with_new = 0;
                while sent.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                    let secret =
                        if nth % 2 == 0 { fs::read_to_string(&file).unwrap() } else { OLD.to_owned() };
                    let secret = secret.trim();
                    with_new += usize::from(secret == NEW);
                    let request = if nth % 4 < 2 { Request::post("allowed") } else { Request::get("check") };
                    let request =
                        if nth < 4 { by_token(request, secret) } else { by_secret(request, secret) };
                    let response = connection.exchange(&request).await;
                    assert_eq!(response.status, 200, "{request}: {response}");
                }
                with_new
            })
        })
        .collect();
    eventually("half of the requests", async || (sent.load(Ordering::Relaxed) > REQUESTS / 2).then_some(()))
        .await;
    replace(&file, &format!("{NEW}\n"));
    let mut with_new = 0;
    for client in clients {
        with_new += client.await.unwrap();
    }
    assert!(with_new > 100, "{with_new}");
    for secret in [OLD, NEW] {
        assert_eq!(status_of(&harness.gateway.tcp, &by_token(Request::get("check"), secret)).await, 200);
    }
    let wrong = by_token(Request::get("check"), "neither");
    assert_eq!(status_of(&harness.gateway.tcp, &wrong).await, 401);
    println!("{REQUESTS} requests, {with_new} with the new secret, 0 failures");
}

#[tokio::test]
async fn the_old_secret_is_accepted_for_the_overlap_only() {
    let harness = Setup::new().text("auth.secret_overlap", "1s").start().await;
    let tcp = &harness.gateway.tcp;
    let kas_claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "iat": now(), "exp": now() + 600 });
    let kas = |secret: &[u8]| {
        let token = token(Algorithm::HS256, secret, &kas_claims, &json!({}));
        Request::get("kubernetes/agent_info")
            .header(KAS_HEADER, &token)
            .header("Authorization", "Bearer agent")
    };
    let (old_kas, new_kas) = (super::credentials::KAS_SECRET, [7; 32]);
    replace(&harness.dir.file("shell_secret"), NEW);
    replace(&harness.dir.file("kas_secret"), &STANDARD.encode(new_kas));
    // The first request with a new secret makes the gateway look at the files.
    assert_eq!(status_of(tcp, &by_secret(Request::get("check"), NEW)).await, 200);
    assert_ne!(status_of(tcp, &kas(&new_kas)).await, 401);
    for old in [by_secret(Request::get("check"), OLD), by_token(Request::get("check"), OLD), kas(&old_kas)] {
        eventually("the overlap to end", async || (status_of(tcp, &old).await == 401).then_some(())).await;
    }
    assert_eq!(status_of(tcp, &by_token(Request::get("check"), NEW)).await, 200);
    assert_ne!(status_of(tcp, &kas(&new_kas)).await, 401);
}

/// `secret` → `..data/secret`, `..data` → a directory: the volume of a Kubernetes secret exchanges the second link.
#[tokio::test]
async fn a_kubernetes_volume_is_followed_without_any_request() {
    let setup = Setup::new().text("auth.secret_overlap", "0s");
    let dir = setup.dir.file("volume");
    let version = |name: &str, secret: &str| {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("secret"), secret).unwrap();
    };
    version("..1", OLD);
    symlink("..1", dir.join("..data")).unwrap();
    symlink("..data/secret", dir.join("secret")).unwrap();
    let path = dir.join("secret").display().to_string();
    let harness = setup.text("auth.shell.secret_file", &path).start().await;
    let fingerprint = async || {
        let metrics = harness.metrics().await;
        let found =
            metrics.lines().find(|line| line.starts_with("railgate_secret_fingerprint{secret=\"shell\""));
        found.map(|line| line.split("fingerprint=\"").nth(1).unwrap()[..8].to_owned())
    };
    let before = eventually("a fingerprint", fingerprint).await;
    version("..2", NEW);
    symlink("..2", dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    fs::remove_dir_all(dir.join("..1")).unwrap();
    eventually("another fingerprint", async || fingerprint().await.filter(|now| *now != before)).await;
    harness.wait_for_metric("railgate_secret_replacements_total{secret=\"shell\"}", 1).await;
    let tcp = &harness.gateway.tcp;
    assert_eq!(status_of(tcp, &by_token(Request::get("check"), NEW)).await, 200);
    assert_eq!(status_of(tcp, &by_token(Request::get("check"), OLD)).await, 401, "without an overlap");
    let metrics = harness.metrics().await;
    assert!(!metrics.contains(NEW) && !metrics.contains(OLD));
}

#[tokio::test]
async fn a_file_that_is_half_written_keeps_the_old_secret() {
    let harness = Harness::new().await;
    let (tcp, file) = (&harness.gateway.tcp, harness.dir.file("kas_secret"));
    let usable = "railgate_secret_file_usable{secret=\"kas\"}";
    harness.wait_for_metric(usable, 1).await;
    let whole = STANDARD.encode([9; 32]);
    let claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "iat": now(), "exp": now() + 600 });
    let kas = |secret: &[u8]| {
        let token = token(Algorithm::HS256, secret, &claims, &json!({}));
        Request::get("kubernetes/agent_info")
            .header(KAS_HEADER, &token)
            .header("Authorization", "Bearer agent")
    };
    // In place, and by another file.
    for is_in_place in [true, false] {
        let write =
            |text: &str| if is_in_place { fs::write(&file, text).unwrap() } else { replace(&file, text) };
        let place = log::position();
        write(&whole[..20]);
        harness.wait_for_metric(usable, 0).await;
        let name = file.display().to_string();
        let warnings = || {
            let text = log::since(place);
            text.lines().filter(|line| line.contains("cannot be used") && line.contains(&name)).count()
        };
        assert_eq!(warnings(), 1);
        assert_ne!(status_of(tcp, &kas(&super::credentials::KAS_SECRET)).await, 401);
        // A wrong credential makes the gateway look again, and it says nothing new.
        assert_eq!(status_of(tcp, &kas(&[9; 32])).await, 401);
        assert_eq!(warnings(), 1);
        write(&STANDARD.encode(super::credentials::KAS_SECRET));
        harness.wait_for_metric(usable, 1).await;
    }
    replace(&file, &whole);
    assert_ne!(status_of(tcp, &kas(&[9; 32])).await, 401);
}

#[tokio::test]
async fn rails_gets_tokens_of_the_new_secret_at_once() {
    let harness = Setup::new().text("upstream.credential", "jwt").start().await;
    replace(&harness.dir.file("shell_secret"), NEW);
    let (response, arrived) = harness.send_forwarded(&by_secret(Request::post("allowed"), NEW)).await;
    assert_eq!(response.status, 200);
    let mut form = Validation::new(Algorithm::HS256);
    form.required_spec_claims.clear();
    let key = DecodingKey::from_secret(NEW.as_bytes());
    decode::<Value>(arrived.header(SHELL_HEADER).unwrap(), &key, &form).unwrap();
    // Also for one who has shown the old one.
    let (_, arrived) = harness.send_forwarded(&by_secret(Request::post("allowed"), OLD)).await;
    decode::<Value>(arrived.header(SHELL_HEADER).unwrap(), &key, &form).unwrap();
}

#[tokio::test]
async fn tokens_of_operators_and_hooks_are_replaced_too() {
    let setup = Setup::new();
    let rails = FakeRails::listen_tcp().await;
    let (admin, hooks) = (setup.dir.file("admin_token"), setup.dir.file("hooks_token"));
    fs::write(&admin, "0perator").unwrap();
    fs::write(&hooks, "h00k").unwrap();
    let setup = setup
        .text("admin.token_file", &admin.display().to_string())
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &hooks.display().to_string());
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    let inspect = |token: &str| {
        Request::new("POST", "/inspect").header("Authorization", &format!("Bearer {token}")).json("")
    };
    let hook = |token: &str| {
        let event = r#"{"event_name":"push"}"#;
        Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", token).json(event)
    };
    let hooks_at = gateway.hooks.as_ref().unwrap();
    assert_eq!(status_of(&gateway.admin, &inspect("0perator")).await, 200);
    assert_eq!(status_of(hooks_at, &hook("h00k")).await, 200);
    replace(&admin, "n3w");
    replace(&hooks, "n3w");
    eventually("the new token", async || {
        (status_of(&gateway.admin, &inspect("n3w")).await == 200).then_some(())
    })
    .await;
    assert_eq!(status_of(&gateway.admin, &inspect("0perator")).await, 401, "operators have no overlap");
    eventually("the new token", async || (status_of(hooks_at, &hook("n3w")).await == 200).then_some(()))
        .await;
    assert_eq!(status_of(hooks_at, &hook("h00k")).await, 200, "GitLab may still have the old one");
    assert_eq!(status_of(hooks_at, &hook("wrong")).await, 401);
}
