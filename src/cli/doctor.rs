//! `railgate doctor`: looks at this machine, sends each server of Rails the requests that an experienced operator
//! would try first, looks at the counters of a running gateway, and prints what is wrong and what to do.

mod alerts;
mod diagnose;
mod finding;
mod fleet;
mod machine;
mod prometheus;
mod running;
mod scrape;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use railgate::auth::upstream_credential::{UpstreamCredential, UpstreamCredentialKind};
use railgate::body::{Body, Collected};
use railgate::config::{self, GatewayConfig};
use railgate::route::{Class, PREFIX};
use railgate::upstream::{
    self, Error, SendOptions, SendReport, Upstream, UpstreamAddress, UpstreamServerSettings, UpstreamState,
};
use serde_json::{Value, json};

use self::diagnose::{ProbeCredential, ProbeResponse, ProbeResults};
use self::finding::{Finding, Level};
use self::scrape::Scrape;
use super::client;
use super::config_file::ConfigFile;
use super::output::{print_config_error, print_line};

/// Bytes of the largest response body that is read.
const MAX_BODY: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Ask the Prometheus at this URL for its alerts, too
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// A file with the token that this Prometheus wants, as `Authorization: Bearer`
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    prometheus_token_file: Option<PathBuf>,
}

/// What was found so far. As text, each finding is printed at once.
struct Report {
    is_json: bool,
    findings: Vec<Value>,
    worst: Level,
}

impl Report {
    fn add(&mut self, subject: &str, findings: impl IntoIterator<Item = Finding>) {
        if !self.is_json {
            print_line(&format!("{subject}:"));
        }
        for finding in findings {
            self.worst = self.worst.max(finding.level);
            if self.is_json {
                self.findings.push(finding.to_json(subject));
            } else {
                print_line(&finding.to_string());
            }
        }
    }

    fn end(self) -> ExitCode {
        if self.is_json {
            print_line(&format!("{:#}", json!({ "worst": self.worst.as_str(), "findings": self.findings })));
        }
        if self.worst == Level::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Exits 0 if nothing has failed, despite warnings.
pub(super) fn main(options: &Options) -> ExitCode {
    let loaded = match config::load(&options.file.config) {
        Ok(loaded) => loaded,
        Err(error) => {
            print_config_error(&error);
            return ExitCode::FAILURE;
        }
    };
    let config = &loaded.config;
    let mut report = Report { is_json: options.json, findings: Vec::new(), worst: Level::Ok };
    let warnings = loaded.warnings.iter().map(|warning| Finding::warning(warning.to_string(), None));
    report.add("this machine", warnings.chain(machine::findings(config)));
    for server in &config.upstream.servers {
        let findings = match client::block_on(async { Ok(probe(config, server).await) }) {
            Ok(results) => diagnose::findings(&results),
            Err(error) => vec![Finding::failed(error, "check the limits of this machine")],
        };
        report.add(&server.name(), findings);
    }
    if let Ok(Some((name, findings))) = client::block_on(async { Ok(fleet::examine(config).await) }) {
        report.add(&format!("the fleet {name}"), findings);
    }
    let subject = format!("the gateway on {}", config.admin.address);
    report.add(&subject, examine_gateway(config));
    if let Some(url) = &options.prometheus {
        report.add(
            &format!("the alerts of {url}"),
            prometheus::examine(url, options.prometheus_token_file.as_deref()),
        );
    }
    report.end()
}

/// What a running gateway with this configuration counts. It need not run.
fn examine_gateway(config: &GatewayConfig) -> Vec<Finding> {
    let metrics = client::block_on(async {
        let gateway = client::admin_listener(&config.admin.address)?;
        client::fetch(&gateway, Method::GET, "/metrics", None, "").await
    });
    match metrics {
        Ok((StatusCode::OK, text)) => {
            let text = String::from_utf8_lossy(&text);
            let scrape = Scrape::parse(&text);
            let mut found = running::findings(&scrape, (config.hooks.is_some(), config.fleet.is_some()));
            found.extend(alerts::findings(&scrape, since_epoch().as_secs_f64()));
            found
        }
        Ok((status, _)) => {
            vec![Finding::failed(
                format!("it is no gateway: its /metrics is {status}"),
                "is admin.address right?",
            )]
        }
        Err(error) => vec![Finding::note(
            format!("it does not run, or with another configuration: {error}"),
            "examine it again once it runs: then its counters are looked at, too",
        )],
    }
}

/// The addresses of a host that is a name, as far as they are known in time.
async fn resolve(server: &UpstreamServerSettings) -> Option<(String, Vec<IpAddr>)> {
    let UpstreamAddress::Tcp(host, port) = &server.target.address else { return None };
    if host.parse::<IpAddr>().is_ok() {
        return None;
    }
    let found = tokio::time::timeout(MAX_LOOKUP, tokio::net::lookup_host((host.as_str(), *port))).await;
    let mut addresses: Vec<_> = found.ok()?.ok()?.map(|address| address.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Some((host.clone(), addresses))
}

/// Of a name.
const MAX_LOOKUP: Duration = Duration::from_secs(5);

/// Sends one server each request once.
async fn probe(config: &GatewayConfig, server: &UpstreamServerSettings) -> ProbeResults {
    let alone = upstream::UpstreamSettings { servers: vec![server.clone()], ..config.upstream.clone() };
    let state = Arc::new(UpstreamState::new(&alone));
    let rails = Upstream::new(&alone, state);
    let (auth, upstream_credential) = (&config.auth, config.upstream_credential.as_ref());
    let credentials = match upstream_credential {
        Some(credential) => vec![(ProbeCredential::Translated, credential.clone())],
        None => vec![
            (
                ProbeCredential::Token,
                UpstreamCredential::new(UpstreamCredentialKind::Jwt, &auth.shell_secret),
            ),
            (
                ProbeCredential::Secret,
                UpstreamCredential::new(UpstreamCredentialKind::SharedSecret, &auth.shell_secret),
            ),
        ],
    };
    let mut results = ProbeResults {
        accepts_token: auth.accept_jwt,
        accepts_secret: auth.accept_shared_secret,
        now: now(),
        responses: Vec::new(),
        longest_target: None,
        max_target: config.limits.target,
        page: None,
        name: resolve(server).await,
    };
    for (kind, credential) in &credentials {
        let response = send_probe(&rails, &format!("{PREFIX}/check"), Some(credential)).await;
        let is_unreachable = matches!(response, ProbeResponse::Failed { .. });
        results.responses.push((*kind, response));
        if is_unreachable {
            return results;
        }
    }
    // With a credential that the server accepts, the longest target that the gateway accepts.
    let accepted = results.responses.iter().position(|(_, response)| response.status() == Some(200));
    if let Some((_, credential)) = accepted.and_then(|accepted| credentials.get(accepted)) {
        let path = format!("{PREFIX}/check?filler=");
        let filler = "x".repeat(config.limits.target.saturating_sub(1024 + path.len()));
        results.longest_target = Some(send_probe(&rails, &format!("{path}{filler}"), Some(credential)).await);
        results.page = Some(send_probe(&rails, "/404.html", None).await);
    }
    results
}

async fn send_probe(rails: &Upstream, path: &str, credential: Option<&UpstreamCredential>) -> ProbeResponse {
    let mut headers = HeaderMap::new();
    if let Some(credential) = credential {
        credential.apply(&mut headers, now());
    }
    let request = Request::builder().uri(path);
    let request = request.header(header::USER_AGENT, "railgate (doctor)").body(Body::empty());
    let Ok(mut request) = request else { return ProbeResponse::failed("the request is invalid", None) };
    request.headers_mut().extend(headers);
    let plan = SendOptions { class: Class::Lookup, ..SendOptions::default() };
    match rails.send(Box::new(request), &plan, &mut SendReport::default()).await {
        Ok(response) => read(response).await,
        Err(error) => ProbeResponse::failed(&error.chain(), Some(advice_for(&error))),
    }
}

async fn read(response: Response<Body>) -> ProbeResponse {
    let (head, body) = response.into_parts();
    match body.collect_up_to(MAX_BODY).await {
        Ok(Collected::Complete(body)) => ProbeResponse::Received { head: Box::new(head), body },
        Ok(Collected::TooLong(_)) => ProbeResponse::Received { head: Box::new(head), body: Bytes::new() },
        Err(error) => ProbeResponse::failed(&format!("the answer broke off: {error}"), None),
    }
}

/// What to do about the error: its own hint, or general advice.
fn advice_for(error: &Error) -> String {
    let advice = match error {
        Error::Connect(_, error) => diagnose::connect_advice(error.cause()),
        _ => "see the log of Rails, and of the proxy in front of it",
    };
    error.hint().unwrap_or(advice).to_owned()
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn now() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX)
}
