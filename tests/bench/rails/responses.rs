//! The responses of Rails, with the sizes and headers that they have in a GitLab.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::Fallible;
use crate::keys::RandomNumbers;

pub(crate) const DISCOVER: &str =
    r#"{"id":7,"name":"Dede Eichmann","username":"rubi","state":"active","avatar":null}"#;

pub(crate) const CHECK: &str =
    r#"{"api_version":"v4","gitlab_version":"13.6.0-pre","gitlab_rev":"d69c988e6a6","redis":true}"#;

pub(crate) const UNKNOWN_KEY: &str = r#"{"message":"404 Key Not Found"}"#;

pub(crate) const ALLOWED: &str = concat!(
    r#"{"status":true,"gl_repository":"project-3","gl_project_path":"gnuwget/wget2","gl_id":"user-1","#,
    r#""gl_username":"root","git_config_options":["uploadpack.allowFilter=true","#,
    r#""uploadpack.allowAnySHA1InWant=true"],"gitaly":{"repository":{"storage_name":"default","#,
    r#""relative_path":"@hashed/4e/07/"#,
    r#"4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce.git","git_object_directory":"","#,
    r#""git_alternate_object_directories":[],"gl_repository":"project-3","#,
    r#""gl_project_path":"gnuwget/wget2"},"address":"unix:/var/opt/gitlab/gitaly/gitaly.socket","#,
    r#""token":null,"features":{"gitaly-feature-a":"true"}},"#,
    r#""gl_console_messages":[],"gl_key_type":"key","gl_key_id":11}"#
);

pub(crate) const AGENT_INFO: &str = concat!(
    r#"{"project_id":7,"agent_id":3,"agent_name":"prod","#,
    r#""gitaly_info":{"address":"unix:/x","token":"","features":{}},"#,
    r#""gitaly_repository":{"storage_name":"default","relative_path":"@hashed/4e/07.git","#,
    r#""gl_repository":"project-7","gl_project_path":"a/b"},"default_branch":"main"}"#
);

/// The size of a key row in the comparison, for both kinds of keys.
pub(crate) const ROW: usize = 600;

/// The row of a key, padded to at least so many bytes in its title.
pub(crate) fn authorized_keys(key: &str, min_bytes: usize) -> String {
    let kind = if key.starts_with("AAAAB3") { "ssh-rsa" } else { "ssh-ed25519" };
    let id = fnv(key.as_bytes()) % 9_000_000 + 1_000_000;
    let head = format!(r#"{{"id":{id},"title":"user@example.com"#);
    let tail = format!(r#"","key":"{kind} {key} user@example.com","created_at":"2019-06-27T15:29:02.219Z","#)
        + r#""expires_at":null,"usage_type":"auth_and_signing"}"#;
    let fill = min_bytes.saturating_sub(head.len() + tail.len());
    format!("{head}{}{tail}", "x".repeat(fill))
}

fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The headers of a response, besides `Content-Length` and `Date`.
pub(crate) fn headers(seed: u64) -> Fallible<HeaderMap> {
    let mut numbers = RandomNumbers(seed);
    let (first, second) = (numbers.next(), numbers.next());
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("cache-control", "max-age=0, private, must-revalidate".to_owned()),
        ("etag", format!(r#"W/"{first:016x}{second:016x}""#)),
        ("vary", "Origin".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-frame-options", "SAMEORIGIN".to_owned()),
        ("x-gitlab-meta", format!(r#"{{"correlation_id":"01EP{first:016X}","version":"1"}}"#)),
        ("x-request-id", format!("01EP{first:016X}")),
        ("x-runtime", "0.021337".to_owned()),
    ];
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        map.insert(HeaderName::from_static(name), HeaderValue::from_str(&value)?);
    }
    Ok(map)
}
