use super::*;
use crate::cache::purge::{PurgeMode, PurgeResult, Selector};
use crate::cache::{Cache, CacheSettings};
use crate::clock::{Clock, ManualClock};
use crate::fleet::keys::FleetKeys;
use crate::fleet::members::MAX_SILENCE;
use crate::fleet::message::{Message, MessageSeal, Origin};
use crate::fleet::purger::Step;
use crate::fleet::settings::{FleetSettings, SharedSettings};
use crate::fleet::shared::SharedAnswers;
use crate::fleet::tests::scripted::{ScriptedServer, array, bulk, reply_as_master};
use crate::secret::ShellSecret;
use crate::upstream::UpstreamAddress;

/// A gateway that shares answers and has begun behind the ID 1, and the seal of another one.
struct Scene {
    reader: Reader,
    clock: ManualClock,
    other: MessageSeal,
    last_ms: u64,
}

impl Scene {
    fn begin() -> Self {
        let clock = ManualClock::at(1_800_000_000);
        let keys = FleetKeys::new(&ShellSecret::from_text(b"s3cret").unwrap(), "rails", "").unwrap();
        let [own, other] = [(); 2].map(|()| MessageSeal::new(&keys).unwrap());
        let settings = Arc::new(FleetSettings::new(UpstreamAddress::Tcp("valkey".to_owned(), 6379)));
        let cache = Cache::new(&CacheSettings::default());
        let shared = SharedAnswers::new((SharedSettings::default(), settings.alone_after), &keys, &cache);
        let clocked = (settings, Clock::Manual(clock.clone()));
        let bus = Bus::new(clocked, (keys.bus(), own), cache, shared.map(Arc::new));
        bus.follower.lock().connected(None);
        bus.follower.lock().begin(Some(StreamId::from_milliseconds(1)), (bus.clock.now(), bus.unix_ms()));
        Self { reader: Reader::new(Arc::new(bus)), clock, other, last_ms: 1 }
    }

    fn bus(&self) -> &Bus {
        &self.reader.bus
    }

    fn hear(&mut self, messages: &[(u64, Message)]) {
        let entries = messages.iter().map(|(number, message)| {
            self.last_ms += 1;
            let id = StreamId::from_milliseconds(self.last_ms);
            Entry { id, envelope: self.other.seal(*number, message) }
        });
        let entries = entries.collect();
        self.reader.hear(&Poll { entries, anchor_found: true, is_master: true });
    }

    fn hello(&self) -> (u64, Message) {
        let said_at_ms = self.bus().unix_ms();
        (0, Message::Hello { said_at_ms, origin: Origin::default(), question: None })
    }

    fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    fn silences(&self) -> u64 {
        self.bus().counters.doubts.get(DoubtReason::Silence)
    }
}

fn purge() -> Message {
    Message::Purge(Purge::new(&[Selector::KeyId(7)], PurgeMode::Hard, Duration::ZERO, Duration::ZERO))
}

/// Of a purge that is missed, it is not known how long Rails may still tell the old story.
#[test]
fn a_missed_purge_is_doubted_once_more_after_its_settle_time_and_one_that_is_heard_is_not() {
    for (number, is_missed) in [(1, false), (2, true)] {
        let mut scene = Scene::begin();
        scene.clock.advance(MAX_SILENCE);
        scene.hear(&[(number, purge())]);
        let purger = &scene.bus().purger;
        let Step::Drop(look) = purger.next_step() else { panic!("the purge is heard") };
        purger.dropped(&look, PurgeResult::default());
        scene.clock.advance(REREAD.saturating_sub(Duration::from_millis(1)));
        assert!(matches!(purger.next_step(), Step::Rest(_)));
        scene.clock.advance(Duration::from_millis(1));
        assert_eq!(matches!(purger.next_step(), Step::Doubt), is_missed, "{number}");
    }
}

/// All that a silent gateway may have told is doubted each minute anyway.
#[test]
fn a_silence_is_not_doubted_once_more_after_a_settle_time() {
    let mut scene = Scene::begin();
    scene.hear(&[scene.hello()]);
    scene.pass(91);
    scene.hear(&[]);
    assert_eq!(scene.silences(), 1);
    scene.clock.advance(REREAD);
    assert!(matches!(scene.bus().purger.next_step(), Step::Rest(_)));
}

/// The hello of the silent one may be on the next page.
#[test]
fn silence_is_judged_once_all_is_heard_that_there_is() {
    let mut scene = Scene::begin();
    scene.hear(&[scene.hello()]);
    scene.reader.max_entries = 1;
    scene.pass(91);
    scene.hear(&[(1, purge())]);
    assert_eq!(scene.silences(), 0, "there may be more");
    scene.hear(&[]);
    assert_eq!(scene.silences(), 1, "there was not");
    scene.pass(1);
    scene.hear(&[scene.hello()]);
    scene.pass(91);
    scene.hear(&[(1, purge())]);
    scene.hear(&[scene.hello()]);
    scene.hear(&[]);
    assert_eq!(scene.silences(), 1, "there was its hello");
}

/// Valkey was away for all of them, and they come back one after the other.
#[test]
fn who_was_alone_gives_the_others_ten_seconds_to_come_back_and_who_was_not_gives_none() {
    for is_alone in [true, false] {
        let mut scene = Scene::begin();
        scene.hear(&[scene.hello()]);
        scene.pass(91);
        if is_alone {
            scene.bus().check_condition(scene.bus().clock.now());
        }
        for second in 0..10 {
            scene.hear(&[]);
            assert_eq!(scene.silences(), u64::from(!is_alone), "{second}");
            scene.pass(1);
        }
        scene.hear(&[]);
        assert_eq!(scene.silences(), 1, "{is_alone}");
    }
}

/// What is told before the last doubt is worth nothing behind it; and what a silent gateway has told is known to no other.
#[test]
fn an_open_question_is_given_up_behind_a_silence_and_what_is_missed_beside_it_is_asked_for() {
    for (asks, misses, is_asked) in [(false, false, false), (true, false, false), (false, true, true)] {
        let mut scene = Scene::begin();
        scene.hear(&[scene.hello()]);
        if asks {
            scene.reader.ask();
        }
        let before = scene.bus().question.lock().take();
        scene.pass(91);
        // It tells of three purges that were not heard; and is silent, by what it says.
        let old = (3, Message::Hello { said_at_ms: 1, origin: Origin::default(), question: None });
        scene.hear(if misses { std::slice::from_ref(&old) } else { &[] });
        assert_eq!(scene.silences(), 1);
        let question = *scene.bus().question.lock();
        assert!(question.is_some() == is_asked && (!is_asked || question != before), "{asks} {misses}");
    }
}

/// A proxy or a service may reply at once that there is nothing new.
#[tokio::test]
async fn a_server_that_does_not_wait_for_news_is_not_asked_as_fast_as_it_replies() {
    const POLLS: u32 = 50;
    let polls = Arc::new(tokio::sync::Semaphore::new(0));
    let counted = Arc::clone(&polls);
    let server = ScriptedServer::start(move |command| {
        if let Some(reply) = reply_as_master(command) {
            return reply;
        }
        let hello = [&bulk(b"5-0")[..], &array(&[&bulk(b"other"), &bulk(b"1")])];
        match command[0].as_str() {
            "XREAD" => {
                counted.add_permits(1);
                b"*-1\r\n".to_vec()
            }
            "XREVRANGE" | "XRANGE" => array(&[&array(&hello)]),
            other => panic!("{other}"),
        }
    })
    .await;
    let keys = FleetKeys::new(&ShellSecret::from_text(b"s3cret").unwrap(), "rails", "").unwrap();
    let seal = MessageSeal::new(&keys).unwrap();
    let settings = Arc::new(FleetSettings::new(server.address.clone()));
    let bus =
        Bus::new((settings, Clock::System), (keys.bus(), seal), Cache::new(&CacheSettings::default()), None);
    let mut reader = Reader::new(Arc::new(bus));
    let mut backoff = Backoff::new(LONGEST_OF_READER);
    let begin = Instant::now();
    let polled = async { polls.acquire_many(POLLS).await.map(drop) };
    tokio::select! {
        end = reader.follow(&mut backoff) => panic!("{end:?}"),
        polled = polled => polled.unwrap(),
    }
    assert!(begin.elapsed() >= COALESCE * (POLLS - 2), "{:?}", begin.elapsed());
}
