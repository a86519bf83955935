//! `railgate doctor`: sends each server of Rails the requests that an experienced operator would try first, and
//! prints what is wrong and what to do.

mod diagnose;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use railgate::auth::upstream_credential::{UpstreamCredential, UpstreamCredentialKind};
use railgate::body::{Body, Collected};
use railgate::config::{self, GatewayConfig};
use railgate::route::{Class, PREFIX};
use railgate::upstream::{
    self, Error, SendOptions, SendReport, Upstream, UpstreamServerSettings, UpstreamState,
};

use self::diagnose::{Finding, Level, ProbeCredential, ProbeResponse, ProbeResults};
use super::client;
use super::output::{print_config_error, print_line};

/// Bytes of the largest response body that is read.
const MAX_BODY: usize = 64 * 1024;

/// Exits 0 if nothing has failed, despite warnings.
pub(super) fn main(file: &Path) -> ExitCode {
    let loaded = match config::load(file) {
        Ok(loaded) => loaded,
        Err(error) => {
            print_config_error(&error);
            return ExitCode::FAILURE;
        }
    };
    let mut has_failed = false;
    let mut report = |finding: Finding| {
        has_failed |= finding.level == Level::Failed;
        print_line(&finding.to_string());
    };
    for warning in &loaded.warnings {
        report(Finding::warning(warning.to_string(), None));
    }
    let config = &loaded.config;
    for server in &config.upstream.servers {
        print_line(&format!("{}:", server.name()));
        match client::block_on(async { Ok(probe(config, server).await) }) {
            Ok(results) => diagnose::findings(&results).into_iter().for_each(&mut report),
            Err(error) => report(Finding::failed(error, "check the limits of this machine")),
        }
    }
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

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
    };
    for (kind, credential) in &credentials {
        let response = send_probe(&rails, "/check", credential).await;
        let is_unreachable = matches!(response, ProbeResponse::Failed { .. });
        results.responses.push((*kind, response));
        if is_unreachable {
            return results;
        }
    }
    // With a credential that the server accepts, the longest target that the gateway accepts.
    let accepted = results.responses.iter().position(|(_, response)| response.status() == Some(200));
    if let Some((_, credential)) = accepted.and_then(|accepted| credentials.get(accepted)) {
        let path = "/check?filler=";
        let filler = "x".repeat(config.limits.target.saturating_sub(1024 + PREFIX.len() + path.len()));
        results.longest_target = Some(send_probe(&rails, &format!("{path}{filler}"), credential).await);
    }
    results
}

async fn send_probe(rails: &Upstream, endpoint: &str, credential: &UpstreamCredential) -> ProbeResponse {
    let mut headers = HeaderMap::new();
    credential.apply(&mut headers, now());
    let request = Request::builder().uri(format!("{PREFIX}{endpoint}"));
    let request = request.header(header::USER_AGENT, "railgate (doctor)").body(Body::empty());
    let Ok(mut request) = request else { return ProbeResponse::failed("the request is invalid", None) };
    request.headers_mut().extend(headers);
    let plan = SendOptions { class: Class::Lookup, ..SendOptions::default() };
    match rails.send(request, &plan, &mut SendReport::default()).await {
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

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
