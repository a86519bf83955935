//! The log line of a request, with GitLab's field names, and nothing secret in it.

use std::time::Duration;

use http::Uri;

use super::Watch;
use crate::exchange::Notes;
use crate::failure::Side;

/// Parameters whose values say who and what, but open nothing. All others are filtered: an SSH
/// key is a lookup away from its owner, and `secret_token` is the secret itself.
const SHOWN: [&str; 9] =
    ["key_id", "user_id", "username", "identifier", "id", "gl_repository", "project", "action", "protocol"];

/// Writes the line: at error if the gateway is at fault, at warn if Rails is, else at info.
pub(super) fn write(watch: &Watch, notes: &Notes, took: Duration, whole: bool) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                correlation_id = watch.request_id.to_str().unwrap_or_default(),
                method = watch.method.as_str(),
                uri = filtered(&watch.uri),
                status = if whole { watch.status.map(|status| status.as_u16()) } else { Some(499) },
                duration_s = took.as_secs_f64(),
                route = notes.route,
                caller = notes.caller.as_str(),
                cache = notes.cache.as_str(),
                upstream_duration_s = notes.upstream.map(|upstream| upstream.as_secs_f64()),
                written_bytes = watch.sent,
                remote_ip = watch.peer.map(|peer| peer.to_string()),
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
        None if watch.layer.log_all || !whole => line!(info),
        None => {}
    }
}

/// The path, and the query with everything filtered that is not on the list.
fn filtered(uri: &Uri) -> String {
    let Some(query) = uri.query() else { return uri.path().to_owned() };
    let params: Vec<String> = query
        .split('&')
        .map(|param| match param.split_once('=') {
            Some((name, value)) if SHOWN.contains(&name) && is_harmless(value) => param.to_owned(),
            Some((name, _)) if is_word(name) => format!("{name}=[FILTERED]"),
            None if is_word(param) && param.len() <= 32 => param.to_owned(),
            _ => "[FILTERED]".to_owned(),
        })
        .collect();
    format!("{}?{}", uri.path(), params.join("&"))
}

/// No `;`, behind which Rack 2 would see a further parameter, and nothing of a key's length.
fn is_harmless(value: &str) -> bool {
    value.len() <= 255 && !value.contains(';')
}

fn is_word(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_[]".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_secrets_are_filtered() {
        for (uri, shown) in [
            ("/a", "/a"),
            ("/a?key=AAAAB3", "/a?key=[FILTERED]"),
            ("/a?secret_token=s3cret&key_id=7", "/a?secret_token=[FILTERED]&key_id=7"),
            ("/a?key_id=7;secret_token=s3cret", "/a?key_id=[FILTERED]"),
            ("/a?secret%5ftoken=s3cret", "/a?[FILTERED]"),
            ("/a?=s3cret", "/a?=[FILTERED]"),
            ("/a?scopes[]=api", "/a?scopes[]=[FILTERED]"),
            ("/a?AAAAC3NzaC1lZDI1NTE5AAAAIGvUxsMLvN0yGZGFjpMyEIKPX", "/a?[FILTERED]"),
        ] {
            assert_eq!(filtered(&uri.parse().unwrap()), shown, "{uri}");
        }
    }
}
