//! One line of the log for each change that an operator makes or tries to make: who, what, and how it ended.
//!
//! The line is within the span of the request, which has `path` and `remote_ip`.

use http::StatusCode;
use serde_json::Value;

/// The target of these lines, which are written whatever the level of the log is.
pub const AUDIT: &str = "railgate::audit";

/// The fields of requests whose texts are harmless. Of others, such as keys and names of users, only the name is
/// logged, and of unknown fields nothing: they could be a misplaced secret.
const SHOWN: [&str; 3] = ["level", "route", "server"];
const NAMED: [&str; 7] = ["all", "drain", "key_id", "soft", "ssh_key", "user_id", "username"];
/// Bytes of a text, beyond which it is left out.
const MAX_TEXT: usize = 128;

/// Whether such a request changes the state of the gateway, even if it fails.
pub(super) fn is_change(path: &str, body: &[u8]) -> bool {
    match path {
        "/inspect" => false,
        // Without a body, they only show.
        "/servers" | "/log" => !body.is_empty(),
        _ => true,
    }
}

/// Logs the change that the response with `status` ends. `has_shown_token` is false where none is required.
pub(super) fn log_change(has_shown_token: bool, body: &[u8], status: StatusCode) {
    let by = if has_shown_token { "token" } else { "anyone on this machine" };
    let (what, status) = (describe(body), status.as_u16());
    if status < 400 {
        tracing::info!(target: AUDIT, by, what, status, "a change by an operator");
    } else {
        tracing::warn!(target: AUDIT, by, what, status, "a change by an operator failed");
    }
}

/// The fields of a body, without what must not be logged.
fn describe(body: &[u8]) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return String::new() };
    let shown = fields.iter().filter_map(|(name, value)| match value {
        Value::String(text) if SHOWN.contains(&name.as_str()) && text.len() <= MAX_TEXT => {
            Some(format!("{name}={}", text.escape_debug()))
        }
        Value::Bool(_) | Value::Number(_) if NAMED.contains(&name.as_str()) => {
            Some(format!("{name}={value}"))
        }
        _ => NAMED.contains(&name.as_str()).then(|| name.clone()),
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_described_without_keys_names_and_unknown_fields() {
        for (body, expected) in [
            ("", ""),
            ("[1]", ""),
            ("{", ""),
            (r#"{"server":"10.0.0.1:80","drain":true}"#, "drain=true server=10.0.0.1:80"),
            (r#"{"key_id":7,"soft":false}"#, "key_id=7 soft=false"),
            (r#"{"ssh_key":"AAAAC3"}"#, "ssh_key"),
            (r#"{"username":"root","all":true}"#, "all=true username"),
            (r#"{"route":"discover"}"#, "route=discover"),
            (r#"{"level":"debug\n"}"#, "level=debug\\n"),
            (r#"{"s3cret":"s3cret","server":{"s3cret":1}}"#, ""),
        ] {
            assert_eq!(describe(body.as_bytes()), expected, "{body}");
        }
        assert_eq!(describe(format!(r#"{{"server":"{}"}}"#, "x".repeat(200)).as_bytes()), "");
    }

    #[test]
    fn only_what_changes_something_is_logged() {
        for (path, body, expected) in [
            ("/inspect", "", false),
            ("/inspect", "{}", false),
            ("/servers", "", false),
            ("/servers", "{}", true),
            ("/log", "", false),
            ("/log", "{}", true),
            ("/purge", "", true),
            ("/reload", "", true),
        ] {
            assert_eq!(is_change(path, body.as_bytes()), expected, "{path} {body}");
        }
    }
}
