//! GitLab changed its mind about credentials at 15.5; a gateway can be told which of them to take.

use super::credentials::SHELL_SECRET;
use super::keys;
use super::stage::{Stage, Way};
use super::wire::Ask;

/// From 15.5, only the signed token counts.
#[test]
fn a_gateway_for_tokens_refuses_the_plain_secret() {
    let stage = Stage::of_era("jwt");
    let gateway = stage.gateway_that_accepts(Way::Tcp, r#"["jwt"]"#);
    for ask in [
        Ask::get("check").with_secret(),
        Ask::get(&format!("check?secret_token={SHELL_SECRET}")),
        Ask::get("check").form(&format!("secret_token={SHELL_SECRET}")),
        Ask::get("check"),
    ] {
        let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
        assert_eq!((answer.status, arrived), (401, 0), "{ask}: {answer}");
        assert_eq!(stage.tcp.send(&ask).body, answer.body, "{ask}");
    }
    assert_eq!(gateway.tcp.send(&Ask::get("check").with_shell_token()).status, 200);
    assert_eq!(gateway.tcp.send(&Ask::post("pre_receive").with_shell_token()).status, 200);
}

/// Up to 15.4, Rails does not know the token.
#[test]
fn a_gateway_for_the_secret_refuses_tokens() {
    let stage = Stage::of_era("secret");
    let gateway = stage.gateway_that_accepts(Way::Tcp, r#"["shared_secret"]"#);
    let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&Ask::get("check").with_shell_token()));
    assert_eq!((answer.status, arrived), (401, 0), "{answer}");
    assert_eq!(gateway.tcp.send(&Ask::get("check").with_secret()).status, 200);
}

/// kas is refused in the words of today's Rails, whatever Rails is behind the gateway.
#[test]
fn a_refused_kas_is_told_what_newer_rails_say() {
    const NEWER: &[u8] = br#"{"message":"KAS JWT authentication invalid"}"#;
    for (era, said) in [("jwt", NEWER), ("secret", br#"{"message":"401 Unauthorized"}"#)] {
        let stage = Stage::of_era(era);
        let gateway = stage.gateway(Way::Tcp);
        let ask = Ask::get("kubernetes/agent_info").with_agent_token();
        assert_eq!(stage.tcp.send(&ask).body, said, "{era}");
        let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
        assert_eq!((answer.status, arrived, answer.body.as_slice()), (401, 0, NEWER), "{era}");
    }
}

/// An old caller (the plain secret) and a new one (a token), through the same gateway, to a Rails that
/// takes only the one or the other: all four pairs.
#[test]
fn old_and_new_callers_reach_old_and_new_rails() {
    for (era, wanted) in [("secret", "shared_secret"), ("jwt", "jwt")] {
        let stage = Stage::of_era(era);
        let gateway = stage.gateway_that_translates(Way::Tcp, wanted);
        let asks = || {
            [
                Ask::get("check"),
                Ask::get(&format!("authorized_keys?key={}", keys::of_root())),
                Ask::post("allowed").form("key_id=1&project=gnuwget/wget2"),
                Ask::post("pre_receive").form("gl_repository=project-1"),
            ]
        };
        let callers =
            asks().into_iter().map(Ask::with_secret).chain(asks().into_iter().map(Ask::with_shell_token));
        for ask in callers {
            let answer = gateway.tcp.send(&ask);
            assert_eq!(answer.status, 200, "{era}: {ask}: {answer}");
        }
        assert_eq!(gateway.tcp.send(&Ask::get("check")).status, 401);
    }
}

/// Up to 15.4, a fingerprint among the parameters beats the key, even when it is empty.
#[test]
fn a_fingerprint_beside_the_key_is_left_to_rails() {
    let stage = Stage::of_era("secret");
    let gateway = stage.gateway_that_accepts(Way::Tcp, r#"["shared_secret"]"#);
    let key = format!("authorized_keys?key={}", keys::of_root());
    assert_eq!(gateway.tcp.send(&Ask::get(&key).with_secret()).status, 200);
    let ask = Ask::get(&format!("{key}&fingerprint=")).with_secret();
    assert_eq!(gateway.tcp.send(&ask).status, 404);
    assert_eq!(gateway.tcp.send(&Ask::get(&key).with_secret()).status, 200);
}

/// The doctor finds out which Rails there is, by asking it.
#[test]
fn the_doctor_tells_which_credential_rails_takes() {
    for (era, is_well, words) in [
        ("secret", true, "it takes the secret itself only"),
        ("jwt", true, "it takes tokens only"),
        ("today", true, "it takes tokens only"),
        ("both", true, "it takes tokens and the secret itself"),
    ] {
        let stage = Stage::of_era(era);
        let (was_well, told) = stage.gateway(Way::Tcp).operate("doctor", &[]);
        assert!(was_well == is_well && told.contains(words), "{era}: {told}");
        assert!(told.contains("as long as limits.target lets pass"), "{era}: {told}");
    }
}

/// A secret that is not that of Rails.
#[test]
fn the_doctor_knows_another_secret() {
    let stage = Stage::of_era("today");
    stage.write_secret("shell_secret", "another");
    let gateway = stage.try_gateway(Way::Unix, r#"["jwt"]"#);
    let (was_well, told) = gateway.operate("doctor", &[]);
    assert!(!was_well && told.contains("auth.shell.secret_file"), "{told}");
}
