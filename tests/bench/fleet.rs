//! What a fleet brings, and what it costs: gateways, the Valkey that they hear each other by, and the real Rails of the
//! acceptance tests, each a process of its own.
//!
//! A gateway says in its log when it has dropped what another one has purged. So nothing here looks again and again
//! whether it has, and takes the CPU time that it measures.

mod member;
mod outages;
mod proxy;
mod steady;
mod valkey;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use self::member::{Connection, Member};
use self::valkey::Valkey;
use crate::attacks::puma::{Puma, PumaSettings};
use crate::environment::Rails;
use crate::machine::Scratch;
use crate::report::{cell, median};
use crate::{Fallible, credentials, interrupt, keys, process};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// The number of purges whose delay is measured.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    purges: u32,
    /// How long the cost of doing nothing is measured, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// How long a purge takes, when nothing goes wrong.
    Delays,
    /// The same through a fail-over that loses the last purges.
    FailOver,
    /// The same while one gateway does not reach Valkey.
    CutOff,
    /// What a fleet costs, with purges and without.
    Costs,
    /// What an answer costs that another gateway has asked for.
    Misses,
}

impl Part {
    fn measure(self, environment: &FleetEnvironment, options: &Options) -> Fallible<()> {
        match self {
            Self::Delays => print_delays(environment, options),
            Self::FailOver => outages::fail_over(environment, options),
            Self::CutOff => outages::cut_off(environment, options),
            Self::Costs => print_costs(environment, options),
            Self::Misses => print_misses(environment),
        }
    }
}

const MEMBERS: usize = 3;

/// What every gateway is started with.
struct FleetEnvironment {
    binary: PathBuf,
    rails: Rails,
    scratch: Scratch,
}

pub(crate) fn run(options: &Options, binary: PathBuf) -> Fallible<()> {
    let scratch = Scratch::new()?;
    let environment = FleetEnvironment { binary, rails: Rails::start(&scratch, true)?, scratch };
    let parts: &[Part] = if options.only.is_empty() { Part::value_variants() } else { &options.only };
    for part in parts {
        part.measure(&environment, options)?;
    }
    Ok(())
}

/// What a gateway with a Valkey there is configured with.
fn following(url: &str) -> String {
    format!("[fleet]\nurl = \"{url}\"\n")
}

/// Gateways that each have these sections of their own.
fn members(environment: &FleetEnvironment, sections: [&str; MEMBERS]) -> Fallible<[Member; MEMBERS]> {
    let start = |name: &str, sections: &str| {
        let sections = format!("{}{sections}", member::kept_for("1h"));
        Member::start(environment, name, environment.rails.port, &sections)
    };
    let [one, two, three] = sections;
    let members = [start("one", one)?, start("two", two)?, start("three", three)?];
    for (member, _) in members.iter().zip(sections).filter(|(_, sections)| sections.contains("[fleet]")) {
        member.wait_until_following()?;
    }
    Ok(members)
}

fn pause(time: Duration) -> Fallible<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        interrupt::pause(Duration::from_millis(100))?;
    }
    Ok(())
}

/// From before the request of a purge until both others have dropped the answer, which all three keep before.
fn print_delays(environment: &FleetEnvironment, options: &Options) -> Fallible<()> {
    let valkey = Valkey::start(&environment.scratch, "valkey")?;
    let (members, purges) = (members(environment, [&following(&valkey.url()); MEMBERS])?, options.purges);
    let mut clients = Vec::new();
    for member in &members {
        clients.push((Connection::open(member.port)?, Connection::open(member.admin)?));
    }
    let (mut delays, mut answers) = (Vec::new(), Vec::new());
    for number in 0..purges {
        let key = keys::key(u64::from(number));
        let question = question(&format!("authorized_keys?key={}", keys::escaped(&key)));
        for (client, _) in &mut clients {
            client.send(&question)?;
        }
        // At any time between two polls and two pings.
        interrupt::pause(Duration::from_millis(15 + u64::from(number * 7 % 31)))?;
        let at = number as usize % MEMBERS;
        let begun = Instant::now();
        let (_, admin) = clients.get_mut(at).ok_or("no such gateway")?;
        let answer = admin.send(&purge("ssh_key", &key))?;
        answers.push(begun.elapsed().as_secs_f64() * 1e3);
        if !answer.contains("told") {
            return Err(format!("a purge was not told: {answer}").into());
        }
        let mut longest = Duration::ZERO;
        for (index, (other, (client, _))) in members.iter().zip(&mut clients).enumerate() {
            if index != at {
                longest = longest.max(other.wait_until_dropped()?.saturating_duration_since(begun));
                if client.send(&question)?.contains("railgate; hit") {
                    return Err("a gateway has kept what was purged".into());
                }
            }
        }
        delays.push(longest.as_secs_f64() * 1e3);
    }
    print_heading(&format!("{purges} purges with pauses"));
    print_percentiles("until both others have dropped the answer", delays);
    print_percentiles("until the purge is answered", answers);
    Ok(())
}

fn print_heading(what: &str) {
    println!("\n### {what}, ms\n");
    println!("| | p50 | p90 | p99 | longest |\n|---|--:|--:|--:|--:|");
}

fn print_percentiles(what: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| cell(values.get(values.len().saturating_sub(1) * percent / 100).copied(), 2);
    println!("| {what} | {} | {} | {} | {} |", at(50), at(90), at(99), at(100));
}

fn print_costs(environment: &FleetEnvironment, options: &Options) -> Fallible<()> {
    let valkey = Valkey::start(&environment.scratch, "valkey")?;
    let in_fleet = members(environment, [&following(&valkey.url()); MEMBERS])?;
    println!("\n### Cost of a fleet, for each of {MEMBERS} gateways\n");
    println!("| | CPU, ms | CPU of Valkey, ms | bytes from and to Valkey |\n|---|--:|--:|--:|");
    let rest = || pause(Duration::from_secs(options.rest.into()));
    let a_minute = 60.0 / f64::from(options.rest);
    print_cost("a minute without purges", &in_fleet, Some(&valkey), a_minute, rest)?;
    let purge = || purge_steadily(&in_fleet[0], 10_000);
    print_cost("a second with 1,000 purges at one of them", &in_fleet, Some(&valkey), 0.1, purge)?;
    drop(in_fleet);
    let alone = members(environment, [""; MEMBERS])?;
    print_cost("a minute without a fleet", &alone, None, a_minute, rest)
}

/// What is used while something happens, times `factor`.
fn print_cost(
    what: &str,
    members: &[Member; MEMBERS],
    valkey: Option<&Valkey>,
    factor: f64,
    happens: impl FnOnce() -> Fallible<()>,
) -> Fallible<()> {
    let used = || -> Fallible<Vec<f64>> {
        let pids: Vec<u32> = members.iter().map(Member::pid).collect();
        let cpu = |pids: &[u32]| process::cpu_time(pids).as_secs_f64() * 1e3;
        let of_valkey = valkey.map(|valkey| Ok::<_, crate::Error>([cpu(&[valkey.pid()]), valkey.bytes()?]));
        Ok([cpu(&pids)].into_iter().chain(of_valkey.transpose()?.into_iter().flatten()).collect())
    };
    let before = used()?;
    happens()?;
    let after = used()?;
    let mut each = after.iter().zip(before).map(|(after, before)| (after - before) * factor / MEMBERS as f64);
    let [own, server, bytes] = [(); 3].map(|()| cell(each.next(), 0));
    println!("| {what} | {own} | {server} | {bytes} |");
    Ok(())
}

/// So many purges, 1,000 in each second.
fn purge_steadily(member: &Member, purges: u32) -> Fallible<()> {
    const CLIENTS: u32 = 8;
    let admin = member.admin;
    let client = |index: u32| {
        move || -> Fallible<()> {
            let (mut connection, begun) = (Connection::open(admin)?, Instant::now());
            for number in (index..purges).step_by(CLIENTS as usize) {
                let due = begun + Duration::from_millis(number.into());
                thread::sleep(due.saturating_duration_since(Instant::now()));
                connection.send(&purge("username", &format!("user{number}")))?;
            }
            Ok(())
        }
    };
    let clients: Vec<_> = (0..CLIENTS).map(|index| thread::spawn(client(index))).collect();
    for client in clients {
        client.join().map_err(|_| "a client has panicked")??;
    }
    Ok(())
}

/// What the real Rails knows.
const QUESTIONS: [&str; 5] = [
    "discover?user_id=1",
    "discover?user_id=7",
    "discover?username=root",
    "discover?username=rubi",
    "discover?key_id=1",
];
const ROUNDS: usize = 100;

/// The same questions in turns: to a gateway that asks Rails each time, and to one that forgets what it has read, and
/// finds in Valkey what another one has asked for.
fn print_misses(environment: &FleetEnvironment) -> Fallible<()> {
    let valkey = Valkey::start(&environment.scratch, "valkey")?;
    let fleet = following(&valkey.url());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rails = runtime.block_on(Puma::start(
        &environment.scratch,
        "puma",
        PumaSettings { threads: 4, gc_off: false },
    ))?;
    let shared = format!("{fleet}[fleet.shared]\nttl = \"10m\"\n");
    let start = |name: &str, sections: &str| Member::start(environment, name, rails.port, sections);
    let teller = start("teller", &format!("{}{shared}", member::kept_for("1h")))?;
    let forgetful = start("forgetful", &format!("{}{shared}", member::KEPT_FOR_ONE_REQUEST))?;
    let alone = start("alone", &member::kept_for("1ms"))?;
    for member in [&teller, &forgetful] {
        member.wait_until_following()?;
    }
    // What was purged a short time ago, by clocks that may differ, is not shared.
    pause(Duration::from_secs(5))?;
    let mut clients = Vec::new();
    for member in [&teller, &forgetful, &alone] {
        clients.push(Connection::open(member.port)?);
    }
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for target in QUESTIONS {
            for ((client, expected), times) in clients.iter_mut().zip(STATUSES).zip(&mut times) {
                let begun = Instant::now();
                let answer = client.send(&question(target))?;
                if answer.contains(expected) {
                    times.push(begun.elapsed().as_secs_f64() * 1e6);
                }
                interrupt::pause(Duration::from_millis(2))?;
            }
        }
    }
    println!("\n### An answer, µs (median)\n");
    println!("| from | time | of so many |\n|---|--:|--:|");
    for (what, times) in ["memory", "the other gateways, by Valkey", "Rails"].iter().zip(&times) {
        println!("| {what} | {} | {} |", cell(median(times.iter().copied()), 0), times.len());
    }
    let [_, shared, of_rails] = times.map(|times| median(times.into_iter()));
    let ratio = shared.zip(of_rails).map(|(shared, of_rails)| shared / of_rails);
    println!("\nWhat another gateway knows takes {} of the time of Rails.", cell(ratio, 2));
    Ok(())
}

/// Of what is measured; other answers are not.
const STATUSES: [&str; 3] = ["railgate; hit; ttl", "railgate; hit; detail=fleet", "railgate; fwd=miss"];

fn question(target: &str) -> Vec<u8> {
    let secret = credentials::shared_secret();
    let header = credentials::SHELL_HEADER;
    format!("GET /api/v4/internal/{target} HTTP/1.1\r\nHost: localhost\r\n{header}: {secret}\r\n\r\n")
        .into_bytes()
}

fn purge(selector: &str, value: &str) -> Vec<u8> {
    let body = format!(r#"{{"{selector}":"{value}"}}"#);
    let length = body.len();
    format!(
        "POST /purge HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
