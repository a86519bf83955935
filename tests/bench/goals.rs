//! Goals for railgate: at most so many times the cost of another peer.

use std::fmt::{self, Write as _};

use crate::load::Figures;
use crate::report::{cell, median};
use crate::rounds::Results;

/// Scenario and peer of a figure.
type ResultKey = (&'static str, &'static str);

struct Goal {
    ours: ResultKey,
    theirs: ResultKey,
    at_most: f64,
    /// Compares median latency instead of CPU time.
    is_latency: bool,
}

const fn cpu(ours: ResultKey, theirs: ResultKey, at_most: f64) -> Goal {
    Goal { ours, theirs, at_most, is_latency: false }
}

const GOALS: [Goal; 16] = [
    cpu(("ka", "railgate"), ("ka", "haproxy"), 0.65),
    cpu(("ka", "railgate"), ("ka", "bare-hyper"), 1.35),
    cpu(("ka", "railgate-log"), ("ka", "nginx-log"), 0.5),
    cpu(("ka-unix", "railgate"), ("ka-unix", "haproxy"), 0.65),
    cpu(("jwt", "railgate"), ("ka", "railgate"), 1.15),
    cpu(("short", "railgate"), ("short", "haproxy"), 0.9),
    cpu(("short", "railgate"), ("short", "bare-hyper"), 1.05),
    cpu(("short-unix", "railgate"), ("short-unix", "haproxy"), 0.85),
    Goal { ours: ("open", "railgate"), theirs: ("open", "bare-hyper"), at_most: 1.05, is_latency: true },
    cpu(("pass", "railgate"), ("pass", "nginx"), 1.0),
    cpu(("pass64", "railgate"), ("pass64", "nginx"), 0.9),
    cpu(("pass64", "railgate"), ("pass64", "haproxy"), 0.8),
    cpu(("kas", "railgate"), ("kas", "haproxy"), 1.0),
    cpu(("kas64", "railgate"), ("kas64", "haproxy"), 0.7),
    cpu(("blob", "railgate"), ("blob", "nginx"), 0.6),
    cpu(("upload", "railgate"), ("upload", "nginx"), 0.7),
];

/// The median of the ratios within each round: whatever changes from round to round cancels out.
pub(crate) fn ratio(
    results: &Results,
    ours: ResultKey,
    theirs: ResultKey,
    figure: fn(&Figures) -> f64,
) -> Option<f64> {
    let ratios = results.of(ours.0, ours.1).filter_map(|(round, figures)| {
        let (_, other) = results.of(theirs.0, theirs.1).find(|(other, _)| *other == round)?;
        (figure(other) > 0.0).then(|| figure(figures) / figure(other))
    });
    median(ratios)
}

pub(crate) fn write(out: &mut fmt::Formatter<'_>, results: &Results) -> fmt::Result {
    out.write_str("\n### Goals\n\n| case | ratio | goal | met |\n|---|--:|--:|---|\n")?;
    for goal in &GOALS {
        let figure = if goal.is_latency { |f: &Figures| f.p50_us } else { |f: &Figures| f.cpu_us };
        let ratio = ratio(results, goal.ours, goal.theirs, figure);
        let met = match ratio {
            None => "not measured",
            Some(ratio) if ratio <= goal.at_most => "yes",
            Some(_) => "**no**",
        };
        let mut case = format!("{}: {} ÷ {}", goal.ours.0, goal.ours.1, goal.theirs.1);
        if goal.ours.0 != goal.theirs.0 {
            write!(case, " in {}", goal.theirs.0)?;
        }
        if goal.is_latency {
            case.push_str(", median latency");
        }
        writeln!(out, "| {case} | {} | ≤ {:.2} | {met} |", cell(ratio, 3), goal.at_most)?;
    }
    Ok(())
}
