//! `railgate purge`, `inspect` and `servers`: requests to the admin listener of a running gateway.

use std::process::ExitCode;

use http::{Method, StatusCode};
use railgate::config::{self, AdminSettings};
use serde_json::{Map, Value};

use super::client;
use super::config_file::ConfigFile;
use super::output::{print_config_error, print_error, print_line};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("selector").required(true).args(SELECTORS))]
// clap does not wrap a usage.
#[command(override_usage = "railgate purge [--soft] --config <FILE>
           <--ssh-key <KEY>|--key-id <ID>|--user-id <ID>|--username <NAME>|
            --route <ROUTE>|--all>")]
pub(super) struct PurgeOptions {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    selector: SelectorArgs,
    /// Only mark them stale: they are still served while they are refreshed, and while Rails fails
    #[arg(long)]
    soft: bool,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("selector").args(SELECTORS))]
pub(super) struct InspectOptions {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    selector: SelectorArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ServersOptions {
    #[command(flatten)]
    file: ConfigFile,
    /// Send no more requests to a server; those that it has go on. Named as in the output: `HOST:PORT`,
    /// or `unix:/PATH`
    #[arg(long, value_name = "SERVER", conflicts_with = "undrain")]
    drain: Option<String>,
    /// Send requests to a drained server again
    #[arg(long, value_name = "SERVER")]
    undrain: Option<String>,
}

const SELECTORS: [&str; 6] = ["ssh_key", "key_id", "user_id", "username", "route", "all"];

#[derive(Debug, clap::Args)]
#[group(skip)]
struct SelectorArgs {
    /// The answers for an SSH key: Base64, a line of a .pub file, or a fingerprint (SHA256:…)
    #[arg(long, value_name = "KEY")]
    ssh_key: Option<String>,
    /// The answers for the key with this id in GitLab: the SSH key, and the user behind it
    #[arg(long, value_name = "ID")]
    key_id: Option<u64>,
    /// The answers for the user with this id, and for the keys that are known to belong to that user
    #[arg(long, value_name = "ID")]
    user_id: Option<u64>,
    /// The same for the user with this name
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// All answers of an endpoint: `authorized_keys`, `discover` or `check`
    #[arg(long)]
    route: Option<String>,
    /// All answers
    #[arg(long)]
    all: bool,
}

impl SelectorArgs {
    /// The members of the request's JSON. The gateway checks their values.
    fn into_json(self) -> Map<String, Value> {
        let members = [
            ("ssh_key", self.ssh_key.map(Value::from)),
            ("key_id", self.key_id.map(Value::from)),
            ("user_id", self.user_id.map(Value::from)),
            ("username", self.username.map(Value::from)),
            ("route", self.route.map(Value::from)),
            ("all", self.all.then_some(Value::Bool(true))),
        ];
        members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

pub(super) fn purge(options: PurgeOptions) -> ExitCode {
    let mut selector = options.selector.into_json();
    if options.soft {
        selector.insert("soft".to_owned(), Value::Bool(true));
    }
    call(&options.file, "/purge", &Value::Object(selector).to_string(), |response| {
        let purged = response.get("purged")?.as_u64()?;
        Some(match response.get("fleet").and_then(Value::as_str) {
            None | Some("off") => format!("{purged} answers purged"),
            Some(fleet) => format!("{purged} answers purged here; fleet: {fleet}"),
        })
    })
}

/// Prints JSON, one entry per line, for people and `jq`.
pub(super) fn inspect(options: InspectOptions) -> ExitCode {
    let selector = options.selector.into_json();
    let body = if selector.is_empty() { String::new() } else { Value::Object(selector).to_string() };
    call(&options.file, "/inspect", &body, |response| {
        let Some(entries) = response.get("entries").and_then(Value::as_array) else {
            return response.get("authorized_keys").map(|_| response.to_string());
        };
        let count = format!("{} of {} entries", entries.len(), response.get("of")?.as_u64()?);
        Some(entries.iter().map(Value::to_string).chain([count]).collect::<Vec<_>>().join("\n"))
    })
}

/// The fields of a server that are printed, in this order.
const SERVER_FIELDS: [&str; 7] =
    ["server", "state", "why", "backup", "requests", "connections", "failures_in_a_row"];

/// Prints JSON, one server per line.
pub(super) fn servers(options: ServersOptions) -> ExitCode {
    let drain = options.drain.map(|server| (server, true));
    let change = drain.or(options.undrain.map(|server| (server, false)));
    let body =
        change.map(|(server, drain)| serde_json::json!({ "server": server, "drain": drain }).to_string());
    let line = |server: &Value| {
        let fields =
            SERVER_FIELDS.iter().filter_map(|name| Some(format!("\"{name}\":{}", server.get(name)?)));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    };
    call(&options.file, "/servers", &body.unwrap_or_default(), |response| {
        let servers = response.get("servers")?.as_array()?;
        Some(servers.iter().map(line).collect::<Vec<_>>().join("\n"))
    })
}

/// Sends `body`, and prints the response as `format` formats it, or an error.
fn call(
    file: &ConfigFile,
    path: &str,
    body: &str,
    format: impl FnOnce(&Value) -> Option<String>,
) -> ExitCode {
    let admin = match config::load_admin(&file.config) {
        Ok(admin) => admin,
        Err(error) => {
            print_config_error(&error);
            return ExitCode::FAILURE;
        }
    };
    let response = client::block_on(send(&admin, path, body));
    let outcome = response.and_then(|(status, response)| {
        format(&response).ok_or_else(|| {
            let message = response.get("message").and_then(Value::as_str);
            let message = message.map_or_else(|| status.to_string(), str::to_owned);
            format!("the gateway on admin.address {} answered: {message}", admin.address)
        })
    });
    match outcome {
        Ok(text) => {
            print_line(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn send(admin: &AdminSettings, path: &str, body: &str) -> Result<(StatusCode, Value), String> {
    let address = &admin.address;
    let gateway =
        client::admin_listener(address).map_err(|error| format!("admin.address {address}: {error}"))?;
    let response = client::send(&gateway, Method::POST, path, admin.token.as_ref(), body).await;
    response.map_err(|error| {
        format!(
            "no response from a gateway on admin.address {address}: {error}; is it running, with this configuration?"
        )
    })
}
