//! `accept`: the callers of a listener.

use super::client::{Request, Response};
use super::fake_rails::Reply;
use super::harness::{Harness, Setup};

const REFUSED: &str = r#"railgate_auth_refusals_total{reason="not_accepted_here"}"#;

/// One of each kind of caller and endpoint.
fn requests() -> [(&'static str, Request); 8] {
    [
        ("shell", Request::get("check").with_secret()),
        ("shell", Request::get("check").with_shell_token()),
        ("shell", Request::post("allowed").with_secret().json("{}")),
        ("shell", Request::post("allowed").form("secret_token=s3cret")),
        ("kas", Request::get("kubernetes/agent_info").with_kas_token()),
        ("rails", Request::get("pages?host=a")),
        // Where Rails judges, too.
        ("shell", Request::get("pages?host=a").with_secret()),
        ("rails", Request::get("pages?host=a").header("gitlab-shared-secret", "d3Jvbmc=")),
    ]
}

async fn start(accept: &str) -> Harness {
    let harness = Setup::new().tcp(format!("accept = {accept}")).start().await;
    harness.rails.respond_always(Reply::json(200, "{}"));
    harness
}

#[tokio::test]
async fn a_listener_refuses_the_callers_that_it_does_not_accept() {
    for accepted in [&["shell"][..], &["kas"], &["rails"], &["shell", "kas"], &["rails", "kas", "shell"]] {
        let harness = start(&format!("{accepted:?}")).await;
        let mut refused = 0;
        for (caller, request) in requests() {
            let count = harness.rails.request_count();
            let response = harness.gateway.tcp.send(&request).await;
            if accepted.contains(&caller) {
                assert_eq!(response.status, 200, "{request} with {accepted:?}: {response}");
                continue;
            }
            refused += 1;
            assert_refused_as_unknown(&harness, &request, &response).await;
            assert_eq!(harness.rails.request_count(), count, "{request} with {accepted:?}");
            // The other listener takes all of them.
            assert_eq!(harness.gateway.unix.send(&request).await.status, 200, "{request}");
        }
        // A reason that never was has no series.
        if refused > 0 {
            harness.wait_for_metric(REFUSED, refused).await;
        }
    }
}

/// The answer does not say that the credential is right.
async fn assert_refused_as_unknown(harness: &Harness, request: &Request, response: &Response) {
    let mut unknown = request.clone();
    unknown.headers.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("gitlab-"));
    let expected = if request.target.contains("/pages") {
        // Without a credential, Rails would judge.
        harness.gateway.unix.send(&Request::get("check")).await
    } else {
        harness.gateway.unix.send(&unknown.body("")).await
    };
    let bare = |response: &Response| (response.status, response.text().to_owned());
    assert_eq!(bare(response), bare(&expected), "{request}");
}

#[tokio::test]
async fn a_wrong_credential_is_still_a_wrong_one() {
    let harness = start("['shell']").await;
    harness
        .gateway
        .tcp
        .send(&Request::get("check").header("gitlab-shared-secret", "d3Jvbmc="))
        .await
        .assert_unauthorized();
    harness.gateway.tcp.send(&Request::get("check")).await.assert_unauthorized();
    assert_eq!(harness.metric(REFUSED).await, None);
    assert_eq!(harness.metric(r#"railgate_auth_refusals_total{reason="wrong"}"#).await, Some(1));
}

/// A body that no credential could help is not awaited.
#[tokio::test]
async fn a_caller_of_another_kind_is_refused_before_its_body() {
    let harness = start("['kas']").await;
    let mut connection = harness.gateway.tcp.connect().await;
    let bytes = Request::post("allowed").form(&"a".repeat(50_000)).to_bytes("close");
    connection.write(&bytes[..1_000]).await;
    connection.read_response().await.assert_unauthorized();
}

#[test]
fn callers_that_do_not_exist_are_mistakes() {
    let setup = Setup::new();
    let base = setup.config(&super::client::Address::Tcp(([127, 0, 0, 1], 1).into()));
    for (line, expected) in [
        ("accept = ['jwt']", "unknown caller \"jwt\"; known are \"shell\", \"kas\" and \"rails\""),
        ("accept = []", "is empty, so every request would be refused; drop the key to accept all callers"),
        ("http2 = 'prior_knowledge'", "listen.http2: expected"),
    ] {
        let error =
            railgate::config::parse("test.toml", &format!("{base}\n{line}\n")).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}
