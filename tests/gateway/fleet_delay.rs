//! What hearing each other takes and costs. Ignored: it prints figures, and takes two minutes.

use std::time::{Duration, Instant};

use railgate::cache::purge::{PurgeMode, Selector};
use railgate::fleet::settings::{DEFAULT_POLL, FleetSettings};
use serde_json::json;

use super::harness::{RunningGateway, Setup};
use super::pods::{Pod, pods, settings};
use super::valkey::Valkey;

const PURGES: usize = 1_000;
const GATEWAYS: u32 = 3;

/// What was used since the start: milliseconds of CPU of this process and of Valkey, and bytes from and to Valkey.
async fn used(valkey: &Valkey) -> [f64; 3] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    let own: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() * 10.0).sum();
    let mut sums = [0.0, 0.0];
    for (sum, fields) in sums
        .iter_mut()
        .zip([["used_cpu_user", "used_cpu_sys"], ["total_net_input_bytes", "total_net_output_bytes"]])
    {
        for field in fields {
            *sum += valkey.info(field).await.parse::<f64>().unwrap();
        }
    }
    [own, sums[0] * 1_000.0, sums[1]]
}

/// What was used since then, times a factor.
async fn print_used(valkey: &Valkey, what: &str, since: [f64; 3], factor: f64) {
    let now = used(valkey).await;
    let [own, server, bytes] = [0, 1, 2].map(|index| (now[index] - since[index]) * factor);
    println!("{what}: {own:.1} ms of CPU, {server:.1} ms of Valkey's, {bytes:.0} bytes");
}

/// From before an operator's request until both others have dropped what it names.
async fn print_delay(pods: &[Pod; 3], pause: Duration) {
    let [one, two, three] = pods;
    let mut delays = Vec::new();
    for number in 0..PURGES {
        let heard = [two.heard(), three.heard()];
        let begin = Instant::now();
        let purging = one.purge(json!({"user_id": number + 1}));
        let hearing = async {
            while two.heard() == heard[0] || three.heard() == heard[1] {
                tokio::task::yield_now().await;
            }
            begin.elapsed()
        };
        let (answer, delay) = tokio::join!(purging, hearing);
        assert_eq!(answer["fleet"], "told");
        delays.push(delay);
        tokio::time::sleep(pause).await;
    }
    delays.sort();
    let at = |percent: usize| delays[(PURGES - 1) * percent / 100];
    println!(
        "{PURGES} purges with pauses of {pause:?}: p50 {:?}, p99 {:?}, longest {:?}",
        at(50),
        at(99),
        delays[PURGES - 1]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures: cargo test --release --locked --test gateway -- --ignored --nocapture what_it_takes_to_hear"]
async fn what_it_takes_to_hear_each_other() {
    let valkey = Valkey::start().await;
    let fleet = || FleetSettings { poll: DEFAULT_POLL, ..settings(valkey.address()) };
    let (rails, pods) = pods::<3>(|_| fleet()).await;
    for pause in [0, 7, 20].map(Duration::from_millis) {
        print_delay(&pods, pause).await;
    }

    let (rest, a_minute) = (Duration::from_secs(20), 3.0 / f64::from(GATEWAYS));
    let since = used(&valkey).await;
    tokio::time::sleep(rest).await;
    print_used(&valkey, "idle, a minute and gateway", since, a_minute).await;

    let (since, heard) = (used(&valkey).await, pods[1].heard());
    let mut due = tokio::time::interval(Duration::from_millis(1));
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for number in 0..10_000 {
        due.tick().await;
        drop(pods[0].gateway.fleet.tell(&[Selector::UserId(number)], PurgeMode::Hard, Duration::ZERO));
    }
    print_used(&valkey, "1,000 purges a second by one of three gateways, a second", since, 0.1).await;
    println!("those were {} messages", pods[1].heard() - heard);
    for pod in pods {
        pod.stop().await;
    }

    let setups: Vec<Setup> = (0..GATEWAYS).map(|_| Setup::new().set("workers", 1)).collect();
    let start = |setup: &Setup| RunningGateway::start(setup.settings(&rails.address));
    let others: Vec<RunningGateway> = setups.iter().map(start).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let since = used(&valkey).await;
    tokio::time::sleep(rest).await;
    print_used(&valkey, "idle without a fleet, a minute and gateway", since, a_minute).await;
    drop(others);
}
