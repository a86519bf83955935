//! What the responses of a server mean. Pure: responses in, findings out.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::response;
use railgate::upstream::UnreachableCause;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::finding::{Finding, Level};
use crate::cli::output::quoted;

/// Seconds by which clocks may differ without a warning. `Date` has whole seconds, and the response took some time.
const MAX_CLOCK_DIFFERENCE: i64 = 5;

/// The requests to a server, and its responses.
pub(super) struct ProbeResults {
    /// `auth.shell.accept` has `jwt`.
    pub(super) accepts_token: bool,
    /// `auth.shell.accept` has `shared_secret`.
    pub(super) accepts_secret: bool,
    /// In Unix seconds.
    pub(super) now: i64,
    /// To `check`, with each credential.
    pub(super) responses: Vec<(ProbeCredential, ProbeResponse)>,
    /// To `check` with the longest target.
    pub(super) longest_target: Option<ProbeResponse>,
    /// `limits.target`.
    pub(super) max_target: usize,
    /// To a page that Workhorse has, and Puma has not.
    pub(super) page: Option<ProbeResponse>,
    /// The host of the URL, if it is a name, and its addresses.
    pub(super) name: Option<(String, Vec<IpAddr>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeCredential {
    Token,
    Secret,
    /// That of `upstream.credential`.
    Translated,
}

pub(super) enum ProbeResponse {
    Failed { error: String, advice: Option<String> },
    Received { head: Box<response::Parts>, body: Bytes },
}

impl ProbeResponse {
    pub(super) fn failed(error: &str, advice: Option<String>) -> Self {
        Self::Failed { error: error.to_owned(), advice }
    }

    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Failed { .. } => None,
            Self::Received { head, .. } => Some(head.status.as_u16()),
        }
    }

    fn header(&self, name: HeaderName) -> &str {
        match self {
            Self::Failed { .. } => "",
            Self::Received { head, .. } => {
                head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
            }
        }
    }

    /// Whether one of these texts is in the body.
    fn says(&self, texts: &[&str]) -> bool {
        let Self::Received { body, .. } = self else { return false };
        texts.iter().any(|text| memchr::memmem::find(body, text.as_bytes()).is_some())
    }

    fn json(&self) -> Value {
        match self {
            Self::Failed { .. } => Value::Null,
            Self::Received { body, .. } => serde_json::from_slice(body).unwrap_or_default(),
        }
    }
}

/// All findings about one server.
pub(super) fn findings(results: &ProbeResults) -> Vec<Finding> {
    let Some((_, first)) = results.responses.first() else { return Vec::new() };
    // With several credentials, an accepted one says more than a refused one.
    let accepted = results.responses.iter().find(|(_, response)| response.status() == Some(200));
    let response = accepted.map_or(first, |(_, response)| response);
    let mut found = vec![check_response(response)];
    found.extend(results.name.as_ref().and_then(|(name, addresses)| check_addresses(name, addresses)));
    if found.iter().any(|finding| finding.level == Level::Failed) {
        return found;
    }
    found.extend(check_redis(response));
    found.push(check_credentials(results));
    found.extend(check_clock(response, results.now));
    found.extend(results.page.as_ref().map(check_workhorse));
    found.extend(results.longest_target.as_ref().map(|response| check_target(response, results.max_target)));
    found
}

fn check_response(response: &ProbeResponse) -> Finding {
    let Some(status) = response.status() else {
        let ProbeResponse::Failed { error, advice } = response else { return Finding::ok("") };
        let advice = advice.as_deref().unwrap_or("try again; if it persists, see the log of Rails");
        return Finding::failed(error.as_str(), advice);
    };
    let json = response.json();
    match status {
        200 if json.get("api_version").is_some() => {
            let version = json.get("gitlab_version").and_then(Value::as_str).unwrap_or("of unknown version");
            Finding::ok(format!("GitLab {} answers `check`", quoted(version)))
        }
        401 if json.get("message").or(json.get("error")).is_some() => Finding::ok("a GitLab answers `check`"),
        300..=399 => Finding::failed(
            format!("it redirects to {:?}", response.header(header::LOCATION)),
            "set upstream.url to Workhorse itself, with the scheme and the path of the redirect",
        ),
        404 => Finding::failed(
            "there is no internal API (404)",
            "if GitLab has a path of its own (relative URL root), upstream.url has to end in it; else check host and port",
        ),
        502..=504 => Finding::failed(
            format!("the proxy in front of Rails cannot reach it ({status})"),
            "is Puma running? See its log, and that of Workhorse or nginx",
        ),
        400 if response.says(&["sent to HTTPS port", "request to an HTTPS server"]) => Finding::failed(
            "there is TLS, and upstream.url begins with http://",
            "begin it with https://, or use the port for plain HTTP",
        ),
        _ => Finding::failed(
            format!("this is not GitLab's internal API (status {status})"),
            "check host and port of upstream.url",
        ),
    }
}

fn check_redis(response: &ProbeResponse) -> Option<Finding> {
    let is_down = response.json().get("redis") == Some(&Value::Bool(false));
    is_down.then(|| {
        Finding::warning("GitLab reports that it cannot reach Redis", Some("pushes will fail until it can"))
    })
}

fn check_credentials(results: &ProbeResults) -> Finding {
    let accepts = |kind: ProbeCredential| {
        results.responses.iter().any(|(other, response)| *other == kind && response.status() == Some(200))
    };
    if accepts(ProbeCredential::Translated) {
        return Finding::ok("it accepts the credential of upstream.credential");
    }
    match (accepts(ProbeCredential::Token), accepts(ProbeCredential::Secret)) {
        (true, true) => Finding::ok("it accepts tokens and the secret itself"),
        (true, false) if results.accepts_token && !results.accepts_secret => Finding::ok("it accepts tokens"),
        (true, false) if results.accepts_token => Finding::warning(
            "it accepts only tokens (GitLab 15.5 and later), and the gateway also accepts the secret itself",
            Some("set auth.shell.accept = [\"jwt\"]"),
        ),
        (true, false) => Finding::failed(
            "it accepts only tokens (GitLab 15.5 and later), and the gateway accepts none",
            "set auth.shell.accept = [\"jwt\"], or upstream.credential = \"jwt\" for callers that are older than Rails",
        ),
        (false, true) if results.accepts_secret && !results.accepts_token => {
            Finding::ok("it accepts the secret itself")
        }
        (false, true) if results.accepts_secret => Finding::warning(
            "it accepts only the secret itself (GitLab up to 15.4), and the gateway also accepts tokens",
            Some(
                "set auth.shell.accept = [\"shared_secret\"], unless its feature flag gitlab_shell_jwt_token is about to be turned on",
            ),
        ),
        (false, true) => Finding::failed(
            "it accepts only the secret itself (GitLab up to 15.4), and the gateway does not accept it",
            "set auth.shell.accept = [\"shared_secret\"], or upstream.credential = \"shared_secret\" for callers that are newer than Rails",
        ),
        (false, false) => Finding::failed(
            "it accepts no credential made of the secret (401)",
            "the file of auth.shell.secret_file, or upstream.secret_file, has to have the secret of this Rails: \
             compare it with GitLab's .gitlab_shell_secret",
        ),
    }
}

fn check_clock(response: &ProbeResponse, now: i64) -> Option<Finding> {
    let date = response.header(header::DATE).replace("GMT", "+0000");
    let remote = OffsetDateTime::parse(&date, &Rfc2822).ok()?.unix_timestamp();
    let ahead = remote.saturating_sub(now);
    Some(if ahead.abs() <= MAX_CLOCK_DIFFERENCE {
        Finding::ok("its clock agrees with this one")
    } else {
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        Finding::warning(
            format!("its clock is {} s {direction} this one", ahead.abs()),
            Some("synchronize both by NTP: tokens live for seconds"),
        )
    })
}

fn check_target(response: &ProbeResponse, max_target: usize) -> Finding {
    if response.status() == Some(200) {
        return Finding::ok(format!(
            "it accepts targets as long as limits.target allows, {max_target} bytes"
        ));
    }
    let reason = match response {
        ProbeResponse::Failed { error, .. } => error.clone(),
        ProbeResponse::Received { head, .. } => head.status.to_string(),
    };
    Finding::failed(
        format!("it accepts no targets as long as limits.target allows, {max_target} bytes ({reason})"),
        "lower limits.target, or build Puma with PUMA_QUERY_STRING_MAX_LENGTH and PUMA_REQUEST_URI_MAX_LENGTH as large",
    )
}

/// One server that is several: the gateway can neither balance these, nor take a broken one out of rotation.
fn check_addresses(name: &str, addresses: &[IpAddr]) -> Option<Finding> {
    let of = |is_v4: bool| addresses.iter().filter(|ip| ip.is_ipv4() == is_v4 && !ip.is_loopback()).count();
    (of(true).max(of(false)) > 1).then(|| {
        let list: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        Finding::warning(
            format!(
                "{name} has {} addresses ({}), and a new connection goes to whichever answers first",
                addresses.len(),
                list.join(", ")
            ),
            Some("if they are several servers, name each in a [[upstream.server]], so that load is shared and health checked"),
        )
    })
}

/// Workhorse serves the pages of GitLab's `public` directory, and a Puma of GitLab does not.
fn check_workhorse(response: &ProbeResponse) -> Finding {
    if response.status() == Some(200) {
        return Finding::ok("Workhorse, or a web server with GitLab's pages, is in front of Rails");
    }
    Finding::warning(
        "this seems to be Rails without Workhorse: there is no /404.html",
        Some(
            "set upstream.url to Workhorse, which Rails leaves some answers to, such as LFS files in object storage",
        ),
    )
}

/// What to do about a server to which no connection can be made.
pub(super) const fn connect_advice(cause: UnreachableCause) -> &'static str {
    match cause {
        UnreachableCause::Dns => {
            "does the name in upstream.url exist? Try `getent hosts NAME` on this machine"
        }
        UnreachableCause::Refused => {
            "nothing listens there: is Rails running, and is the port of upstream.url right?"
        }
        UnreachableCause::NoSocket => {
            "there is no such socket: is Rails running, and is the path in upstream.url right?"
        }
        UnreachableCause::Unroutable => {
            "there is no route to that host: check its address, and the routes of this machine"
        }
        UnreachableCause::Timeout => {
            "nothing answers there: a firewall, another address, a host that is down, or https:// where plain HTTP is spoken?"
        }
        UnreachableCause::Tls => {
            "is its certificate signed by an authority in upstream.tls.ca_file, for the name in upstream.url?"
        }
        UnreachableCause::Denied => {
            "the user of the gateway may not open that socket: check its mode, owner and directory, and SELinux"
        }
        UnreachableCause::Resources => "this machine has no files or memory left: check `ulimit -n`",
        UnreachableCause::Proxy | UnreachableCause::Drained | UnreachableCause::Other => {
            "see the log of Rails, and of the proxy in front of it"
        }
    }
}

#[cfg(test)]
mod tests;
