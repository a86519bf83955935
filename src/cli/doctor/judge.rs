//! What the answers of a server mean. Pure: answers in, findings out.

use std::fmt;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::response;
use railgate::upstream::UnreachableCause;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

/// By how many seconds clocks may differ without a word. `Date` counts whole ones, and the answer has taken
/// some time.
const CLOCKS_MAY_DIFFER: i64 = 5;

/// What was asked of a server, and what it said.
pub(super) struct Facts {
    /// The gateway lets callers in by a token.
    pub(super) accepts_token: bool,
    /// And by the secret itself.
    pub(super) accepts_secret: bool,
    /// When this was, in Unix seconds.
    pub(super) now: i64,
    /// What `check` said to each credential.
    pub(super) answers: Vec<(Credential, Answer)>,
    /// The same to the longest target.
    pub(super) longest: Option<Answer>,
    /// `limits.target`.
    pub(super) target: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    Token,
    Secret,
    /// What `upstream.credential` makes.
    Translated,
}

pub(super) enum Answer {
    None { error: String, mend: Option<String> },
    Some { head: Box<response::Parts>, body: Bytes },
}

impl Answer {
    pub(super) fn none(error: &str, mend: Option<String>) -> Self {
        Self::None { error: error.to_owned(), mend }
    }

    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::None { .. } => None,
            Self::Some { head, .. } => Some(head.status.as_u16()),
        }
    }

    fn header(&self, name: HeaderName) -> &str {
        match self {
            Self::None { .. } => "",
            Self::Some { head, .. } => {
                head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::None { .. } => Value::Null,
            Self::Some { body, .. } => serde_json::from_slice(body).unwrap_or_default(),
        }
    }
}

/// One thing that was found out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    what: String,
    /// What to do.
    mend: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Ok,
    Warning,
    Failed,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), mend: None }
    }

    pub(super) fn warning(what: impl Into<String>, mend: Option<&str>) -> Self {
        Self { level: Level::Warning, what: what.into(), mend: mend.map(str::to_owned) }
    }

    pub(super) fn failed(what: impl Into<String>, mend: &str) -> Self {
        Self { level: Level::Failed, what: what.into(), mend: Some(mend.to_owned()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failed => "failed",
        };
        write!(f, "  {level}: {}", self.what)?;
        self.mend.as_ref().map_or(Ok(()), |mend| write!(f, "\n      {mend}"))
    }
}

/// Everything that the answers show.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let Some((_, first)) = facts.answers.first() else { return Vec::new() };
    // Only a refusal hangs on what was shown.
    let telling = facts.answers.iter().find(|(_, answer)| answer.status() == Some(200));
    let telling = telling.map_or(first, |(_, answer)| answer);
    let mut found = vec![of_answer(telling)];
    if found.iter().any(|finding| finding.level == Level::Failed) {
        return found;
    }
    found.extend(of_redis(telling));
    found.push(of_credentials(facts));
    found.extend(of_clock(telling, facts.now));
    found.extend(facts.longest.as_ref().map(|longest| of_target(longest, facts.target)));
    found
}

fn of_answer(answer: &Answer) -> Finding {
    let Some(status) = answer.status() else {
        let Answer::None { error, mend } = answer else { return Finding::ok("") };
        let mend = mend.as_deref().unwrap_or("try again; if it persists, look at the log of Rails");
        return Finding::failed(error.as_str(), mend);
    };
    let json = answer.json();
    match status {
        200 if json.get("api_version").is_some() => {
            let version = json.get("gitlab_version").and_then(Value::as_str).unwrap_or("of no version");
            Finding::ok(format!("GitLab {version} answers `check`"))
        }
        401 if json.get("message").or(json.get("error")).is_some() => Finding::ok("a GitLab answers `check`"),
        300..=399 => Finding::failed(
            format!("it redirects to {:?}", answer.header(header::LOCATION)),
            "let upstream.url lead to Workhorse or Puma itself, with the scheme and the path that it redirects to",
        ),
        404 => Finding::failed(
            "there is no internal API (404)",
            "if GitLab lives below a path (relative URL root), end upstream.url in it; else look at host and port",
        ),
        502..=504 => Finding::failed(
            format!("what stands in front of Rails says that it is away ({status})"),
            "is Puma running? Look at its log, and at that of Workhorse or nginx",
        ),
        _ => Finding::failed(
            format!("what answers is not GitLab's internal API (status {status})"),
            "look at host and port of upstream.url",
        ),
    }
}

fn of_redis(answer: &Answer) -> Option<Finding> {
    let is_away = answer.json().get("redis") == Some(&Value::Bool(false));
    is_away.then(|| {
        Finding::warning("GitLab says that it cannot reach Redis", Some("pushes will fail until it can"))
    })
}

fn of_credentials(facts: &Facts) -> Finding {
    let takes = |shown: Credential| {
        facts.answers.iter().any(|(credential, answer)| *credential == shown && answer.status() == Some(200))
    };
    if takes(Credential::Translated) {
        return Finding::ok("it takes what upstream.credential makes of the secret");
    }
    match (takes(Credential::Token), takes(Credential::Secret)) {
        (true, true) => Finding::ok("it takes tokens and the secret itself"),
        (true, false) if facts.accepts_token && !facts.accepts_secret => Finding::ok("it takes tokens"),
        (true, false) if facts.accepts_token => Finding::warning(
            "it takes tokens only (GitLab 15.5 and later), and the gateway also lets in callers that show the secret itself",
            Some("say auth.shell.accept = [\"jwt\"]"),
        ),
        (true, false) => Finding::failed(
            "it takes tokens only (GitLab 15.5 and later), and the gateway lets in none",
            "say auth.shell.accept = [\"jwt\"], or upstream.credential = \"jwt\" for callers that are older than Rails",
        ),
        (false, true) if facts.accepts_secret && !facts.accepts_token => {
            Finding::ok("it takes the secret itself")
        }
        (false, true) if facts.accepts_secret => Finding::warning(
            "it takes the secret itself only (GitLab up to 15.4), and the gateway also lets in callers that show a token",
            Some(
                "say auth.shell.accept = [\"shared_secret\"], unless its feature flag gitlab_shell_jwt_token is about to be turned on",
            ),
        ),
        (false, true) => Finding::failed(
            "it takes the secret itself only (GitLab up to 15.4), and the gateway does not let in callers that show it",
            "say auth.shell.accept = [\"shared_secret\"], or upstream.credential = \"shared_secret\" for callers that are newer than Rails",
        ),
        (false, false) => Finding::failed(
            "it takes no credential that is made of the secret (401)",
            "the file of auth.shell.secret_file, or upstream.secret_file, has to hold the secret that this Rails has: \
             compare it with GitLab's .gitlab_shell_secret",
        ),
    }
}

fn of_clock(answer: &Answer, now: i64) -> Option<Finding> {
    let date = answer.header(header::DATE).replace("GMT", "+0000");
    let theirs = OffsetDateTime::parse(&date, &Rfc2822).ok()?.unix_timestamp();
    let ahead = theirs.saturating_sub(now);
    Some(if ahead.abs() <= CLOCKS_MAY_DIFFER {
        Finding::ok("its clock agrees with this one")
    } else {
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        Finding::warning(
            format!("its clock is {} s {direction} this one", ahead.abs()),
            Some("have both set by NTP: tokens live for seconds"),
        )
    })
}

fn of_target(answer: &Answer, target: usize) -> Finding {
    if answer.status() == Some(200) {
        return Finding::ok(format!("it takes requests as long as limits.target lets pass, {target} bytes"));
    }
    let said = match answer {
        Answer::None { error, .. } => error.clone(),
        Answer::Some { head, .. } => head.status.to_string(),
    };
    Finding::failed(
        format!("it takes no requests as long as limits.target lets pass, {target} bytes ({said})"),
        "lower limits.target, or build Puma with PUMA_QUERY_STRING_MAX_LENGTH and PUMA_REQUEST_URI_MAX_LENGTH as large",
    )
}

/// What to do about a server that cannot be connected to.
pub(super) const fn mend(cause: UnreachableCause) -> &'static str {
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
            "there is no way to that host: look at its address, and at the routes of this machine"
        }
        UnreachableCause::Timeout => {
            "nothing answers there: a firewall, another address, a host that is down, or https:// where plain HTTP is spoken?"
        }
        UnreachableCause::Tls => {
            "is its certificate signed by an authority in upstream.tls.ca_file, for the name in upstream.url?"
        }
        UnreachableCause::Denied => {
            "let the user of the gateway open that socket: look at its mode, owner and directory, and at SELinux"
        }
        UnreachableCause::Resources => "this machine has no files or memory left: look at `ulimit -n`",
        UnreachableCause::Proxy | UnreachableCause::Drained | UnreachableCause::Other => {
            "look at the log of Rails, and of what stands in front of it"
        }
    }
}

#[cfg(test)]
mod tests;
