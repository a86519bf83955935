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
    figure: fn(&Figures) -> f64,
    /// What that is, unless it is CPU time a request.
    what: &'static str,
    /// Whether the median of the rounds counts, instead of the least disturbed one. What disturbs a machine only adds to a
    /// cost; but that is no reason to leave out answers that were late.
    is_latency: bool,
}

const fn cpu(ours: ResultKey, theirs: ResultKey, at_most: f64) -> Goal {
    Goal { ours, theirs, at_most, figure: |figures| figures.cpu_us, what: "", is_latency: false }
}

const fn latency(figure: fn(&Figures) -> f64, what: &'static str, at_most: f64) -> Goal {
    Goal {
        ours: ("open", "railgate"),
        theirs: ("open", "bare-hyper"),
        at_most,
        figure,
        what,
        is_latency: true,
    }
}

const GOALS: [Goal; 17] = [
    cpu(("ka", "railgate"), ("ka", "haproxy"), 0.65),
    cpu(("ka", "railgate"), ("ka", "bare-hyper"), 1.35),
    cpu(("ka", "railgate-log"), ("ka", "nginx-log"), 0.5),
    cpu(("ka-unix", "railgate"), ("ka-unix", "haproxy"), 0.65),
    cpu(("jwt", "railgate"), ("ka", "railgate"), 1.15),
    cpu(("short", "railgate"), ("short", "haproxy"), 0.9),
    cpu(("short", "railgate"), ("short", "bare-hyper"), 1.05),
    cpu(("short-unix", "railgate"), ("short-unix", "haproxy"), 0.85),
    latency(|figures| figures.p50_us, ", median latency", 1.05),
    latency(|figures| figures.p99_us, ", 99th percentile of latency", 1.10),
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

/// The ratio of the least disturbed rounds of both.
fn least_ratio(results: &Results, goal: &Goal) -> Option<f64> {
    let least = |(scenario, peer): ResultKey| {
        let figures = results.of(scenario, peer).map(|(_, figures)| (goal.figure)(figures));
        figures.min_by(f64::total_cmp).filter(|least| *least > 0.0)
    };
    Some(least(goal.ours)? / least(goal.theirs)?)
}

pub(crate) fn write(out: &mut fmt::Formatter<'_>, results: &Results) -> fmt::Result {
    out.write_str(
        "\n### Goals\n\nOf costs, the least disturbed round of each peer counts; of latencies, the median ratio of the rounds.\n\n\
         | case | least | median | goal | met |\n|---|--:|--:|--:|---|\n",
    )?;
    for goal in &GOALS {
        let median = ratio(results, goal.ours, goal.theirs, goal.figure);
        let least = least_ratio(results, goal);
        let met = match if goal.is_latency { median } else { least } {
            None => "not measured",
            Some(ratio) if ratio <= goal.at_most => "yes",
            Some(_) => "**no**",
        };
        let mut case = format!("{}: {} ÷ {}", goal.ours.0, goal.ours.1, goal.theirs.1);
        if goal.ours.0 != goal.theirs.0 {
            write!(case, " in {}", goal.theirs.0)?;
        }
        let (least, median) = (cell(least, 3), cell(median, 3));
        writeln!(out, "| {case}{} | {least} | {median} | ≤ {:.2} | {met} |", goal.what, goal.at_most)?;
    }
    Ok(())
}
