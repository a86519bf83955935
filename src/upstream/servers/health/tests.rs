use super::*;
use crate::clock::Clock;
use crate::upstream::UpstreamTarget;
use crate::upstream::settings::EjectionSettings;

const fn s(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Ejected after three failures, for 1 s at first and 8 s at last; slow for 10 s.
fn settings() -> EjectionSettings {
    EjectionSettings { failures: 3, pause: s(1), longest_pause: s(8), slow_start: s(10) }
}

/// One of so many servers.
fn one_of(count: usize, ejection: EjectionSettings, has_health_checks: bool) -> ServerHealth {
    let mut all = UpstreamSettings::new(UpstreamTarget::parse("http://rails").unwrap());
    all.servers = vec![all.servers[0].clone(); count];
    all.ejection = ejection;
    all.health_checks.interval = s(u64::from(has_health_checks));
    ServerHealth::new("rails".into(), &all, Arc::default())
}

fn health(has_health_checks: bool) -> (ServerHealth, Instant) {
    (one_of(2, settings(), has_health_checks), Clock::System.now())
}

fn fails(health: &ServerHealth, times: usize, at: Instant) {
    for _ in 0..times {
        health.record_failure(at, EjectionReason::Timeout, at);
    }
}

const PASSED: Result<(), CheckFailure> = Ok(());

fn rejected() -> Result<(), CheckFailure> {
    Err(CheckFailure { why: "no".into(), rails_responded: true })
}

fn unanswered() -> Result<(), CheckFailure> {
    Err(CheckFailure { why: "no".into(), rails_responded: false })
}

#[test]
fn only_failures_in_a_row_eject() {
    let (health, now) = health(false);
    for _ in 0..10 {
        fails(&health, 2, now);
        assert_eq!(health.availability(now), Availability::InRotation(1.0));
        health.record_success(now, now);
    }
    fails(&health, 3, now);
    assert_eq!(
        (health.availability(now), health.status(now)),
        (Availability::Ejected, ServerStatus::Ejected)
    );
    let ejections = EjectionReason::ALL.map(|reason| health.ejections.get(reason));
    assert_eq!(ejections, [0, 1, 0, 0]);
    for never in
        [one_of(2, EjectionSettings { failures: 0, ..settings() }, false), one_of(1, settings(), true)]
    {
        fails(&never, 1_000, now);
        assert_eq!(
            (never.availability(now), never.status(now)),
            (Availability::InRotation(1.0), ServerStatus::Failing)
        );
        assert_eq!(never.consecutive_failures(), 1_000);
        never.record_success(now, now);
        assert_eq!((never.status(now), never.consecutive_failures()), (ServerStatus::Up, 0));
    }
}

/// Each pause is twice as long as the one before, and one trial follows each.
#[test]
fn pauses_grow_and_one_trial_follows_each() {
    let (health, mut now) = health(false);
    fails(&health, 3, now);
    for pause in [1, 2, 4, 8, 8, 8] {
        let before = now + s(pause).saturating_sub(Duration::from_millis(1));
        assert_eq!(health.availability(before), Availability::Ejected, "{pause}");
        assert!(!health.claim_trial(before));
        now += s(pause);
        assert_eq!(health.availability(now), Availability::TrialDue, "{pause}");
        assert!(health.claim_trial(now) && !health.claim_trial(now), "one try for all");
        assert_eq!(health.availability(now), Availability::Ejected);
        // What was sent before the ejection tells nothing new.
        health.record_failure(now.checked_sub(s(pause)).unwrap(), EjectionReason::Broken, now);
        health.record_success(now.checked_sub(s(pause) * 2).unwrap(), now);
        assert_eq!(health.availability(now), Availability::Ejected);
        health.record_failure(now, EjectionReason::Unreachable, now);
    }
    now += s(8);
    assert!(health.claim_trial(now));
    health.record_success(now, now);
    assert_eq!(
        (health.availability(now), health.status(now)),
        (Availability::InRotation(0.1), ServerStatus::SlowStart)
    );
}

#[test]
fn a_trial_whose_request_is_dropped_is_followed_by_another() {
    let (health, now) = health(false);
    fails(&health, 3, now);
    assert!(health.claim_trial(now + s(1)));
    assert_eq!(health.availability(now + s(2)), Availability::Ejected);
    assert_eq!(health.availability(now + s(3)), Availability::TrialDue);
}

/// After as long in rotation as the longest pause, pauses begin anew; before that, they go on growing.
#[test]
fn a_server_that_flaps_is_out_for_longer_and_longer() {
    let (health, mut now) = health(false);
    for (well_for, pause) in [(0, 1), (1, 2), (7, 4), (8, 1), (100, 1), (1, 2)] {
        now += s(well_for);
        fails(&health, 3, now);
        assert_eq!(health.availability(now + s(pause)), Availability::TrialDue, "{well_for} {pause}");
        let before = s(pause).saturating_sub(Duration::from_millis(1));
        assert_eq!(health.availability(now + before), Availability::Ejected, "{well_for} {pause}");
        now += s(pause);
        assert!(health.claim_trial(now));
        health.record_success(now, now);
    }
}

#[test]
fn a_readmitted_server_gets_its_share_little_by_little() {
    let (health, now) = health(false);
    fails(&health, 3, now);
    assert!(health.claim_trial(now + s(1)));
    let back = now + s(1);
    health.record_success(back, back);
    for (after, share) in [(0, 0.1), (500, 0.1), (2_500, 0.25), (5_000, 0.5), (9_000, 0.9), (10_000, 1.0)] {
        let Availability::InRotation(is) = health.availability(back + Duration::from_millis(after)) else {
            panic!("out")
        };
        assert!((is - share).abs() < 1e-3, "{after} ms: {is}");
    }
    assert_eq!(health.status(back + s(10)), ServerStatus::Up);
}

#[test]
fn health_checks_decide_where_there_are_some() {
    let (health, now) = health(true);
    let check = |outcome, now| health.record_check(outcome, (2, 3), now);
    for _ in 0..10 {
        check(rejected(), now);
        check(rejected(), now);
        assert_eq!(health.availability(now), Availability::InRotation(1.0));
        check(PASSED, now);
    }
    (0..3).for_each(|_| check(rejected(), now));
    assert_eq!(
        (health.availability(now), health.status(now)),
        (Availability::Unhealthy, ServerStatus::Unhealthy)
    );
    // Even if requests succeed.
    health.record_success(now, now);
    check(PASSED, now);
    check(rejected(), now);
    check(PASSED, now);
    assert_eq!(health.availability(now), Availability::Unhealthy);
    check(PASSED, now);
    assert_eq!(health.availability(now), Availability::InRotation(0.1));
    assert_eq!(CheckResult::ALL.map(|result| health.checks.get(result)), [13, 24]);
}

/// No request is risked: the trial after a pause is a health check.
#[test]
fn a_health_check_is_the_trial_of_an_ejected_server() {
    let (health, now) = health(true);
    let check = |outcome, now| health.record_check(outcome, (2, 3), now);
    let minute = s(60);
    assert_eq!(health.next_check(minute, now), now + minute);
    fails(&health, 3, now);
    assert_eq!(health.next_check(minute, now), now + s(1));
    assert_eq!(health.availability(now + s(1)), Availability::Ejected);
    assert!(!health.claim_trial(now + s(1)));
    check(PASSED, now);
    assert_eq!(health.status(now), ServerStatus::Ejected, "not before the pause is over");
    check(rejected(), now + s(1));
    assert_eq!(health.next_check(minute, now + s(1)), now + s(3));
    check(PASSED, now + s(3));
    assert_eq!(health.status(now + s(3)), ServerStatus::SlowStart);
    assert_eq!(health.status(now + s(13)), ServerStatus::Up, "though it had no request since");
}

#[test]
fn an_operator_may_drain_a_server_whatever_else_is_known() {
    let (health, now) = health(false);
    health.drain(true);
    fails(&health, 3, now);
    assert_eq!(
        (health.availability(now), health.status(now)),
        (Availability::Drained, ServerStatus::Drained)
    );
    assert_eq!(health.availability(now + s(1)), Availability::Drained);
    health.drain(false);
    assert_eq!(health.status(now), ServerStatus::Ejected);
    // A server that was restarted meanwhile begins slowly.
    let fresh = one_of(2, settings(), false);
    fresh.drain(true);
    fresh.drain(false);
    assert_eq!(fresh.status(Clock::System.now()), ServerStatus::SlowStart);
}

#[tokio::test(start_paused = true)]
async fn an_ejection_reschedules_the_next_check() {
    let (health, now) = health(true);
    fails(&health, 3, now);
    health.rescheduled().await;
    assert!(tokio::time::timeout(s(1), health.rescheduled()).await.is_err());
}

/// Neither makes the checks more frequent.
#[test]
fn an_ejected_and_unhealthy_server_is_checked_as_often_as_any() {
    let (health, mut now) = health(true);
    fails(&health, 3, now);
    for _ in 0..3 {
        now = health.next_check(s(60), now);
        health.record_check(rejected(), (2, 3), now);
    }
    assert_eq!((health.status(now), health.next_check(s(60), now)), (ServerStatus::Unhealthy, now + s(60)));
    // Failures meanwhile change nothing.
    fails(&health, 3, now);
    assert_eq!(health.next_check(s(60), now), now + s(60));
    health.record_success(now, now);
    assert_eq!(health.status(now), ServerStatus::Unhealthy);
    health.record_check(PASSED, (2, 3), now);
    health.record_check(PASSED, (2, 3), now);
    assert_eq!(health.status(now), ServerStatus::SlowStart);
}

#[test]
fn a_request_sent_before_readmission_cannot_eject() {
    let (health, now) = health(true);
    fails(&health, 3, now);
    let back = now + s(1);
    health.record_check(PASSED, (2, 3), back);
    for _ in 0..10 {
        health.record_failure(now, EjectionReason::Timeout, back + s(20));
    }
    assert_eq!((health.status(back + s(20)), health.consecutive_failures()), (ServerStatus::Up, 0));
    fails(&health, 3, back);
    assert_eq!(health.status(back), ServerStatus::Ejected);
}

/// A check that Rails rejects says less than one without a response.
#[test]
fn a_server_without_responses_to_checks_is_as_bad_as_one_that_fails_requests() {
    for (outcome, availability) in
        [(rejected as fn() -> _, Availability::Unhealthy), (unanswered, Availability::Ejected)]
    {
        let (health, now) = health(true);
        for _ in 0..3 {
            health.record_check(outcome(), (2, 3), now);
        }
        assert_eq!((health.availability(now), health.status(now)), (availability, ServerStatus::Unhealthy));
    }
}
