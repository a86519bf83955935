//! `POST /purge`: what its body may say, and what is answered.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::cache::Cache;
use crate::cache::purge::{PurgeMode, Selector};
use crate::route::Caching;

/// Bytes of the largest body; long SSH keys have 20 KiB.
pub(super) const MOST: usize = 64 * 1024;

/// Drops what `body` means.
pub(super) fn purge(cache: &Cache, body: &[u8]) -> (StatusCode, Value) {
    match read(body) {
        Ok((selector, mode)) => {
            let purged = cache.purge(std::slice::from_ref(&selector), mode).entries;
            tracing::info!(purged, what = name(&selector), soft = mode == PurgeMode::Soft, "purged");
            (StatusCode::OK, json!({ "purged": purged }))
        }
        Err(wrong) => (StatusCode::BAD_REQUEST, json!({ "message": format!("400 Bad Request: {wrong}") })),
    }
}

const ONE_OF: &str = "say what is meant by exactly one of ssh_key, key_id, user_id, username, route, all";

/// What a body means that says no more.
pub(super) fn selector(body: &[u8]) -> Result<Selector, String> {
    meant(object(body)?)
}

fn object(body: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(said)) => Ok(said),
        _ => Err(format!("the body has to be a JSON object; {ONE_OF}")),
    }
}

fn read(body: &[u8]) -> Result<(Selector, PurgeMode), String> {
    let mut said = object(body)?;
    let mode = match said.remove("soft") {
        None | Some(Value::Bool(false)) => PurgeMode::Hard,
        Some(Value::Bool(true)) => PurgeMode::Soft,
        Some(_) => return Err("soft has to be true or false".into()),
    };
    Ok((meant(said)?, mode))
}

fn meant(said: Map<String, Value>) -> Result<Selector, String> {
    let mut said = said.into_iter();
    let (Some((name, value)), None) = (said.next(), said.next()) else { return Err(ONE_OF.into()) };
    let read = match (name.as_str(), &value) {
        ("ssh_key", Value::String(text)) => Selector::ssh_key(text),
        ("key_id", Value::Number(id)) => id.as_u64().filter(|id| *id > 0).map(Selector::KeyId),
        ("user_id", Value::Number(id)) => id.as_u64().filter(|id| *id > 0).map(Selector::UserId),
        ("username", Value::String(name)) if !name.is_empty() => Some(Selector::Username(name.clone())),
        ("route", Value::String(route)) => {
            Caching::CACHEABLE.into_iter().find(|kept| kept.as_str() == route).map(Selector::Route)
        }
        ("all", Value::Bool(true)) => Some(Selector::All),
        _ => None,
    };
    let expected = match name.as_str() {
        "ssh_key" => "an SSH public key in Base64, a line of a .pub file, or a fingerprint SHA256:…",
        "key_id" | "user_id" => "a number above 0",
        "username" => "a name",
        "route" => "\"authorized_keys\", \"discover\" or \"check\"",
        "all" => "true",
        _ => return Err(format!("{name:?} is unknown; {ONE_OF}")),
    };
    read.ok_or_else(|| format!("{name} has to be {expected}"))
}

const fn name(selector: &Selector) -> &'static str {
    match selector {
        Selector::SshKey(_) => "ssh_key",
        Selector::KeyId(_) => "key_id",
        Selector::UserId(_) => "user_id",
        Selector::Username(_) => "username",
        Selector::Route(_) => "route",
        Selector::All => "all",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read() {
        for (body, selector, mode) in [
            (r#"{"key_id":7}"#, Selector::KeyId(7), PurgeMode::Hard),
            (r#"{"user_id":7,"soft":true}"#, Selector::UserId(7), PurgeMode::Soft),
            (r#"{"soft":false,"username":"root"}"#, Selector::Username("root".into()), PurgeMode::Hard),
            (r#"{"route":"discover"}"#, Selector::Route(Caching::Discover), PurgeMode::Hard),
            (r#"{"ssh_key":"AAAA"}"#, Selector::ssh_key("AAAA").unwrap(), PurgeMode::Hard),
            (r#"{"all":true}"#, Selector::All, PurgeMode::Hard),
        ] {
            assert_eq!(read(body.as_bytes()), Ok((selector, mode)), "{body}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_reason() {
        for (body, told) in [
            ("", "JSON object"),
            ("[]", "JSON object"),
            ("{}", "exactly one of"),
            (r#"{"soft":true}"#, "exactly one of"),
            (r#"{"key_id":7,"user_id":7}"#, "exactly one of"),
            (r#"{"key":7}"#, "\"key\" is unknown"),
            (r#"{"key_id":"7"}"#, "key_id has to be a number"),
            (r#"{"key_id":0}"#, "key_id has to be a number"),
            (r#"{"key_id":-1}"#, "key_id has to be a number"),
            (r#"{"key_id":1.5}"#, "key_id has to be a number"),
            (r#"{"username":""}"#, "username has to be a name"),
            (r#"{"ssh_key":"MD5:aa"}"#, "ssh_key has to be an SSH public key"),
            (r#"{"route":"allowed"}"#, "route has to be"),
            (r#"{"all":false}"#, "all has to be true"),
            (r#"{"all":true,"soft":1}"#, "soft has to be"),
        ] {
            let refused = read(body.as_bytes()).unwrap_err();
            assert!(refused.contains(told), "{body}: {refused}");
        }
    }
}
