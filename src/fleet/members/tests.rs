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
        let at = self.at(second);
        self.0.notice_silence(at)
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

#[test]
fn who_was_killed_is_not_waited_for_once_another_has_begun_in_its_place() {
    for (host, began, is_silent) in
        [("pod-1", 70, false), ("pod-2", 70, true), ("", 70, true), ("pod-1", 60, true), ("pod-1", 0, true)]
    {
        let mut scene = Scene::begin();
        scene.hears(60, 1, (0, hello_of("pod-1", 0, 60)));
        for second in [70, 130] {
            scene.hears(second, 2, (0, hello_of(host, began, second)));
        }
        scene.hears(140, 2, (0, Message::Bye));
        assert_eq!(scene.is_silent_at(160), is_silent, "{host} {began}");
    }
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
