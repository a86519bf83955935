//! How long a secret that was replaced is accepted, if the configuration is read again meanwhile.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::client::{Address, Request};
use super::credentials::{SECRET_HEADER, SHELL_SECRET};
use super::fake_rails::FakeRails;
use super::harness::{RunningGateway, Setup};

async fn status_of(address: &Address, request: &Request) -> u16 {
    address.send(request).await.status
}

fn check(secret: &str) -> Request {
    Request::get("check").header(SECRET_HEADER, &STANDARD.encode(secret))
}

fn hook(token: &str) -> Request {
    let event = r#"{"event_name":"push"}"#;
    Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", token).json(event)
}

async fn reload(gateway: &RunningGateway) {
    assert_eq!(status_of(&gateway.admin, &Request::new("POST", "/reload").json("")).await, 200);
}

#[tokio::test]
async fn an_overlap_that_is_cut_short_ends_for_secrets_that_were_replaced_before() {
    let rails = FakeRails::listen_tcp().await;
    let (setup, file) = (Setup::new().text("auth.secret_overlap", "1h"), "railgate.toml");
    let file = setup.dir.file(file);
    fs::write(&file, setup.config(&rails.address)).unwrap();
    let gateway = RunningGateway::start_with_file(&file);
    fs::write(setup.dir.file("shell_secret"), "an0ther").unwrap();
    reload(&gateway).await;
    for secret in [SHELL_SECRET, "an0ther"] {
        assert_eq!(status_of(&gateway.tcp, &check(secret)).await, 200, "{secret}");
    }
    let setup = setup.text("auth.secret_overlap", "0s");
    fs::write(&file, setup.config(&rails.address)).unwrap();
    reload(&gateway).await;
    assert_eq!(status_of(&gateway.tcp, &check(SHELL_SECRET)).await, 401, "it has leaked, perhaps");
    assert_eq!(status_of(&gateway.tcp, &check("an0ther")).await, 200);
}

#[tokio::test]
async fn a_token_that_is_not_configured_any_more_has_no_predecessor_either() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let (token, signing) = (setup.dir.file("hook_token"), setup.dir.file("hook_signing"));
    fs::write(&token, "h00k").unwrap();
    fs::write(&signing, format!("whsec_{}", STANDARD.encode([7; 32]))).unwrap();
    let setup = setup
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.signing_token_file", &signing.display().to_string())
        .text("hooks.token_file", &token.display().to_string());
    let file = setup.dir.file("railgate.toml");
    fs::write(&file, setup.config(&rails.address)).unwrap();
    let gateway = RunningGateway::start_with_file(&file);
    let hooks = gateway.hooks.as_ref().unwrap();
    fs::write(&token, "n3w").unwrap();
    reload(&gateway).await;
    for token in ["h00k", "n3w"] {
        assert_eq!(status_of(hooks, &hook(token)).await, 200, "{token}");
    }
    let setup = setup.without("hooks.token_file");
    fs::write(&file, setup.config(&rails.address)).unwrap();
    reload(&gateway).await;
    for token in ["h00k", "n3w"] {
        assert_eq!(status_of(hooks, &hook(token)).await, 401, "{token}");
    }
}
