//! `railgate top`: the figures of the status page on a terminal.

use std::process::ExitCode;
use std::time::Duration;

use http::{Method, StatusCode};
use railgate::config::{self, AdminSettings};
use serde_json::Value;

use super::client;
use super::config_file::ConfigFile;
use super::output::{clear_screen, print_config_error, print_error, print_line, quoted};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the figures once, without rates
    #[arg(long)]
    once: bool,
}

/// Between two pictures.
const INTERVAL: Duration = Duration::from_secs(2);
/// For the figures to arrive.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Goes on until Ctrl-C, or until the gateway does not answer.
pub(super) fn main(options: &Options) -> ExitCode {
    let admin = match config::load_admin(&options.file.config) {
        Ok(admin) => admin,
        Err(error) => {
            print_config_error(&error);
            return ExitCode::FAILURE;
        }
    };
    match client::block_on(watch(&admin, options.once)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("admin.address {}: {error}", admin.address));
            ExitCode::FAILURE
        }
    }
}

async fn watch(admin: &AdminSettings, is_once: bool) -> Result<(), String> {
    let gateway = client::admin_listener(&admin.address)?;
    let mut before = None;
    loop {
        let asking = client::send(&gateway, Method::GET, "/status.json", None, "");
        let answer = tokio::time::timeout(TIMEOUT, asking).await;
        let (status, now) = answer.map_err(|_| "no answer in time".to_owned())??;
        if status != StatusCode::OK || !now.is_object() {
            return Err(format!("it has no figures ({status}); is it a gateway of this version?"));
        }
        let picture = render(&now, before.as_ref());
        if !is_once {
            clear_screen();
        }
        print_line(&picture);
        if is_once {
            return Ok(());
        }
        before = Some(now);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// One picture, at most 80 columns wide. `before`: the figures of one interval earlier.
fn render(now: &Value, before: Option<&Value>) -> String {
    let mut lines = vec![summary(now), rails(now)];
    lines.push(row(&["ROUTE", "REQUESTS", "PER SECOND", "5XX"]));
    for route in list(now, "/routes") {
        let count = number(route, "/requests");
        let earlier = before.and_then(|before| {
            list(before, "/routes").find(|other| other.get("route") == route.get("route"))
        });
        let rate = earlier.map_or_else(String::new, |earlier| {
            format!("{:.1}", (count - number(earlier, "/requests")).max(0.0) / INTERVAL.as_secs_f64())
        });
        lines.push(row(&[&text(route, "/route"), &count.to_string(), &rate, &figure(route, "/errors")]));
    }
    for (pointer, titles, fields) in TABLES {
        let mut rows = list(now, pointer).peekable();
        if rows.peek().is_some() {
            lines.push(String::new());
            lines.push(row(titles));
            lines.extend(rows.map(|value| row(&fields.map(|field| text(value, field)))));
        }
    }
    lines.join("\n")
}

type Table = (&'static str, &'static [&'static str; 4], [&'static str; 4]);

/// Arrays of the figures: a line for each element.
const TABLES: [Table; 4] = [
    (
        "/servers",
        &["SERVER", "STATE", "REQUESTS", "CONNECTIONS"],
        ["/server", "/state", "/requests", "/connections"],
    ),
    ("/queue", &["CLASS", "IN FLIGHT", "WAITING", "SHED"], ["/class", "/in_flight", "/waiting", "/shed"]),
    ("/stores", &["CACHE", "ENTRIES", "BYTES", "EVICTED"], ["/store", "/entries", "/bytes", "/evicted"]),
    (
        "/listeners",
        &["LISTENER", "OPEN", "LIMIT", "TURNED AWAY"],
        ["/listener", "/open", "/limit", "/turned_away"],
    ),
];

fn summary(now: &Value) -> String {
    let minutes = number(now, "/uptime_s") / 60.0;
    let hits = now.pointer("/hit_ratio").and_then(Value::as_f64);
    let hits = hits.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0));
    format!(
        "railgate {}, up {minutes:.0} min. In flight: {}. Connections: {}. Hits: {hits}",
        text(now, "/version"),
        figure(now, "/in_flight"),
        figure(now, "/connections"),
    )
}

fn rails(now: &Value) -> String {
    let is_away = now.pointer("/rails/away") == Some(&Value::Bool(true));
    let outages: Vec<_> = list(now, "/rails/outages").filter_map(Value::as_str).collect();
    let state = match (is_away, outages.as_slice()) {
        (true, _) => format!("away ({}); {} requests wait", text(now, "/rails/cause"), figure(now, "/held")),
        (false, []) => "answers".to_owned(),
        (false, outages) => format!("fails: stale answers of {}", outages.join(" and ")),
    };
    format!("Rails {state}. Lines of the log dropped: {}\n", figure(now, "/log/dropped"))
}

/// The first column to the left, the others to the right.
fn row(cells: &[impl AsRef<str>; 4]) -> String {
    let [first, second, third, fourth] = cells.each_ref().map(AsRef::as_ref);
    let first: String = first.chars().take(38).collect();
    format!("{first:<38} {second:>13} {third:>13} {fourth:>12}")
}

fn list<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_default()
}

fn figure(value: &Value, pointer: &str) -> String {
    number(value, pointer).to_string()
}

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => quoted(text),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_picture_has_rates_and_fits_the_screen() {
        let figures = |requests: u64| {
            json!({
                "version": "0.1.0", "uptime_s": 125, "in_flight": 3, "connections": 12, "hit_ratio": 0.985,
                "rails": { "away": true, "cause": "refused", "outages": [] }, "held": 4,
                "routes": [{ "route": "authorized_keys", "requests": requests, "errors": 1 }],
                "servers": [{ "server": "unix:/\u{1b}[2J".to_owned() + &"x".repeat(90), "state": "healthy", "requests": 7 }],
                "queue": [], "stores": [{ "store": "positive", "entries": 5, "bytes": 900, "evicted": 0 }],
                "log": { "dropped": 0 },
            })
        };
        let picture = render(&figures(130), Some(&figures(100)));
        for part in [
            "up 2 min",
            "In flight: 3.",
            "Hits: 98.5 %",
            "away (refused); 4 requests wait",
            " 15.0 ",
            "healthy",
        ] {
            assert!(picture.contains(part), "{part}\n{picture}");
        }
        assert!(picture.lines().all(|line| line.chars().count() <= 80), "{picture}");
        assert!(!picture.contains('\u{1b}') && !picture.contains("CLASS"), "{picture}");
        assert!(render(&json!({}), None).contains("Hits: -"));
    }
}
