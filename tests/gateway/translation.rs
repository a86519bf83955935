//! What Rails is shown in place of what the caller has shown.

use std::fs;

use serde_json::Value;

use super::client::Ask;
use super::credentials::{KAS_HEADER, SECRET_HEADER, SHELL_HEADER, SHELL_SECRET, shell_token};
use super::fake::Request;
use super::stage::{Setup, Stage};

/// What this Rails has is another secret.
const OF_RAILS: &str = "an0ther";
const OF_RAILS_IN_BASE64: &str = "YW4wdGhlcg==";

async fn wanting(credential: &str) -> Stage {
    let setup = Setup::new();
    let file = setup.dir.file("upstream_secret");
    fs::write(&file, format!("{OF_RAILS}\n")).unwrap();
    setup
        .text("upstream.credential", credential)
        .text("upstream.secret_file", &file.display().to_string())
        .start()
        .await
}

/// Every way in which a caller may show that it knows the secret.
fn callers() -> Vec<Ask> {
    let token = shell_token(&Value::Object(serde_json::Map::new()));
    vec![
        Ask::post("allowed").with_secret().json("{}"),
        Ask::post("allowed").header(SHELL_HEADER, &token).json("{}"),
        Ask::post(&format!("allowed?action=a&secret_token={SHELL_SECRET}")).json("{}"),
        Ask::post("allowed").form(&format!("secret_token={SHELL_SECRET}&action=a")),
        Ask::get(&format!("lfs?secret_token={SHELL_SECRET}")),
        Ask::get("check").form(&format!("secret_token={SHELL_SECRET}")),
    ]
}

fn assert_nothing_of_the_callers(arrived: &Request) {
    let said = format!("{}{}", arrived.head, String::from_utf8_lossy(&arrived.body));
    assert!(!said.contains(SHELL_SECRET) && !said.contains("secret_token"), "{said}");
}

#[tokio::test]
async fn rails_gets_a_token_of_its_own_secret() {
    let stage = wanting("jwt").await;
    let mint = railgate::secret::ShellSecret::from_text(OF_RAILS.as_bytes()).unwrap();
    for ask in callers() {
        let (answer, arrived) = stage.pass(&ask).await;
        assert_eq!(answer.status, 200, "{ask}: {answer}");
        assert_nothing_of_the_callers(&arrived);
        assert_eq!(arrived.header(SECRET_HEADER), None);
        let token = arrived.header(SHELL_HEADER).expect("a token");
        let now = super::credentials::now();
        assert!(railgate::auth::ShellJwt::new(&mint).verify(token.as_bytes(), now).is_ok(), "{token}");
    }
}

#[tokio::test]
async fn rails_gets_its_own_secret() {
    let stage = wanting("shared_secret").await;
    for ask in callers() {
        let (answer, arrived) = stage.pass(&ask).await;
        assert_eq!(answer.status, 200, "{ask}: {answer}");
        assert_nothing_of_the_callers(&arrived);
        assert_eq!(arrived.header(SHELL_HEADER), None);
        assert_eq!(arrived.header(SECRET_HEADER), Some(OF_RAILS_IN_BASE64));
    }
    let (_, arrived) = stage.pass(&callers()[2]).await;
    assert!(arrived.target.ends_with("/allowed?action=a"), "{}", arrived.target);
    let (_, arrived) = stage.pass(&callers()[3]).await;
    assert_eq!(arrived.body, b"action=a");
}

#[tokio::test]
async fn nobody_gets_in_by_it() {
    let stage = wanting("jwt").await;
    for ask in [
        Ask::post("allowed").json("{}"),
        Ask::post("allowed").header(SECRET_HEADER, OF_RAILS_IN_BASE64).json("{}"),
        Ask::get("check").header(SECRET_HEADER, "eHh4"),
    ] {
        let (answer, asked) = stage.send_counting(&ask).await;
        answer.assert_unauthorized();
        assert_eq!(asked, 0);
    }
}

#[tokio::test]
async fn others_are_shown_as_they_are() {
    let stage = wanting("jwt").await;
    let kas = Ask::get("kubernetes/agent_info").with_kas_token();
    let (_, arrived) = stage.pass(&kas).await;
    assert!(arrived.header(KAS_HEADER).is_some() && arrived.header(SHELL_HEADER).is_none());
    let pages = Ask::get("pages?host=x&secret_token=theirs").header(SECRET_HEADER, "dGhlaXJz");
    let (_, arrived) = stage.pass(&pages).await;
    assert_eq!((arrived.header(SECRET_HEADER), arrived.header(SHELL_HEADER)), (Some("dGhlaXJz"), None));
    assert!(arrived.target.contains("secret_token=theirs"));
}

/// A shell shows its credential to endpoints that Rails judges by another one too.
#[tokio::test]
async fn a_shell_is_known_where_rails_judges() {
    let setup = Setup::new();
    let file = setup.dir.file("upstream_secret");
    fs::write(&file, OF_RAILS).unwrap();
    let stage = setup
        .text("upstream.credential", "jwt")
        .text("upstream.secret_file", &file.display().to_string())
        .set("upstream.forward_prefixes", r#"["/api/v4/geo/"]"#)
        .start()
        .await;
    let mint = railgate::secret::ShellSecret::from_text(OF_RAILS.as_bytes()).unwrap();
    let now = super::credentials::now();
    let good = shell_token(&Value::Object(serde_json::Map::new()));
    let old = shell_token(&serde_json::json!({ "exp": now - 300 }));
    for ask in [
        Ask::post("shellhorse/git_audit_event").json("{}"),
        Ask::post("something/new").json("{}"),
        Ask::get("observability/project/1/read"),
        Ask::new("POST", "/api/v4/geo/proxy_git_ssh/info_refs").json("{}"),
    ] {
        for known in [ask.clone().header(SHELL_HEADER, &good), ask.clone().with_secret()] {
            let (answer, arrived) = stage.pass(&known).await;
            assert_eq!(answer.status, 200, "{known}: {answer}");
            assert_nothing_of_the_callers(&arrived);
            assert_eq!(arrived.header(SECRET_HEADER), None);
            let token = arrived.header(SHELL_HEADER).expect("a token");
            assert!(railgate::auth::ShellJwt::new(&mint).verify(token.as_bytes(), now).is_ok(), "{known}");
        }
        // What is not right is Rails' to refuse.
        for (name, shown) in [(SHELL_HEADER, old.as_str()), (SHELL_HEADER, "x"), (SECRET_HEADER, "eHh4")] {
            let (_, arrived) = stage.pass(&ask.clone().header(name, shown)).await;
            assert_eq!(arrived.header(name), Some(shown), "{ask}");
        }
        let (_, arrived) = stage.pass(&ask).await;
        assert_eq!((arrived.header(SHELL_HEADER), arrived.header(SECRET_HEADER)), (None, None), "{ask}");
    }
}

/// What is kept of Rails is the same for both kinds of callers.
#[tokio::test]
async fn both_kinds_of_callers_share_what_is_kept() {
    let stage = wanting("jwt").await;
    let token = shell_token(&Value::Object(serde_json::Map::new()));
    let (answer, asked) = stage.send_counting(&Ask::get("discover?username=root").with_secret()).await;
    assert_eq!((answer.status, asked), (200, 1));
    let (answer, asked) =
        stage.send_counting(&Ask::get("discover?username=root").header(SHELL_HEADER, &token)).await;
    assert!(answer.is_hit() && asked == 0, "{answer}");
}
