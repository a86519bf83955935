//! What Prometheus and Grafana are given: the rules with their unit tests, which `promtool` of Debian's package
//! `prometheus` runs, and the dashboard. They name only series that the gateway has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::certificates::CertificateAuthority;
use super::client::Request;
use super::harness::{Harness, Scratch, Setup};
use super::valkey::Valkey;

const RULES: &str = "deploy/prometheus/railgate.rules.yaml";
const RULE_TESTS: [&str; 2] =
    ["deploy/prometheus/railgate.rules.test.yaml", "deploy/prometheus/railgate.service-level.test.yaml"];
const DASHBOARD: &str = "deploy/grafana/railgate.json";

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// What `promtool` says, if it is content.
fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("promtool is missing; install Debian's package prometheus, as tests/run does");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

/// One alert of the rules.
struct Alert {
    name: String,
    severity: String,
    runbook: String,
}

fn alerts() -> Vec<Alert> {
    let rules = read(RULES);
    let value = |rule: &str, key: &str| {
        let line = rule.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {key} in {rule}")).to_owned()
    };
    let alert = |rule: &str| {
        // Up to the next rule or group.
        let rule = rule.split("\n      - ").next().unwrap().split("\n  - ").next().unwrap();
        let name = rule.lines().next().unwrap().to_owned();
        assert!(value(rule, "summary").starts_with('\''), "{name}");
        Alert { name, severity: value(rule, "severity"), runbook: value(rule, "runbook") }
    };
    rules.split("\n      - alert: ").skip(1).map(alert).collect()
}

/// The names in a text that are those of series of the gateway or its process.
fn series_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words
        .filter(|word| word.starts_with("railgate_") || word.starts_with("process_"))
        .filter(|word| !word.contains(':'))
        .collect()
}

/// The names of all samples that `/metrics` may have, whether or not there are any yet.
async fn exposed_series() -> BTreeSet<String> {
    // A listener with TLS, which has series of its own.
    let setup = Setup::new();
    let files = CertificateAuthority::new().issue_to_files(&setup.dir, "localhost");
    let [certificate, key] = files.map(|file| file.display().to_string());
    let tls = format!("tls = {{ certificate_file = {certificate:?}, key_file = {key:?} }}");
    let valkey = Valkey::start().await;
    let harness = setup.tcp(tls).text("fleet.url", &valkey.url()).start().await;
    harness.wait_for_metric("railgate_fleet_state{state=\"following\"}", 1).await;
    let metrics = harness.metrics().await;
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let samples = types.flat_map(|(name, kind)| {
        let ends: &[&str] = if kind == "histogram" { &["_bucket", "_count", "_sum"] } else { &[""] };
        ends.iter().map(move |end| format!("{name}{end}"))
    });
    samples.collect()
}

fn assert_all_exist(named: &BTreeSet<&str>, exposed: &BTreeSet<String>) {
    let unknown: Vec<_> = named.iter().filter(|name| !exposed.contains(**name)).collect();
    assert!(unknown.is_empty(), "/metrics has no {unknown:?}");
}

#[tokio::test]
async fn the_rules_pass_their_unit_tests() {
    let said = promtool(&["check", "rules", RULES]);
    assert!(said.contains("SUCCESS"), "{said}");
    let tested = tokio::task::spawn_blocking(|| promtool(&[&["test", "rules"][..], &RULE_TESTS].concat()));
    assert_eq!(tested.await.unwrap().matches("SUCCESS").count(), RULE_TESTS.len());
}

#[tokio::test]
async fn every_series_in_the_rules_exists() {
    let (rules, exposed) = (read(RULES), exposed_series().await);
    let named = series_in(&rules);
    assert!(named.len() > 15, "{named:?}");
    assert_all_exist(&named, &exposed);
    for tests in RULE_TESTS {
        assert_all_exist(&series_in(&read(tests)), &exposed);
    }
}

/// A label value that no series has would keep an alert quiet for ever. The tables of the documentation have them.
#[test]
fn every_label_value_in_the_rules_is_documented() {
    let (rules, text) = (read(RULES), read("deploy/README.md"));
    let mut count = 0;
    let rules = ["=~", "!~", "!="].iter().fold(rules, |rules, operator| rules.replace(operator, "="));
    for label in ["reason", "cache", "caller", "status", "state", "result", "class", "route"] {
        let matcher = format!("{label}=\"");
        let values =
            rules.split(&matcher).skip(1).flat_map(|rest| rest.split('"').next().unwrap().split('|'));
        for value in values.filter(|value| !value.contains('+')) {
            count += 1;
            let is_status = label == "status" && ["none", "4xx", "5xx"].contains(&value);
            assert!(is_status || text.contains(&format!("`{value}`")), "{label} {value}");
        }
    }
    assert!(count > 25, "{count}");
}

/// The service level of latency counts what is not within a bucket: without that bucket, everything would be slow.
#[tokio::test]
async fn the_bucket_of_the_service_level_exists() {
    let harness = Harness::new().await;
    harness.send(&Request::post("allowed").with_secret()).await;
    let buckets: BTreeSet<String> = [read(RULES), read(DASHBOARD).replace("\\\"", "\"")]
        .iter()
        .flat_map(|text| text.split("le=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()))
        .collect();
    assert_eq!(buckets.len(), 1, "{buckets:?}");
    let bound = buckets.first().unwrap();
    let series = format!("railgate_upstream_duration_seconds_bucket{{le=\"{bound}\",route=\"allowed\"}}");
    harness.wait_for_metric(&series, 1).await;
}

#[test]
fn each_alert_has_a_runbook_and_a_row_in_the_documentation() {
    let text = read("deploy/README.md");
    let (_, at_3_am) = text.split_once("\n## At 3 a.m.\n").unwrap();
    let at_3_am = at_3_am.split("\n## ").next().unwrap();
    let headings = at_3_am.lines().filter_map(|line| line.strip_prefix("### "));
    let mut anchors: BTreeSet<String> =
        headings.map(|heading| heading.to_ascii_lowercase().replace(' ', "-")).collect();
    anchors.extend(at_3_am.split("<a id=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
    let alerts = alerts();
    assert!(alerts.len() > 20);
    for alert in &alerts {
        let anchor = alert.runbook.strip_prefix("deploy/README.md#");
        assert!(anchor.is_some_and(|anchor| anchors.contains(anchor)), "{}: {}", alert.name, alert.runbook);
    }
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `Railgate")?.split_once("` | "));
    let documented: BTreeMap<String, &str> =
        rows.map(|(name, rest)| (format!("Railgate{name}"), rest.split(" | ").next().unwrap())).collect();
    let in_rules = alerts.iter().map(|alert| (alert.name.clone(), &*alert.severity)).collect();
    assert_eq!(documented, in_rules);
}

#[test]
fn each_alert_is_tested_for_firing_and_for_staying_quiet() {
    let tests = RULE_TESTS.map(read).concat();
    for alert in alerts() {
        let name = format!("alertname: {}\n", alert.name);
        let cases = tests.split(&name).skip(1);
        let (quiet, firing): (Vec<_>, Vec<_>) =
            cases.partition(|case| case.trim_start().starts_with("exp_alerts: []"));
        assert!(!quiet.is_empty() && !firing.is_empty(), "{}", alert.name);
    }
}

/// All values of `key`, at any depth.
fn collect<'v>(value: &'v Value, key: &str, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                found.extend(value.as_str().filter(|_| name == key));
                collect(value, key, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, key, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_dashboard_asks_only_for_series_that_exist() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut expressions = Vec::new();
    collect(&dashboard, "expr", &mut expressions);
    assert!(expressions.len() > 50, "{}", expressions.len());
    let exposed = exposed_series().await;
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (nth, expression) in expressions.iter().enumerate() {
        assert_all_exist(&series_in(expression), &exposed);
        // Grafana puts its variables in before it sends an expression.
        let sent =
            expression.replace("$__rate_interval", "5m").replace("$job", ".+").replace("$instance", ".+");
        assert!(!sent.contains('$'), "{sent}");
        let quoted = Value::from(sent);
        write!(rules, "      - record: dashboard:{nth}\n        expr: {quoted}\n").unwrap();
    }
    let scratch = Scratch::new();
    let file = scratch.file("dashboard.rules.yaml");
    fs::write(&file, rules).unwrap();
    let said = promtool(&["check", "rules", file.to_str().unwrap()]);
    assert!(said.contains(&format!("{} rules found", expressions.len())), "{said}");
}

#[test]
fn the_panels_of_the_dashboard_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title}");
            }
        }
        if panel["type"] != "row" {
            assert!(panel["description"].is_string() && panel["targets"][0]["legendFormat"].is_string());
        }
    }
    assert!(ids.len() > 30);
}
