use std::time::Duration;

use super::*;
use crate::cache::purge::{PurgeMode, Selector};
use crate::fleet::keys::FleetKeys;
use crate::fleet::report::KnownPurges;
use crate::fleet::stream::Envelope;
use crate::secret::ShellSecret;

const NOW_MS: u64 = 1_800_000_000_000;

fn seal() -> MessageSeal {
    let secret = ShellSecret::from_text(b"s3cret").unwrap();
    MessageSeal::new(&FleetKeys::new(&secret, "rails", "").unwrap()).unwrap()
}

fn purge(key_id: u64) -> Purge {
    Purge::new(&[Selector::KeyId(key_id)], PurgeMode::Hard, Duration::ZERO, Duration::ZERO)
}

fn at(milliseconds: u64) -> StreamId {
    StreamId::from_milliseconds(milliseconds)
}

fn server(life: &str) -> Option<Identity> {
    Some(Identity { run_id: life.to_owned(), replid: "1".to_owned() })
}

/// An entry of `seal`'s process. Purges are about the key with their number.
fn entry(seal: &MessageSeal, milliseconds: u64, number: u64, message: &Message) -> Entry {
    Entry { id: at(milliseconds), envelope: seal.seal(number, message) }
}

fn says(seal: &MessageSeal, milliseconds: u64, number: u64) -> Entry {
    entry(seal, milliseconds, number, &Message::Purge(purge(number)))
}

/// A follower that has begun behind entry 10, its own seal, and that of another process.
fn following() -> (Follower, MessageSeal, MessageSeal) {
    let (own, other) = (seal(), seal());
    let mut follower = Follower::new(own.publisher());
    assert!(follower.connected(server("a")));
    assert_eq!(follower.begin(Some(at(10)), now()), [News::Doubt(DoubtReason::Start)]);
    (follower, own, other)
}

fn now() -> (Instant, u64) {
    (Instant::now(), NOW_MS)
}

/// Long after the begin.
fn later() -> (Instant, u64) {
    (Instant::now() + MAX_SILENCE, NOW_MS)
}

fn poll(follower: &mut Follower, own: &MessageSeal, entries: &[Entry]) -> Vec<News> {
    follower.polled((entries, true), own, later())
}

fn hello(question: Option<Question>) -> Message {
    Message::Hello { said_at_ms: NOW_MS, origin: crate::fleet::message::Origin::default(), question }
}

#[test]
fn purges_of_others_are_heard_once_and_in_order() {
    let (mut follower, own, other) = following();
    let entries = [says(&other, 11, 1), says(&own, 12, 1), says(&other, 13, 2), says(&other, 14, 1)];
    let news = poll(&mut follower, &own, &entries);
    assert_eq!(
        news,
        [News::Purge(at(11), purge(1)), News::Echo(at(12), 1, purge(1)), News::Purge(at(13), purge(2))]
    );
    assert_eq!(follower.read_from(), at(14));
    assert_eq!(poll(&mut follower, &own, &[]), []);
}

#[test]
fn another_life_of_the_server_is_doubted_behind_a_new_anchor() {
    for (identity, is_anew) in [(server("a"), false), (server("b"), true), (None, true)] {
        let (mut follower, own, _) = following();
        assert_eq!(follower.connected(identity.clone()), is_anew, "{identity:?}");
        if is_anew {
            assert_eq!(follower.anchor(), None);
            assert_eq!(follower.begin(Some(at(5)), now()), [News::Doubt(DoubtReason::Server)]);
            assert_eq!(follower.read_from(), at(5));
        } else {
            assert_eq!(follower.read_from(), at(10));
        }
        assert_eq!(poll(&mut follower, &own, &[]), []);
    }
    // A server that does not say which one it is may be another one each time.
    let (mut follower, ..) = following();
    for _ in 0..2 {
        assert!(follower.connected(None));
        follower.begin(Some(at(10)), now());
    }
}

#[test]
fn a_publisher_at_another_server_is_noticed() {
    let mut follower = Follower::new(seal().publisher());
    assert!(!follower.may_be_elsewhere(server("a").as_ref()), "there is no connection yet");
    for (reader, publisher, may_be_elsewhere) in
        [("a", "a", false), ("a", "b", true), ("a", "", true), ("", "a", true), ("", "", true)]
    {
        let [reader, publisher] = [reader, publisher].map(|life| server(life).filter(|_| !life.is_empty()));
        follower.connected(reader.clone());
        assert_eq!(
            follower.may_be_elsewhere(publisher.as_ref()),
            may_be_elsewhere,
            "{reader:?} {publisher:?}"
        );
    }
}

/// Valkey may refuse to say what the last entry is, or be gone: the doubt does not wait for that.
#[test]
fn a_lost_anchor_is_doubted_at_once_and_again_when_there_is_a_new_one() {
    let (mut follower, own, other) = following();
    let news = follower.polled((&[says(&other, 11, 1)], false), &own, later());
    let doubt = News::Doubt(DoubtReason::Anchor);
    assert_eq!(news, [News::Purge(at(11), purge(1)), doubt], "what came is heard");
    assert_eq!(follower.anchor(), None);
    assert!(follower.connected(server("a")), "a connection that ends meanwhile does not save it");
    assert_eq!(follower.begin(Some(at(12)), now()), [News::DoubtAgain]);
    assert!(!follower.connected(server("a")));
    assert_eq!(poll(&mut follower, &own, &[]), []);
}

/// Valkey may refuse to take any, for as long as it is full.
#[test]
fn an_empty_stream_is_doubted_at_once_and_again_when_it_has_an_entry() {
    let (own, other) = (seal(), seal());
    let mut follower = Follower::new(own.publisher());
    let [start, server_b] = [DoubtReason::Start, DoubtReason::Server].map(News::Doubt);
    for (life, doubts) in [("a", vec![start]), ("a", vec![]), ("b", vec![server_b])] {
        assert!(follower.connected(server(life)));
        assert_eq!(follower.begin(None, now()), doubts, "{life}");
        assert!(follower.anchor().is_none() && follower.read_from() == StreamId::default());
        assert_eq!(follower.polled((&[], false), &own, later()), []);
    }
    let entries = [says(&other, 11, 1), entry(&own, 12, 0, &hello(None))];
    let news = follower.polled((&entries, false), &own, later());
    assert_eq!(news, [News::Purge(at(11), purge(1)), News::DoubtAgain]);
    assert_eq!(follower.read_from(), at(12));
    assert_eq!(poll(&mut follower, &own, &[]), []);
}

#[test]
fn a_missing_message_is_doubted_and_heard_if_it_comes_after_all() {
    let (mut follower, own, other) = following();
    let doubt = || News::Doubt(DoubtReason::Counter);
    // Also what was told before the first message that is heard: the others were removed.
    let news = poll(&mut follower, &own, &[says(&other, 11, 40)]);
    assert_eq!(news, [News::Purge(at(11), purge(40)), doubt()]);
    let news = poll(&mut follower, &own, &[says(&other, 12, 44), says(&other, 13, 45)]);
    assert_eq!(news, [News::Purge(at(12), purge(44)), News::Purge(at(13), purge(45)), doubt()]);
    let late = [42, 42, 44, 41, 43, 43].map(|number| says(&other, 14, number));
    let numbers = poll(&mut follower, &own, &late).into_iter().map(|news| match news {
        News::Purge(_, purge) => purge.selectors,
        news => unreachable!("{news:?}"),
    });
    assert_eq!(numbers.collect::<Vec<_>>(), [42, 41, 43].map(|number| vec![Selector::KeyId(number)]));
}

/// Nothing follows the last message of a process by which its loss could be noticed.
#[test]
fn a_hello_and_a_bye_tell_of_a_missing_last_message() {
    for message in [hello(None), Message::Bye] {
        for (number, doubted) in [(3, false), (4, true)] {
            let (mut follower, own, other) = following();
            let known: Vec<Entry> = (1..=3).map(|number| says(&other, 11, number)).collect();
            follower.reread(&known, &own, now());
            let news = poll(&mut follower, &own, &[entry(&other, 12, number, &message)]);
            let expected = if doubted { vec![News::Doubt(DoubtReason::Counter)] } else { Vec::new() };
            assert_eq!(news, expected, "{message:?} {number}");
        }
    }
}

/// A report that was told before the anchor does not know of everything that was told before it.
#[test]
fn questions_and_reports_are_heard_behind_the_anchor_only() {
    let (mut follower, own, other) = following();
    let known = KnownPurges { floor: at(1), asked_from_ms: 2, purges: Vec::new() };
    let (questions, server) = (vec![[1; 16]], server("a").unwrap());
    let report = Report { questions, server, heard: vec![(own.publisher(), 3)], known };
    let messages = [hello(Some([1; 16])), Message::Report(report.clone())];
    let [ask, tell] = messages.map(|message| entry(&other, 11, 0, &message));
    let entries = [ask, tell, entry(&own, 12, 0, &hello(Some([2; 16])))];
    assert_eq!(follower.reread(&entries, &own, now()), []);
    assert_eq!(poll(&mut follower, &own, &entries), [News::Ask([1; 16]), News::Report(report)]);
    let entries = [entry(&other, 13, 2, &hello(Some([3; 16]))), says(&other, 14, 3)];
    let news = poll(&mut follower, &own, &entries);
    let doubt = News::Doubt(DoubtReason::Counter);
    let told = News::Purge(at(14), purge(3));
    assert_eq!(
        news,
        [told, doubt, News::Ask([3; 16])],
        "it tells of missing purges, which are doubted first"
    );
    let entries = [entry(&other, 15, 3, &hello(Some([4; 16])))];
    let news = follower.polled((&entries, false), &own, later());
    assert_eq!(news, [News::Doubt(DoubtReason::Anchor), News::Ask([4; 16])]);
}

/// A writer of Valkey can remove a purge before some have heard it. Who reads the stream again sees no gap in what is left,
/// and may see that there was more.
#[test]
fn a_report_covers_what_was_told_before_the_anchor_as_far_as_that_is_known() {
    let (mut follower, own, other) = following();
    let (quiet, gone) = (seal(), seal());
    assert!(follower.members.are_covered_by(&[]), "nothing is known");
    let entries = [
        entry(&other, 7, 4, &hello(None)),
        says(&other, 8, 5),
        entry(&quiet, 8, 0, &hello(None)),
        says(&gone, 8, 2),
        entry(&gone, 9, 2, &Message::Bye),
    ];
    follower.reread(&entries, &own, now());
    for (heard, is_covered) in [
        (vec![], false),
        (vec![(other.publisher(), 4)], false),
        (vec![(quiet.publisher(), 5)], false),
        (vec![(other.publisher(), 5)], false),
        (vec![(other.publisher(), 5), (gone.publisher(), 2)], true),
        (vec![(own.publisher(), 1), (other.publisher(), 6), (gone.publisher(), 3)], true),
    ] {
        assert_eq!(follower.members.are_covered_by(&heard), is_covered, "{heard:?}");
    }
    poll(&mut follower, &own, &[says(&other, 11, 6), says(&quiet, 12, 1)]);
    assert!(
        follower.members.are_covered_by(&[(other.publisher(), 5), (gone.publisher(), 2)]),
        "what came since is heard here"
    );
    let mut heard = follower.members.counts();
    heard.sort_unstable();
    let mut expected = [(other.publisher(), 6), (quiet.publisher(), 1), (gone.publisher(), 2)];
    expected.sort_unstable();
    assert_eq!(heard, expected);
}

#[test]
fn entries_of_others_are_counted_and_break_no_chain() {
    let (mut follower, own, other) = following();
    let message = Message::Purge(purge(2));
    let forged = Envelope { number: 2, ..other.seal(9, &message).unwrap() };
    let entries = [
        says(&other, 11, 1),
        Entry { id: at(12), envelope: None },
        Entry { id: at(13), envelope: Some(forged) },
        says(&other, 14, 2),
    ];
    let news = poll(&mut follower, &own, &entries);
    let purge = |at_ms, number| News::Purge(at(at_ms), purge(number));
    let [fields, sealed] = [Unreadable::Fields, Unreadable::Seal].map(News::Unreadable);
    assert_eq!(news, [purge(11, 1), fields, sealed, purge(14, 2)]);
}

#[test]
fn entries_from_far_ahead_are_doubted_once() {
    let (mut follower, own, other) = following();
    let poll_at = |follower: &mut Follower, milliseconds, number| {
        poll(follower, &own, &[says(&other, milliseconds, number)]).pop()
    };
    assert_eq!(
        poll_at(&mut follower, NOW_MS + FAR_AHEAD_MS, 1),
        None.or(Some(News::Purge(at(NOW_MS + FAR_AHEAD_MS), purge(1))))
    );
    let far = poll_at(&mut follower, NOW_MS + FAR_AHEAD_MS + 1, 2);
    assert_eq!(far, Some(News::Doubt(DoubtReason::Future)));
    assert_eq!(poll_at(&mut follower, u64::MAX, 3), Some(News::Purge(at(u64::MAX), purge(3))));
}

#[test]
fn what_is_read_again_is_dropped_again_and_tells_who_is_there() {
    let (mut follower, own, other) = following();
    let entries = [says(&other, 7, 1), says(&own, 8, 1), entry(&other, 9, 1, &hello(None))];
    for _ in 0..2 {
        assert_eq!(
            follower.reread(&entries, &own, now()),
            [News::Reread(at(7), purge(1))],
            "but not what is this process' own"
        );
    }
    assert_eq!(follower.members.list().len(), 1);
    assert_eq!(follower.read_from(), at(10));
    let news = follower.reread(&[says(&other, 9, 2)], &own, now());
    assert_eq!(news, [News::Purge(at(9), purge(2))], "of a known process, it is known to be new");
    assert_eq!(poll(&mut follower, &own, &[says(&other, 11, 3)]), [News::Purge(at(11), purge(3))]);
}

/// A server that gives up an entry, or puts it where no reader gets, shows that others may be missing. Who connects again
/// begins anew.
#[test]
fn what_does_not_come_back_is_doubted_over_the_next_connection() {
    for (placed, is_read, is_missed) in [(11, true, false), (11, false, true), (9, false, true)] {
        let (mut follower, own, _) = following();
        let said = entry(&own, placed, 0, &hello(None));
        follower.echoes.sending(&said.envelope.as_ref().unwrap().sealed);
        assert_eq!(follower.taken(said.id, 0).is_ok(), placed > 10, "no reader gets to {placed}");
        let read = if is_read { vec![said] } else { Vec::new() };
        assert_eq!(poll(&mut follower, &own, &read), []);
        assert!(!follower.misses_echo(1), "one poll is no proof, and a miss is told once");
        follower.misses_echo(2);
        let anew = follower.connected(server("a"));
        assert_eq!(anew, is_missed, "{placed} {is_read}");
        if anew {
            assert_eq!(follower.begin(Some(at(12)), now()), [News::Doubt(DoubtReason::Anchor)]);
            assert!(!follower.misses_echo(99) && !follower.connected(server("a")), "once");
        }
    }
}

/// In a busy stream, the last hello of each may be trimmed. What they had told before is doubted already.
#[test]
fn all_that_is_told_by_strangers_within_90_seconds_of_the_begin_is_doubted_once() {
    let (own, others) = (seal(), [(); 3].map(|()| seal()));
    let mut follower = Follower::new(own.publisher());
    let begin = Instant::now();
    follower.connected(server("a"));
    follower.begin(Some(at(10)), (begin, NOW_MS));
    let mut poll_at = |second, entries: &[Entry]| {
        follower.polled((entries, true), &own, (begin + Duration::from_secs(second), NOW_MS))
    };
    let purged = |id, number| News::Purge(at(id), purge(number));
    let doubt = || News::Doubt(DoubtReason::Counter);
    assert_eq!(poll_at(1, &[says(&others[0], 11, 7)]), [purged(11, 7)]);
    assert_eq!(poll_at(2, &[entry(&others[1], 12, 3, &hello(None))]), []);
    assert_eq!(poll_at(3, &[says(&others[1], 13, 5)]), [purged(13, 5), doubt()], "it is none any more");
    assert_eq!(poll_at(89, &[]), []);
    assert_eq!(poll_at(90, &[]), [doubt()], "what they have told since may be removed");
    assert_eq!(poll_at(91, &[]), []);
    assert_eq!(poll_at(92, &[says(&others[2], 14, 2)]), [purged(14, 2), doubt()], "it was never heard");
}

/// What is not heard, others may have heard: only what they know of it can be used.
#[test]
fn after_a_gap_a_report_has_to_cover_what_was_missed() {
    let (mut follower, own, other) = following();
    follower.reread(&[says(&other, 9, 1)], &own, now());
    let entries = [says(&other, 11, 2), entry(&other, 12, 4, &hello(None))];
    assert_eq!(poll(&mut follower, &own, &entries).last(), Some(&News::Doubt(DoubtReason::Counter)));
    for (count, is_covered) in [(1, false), (3, false), (4, true)] {
        assert_eq!(follower.members.are_covered_by(&[(other.publisher(), count)]), is_covered, "{count}");
    }
}

#[test]
fn who_says_no_more_that_it_is_there_is_doubted_each_minute() {
    let (mut follower, own, other) = following();
    let begin = Instant::now();
    let at = |second: u64| (begin + Duration::from_secs(second), NOW_MS + second * 1_000);
    let said = entry(&other, 11, 0, &hello(None));
    for second in [0, 90] {
        assert_eq!(follower.polled((std::slice::from_ref(&said), true), &own, at(second)), []);
        assert_eq!(follower.notice_silence(at(second)), None, "clocks may differ");
    }
    let silent = Silent { publisher: other.publisher(), host: String::new() };
    for second in [91, 151] {
        assert_eq!(follower.notice_silence(at(second)), Some(News::Silence(vec![silent.clone()])));
        assert_eq!(follower.notice_silence(at(second + 59)), None);
    }
    // What was hidden is doubted by the begin; it is read again as far as it is there.
    follower.begin(Some(StreamId::from_milliseconds(12)), at(220));
    follower.reread(&[said], &own, at(220));
    assert_eq!(follower.notice_silence(at(310)), None);
    assert_eq!(follower.notice_silence(at(311)), Some(News::Silence(vec![silent])));
}
