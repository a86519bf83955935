//! What is told of keys and users while Rails is away, and after it has forgotten them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::keys;
use super::stage::{Stage, Way, eventually};
use super::wire::{Answer, Ask};

fn look_ups() -> [Ask; 3] {
    let key = format!("authorized_keys?key={}", keys::of_root());
    [&key, "discover?key_id=1", "discover?username=root"].map(|target| Ask::get(target).with_secret())
}

fn is_stale(answer: &Answer) -> bool {
    answer.header("Cache-Status").is_some_and(|status| status.ends_with("; detail=stale_if_error"))
}

/// Puma is killed and started again in the middle of a load, with a connection for each request as
/// GitLab Shell makes them. Everybody who was known before is known all the time.
#[test]
fn rails_may_go_and_come_back_under_load() {
    for way in [Way::Tcp, Way::Unix] {
        let mut stage = Stage::new();
        let gateway = stage.gateway_of_short_memory(way, "stale_if_error = \"1h\"");
        for ask in &look_ups() {
            assert_eq!(gateway.tcp.send(ask).status, 200);
        }
        let (is_over, asked, from_memory) =
            (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for caller in 0..8 {
                let (gateway, is_over, asked, from_memory) = (&gateway, &is_over, &asked, &from_memory);
                scope.spawn(move || {
                    let peer = gateway.peers()[caller % 2];
                    while !is_over.load(Ordering::Relaxed) {
                        // Leaves Rails room to start.
                        thread::sleep(Duration::from_millis(5));
                        for ask in &look_ups() {
                            let answer = peer.send(ask);
                            if answer.status != 200 {
                                is_over.store(true, Ordering::Relaxed);
                            }
                            assert_eq!(answer.status, 200, "{ask}: {answer}");
                            asked.fetch_add(1, Ordering::Relaxed);
                            from_memory.fetch_add(usize::from(is_stale(&answer)), Ordering::Relaxed);
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
                stage.stop_rails();
                more(&from_memory);
                stage.restart_rails();
                more(&asked);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(gateway.log().contains("Rails fails;"));
        eventually("Rails to be asked again", || {
            gateway.tcp.send(&look_ups()[0]);
            gateway.log().contains("Rails answers again;")
        });
    }
}

/// Without a word from GitLab, a deleted key is known for as long as the configuration says.
#[test]
fn a_deleted_key_is_forgotten_with_the_next_answer_of_rails() {
    let stage = Stage::new();
    let gateway =
        stage.gateway_of_short_memory(Way::Tcp, "stale_while_revalidate = \"1h\"\nnegative_ttl = \"1h\"");
    let [key, ..] = look_ups();
    let known = gateway.tcp.send(&key);
    assert_eq!(known.status, 200, "{known}");
    stage.control("DELETE", &format!("/-/keys/{}", known.json()["id"]));
    eventually("the 404", || gateway.tcp.send(&key).status == 404);
    let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&key));
    assert_eq!((arrived, answer.status), (0, 404), "{answer}");
}

/// Nor does it stay known for that long if the gateway compares what it says with Rails.
#[test]
fn a_deleted_key_is_forgotten_once_a_comparison_has_shown_it() {
    let stage = Stage::new();
    let gateway = stage.gateway_that_compares(Way::Tcp);
    let found = |result: &str| {
        let metrics = String::from_utf8(gateway.admin.send(&Ask::new("GET", "/metrics")).body).unwrap();
        let series = format!(r#"railgate_shadow_checks_total{{route="authorized_keys",result="{result}"}} "#);
        let count = metrics.split_once(&series).and_then(|(_, rest)| rest.lines().next());
        count.unwrap_or_else(|| panic!("no {series}")).parse::<u64>().unwrap()
    };
    let [key, ..] = look_ups();
    let known = gateway.tcp.send(&key);
    assert_eq!(known.status, 200, "{known}");
    for _ in 0..3 {
        assert_eq!(gateway.tcp.send(&key).status, 200);
    }
    eventually("Rails to agree", || found("agreed") == 3);
    stage.control("DELETE", &format!("/-/keys/{}", known.json()["id"]));
    assert_eq!(gateway.tcp.send(&key).status, 200, "who asks does not wait for Rails");
    eventually("the 404", || gateway.tcp.send(&key).status == 404);
    eventually("the line", || gateway.log().contains("was not what Rails says"));
    // Whoever asked meanwhile may have been compared too.
    assert!(found("revoked") >= 1);
}

/// With a word to the gateway, it is forgotten at once.
#[test]
fn a_deleted_key_is_forgotten_when_an_operator_says_so() {
    let stage = Stage::new();
    let mut gateway = stage.gateway(Way::Unix);
    let [key, by_key, ..] = look_ups();
    let known = gateway.tcp.send(&key);
    assert_eq!((known.status, gateway.tcp.send(&by_key).status), (200, 200), "{known}");
    stage.control("DELETE", &format!("/-/keys/{}", known.json()["id"]));
    assert_eq!(gateway.tcp.send(&key).status, 200, "nobody has said a word");
    let line = format!("ssh-ed25519 {} root@example.com", keys::of_root());
    assert_eq!(gateway.operate("purge", &["--ssh-key", &line]), (true, "1 answers purged\n".to_owned()));
    assert_eq!(gateway.tcp.send(&key).status, 404);
    let (is_done, told) = gateway.operate("inspect", &["--ssh-key", &line]);
    assert!(
        is_done && told.contains("\"store\":\"negative\"") && told.ends_with("1 of 1 entries\n"),
        "{told}"
    );
    let (is_done, told) = gateway.operate("inspect", &[]);
    assert!(is_done && told.contains("\"authorized_keys\":{\"negative\":1,\"positive\":0}"), "{told}");
    assert_eq!(gateway.operate("purge", &["--all"]), (true, "2 answers purged\n".to_owned()));
    let (is_done, told) = gateway.operate("purge", &["--route", "allowed"]);
    assert!(!is_done && told.contains("said: 400 Bad Request: route has to be"), "{told}");
    gateway.terminate();
    gateway.wait_for_end();
    let (is_done, told) = gateway.operate("purge", &["--all"]);
    assert!(!is_done && told.contains("no answer of a gateway on admin.address"), "{told}");
}

/// With GitLab's own word, too.
#[test]
fn a_deleted_key_is_forgotten_when_gitlab_says_so() {
    let stage = Stage::new();
    let (gateway, hooks) = stage.gateway_with_hooks(Way::Tcp);
    let [key, ..] = look_ups();
    let known = gateway.tcp.send(&key);
    let id = known.json()["id"].clone();
    assert_eq!(known.status, 200, "{known}");
    stage.control("DELETE", &format!("/-/keys/{id}"));
    let line = format!("ssh-ed25519 {} root@example.com", keys::of_root());
    let event = json!({
        "event_name": "key_destroy", "created_at": "2014-08-18 18:45:16 UTC",
        "updated_at": "2014-08-18 18:45:16 UTC", "username": "root", "key": line, "id": id,
    });
    let hook =
        Ask::new("POST", "/hooks/gitlab").json(&event.to_string()).header("X-Gitlab-Event", "System Hook");
    assert_eq!(hooks.send(&hook).status, 401);
    assert_eq!(gateway.tcp.send(&key).status, 200, "GitLab has not said a word");
    assert_eq!(hooks.send(&hook.header("X-Gitlab-Token", "h00k")).status, 200);
    assert_eq!(gateway.tcp.send(&key).status, 404);
}
