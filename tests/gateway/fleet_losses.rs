//! What Valkey loses without a word is doubted by those who hear, and told again by those who have said it.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

use railgate::fleet::FleetPhase;
use railgate::fleet::counters::{ConnectionEvent, DoubtReason, Unreadable};
use railgate::fleet::settings::FleetSettings;
use redis::Value;

use super::client::eventually;
use super::fake_rails::{Behavior, FakeRails, gitlab};
use super::pods::{Pod, key, pods, settings, user};
use super::valkey::{Proxy, Valkey, ValkeySetup};

/// The key of the stream.
async fn bus(valkey: &Valkey) -> String {
    let keys: Vec<String> =
        redis::from_redis_value_ref(&valkey.command(&["KEYS", "railgate:*:bus"]).await).unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys.into_iter().next().unwrap()
}

async fn last_id(valkey: &Valkey, bus: &str) -> (u64, u64) {
    let reply = valkey.command(&["XREVRANGE", bus, "+", "-", "COUNT", "1"]).await;
    let entries: Vec<(String, Value)> = redis::from_redis_value_ref(&reply).unwrap();
    let (milliseconds, sequence) = entries[0].0.split_once('-').unwrap();
    (milliseconds.parse().unwrap(), sequence.parse().unwrap())
}

/// Doubted: Rails is asked again before either is given; and afterwards, a purge is heard as before.
async fn assert_doubted_and_following(pods: [&Pod; 2], reason: DoubtReason) {
    for pod in pods {
        pod.wait_for_doubt(reason).await;
        pod.wait_until_all_is_heard().await;
        pod.wait_for(FleetPhase::Following).await;
        for request in [key(), user()] {
            assert!(!pod.send(&request).await.is_hit(), "{}", reason.as_str());
            assert!(pod.send(&request).await.is_hit());
        }
    }
    let [one, two] = pods;
    let heard = two.heard();
    one.purge_until_told().await;
    two.wait_until_heard(heard + 1).await;
    two.wait_until_dropped().await;
    assert!(two.send(&user()).await.is_hit());
}

/// A reader from the last entry on hears the second message, and never learns that there was a first one.
#[tokio::test]
async fn a_stream_that_was_flushed_between_two_messages_is_doubted_at_once() {
    let valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let bus = bus(&valkey).await;
    let mut transaction = redis::pipe();
    transaction.atomic();
    transaction.cmd("XADD").arg(&bus).arg("*").arg("x").arg("1").cmd("FLUSHALL");
    transaction.cmd("XADD").arg(&bus).arg("*").arg("x").arg("2");
    let _: Value = transaction.query_async(&mut valkey.client().await.unwrap()).await.unwrap();
    assert_doubted_and_following([&one, &two], DoubtReason::Anchor).await;
    assert_eq!(one.all_doubts(), 1, "and only once");
}

/// A reader that waits for greater IDs than the last one waits for ever, or until the clock gets there.
#[tokio::test]
async fn a_stream_that_begins_anew_with_lower_ids_is_doubted_and_followed() {
    let valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let bus = bus(&valkey).await;
    let (milliseconds, _) = last_id(&valkey, &bus).await;
    let lower = format!("{}-0", milliseconds - 60_000);
    let mut transaction = redis::pipe();
    transaction.atomic().cmd("DEL").arg(&bus).cmd("XADD").arg(&bus).arg(&lower).arg("x").arg("1");
    let _: Value = transaction.query_async(&mut valkey.client().await.unwrap()).await.unwrap();
    assert_doubted_and_following([&one, &two], DoubtReason::Anchor).await;
}

/// Nothing was told in it that could be missed; but nothing tells that either.
#[tokio::test]
async fn a_stream_that_is_gone_is_doubted_and_begun_anew() {
    for command in [&["FLUSHALL"][..], &["SWAPDB", "0", "1"], &["UNLINK"], &["RENAME"]] {
        let valkey = Valkey::start().await;
        let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
        let bus = bus(&valkey).await;
        let mut arguments = command.to_vec();
        match command[0] {
            "UNLINK" => arguments.push(&bus),
            "RENAME" => arguments.extend([&bus[..], "elsewhere"]),
            _ => {}
        }
        valkey.command(&arguments).await;
        assert_doubted_and_following([&one, &two], DoubtReason::Anchor).await;
    }
}

/// The policy of a Valkey that is a cache. It removes the stream as any other key, though all wait for it.
#[tokio::test]
async fn a_stream_that_valkey_evicts_is_doubted_and_begun_anew() {
    let valkey = ValkeySetup::default().option("maxmemory-policy", "allkeys-random").start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let memory = valkey.info("used_memory").await.parse::<u64>().unwrap() + 1_000_000;
    valkey.command(&["CONFIG", "SET", "maxmemory", &memory.to_string()]).await;
    let (client, value) = (valkey.client().await.unwrap(), [b'x'; 10_000]);
    let number = Cell::new(0);
    eventually("the stream to be evicted", async || {
        let mut writes = redis::pipe();
        for _ in 0..100 {
            number.set(number.get() + 1);
            writes.cmd("SET").arg(number.get()).arg(&value).ignore();
        }
        let () = writes.query_async(&mut client.clone()).await.unwrap();
        (one.doubts(DoubtReason::Anchor) > 0 && two.doubts(DoubtReason::Anchor) > 0).then_some(())
    })
    .await;
    valkey.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_doubted_and_following([&one, &two], DoubtReason::Anchor).await;
}

/// No gateway can put an entry into the stream that proves anything: Valkey is full, or does not let them write. Such a
/// gateway is never alone here, which would end what it keeps as well.
#[tokio::test]
async fn a_stream_that_is_gone_is_doubted_though_valkey_takes_no_new_entry() {
    let user = ["ACL", "SETUSER", "default"];
    for (refuse, allow) in [
        (&["CONFIG", "SET", "maxmemory", "1"][..], &["CONFIG", "SET", "maxmemory", "0"][..]),
        (&[&user[..], &["-xadd"]].concat(), &[&user[..], &["+xadd"]].concat()),
    ] {
        let valkey = ValkeySetup::default().option("maxmemory-policy", "noeviction").start().await;
        let never_alone =
            FleetSettings { alone_after: Duration::from_secs(3_600), ..settings(valkey.address()) };
        let (_rails, [one, two]) = pods(|_| never_alone.clone()).await;
        let bus = bus(&valkey).await;
        valkey.command(refuse).await;
        valkey.command(&["DEL", &bus]).await;
        for pod in [&one, &two] {
            pod.wait_for_doubt(DoubtReason::Anchor).await;
            assert!(!pod.send(&key()).await.is_hit(), "{refuse:?}");
            assert!(pod.send(&key()).await.is_hit(), "what it asks for itself is kept");
        }
        valkey.command(allow).await;
        // Purges may have been told and lost meanwhile.
        for pod in [&one, &two] {
            pod.wait_until_dropped().await;
            assert_eq!(pod.all_doubts(), 1, "the same one");
        }
        one.purge_until_told().await;
        two.wait_until_heard(1).await;
    }
}

/// `max-deleted-entry-id` stays `0-0` when a stream is trimmed: looking at `XINFO` does not find it.
#[tokio::test]
async fn a_gateway_that_a_stream_was_trimmed_past_doubts_and_others_do_not() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let address = |index| if index == 1 { proxy.address() } else { valkey.address() };
    let (_rails, [one, two]) = pods(|index| settings(address(index))).await;
    let bus = bus(&valkey).await;
    proxy.stall();
    assert_eq!(one.purge_key().await, "told");
    assert_eq!(one.purge_key().await, "told");
    valkey.command(&["XTRIM", &bus, "MAXLEN", "1"]).await;
    proxy.cut();
    proxy.resume();
    two.wait_for_doubt(DoubtReason::Anchor).await;
    two.wait_for(FleetPhase::Following).await;
    assert!(!two.send(&user()).await.is_hit());
    assert!(one.send(&user()).await.is_hit());
    assert_eq!((one.all_doubts(), two.doubts(DoubtReason::Anchor)), (0, 1));
    // What was trimmed long after it was told is not lost: it is not told again.
    one.purge_until_told().await;
    two.wait_until_dropped().await;
    assert_eq!(one.counters().again.load(Ordering::SeqCst), 0);
}

/// The server has the same address, and its stream even the same name.
#[tokio::test]
async fn a_server_that_was_restarted_without_its_data_is_doubted_and_told_again() {
    let mut valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    assert_eq!(one.purge_key().await, "told");
    two.wait_until_heard(1).await;
    two.warm().await;
    valkey.restart().await;
    assert_doubted_and_following([&one, &two], DoubtReason::Server).await;
    eventually("what was told before to be told again", async || {
        (one.counters().again.load(Ordering::SeqCst) > 0).then_some(())
    })
    .await;
    assert_eq!(two.all_doubts(), 1);
}

/// In the middle, a message tells of it; at the end, nothing comes that could.
#[tokio::test]
async fn a_message_that_is_removed_is_missed() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let address = |index| if index == 1 { proxy.address() } else { valkey.address() };
    let (_rails, [one, two]) = pods(|index| settings(address(index))).await;
    let bus = bus(&valkey).await;
    assert_eq!(one.purge_key().await, "told");
    two.wait_until_heard(1).await;
    two.warm().await;
    proxy.stall();
    assert_eq!(one.purge_key().await, "told");
    let (milliseconds, sequence) = last_id(&valkey, &bus).await;
    assert_eq!(one.purge_key().await, "told");
    valkey.command(&["XDEL", &bus, &format!("{milliseconds}-{sequence}")]).await;
    proxy.cut();
    proxy.resume();
    two.wait_for_doubt(DoubtReason::Counter).await;
    assert_eq!(one.all_doubts(), 0);
}

/// All that it has said is trimmed when the other begins: that one knows nothing of it, and misses nothing of what it tells from
/// then on.
#[tokio::test]
async fn what_is_told_by_a_gateway_that_was_never_heard_is_heard_and_missed_as_by_any_other() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let rails = FakeRails::listen_tcp().await;
    let one = Pod::start(&rails, settings(valkey.address())).await;
    for _ in 0..3 {
        assert_eq!(one.purge_key().await, "told");
    }
    let bus = bus(&valkey).await;
    valkey.command(&["XADD", &bus, "*", "x", "1"]).await;
    eventually("the entry to be read", async || {
        (one.counters().unreadable.get(Unreadable::Fields) > 0).then_some(())
    })
    .await;
    let Value::Int(removed) = valkey.command(&["XTRIM", &bus, "MAXLEN", "1"]).await else {
        panic!("no count")
    };
    assert!(removed >= 4, "a hello and three purges: {removed}");
    let two = Pod::start(&rails, settings(proxy.address())).await;
    assert_eq!(two.gateway.fleet.state().unwrap().members, []);
    two.warm().await;
    assert_eq!(one.purge_key().await, "told");
    two.wait_until_heard(1).await;
    two.wait_until_dropped().await;
    assert!(two.send(&user()).await.is_hit());
    assert_eq!((two.heard(), two.all_doubts()), (1, 0), "what was told before its start is not missed");

    proxy.stall();
    assert_eq!(one.purge_key().await, "told");
    let (milliseconds, sequence) = last_id(&valkey, &bus).await;
    assert_eq!(one.purge_key().await, "told");
    one.wait_until_all_is_heard().await;
    valkey.command(&["XDEL", &bus, &format!("{milliseconds}-{sequence}")]).await;
    proxy.cut();
    proxy.resume();
    two.wait_for_doubt(DoubtReason::Counter).await;
    assert!(!two.send(&user()).await.is_hit());
    assert_eq!(one.all_doubts(), 0);
}

/// No other gateway can know of it, and Valkey has taken it. It does not come back to the one that has told it.
#[tokio::test]
async fn a_purge_that_is_removed_before_any_gateway_has_read_it_is_told_again() {
    let valkey = Valkey::start().await;
    let never_alone = FleetSettings { alone_after: Duration::from_secs(3_600), ..settings(valkey.address()) };
    let (_rails, [one, two]) = pods(|_| never_alone.clone()).await;
    let bus = bus(&valkey).await;
    let lost = |pod: &Pod| pod.counters().connections.get(ConnectionEvent::Lost);
    let before = [&one, &two].map(lost);
    valkey.command(&["ACL", "SETUSER", "default", "-xread"]).await;
    eventually("both readers to be refused", async || {
        (lost(&one) > before[0] && lost(&two) > before[1]).then_some(())
    })
    .await;
    assert_eq!(one.purge_key().await, "told");
    let (milliseconds, sequence) = last_id(&valkey, &bus).await;
    let removed = valkey.command(&["XDEL", &bus, &format!("{milliseconds}-{sequence}")]).await;
    assert_eq!(removed, Value::Int(1));
    valkey.command(&["ACL", "SETUSER", "default", "+xread"]).await;
    two.wait_until_heard(1).await;
    two.wait_until_dropped().await;
    assert!(two.send(&user()).await.is_hit(), "what was not purged is kept");
    assert_eq!((one.doubts(DoubtReason::Anchor), one.counters().again.load(Ordering::SeqCst)), (1, 1));
    assert_eq!((one.all_doubts(), two.all_doubts()), (1, 0));
}

/// Behind a virtual address, new connections lead to the new server, and the old one still answers. Managed services do not
/// say which server it is: then only that the own messages do not come back tells.
#[tokio::test]
async fn a_reader_that_is_left_at_another_server_than_the_publisher_follows_it() {
    for is_managed in [false, true] {
        let (old, new) = (Valkey::start().await, Valkey::start().await);
        if is_managed {
            for server in [&old, &new] {
                server.command(&["ACL", "SETUSER", "default", "-info"]).await;
            }
        }
        let proxy = Proxy::start(&old).await;
        let (_rails, [one, two]) = pods(|_| settings(proxy.address())).await;
        old.wait_for_clients("railgate-publisher", 2).await;
        proxy.lead_to(&new);
        assert_eq!(old.kill_clients("railgate-publisher").await, 2);
        assert_doubted_and_following([&one, &two], DoubtReason::Server).await;
    }
}

/// A writer can keep what is told from being heard for a moment, and make gateways doubt. Nothing that is
/// wrong is ever given.
#[tokio::test]
async fn entries_of_another_program_are_counted_and_change_nothing() {
    let valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let bus = bus(&valkey).await;
    assert_eq!(one.purge_key().await, "told");
    two.wait_until_heard(1).await;
    two.warm().await;
    // A replay, one that claims to be the next message, and what is no message at all.
    let reply = valkey.command(&["XREVRANGE", &bus, "+", "-", "COUNT", "1"]).await;
    let entries: Vec<(String, Vec<Vec<u8>>)> = redis::from_redis_value_ref(&reply).unwrap();
    let fields = &entries[0].1;
    let mut client = valkey.client().await.unwrap();
    for (number, count) in [(None, 3), (Some("2"), 2)] {
        for _ in 0..count {
            let mut command = redis::cmd("XADD");
            command.arg(&bus).arg("*");
            for pair in fields.chunks(2) {
                let value = number.filter(|_| pair[0] == b"n").map(|number| number.as_bytes().to_vec());
                command.arg(&pair[0]).arg(value.unwrap_or_else(|| pair[1].clone()));
            }
            let _: Value = command.query_async(&mut client).await.unwrap();
        }
    }
    valkey.command(&["XADD", &bus, "*", "p", "short", "n", "x", "x", "y"]).await;
    let unreadable = |what| two.counters().unreadable.get(what);
    eventually("them to be counted", async || {
        (unreadable(Unreadable::Seal) == 2 && unreadable(Unreadable::Fields) == 1).then_some(())
    })
    .await;
    assert!(two.send(&key()).await.is_hit() && two.send(&user()).await.is_hit());
    assert_eq!((two.heard(), one.all_doubts(), two.all_doubts()), (1, 0, 0));
    one.purge_until_told().await;
    two.wait_until_dropped().await;
}

/// A writer of Valkey can add any. A reply to one request may have 64 MiB, and on a slow machine it does not get there.
#[tokio::test]
async fn entries_that_are_too_large_for_one_reply_are_read_in_several() {
    let valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let bus = bus(&valkey).await;
    let add = "for _ = 1, 160 do redis.call('XADD', KEYS[1], '*', 'x', string.rep('x', 524288)) end";
    let unhurried = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let client = redis::Client::open(valkey.url()).unwrap();
    let mut client = client.get_multiplexed_async_connection_with_config(&unhurried).await.unwrap();
    let _: Value = redis::cmd("EVAL").arg(add).arg(1).arg(&bus).query_async(&mut client).await.unwrap();
    one.purge_until_told().await;
    two.wait_until_heard(1).await;
    assert_eq!((two.counters().unreadable.get(Unreadable::Fields), two.all_doubts()), (160, 0));
}

/// Behind the greatest ID, nothing can be added: what is told waits, and it is said what to do.
#[tokio::test]
async fn an_entry_with_the_greatest_id_is_noticed_and_what_is_told_waits() {
    let valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| settings(valkey.address())).await;
    let bus = bus(&valkey).await;
    let place = super::log::position();
    valkey.command(&["XADD", &bus, &format!("{}-{}", u64::MAX, u64::MAX), "x", "1"]).await;
    for pod in [&one, &two] {
        pod.wait_for_doubt(DoubtReason::Future).await;
    }
    assert_eq!(one.purge_key().await, "queued");
    one.wait_for(FleetPhase::Untold).await;
    assert!(super::log::since(place).contains("remove the stream"));
    valkey.command(&["DEL", &bus]).await;
    one.wait_for(FleetPhase::Following).await;
    two.wait_until_heard(1).await;
}

/// Doubted answers are there for when Rails is not.
#[tokio::test]
async fn what_is_doubted_is_given_only_while_rails_fails() {
    let valkey = Valkey::start().await;
    let rails = FakeRails::listen_tcp().await;
    let pod = Pod::start(&rails, settings(valkey.address())).await;
    pod.warm().await;
    valkey.command(&["FLUSHALL"]).await;
    pod.wait_for_doubt(DoubtReason::Anchor).await;
    let asked = rails.request_count();
    rails.set_behavior(Behavior::CloseUnread, gitlab);
    let response = pod.send(&key()).await;
    assert_eq!(response.status, 200, "{response}");
    rails.recover();
    // No caller gets the old answer while it is looked whether it is true.
    assert!(!pod.send(&user()).await.is_hit());
    assert!(rails.request_count() > asked);
}

/// A gateway that has not heard anything yet, or cannot, trusts nothing that it brought from before.
#[tokio::test]
async fn what_a_gateway_brings_from_before_its_restart_is_doubted() {
    let valkey = Valkey::start().await;
    let rails = FakeRails::listen_tcp().await;
    let fleet = || FleetSettings { alone_ttl: Duration::from_secs(3_600), ..settings(valkey.address()) };
    let snapshots = super::harness::Scratch::new();
    let snapshot = snapshots.file("cache").display().to_string();
    let begin = || Pod::begin(&rails, fleet(), |setup| setup.text("cache.snapshot", &snapshot));
    let pod = begin();
    pod.wait_for(FleetPhase::Following).await;
    pod.warm().await;
    pod.stop().await;
    valkey.freeze();
    let pod = begin();
    assert!(!pod.send(&key()).await.is_hit());
    assert_eq!(pod.gateway.fleet.state().unwrap().phase, FleetPhase::Joining);
    assert!(pod.send(&key()).await.is_hit(), "what it asks for itself is kept");
    valkey.thaw();
    pod.wait_for(FleetPhase::Following).await;
    assert!(!pod.send(&user()).await.is_hit());
    pod.stop().await;
}
