//! What a running gateway with this configuration counts.

use super::finding::Finding;
use super::scrape::Scrape;

/// By its `/metrics`. Whether the configuration has `[hooks]`, and `[fleet]`.
pub(super) fn findings(scrape: &Scrape<'_>, (has_hooks, has_fleet): (bool, bool)) -> Vec<Finding> {
    let sum = |name: &str| scrape.sum(name);
    let compared = |result| scrape.sum_where("railgate_shadow_checks_total", "result", result);
    let mut found = Vec::new();
    if has_hooks {
        found.push(check_hooks(sum("railgate_hooks_total"), sum("railgate_hooks_refused_total")));
    }
    if has_fleet {
        found.push(check_fleet(scrape));
    }
    let wrong: f64 = ["revoked", "changed", "new"].into_iter().map(compared).sum();
    found.push(check_cache(wrong, sum("railgate_shadow_checks_total") - compared("failed")));
    let stalls = sum("railgate_thread_stalls_total");
    if stalls > 0.0 {
        found.push(Finding::warning(
            format!("threads of the running gateway have hung {stalls} times"),
            Some("its log names them: `a thread hangs`"),
        ));
    }
    let dropped = sum("railgate_log_dropped_total");
    if dropped > 0.0 {
        found.push(Finding::warning(
            format!("{dropped} lines of its log were dropped, since nothing read them fast enough"),
            Some("is the log read at all? See \"Logs\" in deploy/README.md"),
        ));
    }
    found
}

fn check_fleet(scrape: &Scrape<'_>) -> Finding {
    let state = scrape.of("railgate_fleet_state").find(|state| state.value > 0.0);
    let state = state.map_or("", |state| state.label("state"));
    let members = scrape.sum("railgate_fleet_members");
    let warning = |summary: String, advice| Finding::warning(summary, Some(advice));
    match (state, members > 0.0) {
        ("following", true) => {
            Finding::ok(format!("it follows its fleet; other gateways that it hears: {members}"))
        }
        ("following", false) => warning(
            "it hears no other gateway of its fleet".to_owned(),
            "is it the only one? Else compare railgate_fleet_info and fleet.url of all",
        ),
        ("", _) => warning("it is in no fleet".to_owned(), "restart it: [fleet] is newer than it is"),
        (state, _) => warning(
            format!("it does not follow its fleet: {state}"),
            "see its log, and what is said of the fleet above",
        ),
    }
}

fn check_hooks(arrived: f64, refused: f64) -> Finding {
    if refused > 0.0 {
        return Finding::warning(
            format!("{refused} System Hooks were refused: the tokens differ"),
            Some("run `railgate hook install` again"),
        );
    }
    if arrived > 0.0 {
        return Finding::ok(format!("System Hooks arrive: {arrived} so far"));
    }
    Finding::warning(
        "no System Hook has arrived since the gateway started",
        Some(
            "has nothing changed in GitLab yet? Send a test from its page of System Hooks; if that does not come, GitLab does not reach hooks.address",
        ),
    )
}

fn check_cache(wrong: f64, compared: f64) -> Finding {
    match (wrong > 0.0, compared > 0.0) {
        (true, _) => Finding::warning(
            format!("{wrong} of {compared} answers from memory that were compared with Rails were outdated"),
            Some(
                "if that is more than you can bear, shorten cache.authorized_keys.ttl and cache.discover.ttl, or set up System Hooks",
            ),
        ),
        (false, true) => {
            Finding::ok(format!("all {compared} answers from memory that were compared with Rails agree"))
        }
        (false, false) => Finding::note(
            "no answer from memory was compared with Rails yet",
            "one in cache.shadow.one_in is; see \"Is what is kept still true?\" in deploy/README.md",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn counters_become_findings() {
        for (metrics, level, words) in [
            ("railgate_hooks_total{event=\"key_create\"} 0\n", Level::Warning, "no System Hook has arrived"),
            (
                "railgate_hooks_total{event=\"key_create\"} 2\nrailgate_hooks_total{event=\"other\"} 1\n",
                Level::Ok,
                "3 so far",
            ),
            (
                "railgate_hooks_total{event=\"other\"} 2\nrailgate_hooks_refused_total 1\n",
                Level::Warning,
                "tokens differ",
            ),
            ("", Level::Note, "no answer from memory was compared"),
            (
                "railgate_shadow_checks_total{route=\"discover\",result=\"same\"} 9\nrailgate_shadow_checks_total{route=\"discover\",result=\"failed\"} 4\n",
                Level::Ok,
                "all 9 answers",
            ),
            (
                "railgate_shadow_checks_total{route=\"discover\",result=\"same\"} 9\nrailgate_shadow_checks_total{route=\"discover\",result=\"revoked\"} 1\n",
                Level::Warning,
                "1 of 10 answers",
            ),
            ("", Level::Warning, "it is in no fleet"),
            (
                "railgate_fleet_state{state=\"alone\"} 0\nrailgate_fleet_state{state=\"following\"} 1\nrailgate_fleet_members 2\n",
                Level::Ok,
                "other gateways that it hears: 2",
            ),
            (
                "railgate_fleet_state{state=\"following\"} 1\nrailgate_fleet_members 0\n",
                Level::Warning,
                "hears no other gateway",
            ),
            (
                "railgate_fleet_state{state=\"alone\"} 1\nrailgate_fleet_members 2\n",
                Level::Warning,
                "does not follow its fleet: alone",
            ),
            ("railgate_thread_stalls_total{thread=\"worker-0\"} 1\n", Level::Warning, "have hung 1 times"),
        ] {
            let found = findings(&Scrape::parse(metrics), (true, true));
            let is_there = |finding: &Finding| finding.level == level && finding.summary.contains(words);
            assert!(found.iter().any(is_there), "{words}: {found:?}");
        }
        let without = findings(&Scrape::parse(""), (false, false));
        let is_of_either =
            |finding: &Finding| ["Hook", "fleet"].iter().any(|word| finding.summary.contains(word));
        assert!(!without.iter().any(is_of_either), "{without:?}");
    }
}
