//! What operators see of a fleet: the metrics, the status page, and the commands.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::client::{Address, Request, eventually};
use super::harness::{Harness, Setup};
use super::valkey::Valkey;

/// A gateway in the fleet of `valkey`. Each has a Rails of its own, so that the fleet has to be named.
async fn member(valkey: &Valkey) -> Harness {
    Setup::new().text("fleet.url", &valkey.url()).text("fleet.identity", "test").start().await
}

/// Waits until this gateway hears so many others.
async fn wait_for_members(harness: &Harness, count: usize) {
    harness.wait_for_metric("railgate_fleet_state{state=\"following\"}", 1).await;
    harness.wait_for_metric("railgate_fleet_members", count).await;
}

async fn fleet_of(harness: &Harness) -> Value {
    let response = harness.gateway.admin.send(&Request::new("GET", "/status.json")).await;
    assert_eq!(response.status, 200, "{response}");
    response.json()["fleet"].clone()
}

/// Runs a command with this configuration. Its exit code, and what it prints.
async fn run(harness: &Harness, arguments: &[&str], config: &str) -> (Option<i32>, String) {
    let file = harness.dir.file("railgate.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.args(arguments).env("RAILGATE_CONFIG", file);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// The configuration of a running gateway, as its commands need it.
fn config_of(harness: &Harness, valkey: &Valkey) -> String {
    let Address::Tcp(admin) = &harness.gateway.admin else { unreachable!() };
    format!(
        "admin.address = '{admin}'\nupstream.url = '{}'\nauth.shell.secret_file = '{}'\nfleet.url = '{}'\n\
         fleet.identity = 'test'\n",
        harness.rails.address.url(),
        harness.dir.file("shell_secret").display(),
        valkey.url()
    )
}

#[tokio::test]
async fn metrics_page_and_commands_show_the_same_fleet() {
    let valkey = Valkey::start().await;
    let (one, other) = (member(&valkey).await, member(&valkey).await);
    wait_for_members(&one, 1).await;
    wait_for_members(&other, 1).await;

    let purge = Request::new("POST", "/purge").json(r#"{"username": "root"}"#);
    let purged = one.gateway.admin.send(&purge).await.json();
    assert_eq!(purged["fleet"], "told", "{purged}");
    other.wait_for_metric("railgate_fleet_heard_total", 1).await;
    other.wait_for_metric("railgate_fleet_delay_seconds_count", 1).await;
    one.wait_for_metric("railgate_fleet_told_total{result=\"told\"}", 1).await;
    for (harness, heard) in [(&one, 0), (&other, 1)] {
        for (series, value) in [
            ("railgate_fleet_heard_total", heard),
            ("railgate_fleet_doubts_total{reason=\"start\"}", 1),
            ("railgate_fleet_doubts_total{reason=\"anchor\"}", 0),
            ("railgate_fleet_outbox", 0),
            ("railgate_fleet_state{state=\"alone\"}", 0),
            ("railgate_fleet_unreadable_total{what=\"seal\"}", 0),
        ] {
            assert_eq!(harness.metric(series).await, Some(value), "{series}");
        }
    }

    assert!(one.metrics().await.contains("\nrailgate_fleet_untold_seconds 0.0\n"));
    let (fleet, of_other) = (fleet_of(&one).await, fleet_of(&other).await);
    assert_eq!((&fleet["fleet"], &fleet["state"]), (&of_other["fleet"], &json!("following")));
    let members = |fleet: &Value| -> Vec<Value> {
        fleet["members"].as_array().unwrap().iter().map(|member| member["process"].clone()).collect()
    };
    assert_eq!(members(&fleet), [of_other["process"].clone()]);
    assert_eq!(members(&of_other), [fleet["process"].clone()]);
    assert_eq!(of_other["members"][0]["purges"], 1);
    assert_eq!((&fleet["told"]["told"], &of_other["heard"]), (&json!(1), &json!(1)));
    assert!(of_other["delay"]["p99"].as_f64().is_some_and(|p99| p99 > 0.0), "{of_other}");
    let (name, process) = (fleet["fleet"].as_str().unwrap(), fleet["process"].as_str().unwrap());
    let info = format!("railgate_fleet_info{{fleet=\"{name}\",process=\"{process}\"}}");
    assert_eq!(one.metric(&info).await, Some(1), "{info}");

    let config = config_of(&one, &valkey);
    let (code, printed) = run(&one, &["fleet"], &config).await;
    assert_eq!(code, Some(0), "{printed}");
    for part in [name, process, "following: it hears", of_other["process"].as_str().unwrap(), "told 1"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let (code, printed) = run(&one, &["fleet", "--json"], &config).await;
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &printed["members"][0]["process"]), (Some(0), &of_other["process"]));

    // The same name without a running gateway, and the user that it needs.
    let (code, printed) = run(&one, &["check"], &config).await;
    assert!(code == Some(0) && printed.contains("\nok\n"), "{printed}");
    let acl = format!(
        "ACL SETUSER railgate on >PASSWORD resetkeys ~railgate:{{{name}}}:* resetchannels -@all +ping "
    );
    assert!(printed.contains(&acl), "{printed}");
    let documented = include_str!("../../config/README.md").replace("0011223344556677", name);
    let line = printed.lines().find(|line| line.starts_with("ACL ")).unwrap();
    assert!(documented.contains(&format!("\n    {line}\n")), "{line}");
    let (_, printed) = run(&one, &["doctor"], &config).await;
    for part in [
        &format!("the fleet {name}:"),
        "a master answers",
        "it takes what",
        "other gateways that it hears: 1",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert!(!printed.contains("RailgateFleet"), "{printed}");
}

#[tokio::test]
async fn a_gateway_without_its_fleet_says_so_everywhere() {
    let mut valkey = Valkey::start().await;
    let harness = member(&valkey).await;
    wait_for_members(&harness, 0).await;
    let config = config_of(&harness, &valkey);
    let (_, printed) = run(&harness, &["doctor"], &config).await;
    assert!(printed.contains("it hears no other gateway of its fleet"), "{printed}");

    valkey.kill();
    harness.wait_for_metric("railgate_fleet_state{state=\"alone\"}", 1).await;
    assert_eq!(harness.metric("railgate_fleet_state{state=\"following\"}").await, Some(0));
    let fleet = fleet_of(&harness).await;
    assert_eq!(fleet["state"], "alone");
    assert!(fleet["silent_s"].as_f64().is_some_and(|silent| silent >= 1.0), "{fleet}");
    let (code, printed) = run(&harness, &["fleet"], &config).await;
    assert!(code == Some(1) && printed.contains("alone: it does not hear the others"), "{printed}");
    let (code, printed) = run(&harness, &["doctor"], &config).await;
    for part in ["failed: no connection to 127.0.0.1:", "does Valkey listen there", "RailgateFleetAlone: "] {
        assert!(code == Some(1) && printed.contains(part), "{part}: {printed}");
    }
    // It is ready all the same.
    assert_eq!(harness.gateway.admin.send(&Request::new("GET", "/ready")).await.status, 200);

    valkey.restart().await;
    wait_for_members(&harness, 0).await;
    assert_eq!(run(&harness, &["fleet"], &config).await.0, Some(0));
    eventually("the doubt", async || {
        harness.metric("railgate_fleet_doubts_total{reason=\"server\"}").await.filter(|count| *count > 0)
    })
    .await;
}

#[tokio::test]
async fn the_doctor_knows_what_is_wrong_with_a_valkey() {
    let (valkey, master) = (Valkey::start().await, Valkey::start().await);
    let harness = Harness::new().await;
    let config = config_of(&harness, &valkey);
    let examine = async || run(&harness, &["doctor"], &config).await.1;
    let printed = examine().await;
    assert!(printed.contains("it is in no fleet"), "its configuration is another one: {printed}");

    valkey.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    assert!(examine().await.contains("its maxmemory-policy is allkeys-lru"));
    valkey.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    valkey.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert!(examine().await.contains("raise its maxmemory"));
    valkey.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    for (denied, expected) in [
        ("-xadd", "give its user what `railgate check` prints"),
        ("-info", "it does not say which server it is"),
        ("-xrevrange", "XREVRANGE was refused: NOPERM"),
    ] {
        valkey.command(&["ACL", "SETUSER", "default", denied]).await;
        let printed = examine().await;
        assert!(printed.contains(expected), "{expected}: {printed}");
        valkey.command(&["ACL", "SETUSER", "default", "+@all"]).await;
    }
    valkey.command(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await;
    assert!(examine().await.contains("fleet.url leads to a replica"));
    valkey.command(&["REPLICAOF", "NO", "ONE"]).await;
    // Nothing was left behind.
    assert_eq!(valkey.command(&["DBSIZE"]).await, redis::Value::Int(0));
    valkey.command(&["CONFIG", "SET", "requirepass", "s3cret"]).await;
    let printed = examine().await;
    assert!(
        printed.contains("neither user nor password (NOAUTH)") && !printed.contains("s3cret"),
        "{printed}"
    );
}

#[tokio::test]
async fn without_a_fleet_there_is_no_sign_of_one() {
    let harness = Harness::new().await;
    assert!(!harness.metrics().await.contains("railgate_fleet"));
    assert_eq!(fleet_of(&harness).await, Value::Null);
    let Address::Tcp(admin) = &harness.gateway.admin else { unreachable!() };
    let (code, printed) = run(&harness, &["fleet"], &format!("admin.address = '{admin}'\n")).await;
    assert!(code == Some(1) && printed.contains("is in no fleet"), "{printed}");
}
