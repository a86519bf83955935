//! Rails is restarted under load, and nobody notices.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::keys;
use super::stage::{Gateway, Stage, Way, eventually};
use super::wire::Ask;

const REQUESTS: usize = 2_000;
const CLIENTS: usize = 32;
const RESTARTS: usize = 3;
/// How long Rails is down each time, the time that it takes to start aside.
const DOWN: Duration = Duration::from_secs(3);

/// What git, sshd and Gitaly ask, and in about this mix: a clone asks whose key it is and whether it may, a
/// push is told of twice more.
fn ask(number: usize) -> Ask {
    let key = format!("authorized_keys?key={}", keys::of_root());
    let ask = match number % 8 {
        0 | 1 => Ask::get(&key),
        2 => Ask::get("discover?key_id=1"),
        3..=5 => {
            Ask::post("allowed").form("key_id=1&project=gnuwget/wget2&action=git-upload-pack&changes=_any")
        }
        6 => Ask::post("pre_receive").form("gl_repository=project-1"),
        _ => Ask::post("post_receive").form("gl_repository=project-1&identifier=key-1&changes=x"),
    };
    ask.with_secret().header("X-Request-Id", &format!("restart-{number}"))
}

/// What became of a request.
struct Outcome {
    number: usize,
    status: Option<u16>,
    took: Duration,
}

fn load(gateway: &Gateway, next: &AtomicUsize, outcomes: &Mutex<Vec<Outcome>>) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= REQUESTS {
            return;
        }
        let begun = Instant::now();
        // A connection for each, as GitLab Shell makes them.
        let answer = gateway.peers()[number % 2].try_send(&ask(number));
        let (status, took) = (answer.ok().map(|answer| answer.status), begun.elapsed());
        outcomes.lock().unwrap().push(Outcome { number, status, took });
    }
}

#[test]
fn rails_restarts_under_load_and_nobody_notices() {
    for way in [Way::Tcp, Way::Unix] {
        let mut stage = Stage::new();
        let gateway = stage.gateway_that_waits(way);
        let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| load(&gateway, &next, &outcomes));
            }
            for restart in 1..=RESTARTS {
                let due = REQUESTS * restart / (RESTARTS + 2);
                eventually("enough answers", || outcomes.lock().unwrap().len() >= due);
                stage.end_rails();
                thread::sleep(DOWN);
                stage.restart_rails();
            }
        });
        let outcomes = outcomes.into_inner().unwrap();
        report(way, &outcomes, &stage.arrived());
        let log = gateway.log();
        let longest = outcomes.iter().max_by_key(|outcome| outcome.took).unwrap().number;
        let id = format!("\"restart-{longest}\"");
        println!("{}", log.lines().find(|line| line.contains(&id)).unwrap_or_default());
        assert!(log.contains("queue_duration_s"), "somebody has waited");
    }
}

fn report(way: Way, outcomes: &[Outcome], arrived: &[String]) {
    let mut times: HashMap<&str, usize> = HashMap::new();
    for id in arrived {
        *times.entry(id.as_str()).or_default() += 1;
    }
    let arrived = |number: usize| times.get(format!("restart-{number}").as_str()).copied().unwrap_or(0);
    let is_read = |number: usize| number % 8 < 3;
    let failed: Vec<(usize, Option<u16>, usize)> = outcomes
        .iter()
        .filter(|outcome| outcome.status != Some(200))
        .map(|outcome| (outcome.number, outcome.status, arrived(outcome.number)))
        .collect();
    let mut took: Vec<Duration> = outcomes.iter().map(|outcome| outcome.took).collect();
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "{way:?}: {} answered, {} failed, p50 {:?}, p90 {:?}, p99 {:?}, longest {:?}",
        outcomes.len(),
        failed.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    assert_eq!(outcomes.len(), REQUESTS);
    assert!(failed.iter().all(|(.., arrived)| *arrived > 0), "failed and never came to Rails: {failed:?}");
    let twice: Vec<usize> =
        (0..REQUESTS).filter(|number| !is_read(*number) && arrived(*number) > 1).collect();
    assert!(twice.is_empty(), "executed twice: {twice:?}");
}
