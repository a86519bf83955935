use proptest::prelude::*;

use super::*;
use crate::cache::purge::{PurgeMode, Selector};

fn purge(key_id: u64, mode: PurgeMode) -> Purge {
    Purge::new(&[Selector::KeyId(key_id)], mode, Duration::ZERO, Duration::ZERO)
}

/// Modes alternate, so that no two share a message.
fn accept(outbox: &mut Outbox, key_id: u64, now: Instant) -> oneshot::Receiver<Told> {
    let mode = if key_id.is_multiple_of(2) { PurgeMode::Hard } else { PurgeMode::Soft };
    outbox.accept(purge(key_id, mode), now).0
}

fn id(milliseconds: u64) -> StreamId {
    StreamId::from_milliseconds(milliseconds)
}

fn answer(ticket: &mut oneshot::Receiver<Told>) -> Option<Told> {
    ticket.try_recv().ok()
}

/// Sends one, which Valkey takes.
fn tell(outbox: &mut Outbox) -> Option<u64> {
    tell_at(outbox, Instant::now())
}

fn tell_at(outbox: &mut Outbox, now: Instant) -> Option<u64> {
    let (number, _, _) = outbox.next_to_send(now)?;
    outbox.taken(number, id(number), Told::Told);
    Some(number)
}

#[test]
fn purges_are_numbered_in_order_and_their_callers_are_told() {
    let (mut outbox, now) = (Outbox::default(), Instant::now());
    assert!(!outbox.is_next_new());
    let mut tickets: Vec<oneshot::Receiver<Told>> =
        (0..3).map(|key_id| accept(&mut outbox, key_id, now)).collect();
    assert_eq!((outbox.untold(), outbox.is_next_new()), ((3, Some(now)), true));
    let (number, sent, is_again) = outbox.next_to_send(Instant::now()).unwrap();
    assert_eq!((number, sent, is_again), (1, purge(0, PurgeMode::Hard), false));
    // No reply: the same once more, and not the next one.
    assert!(!outbox.is_next_new());
    assert_eq!(outbox.next_to_send(Instant::now()).unwrap(), (1, purge(0, PurgeMode::Hard), true));
    assert_eq!(answer(&mut tickets[0]), None);
    outbox.taken(1, id(1), Told::Unconfirmed);
    assert_eq!(answer(&mut tickets[0]), Some(Told::Unconfirmed));
    assert_eq!(tell(&mut outbox), Some(2));
    assert_eq!(answer(&mut tickets[1]), Some(Told::Told));
    assert_eq!((tell(&mut outbox), tell(&mut outbox), outbox.last_number()), (Some(3), None, 3));
    assert_eq!(outbox.untold(), (0, None));
}

#[test]
fn what_waits_shares_a_message_but_not_with_one_that_was_sent() {
    let (mut outbox, begin) = (Outbox::default(), Instant::now());
    let later = begin + Duration::from_secs(1);
    let mut tickets: Vec<oneshot::Receiver<Told>> = [begin, later, later]
        .into_iter()
        .zip(0..)
        .map(|(at, key_id)| {
            let ticket = outbox.accept(purge(key_id, PurgeMode::Hard), at).0;
            if key_id == 0 {
                outbox.next_to_send(Instant::now());
            }
            ticket
        })
        .collect();
    assert_eq!(outbox.untold(), (2, Some(begin)), "the oldest counts");
    assert_eq!(tell(&mut outbox), Some(1));
    let (number, sent, _) = outbox.next_to_send(Instant::now()).unwrap();
    assert_eq!((number, sent.selectors), (2, vec![Selector::KeyId(1), Selector::KeyId(2)]));
    outbox.taken(2, id(2), Told::Told);
    assert!(tickets.iter_mut().all(|ticket| answer(ticket) == Some(Told::Told)));
}

/// The reply may be lost, or come after the echo.
#[test]
fn an_echo_proves_that_valkey_has_it() {
    let (mut outbox, now) = (Outbox::default(), Instant::now());
    let _tickets: Vec<oneshot::Receiver<Told>> =
        (0..2).map(|key_id| accept(&mut outbox, key_id, now)).collect();
    let (number, ..) = outbox.next_to_send(Instant::now()).unwrap();
    outbox.heard(number, id(7));
    assert_eq!(outbox.untold().0, 1);
    // Its late reply does not undo that.
    outbox.taken(number, id(7), Told::Told);
    assert_eq!(outbox.next_to_send(Instant::now()).unwrap().0, 2, "it is not sent again");
}

/// It is where no reader gets, or its echo is yet to come: hearing it twice harms less than not at all.
#[test]
fn what_is_there_and_was_not_heard_is_told_again() {
    for (is_found, is_heard, is_lost) in
        [(true, true, false), (true, false, true), (false, true, true), (false, false, true)]
    {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        drop(accept(&mut outbox, 0, now));
        assert_eq!(tell(&mut outbox), Some(1));
        if is_heard {
            outbox.heard(1, id(1));
        }
        assert_eq!(outbox.looked_for(1, is_found), is_lost, "{is_found} {is_heard}");
        assert_eq!(outbox.is_all_taken(), !is_lost);
    }
}

#[test]
fn what_is_lost_is_told_again_in_order_and_before_anything_new() {
    let (mut outbox, now) = (Outbox::default(), Instant::now());
    let _tickets: Vec<oneshot::Receiver<Told>> =
        (0..6).map(|key_id| accept(&mut outbox, key_id, now)).collect();
    assert_eq!((0..5).filter_map(|_| tell(&mut outbox)).count(), 5);
    (1..=5).for_each(|number| outbox.heard(number, id(number)));
    let looked_for = outbox.to_look_for(now);
    assert_eq!(looked_for, (1..=5).map(|number| (number, id(number))).collect::<Vec<_>>());
    for (number, _) in looked_for {
        outbox.looked_for(number, number < 3);
    }
    let sent: Vec<_> = std::iter::from_fn(|| {
        let (number, purge, is_again) = outbox.next_to_send(Instant::now())?;
        outbox.taken(number, id(number), Told::Told);
        Some((number, purge.selectors[0].clone(), is_again))
    })
    .collect();
    let key = Selector::KeyId;
    assert_eq!(sent, [(3, key(2), true), (4, key(3), true), (5, key(4), true), (6, key(5), false)]);
}

#[test]
fn what_cannot_be_lost_any_more_is_forgotten() {
    let (mut outbox, begin) = (Outbox::default(), Instant::now());
    let sent_at = |key_id| begin + KEPT_FOR + Duration::from_secs(key_id);
    for key_id in 0..3 {
        // Valkey was away for longer than that.
        drop(accept(&mut outbox, key_id, begin));
    }
    assert_eq!((0..2).filter_map(|key_id| tell_at(&mut outbox, sent_at(key_id))).count(), 2);
    outbox.next_to_send(sent_at(2));
    let late = sent_at(0) + KEPT_FOR;
    assert_eq!(outbox.to_look_for(late).len(), 2);
    assert_eq!(outbox.to_look_for(late + Duration::from_millis(1)).len(), 1);
    assert_eq!(outbox.to_look_for(late + KEPT_FOR).len(), 0);
    assert_eq!(outbox.next_to_send(late).unwrap().0, 3, "but not what Valkey has never taken");
}

/// A gateway that is never idle looks for nothing, and asks the server nothing.
#[test]
fn who_tells_all_the_time_forgets_what_is_old() {
    let (mut outbox, begin) = (Outbox::default(), Instant::now());
    for second in 0..1_000 {
        let now = begin + Duration::from_secs(second);
        drop(accept(&mut outbox, second, now));
        assert_eq!(tell_at(&mut outbox, now), Some(second + 1));
    }
    assert_eq!(outbox.numbered.len() as u64, KEPT_FOR.as_secs() + 1);
    assert_eq!(outbox.numbered.back().map(|one| one.number), Some(1_000));
}

/// Under load there is no rest in which anything is forgotten by its age.
#[test]
fn no_more_is_kept_than_can_be_told_again() {
    let (mut outbox, now) = (Outbox::default(), Instant::now());
    for key_id in 0..MAX_PURGES as u64 + 100 {
        drop(accept(&mut outbox, key_id, now));
        tell(&mut outbox).unwrap();
    }
    let kept = outbox.to_look_for(now);
    assert_eq!((kept.len(), kept[0].0), (MAX_PURGES, 101));
    assert_eq!(outbox.unheard.len(), MAX_PURGES);
}

#[test]
fn an_overflow_becomes_one_of_everything_and_numbers_have_no_gap() {
    let (mut outbox, begin) = (Outbox::default(), Instant::now());
    let mut first = accept(&mut outbox, 1, begin);
    outbox.next_to_send(Instant::now());
    let count = MAX_PURGES as u64;
    let (mut collapsed, mut tickets) = (0, Vec::new());
    for key_id in 2..count + 3 {
        let mode = if key_id.is_multiple_of(2) { PurgeMode::Hard } else { PurgeMode::Soft };
        let (ticket, count) = outbox.accept(purge(key_id, mode), begin + Duration::from_secs(key_id));
        tickets.push(ticket);
        collapsed += count;
    }
    assert_eq!(collapsed, MAX_PURGES / 2);
    assert!(
        outbox.waiting.iter().all(|one| one.callers.len() <= 1),
        "no caller of what has become one is kept"
    );
    let answers: Vec<_> = tickets.iter_mut().map(answer).collect();
    let (older, newer) = answers.split_at(MAX_PURGES / 2);
    assert!(older.iter().all(|told| *told == Some(Told::Queued)) && newer.iter().all(Option::is_none));
    assert_eq!(outbox.untold(), (MAX_PURGES / 2 + 3, Some(begin)));
    outbox.refused();
    assert_eq!(answer(&mut first), Some(Told::Queued));
    assert_eq!(tell(&mut outbox), Some(1));
    let (number, all, _) = outbox.next_to_send(Instant::now()).unwrap();
    assert_eq!((number, &all.selectors[..], all.mode), (2, &[Selector::All][..], PurgeMode::Hard));
    outbox.taken(2, id(2), Told::Told);
    let next = outbox.next_to_send(Instant::now()).unwrap();
    assert_eq!((next.0, next.1.selectors), (3, vec![Selector::KeyId(count / 2 + 2)]));
}

#[test]
fn soft_purges_stay_soft_when_they_collapse() {
    let (mut outbox, now) = (Outbox::default(), Instant::now());
    for _ in 0..MAX_PURGES {
        // Too many selectors to share a message.
        let selectors: Vec<Selector> = (0..200).map(Selector::UserId).collect();
        outbox.accept(Purge::new(&selectors, PurgeMode::Soft, Duration::ZERO, Duration::ZERO), now);
    }
    assert!(outbox.accept(purge(1, PurgeMode::Soft), now).1 > 0);
    let (_, all, _) = outbox.next_to_send(Instant::now()).unwrap();
    assert_eq!((all.selectors, all.mode), (vec![Selector::All], PurgeMode::Soft));
}

proptest! {
    /// Whatever replies and echoes get lost: a model stream ends up with every purge, and each first appearance is in the
    /// order of acceptance.
    #[test]
    fn every_purge_reaches_the_stream_in_order(steps in prop::collection::vec((0u8..6, any::<prop::sample::Index>()), 1..200)) {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        let (mut stream, mut accepted) = (Vec::<(u64, u64)>::new(), 0_u64);
        let mut next_id = 0;
        for (step, at) in steps {
            match step {
                0 | 1 => {
                    drop(accept(&mut outbox, accepted, now));
                    accepted += 1;
                }
                2 | 3 => {
                    if let Some((number, ..)) = outbox.next_to_send(Instant::now()) {
                        next_id += 1;
                        stream.push((number, next_id));
                        if step == 2 {
                            outbox.taken(number, id(next_id), Told::Told);
                        }
                    }
                }
                4 => {
                    if !stream.is_empty() {
                        let (number, place) = *at.get(&stream);
                        outbox.heard(number, id(place));
                    }
                }
                _ => {
                    // A fail-over that loses the tail.
                    stream.truncate(at.index(stream.len() + 1));
                    look_for_all(&mut outbox, &stream, now);
                }
            }
        }
        look_for_all(&mut outbox, &stream, now);
        while let Some((number, ..)) = outbox.next_to_send(Instant::now()) {
            next_id += 1;
            stream.push((number, next_id));
            outbox.taken(number, id(next_id), Told::Told);
        }
        let mut numbers: Vec<u64> = stream.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        prop_assert_eq!(numbers, (1..=accepted).collect::<Vec<_>>());
    }
}

fn look_for_all(outbox: &mut Outbox, stream: &[(u64, u64)], now: Instant) {
    for (number, place) in outbox.to_look_for(now) {
        outbox.looked_for(number, stream.iter().any(|(_, at)| id(*at) == place));
    }
}
