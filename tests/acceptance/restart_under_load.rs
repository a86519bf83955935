//! Rails is restarted under load without failing requests.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::client::Request;
use super::harness::{Gateway, Harness, Transport, eventually};
use super::keys;

const REQUESTS: usize = 2_000;
const CLIENTS: usize = 32;
const RESTARTS: usize = 3;
const BETWEEN_LOOKUPS: Duration = Duration::from_millis(50);
const LONGEST_BOOT: Duration = Duration::from_secs(180);
/// How long Rails is down each time, in addition to its start.
const DOWNTIME: Duration = Duration::from_secs(3);

/// Requests of git, sshd and Gitaly in about their usual mix: a clone looks up the key and checks access, a
/// push calls back twice more.
fn request(number: usize) -> Request {
    let key = format!("authorized_keys?key={}", keys::of_root());
    let request = match number % 8 {
        0 | 1 => Request::get(&key),
        2 => Request::get("discover?key_id=1"),
        3..=5 => Request::post("allowed")
            .form("key_id=1&project=gnuwget/wget2&action=git-upload-pack&changes=_any"),
        6 => Request::post("pre_receive").form("gl_repository=project-1"),
        _ => Request::post("post_receive").form("gl_repository=project-1&identifier=key-1&changes=x"),
    };
    request.with_secret().header("X-Request-Id", &format!("restart-{number}"))
}

struct Outcome {
    number: usize,
    status: Option<u16>,
    begun: Instant,
    took: Duration,
}

/// The same and calls of Git LFS and kas; every tenth request looks up a new key.
fn request_of_any_class(number: usize) -> Request {
    let request = match number % 10 {
        UNKNOWN_KEY => Request::get(&format!("authorized_keys?key=AAAAC3NzaC1lZDI1NTE5AAAAI{number:043}")),
        8 => Request::post("lfs_authenticate").form("key_id=1&project=gnuwget/wget2&operation=download"),
        9 => return Request::get("kubernetes/agent_info").with_kas_token(),
        of_a_shell => return self::request(of_a_shell),
    };
    request.with_secret()
}

/// Its remainder, of the number of a request by ten.
const UNKNOWN_KEY: usize = 1;

fn is_unknown_key(number: usize) -> bool {
    number % 10 == UNKNOWN_KEY
}

/// Keys and users that were looked up before.
fn is_known(number: usize) -> bool {
    matches!(number % 10, 0 | 2)
}

fn load(
    gateway: &Gateway,
    request: fn(usize) -> Request,
    next: &AtomicUsize,
    outcomes: &Mutex<Vec<Outcome>>,
) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= REQUESTS {
            return;
        }
        let outcome = ask(gateway, request, number);
        outcomes.lock().unwrap().push(outcome);
    }
}

/// On a connection of its own, as GitLab Shell does.
fn ask(gateway: &Gateway, request: fn(usize) -> Request, number: usize) -> Outcome {
    let begun = Instant::now();
    let response = gateway.addresses()[number % 2].try_send(&request(number));
    Outcome { number, status: response.ok().map(|response| response.status), begun, took: begun.elapsed() }
}

/// Looks up known and unknown keys until Rails is back: nearly all clients of [`load`] are held meanwhile.
fn look_up(gateway: &Gateway, first: usize, is_back: &AtomicBool, outcomes: &Mutex<Vec<Outcome>>) {
    let (mut number, begun) = (first, Instant::now());
    // A Rails that does not come back fails the test elsewhere.
    while !is_back.load(Ordering::Acquire) && begun.elapsed() < LONGEST_BOOT {
        let outcome = ask(gateway, request_of_any_class, number);
        outcomes.lock().unwrap().push(outcome);
        // The next one of the same class.
        number += 10;
        thread::sleep(BETWEEN_LOOKUPS);
    }
}

#[test]
fn all_requests_succeed_while_rails_restarts_under_load() {
    for transport in [Transport::Tcp, Transport::Unix] {
        let mut harness = Harness::new();
        let gateway = harness.gateway_with_long_hold(transport);
        let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| load(&gateway, request, &next, &outcomes));
            }
            for restart in 1..=RESTARTS {
                let due = REQUESTS * restart / (RESTARTS + 2);
                eventually("enough answers", || outcomes.lock().unwrap().len() >= due);
                harness.terminate_rails();
                thread::sleep(DOWNTIME);
                harness.restart_rails();
            }
        });
        let outcomes = outcomes.into_inner().unwrap();
        report(transport, &outcomes, &harness.arrived_request_ids());
        let log = gateway.log();
        let longest = outcomes.iter().max_by_key(|outcome| outcome.took).unwrap().number;
        let id = format!("\"restart-{longest}\"");
        println!("{}", log.lines().find(|line| line.contains(&id)).unwrap_or_default());
        assert!(log.contains("queue_duration_s"), "no request was held");
    }
}

/// A Puma that loads GitLab does not listen for a while. With the default time-outs and budgets, only lookups of
/// unknown keys fail meanwhile (and `check`, which is not among these requests: it says that Rails is away).
#[test]
fn only_lookups_of_unknown_keys_fail_while_rails_boots_slowly() {
    const BOOT: Duration = Duration::from_secs(15);
    // Requests are held for 30 s. On a busy machine, Rails may be away for longer: then those that began earlier
    // than this before its return are excused.
    const HELD: Duration = Duration::from_secs(25);
    /// How long a request that fills an entry may take.
    const FILL: Duration = Duration::from_secs(4);
    for transport in [Transport::Tcp, Transport::Unix] {
        let mut harness = Harness::new();
        let gateway = harness.gateway_with_default_timeouts(transport);
        for known in [0, 2] {
            assert_eq!(gateway.tcp.send(&request_of_any_class(known)).status, 200);
        }
        let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let (lookups, is_back) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let (begun, up) = thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| load(&gateway, request_of_any_class, &next, &outcomes));
            }
            eventually("enough answers", || outcomes.lock().unwrap().len() >= REQUESTS / 4);
            let begun = Instant::now();
            harness.terminate_rails();
            for class in [0, UNKNOWN_KEY, 2] {
                let (gateway, is_back, lookups) = (&gateway, &is_back, &lookups);
                scope.spawn(move || look_up(gateway, REQUESTS + class, is_back, lookups));
            }
            harness.restart_rails_with_boot_time(BOOT);
            let up = Instant::now();
            is_back.store(true, Ordering::Release);
            (begun, up)
        });
        let down = up - begun;
        let mut outcomes = outcomes.into_inner().unwrap();
        assert_eq!(outcomes.len(), REQUESTS);
        outcomes.append(&mut lookups.into_inner().unwrap());
        let must_succeed = |outcome: &Outcome| match outcome.number {
            unknown if is_unknown_key(unknown) => false,
            // From memory, while Rails is away. Before and after, it has 4 s, which a busy machine may miss, and so may
            // those who wait for a request that began before.
            known if is_known(known) => (begun + FILL..up).contains(&outcome.begun),
            _ => up.saturating_duration_since(outcome.begun) <= HELD,
        };
        let failed: Vec<(usize, Option<u16>, Duration)> = outcomes
            .iter()
            .filter(|outcome| outcome.status != Some(200) && must_succeed(outcome))
            .map(|outcome| (outcome.number, outcome.status, outcome.took))
            .collect();
        let unknown = |status| {
            let with = |outcome: &&Outcome| is_unknown_key(outcome.number) && outcome.status == Some(status);
            outcomes.iter().filter(with).count()
        };
        let (not_found, away) = (unknown(404), unknown(503));
        println!("{transport:?}, {down:?} down: unknown keys: {not_found} 404, {away} 503");
        assert!(failed.is_empty(), "{transport:?}, {down:?} down: {failed:?}");
        assert!(down >= BOOT && not_found > 0 && away > 0);
        let remembered = |outcome: &&Outcome| is_known(outcome.number) && must_succeed(outcome);
        assert!(outcomes.iter().filter(remembered).count() > 0);
        assert_eq!(unknown(200), 0);
        let log = gateway.log();
        // "Rails cannot be reached" is missing if, on a busy machine, a lookup has used up its hold before Rails
        // refuses connections: then the first of these lines reports the outage.
        for text in ["Rails is still away", "Rails can be reached again", "\"cause\""] {
            assert!(log.contains(text), "{text}");
        }
    }
}

fn report(transport: Transport, outcomes: &[Outcome], arrived: &[String]) {
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
        "{transport:?}: {} answered, {} failed, p50 {:?}, p90 {:?}, p99 {:?}, longest {:?}",
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
