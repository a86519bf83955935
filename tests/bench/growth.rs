//! How the cost of a request grows with the numbers of entries, connections, workers, misses, and the
//! latency of Rails.

use std::path::PathBuf;

use crate::Fallible;
use crate::environment::{self, Environment};
use crate::load::{Figures, Kind, Options as Load};
use crate::peers::{RAILGATE, Running};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Length of one measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Cache entries.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000")]
    entries: Vec<u64>,
    /// Connections.
    #[arg(long, value_delimiter = ',', default_value = "1,64,1000,10000")]
    connections: Vec<usize>,
    /// Threads of railgate, all on one core.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    workers: Vec<u32>,
    /// The percentage of misses.
    #[arg(long, value_delimiter = ',', default_value = "0,10,50")]
    misses: Vec<u64>,
    /// The latency of Rails in milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "0,20,200")]
    latency: Vec<u64>,
}

const KEYS: u64 = 10_000;

pub(crate) fn run(options: &Options, binary: PathBuf) -> Fallible<()> {
    let environment = Environment::for_railgate_alone(binary)?;
    entries(options, &environment)?;
    connections(options, &environment)?;
    workers(options, &environment)?;
    misses(options, &environment)?;
    latency(options, &environment)
}

fn load(running: &Running, options: &Options) -> Load {
    let (to, cpu_of) = (running.port.to_string(), running.process.pid());
    Load { to, cpu_of, seconds: options.seconds, keys: KEYS, ..Load::default() }
}

/// Fills the cache with so many keys.
pub(crate) fn fill(running: &Running, first: u64, keys: u64) -> Fallible<Figures> {
    let to = running.port.to_string();
    let cpu_of = running.process.pid();
    let figures = environment::run_load(&Load {
        to,
        cpu_of,
        requests: keys,
        first_key: first,
        keys,
        ..Load::default()
    })?;
    if figures.errors > 0 {
        return Err(format!("{} errors while memory was filled", figures.errors).into());
    }
    Ok(figures)
}

fn begin(title: &str, column: &str) {
    println!("\n### {title}\n");
    println!(
        "| {column} | CPU µs/request | requests/s | p50 µs | p99 µs | errors |\n|--:|--:|--:|--:|--:|--:|"
    );
}

fn row(number: impl std::fmt::Display, figures: &Figures) {
    println!(
        "| {number} | {:.2} | {:.0} | {:.0} | {:.0} | {} |",
        figures.cpu_us,
        figures.per_second(),
        figures.p50_us,
        figures.p99_us,
        figures.errors,
    );
}

fn entries(options: &Options, environment: &Environment) -> Fallible<()> {
    begin("Hit, by answers in memory (64 connections)", "entries");
    let running = RAILGATE.start(environment)?;
    let mut kept = 0;
    for entries in options.entries.iter().copied() {
        fill(&running, kept, entries.saturating_sub(kept).max(1))?;
        kept = entries.max(kept);
        row(entries, &environment::run_load(&Load { keys: entries, ..load(&running, options) })?);
    }
    Ok(())
}

fn connections(options: &Options, environment: &Environment) -> Fallible<()> {
    begin("Hit, by connections", "connections");
    let running = RAILGATE.start(environment)?;
    fill(&running, 0, KEYS)?;
    for connections in options.connections.iter().copied() {
        row(connections, &environment::run_load(&Load { connections, ..load(&running, options) })?);
    }
    Ok(())
}

fn workers(options: &Options, environment: &Environment) -> Fallible<()> {
    begin("Hit, by workers on one core (64 connections): what having more threads costs", "workers");
    for workers in options.workers.iter().copied() {
        let running = RAILGATE.start_with(environment, Some(workers))?;
        fill(&running, 0, KEYS)?;
        row(workers, &environment::run_load(&load(&running, options))?);
    }
    Ok(())
}

fn misses(options: &Options, environment: &Environment) -> Fallible<()> {
    begin("Lookup, by misses (64 connections)", "% misses");
    let running = RAILGATE.start(environment)?;
    fill(&running, 0, KEYS)?;
    for misses in options.misses.iter().copied() {
        row(misses, &environment::run_load(&Load { misses, ..load(&running, options) })?);
    }
    Ok(())
}

fn latency(options: &Options, environment: &Environment) -> Fallible<()> {
    begin("Access check, by how long Rails takes (64 connections)", "ms");
    let running = RAILGATE.start(environment)?;
    for latency in options.latency.iter().copied() {
        environment.rails.set_latency(latency)?;
        row(latency, &environment::run_load(&Load { kind: Kind::Allowed, ..load(&running, options) })?);
    }
    Ok(())
}
