//! GitLab changed its credentials in 15.5; which of them the gateway accepts and sends is configured.

use super::client::Request;
use super::credentials::SHELL_SECRET;
use super::harness::{Harness, Transport};
use super::keys;

/// From 15.5 on, only the token is accepted.
#[test]
fn the_secret_is_refused_where_only_tokens_are_accepted() {
    let harness = Harness::with_era("jwt");
    let gateway = harness.gateway_accepting(Transport::Tcp, r#"["jwt"]"#);
    for request in [
        Request::get("check").with_secret(),
        Request::get(&format!("check?secret_token={SHELL_SECRET}")),
        Request::get("check").form(&format!("secret_token={SHELL_SECRET}")),
        Request::get("check"),
    ] {
        let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
        assert_eq!((response.status, arrived), (401, 0), "{request}: {response}");
        assert_eq!(harness.tcp.send(&request).body, response.body, "{request}");
    }
    assert_eq!(gateway.tcp.send(&Request::get("check").with_shell_token()).status, 200);
    assert_eq!(gateway.tcp.send(&Request::post("pre_receive").with_shell_token()).status, 200);
}

/// Up to 15.4, Rails does not know the token.
#[test]
fn tokens_are_refused_where_only_the_secret_is_accepted() {
    let harness = Harness::with_era("secret");
    let gateway = harness.gateway_accepting(Transport::Tcp, r#"["shared_secret"]"#);
    let (arrived, response) =
        harness.arrivals(|| gateway.tcp.send(&Request::get("check").with_shell_token()));
    assert_eq!((response.status, arrived), (401, 0), "{response}");
    assert_eq!(gateway.tcp.send(&Request::get("check").with_secret()).status, 200);
}

/// Whatever the release of Rails behind the gateway.
#[test]
fn kas_is_refused_with_the_text_of_newer_releases() {
    const NEWER: &[u8] = br#"{"message":"KAS JWT authentication invalid"}"#;
    for (era, text) in [("jwt", NEWER), ("secret", br#"{"message":"401 Unauthorized"}"#)] {
        let harness = Harness::with_era(era);
        let gateway = harness.gateway(Transport::Tcp);
        let request = Request::get("kubernetes/agent_info").with_agent_token();
        assert_eq!(harness.tcp.send(&request).body, text, "{era}");
        let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
        assert_eq!((response.status, arrived, response.body.as_slice()), (401, 0, NEWER), "{era}");
    }
}

/// Callers with the secret and with a token, through the same gateway, to a Rails that accepts only one of
/// them: all four pairs.
#[test]
fn old_and_new_callers_reach_old_and_new_releases() {
    for (era, wanted) in [("secret", "shared_secret"), ("jwt", "jwt")] {
        let harness = Harness::with_era(era);
        let gateway = harness.gateway_translating_to(Transport::Tcp, wanted);
        let requests = || {
            [
                Request::get("check"),
                Request::get(&format!("authorized_keys?key={}", keys::of_root())),
                Request::post("allowed").form("key_id=1&project=gnuwget/wget2"),
                Request::post("pre_receive").form("gl_repository=project-1"),
            ]
        };
        let callers = requests()
            .into_iter()
            .map(Request::with_secret)
            .chain(requests().into_iter().map(Request::with_shell_token));
        for request in callers {
            let response = gateway.tcp.send(&request);
            assert_eq!(response.status, 200, "{era}: {request}: {response}");
        }
        assert_eq!(gateway.tcp.send(&Request::get("check")).status, 401);
    }
}

/// Up to 15.4, a fingerprint among the parameters takes precedence over the key, even when it is empty.
#[test]
fn a_fingerprint_beside_the_key_is_left_to_rails() {
    let harness = Harness::with_era("secret");
    let gateway = harness.gateway_accepting(Transport::Tcp, r#"["shared_secret"]"#);
    let key = format!("authorized_keys?key={}", keys::of_root());
    assert_eq!(gateway.tcp.send(&Request::get(&key).with_secret()).status, 200);
    let request = Request::get(&format!("{key}&fingerprint=")).with_secret();
    assert_eq!(gateway.tcp.send(&request).status, 404);
    assert_eq!(gateway.tcp.send(&Request::get(&key).with_secret()).status, 200);
}

#[test]
fn the_doctor_reports_which_credentials_rails_accepts() {
    for (era, is_healthy, words) in [
        ("secret", true, "it accepts only the secret itself"),
        ("jwt", true, "it accepts only tokens"),
        ("today", true, "it accepts only tokens"),
        ("both", true, "it accepts tokens and the secret itself"),
    ] {
        let harness = Harness::with_era(era);
        let (was_healthy, output) = harness.gateway(Transport::Tcp).run_command("doctor", &[]);
        assert!(was_healthy == is_healthy && output.contains(words), "{era}: {output}");
        assert!(output.contains("as long as limits.target allows"), "{era}: {output}");
    }
}

/// As in deploy/README.md: to Rails itself, and through the gateway.
#[test]
fn signed_tokens_are_accepted_by_rails() {
    let harness = Harness::with_era("today");
    let gateway = harness.gateway_accepting(Transport::Tcp, r#"["jwt"]"#);
    for (caller, header, path) in [
        ("shell", "Gitlab-Shell-Api-Request", "/api/v4/internal/discover?username=root"),
        ("kas", "Gitlab-Kas-Api-Request", "/api/v4/internal/kubernetes/agent_info"),
    ] {
        let (is_signed, token) = gateway.run_command("token", &[caller]);
        assert!(is_signed, "{token}");
        let request = Request::new("GET", path).header(header, token.trim_end()).with_agent_token();
        let direct = harness.tcp.send(&request);
        assert_eq!(direct.status, 200, "{direct}");
        for address in gateway.addresses() {
            assert_eq!(address.send(&request).status, 200, "{caller}");
        }
    }
}

#[test]
fn the_doctor_reports_a_wrong_secret() {
    let harness = Harness::with_era("today");
    harness.write_secret("shell_secret", "another");
    let gateway = harness.try_gateway(Transport::Unix, r#"["jwt"]"#);
    let (was_healthy, output) = gateway.run_command("doctor", &[]);
    assert!(!was_healthy && output.contains("auth.shell.secret_file"), "{output}");
}
