//! Cached keys and users while Rails is away, and after they were deleted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::client::{Request, Response};
use super::harness::{Harness, Transport, eventually};
use super::keys;

fn lookups() -> [Request; 3] {
    let key = format!("authorized_keys?key={}", keys::of_root());
    [&key, "discover?key_id=1", "discover?username=root"].map(|target| Request::get(target).with_secret())
}

fn is_stale(response: &Response) -> bool {
    response.header("Cache-Status").is_some_and(|status| status.ends_with("; detail=stale_if_error"))
}

/// Puma is killed and started again under load, with a connection for each request, as GitLab Shell makes
/// them.
#[test]
fn known_keys_and_users_stay_known_while_rails_is_killed_and_restarted() {
    for transport in [Transport::Tcp, Transport::Unix] {
        let mut harness = Harness::new();
        let gateway = harness.gateway_with_short_ttl(transport, "stale_if_error = \"1h\"");
        for request in &lookups() {
            assert_eq!(gateway.tcp.send(request).status, 200);
        }
        let (is_over, asked, from_memory) =
            (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for caller in 0..8 {
                let (gateway, is_over, asked, from_memory) = (&gateway, &is_over, &asked, &from_memory);
                scope.spawn(move || {
                    let address = gateway.addresses()[caller % 2];
                    while !is_over.load(Ordering::Relaxed) {
                        // Leaves Rails CPU time to start.
                        thread::sleep(Duration::from_millis(5));
                        for request in &lookups() {
                            let response = address.send(request);
                            if response.status != 200 {
                                is_over.store(true, Ordering::Relaxed);
                            }
                            assert_eq!(response.status, 200, "{request}: {response}");
                            asked.fetch_add(1, Ordering::Relaxed);
                            from_memory.fetch_add(usize::from(is_stale(&response)), Ordering::Relaxed);
                        }
                    }
                });
            }
            let more = |count: &AtomicUsize| {
                let before = count.load(Ordering::Relaxed);
                let is_enough =
                    || count.load(Ordering::Relaxed) > before + 300 || is_over.load(Ordering::Relaxed);
                eventually("more answers", is_enough);
            };
            for _ in 0..2 {
                more(&asked);
                harness.kill_rails();
                more(&from_memory);
                harness.restart_rails();
                more(&asked);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(gateway.log().contains("Rails fails;"));
        eventually("Rails to be asked again", || {
            gateway.tcp.send(&lookups()[0]);
            gateway.log().contains("Rails answers again;")
        });
    }
}

/// Without purges and hooks, a deleted key is served for as long as the configuration allows.
#[test]
fn a_deleted_key_is_dropped_at_the_next_refresh() {
    let harness = Harness::new();
    let gateway = harness
        .gateway_with_short_ttl(Transport::Tcp, "stale_while_revalidate = \"1h\"\nnegative_ttl = \"1h\"");
    let [key, ..] = lookups();
    let known = gateway.tcp.send(&key);
    assert_eq!(known.status, 200, "{known}");
    harness.control("DELETE", &format!("/-/keys/{}", known.json()["id"]));
    eventually("the 404", || gateway.tcp.send(&key).status == 404);
    let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&key));
    assert_eq!((arrived, response.status), (0, 404), "{response}");
}

#[test]
fn a_deleted_key_is_dropped_after_a_shadow_check() {
    let harness = Harness::new();
    let gateway = harness.gateway_with_shadow_checks(Transport::Tcp);
    let found = |result: &str| {
        let metrics = String::from_utf8(gateway.admin.send(&Request::new("GET", "/metrics")).body).unwrap();
        let series = format!(r#"railgate_shadow_checks_total{{route="authorized_keys",result="{result}"}} "#);
        let count = metrics.split_once(&series).and_then(|(_, rest)| rest.lines().next());
        count.unwrap_or_else(|| panic!("no {series}")).parse::<u64>().unwrap()
    };
    let [key, ..] = lookups();
    let known = gateway.tcp.send(&key);
    assert_eq!(known.status, 200, "{known}");
    for _ in 0..3 {
        assert_eq!(gateway.tcp.send(&key).status, 200);
    }
    eventually("Rails to agree", || found("agreed") == 3);
    harness.control("DELETE", &format!("/-/keys/{}", known.json()["id"]));
    assert_eq!(gateway.tcp.send(&key).status, 200, "the caller does not wait for Rails");
    eventually("the 404", || gateway.tcp.send(&key).status == 404);
    eventually("the line", || gateway.log().contains("was not what Rails says"));
    // Hits meanwhile may have been compared too.
    assert!(found("revoked") >= 1);
}

#[test]
fn a_deleted_key_is_dropped_by_a_purge() {
    let harness = Harness::new();
    let mut gateway = harness.gateway(Transport::Unix);
    let [key, by_key, ..] = lookups();
    let known = gateway.tcp.send(&key);
    assert_eq!((known.status, gateway.tcp.send(&by_key).status), (200, 200), "{known}");
    harness.control("DELETE", &format!("/-/keys/{}", known.json()["id"]));
    assert_eq!(gateway.tcp.send(&key).status, 200, "nothing has been purged");
    let line = format!("ssh-ed25519 {} root@example.com", keys::of_root());
    assert_eq!(gateway.run_command("purge", &["--ssh-key", &line]), (true, "1 answers purged\n".to_owned()));
    assert_eq!(gateway.tcp.send(&key).status, 404);
    let (is_done, output) = gateway.run_command("inspect", &["--ssh-key", &line]);
    assert!(
        is_done && output.contains("\"store\":\"negative\"") && output.ends_with("1 of 1 entries\n"),
        "{output}"
    );
    let (is_done, output) = gateway.run_command("inspect", &[]);
    assert!(is_done && output.contains("\"authorized_keys\":{\"negative\":1,\"positive\":0}"), "{output}");
    assert_eq!(gateway.run_command("purge", &["--all"]), (true, "2 answers purged\n".to_owned()));
    let (is_done, output) = gateway.run_command("purge", &["--route", "allowed"]);
    assert!(!is_done && output.contains("answered: 400 Bad Request: route has to be"), "{output}");
    gateway.terminate();
    gateway.wait_for_end();
    let (is_done, output) = gateway.run_command("purge", &["--all"]);
    assert!(!is_done && output.contains("no response from a gateway on admin.address"), "{output}");
}

#[test]
fn a_deleted_key_is_dropped_by_a_system_hook() {
    let harness = Harness::new();
    let (gateway, hooks) = harness.gateway_with_hooks(Transport::Tcp);
    let [key, ..] = lookups();
    let known = gateway.tcp.send(&key);
    let id = known.json()["id"].clone();
    assert_eq!(known.status, 200, "{known}");
    harness.control("DELETE", &format!("/-/keys/{id}"));
    let line = format!("ssh-ed25519 {} root@example.com", keys::of_root());
    let event = json!({
        "event_name": "key_destroy", "created_at": "2014-08-18 18:45:16 UTC",
        "updated_at": "2014-08-18 18:45:16 UTC", "username": "root", "key": line, "id": id,
    });
    let hook = Request::new("POST", "/hooks/gitlab")
        .json(&event.to_string())
        .header("X-Gitlab-Event", "System Hook");
    assert_eq!(hooks.send(&hook).status, 401);
    assert_eq!(gateway.tcp.send(&key).status, 200, "no hook has been accepted");
    assert_eq!(hooks.send(&hook.header("X-Gitlab-Token", "h00k")).status, 200);
    assert_eq!(gateway.tcp.send(&key).status, 404);
}
