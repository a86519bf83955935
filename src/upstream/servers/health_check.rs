//! Health checks: each of several servers gets a request at intervals.

use futures_util::future::join_all;
use http::header::{self, HeaderValue};
use http::{Request, Response, Uri};

use super::health::CheckFailure;
use super::server::UpstreamServer;
use crate::body::Body;
use crate::clock::Clock;
use crate::upstream::response::is_away_response;
use crate::upstream::settings::{HealthCheckSettings, UpstreamSettings};
use crate::upstream::state::UpstreamState;

/// Bytes of the largest response body that is read.
const MAX_CHECK_BODY: usize = 64 * 1024;

/// Checks all servers, if there is more than one.
#[derive(Debug)]
pub struct HealthChecker {
    servers: Vec<UpstreamServer>,
    uri: Option<Uri>,
    settings: HealthCheckSettings,
}

impl HealthChecker {
    /// Results are recorded in `state`, which must be made from the same settings.
    pub fn new(all: &UpstreamSettings, state: &UpstreamState) -> Self {
        // A connection for each check: whether one can be made is half of it.
        let all = UpstreamSettings { max_idle: 0, ..all.clone() };
        let uri = all.has_health_checks().then(|| all.health_checks.uri(all.relative_root())).flatten();
        Self { servers: UpstreamServer::all(&all, &state.servers()), uri, settings: all.health_checks }
    }

    /// Runs until it is dropped.
    pub async fn run(&self) {
        if let Some(uri) = &self.uri {
            join_all(self.servers.iter().map(|server| check_repeatedly(server, uri, &self.settings))).await;
        }
    }
}

async fn check_repeatedly(server: &UpstreamServer, uri: &Uri, settings: &HealthCheckSettings) {
    let health = &server.state.health;
    loop {
        let outcome = tokio::time::timeout(settings.timeout, check_once(server, uri)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            Err(CheckFailure {
                why: format!("no answer within {:?}", settings.timeout),
                rails_responded: false,
            })
        });
        let now = Clock::System.now();
        health.record_check(outcome, (settings.healthy_after, settings.unhealthy_after), now);
        // Spread, so that several gateways do not check at the same time.
        let interval = settings.interval.mul_f32(0.9 + fastrand::f32() / 5.0);
        let mut next = health.next_check(interval, now);
        while tokio::select! {
            () = tokio::time::sleep_until(next.into()) => false,
            () = health.rescheduled() => true,
        } {
            next = next.min(health.next_check(interval, Clock::System.now()));
        }
    }
}

/// Whether the server responds that it is healthy.
async fn check_once(server: &UpstreamServer, uri: &Uri) -> Result<(), CheckFailure> {
    match fetch(server, uri).await {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => {
            let why = format!("{uri} responded {}", response.status());
            Err(CheckFailure { why, rails_responded: !is_away_response(&response) })
        }
        Err(why) => Err(CheckFailure { why, rails_responded: false }),
    }
}

/// Requests a page without a credential.
pub(in crate::upstream) async fn fetch(server: &UpstreamServer, uri: &Uri) -> Result<Response<()>, String> {
    let mut request = Request::new(Body::empty());
    request.uri_mut().clone_from(uri);
    let headers = request.headers_mut();
    headers.insert(header::HOST, server.host.clone());
    headers.insert(header::USER_AGENT, HeaderValue::from_static("railgate (health check)"));
    let response = server.connections.send_probe(&mut request).await.map_err(|error| error.to_string())?;
    let (head, body) = response.into_parts();
    // To its end, or Rails would take it for a client that left.
    body.collect_up_to(MAX_CHECK_BODY).await.map_err(|error| format!("the answer broke off: {error}"))?;
    Ok(Response::from_parts(head, ()))
}
