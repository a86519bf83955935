//! Beginning and end: of the gateway, and of the Rails behind it.

use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::credentials::KAS_SECRET;
use super::keys;
use super::stage::{Stage, Way, eventually};
use super::wire::{Ask, Peer};

const HELD: &str = "key_id=1&project=outcome/held";

#[test]
fn sigterm_ends_the_gateway_in_order() {
    let stage = Stage::new();
    let mut gateway = stage.gateway(Way::Tcp);
    assert_eq!(gateway.tcp.send(&Ask::get("check").with_secret()).status, 200);
    gateway.terminate();
    assert_eq!(gateway.wait_for_end().code(), Some(0), "{}", gateway.log());
}

/// Connections that nobody is using right now are no reason to stay.
#[test]
fn sigterm_does_not_wait_for_idle_connections() {
    let stage = Stage::new();
    let mut gateway = stage.gateway(Way::Unix);
    let fresh = gateway.peers().map(Peer::connect);
    let kept = gateway.peers().map(|peer| {
        let mut connection = peer.connect();
        assert_eq!(connection.send(&Ask::get("check").with_secret()).status, 200);
        connection
    });
    gateway.terminate();
    assert_eq!(gateway.wait_for_end().code(), Some(0), "{}", gateway.log());
    drop((fresh, kept));
}

/// Somebody's push is on its way when the gateway is told to end. It is seen through.
#[test]
fn sigterm_waits_for_what_is_under_way() {
    let stage = Stage::new();
    let mut gateway = stage.gateway(Way::Tcp);
    thread::scope(|scope| {
        let push = scope.spawn(|| gateway.tcp.send(&Ask::post("allowed").form(HELD).with_secret()));
        eventually("the push is at Rails", || stage.counters().contains_key("POST /api/v4/internal/allowed"));
        gateway.terminate();
        let new = Ask::new("GET", "/ready");
        eventually("nobody else is sent here", || {
            gateway.admin.try_send(&new).map_or(true, |answer| answer.status != 200)
        });
        stage.control("POST", "/-/release");
        let answer = push.join().unwrap();
        assert_eq!(answer.status, 200, "{answer}");
    });
    assert_eq!(gateway.wait_for_end().code(), Some(0), "{}", gateway.log());
}

/// Gitaly asks `pre_receive` while its `allowed` is still open; the one must not wait for the other.
#[test]
fn a_call_back_is_served_while_allowed_is_open() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Unix);
    thread::scope(|scope| {
        let push = scope.spawn(|| gateway.unix.send(&Ask::post("allowed").form(HELD).with_secret()));
        eventually("the push is at Rails", || stage.counters().contains_key("POST /api/v4/internal/allowed"));
        assert_eq!(gateway.unix.send(&Ask::post("pre_receive").with_secret()).status, 200);
        stage.control("POST", "/-/release");
        assert_eq!(push.join().unwrap().status, 200);
    });
}

/// GitLab Shell shows `message` to the user, if it is a text.
#[test]
fn without_rails_the_gateway_says_so_in_json() {
    for way in [Way::Tcp, Way::Unix] {
        let mut stage = Stage::new();
        let gateway = stage.gateway(way);
        let known = Ask::get(&format!("authorized_keys?key={}", keys::of_root())).with_secret();
        assert_eq!(gateway.tcp.send(&known).status, 200);
        stage.stop_rails();
        for ask in [
            Ask::get("check").with_secret(),
            Ask::get("discover?key_id=1").with_secret(),
            Ask::post("allowed").form("key_id=1&project=gnuwget/wget2").with_secret(),
            Ask::get("kubernetes/agent_info").with_kas_token(),
            Ask::get("nothing"),
        ] {
            let answer = gateway.tcp.send(&ask);
            assert!(matches!(answer.status, 502 | 503), "{ask}: {answer}");
            assert_eq!(answer.header("Content-Type"), Some("application/json"), "{ask}: {answer}");
            assert!(answer.json()["message"].is_string(), "{ask}: {answer}");
        }
        // What is known is still told, and still not to strangers.
        assert_eq!(gateway.tcp.send(&known).status, 200);
        assert_eq!(gateway.tcp.send(&Ask { headers: Vec::new(), ..known }).status, 401);
    }
}

/// The connections that the gateway kept are dead then. Nobody shall notice, and nothing is sent twice.
#[test]
fn rails_may_be_restarted() {
    for way in [Way::Tcp, Way::Unix] {
        let mut stage = Stage::new();
        let gateway = stage.gateway(way);
        let asks = [Ask::post("pre_receive").with_secret(), Ask::get("check/").with_secret()];
        for _ in 0..2 {
            for ask in &asks {
                let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(ask));
                assert_eq!((answer.status, arrived), (200, 1), "{ask}: {answer}");
            }
            stage.restart_rails();
        }
    }
}

/// Rails refuses to work with such a secret, so the gateway refuses to start with it.
#[test]
fn a_secret_that_is_none_keeps_the_gateway_from_starting() {
    let short = STANDARD.encode(&KAS_SECRET[..31]);
    for (file, text) in [("kas_secret", short.as_str()), ("shell_secret", "\n")] {
        let stage = Stage::new();
        stage.write_secret(file, text);
        let mut gateway = stage.try_gateway(Way::Tcp, r#"["jwt", "shared_secret"]"#);
        let status = gateway.wait_for_end();
        assert!(status.code().is_some_and(|code| code != 0), "{status:?}\n{}", gateway.log());
        assert!(gateway.log().contains(file), "does not name the file:\n{}", gateway.log());
    }
}

/// The socket in the file system is for those who may open it.
#[test]
fn the_unix_socket_has_the_mode_that_was_asked_for() {
    use std::os::unix::fs::PermissionsExt as _;
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let Peer::Unix(path) = &gateway.unix else { panic!("{:?} is no unix socket", gateway.unix) };
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}
