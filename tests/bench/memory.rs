//! How much memory a kept answer takes: what the process grew by, divided by the answers.

use std::time::Duration;

use crate::load::{Kind, Options as Load};
use crate::peers::RAILGATE;
use crate::stage::{self, Stage};
use crate::{Fallible, growth, interrupt, process};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rows of authorized keys.
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000")]
    entries: Vec<u64>,
}

/// How many keys are asked for again, spread over all.
const SAMPLE: u64 = 20_000;

pub(crate) fn run(options: &Options) -> Fallible<()> {
    let stage = Stage::for_railgate_alone()?;
    println!("\n### Memory\n");
    println!(
        "| entries | resident MiB before | after | bytes per entry | fill s | CPU µs/miss | hits of a sample |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|");
    for entries in options.entries.iter().copied() {
        if entries == 0 {
            return Err("there is no memory per entry without entries".into());
        }
        row(&stage, entries)?;
    }
    Ok(())
}

fn row(stage: &Stage, entries: u64) -> Fallible<()> {
    let running = RAILGATE.start(stage)?;
    let pid = running.process.pid();
    // Connections and their buffers are there before, so that they do not count.
    let to = running.port.to_string();
    stage::run_load(&Load { to: to.clone(), kind: Kind::Allowed, requests: 2000, ..Load::default() })?;
    let before = settled(pid)?;
    let fill = growth::fill(&running, 0, entries)?;
    let after = settled(pid)?;

    let sample = SAMPLE.min(entries);
    let asked_before = stage.rails.count()?;
    let again = Load { to, requests: sample, keys: sample, stride: entries / sample, ..Load::default() };
    stage::run_load(&again)?;
    let hits = sample.saturating_sub(stage.rails.count()? - asked_before);

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {entries} | {:.1} | {:.1} | {} | {:.1} | {:.1} | {hits} of {sample} |",
        mib(before),
        mib(after),
        after.saturating_sub(before) / entries,
        fill.seconds,
        fill.cpu_us,
    );
    Ok(())
}

/// Resident memory, once whatever runs behind the requests had its time.
fn settled(pid: u32) -> Fallible<u64> {
    interrupt::pause(Duration::from_millis(1500))?;
    Ok(process::memory(pid, "VmRSS"))
}
