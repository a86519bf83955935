//! The log line of a request, with GitLab's field names, and nothing secret in it.

use std::time::Duration;

use http::{Method, Uri};

use super::{ACCESS_LOG, Watch};
use crate::exchange::Notes;
use crate::failure::Side;
use crate::route;
use crate::server::wire::REFUSED;

type Form = fn(&str) -> bool;

/// Parameters whose values say who and what, and the form that those values have. Whatever is not
/// listed here, or has another form, is filtered, names included: people put secrets and keys into
/// the wrong places, and a log keeps them.
const SHOWN: [(&str, Form); 7] = [
    ("key_id", is_id),
    ("user_id", is_id),
    ("id", is_id),
    ("identifier", is_typed_id),
    ("gl_repository", is_typed_id),
    ("action", |value| ["git-upload-pack", "git-receive-pack", "git-upload-archive"].contains(&value)),
    ("protocol", |value| ["ssh", "http", "web"].contains(&value)),
];

const FILTERED: &str = "[FILTERED]";

/// Writes the line: at error if the gateway is at fault, at warn if Rails is, else at info.
pub(super) fn write(watch: &Watch, notes: &Notes, took: Duration, whole: bool) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: ACCESS_LOG,
                correlation_id = watch.request_id.as_str(),
                method = known(&watch.method),
                uri = filtered(&watch.uri),
                status = if whole { watch.status.map(|status| status.as_u16()) } else { Some(499) },
                duration_s = took.as_secs_f64(),
                route = notes.route,
                caller = notes.caller.as_str(),
                cache = notes.cache.as_str(),
                upstream_addr = notes.server.as_deref(),
                upstream_duration_s = notes.upstream.map(|upstream| upstream.as_secs_f64()),
                queue_duration_s = notes.waited.map(|waited| waited.as_secs_f64()),
                resent = notes.is_resent.then_some(true),
                written_bytes = watch.sent,
                remote_ip = watch.peer.map(tracing::field::display),
                ua = watch.user_agent.as_ref().and_then(|agent| agent.to_str().ok()),
                failure = notes.failure,
                reason = notes.rejection.map(crate::auth::Rejection::as_str),
                error = notes.error,
                "request"
            )
        };
    }
    match notes.side {
        Some(Side::Gateway) => line!(error),
        Some(Side::Upstream) => line!(warn),
        Some(Side::Client) => line!(info),
        None if watch.shared.log_all || !whole => line!(info),
        None => {}
    }
}

/// The path and the query, without anything that is not known to be harmless.
fn filtered(uri: &Uri) -> String {
    let mut shown = String::with_capacity(128);
    for (index, segment) in uri.path().split('/').enumerate() {
        if index > 0 {
            shown.push('/');
        }
        let is_known = segment.is_empty() || route::is_known_segment(segment);
        shown.push_str(if is_known { segment } else { FILTERED });
    }
    let mut separator = '?';
    for param in uri.query().into_iter().flat_map(|query| query.split('&')) {
        shown.push(separator);
        push_filtered(&mut shown, param);
        separator = '&';
    }
    shown
}

fn push_filtered(shown: &mut String, param: &str) {
    let (name, value) = param.split_once('=').map_or((param, None), |(name, value)| (name, Some(value)));
    let form = SHOWN.iter().find(|(known, _)| *known == name).map(|(_, form)| form);
    match (form, value) {
        (Some(is_harmless), Some(value)) if is_harmless(value) => shown.push_str(param),
        (Some(_), Some(_)) => shown.extend([name, "=", FILTERED]),
        _ if !NAMED.contains(&name) => shown.push_str(FILTERED),
        (_, Some(_)) => shown.extend([name, "=", FILTERED]),
        (_, None) => shown.push_str(name),
    }
}

/// Parameters whose names may be shown, but not what they say.
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
fn known(method: &Method) -> &str {
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
}
