//! What a Prometheus that has the rules of `deploy/prometheus` says of its alerts, with their history.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use railgate::certificates;
use railgate::secret::BearerToken;
use railgate::upstream::tls::Tls;
use railgate::upstream::{
    self, Protocol, Upstream, UpstreamAddress, UpstreamServerSettings, UpstreamSettings, UpstreamTarget,
};
use serde_json::Value;

use super::alerts::firing;
use super::finding::Finding;
use crate::cli::client;
use crate::cli::output::quoted;

/// For the whole answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of those that are printed.
const MAX_ALERTS: usize = 100;
const RULES: &str = "load deploy/prometheus/railgate.rules.yaml there; its head says how";

/// Asks the Prometheus at this URL, with the token in this file.
pub(super) fn examine(url: &str, token_file: Option<&Path>) -> Vec<Finding> {
    let load = |file: &Path| {
        BearerToken::load(file)
            .map_err(|error| format!("--prometheus-token-file {}: {error}", file.display()))
    };
    let token = match token_file.map(load).transpose() {
        Ok(token) => token,
        Err(error) => return vec![Finding::failed(error, "write the token alone into that file")],
    };
    let asked = client::block_on(async {
        let prometheus = connect(url, token.is_some())?;
        // Since Prometheus 2.12. It also has the alerts that do not fire, so that rules that are not loaded are noticed.
        let path = "/api/v1/rules?type=alert";
        let answer =
            tokio::time::timeout(TIMEOUT, client::send(&prometheus, Method::GET, path, token.as_ref(), ""))
                .await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
    });
    match asked {
        Ok((StatusCode::OK, answer)) => findings(&answer),
        Ok((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)) => vec![Finding::failed(
            "it does not tell its alerts without a token that it accepts",
            "name the file of one with --prometheus-token-file",
        )],
        Ok((status, answer)) => {
            let why = answer
                .get("error")
                .and_then(Value::as_str)
                .map(|why| format!(": {}", quoted(why)))
                .unwrap_or_default();
            vec![Finding::failed(
                format!("it does not tell its alerts: {status}{why}"),
                "is --prometheus right?",
            )]
        }
        Err(error) => vec![Finding::failed(format!("it cannot be asked: {error}"), "is --prometheus right?")],
    }
}

fn connect(url: &str, has_token: bool) -> Result<Upstream, String> {
    let target = UpstreamTarget::parse(url).map_err(|error| error.to_string())?;
    if has_token && client::is_readable_on_the_way(&target) {
        return Err("the token would be sent unencrypted; use https://".to_owned());
    }
    let tls = match &target {
        UpstreamTarget { is_tls: true, address: UpstreamAddress::Tcp(host, _), .. } => {
            let roots = certificates::system_authorities().map_err(|error| error.to_string())?;
            let tls = Tls::new(roots, None, upstream::without_zone(host), Protocol::Http1);
            Some(tls.map_err(|error| error.to_string())?)
        }
        _ => None,
    };
    Ok(Upstream::standalone(UpstreamSettings::for_server(UpstreamServerSettings {
        target,
        tls,
        is_backup: false,
    })))
}

/// About the alerts of railgate in its answer.
fn findings(answer: &Value) -> Vec<Finding> {
    let Some(groups) = answer.pointer("/data/groups").and_then(Value::as_array) else {
        return vec![Finding::failed("it is no Prometheus", "is --prometheus right?")];
    };
    let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
    let name = |rule: &Value| rule["name"].as_str().filter(|name| name.starts_with("Railgate")).map(quoted);
    let rules: Vec<_> = rules.filter_map(|rule| Some((name(rule)?, rule))).collect();
    if rules.is_empty() {
        return vec![Finding::failed("it has no alerts of railgate", RULES)];
    }
    let broken = rules.iter().filter(|(_, rule)| rule["health"] == "err").map(|(name, rule)| {
        let why = quoted(rule["lastError"].as_str().unwrap_or_default());
        Finding::warning(format!("{name} cannot be evaluated: {why}"), None)
    });
    let mut found: Vec<_> = broken.collect();
    let alerts = rules.iter().flat_map(|(name, rule)| {
        let alerts = rule["alerts"].as_array().map(Vec::as_slice).unwrap_or_default();
        alerts.iter().map(move |alert| (name, alert))
    });
    found.extend(alerts.take(MAX_ALERTS).map(|(name, alert)| describe(name, alert)));
    if found.is_empty() {
        found.push(Finding::ok(format!("none of its {} alerts of railgate fires", rules.len())));
    }
    found
}

fn describe(name: &str, alert: &Value) -> Finding {
    let text = |path: &str| quoted(alert.pointer(path).and_then(Value::as_str).unwrap_or_default());
    let (what, runbook) = (text("/annotations/summary"), text("/annotations/runbook"));
    let found = firing(name, text("/labels/severity") == "page", &what, &runbook);
    if alert["state"] == "firing" {
        return found;
    }
    let advice = found.advice.unwrap_or_default();
    Finding::note(format!("{} (not for long enough to fire)", found.summary), &advice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    #[test]
    fn alerts_become_findings() {
        let alert = |state: &str, severity: &str| {
            json!({
                "state": state,
                "labels": {"severity": severity},
                "annotations": {"summary": "a\u{1b}[2J is\nbad", "runbook": "deploy/README.md#slow"},
            })
        };
        let rule = |name: &str, alerts: &[Value]| json!({"name": name, "health": "ok", "alerts": alerts});
        let broken = json!({"name": "RailgateB", "health": "err", "lastError": "many-to-many", "alerts": []});
        let of = |rules: &[Value]| json!({"status": "success", "data": {"groups": [{"rules": rules}, {}]}});
        for (answer, expected) in [
            (Value::Null, vec![(Level::Failed, "it is no Prometheus")]),
            (json!({"data": {"groups": 1}}), vec![(Level::Failed, "it is no Prometheus")]),
            (
                of(&[rule("NodeDown", &[alert("firing", "page")])]),
                vec![(Level::Failed, "it has no alerts of railgate")],
            ),
            (
                of(&[rule("RailgateA", &[]), rule("RailgateB", &[])]),
                vec![(Level::Ok, "none of its 2 alerts")],
            ),
            (of(&[broken]), vec![(Level::Warning, "RailgateB cannot be evaluated: many-to-many")]),
            (
                of(&[
                    rule("RailgateA", &[alert("firing", "page"), alert("pending", "page")]),
                    rule("RailgateB", &[alert("firing", "ticket"), json!(7)]),
                ]),
                vec![
                    (Level::Failed, "RailgateA: a[2J isbad"),
                    (Level::Note, "RailgateA: a[2J isbad (not for long enough to fire)"),
                    (Level::Warning, "RailgateB: a[2J isbad"),
                    (Level::Note, "RailgateB: "),
                ],
            ),
        ] {
            let found = findings(&answer);
            let found: Vec<_> = found.iter().map(|one| (one.level, &*one.summary)).collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for ((level, summary), (expected_level, begin)) in found.iter().zip(&expected) {
                assert!(level == expected_level && summary.starts_with(begin), "{found:?}");
            }
        }
        let many = of(&[rule("RailgateA", &vec![alert("firing", "page"); 1000])]);
        assert_eq!(findings(&many).len(), MAX_ALERTS);
    }
}
