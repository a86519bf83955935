//! The tables, in Markdown.

use std::fmt;

use crate::goals::{self, ratio};
use crate::load::Figures;
use crate::peers::PEERS;
use crate::process::{gateway_core, load_core};
use crate::rounds::{MAX_STEAL, Options, Results};
use crate::scenarios::{BODY_MIB, Scenario};

pub(crate) struct Report<'a> {
    pub(crate) options: &'a Options,
    pub(crate) scenarios: &'a [Scenario],
    pub(crate) results: &'a Results,
    /// The results of the checks of each peer.
    pub(crate) checks: &'a [(&'static str, String)],
    /// The shares of idle and stolen time.
    pub(crate) machine: (f64, f64),
}

/// The peers that the others are compared with.
const REFERENCE_PEERS: [&str; 3] = ["nginx", "haproxy", "bare-hyper"];

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied()?;
    let lower = if values.len().is_multiple_of(2) { values.get(middle - 1).copied()? } else { upper };
    Some(f64::midpoint(lower, upper))
}

/// A number for a table, or a dash.
pub(crate) fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(out)?;
        for scenario in self.scenarios {
            writeln!(out, "\n### {}: {}\n", scenario.name, scenario.title)?;
            if scenario.is_large() { self.large(out, scenario)? } else { self.small(out, scenario)? }
        }
        out.write_str("\n### Checked before the first round\n\n")?;
        for (peer, check) in self.checks {
            writeln!(out, "- {peer}: {check}")?;
        }
        goals::write(out, self.results)
    }
}

impl Report<'_> {
    fn head(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { rounds, seconds, keys, .. } = self.options;
        let manner =
            if self.options.sleeping_load { "a load that sleeps" } else { "a load that never sleeps" };
        let (idle, stolen) = self.machine;
        let disturbed = self.results.all().filter(|figures| figures.steal > MAX_STEAL).count();
        let runs = self.results.all().count();
        writeln!(
            out,
            "Rounds: {rounds}, {seconds} s a run, {keys} keys. Peers are on core {}, Rails and {manner} on \
             core {}. CPU time is that of all processes of a peer, with what the kernel does for them. \
             Figures are medians over the rounds; ratios are medians of the ratios within each round.\n\n\
             The machine meanwhile: {:.1} % idle, {:.1} % kept by its host; {disturbed} of {runs} runs had more \
             than {:.0} % of that.",
            gateway_core(),
            load_core(),
            idle * 100.0,
            stolen * 100.0,
            MAX_STEAL * 100.0,
        )
    }

    /// The peers that took part, the cheapest first.
    fn ranking(&self, scenario: &Scenario) -> Vec<&'static str> {
        let cost = |peer: &str| self.median_of(scenario, peer, |figures| figures.cpu_us);
        let mut ranking: Vec<_> =
            PEERS.iter().filter_map(|peer| cost(peer.name).map(|cost| (cost, peer.name))).collect();
        ranking.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        ranking.into_iter().map(|(_, name)| name).collect()
    }

    fn median_of(&self, scenario: &Scenario, peer: &str, figure: fn(&Figures) -> f64) -> Option<f64> {
        median(self.results.of(scenario.name, peer).map(|(_, figures)| figure(figures)))
    }

    fn least_cpu(&self, scenario: &Scenario, peer: &str) -> Option<f64> {
        let costs = self.results.of(scenario.name, peer).map(|(_, figures)| figures.cpu_us);
        costs.min_by(f64::total_cmp)
    }

    fn errors(&self, scenario: &Scenario, peer: &str) -> u64 {
        self.results.of(scenario.name, peer).map(|(_, figures)| figures.errors).sum()
    }

    fn ratios(&self, scenario: &Scenario, peer: &'static str) -> String {
        let times = |other| ratio(self.results, (scenario.name, peer), (scenario.name, other), |f| f.cpu_us);
        REFERENCE_PEERS.map(|reference| cell(times(reference), 2)).join(" | ")
    }

    fn small(&self, out: &mut fmt::Formatter<'_>, scenario: &Scenario) -> fmt::Result {
        out.write_str("| peer | CPU µs/request | least | × nginx | × haproxy | × bare-hyper | requests/s ")?;
        out.write_str("| p50 µs | p99 µs | p99.9 µs | sleeps/request | errors |\n|---")?;
        writeln!(out, "{}|", "|--:".repeat(11))?;
        for peer in self.ranking(scenario) {
            let figure = |figure, digits| cell(self.median_of(scenario, peer, figure), digits);
            writeln!(
                out,
                "| {peer} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                figure(|f| f.cpu_us, 2),
                cell(self.least_cpu(scenario, peer), 2),
                self.ratios(scenario, peer),
                figure(Figures::per_second, 0),
                figure(|f| f.p50_us, 0),
                figure(|f| f.p99_us, 0),
                figure(|f| f.p999_us, 0),
                figure(|f| f.sleeps, 2),
                self.errors(scenario, peer),
            )?;
        }
        Ok(())
    }

    fn large(&self, out: &mut fmt::Formatter<'_>, scenario: &Scenario) -> fmt::Result {
        const BODIES_PER_GIB: f64 = 1024.0 / BODY_MIB as f64;
        out.write_str("| peer | CPU ms/GiB | least | × nginx | × haproxy | × bare-hyper | MiB/s ")?;
        out.write_str("| peak memory MiB | errors |\n|---")?;
        writeln!(out, "{}|", "|--:".repeat(8))?;
        for peer in self.ranking(scenario) {
            let per_gib = |cost: Option<f64>| cell(cost.map(|cost| cost / 1e3 * BODIES_PER_GIB), 0);
            writeln!(
                out,
                "| {peer} | {} | {} | {} | {} | {} | {} |",
                per_gib(self.median_of(scenario, peer, |f| f.cpu_us)),
                per_gib(self.least_cpu(scenario, peer)),
                self.ratios(scenario, peer),
                cell(self.median_of(scenario, peer, |f| f.per_second() * BODY_MIB as f64), 0),
                cell(self.median_of(scenario, peer, |f| f.peak_mib), 0),
                self.errors(scenario, peer),
            )?;
        }
        Ok(())
    }
}
