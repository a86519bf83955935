//! A fleet of up to 500 gateways and ten million questions, in virtual time: what two cores can't hold.
//!
//! Whatever a gateway decides, the product's own code decides: what follows from what was read, what is told when, what an
//! answer may be used for, which shared answer is accepted. Only what lies between is a model: Valkey, the network, GitLab
//! and its Rails, clocks, and the order in which commands are sent. All that happens is drawn from a seed.
//!
//! Each answer that is given from what is kept is compared with what README.md promises ("More than one gateway"): it is no
//! older than that, it is to the question that was asked, and Rails is asked once by all as long as nothing goes wrong.

mod answers;
mod faults;
mod gateway;
mod plan;
mod promise;
mod rails;
mod servers;
mod silence;
mod tasks;
mod valkey;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use self::gateway::Gateway;
use self::plan::Plan;
use self::rails::Question;
use self::world::World;
use crate::fleet::counters::DoubtReason;
use crate::fleet::settings::{FleetSettings, SharedSettings};

/// Runs only this seed.
const SEED: &str = "RAILGATE_SIMULATION_SEED";
/// How many seeds the long run has, if not ten thousand.
const SEEDS: &str = "RAILGATE_SIMULATION_SEEDS";

/// What happened in all runs together.
#[derive(Debug, Default)]
struct Totals {
    events: AtomicU64,
    checked: AtomicU64,
    told: AtomicU64,
    rails_asked: AtomicU64,
    hits_of_others: AtomicU64,
    hidden: AtomicU64,
    silences: AtomicU64,
}

fn run(seed: u64, totals: &Totals) -> Result<(), String> {
    let run = catch_unwind(AssertUnwindSafe(|| World::new(seed).run()));
    let world = run.map_err(|_| "a panic".to_owned())??;
    let promise = &world.promise;
    let counts = [
        (&totals.events, world.events),
        (&totals.checked, promise.checked),
        (&totals.told, promise.told),
        (&totals.rails_asked, promise.rails_asked),
        (&totals.hits_of_others, promise.hits_of_others),
        (&totals.hidden, promise.hidden),
        (&totals.silences, world.silences()),
    ];
    for (total, count) in counts {
        total.fetch_add(count, Ordering::Relaxed);
    }
    Ok(())
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// All seeds, or the one that the environment names.
fn run_all(count: u64) -> Totals {
    let (first, end) = variable(SEED).map_or((0, count), |seed| (seed, seed + 1));
    let (next, failures, totals) = (AtomicU64::new(first), Mutex::new(Vec::new()), Totals::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    if let Err(text) = run(seed, &totals) {
                        failures.lock().push((seed, text));
                    }
                }
            });
        }
    });
    if let Some(report) = report(failures.into_inner(), count) {
        panic!("{report}");
    }
    println!("{totals:?}");
    totals
}

/// What is said of the seeds that fail, if there are any, and how the first one is run again.
fn report(mut failures: Vec<(u64, String)>, count: u64) -> Option<String> {
    failures.sort();
    let (seed, text) = failures.first()?;
    let seeds: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
    Some(format!(
        "{} of {count} seeds fail: {seeds:?}\nseed {seed}: {text}\nto run it alone: \
         {SEED}={seed} cargo test --locked --lib fleet::tests::simulation -- --nocapture",
        seeds.len()
    ))
}

#[test]
fn two_hundred_fleets_keep_what_is_promised() {
    let totals = run_all(200);
    if variable(SEED).is_none() {
        // It is no proof if nothing was told, checked or shared.
        for (count, least) in [
            (&totals.told, 1_000),
            (&totals.checked, 20_000),
            (&totals.hits_of_others, 2_000),
            (&totals.hidden, 5),
            (&totals.silences, 10),
        ] {
            assert!(count.load(Ordering::Relaxed) > least, "{totals:?}");
        }
    }
}

#[test]
#[ignore = "takes minutes: cargo test --locked --lib fleet::tests::simulation -- --ignored --nocapture"]
fn ten_thousand_fleets_keep_what_is_promised() {
    run_all(variable(SEEDS).unwrap_or(10_000));
}

/// All that they keep is doubted at once, and asked for by each of them.
#[test]
fn two_hundred_gateways_in_doubt_ask_rails_once() {
    const GATEWAYS: usize = 200;
    let mut world = World::with_plan(1, |plan| {
        let mut settings = FleetSettings::clone(&plan.settings);
        settings.shared = Some(SharedSettings::default());
        let (settings, duration) = (Arc::new(settings), 20_000);
        let none = Plan { requests: 0, changes: 0, faults: 0, settle: 0, ..plan };
        Plan {
            gateways: GATEWAYS,
            duration,
            settings,
            has_clock_errors: false,
            has_clock_steps: false,
            ..none
        }
    });
    let question = Question::new(3);
    // Before, and after Valkey has lost all.
    for at in [5_000, 14_000] {
        for gateway in 0..GATEWAYS {
            let delay = world.rng.u64(0..=100);
            world.after(at + delay, move |world| world.request(gateway, question));
        }
    }
    world.after(8_000, |world| world.nodes[world.master].flush());
    let world = world.run().unwrap_or_else(|text| panic!("{text}"));
    let doubted = |gateway: &Gateway| gateway.process.bus.counters.doubts.get(DoubtReason::Anchor) == 1;
    assert!(world.gateways.iter().all(doubted));
    assert_eq!(world.promise.rails_asked, 2);
    assert_eq!(world.promise.hits_of_others, 2 * (GATEWAYS as u64 - 1));
}

#[test]
fn a_seed_runs_the_same_each_time() {
    let run = || {
        let world = World::new(7).run().unwrap_or_else(|text| panic!("{text}"));
        (world.events, world.promise.checked, world.promise.rails_asked, world.promise.told)
    };
    assert_eq!(run(), run());
}

#[test]
fn seeds_that_fail_are_named_with_the_command_that_runs_the_first_one_again() {
    let failures = vec![(70, "a panic".to_owned()), (9, "an answer is too old".to_owned())];
    let report_of_two = report(failures, 200).unwrap();
    let (_, module) = module_path!().split_once("::").unwrap();
    let command = format!("RAILGATE_SIMULATION_SEED=9 cargo test --locked --lib {module} -- --nocapture");
    assert_eq!(
        report_of_two,
        format!("2 of 200 seeds fail: [9, 70]\nseed 9: an answer is too old\nto run it alone: {command}")
    );
    assert_eq!(report(Vec::new(), 200), None);
}
