//! How railgate is meant to compare: at most so many times what somebody else needs.

use std::fmt::{self, Write as _};

use crate::load::Figures;
use crate::report::{cell, median};
use crate::rounds::Results;

/// A figure: whose, and in which scenario.
type Place = (&'static str, &'static str);

struct Mark {
    ours: Place,
    theirs: Place,
    at_most: f64,
    /// CPU time if not the median latency.
    is_latency: bool,
}

const fn cpu(ours: Place, theirs: Place, at_most: f64) -> Mark {
    Mark { ours, theirs, at_most, is_latency: false }
}

const MARKS: [Mark; 15] = [
    cpu(("ka", "railgate"), ("ka", "haproxy"), 0.75),
    cpu(("ka", "railgate"), ("ka", "nginx"), 0.45),
    cpu(("ka", "railgate"), ("ka", "bare-hyper"), 1.35),
    cpu(("ka", "railgate-log"), ("ka", "nginx-log"), 0.55),
    cpu(("ka-unix", "railgate"), ("ka-unix", "haproxy"), 0.75),
    cpu(("jwt", "railgate"), ("ka", "railgate"), 1.35),
    cpu(("short", "railgate"), ("short", "haproxy"), 0.95),
    cpu(("short", "railgate"), ("short", "bare-hyper"), 1.05),
    cpu(("short-unix", "railgate"), ("short-unix", "haproxy"), 0.85),
    Mark { ours: ("open", "railgate"), theirs: ("open", "bare-hyper"), at_most: 1.05, is_latency: true },
    cpu(("pass", "railgate"), ("pass", "nginx"), 1.0),
    cpu(("pass", "railgate"), ("pass", "haproxy"), 0.95),
    cpu(("kas", "railgate"), ("kas", "haproxy"), 1.0),
    cpu(("blob", "railgate"), ("blob", "nginx"), 0.6),
    cpu(("upload", "railgate"), ("upload", "nginx"), 0.75),
];

/// The median of the ratios within each round: whatever changes from round to round cancels out.
pub(crate) fn ratio(
    results: &Results,
    ours: Place,
    theirs: Place,
    figure: fn(&Figures) -> f64,
) -> Option<f64> {
    let ratios = results.of(ours.0, ours.1).filter_map(|(round, figures)| {
        let (_, other) = results.of(theirs.0, theirs.1).find(|(other, _)| *other == round)?;
        (figure(other) > 0.0).then(|| figure(figures) / figure(other))
    });
    median(ratios)
}

pub(crate) fn write(out: &mut fmt::Formatter<'_>, results: &Results) -> fmt::Result {
    out.write_str("\n### Marks\n\n| case | ratio | mark | met |\n|---|--:|--:|---|\n")?;
    for mark in &MARKS {
        let figure = if mark.is_latency { |f: &Figures| f.p50_us } else { |f: &Figures| f.cpu_us };
        let ratio = ratio(results, mark.ours, mark.theirs, figure);
        let met = match ratio {
            None => "not measured",
            Some(ratio) if ratio <= mark.at_most => "yes",
            Some(_) => "**no**",
        };
        let mut case = format!("{}: {} ÷ {}", mark.ours.0, mark.ours.1, mark.theirs.1);
        if mark.ours.0 != mark.theirs.0 {
            write!(case, " in {}", mark.theirs.0)?;
        }
        if mark.is_latency {
            case.push_str(", median latency");
        }
        writeln!(out, "| {case} | {} | ≤ {:.2} | {met} |", cell(ratio, 3), mark.at_most)?;
    }
    Ok(())
}
