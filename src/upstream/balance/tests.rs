use std::sync::Arc;
use std::time::Duration;

use super::super::health::{Bad, Reason};
use super::super::{Ejection, ServerSettings, ServerState, Settings, Target};
use super::*;
use crate::clock::Clock;

/// So many servers, of which the last are backups; ejected after one failure, without health checks.
fn servers(count: usize, backups: usize) -> Vec<Server> {
    let server = |nth: usize| ServerSettings {
        target: Target::parse(&format!("http://10.0.0.{nth}:80")).unwrap(),
        tls: None,
        is_backup: nth >= count - backups,
    };
    let mut settings = Settings::new(Target::parse("http://rails").unwrap());
    settings.servers = (0..count).map(server).collect();
    settings.checks.interval = Duration::ZERO;
    settings.ejection = Ejection { failures: 1, ..Ejection::default() };
    let new = |(place, server)| {
        Server::new(place, server, &settings, Arc::new(ServerState::new(server, &settings)))
    };
    settings.servers.iter().enumerate().map(new).collect()
}

/// How often each is chosen.
fn chosen(servers: &[Server], tried: ServerSet, now: Instant) -> Vec<usize> {
    let mut counts = vec![0; servers.len()];
    for _ in 0..10_000 {
        if let Some(server) = choose(servers, Class::Lookup, tried, now) {
            counts[server.place] += 1;
        }
    }
    counts
}

fn set(places: &[usize]) -> ServerSet {
    let mut set = ServerSet::default();
    for place in places {
        set.insert(*place);
    }
    set
}

fn fails(server: &Server, now: Instant) {
    server.state.health.failed(now, Reason::Unreachable, now);
}

#[test]
fn some_places_are_some_places() {
    for places in [&[][..], &[0], &[63], &[0, 1, 2], &[3, 17, 40, 63]] {
        let some = set(places);
        assert_eq!(some.len() as usize, places.len());
        let found: Vec<usize> = (0..some.len()).map(|nth| some.nth(nth)).collect();
        assert_eq!(found, places);
        assert!((0..64).all(|place| some.has(place) == places.contains(&place)));
    }
}

#[tokio::test(start_paused = true)]
async fn equals_get_the_same_and_one_that_is_slow_or_busy_gets_less() {
    let (servers, now) = (servers(3, 0), Clock::System.now());
    let equal = chosen(&servers, ServerSet::default(), now);
    assert!(equal.iter().all(|count| (2_900..3_800).contains(count)), "{equal:?}");
    let slow = servers[1].state.load.begin(Class::Lookup);
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(slow);
    let _busy = [servers[2].state.load.begin(Class::Lookup), servers[2].state.load.begin(Class::Lookup)];
    let counts = chosen(&servers, ServerSet::default(), now);
    // The slowest never wins, and of the other two each is met by it as often.
    assert!(counts[1] == 0 && counts[2] < counts[0], "{counts:?}");
    let other = choose(&servers, Class::Access, set(&[0, 2]), now).unwrap();
    assert_eq!(other.place, 1, "for what it has not been tried");
}

#[tokio::test(start_paused = true)]
async fn backups_are_for_when_nobody_else_takes_part_and_who_is_out_for_when_nobody_does() {
    let (servers, now) = (servers(4, 2), Clock::System.now());
    let is_chosen = |tried: &[usize]| -> Vec<usize> {
        let counts = chosen(&servers, set(tried), now);
        (0..4).filter(|place| counts[*place] > 0).collect()
    };
    assert_eq!(is_chosen(&[]), [0, 1]);
    assert_eq!(is_chosen(&[0]), [1]);
    assert_eq!(is_chosen(&[0, 1]), [2, 3]);
    assert!(is_chosen(&[0, 1, 2, 3]).is_empty());
    fails(&servers[0], now);
    assert_eq!(is_chosen(&[]), [1]);
    fails(&servers[1], now);
    assert_eq!(is_chosen(&[]), [2, 3]);
    assert_eq!(is_chosen(&[2, 3]), [0, 1], "those that are out, before nobody");
    fails(&servers[2], now);
    fails(&servers[3], now);
    assert_eq!(is_chosen(&[]), [0, 1], "backups last");
    servers[0].state.health.drain(true);
    assert_eq!(is_chosen(&[]), [1]);
    assert_eq!(is_chosen(&[1]), [2, 3], "but never whom an operator has drained");
    let is_out = |standing| standing == Standing::Ejected;
    assert!(has_another(&servers, set(&[1, 2]), is_out, now));
    assert!(!has_another(&servers, set(&[1, 2, 3]), is_out, now));
}

/// That a health check fails may be the fault of the check.
#[tokio::test(start_paused = true)]
async fn who_fails_health_checks_alone_comes_before_who_fails_requests() {
    let (servers, now) = (servers(3, 1), Clock::System.now());
    for server in &servers {
        for _ in 0..3 {
            let refused = Bad { why: "404".into(), is_answered: true };
            server.state.health.checked(Err(refused), (2, 3), now);
        }
    }
    let is_chosen = |servers: &[Server]| -> Vec<usize> {
        let counts = chosen(servers, ServerSet::default(), now);
        (0..3).filter(|place| counts[*place] > 0).collect()
    };
    assert_eq!(is_chosen(&servers), [0, 1]);
    fails(&servers[0], now);
    assert_eq!(is_chosen(&servers), [1]);
    fails(&servers[1], now);
    assert_eq!(is_chosen(&servers), [2]);
    fails(&servers[2], now);
    assert_eq!(is_chosen(&servers), [0, 1]);
}

/// A request that anybody may send is no try: what comes of it proves nothing.
#[tokio::test(start_paused = true)]
async fn what_anybody_may_ask_for_tries_nobody() {
    let (servers, now) = (servers(2, 0), Clock::System.now());
    fails(&servers[0], now);
    let later = now + Duration::from_secs(1);
    for _ in 0..100 {
        assert_eq!(choose(&servers, Class::Other, ServerSet::default(), later).unwrap().place, 1);
    }
    assert_eq!(choose(&servers, Class::Kas, ServerSet::default(), later).unwrap().place, 0);
}

#[tokio::test(start_paused = true)]
async fn after_its_pause_one_request_tries_a_server() {
    let (servers, now) = (servers(2, 0), Clock::System.now());
    fails(&servers[0], now);
    assert_eq!(chosen(&servers, ServerSet::default(), now), [0, 10_000]);
    let later = now + Duration::from_secs(1);
    assert_eq!(chosen(&servers, ServerSet::default(), later), [1, 9_999]);
    servers[0].state.health.answered(later, later);
    // A tenth of those that would be its.
    let counts = chosen(&servers, ServerSet::default(), later);
    assert!((300..700).contains(&counts[0]), "{counts:?}");
    let well = later + Ejection::default().slow_start;
    assert!(chosen(&servers, ServerSet::default(), well)[0] > 3_000);
}

#[test]
fn one_that_is_alone_is_chosen_once_unless_it_is_drained() {
    let (servers, now) = (servers(1, 0), Clock::System.now());
    assert!(choose(&servers, Class::Lookup, ServerSet::default(), now).is_some());
    assert!(choose(&servers, Class::Lookup, set(&[0]), now).is_none());
    servers[0].state.health.drain(true);
    assert!(choose(&servers, Class::Lookup, ServerSet::default(), now).is_none());
}
