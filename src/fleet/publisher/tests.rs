use redis::{Value, parse_redis_value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::cache::purge::{PurgeMode, Selector};
use crate::cache::{Cache, CacheSettings};
use crate::clock::{Clock, ManualClock};
use crate::fleet::keys::FleetKeys;
use crate::fleet::message::MessageSeal;
use crate::fleet::settings::{FleetSettings, ValkeyCredential};
use crate::fleet::tests::scripted::{ScriptedServer, array, bulk};
use crate::secret::ShellSecret;
use crate::upstream::UpstreamAddress;

/// A publisher whose reader has read up to `anchor`, and which has one purge to tell.
fn publisher(anchor: StreamId) -> Publisher {
    let keys = FleetKeys::new(&ShellSecret::from_text(b"s3cret").unwrap(), "rails", "").unwrap();
    let settings = Arc::new(FleetSettings::new(UpstreamAddress::Tcp("valkey".to_owned(), 6379)));
    let clocked = (settings, Clock::Manual(ManualClock::at(1_800_000_000)));
    let seal = MessageSeal::new(&keys).unwrap();
    let bus = Bus::new(clocked, (keys.bus(), seal), Cache::new(&CacheSettings::default()), None);
    bus.follower.lock().begin(Some(anchor), (bus.clock.now(), bus.unix_ms()));
    let purge = Purge::new(&[Selector::KeyId(7)], PurgeMode::Hard, Duration::ZERO, Duration::ZERO);
    let _ = bus.accept(purge);
    Publisher::new(Arc::new(bus))
}

/// Replies to one command after the other over one connection, and closes it when there is no reply left. Returns where each
/// entry was to be put.
async fn serve(listener: &TcpListener, replies: &[&str]) -> Vec<String> {
    let (mut socket, _) = listener.accept().await.unwrap();
    let (mut received, mut places) = (Vec::new(), Vec::new());
    // The first command names the connection.
    let mut replies = ["+OK\r\n"].iter().chain(replies);
    while socket.read_buf(&mut received).await.is_ok_and(|count| count > 0) {
        let Ok(Value::Array(command)) = parse_redis_value(&received) else { continue };
        received.clear();
        let words: Vec<String> = command
            .iter()
            .map(|word| match word {
                Value::BulkString(word) => String::from_utf8_lossy(word).into_owned(),
                other => panic!("{other:?}"),
            })
            .collect();
        match &words[..] {
            [name, _, maxlen, ..] if name == "XADD" && maxlen == "MAXLEN" => places.push(words[5].clone()),
            [name, _, id, ..] if name == "XADD" => places.push(id.clone()),
            _ => {}
        }
        let Some(reply) = replies.next() else { break };
        socket.write_all(reply.as_bytes()).await.unwrap();
    }
    places
}

/// Valkey puts a purge below what was read, and may then refuse to take it above that: another gateway was faster, or the memory
/// is full. Such a refusal is none of the message, which would wait over this connection while the stream goes backwards.
#[tokio::test]
async fn what_cannot_be_put_above_the_last_entry_that_was_read_is_told_over_another_connection() {
    const BELOW: &str = "$4\r\n10-0\r\n";
    const REFUSED: &str =
        "-ERR The ID specified in XADD is equal or smaller than the target stream top item\r\n";
    const FULL: &str = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    const ABOVE: &str = "$9\r\n4000000-0\r\n";
    let read = StreamId::from_milliseconds(20);
    for (last_read, replies, is_put_above) in [
        (read, &[BELOW, ABOVE][..], true),
        (read, &[BELOW, REFUSED], true),
        (read, &[BELOW, FULL], true),
        (read, &[BELOW], true),
        // There is nothing behind it.
        (StreamId::MAX, &[BELOW, ABOVE], false),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = UpstreamAddress::Tcp("127.0.0.1".to_owned(), port);
        let mut publisher = publisher(last_read);
        let resets = publisher.bus.resets.subscribe();
        let tell = async {
            let opened = Connection::open(&address, &ValkeyCredential::default(), None, "test").await;
            publisher.opened(true, None);
            publisher.said_hello(None, Ok(())).unwrap();
            let Ok(Step::Send(number, purge, false)) = publisher.next_step() else { panic!("a purge") };
            publisher.send(&opened.unwrap(), number, purge, false).await.unwrap_err()
        };
        let (places, end) = tokio::join!(serve(&listener, replies), tell);
        let End::Failed(error) = end else { panic!("{end}") };
        assert!(!is_lasting(&error), "another connection has to be made: {error}");
        let is_closed = replies.len() == 1;
        assert!(matches!(error, ConnectionError::Backwards) != is_closed, "{error}");
        assert_eq!((places.len(), &places[0][..]), (if is_put_above { 2 } else { 1 }, "*"));
        let above = places.get(1).map(|place| StreamId::parse(place.as_bytes()).unwrap());
        assert!(above.is_none_or(|above| above > last_read), "{places:?}");
        // The reader has to begin anew, too; and what was not told waits.
        assert!(resets.has_changed().unwrap());
        assert!(publisher.bus.follower.lock().connected(None));
        assert_eq!(publisher.bus.outbox.lock().untold().0, 1);
        assert!(matches!(publisher.next_step(), Ok(Step::Send(1, _, true))), "the same once more");
    }
}

/// More than are looked for at once, of which one is gone.
#[tokio::test]
async fn what_is_lost_is_found_out_wherever_it_is_among_many() {
    let count = LOOKED_FOR_AT_ONCE as u64 * 2 + 1;
    for lost in [1, LOOKED_FOR_AT_ONCE as u64 + 1, count] {
        let publisher = publisher(StreamId::from_milliseconds(1));
        let told: Vec<(u64, StreamId)> =
            (1..=count).map(|number| (number, StreamId::from_milliseconds(number))).collect();
        let purge = Purge::new(&[Selector::All], PurgeMode::Hard, Duration::ZERO, Duration::ZERO);
        let sealed = move |publisher: &Publisher, number| {
            publisher.bus.seal.seal(number, &Message::Purge(purge.clone())).unwrap()
        };
        let entries: Vec<_> = told.iter().map(|(number, _)| sealed(&publisher, *number)).collect();
        let server = ScriptedServer::start(move |command| {
            let id = StreamId::parse(command[2].as_bytes()).unwrap();
            if command[0] != "XRANGE" || id.milliseconds == lost {
                return b"*0\r\n".to_vec();
            }
            let envelope = &entries[usize::try_from(id.milliseconds).unwrap() - 1];
            let number = envelope.number.to_string();
            let fields = [b"p", &envelope.publisher[..], b"n", number.as_bytes(), b"x", &envelope.sealed];
            let fields = fields.map(bulk);
            let fields: Vec<&[u8]> = fields.iter().map(|field| &field[..]).collect();
            array(&[&array(&[&bulk(command[2].as_bytes()), &array(&fields)])])
        })
        .await;
        let connection = Connection::open(&server.address, &ValkeyCredential::default(), None, "test").await;
        let are_there = publisher.look_for(&connection.unwrap(), &told).await.unwrap();
        let expected: Vec<(u64, bool)> = (1..=count).map(|number| (number, number != lost)).collect();
        assert_eq!(are_there, expected);
    }
}
