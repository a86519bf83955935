//! The log line of a request, with GitLab's field names and without secrets.

use std::fmt::Write as _;
use std::time::Duration;

use http::{Method, Uri};

use super::in_flight::InFlightRequest;
use crate::exchange::RequestInfo;
use crate::failure::FailureOrigin;
use crate::log::truncated;
use crate::route;
use crate::server::wire::REFUSED;

/// The target of the events of requests.
pub const ACCESS_LOG: &str = "access";

type ValueCheck = fn(&str) -> bool;

/// Parameters that identify the caller or the operation, with the form of their values. Parameters that are not
/// listed here, or have another form, are filtered, names included: clients put secrets and keys into
/// the wrong places, and a log keeps them.
const SHOWN: [(&str, ValueCheck); 7] = [
    ("key_id", is_id),
    ("user_id", is_id),
    ("id", is_id),
    ("identifier", is_typed_id),
    ("gl_repository", is_typed_id),
    ("action", |value| ["git-upload-pack", "git-receive-pack", "git-upload-archive"].contains(&value)),
    ("protocol", |value| ["ssh", "http", "web"].contains(&value)),
];

const FILTERED: &str = "[FILTERED]";

/// Bytes of a `User-Agent` that are logged. Those of GitLab's components have fewer than 100.
pub(super) const MAX_USER_AGENT: usize = 256;

/// Bytes of an error that are logged. Some errors quote the other side, certificates included.
pub(super) const MAX_ERROR: usize = 1024;

/// Writes the line: at error if the gateway is responsible for a failure, at warn if Rails is, else at info.
pub(super) fn write(request: &InFlightRequest, info: &RequestInfo, took: Duration, client_stayed: bool) {
    let agent = || request.user_agent.as_ref().and_then(|agent| agent.to_str().ok());
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: ACCESS_LOG,
                // As a text: what follows the fields is formatted for each line.
                message = "request",
                correlation_id = request.request_id.as_str(),
                trace_id = info.trace.sampled_id().map(tracing::field::display),
                method = known_method(&request.method),
                uri = filtered(&request.uri),
                status = if client_stayed { request.status.map(|status| status.as_u16()) } else { Some(499) },
                duration_s = took.as_secs_f64(),
                route = info.route,
                caller = info.caller.as_str(),
                cache = info.cache.as_str(),
                upstream_addr = info.server.as_deref(),
                upstream_duration_s = info.upstream_time.map(|upstream| upstream.as_secs_f64()),
                queue_duration_s = info.queue_time.map(|waited| waited.as_secs_f64()),
                resent = info.is_resent.then_some(true),
                written_bytes = request.sent_bytes,
                remote_ip = request.remote_ip.map(tracing::field::display),
                ua = agent().map(|agent| truncated(agent, MAX_USER_AGENT)).as_deref(),
                failure = info.failure,
                reason = info.rejection.map(crate::auth::Rejection::as_str),
                error = info.error.as_deref().map(|error| truncated(error, MAX_ERROR)).as_deref(),
            )
        };
    }
    match info.failure_origin {
        Some(FailureOrigin::Gateway) => line!(error),
        Some(FailureOrigin::Upstream) => line!(warn),
        Some(FailureOrigin::Client) => line!(info),
        None if request.shared.logs_all || !client_stayed => line!(info),
        None => {}
    }
}

/// The path and the query, without the parts that are not known to be harmless.
pub(in crate::layer) fn filtered(uri: &Uri) -> String {
    let mut shown = String::with_capacity(128);
    push_parts(&mut shown, split(uri.path(), b'/'), ["", "/"], push_segment);
    if let Some(query) = uri.query() {
        push_parts(&mut shown, split(query, b'&'), ["?", "&"], push_param);
    }
    shown
}

/// The parts of a text between separators, which `str::split` finds more slowly in so short a text.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut begin = 0;
    let ends = memchr::memchr_iter(separator, text.as_bytes()).chain([text.len()]);
    ends.map(move |end| text.get(std::mem::replace(&mut begin, end + 1)..end).unwrap_or_default())
}

/// How many segments of a path, and how many parameters, are logged. No endpoint has as many.
const MAX_PARTS: usize = 24;

/// Adds parts, each after its separator: one for the first, one for the others. Filtered parts in a row
/// are counted, and so are those beyond `MAX_PARTS`: a line must not become longer than the request.
fn push_parts<'a>(
    shown: &mut String,
    parts: impl Iterator<Item = &'a str>,
    [first, other]: [&str; 2],
    push: fn(&mut String, &str) -> bool,
) {
    let (mut count, mut run, mut more) = (0, 0, 0);
    for part in parts {
        if more > 0 {
            more += 1;
            continue;
        }
        let before = shown.len();
        shown.push_str(if count == 0 { first } else { other });
        let is_shown = push(shown, part);
        if !is_shown && run > 0 {
            shown.truncate(before);
            run += 1;
            continue;
        }
        let mut end = before;
        if run > 1 {
            let times = format!("×{run}");
            shown.insert_str(end, &times);
            end += times.len();
        }
        if count == MAX_PARTS {
            shown.truncate(end);
            more = 1;
            run = 0;
            continue;
        }
        count += 1;
        run = usize::from(!is_shown);
        if !is_shown {
            shown.push_str(FILTERED);
        }
    }
    // Writing to memory cannot fail.
    let _ = match (run, more) {
        (0 | 1, 0) => Ok(()),
        (run, 0) => write!(shown, "×{run}"),
        (_, more) => write!(shown, "{other}…[{more} more]"),
    };
}

/// Adds a segment and returns true, unless it has to be filtered.
fn push_segment(shown: &mut String, segment: &str) -> bool {
    let is_known = segment.is_empty() || route::is_known_segment(segment);
    if is_known {
        shown.push_str(segment);
    }
    is_known
}

/// Adds what may be logged of a parameter; false if that is nothing.
fn push_param(shown: &mut String, param: &str) -> bool {
    let (name, value) = param.split_once('=').map_or((param, None), |(name, value)| (name, Some(value)));
    let form = SHOWN.iter().find(|(known, _)| *known == name).map(|(_, form)| form);
    match (form, value) {
        (Some(is_harmless), Some(value)) if is_harmless(value) => shown.push_str(param),
        (Some(_), Some(_)) => shown.extend([name, "=", FILTERED]),
        _ if !NAMED.contains(&name) => return false,
        (_, Some(_)) => shown.extend([name, "=", FILTERED]),
        (_, None) => shown.push_str(name),
    }
    true
}

/// Parameters whose names are logged, but not their values.
const NAMED: [&str; 4] = ["key", "secret_token", "username", "project"];

/// Digits, fewer than any secret has.
fn is_id(value: &str) -> bool {
    (1..=19).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit())
}

/// `user-7`, `key-7`, `project-7`.
fn is_typed_id(value: &str) -> bool {
    let kinds = ["user", "key", "project", "wiki", "snippet", "design"];
    value.split_once('-').is_some_and(|(kind, id)| kinds.contains(&kind) && is_id(id))
}

/// A method that is in use; any other word could be anything.
pub(in crate::layer) fn known_method(method: &Method) -> &str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", REFUSED];
    known.into_iter().find(|known| *known == method.as_str()).unwrap_or(FILTERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_secrets_are_filtered() {
        for (uri, shown) in [
            ("/api/v4/internal/check", "/api/v4/internal/check"),
            ("/gitlab/api/v4/internal/pages/status", "/[FILTERED]/api/v4/internal/pages/status"),
            ("/api/v4/internal/check/", "/api/v4/internal/check/"),
            ("/api/v4/internal/s3cret", "/api/v4/internal/[FILTERED]"),
            ("/check?key=AAAAB3", "/check?key=[FILTERED]"),
            ("/check?secret_token=s3cret&key_id=7", "/check?secret_token=[FILTERED]&key_id=7"),
            ("/check?key_id=7;secret_token=s3cret", "/check?key_id=[FILTERED]"),
            ("/check?identifier=user-7&id=s3cret", "/check?identifier=user-7&id=[FILTERED]"),
            ("/check?username=s3cret", "/check?username=[FILTERED]"),
            (
                "/check?action=git-upload-pack&protocol=s3cret",
                "/check?action=git-upload-pack&protocol=[FILTERED]",
            ),
            ("/check?secret%5ftoken=s3cret", "/check?[FILTERED]"),
            ("/check?s3cret", "/check?[FILTERED]"),
            ("/check?s3cret=1&secret_token", "/check?[FILTERED]&secret_token"),
        ] {
            assert_eq!(filtered(&uri.parse().unwrap()), shown, "{uri}");
        }
    }

    #[test]
    fn long_targets_are_logged_in_short_form() {
        let of = |begin: &str, part: &str, times: usize| format!("{begin}{}", part.repeat(times));
        let known = "/check".repeat(MAX_PARTS - 1);
        for (uri, shown) in [
            (of("/check?", "&", 10_199), "/check?[FILTERED]×10200".to_owned()),
            (of("/check?", "s3cret=1&", 999) + "key_id=7", "/check?[FILTERED]×999&key_id=7".to_owned()),
            (of("/check?key_id=7", "&&protocol=ssh", 2), {
                "/check?key_id=7&[FILTERED]&protocol=ssh&[FILTERED]&protocol=ssh".to_owned()
            }),
            (of("/check?key=1", "&key=1", 2_999), {
                format!("/check?key=[FILTERED]{}&…[2976 more]", "&key=[FILTERED]".repeat(23))
            }),
            (of("/check?key=1", "&&key=1", 2_000), {
                let pairs = "&[FILTERED]&key=[FILTERED]".repeat(11);
                format!("/check?key=[FILTERED]{pairs}&[FILTERED]&…[3977 more]")
            }),
            (of("", "/s3cret", 3_000), "/[FILTERED]×3000".to_owned()),
            (
                of("/s3cret", "/check/s3cret/other", 1) + "/check",
                "/[FILTERED]/check/[FILTERED]×2/check".to_owned(),
            ),
            (of("", "/check", 3_000), format!("{known}/…[2977 more]")),
            (of(&known, "/s3cret", 3_000), format!("{known}/…[3000 more]")),
            (of("", "/", 3_000), format!("{}/…[2977 more]", "/".repeat(23))),
        ] {
            assert_eq!(filtered(&uri.parse().unwrap()), shown, "{} bytes", uri.len());
        }
    }
}
