//! A program that may write to Valkey, and changes the stream of a fleet. It can cause requests to Rails, and hides no
//! purge for long.

use std::time::{Duration, Instant};

use railgate::fleet::FleetPhase;
use railgate::fleet::counters::{DoubtReason, Told, Unreadable};
use railgate::fleet::message::{Message, Origin};
use railgate::fleet::settings::FleetSettings;
use railgate::fleet::stream::StreamId;
use redis::Value;

use super::client::eventually;
use super::pods::{IDENTITY, Pod, another_gateway, key, pods, settings, unix_ms, user};
use super::valkey::{Valkey, ValkeySetup};

fn named(valkey: &Valkey) -> FleetSettings {
    FleetSettings { identity: Some(IDENTITY.to_owned()), ..settings(valkey.address()) }
}

/// What `DUMP` has of a stream, with `to` in place of its last ID, whose milliseconds are `from`.
fn with_last_id(dump: &[u8], from: u64, to: u64) -> Vec<u8> {
    let as_length = |milliseconds: u64| [&[0x81][..], &milliseconds.to_be_bytes()].concat();
    let at = dump.windows(9).position(|window| window == as_length(from)).unwrap();
    let mut changed = dump[..dump.len() - 8].to_vec();
    changed[at..at + 9].copy_from_slice(&as_length(to));
    // CRC-64 as in crc64.c of Redis.
    let checksum = changed.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ u64::from(*byte), |sum: u64, _| {
            (sum >> 1) ^ if sum & 1 == 1 { 0x95ac_9329_ac4b_c9b5 } else { 0 }
        })
    });
    changed.extend(checksum.to_le_bytes());
    changed
}

/// All have read an entry at `ahead`; what is told from now on is put below it, where no reader gets. Its anchor is where it
/// was, and so is the server.
async fn lower_last_id(valkey: &Valkey, bus: &str, pods: &[Pod], ahead: StreamId) {
    valkey.command(&["XADD", bus, &ahead.to_string(), "x", "1"]).await;
    for pod in pods {
        eventually("the entry to be read", async || {
            (pod.counters().unreadable.get(Unreadable::Fields) > 0).then_some(())
        })
        .await;
    }
    // A gateway may say hello in between.
    eventually("the stream to be restored", async || {
        let mut client = valkey.client().await.unwrap();
        let () = redis::cmd("WATCH").arg(bus).query_async(&mut client).await.unwrap();
        let dump: Vec<u8> = redis::cmd("DUMP").arg(bus).query_async(&mut client).await.unwrap();
        let mut restore = redis::pipe();
        restore.atomic().cmd("RESTORE").arg(bus).arg(0);
        restore.arg(with_last_id(&dump, ahead.milliseconds, unix_ms())).arg("REPLACE");
        let restored: Value = restore.query_async(&mut client).await.unwrap();
        (restored != Value::Nil).then_some(())
    })
    .await;
}

fn in_half_an_hour() -> StreamId {
    StreamId::from_milliseconds(unix_ms() + 1_800_000)
}

/// Neither the anchor nor the identity of the server tells of it, and the next hello of each is hidden as well.
#[tokio::test]
async fn a_purge_that_is_put_where_no_reader_gets_is_noticed_and_heard() {
    let valkey = Valkey::start().await;
    // On a busy machine, none takes itself for alone.
    let patient = || FleetSettings { alone_after: Duration::from_secs(60), ..named(&valkey) };
    let (_rails, pods) = pods::<3>(|_| patient()).await;
    let (_, bus) = another_gateway();
    lower_last_id(&valkey, &bus, &pods, in_half_an_hour()).await;
    let [one, two, three] = &pods;
    assert!(three.send(&key()).await.is_hit());
    one.purge_until_told().await;
    for pod in [two, three] {
        pod.wait_until_heard(1).await;
        pod.wait_until_dropped().await;
        assert!(pod.send(&user()).await.is_hit(), "what was not purged is kept");
    }
    one.wait_for_doubt(DoubtReason::Anchor).await;
    one.wait_for(FleetPhase::Following).await;
    // All is as before.
    let heard = one.heard();
    two.purge_until_told().await;
    one.wait_until_heard(heard + 1).await;
    assert_eq!((two.all_doubts(), three.all_doubts()), (0, 0));
}

/// There is no place above the greatest ID where a reader would get. Where that entry stays the last one, as where each has a node of
/// its own, who has something to tell trusts nothing until an operator has removed the stream.
#[tokio::test]
async fn what_is_put_below_the_greatest_id_is_doubted_again_and_again_with_pauses() {
    const DOUBTS: u64 = 5;
    let valkey = ValkeySetup::default().option("stream-node-max-entries", "1").start().await;
    let (_rails, pods) = pods::<2>(|_| named(&valkey)).await;
    let (_, bus) = another_gateway();
    lower_last_id(&valkey, &bus, &pods, StreamId::MAX).await;
    let [one, two] = &pods;
    let begin = Instant::now();
    assert_eq!(one.purge_key().await, "queued");
    for _ in 0..DOUBTS {
        // Each answer that it asks for is kept, until the next doubt.
        eventually("another doubt", async || (!one.send(&user()).await.is_hit()).then_some(())).await;
    }
    let (doubts, elapsed) = (one.doubts(DoubtReason::Anchor), begin.elapsed());
    assert!(doubts >= DOUBTS);
    // One connection a second may be replaced at once, each other one after at least 50 ms.
    let at_most = 3 + elapsed.as_secs() + u64::try_from(elapsed.as_millis()).unwrap() / 50;
    assert!(doubts <= at_most, "{doubts} in {elapsed:?}");
    assert_eq!((two.heard(), one.counters().told.get(Told::Told)), (0, 0));
    valkey.command(&["DEL", &bus]).await;
    two.wait_until_heard(1).await;
    two.wait_until_dropped().await;
    one.wait_for(FleetPhase::Following).await;
    one.purge_until_told().await;
    two.wait_until_heard(2).await;
}

/// Where Valkey takes what is put below the greatest ID for its last entry, who has something to tell hears what comes next. While
/// both are in one node of the stream, Valkey does not find what it has, so that all is doubted and told again.
#[tokio::test]
async fn who_has_read_the_greatest_id_follows_below_it_once_a_node_is_full() {
    let valkey = Valkey::start().await;
    let (_rails, pods) = pods::<2>(|_| named(&valkey)).await;
    let (_, bus) = another_gateway();
    lower_last_id(&valkey, &bus, &pods, StreamId::MAX).await;
    for pod in &pods {
        pod.purge_until_told().await;
        pod.wait_for_doubt(DoubtReason::Anchor).await;
    }
    let [one, two] = &pods;
    eventually("nothing to be doubted any more", async || {
        let doubts = [one, two].map(Pod::all_doubts);
        for (teller, other) in [(one, two), (two, one)] {
            other.send(&user()).await;
            let heard = other.heard();
            teller.purge_until_told().await;
            other.wait_until_heard(heard + 1).await;
            other.wait_until_dropped().await;
            other.wait_until_all_is_heard().await;
        }
        (doubts == [one, two].map(Pod::all_doubts)).then_some(())
    })
    .await;
    assert!(one.send(&user()).await.is_hit() && two.send(&user()).await.is_hit());
}

/// As if it had ended without a word, or all that it says were removed. Its last hello, written down again, is as old as it
/// was.
#[tokio::test]
async fn a_gateway_that_says_no_more_that_it_is_there_is_doubted() {
    let valkey = Valkey::start().await;
    let (_rails, [one, two]) = pods(|_| named(&valkey)).await;
    let (seal, bus) = another_gateway();
    let say = async |message: &Message| {
        let envelope = seal.seal(0, message).unwrap();
        let mut add = redis::cmd("XADD");
        add.arg(&bus)
            .arg("*")
            .arg("p")
            .arg(&envelope.publisher)
            .arg("n")
            .arg(0)
            .arg("x")
            .arg(&envelope.sealed);
        let () = add.query_async(&mut valkey.client().await.unwrap()).await.unwrap();
    };
    let hello = |age: u64| Message::Hello {
        said_at_ms: unix_ms() - age * 1_000,
        origin: Origin::default(),
        question: None,
    };
    say(&hello(40)).await;
    eventually("it to be heard", async || {
        (two.gateway.fleet.state().unwrap().members.len() == 2).then_some(())
    })
    .await;
    one.wait_until_all_is_heard().await;
    assert_eq!((one.all_doubts(), two.all_doubts()), (0, 0), "it says so once a minute");
    assert!(two.send(&key()).await.is_hit());
    let (third, _) = another_gateway();
    let old = third.seal(0, &hello(89)).unwrap();
    let mut add = redis::pipe();
    for _ in 0..3 {
        let command = add.cmd("XADD").arg(&bus).arg("*");
        command.arg("p").arg(&old.publisher).arg("n").arg(0).arg("x").arg(&old.sealed);
    }
    let _: Value = add.query_async(&mut valkey.client().await.unwrap()).await.unwrap();
    for pod in [&one, &two] {
        pod.wait_for_doubt(DoubtReason::Silence).await;
        for request in [key(), user()] {
            assert!(!pod.send(&request).await.is_hit());
            assert!(pod.send(&request).await.is_hit());
        }
    }
    one.purge_until_told().await;
    two.wait_until_dropped().await;
    assert_eq!((one.all_doubts(), two.all_doubts()), (1, 1), "once a minute, and not for one of 40 s ago");
}

/// In a busy stream, the last word of each may be trimmed when a gateway begins.
#[tokio::test]
async fn gateways_that_are_first_heard_soon_after_a_start_are_no_doubt_each() {
    const STRANGERS: usize = 20;
    let valkey = Valkey::start().await;
    let (_rails, [pod]) = pods(|_| named(&valkey)).await;
    let mut add = redis::pipe();
    for number in 1..=STRANGERS {
        let (seal, bus) = another_gateway();
        let said = seal
            .seal(7, &Message::Hello { said_at_ms: unix_ms(), origin: Origin::default(), question: None })
            .unwrap();
        let command = add.cmd("XADD").arg(&bus).arg("*");
        command.arg("p").arg(&said.publisher).arg("n").arg(7).arg("x").arg(&said.sealed);
        let _: Value = add.query_async(&mut valkey.client().await.unwrap()).await.unwrap();
        add.clear();
        eventually("it to be heard", async || {
            (pod.gateway.fleet.state().unwrap().members.len() == number).then_some(())
        })
        .await;
    }
    pod.wait_until_all_is_heard().await;
    assert_eq!(pod.all_doubts(), 0);
    assert!(pod.send(&key()).await.is_hit());
}
