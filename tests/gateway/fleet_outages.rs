//! Valkey takes nothing, is demoted, or fails over.

use std::sync::atomic::Ordering;
use std::time::Duration;

use railgate::fleet::FleetPhase;
use railgate::fleet::counters::DoubtReason;
use railgate::fleet::settings::{FleetSettings, ValkeyCredential, ValkeyServers};
use serde_json::json;

use super::client::eventually;
use super::pods::{IDENTITY, Pod, another_gateway, key, pods, settings, user};
use super::valkey::{MASTER, Proxy, Sentinels, Valkey, ValkeySetup, cluster};

/// What is told waits and the teller says so, while it still hears the others: a gateway that only looks at what it hears
/// would believe that all is well.
#[tokio::test]
async fn a_valkey_that_takes_nothing_is_noticed_and_told_later() {
    let valkey = ValkeySetup::default().option("maxmemory-policy", "noeviction").start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let user = ["ACL", "SETUSER", "default"];
    for (refuse, allow) in [
        (&["CONFIG", "SET", "maxmemory", "1"][..], &["CONFIG", "SET", "maxmemory", "0"][..]),
        (&[&user[..], &["-xadd"]].concat(), &[&user[..], &["+xadd"]].concat()),
    ] {
        valkey.command(refuse).await;
        two.warm().await;
        assert_eq!(one.purge_key().await, "queued", "{refuse:?}");
        one.wait_for(FleetPhase::Untold).await;
        assert_eq!(two.gateway.fleet.state().unwrap().phase, FleetPhase::Following);
        assert!(two.send(&key()).await.is_hit());
        valkey.command(allow).await;
        two.wait_until_dropped().await;
        one.wait_for(FleetPhase::Following).await;
    }
    assert_eq!(one.all_doubts() + two.all_doubts(), 0);
}

/// A replica that hangs back, or is not there, may be the next master.
#[tokio::test]
async fn a_purge_is_told_once_as_many_replicas_as_are_asked_for_have_it() {
    let valkey = Valkey::start().await;
    let fleet = || FleetSettings { replicas: 1, ..settings(valkey.address()) };
    let (_rails, [one, two]) = pods(|_| fleet()).await;
    assert_eq!(one.purge_key().await, "unconfirmed");
    two.wait_until_dropped().await;
    let replica = ValkeySetup::default().replica_of(&valkey).start().await;
    replica.wait_for_info("master_link_status", "up").await;
    one.purge_until_told().await;
    replica.freeze();
    assert_eq!(one.purge_key().await, "unconfirmed");
    assert_eq!(
        one.event(&super::pods::deletion()).await,
        "ok, and told to the fleet; not all replicas of Valkey have it yet"
    );
    replica.thaw();
}

/// It answers polls as before; only `ROLE` tells.
#[tokio::test]
async fn a_server_that_is_demoted_between_two_polls_is_not_followed() {
    let (valkey, other) = (Valkey::start().await, Valkey::start().await);
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    valkey.command(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]).await;
    for pod in [&one, &two] {
        pod.wait_for(FleetPhase::Alone).await;
    }
    assert_eq!(one.purge_key().await, "queued");
    valkey.command(&["REPLICAOF", "NO", "ONE"]).await;
    for pod in [&one, &two] {
        pod.wait_for(FleetPhase::Following).await;
        pod.wait_for_doubt(DoubtReason::Server).await;
        pod.wait_until_all_is_heard().await;
    }
    eventually("the outbox to be empty", async || {
        (one.gateway.fleet.state().unwrap().outbox == 0).then_some(())
    })
    .await;
    two.warm().await;
    one.purge_until_told().await;
    two.wait_until_dropped().await;
}

fn sentinel_settings(sentinels: &Sentinels, master: &Valkey) -> FleetSettings {
    let addresses = sentinels.all().iter().map(Valkey::address).collect();
    let credential = ValkeyCredential::default();
    let servers = ValkeyServers::Sentinels { sentinels: addresses, master: MASTER.to_owned(), credential };
    FleetSettings { servers, ..settings(master.address()) }
}

/// The replica did not have the last messages. Chains and sequence numbers of the server are unbroken on the new master;
/// only another identity tells, and only the publishers have what is missing.
#[tokio::test]
async fn what_a_fail_over_has_lost_is_doubted_and_told_again() {
    let mut master = Valkey::start().await;
    let replica = ValkeySetup::default().replica_of(&master).start().await;
    replica.wait_for_info("master_link_status", "up").await;
    let sentinels = Sentinels::start(3, &master).await;
    sentinels.wait_for_replicas(1).await;
    let (_rails, [one, two]) = pods(|_| sentinel_settings(&sentinels, &master)).await;
    replica.freeze();
    // Else its kernel would still take them.
    master.command(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    for number in 0..50 {
        // Alternating modes do not share a message.
        let what = json!({"username": format!("user-{number}"), "soft": number % 2 == 0});
        assert_eq!(one.purge(what).await["fleet"], "told");
    }
    two.wait_until_heard(50).await;
    two.warm().await;
    master.kill();
    replica.thaw();
    for pod in [&one, &two] {
        pod.wait_for_doubt(DoubtReason::Server).await;
        pod.wait_until_all_is_heard().await;
        pod.wait_for(FleetPhase::Following).await;
        assert!(!pod.send(&user()).await.is_hit());
    }
    eventually("what was lost to be told again", async || {
        (one.counters().again.load(Ordering::SeqCst) >= 50).then_some(())
    })
    .await;
    assert_eq!(two.heard(), 50, "who had heard it does not drop it again");
    let heard = two.heard();
    one.purge_until_told().await;
    two.wait_until_heard(heard + 1).await;
}

/// It takes itself for a master for ten seconds after it has woken, answers polls and takes messages, all of them lost. "My
/// server says that it is the master" is not enough.
#[tokio::test]
async fn an_old_master_that_wakes_is_not_followed() {
    let master = Valkey::start().await;
    let replica = ValkeySetup::default().replica_of(&master).start().await;
    replica.wait_for_info("master_link_status", "up").await;
    let sentinels = Sentinels::start(3, &master).await;
    sentinels.wait_for_replicas(1).await;
    let (_rails, [one, two]) = pods(|_| sentinel_settings(&sentinels, &master)).await;
    master.freeze();
    replica.wait_for_info("role", "master").await;
    for pod in [&one, &two] {
        pod.wait_for(FleetPhase::Following).await;
        pod.wait_for_doubt(DoubtReason::Server).await;
    }
    master.thaw();
    for round in 1..=20 {
        one.purge_until_told().await;
        two.wait_until_heard(round).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let clients = replica.info("connected_clients").await.parse::<usize>().unwrap();
    assert!(clients >= 4, "all are there: {clients}");
}

/// It answers everything, and takes itself for a master, for as long as it is cut off from the Sentinels alone.
#[tokio::test]
async fn a_master_that_the_sentinels_have_replaced_is_left_though_it_answers() {
    let (old, new) = (Valkey::start().await, Valkey::start().await);
    let sentinels = Sentinels::start(3, &old).await;
    let (_rails, [one, two]) = pods(|_| sentinel_settings(&sentinels, &old)).await;
    for index in [0, 1] {
        sentinels.mislead(index, &new).await;
    }
    for pod in [&one, &two] {
        pod.wait_for_doubt(DoubtReason::Server).await;
    }
    new.wait_for_clients("railgate-publisher", 2).await;
    let heard = two.heard();
    one.purge_until_told().await;
    two.wait_until_heard(heard + 1).await;
    assert_eq!(old.kill_clients("railgate").await, 0);
}

/// The data go along, and so does what is told meanwhile; but another server may have lost what it had taken last.
#[tokio::test]
async fn a_stream_whose_slot_moves_to_another_node_is_doubted_and_followed() {
    let (_, bus) = another_gateway();
    let [owner, other] = cluster(&bus).await;
    let named = FleetSettings { identity: Some(IDENTITY.to_owned()), ..settings(owner.address()) };
    let (_rails, [one, two]) = pods(|_| named.clone()).await;
    assert_eq!(one.purge_key().await, "told");
    two.wait_until_heard(1).await;
    two.warm().await;
    one.wait_until_all_is_heard().await;
    owner.move_slot_of(&bus, &other).await;
    for pod in [&one, &two] {
        pod.wait_for_doubt(DoubtReason::Server).await;
        pod.wait_until_all_is_heard().await;
        assert!(!pod.send(&user()).await.is_hit());
    }
    other.wait_for_clients("railgate-publisher", 2).await;
    two.warm().await;
    one.purge_until_told().await;
    two.wait_until_heard(2).await;
    two.wait_until_dropped().await;
    assert!(two.send(&user()).await.is_hit());
    assert_eq!((one.counters().again.load(Ordering::SeqCst), one.all_doubts(), two.all_doubts()), (0, 1, 1));
}

/// A flapping server is no reason to run in circles.
#[tokio::test]
async fn a_valkey_that_is_away_is_asked_with_pauses() {
    let mut valkey = Valkey::start().await;
    let (_rails, [pod]) = pods(|_| settings(valkey.address())).await;
    valkey.kill();
    pod.wait_for(FleetPhase::Alone).await;
    let state = pod.gateway.fleet.state().unwrap();
    assert!(state.silent_for.unwrap() >= Duration::from_secs(1));
    let failed = pod.counters().connections.get(railgate::fleet::counters::ConnectionEvent::Failed);
    assert!((1..100).contains(&failed), "{failed}");
    assert_eq!(pod.send(&user()).await.status, 200);
    valkey.restart().await;
    pod.wait_for(FleetPhase::Following).await;
}

/// `railgate fleet` and the metrics say what is the matter.
#[tokio::test]
async fn a_gateway_whose_valkey_never_was_there_is_joining_and_serves() {
    let mut valkey = Valkey::start().await;
    valkey.kill();
    let rails = super::fake_rails::FakeRails::listen_tcp().await;
    let pod = Pod::begin(&rails, settings(valkey.address()), |setup| setup);
    assert_eq!(pod.send(&key()).await.status, 200);
    assert!(pod.send(&key()).await.is_hit(), "for alone_ttl");
    assert_eq!(pod.purge_key().await, "queued");
    let state = pod.gateway.fleet.state().unwrap();
    assert_eq!((state.phase, state.silent_for, state.outbox), (FleetPhase::Joining, None, 1));
    assert_eq!(pod.gateway.metric("railgate_cache_purged_total").await, Some(1));
    valkey.restart().await;
    pod.wait_for(FleetPhase::Following).await;
    eventually("the outbox to be empty", async || {
        (pod.gateway.fleet.state().unwrap().outbox == 0).then_some(())
    })
    .await;
}

/// Else the others would doubt what they have after 90 s.
#[tokio::test]
async fn who_ends_takes_leave_over_another_connection_if_the_one_that_it_has_is_dead() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let addresses = [valkey.address(), proxy.address()];
    let (_rails, [one, mut two]) = pods(|index| settings(addresses[index].clone())).await;
    let members = || one.gateway.fleet.state().unwrap().members.len();
    eventually("the other to be heard", async || (members() == 1).then_some(())).await;
    let accepted = proxy.accepted();
    proxy.stall();
    two.gateway.drain();
    eventually("another connection to be tried", async || (proxy.accepted() > accepted).then_some(())).await;
    proxy.cut();
    proxy.resume();
    two.gateway.wait_for_end().await;
    eventually("it to take leave", async || (members() == 0).then_some(())).await;
}
