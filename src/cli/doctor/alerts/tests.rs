use std::collections::BTreeMap;

use super::super::finding::Level;
use super::*;

const RULES: &str = include_str!("../../../../deploy/prometheus/railgate.rules.yaml");

/// Alerts whose conditions are about a time, or about several gateways.
const NEED_HISTORY: [&str; 28] = [
    "RailgateCallersRefused",
    "RailgateCertificateReloadFailed",
    "RailgateDown",
    "RailgateErrorBudgetBurns",
    "RailgateErrorBudgetBurnsFast",
    "RailgateErrorBudgetLeaks",
    "RailgateErrorBudgetLeaksFast",
    "RailgateFleetDoubts",
    "RailgateFleetForeignEntries",
    "RailgateFleetMemberUnheard",
    "RailgateFleetSplit",
    "RailgateHitRatioFell",
    "RailgateHooksLost",
    "RailgateLatencyBudgetBurns",
    "RailgateLatencyBudgetBurnsFast",
    "RailgateLatencyBudgetLeaks",
    "RailgateLatencyBudgetLeaksFast",
    "RailgateListenerFull",
    "RailgateLogLinesDropped",
    "RailgateRailsRefusesSecret",
    "RailgateRequestsRefused",
    "RailgateRequestsShed",
    "RailgateSecretsDiffer",
    "RailgateSecretsOfGatewaysDiffer",
    "RailgateServerEjectedAgain",
    "RailgateShadowDisagrees",
    "RailgateStaleAnswers",
    "RailgateThreadHung",
];

#[test]
fn every_alert_of_the_rules_is_judged_or_needs_a_history() {
    let value = |rule: &str, key: &str| {
        rule.split(key).nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default().trim().to_owned()
    };
    let rules: BTreeMap<_, _> = RULES
        .split("- alert: ")
        .skip(1)
        .map(|rule| {
            let name = rule.lines().next().unwrap_or_default();
            (name, (value(rule, "severity:"), value(rule, "runbook:")))
        })
        .collect();
    let mut known: Vec<_> = NEED_HISTORY.to_vec();
    for alert in &ALERTS {
        known.push(alert.name);
        let severity = if alert.is_page { "page" } else { "ticket" };
        let expected = (severity.to_owned(), format!("deploy/README.md#{}", alert.row));
        assert_eq!(rules.get(alert.name), Some(&expected), "{}", alert.name);
    }
    known.sort_unstable();
    assert_eq!(known, rules.keys().copied().collect::<Vec<_>>());
}

#[test]
fn alerts_that_hold_are_found_and_no_others() {
    const NOW: f64 = 1_000_000_000.0;
    for (quiet, firing, level, words) in [
        ("railgate_upstream_away 0", "railgate_upstream_away 1", Level::Failed, "RailgateRailsUnreachable: "),
        (
            "railgate_cache_outage{route=\"discover\"} 0",
            "railgate_cache_outage{route=\"discover\"} 1",
            Level::Failed,
            "RailgateRailsFails: stale answers are given for discover",
        ),
        (
            "railgate_upstream_failures_in_a_row{server=\"a\"} 9\nrailgate_upstream_failures_in_a_row{server=\"b\"} 2",
            "railgate_upstream_failures_in_a_row{server=\"a\"} 9\nrailgate_upstream_failures_in_a_row{server=\"b\"} 3",
            Level::Failed,
            "RailgateRailsFails: every server",
        ),
        (
            "railgate_upstream_server_state{server=\"a\",state=\"slow_start\"} 1\nrailgate_upstream_server_state{server=\"a\",state=\"drained\"} 0",
            "railgate_upstream_server_state{server=\"a\",state=\"drained\"} 1",
            Level::Warning,
            "RailgateServerOutOfRotation: a gets no requests: drained",
        ),
        (
            "railgate_upstream_queue{class=\"access\"} 5\nrailgate_upstream_concurrency_limit{class=\"access\"} 5",
            "railgate_upstream_queue{class=\"access\"} 6\nrailgate_upstream_concurrency_limit{class=\"access\"} 5\nrailgate_upstream_concurrency_limit{class=\"kas\"} 9",
            Level::Warning,
            "RailgateQueueFills: 6 requests of the class access",
        ),
        (
            "railgate_clock_skew_seconds{caller=\"kas\"} -4",
            "railgate_clock_skew_seconds{caller=\"kas\"} -5",
            Level::Warning,
            "RailgateClocksDiffer: the clocks of the callers (kas) differ by -5 s",
        ),
        (
            "railgate_secret_file_usable{secret=\"kas\"} 1",
            "railgate_secret_file_usable{secret=\"kas\"} 0",
            Level::Warning,
            "RailgateSecretUnusable: the file of the secret kas",
        ),
        (
            "railgate_config_last_reload_successful 1",
            "railgate_config_last_reload_successful 0",
            Level::Warning,
            "RailgateReloadFailed: ",
        ),
        (
            "railgate_certificate_not_after_timestamp_seconds{listener=\"a\"} 1001300000",
            "railgate_certificate_not_after_timestamp_seconds{listener=\"a\"} 1001200000",
            Level::Warning,
            "RailgateCertificateExpiresSoon: the certificate of a expires in 13.9 days",
        ),
        (
            "railgate_certificate_not_after_timestamp_seconds{listener=\"a\"} 1001300000",
            "railgate_certificate_not_after_timestamp_seconds{listener=\"a\"} 999999999",
            Level::Failed,
            "RailgateCertificateExpires: the certificate of a expires in -0.0 days",
        ),
        (
            "railgate_listener_connections{listener=\"a\"} 80\nrailgate_listener_max_connections{listener=\"a\"} 100",
            "railgate_listener_connections{listener=\"a\"} 81\nrailgate_listener_max_connections{listener=\"a\"} 100",
            Level::Warning,
            "RailgateConnectionsNearLimit: a has 81 of 100",
        ),
        (
            "process_open_fds 80\nprocess_max_fds 100",
            "process_open_fds 81\nprocess_max_fds 100",
            Level::Warning,
            "RailgateOpenFilesNearLimit: 81 of 100",
        ),
        (
            "railgate_thread_silent_seconds{thread=\"worker-0\"} 9",
            "railgate_thread_silent_seconds{thread=\"worker-0\"} 10",
            Level::Failed,
            "RailgateThreadHangs: worker-0",
        ),
        (
            "railgate_failures_total{reason=\"unauthorized\"} 3\nrailgate_failures_total{reason=\"panicked\"} 0",
            "railgate_failures_total{reason=\"panicked\"} 2",
            Level::Warning,
            "RailgatePanicked: 2 requests",
        ),
    ] {
        let [quiet, fires] = [quiet, firing].map(|text| findings(&Scrape::parse(text), NOW));
        assert!(matches!(&quiet[..], [one] if one.level == Level::Ok), "{quiet:?}");
        assert!(
            matches!(&fires[..], [one] if one.level == level && one.summary.starts_with(words)),
            "{fires:?}"
        );
    }
}
