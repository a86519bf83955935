use super::*;
use crate::cache::purge::{PurgeMode, Selector};
use crate::cache::{Cache, CacheSettings};
use crate::clock::{Clock, ManualClock};
use crate::fleet::counters::Told;
use crate::fleet::keys::FleetKeys;
use crate::fleet::message::MessageSeal;
use crate::fleet::settings::{FleetSettings, SharedSettings};
use crate::fleet::shared::SharedAnswers;
use crate::secret::ShellSecret;
use crate::upstream::UpstreamAddress;

/// A publisher that shares answers, has a connection, and has said hello.
fn publisher() -> (Publisher, ManualClock) {
    let clock = ManualClock::at(1_800_000_000);
    let keys = FleetKeys::new(&ShellSecret::from_text(b"s3cret").unwrap(), "rails", "").unwrap();
    let cache = Cache::new(&CacheSettings::default());
    let settings = Arc::new(FleetSettings::new(UpstreamAddress::Tcp("valkey".to_owned(), 6379)));
    let shared = SharedAnswers::new((SharedSettings::default(), settings.alone_after), &keys, &cache);
    let (seal, shared) = (MessageSeal::new(&keys).unwrap(), Arc::new(shared.unwrap()));
    let clocked = (settings, Clock::Manual(clock.clone()));
    let bus = Arc::new(Bus::new(clocked, (keys.bus(), seal), cache, Some(shared)));
    let mut publisher = Publisher::new(bus);
    publisher.begin();
    publisher.opened(false, None);
    assert!(matches!(publisher.next_step(), Ok(Step::SayHello(None))));
    publisher.said_hello(None, Ok(())).unwrap();
    (publisher, clock)
}

fn accept(publisher: &Publisher, key_id: u64) {
    let purge =
        Purge::new(&[Selector::KeyId(key_id)], PurgeMode::Hard, Duration::ZERO, Duration::from_secs(1));
    let _ = publisher.bus.accept(purge);
}

/// The next step, in a word.
fn next(publisher: &mut Publisher) -> String {
    match publisher.next_step() {
        Ok(Step::Gather(_)) => "gather".to_owned(),
        Ok(Step::Send(number, ..)) => format!("send {number}"),
        Ok(Step::SayHello(None)) => "hello".to_owned(),
        Ok(Step::SayHello(Some([first, ..]))) => format!("ask {first}"),
        Ok(Step::SayReport(report)) => format!("report to {}", report.questions.len()),
        Ok(Step::SayBye) => "bye".to_owned(),
        Ok(Step::Rest) => "rest".to_owned(),
        Err(end) => end.to_string(),
    }
}

fn taken(publisher: &Publisher, number: u64) {
    let id = StreamId::from_milliseconds(number);
    publisher.seal(number, &Message::Bye).unwrap();
    publisher.taken(id).unwrap();
    publisher.bus.outbox.lock().taken(number, id, Told::Told);
}

fn refused() -> Result<(), ConnectionError> {
    Err(ConnectionError::Refused { command: "XADD", code: "OOM".to_owned(), detail: String::new() })
}

#[test]
fn hello_is_said_each_minute_and_when_the_stream_needs_it() {
    let (mut publisher, clock) = publisher();
    for _ in 0..2 {
        assert_eq!(next(&mut publisher), "rest");
        clock.advance(HELLO_INTERVAL.saturating_sub(Duration::from_millis(1)));
        assert_eq!(next(&mut publisher), "rest");
        clock.advance(Duration::from_millis(1));
        assert_eq!(next(&mut publisher), "hello");
        publisher.said_hello(None, Ok(())).unwrap();
    }
    publisher.bus.needs_hello.store(true, Ordering::Release);
    assert_eq!(next(&mut publisher), "hello");
    // While it is on its way, the stream is lost again.
    publisher.bus.needs_hello.store(true, Ordering::Release);
    publisher.said_hello(None, Ok(())).unwrap();
    assert_eq!(next(&mut publisher), "hello");
}

#[test]
fn a_hello_that_is_refused_or_lost_is_said_again_with_its_question() {
    let (mut publisher, clock) = publisher();
    let question = [7; 16];
    *publisher.bus.question.lock() = Some(question);
    for _ in 0..2 {
        assert_eq!(next(&mut publisher), "ask 7");
        publisher.said_hello(Some(question), refused()).unwrap();
        assert_eq!(next(&mut publisher), "rest", "it is tried again after a while");
        clock.advance(REFUSAL_PAUSE);
    }
    assert_eq!(next(&mut publisher), "ask 7");
    let lost = publisher.said_hello(Some(question), Err(ConnectionError::NotMaster));
    assert!(lost.is_err(), "another connection has to be made");
    assert_eq!(next(&mut publisher), "ask 7");
    publisher.said_hello(Some(question), Ok(())).unwrap();
    assert_eq!(next(&mut publisher), "rest");
}

/// Who hears the last number misses all up to it that Valkey does not have yet.
#[test]
fn hello_is_said_between_purges_but_not_before_one_that_is_not_taken() {
    let (mut publisher, clock) = publisher();
    accept(&publisher, 1);
    assert_eq!(next(&mut publisher), "send 1");
    clock.advance(HELLO_INTERVAL);
    accept(&publisher, 2);
    assert_eq!(next(&mut publisher), "send 1", "its connection was lost");
    taken(&publisher, 1);
    publisher.bus.outbox.lock().heard(1, StreamId::from_milliseconds(1));
    assert_eq!(next(&mut publisher), "hello", "though there is something to send");
    publisher.said_hello(None, Ok(())).unwrap();
    assert_eq!(next(&mut publisher), "gather");
    clock.advance(GATHER);
    assert_eq!(next(&mut publisher), "send 2");
}

/// Where purges are told all the time, there is never nothing to send.
#[test]
fn a_purge_that_does_not_come_back_is_noticed_though_others_are_told() {
    let (mut publisher, clock) = publisher();
    for number in 1..=2 {
        accept(&publisher, number);
        assert_eq!(next(&mut publisher), format!("send {number}"), "one poll is no proof");
        taken(&publisher, number);
        publisher.bus.complete();
        clock.advance(GATHER);
    }
    accept(&publisher, 3);
    assert_eq!(next(&mut publisher), "what was told does not come back");
    // It is looked for over the next connection, and told again.
    publisher.begin();
    let told = publisher.opened(true, None);
    assert_eq!(told.len(), 2);
    let found = [None, Some(own_purge(&publisher, told[1]))];
    publisher.looked_for(&publisher.are_there(&told, &found));
    assert_eq!(next(&mut publisher), "send 1");
}

fn own_purge(publisher: &Publisher, (number, id): (u64, StreamId)) -> Entry {
    let purge = Purge::new(&[Selector::All], PurgeMode::Hard, Duration::ZERO, Duration::ZERO);
    let envelope = publisher.bus.seal.seal(number, &Message::Purge(purge));
    Entry { id, envelope }
}

/// Valkey has lost the end of the stream, and taken others since, to the same places.
#[test]
fn what_was_told_is_told_again_if_something_else_is_in_its_place() {
    type Found = fn(&Publisher, (u64, StreamId)) -> Option<Entry>;
    let founds: [(&str, bool, Found); 7] = [
        ("itself", false, |own, told| Some(own_purge(own, told))),
        ("nothing", true, |_, _| None),
        ("of another process", true, |_, told| Some(own_purge(&publisher().0, told))),
        ("another one of its own", true, |own, (_, id)| Some(own_purge(own, (2, id)))),
        ("a hello", true, |own, (number, id)| {
            let envelope = own.bus.seal.seal(number, &own.bus.hello(None));
            Some(Entry { id, envelope })
        }),
        ("of another program", true, |_, (_, id)| Some(Entry { id, envelope: None })),
        ("one that does not open", true, |own, told| {
            let mut entry = own_purge(own, told);
            entry.envelope.as_mut()?.sealed[30] ^= 1;
            Some(entry)
        }),
    ];
    for (what, is_told_again, found) in founds {
        let (mut publisher, _) = publisher();
        let told @ (number, id) = (1, StreamId::from_milliseconds(1));
        accept(&publisher, 1);
        assert_eq!(next(&mut publisher), "send 1");
        taken(&publisher, number);
        publisher.bus.outbox.lock().heard(number, id);
        publisher.bus.breaks.send_modify(|breaks| *breaks += 1);
        publisher.begin();
        assert_eq!(publisher.opened(true, None), [told]);
        let is_there = publisher.are_there(&[told], &[found(&publisher, told)]);
        publisher.looked_for(&is_there);
        let step = publisher.bus.outbox.lock().next_to_send(publisher.bus.clock.now());
        assert_eq!(step.is_some(), is_told_again, "{what}");
    }
}

/// No reader gets there, unless this process' own has read it before the reply.
#[test]
fn what_is_put_below_the_last_entry_that_was_read_is_put_above_it_and_both_begin_anew() {
    let id = StreamId::from_milliseconds;
    for (anchor, is_read, is_taken) in [(20, false, true), (22, false, false), (22, true, true)] {
        let (publisher, _) = publisher();
        let (bus, resets) = (&publisher.bus, publisher.bus.resets.subscribe());
        bus.follower.lock().begin(Some(id(anchor)), (bus.clock.now(), bus.unix_ms()));
        let envelope = publisher.seal(0, &Message::Bye).unwrap();
        if is_read {
            bus.follower.lock().echoes.read(id(22), &envelope.sealed);
        }
        let taken = publisher.taken(id(22));
        assert_eq!(taken.is_ok(), is_taken, "{anchor} {is_read}");
        assert!(taken.err().is_none_or(|above| above > id(22)));
        assert_eq!(resets.has_changed().unwrap(), !is_taken);
    }
}

/// The stream is lost, and begins anew with lower IDs. One gateway had read an entry more than the other, which finds that
/// out first.
#[test]
fn what_is_put_above_the_last_entry_that_was_read_is_not_taken_for_one_that_another_gateway_has_read() {
    let (last, next) = (StreamId::from_milliseconds(22), StreamId::from_milliseconds(22).next());
    let (publisher, _) = publisher();
    let bus = &publisher.bus;
    bus.follower.lock().begin(Some(last), (bus.clock.now(), bus.unix_ms()));
    publisher.seal(0, &Message::Bye).unwrap();
    let above = publisher.taken(StreamId::from_milliseconds(10)).unwrap_err();
    assert!(above > next, "who has read {next} finds its anchor, and misses what was told below it");
}

/// What does not come back from before is no reason to put this one anywhere else, or to tell it again.
#[test]
fn what_is_in_its_place_is_taken_before_an_older_one_is_missed() {
    let id = StreamId::from_milliseconds;
    let (mut publisher, _) = publisher();
    let bus = Arc::clone(&publisher.bus);
    bus.follower.lock().begin(Some(id(20)), (bus.clock.now(), bus.unix_ms()));
    publisher.seal(0, &Message::Bye).unwrap();
    publisher.taken(id(21)).unwrap();
    (0..2).for_each(|_| bus.complete());
    publisher.seal(0, &Message::Bye).unwrap();
    assert_eq!(publisher.taken(id(22)), Ok(()));
    let resets = bus.resets.subscribe();
    assert_eq!(next(&mut publisher), "what was told does not come back");
    assert!(resets.has_changed().unwrap());
}

/// It may begin no connection anew in the time that is left.
#[test]
fn who_ends_takes_leave_though_something_does_not_come_back() {
    let (mut publisher, _) = publisher();
    let bus = Arc::clone(&publisher.bus);
    accept(&publisher, 1);
    assert_eq!(next(&mut publisher), "send 1");
    taken(&publisher, 1);
    (0..2).for_each(|_| bus.complete());
    bus.ending.cancel();
    assert_eq!(next(&mut publisher), "bye");
}

#[test]
fn questions_are_answered_if_something_of_before_is_known() {
    let (mut publisher, clock) = publisher();
    let bus = Arc::clone(&publisher.bus);
    let shared = Arc::clone(bus.shared.as_ref().unwrap());
    shared.follow(Some(Identity { run_id: "a".to_owned(), replid: "1".to_owned() }));
    shared.lose(Some(StreamId::from_milliseconds(1)), &bus.clock);
    for (question, step) in [([1; 16], "rest"), ([2; 16], "report to 1")] {
        bus.questions.lock().asked(question, bus.clock.now(), Vec::new(), (100, 0.5));
        assert_eq!(next(&mut publisher), "rest", "another gateway may answer");
        assert_eq!(publisher.rest(), Duration::from_millis(200));
        clock.advance(Duration::from_millis(200));
        assert_eq!(next(&mut publisher), step);
        assert_eq!((next(&mut publisher), publisher.rest()), ("rest".to_owned(), PING_INTERVAL));
        // By then it has heard all for longer than clocks may differ.
        clock.advance(Duration::from_secs(2));
    }
    publisher.said_report(refused()).unwrap();
    assert!(publisher.said_report(Err(ConnectionError::NotMaster)).is_err());
    publisher.said_report(Ok(())).unwrap();
    assert_eq!(shared.counters().reports.get(ReportEvent::Told), 1);
}

#[test]
fn a_bye_comes_after_all_that_is_to_be_told() {
    let (mut publisher, clock) = publisher();
    accept(&publisher, 1);
    publisher.bus.ending.cancel();
    assert_eq!(next(&mut publisher), "send 1");
    taken(&publisher, 1);
    for _ in 0..3 {
        publisher.bus.complete();
    }
    clock.advance(GATHER);
    assert_eq!(next(&mut publisher), "bye", "whether it comes back or not");
}
