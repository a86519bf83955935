use super::super::Target;
use super::*;
use crate::clock::Clock;

const fn s(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Ejected after three failures, for 1 s at first and 8 s at last; slow for 10 s.
fn settings() -> Settings {
    Settings { failures: 3, pause: s(1), longest_pause: s(8), slow_start: s(10) }
}

/// One of so many servers.
fn one_of(count: usize, ejection: Settings, has_checks: bool) -> Health {
    let mut all = All::new(Target::parse("http://rails").unwrap());
    all.servers = vec![all.servers[0].clone(); count];
    all.ejection = ejection;
    all.checks.interval = s(u64::from(has_checks));
    Health::new("rails".into(), &all)
}

fn health(has_checks: bool) -> (Health, Instant) {
    (one_of(2, settings(), has_checks), Clock::System.now())
}

fn fails(health: &Health, times: usize, at: Instant) {
    for _ in 0..times {
        health.failed(at, Reason::Timeout, at);
    }
}

const GOOD: Result<(), Bad> = Ok(());

fn bad() -> Result<(), Bad> {
    Err(Bad { why: "no".into(), is_answered: true })
}

fn unanswered() -> Result<(), Bad> {
    Err(Bad { why: "no".into(), is_answered: false })
}

#[test]
fn failures_in_a_row_eject_and_others_do_not() {
    let (health, now) = health(false);
    for _ in 0..10 {
        fails(&health, 2, now);
        assert_eq!(health.standing(now), Standing::In(1.0));
        health.answered(now, now);
    }
    fails(&health, 3, now);
    assert_eq!((health.standing(now), health.condition(now)), (Standing::Ejected, Condition::Ejected));
    let ejections = health.ejections.each_ref().map(|count| count.load(Ordering::Relaxed));
    assert_eq!(ejections, [0, 1, 0, 0]);
    for never in [one_of(2, Settings { failures: 0, ..settings() }, false), one_of(1, settings(), true)] {
        fails(&never, 1_000, now);
        assert_eq!((never.standing(now), never.condition(now)), (Standing::In(1.0), Condition::Failing));
        assert_eq!(never.failures_in_a_row(), 1_000);
        never.answered(now, now);
        assert_eq!((never.condition(now), never.failures_in_a_row()), (Condition::Up, 0));
    }
}

/// Each pause is twice as long as the one before, and after each there is one try.
#[test]
fn pauses_grow_and_one_try_follows_each() {
    let (health, mut now) = health(false);
    fails(&health, 3, now);
    for pause in [1, 2, 4, 8, 8, 8] {
        let before = now + s(pause).saturating_sub(Duration::from_millis(1));
        assert_eq!(health.standing(before), Standing::Ejected, "{pause}");
        assert!(!health.claim_try(before));
        now += s(pause);
        assert_eq!(health.standing(now), Standing::Due, "{pause}");
        assert!(health.claim_try(now) && !health.claim_try(now), "one try for all");
        assert_eq!(health.standing(now), Standing::Ejected);
        // What was sent before it was ejected tells nothing new.
        health.failed(now.checked_sub(s(pause)).unwrap(), Reason::Broken, now);
        health.answered(now.checked_sub(s(pause) * 2).unwrap(), now);
        assert_eq!(health.standing(now), Standing::Ejected);
        health.failed(now, Reason::Unreachable, now);
    }
    now += s(8);
    assert!(health.claim_try(now));
    health.answered(now, now);
    assert_eq!((health.standing(now), health.condition(now)), (Standing::In(0.1), Condition::SlowStart));
}

#[test]
fn whoever_tries_may_leave_and_then_it_is_somebody_elses_turn() {
    let (health, now) = health(false);
    fails(&health, 3, now);
    assert!(health.claim_try(now + s(1)));
    assert_eq!(health.standing(now + s(2)), Standing::Ejected);
    assert_eq!(health.standing(now + s(3)), Standing::Due);
}

/// What takes part for as long as the longest pause begins anew; what fails before that goes on.
#[test]
fn a_server_that_flaps_is_out_for_longer_and_longer() {
    let (health, mut now) = health(false);
    for (well_for, pause) in [(0, 1), (1, 2), (7, 4), (8, 1), (100, 1), (1, 2)] {
        now += s(well_for);
        fails(&health, 3, now);
        assert_eq!(health.standing(now + s(pause)), Standing::Due, "{well_for} {pause}");
        let before = s(pause).saturating_sub(Duration::from_millis(1));
        assert_eq!(health.standing(now + before), Standing::Ejected, "{well_for} {pause}");
        now += s(pause);
        assert!(health.claim_try(now));
        health.answered(now, now);
    }
}

#[test]
fn what_is_back_gets_its_share_little_by_little() {
    let (health, now) = health(false);
    fails(&health, 3, now);
    assert!(health.claim_try(now + s(1)));
    let back = now + s(1);
    health.answered(back, back);
    for (after, share) in [(0, 0.1), (500, 0.1), (2_500, 0.25), (5_000, 0.5), (9_000, 0.9), (10_000, 1.0)] {
        let Standing::In(is) = health.standing(back + Duration::from_millis(after)) else { panic!("out") };
        assert!((is - share).abs() < 1e-3, "{after} ms: {is}");
    }
    assert_eq!(health.condition(back + s(10)), Condition::Up);
}

#[test]
fn health_checks_decide_where_there_are_some() {
    let (health, now) = health(true);
    let check = |outcome, now| health.checked(outcome, (2, 3), now);
    for _ in 0..10 {
        check(bad(), now);
        check(bad(), now);
        assert_eq!(health.standing(now), Standing::In(1.0));
        check(GOOD, now);
    }
    (0..3).for_each(|_| check(bad(), now));
    assert_eq!((health.standing(now), health.condition(now)), (Standing::Unhealthy, Condition::Unhealthy));
    // However well requests go.
    health.answered(now, now);
    check(GOOD, now);
    check(bad(), now);
    check(GOOD, now);
    assert_eq!(health.standing(now), Standing::Unhealthy);
    check(GOOD, now);
    assert_eq!(health.standing(now), Standing::In(0.1));
    assert_eq!(health.checks.each_ref().map(|count| count.load(Ordering::Relaxed)), [13, 24]);
}

/// No request is risked: the try after a pause is a check.
#[test]
fn a_health_check_is_the_try_of_one_that_was_ejected() {
    let (health, now) = health(true);
    let check = |outcome, now| health.checked(outcome, (2, 3), now);
    let minute = s(60);
    assert_eq!(health.next_check(minute, now), now + minute);
    fails(&health, 3, now);
    assert_eq!(health.next_check(minute, now), now + s(1));
    assert_eq!(health.standing(now + s(1)), Standing::Ejected);
    assert!(!health.claim_try(now + s(1)));
    check(GOOD, now);
    assert_eq!(health.condition(now), Condition::Ejected, "not before the pause is over");
    check(bad(), now + s(1));
    assert_eq!(health.next_check(minute, now + s(1)), now + s(3));
    check(GOOD, now + s(3));
    assert_eq!(health.condition(now + s(3)), Condition::SlowStart);
    assert_eq!(health.condition(now + s(13)), Condition::Up, "though it had no request since");
}

#[test]
fn an_operator_may_drain_a_server_whatever_else_is_known() {
    let (health, now) = health(false);
    health.drain(true);
    fails(&health, 3, now);
    assert_eq!((health.standing(now), health.condition(now)), (Standing::Drained, Condition::Drained));
    assert_eq!(health.standing(now + s(1)), Standing::Drained);
    health.drain(false);
    assert_eq!(health.condition(now), Condition::Ejected);
    // One that was restarted meanwhile begins slowly.
    let fresh = one_of(2, settings(), false);
    fresh.drain(true);
    fresh.drain(false);
    assert_eq!(fresh.condition(Clock::System.now()), Condition::SlowStart);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_next_check_hears_of_an_ejection() {
    let (health, now) = health(true);
    fails(&health, 3, now);
    health.rescheduled().await;
    assert!(tokio::time::timeout(s(1), health.rescheduled()).await.is_err());
}

/// Neither the one nor the other makes it asked all the time.
#[test]
fn one_that_is_ejected_and_unhealthy_is_checked_as_often_as_any() {
    let (health, mut now) = health(true);
    fails(&health, 3, now);
    for _ in 0..3 {
        now = health.next_check(s(60), now);
        health.checked(bad(), (2, 3), now);
    }
    assert_eq!((health.condition(now), health.next_check(s(60), now)), (Condition::Unhealthy, now + s(60)));
    // What fails meanwhile changes nothing.
    fails(&health, 3, now);
    assert_eq!(health.next_check(s(60), now), now + s(60));
    health.answered(now, now);
    assert_eq!(health.condition(now), Condition::Unhealthy);
    health.checked(GOOD, (2, 3), now);
    health.checked(GOOD, (2, 3), now);
    assert_eq!(health.condition(now), Condition::SlowStart);
}

#[test]
fn what_was_sent_before_it_came_back_ejects_nobody() {
    let (health, now) = health(true);
    fails(&health, 3, now);
    let back = now + s(1);
    health.checked(GOOD, (2, 3), back);
    for _ in 0..10 {
        health.failed(now, Reason::Timeout, back + s(20));
    }
    assert_eq!((health.condition(back + s(20)), health.failures_in_a_row()), (Condition::Up, 0));
    fails(&health, 3, back);
    assert_eq!(health.condition(back), Condition::Ejected);
}

/// A check that Rails refuses says less than one that nobody answers.
#[test]
fn one_whose_checks_nobody_answers_is_as_bad_as_one_that_fails_requests() {
    for (outcome, standing) in [(bad as fn() -> _, Standing::Unhealthy), (unanswered, Standing::Ejected)] {
        let (health, now) = health(true);
        for _ in 0..3 {
            health.checked(outcome(), (2, 3), now);
        }
        assert_eq!((health.standing(now), health.condition(now)), (standing, Condition::Unhealthy));
    }
}
