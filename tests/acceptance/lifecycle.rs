//! Start and end of the gateway, and restarts of the Rails behind it.

use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::client::{Address, Request};
use super::credentials::KAS_SECRET;
use super::harness::{Harness, Transport, eventually};
use super::keys;

const HELD_FORM: &str = "key_id=1&project=outcome/held";

#[test]
fn sigterm_ends_the_gateway_gracefully() {
    let harness = Harness::new();
    let mut gateway = harness.gateway(Transport::Tcp);
    assert_eq!(gateway.tcp.send(&Request::get("check").with_secret()).status, 200);
    gateway.terminate();
    assert_eq!(gateway.wait_for_end().code(), Some(0), "{}", gateway.log());
}

#[test]
fn sigterm_does_not_wait_for_idle_connections() {
    let harness = Harness::new();
    let mut gateway = harness.gateway(Transport::Unix);
    let fresh = gateway.addresses().map(Address::connect);
    let kept = gateway.addresses().map(|address| {
        let mut connection = address.connect();
        assert_eq!(connection.send(&Request::get("check").with_secret()).status, 200);
        connection
    });
    gateway.terminate();
    assert_eq!(gateway.wait_for_end().code(), Some(0), "{}", gateway.log());
    drop((fresh, kept));
}

/// A push is running when the gateway is terminated.
#[test]
fn sigterm_waits_for_running_requests() {
    let harness = Harness::new();
    let mut gateway = harness.gateway(Transport::Tcp);
    thread::scope(|scope| {
        let push = scope.spawn(|| gateway.tcp.send(&Request::post("allowed").form(HELD_FORM).with_secret()));
        eventually("the push is at Rails", || {
            harness.counters().contains_key("POST /api/v4/internal/allowed")
        });
        gateway.terminate();
        let new = Request::new("GET", "/ready");
        eventually("the gateway not to be ready", || {
            gateway.admin.try_send(&new).map_or(true, |response| response.status != 200)
        });
        harness.control("POST", "/-/release");
        let response = push.join().unwrap();
        assert_eq!(response.status, 200, "{response}");
    });
    assert_eq!(gateway.wait_for_end().code(), Some(0), "{}", gateway.log());
}

/// Gitaly calls `pre_receive` while its `allowed` is still open; one must not wait for the other.
#[test]
fn a_callback_is_served_while_allowed_is_open() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Unix);
    thread::scope(|scope| {
        let push = scope.spawn(|| gateway.unix.send(&Request::post("allowed").form(HELD_FORM).with_secret()));
        eventually("the push is at Rails", || {
            harness.counters().contains_key("POST /api/v4/internal/allowed")
        });
        assert_eq!(gateway.unix.send(&Request::post("pre_receive").with_secret()).status, 200);
        harness.control("POST", "/-/release");
        assert_eq!(push.join().unwrap().status, 200);
    });
}

/// GitLab Shell shows `message` to the user, if it is a string.
#[test]
fn failures_without_rails_are_json() {
    for transport in [Transport::Tcp, Transport::Unix] {
        let mut harness = Harness::new();
        let gateway = harness.gateway(transport);
        let known = Request::get(&format!("authorized_keys?key={}", keys::of_root())).with_secret();
        assert_eq!(gateway.tcp.send(&known).status, 200);
        harness.kill_rails();
        for request in [
            Request::get("check").with_secret(),
            Request::get("discover?key_id=1").with_secret(),
            Request::post("allowed").form("key_id=1&project=gnuwget/wget2").with_secret(),
            Request::get("kubernetes/agent_info").with_kas_token(),
            Request::get("nothing"),
        ] {
            let response = gateway.tcp.send(&request);
            assert!(matches!(response.status, 502 | 503), "{request}: {response}");
            assert_eq!(response.header("Content-Type"), Some("application/json"), "{request}: {response}");
            assert!(response.json()["message"].is_string(), "{request}: {response}");
        }
        // Cached answers are still served, and still require a credential.
        assert_eq!(gateway.tcp.send(&known).status, 200);
        assert_eq!(gateway.tcp.send(&Request { headers: Vec::new(), ..known }).status, 401);
    }
}

/// The kept connections are closed then. Clients do not notice, and nothing is sent twice.
#[test]
fn kept_connections_survive_a_restart_of_rails() {
    for transport in [Transport::Tcp, Transport::Unix] {
        let mut harness = Harness::new();
        let gateway = harness.gateway(transport);
        let requests = [Request::post("pre_receive").with_secret(), Request::get("check/").with_secret()];
        for _ in 0..2 {
            for request in &requests {
                let (arrived, response) = harness.arrivals(|| gateway.tcp.send(request));
                assert_eq!((response.status, arrived), (200, 1), "{request}: {response}");
            }
            harness.restart_rails();
        }
    }
}

/// Rails rejects such a secret, so the gateway does not start with it.
#[test]
fn the_gateway_does_not_start_with_an_invalid_secret() {
    let short = STANDARD.encode(&KAS_SECRET[..31]);
    for (file, text) in [("kas_secret", short.as_str()), ("shell_secret", "\n")] {
        let harness = Harness::new();
        harness.write_secret(file, text);
        let mut gateway = harness.try_gateway(Transport::Tcp, r#"["jwt", "shared_secret"]"#);
        let status = gateway.wait_for_end();
        assert!(status.code().is_some_and(|code| code != 0), "{status:?}\n{}", gateway.log());
        assert!(gateway.log().contains(file), "does not name the file:\n{}", gateway.log());
    }
}

#[test]
fn the_unix_socket_has_the_configured_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let Address::Unix(path) = &gateway.unix else { panic!("{:?} is no unix socket", gateway.unix) };
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}
