//! `railgate purge`: drops answers of a gateway that runs, over its admin listener.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use railgate::body::Body;
use railgate::config::{self, Settings};
use railgate::server::Endpoint;
use railgate::upstream::{self, Target, Upstream};
use serde_json::{Map, Value};

use super::{ConfigFile, say, say_error};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    what: What,
    /// Only mark them stale: they are still given while Rails is asked anew, and while it fails
    #[arg(long)]
    soft: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
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

impl Options {
    /// The body of `POST /purge`. Whether it can be meant, the gateway says.
    fn to_json(&self) -> Value {
        let Self { what, soft, .. } = self;
        let said = [
            ("ssh_key", what.ssh_key.clone().map(Value::from)),
            ("key_id", what.key_id.map(Value::from)),
            ("user_id", what.user_id.map(Value::from)),
            ("username", what.username.clone().map(Value::from)),
            ("route", what.route.clone().map(Value::from)),
            ("all", what.all.then_some(Value::Bool(true))),
            ("soft", soft.then_some(Value::Bool(true))),
        ];
        Value::Object(
            said.into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect::<Map<_, _>>(),
        )
    }
}

pub(super) fn main(options: &Options) -> ExitCode {
    let settings = match config::load(&options.file.config) {
        Ok(loaded) => loaded.settings,
        Err(problems) => {
            say_error(&problems.to_string());
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime
        .map_err(|error| format!("cannot start the runtime: {error}"))
        .and_then(|runtime| runtime.block_on(purge(&settings, &options.to_json())));
    match outcome {
        Ok(purged) => {
            say(&format!("{purged} answers purged"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say_error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn purge(settings: &Settings, what: &Value) -> Result<u64, String> {
    let admin = &settings.admin;
    let target = Target::parse(&url(admin)).map_err(|error| format!("admin.address {admin}: {error}"))?;
    let gateway = Upstream::new(upstream::Settings::new(target), Arc::default());
    let mut request = Request::new(Body::from(Bytes::from(what.to_string())));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static("/purge");
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    if let Some(shown) = settings.admin_token.as_ref().and_then(railgate::secret::Token::to_header) {
        headers.insert(header::AUTHORIZATION, shown);
    }
    let answer = gateway.send(request).await;
    let answer = answer.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("no answer of a gateway on admin.address {admin}: {error}{cause}; does it run, with this configuration?")
    })?;
    let status = answer.status();
    let body =
        answer.into_body().collect().await.map_err(|error| format!("the answer broke off: {error}"))?;
    let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    if let Some(purged) = body.get("purged").and_then(Value::as_u64) {
        return Ok(purged);
    }
    let said = body.get("message").and_then(Value::as_str).map_or_else(|| status.to_string(), str::to_owned);
    Err(format!("the gateway on admin.address {admin} said: {said}"))
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
            format!("http+unix://{}", path.display().to_string().replace('%', "%25").replace('/', "%2F"))
        }
    }
}
