//! Health checks: each of several servers is asked again and again whether it is well.

use std::time::Duration;

use futures_util::future::join_all;
use http::header::{self, HeaderValue};
use http::{Request, Response, Uri};

use super::attempt::says_that_rails_is_away;
use super::health::Bad;
use super::pool::Trouble;
use super::server::Server;
use super::target::below_root;
use super::{Settings as All, State};
use crate::body::Body;
use crate::clock::Clock;

/// Bytes of the largest answer that is read.
const MOST: usize = 64 * 1024;

/// What `[upstream.health]` of the configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is asked for, below the relative URL root. Any 2xx is good.
    pub path: String,
    /// How often; never, if it is zero.
    pub interval: Duration,
    /// How long an answer may take, connecting included.
    pub timeout: Duration,
    /// How many good ones in a row it takes until an unhealthy server takes part again.
    pub healthy_after: u32,
    /// How many bad ones in a row make a server unhealthy.
    pub unhealthy_after: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // GitLab's own, of the process that answers, not of all that it needs.
            path: "/-/readiness".to_owned(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }
}

impl Settings {
    /// What is asked for.
    pub(super) fn uri(&self, root: &str) -> Option<Uri> {
        below_root(root, Uri::try_from(self.path.as_str()).ok()?)
    }
}

/// Asks, if there is more than one server.
#[derive(Debug)]
pub struct Watch {
    servers: Vec<Server>,
    uri: Option<Uri>,
    settings: Settings,
}

impl Watch {
    /// What is found out is written down in `state`, which has to be made of the same settings.
    pub fn new(all: &All, state: &State) -> Self {
        // A connection for each check: whether there is one to be had is the half of it.
        let all = All { max_idle: 0, ..all.clone() };
        let uri = all.has_checks().then(|| all.checks.uri(all.relative_root())).flatten();
        Self { servers: Server::all(&all, state), uri, settings: all.checks }
    }

    /// Asks until it is dropped.
    pub async fn run(self) {
        if let Some(uri) = &self.uri {
            join_all(self.servers.iter().map(|server| watch_one(server, uri, &self.settings))).await;
        }
    }
}

async fn watch_one(server: &Server, uri: &Uri, settings: &Settings) {
    let health = &server.state.health;
    loop {
        let outcome = tokio::time::timeout(settings.timeout, ask(server, uri)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            Err(Bad { why: format!("no answer within {:?}", settings.timeout), is_answered: false })
        });
        let now = Clock::System.now();
        health.checked(outcome, (settings.healthy_after, settings.unhealthy_after), now);
        // Of several gateways, not all at the same time.
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

/// Whether it answers that it is well.
async fn ask(server: &Server, uri: &Uri) -> Result<(), Bad> {
    match get(server, uri).await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => {
            let why = format!("{uri} said {}", answer.status());
            Err(Bad { why, is_answered: !says_that_rails_is_away(&answer) })
        }
        Err(why) => Err(Bad { why, is_answered: false }),
    }
}

/// Asks for a page without a credential.
pub(super) async fn get(server: &Server, uri: &Uri) -> Result<Response<()>, String> {
    let mut request = Request::new(Body::empty());
    request.uri_mut().clone_from(uri);
    let headers = request.headers_mut();
    headers.insert(header::HOST, server.host.clone());
    headers.insert(header::USER_AGENT, HeaderValue::from_static("railgate (health check)"));
    let answer = server.connections.ask(request).await.map_err(|trouble| match trouble {
        Trouble::Connect(error, _) => format!("no connection: {error}"),
        Trouble::Sent(error, _) | Trouble::Refused(error) => format!("no answer: {error}"),
    })?;
    let (head, body) = answer.into_parts();
    // To its end, or Rails would take it for a client that left.
    body.collect_up_to(MOST).await.map_err(|error| format!("the answer broke off: {error}"))?;
    Ok(Response::from_parts(head, ()))
}
