//! `railgate purge`, `inspect` and `servers`: drop and show what a gateway that runs has in memory, and
//! what it knows of the servers of Rails, over its admin listener.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use http::{Method, StatusCode};
use railgate::config::{self, Settings};
use railgate::server::Endpoint;
use railgate::upstream::{self, Upstream, UpstreamTarget};
use serde_json::{Map, Value};

use super::{ConfigFile, client, say, say_error};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("meant").required(true).args(MEANT))]
// A usage is never wrapped.
#[command(override_usage = "railgate purge [--soft] --config <FILE>
           <--ssh-key <KEY>|--key-id <ID>|--user-id <ID>|--username <NAME>|
            --route <ROUTE>|--all>")]
pub(super) struct Purge {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    what: What,
    /// Only mark them stale: they are still given while Rails is asked anew, and while it fails
    #[arg(long)]
    soft: bool,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("meant").args(MEANT))]
pub(super) struct Inspect {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    what: What,
}

#[derive(Debug, clap::Args)]
pub(super) struct Servers {
    #[command(flatten)]
    file: ConfigFile,
    /// Give a server no more requests; it ends those that it has. As it is shown: `HOST:PORT`, or
    /// `unix:/PATH`
    #[arg(long, value_name = "SERVER", conflicts_with = "undrain")]
    drain: Option<String>,
    /// Give it requests again
    #[arg(long, value_name = "SERVER")]
    undrain: Option<String>,
}

const MEANT: [&str; 6] = ["ssh_key", "key_id", "user_id", "username", "route", "all"];

#[derive(Debug, clap::Args)]
#[group(skip)]
struct What {
    /// What is known of an SSH key: Base64, a line of a .pub file, or a fingerprint (SHA256:…)
    #[arg(long, value_name = "KEY")]
    ssh_key: Option<String>,
    /// Of the key row with this id in GitLab: the SSH key that it is, and the user behind it
    #[arg(long, value_name = "ID")]
    key_id: Option<u64>,
    /// Of the user with this id, and the keys that are known to be theirs
    #[arg(long, value_name = "ID")]
    user_id: Option<u64>,
    /// The same by name
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// All answers of an endpoint: `authorized_keys`, `discover` or `check`
    #[arg(long)]
    route: Option<String>,
    /// All answers
    #[arg(long)]
    all: bool,
}

impl What {
    /// What the body of a request says of it. Whether it can be meant, the gateway says.
    fn into_json(self) -> Map<String, Value> {
        let said = [
            ("ssh_key", self.ssh_key.map(Value::from)),
            ("key_id", self.key_id.map(Value::from)),
            ("user_id", self.user_id.map(Value::from)),
            ("username", self.username.map(Value::from)),
            ("route", self.route.map(Value::from)),
            ("all", self.all.then_some(Value::Bool(true))),
        ];
        said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

pub(super) fn purge(options: Purge) -> ExitCode {
    let mut said = options.what.into_json();
    if options.soft {
        said.insert("soft".to_owned(), Value::Bool(true));
    }
    told(&options.file, "/purge", &Value::Object(said).to_string(), |answer| {
        Some(format!("{} answers purged", answer.get("purged")?.as_u64()?))
    })
}

/// Prints JSON, an entry a line, so that both people and `jq` can read it.
pub(super) fn inspect(options: Inspect) -> ExitCode {
    let said = options.what.into_json();
    let body = if said.is_empty() { String::new() } else { Value::Object(said).to_string() };
    told(&options.file, "/inspect", &body, |answer| {
        let Some(entries) = answer.get("entries").and_then(Value::as_array) else {
            return answer.get("authorized_keys").map(|_| answer.to_string());
        };
        let shown = format!("{} of {} entries", entries.len(), answer.get("of")?.as_u64()?);
        Some(entries.iter().map(Value::to_string).chain([shown]).collect::<Vec<_>>().join("\n"))
    })
}

/// What is printed of a server, in this order.
const SHOWN: [&str; 7] = ["server", "state", "why", "backup", "requests", "connections", "failures_in_a_row"];

/// Prints JSON, a server a line.
pub(super) fn servers(options: Servers) -> ExitCode {
    let drain = options.drain.map(|server| (server, true));
    let said = drain.or(options.undrain.map(|server| (server, false)));
    let body =
        said.map(|(server, drain)| serde_json::json!({ "server": server, "drain": drain }).to_string());
    let line = |server: &Value| {
        let shown = SHOWN.iter().filter_map(|name| Some(format!("\"{name}\":{}", server.get(name)?)));
        format!("{{{}}}", shown.collect::<Vec<_>>().join(","))
    };
    told(&options.file, "/servers", &body.unwrap_or_default(), |answer| {
        let servers = answer.get("servers")?.as_array()?;
        Some(servers.iter().map(line).collect::<Vec<_>>().join("\n"))
    })
}

/// Sends `body`, and prints what `read` makes of the answer, or what is wrong.
fn told(file: &ConfigFile, path: &str, body: &str, read: impl FnOnce(&Value) -> Option<String>) -> ExitCode {
    let settings = match config::load(&file.config) {
        Ok(loaded) => loaded.settings,
        Err(problems) => {
            say_error(&problems.to_string());
            return ExitCode::FAILURE;
        }
    };
    let answer = client::block_on(send(&settings, path, body));
    let outcome = answer.and_then(|(status, answer)| {
        read(&answer).ok_or_else(|| {
            let said = answer.get("message").and_then(Value::as_str);
            let said = said.map_or_else(|| status.to_string(), str::to_owned);
            format!("the gateway on admin.address {} said: {said}", settings.admin)
        })
    });
    match outcome {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say_error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn send(settings: &Settings, path: &str, body: &str) -> Result<(StatusCode, Value), String> {
    let admin = &settings.admin;
    let target =
        UpstreamTarget::parse(&url(admin)).map_err(|error| format!("admin.address {admin}: {error}"))?;
    let gateway = Upstream::standalone(upstream::UpstreamSettings::new(target));
    let answer = client::send(&gateway, Method::POST, path, settings.admin_token.as_ref(), body).await;
    answer.map_err(|error| {
        format!(
            "no answer of a gateway on admin.address {admin}: {error}; does it run, with this configuration?"
        )
    })
}

/// Where a listener can be reached from this machine.
fn url(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp(address) => {
            let mut address = *address;
            match address.ip() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                _ => {}
            }
            format!("http://{address}")
        }
        Endpoint::Unix { path, .. } => {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
            let escape =
                |byte: &u8| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
            format!(
                "http+unix://{}",
                path.as_os_str().as_encoded_bytes().iter().map(escape).collect::<String>()
            )
        }
    }
}
