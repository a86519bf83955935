//! Memory of a cache entry: the growth of the process, divided by the entries. The time to save and to load them.
//! And the memory that a scan for unknown keys leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::environment::{self, Environment};
use crate::load::{Figures, Kind, Options as Load};
use crate::peers::RAILGATE;
use crate::process::Process;
use crate::rails::responses;
use crate::{Fallible, interrupt, keys, machine, process};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rows of authorized keys.
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000")]
    entries: Vec<u64>,
    /// Unknown keys of a scan; 0 for no scan.
    #[arg(long, default_value_t = 1_000_000)]
    scan: u64,
}

/// How many keys are requested again, spread over all.
const SAMPLE: u64 = 20_000;

/// A kind of rows to measure.
struct Rows {
    name: &'static str,
    first_key: u64,
    stride: u64,
    /// Rows are padded to this size.
    min_bytes: usize,
}

const ED25519: Rows = Rows { name: "Ed25519", first_key: 0, stride: 2, min_bytes: 0 };

const ROWS: [Rows; 3] = [
    Rows { name: "both kinds, filled up to 600 bytes", first_key: 0, stride: 1, min_bytes: responses::ROW },
    ED25519,
    Rows { name: "RSA, 2048 bits", first_key: 1, stride: 2, min_bytes: 0 },
];

pub(crate) fn run(options: &Options, binary: PathBuf) -> Fallible<()> {
    let environment = Environment::for_railgate_alone(binary)?;
    println!("\n### Memory, and a restart\n");
    println!(
        "| rows | entries | bytes of a row | bytes per entry | fill s | CPU µs/miss | hits of a sample | \
         stop s | file MiB | start to first hit s | hits then |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for entries in options.entries.iter().copied() {
        if entries == 0 {
            return Err("there is no memory per entry without entries".into());
        }
        for rows in &ROWS {
            row(&environment, rows, entries)?;
        }
    }
    if options.scan > 0 {
        println!("\n#### A scan for {} unknown keys\n", options.scan);
        println!("| entries (Ed25519) | MiB before | at most | then | then ÷ before | CPU µs/miss |");
        println!("|--:|--:|--:|--:|--:|--:|");
        for entries in options.entries.iter().copied() {
            scan(&environment, entries, options.scan)?;
        }
    }
    Ok(())
}

fn row(environment: &Environment, rows: &Rows, entries: u64) -> Fallible<()> {
    let (directory, port) = (environment.scratch.folder(RAILGATE.name)?, machine::free_port()?);
    let mut process = start(environment, &directory, port)?;
    let pid = process.pid();
    warm_up(port)?;
    let before = settled_memory(pid)?;
    let fill = fill(environment, rows, entries, (pid, port))?;
    let after = settled_memory(pid)?;
    let hits = sample(environment, rows, entries, port)?;

    let begun = Instant::now();
    process.must_run()?;
    drop(process);
    let stopped = begun.elapsed();
    let saved = fs::metadata(directory.join("cache"))?.len();
    let begun = Instant::now();
    let _process = start(environment, &directory, port)?;
    environment::run_load(&Load { to: port.to_string(), requests: 1, ..of(rows, 1) })?;
    let started = begun.elapsed();
    let hits_then = sample(environment, rows, entries, port)?;
    println!(
        "| {} | {entries} | {} | {} | {:.1} | {:.1} | {hits} | {:.2} | {:.0} | {:.2} | {hits_then} |",
        rows.name,
        responses::authorized_keys(&keys::key(rows.first_key), rows.min_bytes).len(),
        after.saturating_sub(before) / entries,
        fill.seconds,
        fill.cpu_us,
        stopped.as_secs_f64(),
        saved as f64 / f64::from(1 << 20),
        started.as_secs_f64(),
    );
    Ok(())
}

/// Unknown keys are kept for seconds, in a store of their own. How much memory stays when they are gone?
fn scan(environment: &Environment, entries: u64, unknown: u64) -> Fallible<()> {
    let (directory, port) = (environment.scratch.folder(RAILGATE.name)?, machine::free_port()?);
    let process = start(environment, &directory, port)?;
    let pid = process.pid();
    warm_up(port)?;
    fill(environment, &ED25519, entries, (pid, port))?;
    let before = settled_memory(pid)?;
    process::forget_peak(pid);
    environment.rails.set_knows_keys(false)?;
    let scan = Load {
        to: port.to_string(),
        kind: Kind::UnknownKeys,
        requests: unknown,
        keys: unknown,
        first_key: FIRST_UNKNOWN,
        cpu_of: pid,
        ..Load::default()
    };
    let scan = without_errors(environment::run_load(&scan)?);
    environment.rails.set_knows_keys(true)?;
    let scan = scan?;
    let most = process::memory(pid, "VmHWM");
    interrupt::pause(UNKNOWN_FOR)?;
    // The allocator returns what another thread has freed when its own thread comes by again.
    for _ in 0..2 {
        warm_up(port)?;
        settled_memory(pid)?;
    }
    let then = settled_memory(pid)?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {entries} | {:.1} | {:.1} | {:.1} | {:.2} | {:.1} |",
        mib(before),
        mib(most),
        mib(then),
        then as f64 / before as f64,
        scan.cpu_us
    );
    Ok(())
}

/// Above the numbers of all keys that are known.
const FIRST_UNKNOWN: u64 = 1 << 40;

/// `negative_ttl`, and a second until expired entries are looked for.
const UNKNOWN_FOR: Duration = Duration::from_secs(7);

fn fill(environment: &Environment, rows: &Rows, entries: u64, (pid, port): (u32, u16)) -> Fallible<Figures> {
    environment.rails.set_row(rows.min_bytes)?;
    let fill = Load { to: port.to_string(), cpu_of: pid, requests: entries, ..of(rows, entries) };
    without_errors(environment::run_load(&fill)?)
}

/// Connections and their buffers exist before the measurement.
fn warm_up(port: u16) -> Fallible<()> {
    let warm = Load { to: port.to_string(), kind: Kind::Allowed, requests: 2000, ..Load::default() };
    environment::run_load(&warm).map(drop)
}

/// As in the comparison, but with a cache snapshot.
fn start(environment: &Environment, directory: &Path, port: u16) -> Fallible<Process> {
    let command = RAILGATE.command(environment, directory, port, None)?;
    let file = directory.join("railgate.toml");
    let section = format!("[cache]\nsnapshot = \"{}\"\n", directory.join("cache").display());
    fs::write(&file, fs::read_to_string(&file)?.replacen("[cache]\n", &section, 1))?;
    let mut process = Process::start(RAILGATE.name, command, directory)?;
    process.wait_for(port)?;
    Ok(process)
}

fn of(rows: &Rows, keys: u64) -> Load {
    Load { first_key: rows.first_key, keys, stride: rows.stride, ..Load::default() }
}

/// How many of a sample of the keys are hits.
fn sample(environment: &Environment, rows: &Rows, entries: u64, port: u16) -> Fallible<String> {
    let sample = SAMPLE.min(entries);
    let stride = rows.stride * (entries / sample);
    let again = Load { to: port.to_string(), requests: sample, stride, ..of(rows, sample) };
    let asked_before = environment.rails.count()?;
    without_errors(environment::run_load(&again)?)?;
    let hits = sample.saturating_sub(environment.rails.count()? - asked_before);
    Ok(format!("{hits} of {sample}"))
}

fn without_errors(figures: Figures) -> Fallible<Figures> {
    if figures.errors > 0 { Err(format!("{} errors", figures.errors).into()) } else { Ok(figures) }
}

/// Resident memory, after background work has finished.
fn settled_memory(pid: u32) -> Fallible<u64> {
    interrupt::pause(Duration::from_millis(1500))?;
    Ok(process::memory(pid, "VmRSS"))
}
