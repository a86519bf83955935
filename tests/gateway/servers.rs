//! Several servers of Rails: who is asked, and who is not.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Answer, Ask, Peer, eventually};
use super::fake::{Manners, Rails, Reply, Request, gitlab};
use super::stage::{Running, Setup};

const READINESS: &str = "/-/readiness";

/// A gateway in front of several servers.
struct Stage {
    rails: Vec<Rails>,
    gateway: Running,
    setup: Setup,
}

impl Stage {
    /// So many, on TCP and unix sockets in turns, the last one perhaps a backup.
    async fn new(count: usize, setup: Setup, has_backup: bool) -> Self {
        let mut rails = Vec::new();
        for nth in 0..count {
            rails.push(if nth % 2 == 0 {
                Rails::on_tcp().await
            } else {
                Rails::on_unix(&setup.dir.file(&format!("rails-{nth}.sock")))
            });
        }
        let mut servers = String::new();
        for (nth, rails) in rails.iter().enumerate() {
            let (url, is_backup) = (rails.peer.url(), has_backup && nth + 1 == count);
            write!(servers, "[[upstream.server]]\nurl = \"{url}\"\nbackup = {is_backup}\n").unwrap();
        }
        let mut settings = setup.settings_of(&servers);
        // Who was slow once, on a busy machine, is asked again soon.
        settings.upstream.load_memory = Duration::from_millis(1);
        let gateway = Running::start(settings);
        Self { rails, gateway, setup }
    }

    async fn send(&self, ask: &Ask) -> Answer {
        self.gateway.tcp.send(ask).await
    }

    async fn all_well(&self, count: usize, ask: &Ask) {
        for _ in 0..count {
            let answer = self.send(ask).await;
            assert_eq!(answer.status, 200, "{answer}");
        }
    }

    /// How many requests each has got, health checks aside.
    fn counts(&self) -> Vec<usize> {
        let is_asked = |request: &&Request| request.target != READINESS;
        self.rails.iter().map(|rails| rails.requests().iter().filter(is_asked).count()).collect()
    }

    /// As logs and metrics call a server.
    fn name(&self, nth: usize) -> String {
        match &self.rails[nth].peer {
            Peer::Tcp(address) => address.to_string(),
            Peer::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    async fn is(&self, nth: usize, state: &str) {
        let series =
            format!(r#"railgate_upstream_server_state{{server="{}",state="{state}"}}"#, self.name(nth));
        self.gateway.reaches(&series, 1).await;
    }

    async fn operate(&self, body: &Value) -> Answer {
        let ask = Ask::new("POST", "/servers");
        let ask = if body.is_null() { ask.json("") } else { ask.json(&body.to_string()) };
        self.gateway.admin.send(&ask).await
    }
}

/// No health checks, and ejected for an hour.
fn setup() -> Setup {
    Setup::new()
        .text("upstream.health.interval", "0s")
        .text("upstream.ejection.pause", "1h")
        .text("upstream.ejection.longest_pause", "1h")
        .text("upstream.slow_start", "0s")
}

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

fn user(id: usize) -> Ask {
    Ask::get(&format!("discover?key_id={id}")).with_secret()
}

#[tokio::test]
async fn all_servers_have_their_share() {
    let stage = Stage::new(3, setup(), false).await;
    stage.all_well(300, &allowed()).await;
    let counts = stage.counts();
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), 300);
    // Each is called by its own name.
    let Peer::Tcp(address) = stage.rails[0].peer else { panic!() };
    assert_eq!(stage.rails[0].last().header("host"), Some(address.to_string().as_str()));
    assert_eq!(stage.rails[1].last().header("host"), Some("localhost"));
    for (nth, count) in counts.into_iter().enumerate() {
        let series =
            format!(r#"railgate_upstream_server_duration_seconds_count{{server="{}"}}"#, stage.name(nth));
        stage.gateway.reaches(&series, count).await;
    }
}

/// It cannot be connected to, so nothing is lost by asking another.
#[tokio::test]
async fn a_server_that_is_gone_costs_nobody_an_answer() {
    let mut stage = Stage::new(3, setup().set("upstream.max_idle", 0), false).await;
    stage.all_well(50, &allowed()).await;
    drop(stage.rails.remove(2));
    let before = stage.counts();
    stage.all_well(100, &allowed()).await;
    let after = stage.counts();
    assert_eq!(after.iter().sum::<usize>(), before.iter().sum::<usize>() + 100, "each was asked once");
    // After five attempts it is let alone.
    stage.gateway.reaches(r#"railgate_upstream_ejections_total{reason="unreachable"}"#, 1).await;
    stage.gateway.reaches(r#"railgate_upstream_resent_total{reason="unreachable"}"#, 5).await;
    stage.all_well(100, &allowed()).await;
    assert_eq!(
        stage.gateway.metric(r#"railgate_upstream_resent_total{reason="unreachable"}"#).await,
        Some(5)
    );
}

/// What a server on this machine has not read goes to another, whatever it is; what it has read does
/// not, but for reads.
#[tokio::test]
async fn what_one_server_has_not_read_is_sent_to_another() {
    let stage = Stage::new(2, setup().set("upstream.resend_percent", 100), false).await;
    stage.rails[0].behave(Manners::Deaf, gitlab);
    stage.all_well(30, &allowed()).await;
    assert_eq!(stage.counts(), [0, 30]);
    stage.is(0, "ejected").await;

    let stage = Stage::new(2, setup().set("upstream.resend_percent", 100), false).await;
    stage.rails[0].always(Reply::hang_up());
    for id in 0..30 {
        let answer = stage.send(&user(id)).await;
        assert!(answer.status < 500, "{answer}");
    }
    let failed = stage.counts()[0];
    assert!((1..=5).contains(&failed), "{failed}");
    stage.gateway.reaches(r#"railgate_upstream_resent_total{reason="read"}"#, failed).await;

    let stage = Stage::new(2, setup(), false).await;
    stage.rails[0].always(Reply::hang_up());
    let mut lost = 0;
    for _ in 0..30 {
        lost += usize::from(stage.send(&allowed()).await.status == 502);
    }
    assert_eq!((lost, stage.counts()[0]), (5, 5), "never twice, and no more once it is known to fail");
}

/// A proxy whose Rails is away says so by its status. Rails that misses Gitaly is not away.
#[tokio::test]
async fn a_server_with_nobody_behind_it_is_ejected() {
    let html = "Content-Type: text/html\r\n";
    for (reply, is_ejected) in [
        (Reply::new(502, html, "no"), true),
        (Reply::new(504, html, "no"), true),
        (Reply::new(503, html, "no"), true),
        (Reply::json(503, r#"{"status":false}"#), false),
        (Reply::json(500, "{}"), false),
        (Reply::json(404, "{}"), false),
    ] {
        let stage = Stage::new(2, setup(), false).await;
        stage.rails[0].always(reply.clone());
        for _ in 0..60 {
            stage.send(&allowed()).await;
        }
        let count = stage.counts()[0];
        assert_eq!(count == 5, is_ejected, "{reply:?}: {count}");
        stage.is(0, if is_ejected { "ejected" } else { "up" }).await;
    }
}

#[tokio::test]
async fn one_request_tries_an_ejected_server_after_its_pause() {
    let setup = setup().text("upstream.ejection.pause", "1ms").set("upstream.ejection.failures", 1);
    let stage = Stage::new(2, setup, false).await;
    stage.rails[0].always(Reply::new(502, "", "no"));
    let found = eventually("several tries", || async {
        stage.send(&allowed()).await;
        (stage.counts()[0] > 3).then_some(())
    });
    found.await;
    stage.rails[0].recover();
    let is_back = eventually("it is back", || async {
        stage.send(&allowed()).await;
        let series = format!(r#"railgate_upstream_server_state{{server="{}",state="up"}}"#, stage.name(0));
        stage.gateway.metric(&series).await.filter(|is| *is == 1)
    });
    is_back.await;
    let before = stage.counts()[0];
    stage.all_well(50, &allowed()).await;
    assert!(stage.counts()[0] > before + 5);
}

#[tokio::test]
async fn a_backup_is_asked_while_nobody_else_can_be() {
    let setup = setup().text("upstream.ejection.pause", "1ms").set("upstream.max_idle", 0);
    let mut stage = Stage::new(3, setup, true).await;
    stage.all_well(50, &allowed()).await;
    assert_eq!(stage.counts()[2], 0);
    let one = stage.rails.remove(0);
    stage.all_well(50, &allowed()).await;
    assert_eq!(stage.counts()[1], 0);
    let other = stage.rails.remove(0);
    let (Peer::Tcp(address), Peer::Unix(path)) = (one.peer.clone(), other.peer.clone()) else { panic!() };
    drop((one, other));
    stage.all_well(50, &allowed()).await;
    assert_eq!(stage.counts(), [50]);
    // And no longer than that.
    std::fs::remove_file(&path).unwrap();
    let back = Rails::on_unix(&path);
    let _also = Rails::on(tokio::net::TcpListener::bind(address).await.unwrap());
    let is_asked = eventually("the others are asked again", || async {
        stage.send(&allowed()).await;
        (back.count() > 10).then_some(())
    });
    is_asked.await;
    let before = stage.counts();
    stage.all_well(20, &allowed()).await;
    assert_eq!(stage.counts(), before);
}

/// Whoever connects may ask for these, and make them fail.
#[tokio::test]
async fn nobody_without_a_credential_can_eject_a_server() {
    let setup = setup().text("upstream.response_timeout", "50ms");
    let stage = Stage::new(2, setup, false).await;
    for reply in [Reply::new(502, "", "no"), Reply::hang_up(), Reply::silence()] {
        for rails in &stage.rails {
            rails.always(reply.clone());
        }
        for _ in 0..15 {
            assert!(stage.send(&Ask::get("pages/status")).await.status >= 500);
        }
    }
    stage.is(0, "up").await;
    stage.is(1, "up").await;
    assert_eq!(stage.gateway.metric("railgate_upstream_holds_total").await, Some(0));
}

/// As if GitLab did not let the gateway ask: 404 for all. Nothing else is wrong with them.
#[tokio::test]
async fn if_all_fail_their_health_checks_requests_alone_decide() {
    let setup = Setup::new()
        .text("upstream.health.interval", "5ms")
        .text("upstream.ejection.pause", "1h")
        .text("upstream.ejection.longest_pause", "1h")
        .text("upstream.hold", "10m");
    let stage = Stage::new(3, setup, true).await;
    let unknown = |request: &Request| {
        if request.target == READINESS { Reply::json(404, "{}") } else { gitlab(request) }
    };
    for rails in &stage.rails {
        rails.answer(unknown);
    }
    for nth in 0..3 {
        stage.is(nth, "unhealthy").await;
    }
    let before = stage.counts();
    stage.all_well(60, &allowed()).await;
    let counts = stage.counts();
    assert_eq!(counts[2], before[2], "the backup is not needed");
    assert!(counts[0] > before[0] + 5 && counts[1] > before[1] + 5, "{counts:?}");
    stage.rails[0].answer(|request| {
        if request.target == READINESS { Reply::json(404, "{}") } else { Reply::new(502, "", "no") }
    });
    for _ in 0..60 {
        stage.send(&allowed()).await;
    }
    assert_eq!(stage.counts()[0], counts[0] + 5, "then it is ejected");
    assert_eq!(stage.gateway.metric("railgate_upstream_holds_total").await, Some(0), "others are there");
}

/// Only who takes part is better than the same again.
#[tokio::test]
async fn a_read_does_not_go_to_a_server_that_is_out_in_place_of_one_that_is_well() {
    let setup = Setup::new().text("upstream.health.interval", "5ms").set("upstream.resend_percent", 100);
    let stage = Stage::new(2, setup, false).await;
    stage.rails[1].always(Reply::json(500, "{}"));
    let hangs_up = std::sync::atomic::AtomicBool::new(true);
    stage.rails[0].answer(move |request| match request.target.as_str() {
        READINESS => Reply::json(200, "{}"),
        _ if hangs_up.swap(false, std::sync::atomic::Ordering::SeqCst) => Reply::hang_up(),
        _ => gitlab(request),
    });
    stage.is(1, "unhealthy").await;
    stage.is(0, "up").await;
    let before = stage.counts();
    let answer = stage.send(&user(1)).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert_eq!(stage.counts(), [before[0] + 2, before[1]]);
}

/// One of which nothing is known but that it refuses health checks is better than one that says it is away.
#[tokio::test]
async fn a_read_goes_on_to_a_server_that_only_refuses_health_checks() {
    let setup = Setup::new()
        .text("upstream.health.interval", "5ms")
        .set("upstream.resend_percent", 100)
        .text("upstream.hold", "10m");
    let stage = Stage::new(2, setup, false).await;
    stage.rails[0].answer(|request| {
        if request.target == READINESS { Reply::json(200, "{}") } else { Reply::new(502, "", "no") }
    });
    stage.rails[1].answer(
        |request| {
            if request.target == READINESS { Reply::json(404, "{}") } else { gitlab(request) }
        },
    );
    stage.is(0, "up").await;
    stage.is(1, "unhealthy").await;
    let before = stage.counts();
    let answer = stage.send(&user(1)).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert_eq!(stage.counts(), [before[0] + 1, before[1] + 1]);
    assert_eq!(stage.gateway.metric("railgate_upstream_holds_total").await, Some(0));
}

/// To ask another one takes no waiting, so those do it too who may not wait.
#[tokio::test]
async fn a_read_goes_on_to_another_server_though_nobody_may_wait() {
    let stage = Stage::new(2, setup().set("upstream.resend_percent", 100), false).await;
    stage.rails[0].always(Reply::new(502, "", "no"));
    for id in 1_000..1_020 {
        let answer = stage.send(&user(id)).await;
        assert_eq!(answer.status, 200, "{answer}");
    }
    let counts = stage.counts();
    assert!((1..=5).contains(&counts[0]) && counts[1] == 20, "{counts:?}");
}

/// A deploy behind several proxies, with hardly any traffic: no server has been ejected yet.
#[tokio::test]
async fn requests_wait_for_a_rails_that_is_away_behind_all_of_its_proxies() {
    let setup = Setup::new().text("upstream.health.interval", "5ms").text("upstream.hold", "10m");
    let stage = Stage::new(2, setup, false).await;
    for rails in &stage.rails {
        rails.always(Reply::new(502, "", "no"));
    }
    stage.is(0, "unhealthy").await;
    stage.is(1, "unhealthy").await;
    assert_eq!(stage.send(&allowed()).await.status, 502, "it may have been done");
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&allowed().to_bytes("close")).await;
    stage.gateway.reaches("railgate_upstream_held", 1).await;
    stage.rails.iter().for_each(Rails::recover);
    assert_eq!(wire.answer().await.status, 200);
}

#[tokio::test]
async fn while_all_are_drained_requests_wait() {
    let stage = Stage::new(2, setup().text("upstream.hold", "10m"), false).await;
    for nth in 0..2 {
        stage.operate(&json!({ "server": stage.name(nth), "drain": true })).await;
    }
    let mut wire = stage.gateway.tcp.connect().await;
    wire.write(&allowed().to_bytes("close")).await;
    stage.gateway.reaches("railgate_upstream_held", 1).await;
    stage.operate(&json!({ "server": stage.name(1), "drain": false })).await;
    assert_eq!(wire.answer().await.status, 200);
    assert_eq!(stage.counts(), [0, 1]);
}

/// Nobody takes part: then everybody is asked, which cannot be worse than asking nobody.
#[tokio::test]
async fn if_all_are_out_all_are_asked() {
    let stage = Stage::new(2, setup(), false).await;
    for rails in &stage.rails {
        rails.always(Reply::new(502, "", "no"));
    }
    for _ in 0..40 {
        assert_eq!(stage.send(&allowed()).await.status, 502, "what Rails says");
    }
    stage.is(0, "ejected").await;
    stage.is(1, "ejected").await;
    stage.rails.iter().for_each(Rails::recover);
    stage.all_well(40, &allowed()).await;
    stage.gateway.reaches(r#"railgate_upstream_server_state{state="up"}"#, 1).await;
}

#[tokio::test]
async fn if_none_accepts_connections_requests_wait_for_the_first_that_does() {
    let setup = setup().text("upstream.hold", "10m");
    let mut stage = Stage::new(2, setup, false).await;
    let (unix, tcp) = (stage.rails.remove(1), stage.rails.remove(0));
    let Peer::Unix(path) = unix.peer.clone() else { panic!() };
    drop((tcp, unix));
    std::fs::remove_file(&path).unwrap();
    let mut wires = Vec::new();
    for _ in 0..20 {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&allowed().to_bytes("close")).await;
        wires.push(wire);
    }
    stage.gateway.reaches("railgate_upstream_held", 20).await;
    let back = Rails::on_unix(&path);
    for wire in &mut wires {
        assert_eq!(wire.answer().await.status, 200);
    }
    assert_eq!(back.count(), 20);
    drop(stage.setup);
}

#[tokio::test]
async fn a_server_that_fails_its_health_checks_gets_no_requests() {
    let ready = |request: &Request| {
        if request.target == READINESS { Reply::json(200, r#"{"status":"ok"}"#) } else { gitlab(request) }
    };
    let unready = |request: &Request| {
        if request.target == READINESS { Reply::json(503, "{}") } else { gitlab(request) }
    };
    let setup = Setup::new().text("upstream.health.interval", "5ms").text("upstream.slow_start", "0s");
    let stage = Stage::new(2, setup, false).await;
    stage.rails[0].answer(ready);
    stage.rails[1].answer(unready);
    stage.is(1, "unhealthy").await;
    stage.is(0, "up").await;
    let before = stage.counts();
    stage.all_well(50, &allowed()).await;
    assert_eq!(stage.counts(), [before[0] + 50, before[1]]);
    // Asked for nothing but whether it is well, and without a credential.
    let seen = stage.rails[1].requests().into_iter().find(|request| request.target == READINESS).unwrap();
    assert_eq!((seen.method.as_str(), seen.header("host"), seen.body.len()), ("GET", Some("localhost"), 0));
    assert!(!seen.head.to_lowercase().contains("gitlab-shared-secret"), "{}", seen.head);
    stage.rails[1].answer(ready);
    stage.is(1, "up").await;
    stage.all_well(50, &allowed()).await;
    assert!(stage.counts()[1] > before[1] + 5);
    assert!(stage.gateway.metric(r#"railgate_upstream_health_checks_total{result="bad"}"#).await >= Some(3));
}

#[tokio::test]
async fn one_that_never_answers_is_unhealthy_too() {
    let setup = Setup::new().text("upstream.health.interval", "5ms").text("upstream.health.timeout", "20ms");
    let stage = Stage::new(2, setup, false).await;
    stage.rails[0].answer(|_| Reply::json(200, "{}"));
    stage.rails[1].always(Reply::silence());
    stage.is(1, "unhealthy").await;
    stage.all_well(20, &allowed()).await;
}

#[tokio::test]
async fn an_operator_drains_a_server_and_takes_it_back() {
    let stage = Stage::new(2, setup(), false).await;
    stage.all_well(40, &allowed()).await;
    let (first, second) = (stage.name(0), stage.name(1));
    let answer = stage.operate(&json!({ "server": first, "drain": true })).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert_eq!(answer.json()["servers"][0]["state"], "drained");
    let before = stage.counts();
    stage.all_well(40, &allowed()).await;
    assert_eq!(stage.counts(), [before[0], before[1] + 40]);
    // Both: then nobody is asked.
    stage.operate(&json!({ "server": second, "drain": true })).await;
    stage.send(&allowed()).await.assert_failure(503);
    stage.operate(&json!({ "server": first, "drain": false })).await;
    stage.all_well(10, &allowed()).await;
    assert_eq!(stage.counts(), [before[0] + 10, before[1] + 40]);
    let shown = stage.operate(&Value::Null).await.json();
    assert_eq!(shown["servers"][1]["state"], "drained");
    assert_eq!(
        (&shown["servers"][0]["server"], &shown["servers"][0]["requests"]),
        (&json!(first), &json!(0))
    );

    for (wrong, told) in [
        (json!({ "server": "10.0.0.1:80", "drain": true }), "there is no such server; there is "),
        (json!({ "server": first }), "say nothing, or which server"),
        (json!({ "server": first, "drain": "yes" }), "say nothing, or which server"),
        (json!({ "server": first, "drain": true, "x": 1 }), "say nothing, or which server"),
        (json!([]), "say nothing, or which server"),
    ] {
        let answer = stage.operate(&wrong).await;
        assert_eq!(answer.status, 400, "{answer}");
        assert!(answer.text().contains(told), "{answer}");
    }
    let plain = Ask::new("POST", "/servers").header("Content-Type", "text/plain");
    assert_eq!(stage.gateway.admin.send(&plain).await.status, 415);
    assert_eq!(stage.gateway.admin.send(&Ask::new("GET", "/servers")).await.status, 405);
}

/// What it has, a drained server ends.
#[tokio::test]
async fn a_drained_server_ends_what_it_has() {
    let stage = Stage::new(2, setup(), false).await;
    let valve = super::fake::Valve::shut();
    let waits = valve.clone();
    stage.rails[0].answer(move |request| gitlab(request).after(&waits));
    let mut wires = Vec::new();
    while stage.rails[0].count() == 0 {
        let before: usize = stage.counts().iter().sum();
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&allowed().to_bytes("close")).await;
        eventually("it arrives", || async { (stage.counts().iter().sum::<usize>() > before).then_some(()) })
            .await;
        wires.push(wire);
    }
    stage.operate(&json!({ "server": stage.name(0), "drain": true })).await;
    let shown = stage.operate(&Value::Null).await.json();
    assert_eq!(shown["servers"][0]["requests"], 1, "{shown}");
    valve.open();
    for wire in &mut wires {
        assert_eq!(wire.answer().await.status, 200);
    }
    eventually("nothing is left", || async {
        let shown = stage.operate(&Value::Null).await.json();
        (shown["servers"][0]["connections"] == 0).then_some(())
    })
    .await;
}
