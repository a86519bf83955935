//! The two formats of `/metrics`, and the rules of `promtool check metrics` for the classic one.

use std::collections::{BTreeMap, BTreeSet};

use super::client::{Request, eventually};
use super::collector::Collector;
use super::fake_rails::{Reply, UNKNOWN_KEY};
use super::harness::Harness;

const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A gateway after traffic of every kind, so that every kind of series has values.
async fn harness_with_traffic() -> Harness {
    let harness = Harness::new().await;
    for request in [
        Request::get("check").with_secret(),
        Request::get("check").with_secret(),
        Request::get("check"),
        Request::get(&format!("authorized_keys?key={UNKNOWN_KEY}")).with_secret(),
        Request::post("allowed").with_secret().json("{}"),
        Request::get("check;a"),
    ] {
        harness.send(&request).await;
    }
    harness.rails.respond_always(Reply::hang_up());
    harness.send(&Request::post("allowed").with_secret().json("{}")).await;
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    harness.wait_for_fingerprints().await;
    harness
}

/// Parses the families with their types, and the names of all samples.
fn parse(text: &str) -> (BTreeMap<&str, &str>, BTreeSet<&str>) {
    let (mut types, mut helps, mut samples) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => {
                assert!(!help.is_empty() && !help.contains('\\') && helps.insert(name), "{line}");
            }
            ["#", "TYPE", name, kind] => {
                assert!(helps.contains(name) && types.insert(name, kind).is_none(), "{line}");
            }
            _ => {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(!line.starts_with('#') && value.parse::<f64>().is_ok(), "{line}");
                samples.insert(series.split('{').next().unwrap());
            }
        }
    }
    assert_eq!(helps, types.keys().copied().collect(), "each has a HELP and a TYPE");
    (types, samples)
}

#[tokio::test]
async fn the_classic_format_passes_the_linter_rules() {
    let harness = harness_with_traffic().await;
    let response =
        harness.gateway.admin.send(&Request::new("GET", "/metrics").header("Accept", "text/plain")).await;
    assert_eq!((response.status, response.header("content-type")), (200, Some(CLASSIC)));
    let text = response.text();
    assert!(text.ends_with('\n') && !text.contains("# EOF") && !text.contains("# UNIT"));
    let (types, samples) = parse(text);
    assert!(types.len() > 40, "{types:?}");
    for (name, kind) in &types {
        assert!(["counter", "gauge", "histogram"].contains(kind), "{name} {kind}");
        // The linter's rules for counters, reserved suffixes, units and types in names.
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name} {kind}");
        let reserved = ["_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
        assert!(!reserved, "{name}");
        let segments: Vec<&str> = name.split('_').collect();
        for odd in [
            "counter",
            "gauge",
            "histogram",
            "ms",
            "s",
            "us",
            "kb",
            "mb",
            "kib",
            "minutes",
            "hours",
            "milliseconds",
        ] {
            assert!(!segments.contains(&odd), "{name}");
        }
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
    }
    for sample in samples {
        let stem = ["_bucket", "_count", "_sum"].iter().find_map(|end| sample.strip_suffix(end));
        let is_of_histogram = stem.is_some_and(|stem| types.get(stem) == Some(&"histogram"));
        let is_of_itself = types.get(sample).is_some_and(|kind| *kind != "histogram");
        assert!(is_of_histogram || is_of_itself, "{sample} has no family");
    }
    assert_eq!(types["railgate_build_info"], "gauge");
    assert_eq!(types["railgate_requests_total"], "counter");
    assert_eq!(types["process_cpu_seconds_total"], "counter");
}

#[tokio::test]
async fn both_formats_show_the_same_series() {
    let harness = harness_with_traffic().await;
    let scrape = async |accept: &[&str]| {
        let request = accept
            .iter()
            .fold(Request::new("GET", "/metrics"), |request, value| request.header("Accept", value));
        let response = harness.gateway.admin.send(&request).await;
        assert_eq!(response.status, 200);
        (response.header("content-type").unwrap().to_owned(), response.text().to_owned())
    };
    let names = |text: &str| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                      application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                      text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    // Fingerprints of secrets take a moment to compute.
    eventually("the fingerprints", async || {
        let (_, text) = scrape(&[]).await;
        (text.matches("railgate_secret_fingerprint{").count() == 2).then_some(())
    })
    .await;
    let (kind, open) = scrape(&[prometheus]).await;
    assert!(
        kind == OPENMETRICS && open.ends_with("# EOF\n") && open.contains("# TYPE railgate_build info\n")
    );
    for accept in
        [&[][..], &["*/*"], &["text/plain;version=0.0.4"], &["application/json"], &["text/html", "*/*;q=0.1"]]
    {
        let (kind, classic) = scrape(accept).await;
        assert_eq!(kind, CLASSIC, "{accept:?}");
        assert_eq!(names(&classic), names(&open));
    }
    let (kind, _) = scrape(&["text/plain;q=0.5", "application/openmetrics-text"]).await;
    assert_eq!(kind, OPENMETRICS, "named in a line of its own");
    let head =
        harness.gateway.admin.send(&Request::new("HEAD", "/metrics").header("Accept", prometheus)).await;
    assert_eq!(head.header("content-type"), Some(OPENMETRICS));
}

/// A part of a line of `OpenMetrics`: series, value, and the exemplar's trace, value and time.
fn exemplar(line: &str) -> Option<(&str, &str, f64, f64)> {
    let (sample, exemplar) = line.split_once(" # {trace_id=\"")?;
    let (series, count) = sample.rsplit_once(' ').unwrap();
    assert!(count.parse::<u64>().is_ok(), "{line}");
    let (trace, rest) = exemplar.split_once("\"} ").unwrap();
    assert!(trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
    let (value, time) = rest.split_once(' ').unwrap();
    Some((series, trace, value.parse().unwrap(), time.parse().unwrap()))
}

#[tokio::test]
async fn exemplars_lead_from_a_bucket_to_a_trace_in_openmetrics_alone() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traced = |request: Request| request.header("traceparent", &format!("00-{trace}-b7ad6b7169203331-01"));
    let other = |request: Request| {
        request.header("traceparent", "00-11111111111111111111111111111111-b7ad6b7169203331-00")
    };
    for request in [
        traced(Request::get("discover?key_id=1").with_secret()),
        traced(Request::get("discover?key_id=1").with_secret()),
        // Not sampled, so it leaves none.
        other(Request::get("discover?key_id=1").with_secret()),
        other(Request::post("allowed").with_secret().json("{}")),
    ] {
        assert_eq!(harness.send(&request).await.status, 200);
    }
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    let scrape = async |accept: &str| {
        let request = Request::new("GET", "/metrics").header("Accept", accept);
        let response = harness.gateway.admin.send(&request).await;
        (response.header("content-type").unwrap().to_owned(), response.text().to_owned())
    };
    let (kind, classic) = scrape("text/plain").await;
    assert!(kind == CLASSIC && !classic.contains(" # ") && !classic.contains(trace), "{classic}");
    parse(&classic);
    let (kind, open) = scrape("application/openmetrics-text").await;
    assert!(kind == OPENMETRICS && open.ends_with("# EOF\n"));
    let found: Vec<_> = open.lines().filter_map(exemplar).collect();
    let names: Vec<_> = found.iter().map(|(series, ..)| series.split('{').next().unwrap()).collect();
    assert_eq!(names, ["railgate_hit_duration_seconds_bucket", "railgate_upstream_duration_seconds_bucket"]);
    let mut lower = 0.0;
    for line in open.lines().filter(|line| !line.starts_with('#')) {
        let label = |name: &str| Some(line.split_once(&format!("{name}=\""))?.1.split('"').next().unwrap());
        let upper = label("le").map(|le| le.parse().unwrap_or(f64::INFINITY));
        if let Some((series, id, value, time)) = exemplar(line) {
            assert_eq!(id, trace);
            assert!(lower < value && value <= upper.unwrap(), "{lower} {line}");
            let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
            assert!((time - now).abs() < 300.0, "{line}");
            assert!(!series.contains("route=") || label("route") == Some("discover"), "{line}");
        }
        lower = upper.filter(|upper| upper.is_finite()).unwrap_or(0.0);
    }
    // But for the exemplars, it is what it was.
    let without: String = open.lines().flat_map(|line| [line.split(" # {").next().unwrap(), "\n"]).collect();
    assert!(without.contains("railgate_hit_duration_seconds_count 2\n"), "{without}");
}
