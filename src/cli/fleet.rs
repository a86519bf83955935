//! `railgate fleet`: how a running gateway is in its fleet, and who else is there.

use std::process::ExitCode;
use std::time::Duration;

use http::{Method, StatusCode};
use railgate::config::{self, AdminSettings};
use serde_json::{Map, Value};

use super::client;
use super::config_file::ConfigFile;
use super::output::{print_config_error, print_error, print_line};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// For the figures to arrive.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Exits 0 if the gateway hears the others and they hear it, and 1 if not, or if it is in no fleet.
pub(super) fn main(options: &Options) -> ExitCode {
    let admin = match config::load_admin(&options.file.config) {
        Ok(admin) => admin,
        Err(error) => {
            print_config_error(&error);
            return ExitCode::FAILURE;
        }
    };
    match client::block_on(ask(&admin)) {
        Ok(fleet) => {
            print_line(&if options.json { fleet.to_string() } else { render(&fleet) });
            let is_following = fleet.get("state").and_then(Value::as_str) == Some("following");
            if is_following { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            print_error(&format!("admin.address {}: {error}", admin.address));
            ExitCode::FAILURE
        }
    }
}

async fn ask(admin: &AdminSettings) -> Result<Value, String> {
    let gateway = client::admin_listener(&admin.address)?;
    let asking = client::send(&gateway, Method::GET, "/status.json", None, "");
    let answer = tokio::time::timeout(TIMEOUT, asking).await;
    let (status, figures) = answer.map_err(|_| "no answer in time".to_owned())??;
    match figures.get("fleet") {
        Some(Value::Null) => Err("this gateway is in no fleet: its configuration has no [fleet]".to_owned()),
        Some(fleet) if status == StatusCode::OK => Ok(fleet.clone()),
        _ => Err(format!("it has no figures of a fleet ({status}); is it a gateway of this version?")),
    }
}

/// What each state means.
const STATES: [(&str, &str); 4] = [
    ("joining", "it has heard nothing yet; answers live for alone_ttl only"),
    ("following", "it hears the others, and they hear it"),
    ("untold", "the others do not hear it, and may give old answers"),
    ("alone", "it does not hear the others; answers live for alone_ttl only"),
];

fn render(fleet: &Value) -> String {
    let text = |name: &str| fleet.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    let number = |name: &str| fleet.get(name).and_then(Value::as_u64).unwrap_or_default();
    let state = text("state");
    let meaning = STATES.iter().find(|(name, _)| *name == state).map_or("", |(_, meaning)| meaning);
    let mut waiting = number("outbox").to_string();
    if let Some(untold) = fleet.get("untold_s").and_then(Value::as_f64) {
        waiting = format!("{waiting}, for {untold:.1} s");
    }
    let delay = ["p50", "p99"].map(|name| milliseconds(fleet.pointer(&format!("/delay/{name}"))));
    let members = fleet.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut lines = vec![
        format!("fleet          {}", text("fleet")),
        format!("this process   {}", text("process")),
        format!("state          {state}: {meaning}"),
        format!("last heard     {}", ago(fleet.get("silent_s"))),
        format!("not told yet   {waiting}"),
        format!("told           {}", counts(fleet.get("told"))),
        format!("heard          {}, after {} (p50) and {} (p99)", number("heard"), delay[0], delay[1]),
        format!("told again     {}", number("again")),
        format!("doubts         {}", counts(fleet.get("doubts"))),
        format!("unreadable     {}", counts(fleet.get("unreadable"))),
        format!("connections    {}", counts(fleet.get("connections"))),
        String::new(),
        format!("{:<18} {:>12} {:>12}  {}", "OTHER GATEWAYS", "HEARD", "PURGES TOLD", "HOST"),
    ];
    lines.extend(members.iter().map(|member| {
        let process = member.get("process").and_then(Value::as_str).unwrap_or("-");
        let purges = member.get("purges").and_then(Value::as_u64).unwrap_or_default();
        let host = member.get("host").and_then(Value::as_str).filter(|host| !host.is_empty()).unwrap_or("-");
        format!("{process:<18} {:>12} {purges:>12}  {host:.34}", ago(member.get("heard_s")))
    }));
    if members.is_empty() {
        lines.push("none was heard".to_owned());
    }
    lines.join("\n")
}

fn ago(seconds: Option<&Value>) -> String {
    seconds.and_then(Value::as_f64).map_or_else(|| "never".to_owned(), |s| format!("{s:.1} s ago"))
}

fn milliseconds(seconds: Option<&Value>) -> String {
    seconds.and_then(Value::as_f64).map_or_else(|| "-".to_owned(), |s| format!("{:.1} ms", s * 1e3))
}

/// Those that are not zero.
fn counts(counts: Option<&Value>) -> String {
    let empty = Map::new();
    let counts = counts.and_then(Value::as_object).unwrap_or(&empty);
    let some = counts.iter().filter(|(_, count)| count.as_u64() != Some(0));
    let some: Vec<_> = some.map(|(name, count)| format!("{name} {count}")).collect();
    if some.is_empty() { "none".to_owned() } else { some.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fleet_is_shown_in_80_columns_with_what_its_state_means() {
        let mut fleet = json!({
            "fleet": "0011223344556677", "process": "8899aabbccddeeff", "state": "following", "silent_s": 0.25,
            "outbox": 0, "untold_s": null, "members": [
                {"process": "0123456789abcdef", "host": "railgate-1", "heard_s": 12.04, "purges": 3},
                {"process": "89abcdef01234567", "host": "x".repeat(64), "heard_s": 0.5, "purges": 0},
                {"process": "cdef0123456789ab", "host": "", "heard_s": 1.0, "purges": 0},
            ],
            "connections": {"opened": 2, "failed": 0}, "told": {"told": 5, "queued": 0}, "heard": 7, "again": 0,
            "doubts": {"start": 1}, "unreadable": {"seal": 0}, "delay": {"p50": 0.0004, "p99": null},
        });
        let shown = render(&fleet);
        for line in [
            "state          following: it hears the others, and they hear it",
            "last heard     0.2 s ago",
            "not told yet   0",
            "told           told 5",
            "heard          7, after 0.4 ms (p50) and - (p99)",
            "unreadable     none",
            "0123456789abcdef     12.0 s ago            3  railgate-1",
            "cdef0123456789ab      1.0 s ago            0  -",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
        if let Value::Object(members) = &mut fleet {
            members.extend([
                ("state".to_owned(), json!("untold")),
                ("outbox".to_owned(), json!(2)),
                ("untold_s".to_owned(), json!(3.0)),
                ("silent_s".to_owned(), json!(null)),
                ("members".to_owned(), json!([])),
            ]);
        }
        let shown = render(&fleet);
        for line in ["not told yet   2, for 3.0 s", "last heard     never", "none was heard"] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
        assert!(shown.lines().all(|line| line.len() <= 80), "{shown}");
    }
}
