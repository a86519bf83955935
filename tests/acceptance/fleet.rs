//! Gateways of a fleet: what GitLab tells one of them holds at all, whatever happens to Valkey meanwhile.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Address, Request};
use super::harness::{Gateway, Harness, Transport, eventually};
use super::keys;
use super::valkey::{Proxy, Valkey, ValkeySetup};

/// A gateway of the fleet, and where GitLab sends its events.
struct Member {
    gateway: Gateway,
    hooks: Address,
}

impl Member {
    /// One that hears the others by the Valkey at this port, and has these keys in `[fleet]`.
    fn start(harness: &Harness, port: u16, keys: &str) -> Self {
        let fleet = format!("[fleet]\nurl = \"redis://127.0.0.1:{port}\"\n{keys}");
        let (gateway, hooks) = harness.gateway_with_hooks_and(Transport::Tcp, &fleet);
        let member = Self { gateway, hooks };
        member.wait_until_following();
        member
    }

    fn wait_until_following(&self) {
        eventually("the fleet to be heard", || self.gateway.run_command("fleet", &[]).0);
    }

    /// Asks for the key that is deleted.
    fn ask(&self) -> u16 {
        self.status(&keys::of_root())
    }

    /// Asks for a key that stays.
    fn ask_for_other(&self) -> u16 {
        self.status(&keys::of_deployment())
    }

    fn status(&self, key: &str) -> u16 {
        let request = Request::get(&format!("authorized_keys?key={}", keys::escaped(key)));
        self.gateway.tcp.send(&request.with_shell_token()).status
    }

    /// GitLab tells that the key is deleted.
    fn hear_of_deletion(&self) -> String {
        let key = format!("ssh-ed25519 {} root@example.com", keys::of_root());
        let event = json!({ "event_name": "key_destroy", "username": "root", "key": key, "id": 1 });
        let hook = Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Event", "System Hook");
        let hook = hook.header("X-Gitlab-Token", "h00k").json(&event.to_string());
        let response = self.hooks.send(&hook);
        let answer: Value = serde_json::from_slice(&response.body).unwrap();
        answer["message"].as_str().unwrap_or_else(|| panic!("{response}")).to_owned()
    }

    fn wait_for(&self, series: &str, value: &str) {
        let line = format!("{series} {value}");
        eventually(&line, || {
            let metrics = self.gateway.admin.send(&Request::new("GET", "/metrics"));
            String::from_utf8(metrics.body).unwrap().lines().any(|found| found == line)
        });
    }
}

/// Has all of them keep both answers.
fn warm(harness: &Harness, members: &[Member; 3]) {
    let ask = || members.each_ref().map(|member| [member.ask(), member.ask_for_other()]);
    assert_eq!(harness.arrivals(ask), (6, [[200; 2]; 3]));
    assert_eq!(harness.arrivals(ask), (0, [[200; 2]; 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_is_unknown_to_all_once_gitlab_has_told_one() {
    let (harness, valkey) = (Harness::new(), Valkey::start().await);
    let members = [(); 3].map(|()| Member::start(&harness, valkey.port, ""));
    warm(&harness, &members);
    harness.control("DELETE", "/-/keys/1");
    assert_eq!(members[0].hear_of_deletion(), "ok, and told to the fleet");
    for other in &members[1..] {
        other.wait_for("railgate_fleet_heard_total", "1");
    }
    assert_eq!(members.each_ref().map(Member::ask), [404; 3]);
    let others = harness.arrivals(|| members.each_ref().map(Member::ask_for_other));
    assert_eq!(others, (0, [200; 3]), "the rest is left alone");
}

/// The server that took the event dies before its replica has it, and so does the connection of a gateway that has not
/// heard it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_is_unknown_to_all_though_a_fail_over_has_lost_the_event() {
    let (harness, mut master) = (Harness::new(), Valkey::start().await);
    let replica = ValkeySetup::default().replica_of(&master).start().await;
    replica.wait_for_info("master_link_status", "up").await;
    let proxies = [Proxy::start(&master).await, Proxy::start(&master).await];
    let [way, way_of_third] = &proxies;
    let start = |way: &Proxy| Member::start(&harness, way.port, "alone_ttl = \"1h\"");
    let members = [start(way), start(way), start(way_of_third)];
    warm(&harness, &members);
    way_of_third.stall();
    replica.freeze();
    // Else its kernel would still take it.
    master.command(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    harness.control("DELETE", "/-/keys/1");
    assert_eq!(members[0].hear_of_deletion(), "ok, and told to the fleet");
    members[1].wait_for("railgate_fleet_heard_total", "1");
    assert_eq!(members.each_ref().map(Member::ask), [404, 404, 200], "the third could not hear it");
    master.kill();
    replica.thaw();
    replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    for proxy in &proxies {
        proxy.lead_to(&replica);
        proxy.cut();
        proxy.resume();
    }
    for member in &members {
        member.wait_for("railgate_fleet_doubts_total{reason=\"server\"}", "1");
        member.wait_until_following();
    }
    assert_eq!(members.each_ref().map(Member::ask), [404; 3]);
    members[0].wait_for("railgate_fleet_again_total", "1");
    members[2].wait_for("railgate_fleet_heard_total", "1");
    assert_eq!(members.each_ref().map(Member::ask_for_other), [200; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_cut_off_gives_an_old_answer_for_a_short_time_only() {
    let (harness, valkey) = (Harness::new(), Valkey::start().await);
    let proxy = Proxy::start(&valkey).await;
    let start =
        |port| Member::start(&harness, port, "poll = \"200ms\"\nalone_after = \"1s\"\nalone_ttl = \"1s\"");
    let members = [start(valkey.port), start(valkey.port), start(proxy.port)];
    warm(&harness, &members);
    harness.control("DELETE", "/-/keys/1");
    proxy.stall();
    let begin = Instant::now();
    assert_eq!(members[0].hear_of_deletion(), "ok, and told to the fleet");
    members[1].wait_for("railgate_fleet_heard_total", "1");
    assert_eq!([members[0].ask(), members[1].ask()], [404; 2]);
    // Two seconds, where nothing keeps the machine from it. Kept answers would live for an hour.
    eventually("the key to be unknown", || members[2].ask() == 404);
    assert!(begin.elapsed() < Duration::from_mins(1), "{:?}", begin.elapsed());
    assert_eq!(members[2].ask_for_other(), 200);
    proxy.cut();
    proxy.resume();
    members[2].wait_until_following();
    members[2].wait_for("railgate_fleet_heard_total", "1");
    assert_eq!(members[2].ask(), 404);
    members[2].ask_for_other();
    let kept = harness.arrivals(|| members[2].ask_for_other());
    assert_eq!(kept, (0, 200), "answers are kept as before");
}
