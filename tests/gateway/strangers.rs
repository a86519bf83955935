//! A client that shows no credential takes nothing from those who do: no place, no time, no server, no
//! truth.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::client::{Ask, Peer, Wire, eventually};
use super::fake::{ROOT_KEY, Rails, Reply, Valve, gitlab};
use super::stage::{Running, Setup};

/// What needs no credential here.
fn anything() -> Ask {
    Ask::get("nobody")
}

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

fn key() -> Ask {
    Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

const IN_FLIGHT: &str = r#"railgate_upstream_in_flight{class="other"}"#;
const QUEUE: &str = r#"railgate_upstream_queue{class="other"}"#;
const HELD: &str = "railgate_upstream_held";

async fn crowd(gateway: &Running, count: usize) -> Vec<Wire> {
    let mut wires = Vec::new();
    for _ in 0..count {
        let mut wire = gateway.tcp.connect().await;
        wire.write(&anything().to_bytes("close")).await;
        wires.push(wire);
    }
    wires
}

#[tokio::test]
async fn a_crowd_gets_a_small_share_of_rails_and_the_callers_the_rest() {
    for (threads, share) in [(None, 16), (Some(40), 5), (Some(4), 1), (Some(4_000), 16)] {
        let setup = threads.map_or_else(Setup::new, |threads| Setup::new().set("upstream.threads", threads));
        let stage = setup.start().await;
        stage.rails.answer(|request| {
            let reply = gitlab(request);
            if request.is_for("nobody") { reply.after(&Valve::shut()) } else { reply }
        });
        let _crowd = crowd(&stage.gateway, 40).await;
        stage.reaches(IN_FLIGHT, share).await;
        stage.reaches(QUEUE, 40 - share).await;
        for ask in [allowed(), key(), Ask::get("kubernetes/agent_info").with_kas_token()] {
            let answer = stage.send(&ask).await;
            assert_eq!(answer.status, 200, "{ask} beside {share}: {answer}");
        }
        assert_eq!(stage.metric(QUEUE).await, Some(40 - share), "none of the crowd was let in");
    }
}

/// Puma goes on with a kept connection before it looks at new ones, so those of the crowd are not kept, and
/// it takes none of those that are.
#[tokio::test]
async fn what_needs_no_credential_has_connections_of_its_own() {
    let stage = Setup::new().set("workers", 1).start().await;
    let mut connections = 0;
    for ask in [allowed(), anything(), allowed(), anything(), anything().json("{}"), allowed()] {
        let is_apart = ask.target.ends_with("nobody");
        connections += usize::from(is_apart || connections == 0);
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!(answer.status, 200, "{answer}");
        assert_eq!(seen.header("connection"), is_apart.then_some("close"), "{ask}");
        assert_eq!(stage.rails.connections(), connections, "{ask}");
    }
}

/// An operator may say otherwise.
#[tokio::test]
async fn the_share_of_a_crowd_can_be_set() {
    let stage = Setup::new().set("upstream.classes.other.concurrency", 3).start().await;
    stage.rails.always(Reply::json(200, "{}").after(&Valve::shut()));
    let _crowd = crowd(&stage.gateway, 5).await;
    stage.reaches(IN_FLIGHT, 3).await;
    stage.reaches(QUEUE, 2).await;
}

/// Neither by failing nor by being answered.
#[tokio::test]
async fn a_crowd_says_nothing_of_a_server() {
    let failures = "railgate_upstream_failures_in_a_row";
    for reply in [Reply::hang_up(), Reply::json(502, "{}"), Reply::json(503, "{}")] {
        let setup = Setup::new().text("upstream.health.interval", "0s").set("upstream.ejection.failures", 2);
        let (one, other) = (Rails::on_tcp().await, Rails::on_tcp().await);
        let servers =
            [&one, &other].map(|rails| format!("[[upstream.server]]\nurl = \"{}\"\n", rails.peer.url()));
        let gateway = Running::start(setup.settings_of(&servers.concat()));
        for rails in [&one, &other] {
            rails.always(reply.clone());
        }
        for _ in 0..20 {
            gateway.tcp.send(&anything()).await;
        }
        let shown = gateway.metrics().await;
        let ejections = shown.lines().filter(|line| line.starts_with("railgate_upstream_ejections_total{"));
        assert!(ejections.into_iter().all(|line| line.ends_with(" 0")), "{shown}");
        let in_a_row = shown.lines().filter(|line| line.starts_with(failures) && !line.ends_with(" 0"));
        assert_eq!(in_a_row.count(), 0, "{shown}");
        let ready = gateway.admin.send(&Ask::new("GET", "/ready")).await.json();
        assert_eq!(ready["upstream"]["state"], "unknown", "{ready}");
        // Both take part.
        for rails in [&one, &other] {
            rails.recover();
        }
        for _ in 0..8 {
            assert_eq!(gateway.tcp.send(&allowed()).await.status, 200);
        }
    }
}

/// Not even if no connection is to be had, in the line or beside it.
#[tokio::test]
async fn a_crowd_that_is_refused_says_nothing_of_a_server() {
    for hold in ["0s", "100ms"] {
        let setup = Setup::new().text("upstream.hold", hold).set("upstream.ejection.failures", 2);
        let stage =
            setup.text("upstream.health.interval", "0s").set("upstream.classes.other.queue", 2).start().await;
        let mut wires = {
            let gone = stage.rails;
            drop(gone);
            crowd(&stage.gateway, 8).await
        };
        for wire in &mut wires {
            wire.answer().await.assert_failure(503);
        }
        let ready = stage.gateway.admin.send(&Ask::new("GET", "/ready")).await.json();
        assert_eq!(ready["upstream"]["state"], "unknown", "{ready}");
        stage.gateway.tcp.send(&allowed()).await.assert_failure(503);
        let ready = stage.gateway.admin.send(&Ask::new("GET", "/ready")).await.json();
        assert_eq!(ready["upstream"]["state"], "failing", "{ready}");
    }
}

/// A Rails that is busy, for whatever reason, is no reason for an answer that it does not give any more.
#[tokio::test]
async fn what_was_revoked_is_not_brought_back_while_rails_is_busy() {
    let mut setup = Setup::new()
        .set("upstream.classes.lookup.concurrency", 1)
        .text("upstream.classes.lookup.queue_timeout", "100ms");
    for route in ["authorized_keys", "discover"] {
        setup = setup
            .text(&format!("cache.{route}.ttl"), "1ms")
            .text(&format!("cache.{route}.negative_ttl"), "1ms")
            .text(&format!("cache.{route}.stale_while_revalidate"), "0s")
            .text(&format!("cache.{route}.stale_if_error"), "1h");
    }
    let stage = setup.start().await;
    let user = Ask::get("discover?key_id=1").with_secret();
    for ask in [key(), user.clone()] {
        assert_eq!(stage.send(&ask).await.status, 200);
    }
    let valve = Valve::shut();
    let until = valve.clone();
    stage.rails.answer(move |request| {
        let unknown = Reply::json(404, r#"{"message":"404 Key Not Found"}"#);
        if request.target.contains("user_id") { unknown.after(&until) } else { unknown }
    });
    let mut slow = stage.begin(&Ask::get("discover?user_id=9").with_secret()).await;
    stage.reaches(r#"railgate_upstream_in_flight{class="lookup"}"#, 1).await;
    for ask in [key(), user.clone()] {
        for _ in 0..3 {
            stage.send(&ask).await.assert_failure(503);
        }
    }
    for route in ["authorized_keys", "discover"] {
        let outage = format!("railgate_cache_outage{{route=\"{route}\"}}");
        assert_eq!(stage.metric(&outage).await, Some(0));
    }
    valve.open();
    assert_eq!(slow.answer().await.status, 404);
    for ask in [key(), user.clone()] {
        assert_eq!(stage.send(&ask).await.status, 404);
    }
    // Now Rails fails, and there is nothing left to be brought back.
    stage.rails.always(Reply::json(502, "{}"));
    for ask in [key(), user] {
        eventually("what is unknown to be asked anew", async || {
            let answer = stage.send(&ask).await;
            assert_ne!(answer.status, 200, "{answer}");
            (answer.status == 502).then_some(())
        })
        .await;
    }
}

/// The places in line of the one class are not those of the other.
#[tokio::test]
async fn a_crowd_delays_no_caller_while_rails_is_away() {
    let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let peer = Peer::Tcp(port.local_addr().unwrap().as_socket().unwrap());
    let setup = Setup::new()
        .text("upstream.hold", "10m")
        .set("upstream.max_held", 5)
        .set("upstream.classes.other.queue", 3);
    let gateway = Running::start(setup.settings(&peer));
    let mut crowd = crowd(&gateway, 3).await;
    gateway.reaches(HELD, 3).await;
    gateway.tcp.send(&anything()).await.assert_failure(503);
    gateway.reaches(r#"railgate_failures_total{reason="hold_full"}"#, 1).await;
    let mut callers = Vec::new();
    for ask in [allowed(), key(), Ask::post("pre_receive").with_secret().form("a=b")] {
        let mut wire = gateway.tcp.connect().await;
        wire.write(&ask.to_bytes("close")).await;
        callers.push(wire);
    }
    gateway.reaches(HELD, 6).await;
    port.listen(1_024).unwrap();
    port.set_nonblocking(true).unwrap();
    let rails = Rails::on(tokio::net::TcpListener::from_std(port.into()).unwrap());
    for wire in callers.iter_mut().chain(&mut crowd) {
        assert!(wire.answer().await.status < 500);
    }
    let order: Vec<bool> = rails.requests().iter().map(|request| request.is_for("nobody")).collect();
    assert_eq!(order, [false, false, false, true, true, true], "those with a credential go first");
}

/// A server that answers nothing hangs; one that answers others is busy.
#[tokio::test]
async fn a_server_that_answers_others_is_no_outage() {
    for is_busy in [true, false] {
        let stage = Setup::new()
            .text("cache.authorized_keys.ttl", "1ms")
            .text("cache.authorized_keys.stale_while_revalidate", "0s")
            .text("cache.stale_wait", "1s")
            .text("upstream.response_timeout", "1500ms")
            .start()
            .await;
        assert_eq!(stage.send(&key()).await.status, 200);
        stage.rails.answer(move |request| {
            if request.target.contains("authorized_keys") || !is_busy {
                Reply::silence()
            } else {
                gitlab(request)
            }
        });
        let mut wire = stage.begin(&key()).await;
        stage.rails.has_got(2).await;
        let others = async {
            for id in 1_000.. {
                if is_busy {
                    let user = Ask::get(&format!("discover?key_id={id}")).with_secret();
                    assert_eq!(stage.send(&user).await.status, 200);
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let answer = tokio::select! {
            answer = wire.answer() => answer,
            () = others => unreachable!("they go on for ever"),
        };
        if is_busy {
            answer.assert_failure(504);
        } else {
            assert!(answer.status == 200 && answer.cache_status().ends_with("stale_if_error"), "{answer}");
        }
        let outage = stage.metric("railgate_cache_outage{route=\"authorized_keys\"}").await;
        assert_eq!(outage, Some(usize::from(!is_busy)));
    }
}
