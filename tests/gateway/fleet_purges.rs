//! What one gateway of a fleet drops is dropped by all, whatever happens to connections and gateways.

use std::cell::Cell;
use std::time::Duration;

use railgate::cache::purge::{PurgeMode, Selector};
use railgate::fleet::FleetPhase;
use railgate::fleet::counters::DoubtReason;
use railgate::fleet::message::{Message, Purge};
use railgate::fleet::settings::FleetSettings;
use serde_json::json;

use super::client::{Request, eventually};
use super::fake_rails::{FakeRails, Latch, ROOT_KEY, Reply, gitlab};
use super::pods::{IDENTITY, Pod, another_gateway, delete_key, deletion, key, pods, settings, user};
use super::valkey::{Proxy, Valkey, ValkeySetup};

#[tokio::test]
async fn a_purge_at_one_gateway_is_heard_by_all_and_leaves_the_rest_alone() {
    let valkey = Valkey::start().await;
    let (rails, [one, two, three]) = pods(|_| settings(valkey.address())).await;
    delete_key(&rails);
    assert_eq!(one.purge(json!({"ssh_key": ROOT_KEY})).await, json!({"purged": 1, "fleet": "told"}));
    for pod in [&one, &two, &three] {
        eventually("the key to be gone", async || (pod.send(&key()).await.status == 404).then_some(())).await;
        assert!(pod.send(&user()).await.is_hit());
        assert_eq!((pod.doubts(DoubtReason::Start), pod.all_doubts()), (1, 0));
    }
    assert_eq!([one.heard(), two.heard(), three.heard()], [0, 1, 1]);
}

#[tokio::test]
async fn an_event_at_one_gateway_is_heard_by_all() {
    let valkey = Valkey::start().await;
    let (rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    delete_key(&rails);
    assert_eq!(one.event(&json!({"event_name": "project_create"})).await, "ok");
    assert_eq!(one.event(&deletion()).await, "ok, and told to the fleet");
    eventually("the key to be gone", async || (two.send(&key()).await.status == 404).then_some(())).await;
    assert!(two.send(&user()).await.is_hit());
}

/// Only a gateway that keeps a user's keys knows which they are. Tracking of keys in Valkey would tell no gateway either: none of
/// them is there.
#[tokio::test]
async fn keys_of_a_user_that_only_one_gateway_knows_are_dropped_by_all() {
    let valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    one.send(&Request::get("discover?key_id=1").with_secret()).await;
    let event = json!({"event_name": "user_failed_login", "user_id": 1, "username": "root"});
    assert_eq!(one.event(&event).await, "ok, and told to the fleet");
    two.wait_until_dropped().await;
}

#[tokio::test]
async fn a_soft_purge_leaves_stale_answers_at_all() {
    let valkey = Valkey::start().await;
    let (rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let answer = one.purge(json!({"ssh_key": ROOT_KEY, "soft": true})).await;
    assert_eq!(answer, json!({"purged": 1, "fleet": "told"}));
    two.wait_until_heard(1).await;
    let refreshed = Latch::closed();
    let latch = refreshed.clone();
    rails.respond_with(move |request| gitlab(request).after(&latch));
    let response = two.send(&key()).await;
    assert_eq!(response.status, 200);
    assert!(response.cache_status().contains("stale") || response.is_hit(), "{}", response.cache_status());
    refreshed.open();
}

/// Publish and subscribe, and a stream that is read from its end on, miss it without a word.
#[tokio::test]
async fn a_purge_while_the_connection_is_cut_is_heard_afterwards() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let address = |index| if index == 1 { proxy.address() } else { valkey.address() };
    let (_rails, [one, two]) = pods(|index| settings(address(index))).await;
    proxy.stall();
    assert_eq!(one.purge_key().await, "told");
    assert!(two.send(&key()).await.is_hit(), "it could not hear it");
    proxy.cut();
    proxy.resume();
    two.wait_until_dropped().await;
    assert!(two.send(&user()).await.is_hit());
    assert_eq!(two.all_doubts(), 0, "the stream has it all");
}

/// Connections end all the time; none of that is a reason to doubt anything.
#[tokio::test]
async fn connections_that_are_killed_again_and_again_lose_nothing() {
    let valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    for round in 1..=5 {
        assert!(valkey.kill_clients("railgate").await >= 2);
        one.purge_until_told().await;
        two.wait_until_heard(round).await;
        two.wait_until_dropped().await;
    }
    assert_eq!(one.all_doubts() + two.all_doubts(), 0);
}

/// A client that pools connections keeps the dead one: `ConnectionManager` did so for as long as it was watched.
#[tokio::test]
async fn a_connection_that_falls_silent_is_given_up_though_new_ones_work() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let address = |index| if index == 1 { proxy.address() } else { valkey.address() };
    // Else it would drop the key for being alone.
    let alone_ttl = Duration::from_secs(3_600);
    let (_rails, [one, two]) = pods(|index| FleetSettings { alone_ttl, ..settings(address(index)) }).await;
    proxy.stall_existing();
    assert_eq!(one.purge_key().await, "told");
    two.wait_until_dropped().await;
    assert_eq!(two.all_doubts(), 0);
    // And so is the one that tells.
    proxy.stall_existing();
    two.purge_until_told().await;
    one.wait_until_heard(1).await;
}

/// "Blocked, and so alive" is what a client without a deadline takes it for.
#[tokio::test]
async fn a_gateway_whose_valkey_is_frozen_is_alone_and_catches_up() {
    let valkey = Valkey::start().await;
    let fleet = || FleetSettings { alone_ttl: Duration::ZERO, ..settings(valkey.address()) };
    let (_rails, [one, two]) = pods(|_| fleet()).await;
    valkey.freeze();
    for pod in [&one, &two] {
        pod.wait_for(FleetPhase::Alone).await;
        assert!(!pod.send(&key()).await.is_hit(), "nothing is kept for longer than alone_ttl");
    }
    assert_eq!(one.purge_key().await, "queued");
    valkey.thaw();
    two.wait_until_heard(1).await;
    for pod in [&one, &two] {
        pod.wait_for(FleetPhase::Following).await;
        pod.send(&key()).await;
        assert!(pod.send(&key()).await.is_hit());
        assert_eq!(pod.all_doubts(), 0, "the stream has it all");
    }
}

#[tokio::test]
async fn an_event_while_valkey_is_away_is_heard_by_all_when_it_is_back() {
    let mut valkey = ValkeySetup::default().persistent().start().await;
    let (rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    valkey.kill();
    delete_key(&rails);
    assert_eq!(one.event(&deletion()).await, "ok, and queued for the fleet: Valkey does not take it now");
    assert_eq!(one.send(&key()).await.status, 404);
    valkey.restart().await;
    eventually("the key to be gone", async || (two.send(&key()).await.status == 404).then_some(())).await;
    two.wait_until_heard(1).await;
}

/// What a gateway has accepted, and Valkey has not, would end with its process.
#[tokio::test]
async fn a_gateway_that_is_stopped_tells_first_what_it_has_accepted() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let address = |index| if index == 0 { proxy.address() } else { valkey.address() };
    let (rails, [one, two]) = pods(|index| settings(address(index))).await;
    proxy.stall();
    delete_key(&rails);
    assert!(one.event(&deletion()).await.contains("queued"));
    assert!(two.send(&key()).await.is_hit());
    proxy.resume();
    one.stop().await;
    eventually("the key to be gone", async || (two.send(&key()).await.status == 404).then_some(())).await;
    assert_eq!(two.all_doubts(), 0, "it has taken its leave");
    assert_eq!(two.gateway.fleet.state().unwrap().members, []);
}

/// A subscriber that is slow is cut off, and does not get what was sent meanwhile. A reader that takes what one poll brings
/// for all there is would trust what it keeps too early.
#[tokio::test]
async fn a_gateway_is_alone_until_all_of_a_long_absence_is_heard_and_dropped() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let address = |index| if index == 1 { proxy.address() } else { valkey.address() };
    let (_rails, [one, two]) = pods(|index| settings(address(index))).await;
    proxy.stall();
    two.wait_for(FleetPhase::Alone).await;
    // Soft and hard ones do not share a message.
    for number in 0..600 {
        let what = json!({"username": format!("user-{number}"), "soft": number % 2 == 0});
        assert_ne!(one.purge(what).await["fleet"], "off");
    }
    assert_eq!(one.purge_key().await, "told");
    proxy.cut();
    proxy.resume();
    two.wait_for(FleetPhase::Following).await;
    assert!(two.heard() > 300, "{}", two.heard());
    assert!(!two.send(&key()).await.is_hit());
    assert_eq!(two.all_doubts(), 0);
}

/// They are heard faster than they are dropped.
#[tokio::test]
async fn more_purges_than_can_wait_are_doubted_together_and_later_ones_are_dropped_as_before() {
    let valkey = Valkey::start().await;
    let named = FleetSettings { identity: Some(IDENTITY.to_owned()), ..settings(valkey.address()) };
    let (_rails, [pod]) = pods(|_| named.clone()).await;
    let (seal, bus) = another_gateway();
    let unhurried = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let client = redis::Client::open(valkey.url()).unwrap();
    let client = client.get_multiplexed_async_connection_with_config(&unhurried).await.unwrap();
    let told = Cell::new(0);
    let tell = async |count, selector: fn(u64) -> Selector| {
        let mut add = redis::pipe();
        for number in told.get() + 1..=told.get() + count {
            // Soft and hard ones do not share a look through what is kept.
            let mode = if number % 2 == 0 { PurgeMode::Soft } else { PurgeMode::Hard };
            let purge = Purge::new(&[selector(number)], mode, Duration::ZERO, Duration::ZERO);
            let envelope = seal.seal(number, &Message::Purge(purge)).unwrap();
            let command = add.cmd("XADD").arg(&bus).arg("*");
            command.arg("p").arg(&envelope.publisher).arg("n").arg(number).arg("x").arg(&envelope.sealed);
            command.ignore();
        }
        let () = add.query_async(&mut client.clone()).await.unwrap();
        told.set(told.get() + count);
    };
    let unknown = |number| Selector::Username(format!("user-{number}"));
    tell(100, unknown).await;
    pod.wait_until_heard(100).await;
    assert!(pod.send(&key()).await.is_hit() && pod.send(&user()).await.is_hit());
    assert_eq!(pod.all_doubts(), 0);

    tell(30_000, unknown).await;
    pod.wait_for_doubt(DoubtReason::Overflow).await;
    // There may be several doubts, until the last one is heard.
    pod.wait_until_all_is_heard().await;
    let are_kept = async || {
        let [key, user] = [pod.send(&key()).await, pod.send(&user()).await];
        (key.is_hit() && user.is_hit()).then_some(())
    };
    eventually("answers to be kept again", are_kept).await;
    assert!(pod.heard() <= told.get() - 10_000, "{} of {} were dropped", pod.heard(), told.get());
    tell(1, |_| Selector::KeyId(1)).await;
    pod.wait_until_dropped().await;
    eventually("answers to be kept again", are_kept).await;
    assert_eq!(pod.doubts(DoubtReason::Overflow), pod.all_doubts());
}

/// Whatever is asked for before the purge and comes after it was true before it.
#[tokio::test]
async fn an_answer_on_its_way_is_not_kept() {
    let valkey = Valkey::start().await;
    let (rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let answer = Latch::closed();
    rails.respond_always(Reply::json(200, r#"{"id":9,"username":"late"}"#).after(&answer));
    let late = Request::get("discover?username=late").with_secret();
    let mut connection = two.gateway.tcp.connect().await;
    connection.write(&late.to_bytes("close")).await;
    eventually("Rails to be asked", async || rails.last_request().target.contains("late").then_some(()))
        .await;
    one.purge(json!({"username": "late"})).await;
    two.wait_until_heard(1).await;
    answer.open();
    assert_eq!(connection.read_response_to(&late).await.status, 200);
    assert!(!two.send(&late).await.is_hit());
    assert!(two.send(&late).await.is_hit());
}

/// What a replica of Rails' database has told wrongly is dropped once more by all, also by one that comes in between.
#[tokio::test]
async fn what_settles_later_is_dropped_once_more_also_by_a_gateway_that_comes_later() {
    let valkey = Valkey::start().await;
    let rails = FakeRails::listen_tcp().await;
    let one = Pod::begin(&rails, settings(valkey.address()), |setup| setup.text("hooks.settle", "5s"));
    one.wait_for(FleetPhase::Following).await;
    assert_eq!(one.event(&deletion()).await, "ok, and told to the fleet");
    let two = Pod::start(&rails, settings(valkey.address())).await;
    // Its anchor is behind the event. Rails still gives the old answer.
    two.warm().await;
    two.wait_until_dropped().await;
    assert!(two.send(&user()).await.is_hit());
}

#[tokio::test]
async fn two_fleets_on_one_valkey_do_not_hear_each_other() {
    let valkey = Valkey::start().await;
    let named = |index: usize| FleetSettings { name: index.to_string(), ..settings(valkey.address()) };
    let place = super::log::position();
    let (_rails, [one, other]) = pods(named).await;
    assert_eq!(one.event(&deletion()).await, "ok, and told to the fleet");
    assert_eq!(one.purge(json!({"username": "rubi"})).await["fleet"], "told");
    let [own, others] = [&one, &other].map(|pod| pod.gateway.fleet.state().unwrap());
    assert_ne!(own.fleet, others.fleet);
    let log = super::log::since(place);
    assert!([&own, &others].iter().all(|state| log.contains(&format!("\"fleet\":\"{}\"", state.fleet))));
    other.wait_until_all_is_heard().await;
    assert!(!one.send(&key()).await.is_hit());
    assert!(other.send(&key()).await.is_hit() && other.send(&user()).await.is_hit());
    assert_eq!((one.heard(), other.heard(), one.all_doubts(), other.all_doubts()), (0, 0, 0, 0));
    assert_eq!((own.members, others.members), (vec![], vec![]));
    // Nothing of it can be read.
    let keys: Vec<String> = redis::from_redis_value_ref(&valkey.command(&["KEYS", "*"]).await).unwrap();
    assert_eq!(keys.len(), 2, "{keys:?}");
    for key in keys {
        let dump: Vec<u8> = redis::from_redis_value_ref(&valkey.command(&["DUMP", &key]).await).unwrap();
        let has = |text: &str| dump.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(key.starts_with("railgate:{") && !has("rubi") && !has("username") && !has("AAAAC3"), "{key}");
    }
}

#[tokio::test]
async fn gateways_know_each_other_soon_after_their_start() {
    let valkey = Valkey::start().await;
    let (rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let three = Pod::start(&rails, settings(valkey.address())).await;
    for pod in [&one, &two, &three] {
        eventually("two others", async || {
            (pod.gateway.fleet.state().unwrap().members.len() == 2).then_some(())
        })
        .await;
    }
    three.stop().await;
    eventually("it to have left", async || {
        (one.gateway.fleet.state().unwrap().members.len() == 1).then_some(())
    })
    .await;
}
