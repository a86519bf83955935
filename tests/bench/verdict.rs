//! Compares counts with the baseline, for people and for CI.

use crate::baseline::Baseline;
use crate::operations::Operation;

/// The tolerated difference from the baseline. Two runs differ by far less; a change elsewhere that changes
/// inlining may come near it.
const TOLERANCE: f64 = 0.03;

/// What a fleet may cost an answer from memory: nothing but what two runs differ by.
const FLEET_TOLERANCE: f64 = 0.005;

pub(crate) fn print_table(baseline: &Baseline, counts: &[(&Operation, u64)]) {
    println!("| operation | instructions | baseline | difference |");
    println!("|---|--:|--:|--:|");
    for (operation, count) in counts {
        let (name, title) = (operation.name, operation.title);
        match baseline.count(name) {
            Some(accepted) => {
                let difference = share(*count, accepted) * 100.0;
                println!("| `{name}`: {title} | {count} | {accepted} | {difference:+.2} % |");
            }
            None => println!("| `{name}`: {title} | {count} | – | – |"),
        }
    }
}

/// Prints the conclusions. False if an operation became too expensive.
pub(crate) fn judge(
    baseline: &Baseline,
    circumstances: &[(String, String)],
    counts: &[(&Operation, u64)],
) -> bool {
    let is_free = is_fleet_free(counts);
    let mut is_comparable = true;
    for (name, then, now) in baseline.differences(circumstances) {
        if is_comparable {
            println!("\nThe counts cannot be compared: the baseline was counted under other conditions.\n");
            is_comparable = false;
        }
        println!("- {name}: {now}; then: {then}");
    }
    if !is_comparable {
        println!("\n`tests/bench/instructions --accept` makes these conditions and counts the baseline.");
        return is_free;
    }
    let mut is_well = is_free;
    for (operation, count) in counts {
        let name = operation.name;
        let Some(accepted) = baseline.count(name) else {
            println!("\n`{name}` is not in the baseline yet; run `tests/bench/instructions --accept`.");
            is_well = false;
            continue;
        };
        let difference = share(*count, accepted);
        let percent = difference * 100.0;
        if difference > TOLERANCE {
            println!(
                "\n`{name}` takes {percent:.1} % more instructions than the baseline says, {count} instead of \
                 {accepted}. Make it cheaper; or, if it is worth that, run `tests/bench/instructions --accept` and \
                 say why in the commit."
            );
            is_well = false;
        } else if difference < -TOLERANCE {
            println!(
                "\n`{name}` takes {:.1} % fewer instructions than the baseline says. Run \
                 `tests/bench/instructions --accept`, or it may become more expensive again unnoticed.",
                percent.abs()
            );
        }
    }
    is_well
}

/// Whether an answer from memory costs the same with a fleet and without. True if not both were counted.
fn is_fleet_free(counts: &[(&Operation, u64)]) -> bool {
    let count =
        |name: &str| counts.iter().find(|(operation, _)| operation.name == name).map(|(_, count)| *count);
    let (Some(alone), Some(in_fleet)) = (count("hit"), count("hit-fleet")) else { return true };
    let difference = share(in_fleet, alone);
    println!("\nA fleet changes an answer from memory by {:+.2} %.", difference * 100.0);
    if difference > FLEET_TOLERANCE {
        println!("That is too much: no answer from memory may depend on the fleet.");
    }
    difference <= FLEET_TOLERANCE
}

/// The relative difference from the accepted count.
fn share(count: u64, accepted: u64) -> f64 {
    count as f64 / accepted.max(1) as f64 - 1.0
}
