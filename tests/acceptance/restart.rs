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

/// The same, where every eighth is for a key that was not asked for before.
fn ask_also_for_unknown(number: usize) -> Ask {
    if !is_for_unknown(number) {
        return ask(number);
    }
    let ask = Ask::get(&format!("authorized_keys?key=AAAAC3NzaC1lZDI1NTE5AAAAI{number:043}"));
    ask.with_secret().header("X-Request-Id", &format!("restart-{number}"))
}

fn is_for_unknown(number: usize) -> bool {
    number % 8 == 1
}

fn load(gateway: &Gateway, ask: fn(usize) -> Ask, next: &AtomicUsize, outcomes: &Mutex<Vec<Outcome>>) {
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
                scope.spawn(|| load(&gateway, ask, &next, &outcomes));
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

/// A Puma that loads a GitLab does not listen for a while. With what the gateway does if nothing is configured,
/// only look-ups for keys that are not known fail meanwhile.
#[test]
fn rails_that_takes_long_to_boot_fails_nothing_but_look_ups_for_unknown_keys() {
    const BOOT: Duration = Duration::from_secs(15);
    // As long as any of the others waits, with something left for a machine that is busy.
    const JUDGED: Duration = Duration::from_secs(25);
    let way = Way::Unix;
    let mut stage = Stage::new();
    let gateway = stage.gateway_of_short_memory(way, "stale_while_revalidate = \"0s\"");
    for known in [0, 2] {
        assert_eq!(gateway.tcp.send(&ask(known)).status, 200);
    }
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let mut down = Duration::ZERO;
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| load(&gateway, ask_also_for_unknown, &next, &outcomes));
        }
        eventually("enough answers", || outcomes.lock().unwrap().len() >= REQUESTS / 4);
        let begun = Instant::now();
        stage.end_rails();
        stage.restart_rails_with(BOOT);
        down = begun.elapsed();
    });
    let outcomes = outcomes.into_inner().unwrap();
    assert_eq!(outcomes.len(), REQUESTS);
    let failed: Vec<(usize, Option<u16>)> = outcomes
        .iter()
        .filter(|outcome| outcome.status != Some(200) && !is_for_unknown(outcome.number))
        .map(|outcome| (outcome.number, outcome.status))
        .collect();
    let unknown = |status| {
        let with = |outcome: &&Outcome| is_for_unknown(outcome.number) && outcome.status == Some(status);
        outcomes.iter().filter(with).count()
    };
    println!(
        "{down:?} down: {} failed, unknown keys: {} 404, {} 503",
        failed.len(),
        unknown(404),
        unknown(503)
    );
    assert!(down >= BOOT && unknown(404) > 0 && unknown(503) > 0);
    assert_eq!(unknown(200), 0);
    assert!(failed.is_empty() || down > JUDGED, "{down:?} down: {failed:?}");
    let log = gateway.log();
    for told in ["Rails cannot be reached", "Rails is still away", "Rails can be reached again", "\"cause\""]
    {
        assert!(log.contains(told), "{told}");
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
