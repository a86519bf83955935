use proptest::prelude::*;

use super::*;
use crate::cache::purge::{PurgeMode, Selector};
use crate::fleet::message::Purge;

const NOW_MS: u64 = 1_800_000_000_000;

fn purge() -> Message {
    Message::Purge(Purge::new(&[Selector::All], PurgeMode::Hard, Duration::ZERO, Duration::ZERO))
}

fn hello(second: u64) -> Message {
    hello_of("", 0, second)
}

/// Of a process that runs on `host` since a second.
fn hello_of(host: &str, began: u64, second: u64) -> Message {
    let [began_at_ms, said_at_ms] = [began, second].map(|second| NOW_MS + second * 1_000);
    Message::Hello { said_at_ms, origin: Origin { host: host.to_owned(), began_at_ms }, question: None }
}

/// Other processes, and when they were first heard.
struct Scene(Members, Instant);

impl Scene {
    fn begin() -> Self {
        Self(Members::default(), Instant::now())
    }

    fn at(&self, second: u64) -> (Instant, u64) {
        (self.1 + Duration::from_secs(second), NOW_MS + second * 1_000)
    }

    fn hears(&mut self, second: u64, name: u8, (number, message): (u64, Message)) -> Noted {
        let at = self.at(second);
        self.0.note([name; 8], (number, &message), at)
    }

    fn is_silent_at(&mut self, second: u64) -> bool {
        !self.silent_at(second).is_empty()
    }

    /// The first byte of each that is noticed.
    fn silent_at(&mut self, second: u64) -> Vec<u8> {
        let mut silent: Vec<u8> =
            self.0.notice_silence(self.at(second)).iter().map(|silent| silent.publisher[0]).collect();
        silent.sort_unstable();
        silent
    }
}

#[test]
fn members_come_with_their_first_word_and_go_with_a_bye_or_after_an_hour() {
    let mut scene = Scene::begin();
    let first = scene.hears(0, 1, (0, hello(0)));
    assert_eq!(first, Noted { is_new: false, has_gap: false, is_stranger: true });
    let second = scene.hears(0, 2, (7, purge()));
    assert_eq!(second, Noted { is_new: true, has_gap: true, is_stranger: true });
    let members = scene.0.list();
    let names = members.iter().map(|member| (member.publisher, member.purges));
    assert_eq!(names.collect::<Vec<_>>(), [([1; 8], 0), ([2; 8], 7)]);
    assert_eq!(scene.0.counts(), [([2; 8], 7)]);
    scene.hears(1, 2, (7, Message::Bye));
    assert_eq!((scene.0.count(), scene.0.list().len()), (1, 1));
    assert_eq!(scene.0.counts(), [([2; 8], 7)], "what it has told still counts");
    let again = scene.hears(2, 2, (7, purge()));
    assert_eq!((again.is_new, again.is_stranger, scene.0.count()), (false, false, 1));
    scene.0.forget(scene.at(3_600).0);
    assert_eq!(scene.0.count(), 1);
    scene.0.forget(scene.at(3_603).0);
    assert_eq!((scene.0.count(), scene.0.counts()), (0, vec![]));
}

#[test]
fn a_process_that_says_hello_each_minute_or_has_taken_its_leave_is_not_silent() {
    let mut scene = Scene::begin();
    for minute in 0..100 {
        scene.hears(60 * minute, 1, (0, hello(60 * minute)));
        assert!(!scene.is_silent_at(60 * minute + 59));
    }
    scene.hears(6_000, 1, (0, Message::Bye));
    assert!(!scene.is_silent_at(9_000));
}

/// As if it had ended without a word, or all of it were removed. Others that are heard do not stand for it.
#[test]
fn a_silent_process_is_noticed_each_minute_until_it_is_heard_or_forgotten() {
    let mut scene = Scene::begin();
    scene.hears(0, 1, (0, hello(0)));
    let noticed = (0..=3_600).filter(|second| {
        scene.hears(*second, 2, (0, hello(*second)));
        scene.is_silent_at(*second)
    });
    let noticed: Vec<u64> = noticed.collect();
    assert_eq!((noticed[0], noticed[1], noticed.len()), (91, 151, 59));
    scene.hears(3_600, 1, (0, hello(3_600)));
    assert!(!scene.is_silent_at(3_690) && scene.is_silent_at(3_691));
    scene.0.forget(scene.at(7_201).0);
    assert!(!scene.is_silent_at(9_000));
}

/// What it has told since its last hello, it alone knows.
#[test]
fn no_report_covers_what_a_silent_process_has_told() {
    let mut scene = Scene::begin();
    scene.hears(0, 1, (3, hello(0)));
    for (second, is_silent, is_covered) in
        [(90, false, true), (91, true, false), (100, false, false), (151, true, false), (152, false, false)]
    {
        assert_eq!(scene.is_silent_at(second), is_silent, "{second}");
        assert_eq!(scene.0.are_covered_by(&[([1; 8], 3)]), is_covered, "{second}");
    }
    scene.hears(153, 1, (3, hello(153)));
    assert!(scene.0.are_covered_by(&[([1; 8], 3)]));
}

/// Its last words may have been removed, so the others doubt once.
#[test]
fn who_was_killed_is_noticed_once_if_another_has_begun_later_in_its_place_and_is_still_there() {
    for (host, began, leaves, is_repeated) in [
        ("pod-1", 70, false, false),
        ("pod-1", 11, false, false),
        ("pod-1", 10, false, true),
        ("pod-1", 70, true, true),
        ("pod-2", 70, false, true),
        ("", 70, false, true),
    ] {
        let mut scene = Scene::begin();
        scene.hears(60, 1, (0, hello_of("pod-1", 10, 60)));
        scene.hears(70, 2, (0, hello_of(host, began, 70)));
        if leaves {
            scene.hears(80, 2, (0, Message::Bye));
        }
        let noticed = (80..=300).filter(|second| {
            if !leaves && second % 60 == 10 {
                scene.hears(*second, 2, (0, hello_of(host, began, *second)));
            }
            scene.is_silent_at(*second)
        });
        let noticed: Vec<u64> = noticed.collect();
        let expected = if is_repeated { &[151, 211, 271][..] } else { &[151] };
        assert_eq!(noticed, expected, "{host} {began} {leaves}");
        let is_covered = scene.0.are_covered_by(&[([1; 8], 0), ([2; 8], 0)]);
        assert_eq!(
            is_covered, !is_repeated,
            "reports count again once it is replaced: {host} {began} {leaves}"
        );
    }
    // Nor does a process without a name replace another one.
    let mut scene = Scene::begin();
    scene.hears(0, 1, (0, hello_of("", 0, 0)));
    scene.hears(60, 2, (0, hello_of("", 50, 60)));
    assert!(scene.is_silent_at(91) && scene.is_silent_at(151));
}

#[test]
fn each_silence_is_noticed_when_it_begins_and_all_together_from_then_on() {
    let mut scene = Scene::begin();
    for (second, name) in [(0, 1), (0, 2), (20, 3)] {
        scene.hears(second, name, (0, hello(second)));
    }
    scene.hears(60, 2, (0, hello(60)));
    let noticed = (61..=240).map(|second| (second, scene.silent_at(second)));
    let noticed: Vec<_> = noticed.filter(|(_, silent)| !silent.is_empty()).collect();
    let expected = [(91, vec![1]), (111, vec![1, 3]), (151, vec![1, 2, 3]), (211, vec![1, 2, 3])];
    assert_eq!(noticed, expected);
    // One that is heard again starts over.
    scene.hears(241, 1, (0, hello(241)));
    assert_eq!(scene.silent_at(271), [2, 3]);
    assert_eq!(scene.silent_at(332), [1, 2, 3]);
}

#[test]
fn the_names_of_silent_processes_say_where_they_run() {
    for (host, shown) in [("pod-1", "0101010101010101 on pod-1"), ("", "0101010101010101")] {
        let mut scene = Scene::begin();
        scene.hears(0, 1, (0, hello_of(host, 0, 0)));
        let silent = scene.0.notice_silence(scene.at(91));
        assert_eq!(silent.iter().map(ToString::to_string).collect::<Vec<_>>(), [shown]);
    }
}

/// With 10,000 members, a look takes a while, and polls may come by the hundred.
#[test]
fn silence_is_looked_for_once_a_second() {
    let mut scene = Scene::begin();
    scene.hears(0, 1, (0, hello(0)));
    assert!(!scene.is_silent_at(90));
    let (now, now_ms) = scene.at(90);
    for (ms, is_noticed) in [(1, false), (999, false), (1_000, true)] {
        let at = (now + Duration::from_millis(ms), now_ms + ms);
        assert_eq!(!scene.0.notice_silence(at).is_empty(), is_noticed, "{ms}");
    }
}

/// By the wall clock alone, a silence would last an hour longer.
#[test]
fn a_step_of_the_own_clock_hides_no_silence() {
    let mut scene = Scene::begin();
    scene.hears(0, 1, (0, hello(0)));
    let stepped = |second| (scene.at(second).0, NOW_MS - 3_600_000 + second * 1_000);
    let [before, after] = [stepped(90), stepped(91)];
    assert!(scene.0.notice_silence(before).is_empty() && !scene.0.notice_silence(after).is_empty());
}

/// All was doubted when the stream was begun anew, and the last hello may not have been read again.
#[test]
fn the_clock_of_silence_begins_anew_with_the_stream_for_those_that_are_read_again() {
    let mut scene = Scene::begin();
    for name in [1, 2] {
        scene.hears(0, name, (0, hello(0)));
    }
    scene.hears(85, 1, (0, hello(0)));
    scene.0.was_before_anchor([1; 8], scene.at(85));
    assert_eq!(scene.silent_at(91), [2]);
    assert_eq!(scene.silent_at(176), [1, 2]);
}

#[test]
fn a_stranger_that_takes_leave_without_having_told_anything_is_no_member() {
    for (number, count) in [(0, 0), (3, 1)] {
        let mut scene = Scene::begin();
        let noted = scene.hears(0, 1, (number, Message::Bye));
        assert!(noted.is_stranger && noted.has_gap == (number > 0));
        assert_eq!(scene.0.heard.len(), count, "{number}");
    }
}

#[test]
fn if_there_are_too_many_those_go_first_that_have_left() {
    let mut scene = Scene::begin();
    let name = |number: usize| u64::try_from(number).unwrap().to_be_bytes();
    for number in 0..=MAX_MEMBERS {
        scene.0.note(name(number), (1, &hello(0)), scene.at(1 + number as u64 / 100));
    }
    scene.0.note(name(MAX_MEMBERS), (1, &Message::Bye), scene.at(200));
    scene.0.forget(scene.at(200).0);
    assert!(scene.0.heard.contains_key(&name(0)) && !scene.0.heard.contains_key(&name(MAX_MEMBERS)));
    scene.0.note(name(MAX_MEMBERS), (1, &hello(200)), scene.at(200));
    scene.0.forget(scene.at(200).0);
    assert_eq!(scene.0.heard.len(), MAX_MEMBERS);
    assert!(scene.0.heard.contains_key(&name(MAX_MEMBERS)), "else the one that was heard the longest ago");
}

/// A writer of Valkey can write down again what it has recorded, as often as it likes. A clock that is ahead does not help
/// either.
#[test]
fn neither_an_old_hello_nor_one_of_the_future_nor_another_message_ends_a_silence() {
    for said in [(1, hello(60)), (1, hello(40_000)), (1, purge()), (2, purge())] {
        let mut scene = Scene::begin();
        scene.hears(0, 1, (0, hello(0)));
        scene.hears(60, 1, (0, hello(60)));
        let heard_at = if said.1 == hello(40_000) { 60 } else { 149 };
        scene.hears(heard_at, 1, said.clone());
        assert!(!scene.is_silent_at(150) && scene.is_silent_at(151), "{said:?}");
    }
}

/// Each says hello within a minute.
#[test]
fn who_is_first_heard_by_something_else_has_as_long_to_say_hello() {
    let mut scene = Scene::begin();
    scene.hears(10, 1, (1, purge()));
    assert!(!scene.is_silent_at(100) && scene.is_silent_at(101));
}

proptest! {
    /// Whatever comes twice, late, or not at all: every number that comes is heard exactly once, and after each message it is
    /// known whether any lower one is missing.
    #[test]
    fn numbers_are_heard_once_and_gaps_are_noticed(numbers in prop::collection::vec(1u64..60, 1..200)) {
        let mut heard = unheard();
        let mut seen = std::collections::BTreeSet::new();
        for number in numbers {
            let last = seen.last().copied().unwrap_or(0);
            let (is_new, has_gap) = heard.note(number, true);
            prop_assert_eq!(is_new, seen.insert(number));
            prop_assert_eq!(has_gap, number > last + 1);
            let missing: Vec<u64> = heard.missing.iter().cloned().flatten().collect();
            let expected: Vec<u64> = (1..heard.last).filter(|number| !seen.contains(number)).collect();
            prop_assert_eq!(missing, expected);
        }
    }

    /// With more gaps than are remembered, some is heard twice, and nothing is left out.
    #[test]
    fn many_gaps_leave_nothing_out(gaps in prop::collection::vec(2u64..5, MAX_GAPS + 1..200)) {
        let mut heard = unheard();
        let mut seen = std::collections::BTreeSet::new();
        for gap in gaps {
            heard.note(heard.last + gap, true);
            seen.insert(heard.last);
            prop_assert!(heard.missing.len() <= MAX_GAPS);
        }
        for number in 1..heard.last {
            let (is_new, _) = heard.note(number, true);
            prop_assert!(is_new || seen.contains(&number), "{number}");
        }
    }
}

fn unheard() -> Heard {
    Heard::new(Instant::now(), 0)
}
