//! The comparison: all peers side by side, scenario by scenario, round by round.
//!
//! All peers run at the same time; an idle one costs nothing. Within a scenario they are measured in turn,
//! and the order rotates and reverses from round to round, so that disturbances of the machine affect all of
//! them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::environment::{self, Environment};
use crate::load::Figures;
use crate::machine::Time;
use crate::peers::{PEERS, Peer, Running};
use crate::process::{forget_peak, memory};
use crate::scenarios::{SCENARIOS, Scenario};
use crate::{Fallible, check, report};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The number of rounds; the tables show medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Length of one measurement.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// Some of: ka, ka-unix, jwt, short, short-unix, open, pass, pass64, kas, kas64, blob, upload.
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<String>,
    /// Some of: railgate, railgate-log, nginx, nginx-log, haproxy, varnish, bare-hyper.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// How many keys are requested in turn.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: u64,
    /// Let the load and Rails sleep while idle. Then peers that are slower than the load pay for waking it,
    /// and faster ones do not.
    #[arg(long)]
    pub(crate) sleeping_load: bool,
}

impl Options {
    fn scenarios(&self) -> Fallible<Vec<Scenario>> {
        let named =
            |name: &String| Scenario::named(name).ok_or(format!("there is no scenario {name}").into());
        if self.scenarios.is_empty() {
            Ok(SCENARIOS.to_vec())
        } else {
            self.scenarios.iter().map(named).collect()
        }
    }

    fn peers(&self) -> Fallible<Vec<Peer>> {
        let named = |name: &String| {
            let found = PEERS.into_iter().find(|peer| peer.name == name);
            found.ok_or(format!("there is no peer {name}").into())
        };
        if self.peers.is_empty() { Ok(PEERS.to_vec()) } else { self.peers.iter().map(named).collect() }
    }
}

/// A run with a larger share of steal time is repeated; the attempt with the least counts.
pub(crate) const MAX_STEAL: f64 = 0.04;
const ATTEMPTS: u32 = 4;

/// All figures of a scenario and a peer, by round.
#[derive(Default)]
pub(crate) struct Results(BTreeMap<(&'static str, &'static str), BTreeMap<u32, Figures>>);

impl Results {
    /// The figures of one peer, by round.
    pub(crate) fn of(&self, scenario: &str, peer: &str) -> impl Iterator<Item = (u32, &Figures)> {
        let rounds = self.0.iter().find(|((s, p), _)| *s == scenario && *p == peer);
        rounds.into_iter().flat_map(|(_, rounds)| rounds.iter().map(|(round, figures)| (*round, figures)))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Figures> {
        self.0.values().flat_map(BTreeMap::values)
    }
}

pub(crate) fn run(options: &Options, binary: PathBuf) -> Fallible<()> {
    let (scenarios, peers) = (options.scenarios()?, options.peers()?);
    let environment = Environment::for_comparison(options.sleeping_load, binary)?;
    let mut running = Vec::new();
    let mut checks = Vec::new();
    for peer in peers {
        let started = peer.start(&environment)?;
        let check = check::all(&started, &environment, options.keys)?;
        eprintln!("{}: {check}", peer.name);
        checks.push((peer.name, check));
        running.push(started);
    }
    let mut results = Results::default();
    let before = Time::now();
    for round in 0..options.rounds {
        for scenario in &scenarios {
            for peer in ordered_for_round(&mut running, round, scenario) {
                let figures = measure(scenario, peer, options)?;
                results.0.entry((scenario.name, peer.peer.name)).or_default().insert(round, figures);
            }
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    let machine = Time::now().shares_since(before);
    let report =
        report::Report { options, scenarios: &scenarios, results: &results, checks: &checks, machine };
    println!("{report}");
    Ok(())
}

fn ordered_for_round<'a>(
    running: &'a mut [Running],
    round: u32,
    scenario: &Scenario,
) -> Vec<&'a mut Running> {
    let mut order: Vec<_> = running.iter_mut().filter(|peer| scenario.suits(&peer.peer)).collect();
    if !order.is_empty() {
        let shift = (round as usize * 3) % order.len();
        order.rotate_left(shift);
    }
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

fn measure(scenario: &Scenario, peer: &mut Running, options: &Options) -> Fallible<Figures> {
    let mut load = scenario.load(peer, options.seconds, options.keys);
    load.sleeps = options.sleeping_load;
    let mut best: Option<Figures> = None;
    for _ in 0..ATTEMPTS {
        forget_peak(peer.process.pid());
        let mut figures = environment::run_load(&load)?;
        peer.process.must_run()?;
        figures.peak_mib = memory(peer.process.pid(), "VmHWM") as f64 / f64::from(1 << 20);
        let is_quiet = figures.steal <= MAX_STEAL;
        if best.as_ref().is_none_or(|best| figures.steal < best.steal) {
            best = Some(figures);
        }
        if is_quiet {
            break;
        }
    }
    best.ok_or_else(|| format!("{}: nothing was measured", peer.peer.name).into())
}
