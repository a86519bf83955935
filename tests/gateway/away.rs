//! Rails is away: who waits, for how long, and what becomes of it.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::client::{Answer, Ask, Peer, Wire, eventually};
use super::credentials::{KAS_HEADER, kas_token, now};
use super::fake::{Manners, ROOT_KEY, Rails, Reply, gitlab};
use super::stage::{Running, Setup};

const HELD: &str = "railgate_upstream_held";
const UNREAD: &str = r#"railgate_upstream_resent_total{reason="unread"}"#;

/// A gateway in front of a port that refuses connections until somebody moves in.
struct Stage {
    gateway: Running,
    port: Socket,
}

impl Stage {
    fn new(setup: Setup) -> Self {
        let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = port.local_addr().unwrap().as_socket().unwrap();
        Self { gateway: Running::start(setup.settings(&Peer::Tcp(address))), port }
    }

    /// Rails is back.
    fn comes_back(self) -> (Running, Rails) {
        self.port.listen(1_024).unwrap();
        self.port.set_nonblocking(true).unwrap();
        (self.gateway, Rails::on(tokio::net::TcpListener::from_std(self.port.into()).unwrap()))
    }

    async fn ask(&self, ask: &Ask) -> Wire {
        let mut wire = self.gateway.tcp.connect().await;
        wire.write(&ask.to_bytes("close")).await;
        wire
    }
}

fn patient() -> Setup {
    Setup::new().text("upstream.hold", "10m")
}

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

fn assert_for_later(answer: &Answer) {
    answer.assert_failure(503);
    assert_eq!(answer.header("retry-after"), Some("1"), "{answer}");
}

#[tokio::test]
async fn who_comes_while_rails_is_away_is_answered_when_it_is_back() {
    let stage = Stage::new(patient());
    let mut wires = Vec::new();
    for nth in 0..100 {
        let ask = if nth % 2 == 0 { allowed() } else { Ask::get("lfs").with_secret() };
        wires.push(stage.ask(&ask).await);
    }
    stage.gateway.reaches(HELD, 100).await;
    let (gateway, rails) = stage.comes_back();
    for wire in &mut wires {
        let answer = wire.answer().await;
        assert_eq!(answer.status, 200, "{answer}");
    }
    assert_eq!(rails.count(), 100, "each is asked once");
    gateway.reaches(HELD, 0).await;
    gateway.reaches("railgate_upstream_holds_total", 100).await;
    gateway.reaches(r#"railgate_upstream_queue_seconds_count{route="allowed"}"#, 50).await;
    // And from now on nobody waits.
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    gateway.reaches("railgate_upstream_holds_total", 100).await;
}

#[tokio::test]
async fn no_more_wait_than_may_and_not_for_ever() {
    let stage = Stage::new(patient().set("upstream.max_held", 2));
    let _waiting = [stage.ask(&allowed()).await, stage.ask(&allowed()).await];
    stage.gateway.reaches(HELD, 2).await;
    assert_for_later(&stage.gateway.tcp.send(&allowed()).await);
    stage.gateway.reaches(r#"railgate_failures_total{reason="hold_full"}"#, 1).await;

    let stage = Stage::new(Setup::new().text("upstream.hold", "50ms"));
    let mut wires = [stage.ask(&allowed()).await, stage.ask(&allowed()).await];
    for wire in &mut wires {
        assert_for_later(&wire.answer().await);
    }
    stage.gateway.reaches(HELD, 0).await;
    let (gateway, rails) = stage.comes_back();
    assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
    assert_eq!(rails.count(), 1);
}

#[tokio::test]
async fn a_class_may_be_less_patient_than_others() {
    let stage = Stage::new(patient().text("upstream.classes.lookup.hold", "0s"));
    let _waiting = stage.ask(&allowed()).await;
    stage.gateway.reaches(HELD, 1).await;
    assert_for_later(&stage.gateway.tcp.send(&Ask::get("discover?key_id=1").with_secret()).await);
    stage.gateway.reaches(HELD, 1).await;
}

/// Whether Rails is there is just what is asked.
#[tokio::test]
async fn whoever_asks_whether_rails_is_well_is_told_at_once() {
    let stage = Stage::new(patient());
    assert_for_later(&stage.gateway.tcp.send(&Ask::get("check").with_secret()).await);
    stage.gateway.reaches(HELD, 0).await;
}

#[tokio::test]
async fn whoever_leaves_leaves_the_line() {
    let stage = Stage::new(patient());
    let first = stage.ask(&allowed()).await;
    stage.gateway.reaches(HELD, 1).await;
    let mut second = stage.ask(&allowed()).await;
    stage.gateway.reaches(HELD, 2).await;
    drop(first);
    stage.gateway.reaches(HELD, 1).await;
    let (_gateway, rails) = stage.comes_back();
    assert_eq!(second.answer().await.status, 200);
    assert_eq!(rails.count(), 1);
}

/// A token of kas lives for seconds. One that would be dead on arrival is not sent.
#[tokio::test]
async fn nobody_waits_with_a_token_that_expires() {
    let stage = Stage::new(patient());
    let ask = Ask::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":1}"#);
    let claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": now() + 7 });
    let mut wire = stage.ask(&ask.clone().header(KAS_HEADER, &kas_token(&claims))).await;
    // Wherever it stands in the line.
    let _other = stage.ask(&allowed()).await;
    stage.gateway.reaches(HELD, 2).await;
    let mut behind = stage.ask(&ask.header(KAS_HEADER, &kas_token(&claims))).await;
    assert_for_later(&wire.answer().await);
    assert_for_later(&behind.answer().await);
    stage.gateway.reaches(HELD, 1).await;
    stage.gateway.reaches(r#"railgate_failures_total{reason="credential_expires"}"#, 2).await;
}

/// Nor does anybody who could have an answer.
#[tokio::test]
async fn a_stale_answer_is_given_at_once() {
    let rails = Rails::on_tcp().await;
    // Who was answered before is not served over that connection.
    let setup = patient().set("upstream.max_idle", 0).text("cache.stale_wait", "1h");
    let setup = setup.text("cache.authorized_keys.ttl", "1ms");
    let setup = setup.text("cache.authorized_keys.stale_while_revalidate", "0s");
    let stage = setup.text("cache.authorized_keys.stale_if_error", "1h").in_front_of(rails);
    let key = Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    assert_eq!(stage.send(&key).await.status, 200);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let super::stage::Stage { rails, gateway, dir: _dir } = stage;
    drop(rails);
    // Whoever has another question waits.
    let mut waiting = gateway.tcp.connect().await;
    waiting.write(&allowed().to_bytes("close")).await;
    gateway.reaches(HELD, 1).await;
    for _ in 0..3 {
        let answer = gateway.tcp.send(&key).await;
        assert!(answer.cache_status().ends_with("detail=stale_if_error"), "{answer}");
    }
    gateway.reaches(HELD, 1).await;
}

#[tokio::test]
async fn many_threads_share_one_line() {
    let stage = Stage::new(patient().set("workers", 4));
    let mut wires = Vec::new();
    for _ in 0..40 {
        wires.push(stage.ask(&allowed()).await);
    }
    stage.gateway.reaches(HELD, 40).await;
    let (gateway, rails) = stage.comes_back();
    rails.answer(|_| Reply::json(200, "{}"));
    for wire in &mut wires {
        assert_eq!(wire.answer().await.status, 200);
    }
    assert_eq!(rails.count(), 40);
    gateway.reaches(HELD, 0).await;
}

/// Rails stops just then: what came over a connection is not read any more. Not even what must not be done
/// twice is lost.
#[tokio::test]
async fn what_rails_has_not_read_is_sent_again() {
    for is_unix in [false, true] {
        let setup = patient();
        let rails =
            if is_unix { Rails::on_unix(&setup.dir.file("rails.sock")) } else { Rails::on_tcp().await };
        let stage = setup.in_front_of(rails);
        stage.rails.behave(Manners::Deaf, gitlab);
        let mut wires = Vec::new();
        for ask in
            [allowed(), Ask::post("pre_receive").with_secret().form("a=b"), Ask::get("lfs").with_secret()]
        {
            let mut wire = stage.gateway.tcp.connect().await;
            wire.write(&ask.to_bytes("close")).await;
            wires.push(wire);
        }
        eventually("it to be sent again", async || stage.metric(UNREAD).await.filter(|count| *count > 0))
            .await;
        assert_eq!(stage.rails.count(), 0);
        stage.rails.recover();
        for wire in &mut wires {
            let answer = wire.answer().await;
            assert_eq!(answer.status, 200, "{answer}");
        }
        assert_eq!(stage.rails.count(), 3, "each once");
    }
}

/// A reset is a strong sign that nothing was read, but no proof: the process may ask for one.
#[tokio::test]
async fn what_is_never_read_is_sent_three_times_and_no_more() {
    for is_unix in [false, true] {
        let setup = patient();
        let rails =
            if is_unix { Rails::on_unix(&setup.dir.file("rails.sock")) } else { Rails::on_tcp().await };
        let stage = setup.in_front_of(rails);
        stage.rails.behave(Manners::Deaf, gitlab);
        stage.send(&allowed()).await.assert_failure(502);
        stage.send(&Ask::get("lfs").with_secret()).await.assert_failure(502);
        assert_eq!(stage.metric(UNREAD).await, Some(4));
        stage.gateway.reaches(HELD, 0).await;
    }
}

/// What it has read, it may have done.
#[tokio::test]
async fn what_rails_has_read_is_not_sent_again() {
    let stage = patient().start().await;
    stage.rails.always(Reply::hang_up());
    let (answer, asked) = stage.send_counting(&allowed()).await;
    answer.assert_failure(502);
    assert_eq!((asked, stage.metric(UNREAD).await), (1, Some(0)));
    // Nor what is not in memory, or what the operator does not want to be sent again.
    stage.rails.behave(Manners::Deaf, gitlab);
    let large = Ask::post("allowed").with_secret().body(vec![b'x'; 70_000]);
    stage.send(&large).await.assert_failure(502);
    let stage = patient().set("upstream.resend_unread", false).start().await;
    stage.rails.behave(Manners::Deaf, gitlab);
    stage.send(&allowed()).await.assert_failure(502);
    assert_eq!(stage.metric(UNREAD).await, Some(0));
}

/// Of those who wait, all are told the same, and how long they have waited is not Rails' time.
#[tokio::test]
async fn who_has_waited_in_vain_is_told_why() {
    let stage = Stage::new(Setup::new().text("upstream.hold", "100ms"));
    let mut wires = Vec::new();
    for _ in 0..5 {
        wires.push(stage.ask(&allowed()).await);
    }
    for wire in &mut wires {
        assert_for_later(&wire.answer().await);
    }
    stage.gateway.reaches(r#"railgate_failures_total{reason="upstream_unreachable"}"#, 5).await;
    stage.gateway.reaches(r#"railgate_upstream_queue_seconds_count{route="allowed"}"#, 5).await;
    let slow = r#"railgate_upstream_duration_seconds_bucket{le="0.05",route="allowed"}"#;
    let metrics = stage.gateway.metrics().await;
    let quick = metrics.lines().find_map(|line| line.strip_prefix(slow));
    let quick = quick.or_else(|| {
        metrics.lines().find_map(|line| {
            line.strip_prefix(r#"railgate_upstream_duration_seconds_bucket{route="allowed",le="0.05"}"#)
        })
    });
    assert_eq!(quick.map(str::trim), Some("5"), "{metrics}");
}

#[tokio::test]
async fn nobody_waits_beyond_the_end_of_all() {
    let stage = Stage::new(patient().text("upstream.total_timeout", "100ms"));
    let mut wires = [stage.ask(&allowed()).await, stage.ask(&allowed()).await];
    for wire in &mut wires {
        wire.answer().await.assert_failure(504);
    }
    stage.gateway.reaches(r#"railgate_failures_total{reason="upstream_total_timeout"}"#, 2).await;
    let (_gateway, rails) = stage.comes_back();
    assert_eq!(rails.count(), 0);
}
