use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::upstream::servers::health::{CheckFailure, EjectionReason};
use crate::upstream::{
    EjectionSettings, UpstreamServerSettings, UpstreamServerState, UpstreamSettings, UpstreamTarget,
};

/// So many servers, of which the last are backups; ejected after one failure, without health checks.
fn servers(count: usize, backups: usize) -> Vec<UpstreamServer> {
    let server = |nth: usize| UpstreamServerSettings {
        target: UpstreamTarget::parse(&format!("http://10.0.0.{nth}:80")).unwrap(),
        tls: None,
        is_backup: nth >= count - backups,
    };
    let mut settings = UpstreamSettings::new(UpstreamTarget::parse("http://rails").unwrap());
    settings.servers = (0..count).map(server).collect();
    settings.health_checks.interval = Duration::ZERO;
    settings.ejection = EjectionSettings { failures: 1, ..EjectionSettings::default() };
    let new = |(index, server)| {
        UpstreamServer::new(index, server, &settings, Arc::new(UpstreamServerState::new(server, &settings)))
    };
    settings.servers.iter().enumerate().map(new).collect()
}

/// How often each is chosen in 10,000 times.
fn chosen(servers: &[UpstreamServer], tried: ServerSet, now: Instant) -> Vec<usize> {
    let mut counts = vec![0; servers.len()];
    for _ in 0..10_000 {
        if let Some(server) = choose(servers, Class::Lookup, tried, now) {
            counts[server.index] += 1;
        }
    }
    counts
}

fn set_of(indexes: &[usize]) -> ServerSet {
    let mut set = ServerSet::default();
    for index in indexes {
        set.insert(*index);
    }
    set
}

fn fails(server: &UpstreamServer, now: Instant) {
    server.state.health.record_failure(now, EjectionReason::Unreachable, now);
}

#[test]
fn a_set_holds_the_indexes_that_were_inserted() {
    for indexes in [&[][..], &[0], &[63], &[0, 1, 2], &[3, 17, 40, 63]] {
        let set = set_of(indexes);
        assert_eq!(set.len() as usize, indexes.len());
        let found: Vec<usize> = (0..set.len()).map(|nth| set.nth(nth)).collect();
        assert_eq!(found, indexes);
        assert!((0..64).all(|index| set.contains(index) == indexes.contains(&index)));
    }
}

#[tokio::test(start_paused = true)]
async fn equal_servers_get_the_same_and_a_slow_or_busy_one_gets_less() {
    let (servers, now) = (servers(3, 0), Clock::System.now());
    let equal = chosen(&servers, ServerSet::default(), now);
    assert!(equal.iter().all(|count| (2_900..3_800).contains(count)), "{equal:?}");
    let slow = servers[1].state.load.start(Class::Lookup);
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(slow);
    let _busy = [servers[2].state.load.start(Class::Lookup), servers[2].state.load.start(Class::Lookup)];
    let counts = chosen(&servers, ServerSet::default(), now);
    // The slowest never wins, and each of the other two competes with it as often.
    assert!(counts[1] == 0 && counts[2] < counts[0], "{counts:?}");
    let other = choose(&servers, Class::Access, set_of(&[0, 2]), now).unwrap();
    assert_eq!(other.index, 1, "for what it has not been tried");
}

#[tokio::test(start_paused = true)]
async fn backups_come_after_servers_in_rotation_and_before_ejected_ones() {
    let (servers, now) = (servers(4, 2), Clock::System.now());
    let is_chosen = |tried: &[usize]| -> Vec<usize> {
        let counts = chosen(&servers, set_of(tried), now);
        (0..4).filter(|index| counts[*index] > 0).collect()
    };
    assert_eq!(is_chosen(&[]), [0, 1]);
    assert_eq!(is_chosen(&[0]), [1]);
    assert_eq!(is_chosen(&[0, 1]), [2, 3]);
    assert!(is_chosen(&[0, 1, 2, 3]).is_empty());
    fails(&servers[0], now);
    assert_eq!(is_chosen(&[]), [1]);
    fails(&servers[1], now);
    assert_eq!(is_chosen(&[]), [2, 3]);
    assert_eq!(is_chosen(&[2, 3]), [0, 1], "ejected ones rather than none");
    fails(&servers[2], now);
    fails(&servers[3], now);
    assert_eq!(is_chosen(&[]), [0, 1], "backups last");
    servers[0].state.health.drain(true);
    assert_eq!(is_chosen(&[]), [1]);
    assert_eq!(is_chosen(&[1]), [2, 3], "but never a drained one");
    let is_ejected = |availability| availability == Availability::Ejected;
    assert!(has_untried(&servers, set_of(&[1, 2]), is_ejected, now));
    assert!(!has_untried(&servers, set_of(&[1, 2, 3]), is_ejected, now));
}

/// A failed health check may be the fault of the check.
#[tokio::test(start_paused = true)]
async fn a_server_that_fails_only_health_checks_comes_before_one_that_fails_requests() {
    let (servers, now) = (servers(3, 1), Clock::System.now());
    for server in &servers {
        for _ in 0..3 {
            let refused = CheckFailure { why: "404".into(), rails_responded: true };
            server.state.health.record_check(Err(refused), (2, 3), now);
        }
    }
    let is_chosen = |servers: &[UpstreamServer]| -> Vec<usize> {
        let counts = chosen(servers, ServerSet::default(), now);
        (0..3).filter(|index| counts[*index] > 0).collect()
    };
    assert_eq!(is_chosen(&servers), [0, 1]);
    fails(&servers[0], now);
    assert_eq!(is_chosen(&servers), [1]);
    fails(&servers[1], now);
    assert_eq!(is_chosen(&servers), [2]);
    fails(&servers[2], now);
    assert_eq!(is_chosen(&servers), [0, 1]);
}

/// A request without a credential is no trial: its outcome proves nothing.
#[tokio::test(start_paused = true)]
async fn a_request_without_a_credential_is_no_trial() {
    let (servers, now) = (servers(2, 0), Clock::System.now());
    fails(&servers[0], now);
    let later = now + Duration::from_secs(1);
    for _ in 0..100 {
        assert_eq!(choose(&servers, Class::Other, ServerSet::default(), later).unwrap().index, 1);
    }
    assert_eq!(choose(&servers, Class::Kas, ServerSet::default(), later).unwrap().index, 0);
}

#[tokio::test(start_paused = true)]
async fn after_its_pause_a_server_gets_one_request_as_a_trial() {
    let (servers, now) = (servers(2, 0), Clock::System.now());
    fails(&servers[0], now);
    assert_eq!(chosen(&servers, ServerSet::default(), now), [0, 10_000]);
    let later = now + Duration::from_secs(1);
    assert_eq!(chosen(&servers, ServerSet::default(), later), [1, 9_999]);
    servers[0].state.health.record_success(later, later);
    // A tenth of its full share.
    let counts = chosen(&servers, ServerSet::default(), later);
    assert!((300..700).contains(&counts[0]), "{counts:?}");
    let full = later + EjectionSettings::default().slow_start;
    assert!(chosen(&servers, ServerSet::default(), full)[0] > 3_000);
}

#[test]
fn a_single_server_is_chosen_once_unless_it_is_drained() {
    let (servers, now) = (servers(1, 0), Clock::System.now());
    assert!(choose(&servers, Class::Lookup, ServerSet::default(), now).is_some());
    assert!(choose(&servers, Class::Lookup, set_of(&[0]), now).is_none());
    servers[0].state.health.drain(true);
    assert!(choose(&servers, Class::Lookup, ServerSet::default(), now).is_none());
}
