//! What a running gateway with this configuration counts.

use super::finding::Finding;
use super::scrape::Scrape;

/// By its `/metrics`. `has_hooks`: the configuration has `[hooks]`.
pub(super) fn findings(scrape: &Scrape<'_>, has_hooks: bool) -> Vec<Finding> {
    let sum = |name: &str| scrape.sum(name);
    let compared = |result| scrape.sum_where("railgate_shadow_checks_total", "result", result);
    let mut found = Vec::new();
    if has_hooks {
        found.push(check_hooks(sum("railgate_hooks_total"), sum("railgate_hooks_refused_total")));
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
            ("railgate_thread_stalls_total{thread=\"worker-0\"} 1\n", Level::Warning, "have hung 1 times"),
        ] {
            let found = findings(&Scrape::parse(metrics), true);
            let is_there = |finding: &Finding| finding.level == level && finding.summary.contains(words);
            assert!(found.iter().any(is_there), "{words}: {found:?}");
        }
        assert!(!findings(&Scrape::parse(""), false).iter().any(|finding| finding.summary.contains("Hook")));
    }
}
