//! The credential that Rails gets instead of the client's.

use std::fs;

use serde_json::Value;

use super::client::Request;
use super::credentials::{KAS_HEADER, SECRET_HEADER, SHELL_HEADER, SHELL_SECRET, shell_token};
use super::fake_rails::ReceivedRequest;
use super::harness::{Harness, Setup};

/// The secret of this Rails, which is not the clients'.
const OF_RAILS: &str = "an0ther";
const OF_RAILS_IN_BASE64: &str = "YW4wdGhlcg==";

async fn harness_with_credential(credential: &str) -> Harness {
    let setup = Setup::new();
    let file = setup.dir.file("upstream_secret");
    fs::write(&file, format!("{OF_RAILS}\n")).unwrap();
    setup
        .text("upstream.credential", credential)
        .text("upstream.secret_file", &file.display().to_string())
        .start()
        .await
}

/// Every way in which a client may show the secret.
fn callers() -> Vec<Request> {
    let token = shell_token(&Value::Object(serde_json::Map::new()));
    vec![
        Request::post("allowed").with_secret().json("{}"),
        Request::post("allowed").header(SHELL_HEADER, &token).json("{}"),
        Request::post(&format!("allowed?action=a&secret_token={SHELL_SECRET}")).json("{}"),
        Request::post("allowed").form(&format!("secret_token={SHELL_SECRET}&action=a")),
        Request::get(&format!("lfs?secret_token={SHELL_SECRET}")),
        Request::get("check").form(&format!("secret_token={SHELL_SECRET}")),
    ]
}

fn assert_no_client_credential(arrived: &ReceivedRequest) {
    let said = format!("{}{}", arrived.head, String::from_utf8_lossy(&arrived.body));
    assert!(!said.contains(SHELL_SECRET) && !said.contains("secret_token"), "{said}");
}

#[tokio::test]
async fn rails_gets_a_token_signed_with_its_own_secret() {
    let harness = harness_with_credential("jwt").await;
    let mint = railgate::secret::ShellSecret::from_text(OF_RAILS.as_bytes()).unwrap();
    for request in callers() {
        let (response, arrived) = harness.send_forwarded(&request).await;
        assert_eq!(response.status, 200, "{request}: {response}");
        assert_no_client_credential(&arrived);
        assert_eq!(arrived.header(SECRET_HEADER), None);
        let token = arrived.header(SHELL_HEADER).expect("a token");
        let now = super::credentials::now();
        assert!(railgate::auth::ShellJwt::new(&mint).verify(token.as_bytes(), now).is_ok(), "{token}");
    }
}

#[tokio::test]
async fn rails_gets_its_own_shared_secret() {
    let harness = harness_with_credential("shared_secret").await;
    for request in callers() {
        let (response, arrived) = harness.send_forwarded(&request).await;
        assert_eq!(response.status, 200, "{request}: {response}");
        assert_no_client_credential(&arrived);
        assert_eq!(arrived.header(SHELL_HEADER), None);
        assert_eq!(arrived.header(SECRET_HEADER), Some(OF_RAILS_IN_BASE64));
    }
    let (_, arrived) = harness.send_forwarded(&callers()[2]).await;
    assert!(arrived.target.ends_with("/allowed?action=a"), "{}", arrived.target);
    let (_, arrived) = harness.send_forwarded(&callers()[3]).await;
    assert_eq!(arrived.body, b"action=a");
}

#[tokio::test]
async fn the_upstream_secret_does_not_authenticate_clients() {
    let harness = harness_with_credential("jwt").await;
    for request in [
        Request::post("allowed").json("{}"),
        Request::post("allowed").header(SECRET_HEADER, OF_RAILS_IN_BASE64).json("{}"),
        Request::get("check").header(SECRET_HEADER, "eHh4"),
    ] {
        let (response, asked) = harness.send_counting(&request).await;
        response.assert_unauthorized();
        assert_eq!(asked, 0);
    }
}

#[tokio::test]
async fn credentials_of_other_families_are_forwarded_unchanged() {
    let harness = harness_with_credential("jwt").await;
    let kas = Request::get("kubernetes/agent_info").with_kas_token();
    let (_, arrived) = harness.send_forwarded(&kas).await;
    assert!(arrived.header(KAS_HEADER).is_some() && arrived.header(SHELL_HEADER).is_none());
    let pages = Request::get("pages?host=x&secret_token=theirs").header(SECRET_HEADER, "dGhlaXJz");
    let (_, arrived) = harness.send_forwarded(&pages).await;
    assert_eq!((arrived.header(SECRET_HEADER), arrived.header(SHELL_HEADER)), (Some("dGhlaXJz"), None));
    assert!(arrived.target.contains("secret_token=theirs"));
}

/// GitLab Shell sends its credential also to endpoints with another access rule.
#[tokio::test]
async fn shell_credentials_are_translated_for_endpoints_left_to_rails() {
    let setup = Setup::new();
    let file = setup.dir.file("upstream_secret");
    fs::write(&file, OF_RAILS).unwrap();
    let harness = setup
        .text("upstream.credential", "jwt")
        .text("upstream.secret_file", &file.display().to_string())
        .set("upstream.forward_prefixes", r#"["/api/v4/geo/"]"#)
        .start()
        .await;
    let mint = railgate::secret::ShellSecret::from_text(OF_RAILS.as_bytes()).unwrap();
    let now = super::credentials::now();
    let good = shell_token(&Value::Object(serde_json::Map::new()));
    let old = shell_token(&serde_json::json!({ "exp": now - 300 }));
    for request in [
        Request::post("shellhorse/git_audit_event").json("{}"),
        Request::post("something/new").json("{}"),
        Request::get("observability/project/1/read"),
        Request::new("POST", "/api/v4/geo/proxy_git_ssh/info_refs").json("{}"),
    ] {
        for known in [request.clone().header(SHELL_HEADER, &good), request.clone().with_secret()] {
            let (response, arrived) = harness.send_forwarded(&known).await;
            assert_eq!(response.status, 200, "{known}: {response}");
            assert_no_client_credential(&arrived);
            assert_eq!(arrived.header(SECRET_HEADER), None);
            let token = arrived.header(SHELL_HEADER).expect("a token");
            assert!(railgate::auth::ShellJwt::new(&mint).verify(token.as_bytes(), now).is_ok(), "{known}");
        }
        // An invalid credential is left for Rails to refuse.
        for (name, shown) in [(SHELL_HEADER, old.as_str()), (SHELL_HEADER, "x"), (SECRET_HEADER, "eHh4")] {
            let (_, arrived) = harness.send_forwarded(&request.clone().header(name, shown)).await;
            assert_eq!(arrived.header(name), Some(shown), "{request}");
        }
        let (_, arrived) = harness.send_forwarded(&request).await;
        assert_eq!((arrived.header(SHELL_HEADER), arrived.header(SECRET_HEADER)), (None, None), "{request}");
    }
}

#[tokio::test]
async fn callers_with_secret_and_token_share_cache_entries() {
    let harness = harness_with_credential("jwt").await;
    let token = shell_token(&Value::Object(serde_json::Map::new()));
    let (response, asked) =
        harness.send_counting(&Request::get("discover?username=root").with_secret()).await;
    assert_eq!((response.status, asked), (200, 1));
    let (response, asked) =
        harness.send_counting(&Request::get("discover?username=root").header(SHELL_HEADER, &token)).await;
    assert!(response.is_hit() && asked == 0, "{response}");
}
