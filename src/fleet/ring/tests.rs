use proptest::prelude::*;

use super::*;
use crate::cache::Key;
use crate::cache::purge::PurgeMode;
use crate::fleet::stream::Identity;
use crate::route::Caching;

const NOW: u64 = 1_700_000_000_000;
const MINUTE: Duration = Duration::from_secs(60);
const DELAY: Duration = Duration::from_secs(2);

fn id(ms: u64) -> StreamId {
    StreamId::from_milliseconds(ms)
}

fn purge(selectors: &[Selector], settle_s: u64, accepted_at_ms: u64) -> Purge {
    Purge::new(
        selectors,
        PurgeMode::Hard,
        Duration::from_secs(settle_s),
        Duration::from_millis(accepted_at_ms),
    )
}

/// A ring that has heard all from `NOW` on, and some answer of a minute later.
fn ring() -> (Ring, Origin) {
    let mut ring = Ring::new(MINUTE, DELAY);
    ring.lose(Some(id(NOW)), NOW);
    (ring, Origin::new(id(NOW + 60_000), NOW + 60_000))
}

/// What was heard before the first loss is forgotten by the second one.
#[test]
fn a_second_loss_allows_nothing_that_the_first_one_forbids() {
    let (mut ring, _) = ring();
    let at = NOW + 10_000;
    ring.heard(id(at), &purge(&[Selector::UserId(1)], 60, at), at);
    for lost_at in [at + 1_000, at + 2_000] {
        ring.lose(Some(id(lost_at)), lost_at);
        assert!(ring.known(at + 62_000).is_none(), "until Rails tells no old story, and clocks agree on it");
        let known = ring.known(at + 62_001).unwrap();
        assert_eq!(known.asked_from_ms, at + 62_000);
    }
}

fn ssh_key() -> Vec<Selector> {
    Selector::all_that_mean(&Key::SshKey([1; 32]), Some(70), None)
}

fn user() -> Vec<Selector> {
    Selector::all_that_mean(&Key::UserById(7), Some(7), Some("Rubi"))
}

#[test]
fn an_answer_is_refused_if_a_purge_means_it() {
    for (selector, means_key, means_user) in [
        (Selector::SshKey([1; 32]), true, false),
        (Selector::SshKey([2; 32]), false, false),
        (Selector::KeyId(70), true, false),
        (Selector::KeyId(7), false, false),
        (Selector::UserId(7), true, true),
        (Selector::UserId(8), true, false),
        (Selector::Username("RUBI".into()), true, true),
        (Selector::Username("root".into()), true, false),
        (Selector::Route(Caching::AuthorizedKeys), true, false),
        (Selector::Route(Caching::Discover), false, true),
        (Selector::Route(Caching::Check), false, false),
        (Selector::All, true, true),
    ] {
        let (mut ring, origin) = ring();
        assert!(ring.allows(origin, &ssh_key()) && ring.allows(origin, &user()));
        let at = origin.asked_at_ms + 1;
        ring.heard(id(at), &purge(&[Selector::KeyId(99), selector.clone()], 0, at), at);
        assert_eq!(ring.allows(origin, &ssh_key()), !means_key, "{selector:?}");
        assert_eq!(ring.allows(origin, &user()), !means_user, "{selector:?}");
        let later = Origin::new(id(at), at + 2_000);
        assert!(ring.allows(later, &ssh_key()) && ring.allows(later, &user()), "{selector:?}");
    }
}

#[test]
fn either_the_place_in_the_stream_or_the_time_is_enough_to_refuse() {
    const AT: u64 = NOW + 60_000;
    for (position, asked_at_ms, is_allowed, why) in [
        (AT, AT + 7_000, true, "asked after it has settled"),
        (AT + 1, AT + 60_000, true, "long after"),
        (AT - 1, AT + 60_000, false, "by the clock it was later, but the purge had not been heard"),
        (AT, AT + 6_999, false, "a replica may have told the old story"),
        (AT + 60_000, AT - 1, false, "the IDs were set ahead"),
        (u64::MAX, AT, false, "as far as possible"),
    ] {
        let (mut ring, _) = ring();
        ring.heard(id(AT), &purge(&[Selector::KeyId(70)], 5, AT), AT);
        assert_eq!(ring.allows(Origin::new(id(position), asked_at_ms), &ssh_key()), is_allowed, "{why}");
    }
    // The clock of the server is behind: that of the gateway that has accepted it counts.
    let (mut ring, _) = ring();
    ring.heard(id(AT - 50_000), &purge(&[Selector::All], 0, AT), AT);
    assert!(!ring.allows(Origin::new(id(AT - 50_000), AT + 1_999), &user()));
    assert!(ring.allows(Origin::new(id(AT - 50_000), AT + 2_000), &user()));
}

#[test]
fn what_valkey_has_not_taken_yet_counts_too() {
    let (mut ring, origin) = ring();
    let own = purge(&[Selector::UserId(7)], 0, origin.asked_at_ms);
    ring.accepted(&own, origin.asked_at_ms);
    assert!(!ring.allows(origin, &user()));
    ring.heard(id(origin.asked_at_ms + 9_000), &own, origin.asked_at_ms + 9_000);
    assert!(!ring.allows(Origin::new(id(origin.asked_at_ms), origin.asked_at_ms + 60_000), &user()));
}

#[test]
fn nothing_is_allowed_of_before_what_is_known() {
    let mut ring = Ring::new(MINUTE, DELAY);
    let asked = |position, asked_at_ms| Origin::new(id(position), asked_at_ms);
    assert!(!ring.allows(asked(NOW, NOW), &user()), "nothing was heard yet");
    ring.lose(Some(id(NOW)), NOW);
    assert!(!ring.allows(asked(NOW - 1, NOW + 2_000), &user()));
    assert!(!ring.allows(asked(NOW, NOW + 1_999), &user()));
    assert!(ring.allows(asked(NOW, NOW + 2_000), &user()));
    // Purges that were known are forgotten; what they meant is refused nevertheless.
    ring.heard(id(NOW + 1), &purge(&[Selector::All], 3_600, NOW + 1), NOW + 1);
    ring.lose(Some(id(NOW + 2)), NOW + 2);
    assert!(!ring.allows(asked(NOW + 2, NOW + 3_600_000), &user()));
    assert!(ring.allows(asked(NOW + 2, NOW + 3_603_000), &user()));
    assert_eq!(ring.origin(NOW + 9), asked(NOW + 2, NOW + 9));
    // Without a place in the stream, nothing proves what comes either.
    ring.lose(None, NOW + 3);
    ring.advance(id(NOW + 4));
    assert!(!ring.allows(ring.origin(u64::MAX), &user()));
}

/// A writer of Valkey can add an entry with any ID, and a gateway can have any clock. Neither keeps answers from being shared
/// for longer than any other purge.
#[test]
fn an_entry_or_a_clock_far_ahead_forbids_no_more_than_a_purge_of_now() {
    const YEAR: u64 = 365 * 86_400_000;
    for (id_ms, accepted_at_ms) in [(NOW + YEAR, NOW), (NOW + 1, NOW + YEAR), (u64::MAX, u64::MAX)] {
        let (mut ring, _) = ring();
        ring.heard(id(id_ms), &purge(&[Selector::UserId(7)], 5, accepted_at_ms), NOW);
        ring.advance(id(id_ms));
        let [early, late] = [NOW + 8_999, NOW + 9_000].map(|asked_at_ms| Origin::new(id(id_ms), asked_at_ms));
        assert!(!ring.allows(early, &user()) && ring.allows(late, &user()), "{id_ms} {accepted_at_ms}");
        assert!(!ring.allows(Origin::new(id(NOW), late.asked_at_ms), &user()), "it had not been heard");
        ring.lose(Some(id(NOW)), NOW);
        assert!(ring.allows(Origin::new(id(NOW), NOW + 9_000), &user()), "{id_ms} {accepted_at_ms}");
    }
    let (mut ring, _) = ring();
    ring.heard(id(NOW + YEAR), &purge(&[Selector::UserId(7)], 0, NOW), NOW);
    assert_eq!(ring.known(NOW + 3_600_000).unwrap().purges, [], "it is forgotten like any other");
}

fn report(questions: &[Question], known: KnownPurges) -> Report {
    let server = Identity { run_id: "a".to_owned(), replid: "1".to_owned() };
    Report { questions: questions.to_vec(), server, heard: Vec::new(), known }
}

/// A ring that has heard all for a minute, with a purge in the middle, and one that begins now.
fn warm_and_cold() -> (Ring, Ring) {
    let (mut warm, mut cold) = (Ring::new(MINUTE, DELAY), Ring::new(MINUTE, DELAY));
    warm.lose(Some(id(NOW - 60_000)), NOW - 60_000);
    warm.heard(id(NOW - 30_000), &purge(&[Selector::KeyId(70)], 0, NOW - 30_000), NOW - 30_000);
    warm.advance(id(NOW - 30_000));
    cold.lose(Some(id(NOW - 30_000)), NOW);
    (warm, cold)
}

#[test]
fn a_ring_that_begins_learns_from_one_that_was_there() {
    let (mut warm, mut cold) = warm_and_cold();
    let [before, after] =
        [-40_000, -20_000].map(|ago| off(NOW, ago)).map(|at| Origin::new(id(NOW - 30_000), at));
    assert!(!cold.allows(before, &user()) && !cold.allows(after, &ssh_key()), "it knows nothing of before");
    cold.ask([1; 16]);
    let report = report(&[[9; 16], [1; 16]], warm.known(NOW + 10).unwrap());
    assert!(cold.learn(&report, true, NOW + 20));
    assert!(cold.allows(before, &user()) && cold.allows(after, &ssh_key()));
    assert!(!cold.allows(before, &ssh_key()), "the purge means it");
    let earlier = Origin::new(id(NOW - 60_001), NOW - 50_000);
    assert!(!cold.allows(earlier, &user()), "the other one does not know of that time either");
    assert!(!cold.learn(&report, true, NOW + 30), "a second one of the same reach is of no use");
}

/// A writer of Valkey has kept a purge from the gateway that reports first.
#[test]
fn a_report_that_lacks_purges_reaches_no_further_back_and_others_add_theirs() {
    let (mut warm, mut cold) = warm_and_cold();
    let mut blind = Ring::new(MINUTE, DELAY);
    blind.lose(Some(id(NOW - 60_000)), NOW - 60_000);
    blind.advance(id(NOW - 30_000));
    let before = Origin::new(id(NOW - 30_000), NOW - 40_000);
    let [lacking, knowing] = [&mut blind, &mut warm].map(|ring| report(&[[1; 16]], ring.known(NOW).unwrap()));
    cold.ask([1; 16]);
    assert!(!cold.learn(&lacking, false, NOW));
    assert!(!cold.allows(before, &user()) && !cold.allows(before, &ssh_key()));
    assert!(cold.learn(&lacking, true, NOW), "that it lacks something is not known");
    assert!(cold.allows(before, &ssh_key()));
    assert!(!cold.learn(&knowing, true, NOW), "it reaches no further back");
    assert!(
        cold.allows(before, &user()) && !cold.allows(before, &ssh_key()),
        "what it tells counts nevertheless"
    );
}

#[test]
fn a_report_that_was_not_asked_for_since_the_last_doubt_teaches_nothing() {
    let (mut warm, mut cold) = warm_and_cold();
    let known = warm.known(NOW + 10).unwrap();
    assert!(!cold.learn(&report(&[[1; 16]], known.clone()), true, NOW), "nothing was asked");
    cold.ask([1; 16]);
    assert!(!cold.learn(&report(&[[2; 16]], known.clone()), true, NOW), "an old one, or one for others");
    cold.lose(Some(id(NOW - 30_000)), NOW + 1);
    assert!(
        !cold.learn(&report(&[[1; 16]], known), true, NOW + 2),
        "purges of after the question may be missing"
    );
}

#[test]
fn a_ring_tells_what_can_matter_and_nothing_if_it_knows_of_no_time_before() {
    let mut ring = Ring::new(MINUTE, DELAY);
    assert_eq!(ring.known(NOW), None, "it has not begun");
    ring.lose(Some(id(NOW)), NOW);
    assert_eq!(ring.known(NOW + 2_000), None);
    let known = ring.known(NOW + 2_001).unwrap();
    assert_eq!(known, KnownPurges { floor: id(NOW), asked_from_ms: NOW + 2_000, purges: Vec::new() });
    ring.heard(id(NOW + 5_000), &purge(&[Selector::UserId(1)], 0, NOW + 5_000), NOW + 5_000);
    ring.heard(id(NOW + 6_000), &purge(&[Selector::UserId(2)], 3_600, NOW + 6_000), NOW + 6_000);
    ring.advance(id(NOW + 6_000));
    let now = NOW + 100_000;
    let known = ring.known(now).unwrap();
    let still = (Selector::UserId(2), LastPurge { id: id(NOW + 6_000), until_ms: NOW + 3_606_000 });
    assert_eq!(known.purges, [still], "as long as a replica may tell the old story");
    assert_eq!(known.floor, id(NOW + 5_000), "what was asked for before the other one is too old by now");
    assert_eq!(known.asked_from_ms, now - ms(MINUTE + DELAY + 2 * CLOCK_SKEW));
    ring.lose(None, now);
    assert_eq!(ring.known(now + 3_600_000 * 2), None, "it has no place in the stream");
}

#[test]
fn a_ring_that_knows_more_than_fits_into_a_report_tells_nothing_until_it_is_less() {
    let (mut ring, _) = ring();
    let mut at = NOW;
    for number in 1..=5_000_u64 {
        at = NOW + 10 * number;
        ring.heard(id(at), &purge(&[Selector::KeyId(number)], 0, at), at);
        assert_eq!(ring.known(NOW + 10_000).is_some(), number <= 4_000, "{number}");
    }
    assert_eq!(ring.known(at), None);
    let later = NOW + 50_000 + ms(MINUTE + DELAY);
    assert!(ring.known(later).unwrap().purges.len() < 1_000, "old ones are not told");
}

#[test]
fn what_is_known_elsewhere_just_as_well_is_not_told_again() {
    let (mut warm, cold) = warm_and_cold();
    let known = warm.known(NOW).unwrap();
    assert!(warm.is_covered_by(&known, NOW + 5) && cold.is_covered_by(&known, NOW + 5));
    let poor = KnownPurges { asked_from_ms: NOW, ..known };
    assert!(!warm.is_covered_by(&poor, NOW + 5), "a gateway that had just begun itself");
}

#[test]
fn old_purges_are_forgotten_and_many_raise_the_floor() {
    let (mut ring, _) = ring();
    for number in 0..400_000_u64 {
        let at = NOW + number;
        ring.heard(id(at), &purge(&[Selector::KeyId(number)], 0, at), at);
        ring.advance(id(at));
        assert!(ring.purges.len() <= MAX_SELECTORS);
    }
    assert!(ring.floor > id(NOW + 300_000), "it does not know all of them any more");
    assert!(!ring.allows(Origin::new(id(NOW + 200_000), NOW + 500_000), &user()));
    let (mut ring, _) = self::ring();
    for number in 0..100_000_u64 {
        let at = NOW + number * 1_000;
        ring.heard(id(at), &purge(&[Selector::KeyId(number)], 0, at), at);
        ring.advance(id(at));
    }
    assert!(ring.purges.len() < 1_100, "{}", ring.purges.len());
    let oldest_ms = NOW + 100_000_000 - ms(MINUTE);
    assert!(ring.allows(Origin::new(id(oldest_ms - 1_000), oldest_ms), &user()), "none of them means it");
}

/// A purge and an answer, as all clocks see them.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    acceptor: i64,
    server: i64,
    filler: i64,
}

fn off(time: u64, by: i64) -> u64 {
    time.saturating_add_signed(by)
}

proptest! {
    /// Whatever the order of IDs: servers fail over, and a writer can set them ahead.
    #[test]
    fn no_answer_is_used_that_rails_may_have_given_before_a_purge(
        purges in proptest::collection::vec((0..100_000_u64, 0..10_u64, 0..3_u64, any::<bool>()), 0..20),
        (acceptor, server, filler) in (-1_000..=1_000_i64, -1_000..=1_000_i64, -1_000..=1_000_i64),
        position: u64, asked in 0..100_000_u64,
    ) {
        let clocks = Clocks { acceptor, server, filler };
        let mut ring = Ring::new(MINUTE * 10, DELAY);
        ring.lose(Some(id(0)), 0);
        for (at, settle_s, user, is_heard) in &purges {
            let at = NOW + at;
            let purge = purge(&[Selector::UserId(*user)], *settle_s, off(at, clocks.acceptor));
            match is_heard {
                true => ring.heard(id(off(at, clocks.server)), &purge, at),
                false => ring.accepted(&purge, at),
            }
        }
        let asked = NOW + asked;
        let origin = Origin::new(id(position), off(asked, clocks.filler));
        for user in 0..3 {
            let meaning = Selector::all_that_mean(&Key::UserById(user), Some(user), None);
            let last = purges.iter().filter(|(.., of, _)| *of == user);
            let settled = last.map(|(at, settle_s, ..)| NOW + at + settle_s * 1_000).max();
            if ring.allows(origin, &meaning) {
                prop_assert!(settled.is_none_or(|settled| settled <= asked), "{:?}", clocks);
            } else {
                // By no more than clocks may be off, unless the ID of a purge says so.
                prop_assert!(settled.is_some_and(|settled| settled + 4_000 > asked || position < NOW + 101_000));
            }
        }
    }

    /// What a ring allows that has learned from another one, that one allows as well, whenever it began.
    #[test]
    fn a_ring_that_has_learned_allows_no_more_than_its_teacher(
        purges in proptest::collection::vec((1..100_u64, 0..3_u64, 0..20_u64), 0..40),
        (begin, asked_at_ms, position) in (0..40_usize, NOW..NOW + 150_000, 0..150_u64),
    ) {
        let (mut warm, mut cold) = (Ring::new(MINUTE, DELAY), Ring::new(MINUTE, DELAY));
        warm.lose(Some(id(NOW)), NOW);
        let at = |number: usize| NOW + 1_000 * number as u64;
        for (number, (user, settle_s, late_s)) in purges.iter().enumerate() {
            let purge = purge(&[Selector::UserId(*user % 5)], *settle_s, at(number).saturating_sub(late_s * 1_000));
            if number == begin {
                cold.lose(Some(id(at(number))), at(number));
                cold.ask([1; 16]);
            }
            for ring in [&mut warm, &mut cold] {
                ring.heard(id(at(number) + 1), &purge, at(number));
                ring.advance(id(at(number) + 1));
            }
            if number == begin + 2 {
                let known = warm.known(at(number) + 1);
                known.map(|known| cold.learn(&report(&[[1; 16]], known), true, at(number)));
            }
        }
        let origin = Origin::new(id(NOW + position * 1_000), asked_at_ms);
        for user in 0..5 {
            let meaning = Selector::all_that_mean(&Key::UserById(user), Some(user), None);
            prop_assert!(warm.allows(origin, &meaning) || !cold.allows(origin, &meaning));
        }
    }

    /// Whatever the clocks.
    #[test]
    fn no_answer_is_used_that_was_asked_for_before_a_purge_was_heard(
        purges in proptest::collection::vec((1..1_000_u64, any::<u32>()), 1..20),
        heard_before_asking in 0..1_000_u64, asked_at_ms in 0..u64::from(u32::MAX),
    ) {
        let mut ring = Ring::new(MINUTE * 10, DELAY);
        ring.lose(Some(id(0)), 0);
        for (sequence, accepted_at_ms) in &purges {
            let purge = purge(&[Selector::KeyId(70)], 0, (*accepted_at_ms).into());
            ring.heard(StreamId { milliseconds: 0, sequence: *sequence }, &purge, 0);
        }
        let position = StreamId { milliseconds: 0, sequence: heard_before_asking };
        let is_allowed = ring.allows(Origin::new(position, asked_at_ms), &ssh_key());
        let has_heard_all = purges.iter().all(|(sequence, _)| *sequence <= heard_before_asking);
        prop_assert!(has_heard_all || !is_allowed);
    }
}
