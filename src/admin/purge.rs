//! `POST /purge`: its JSON body and response.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::cache::Cache;
use crate::cache::purge::{PurgeMode, Selector};
use crate::fleet::Fleet;
use crate::fleet::ticket::Ticket;
use crate::route::Caching;

/// Purges the entries that `body` selects, here and at all gateways of the fleet. The ticket tells what becomes of the
/// latter, if the body is valid.
pub(super) fn purge(cache: &Cache, fleet: &Fleet, body: &[u8]) -> (StatusCode, Value, Option<Ticket>) {
    match parse(body) {
        Ok((selector, mode)) => {
            let selectors = std::slice::from_ref(&selector);
            // An answer that is on its way here must not be stored once the others have dropped theirs. They do not wait until
            // all entries were looked through here.
            let named = cache.purge_by_key(selectors, mode);
            let ticket = fleet.tell(selectors, mode, Duration::ZERO);
            let found = cache.purge(selectors, mode);
            let keys: Vec<Selector> = found.key_row_ids.into_iter().map(Selector::KeyId).collect();
            // Those of a user, which the others may not know. They are told in this order.
            let ticket = if keys.is_empty() { ticket } else { fleet.tell(&keys, mode, Duration::ZERO) };
            let purged = named + found.entries;
            tracing::info!(purged, what = name(&selector), soft = mode == PurgeMode::Soft, "purged");
            (StatusCode::OK, json!({ "purged": purged }), Some(ticket))
        }
        Err(message) => {
            let message = json!({ "message": format!("400 Bad Request: {message}") });
            (StatusCode::BAD_REQUEST, message, None)
        }
    }
}

const ONE_OF: &str = "say what is meant by exactly one of ssh_key, key_id, user_id, username, route, all";

/// Reads a body that has only a selector.
pub(super) fn selector(body: &[u8]) -> Result<Selector, String> {
    parse_selector(parse_object(body)?)
}

fn parse_object(body: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(format!("the body has to be a JSON object; {ONE_OF}")),
    }
}

fn parse(body: &[u8]) -> Result<(Selector, PurgeMode), String> {
    let mut fields = parse_object(body)?;
    let mode = match fields.remove("soft") {
        None | Some(Value::Bool(false)) => PurgeMode::Hard,
        Some(Value::Bool(true)) => PurgeMode::Soft,
        Some(_) => return Err("soft has to be true or false".into()),
    };
    Ok((parse_selector(fields)?, mode))
}

fn parse_selector(fields: Map<String, Value>) -> Result<Selector, String> {
    let mut fields = fields.into_iter();
    let (Some((name, value)), None) = (fields.next(), fields.next()) else { return Err(ONE_OF.into()) };
    let selector = match (name.as_str(), &value) {
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
    selector.ok_or_else(|| format!("{name} has to be {expected}"))
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
    fn valid_bodies_are_parsed() {
        for (body, selector, mode) in [
            (r#"{"key_id":7}"#, Selector::KeyId(7), PurgeMode::Hard),
            (r#"{"user_id":7,"soft":true}"#, Selector::UserId(7), PurgeMode::Soft),
            (r#"{"soft":false,"username":"root"}"#, Selector::Username("root".into()), PurgeMode::Hard),
            (r#"{"route":"discover"}"#, Selector::Route(Caching::Discover), PurgeMode::Hard),
            (r#"{"ssh_key":"AAAA"}"#, Selector::ssh_key("AAAA").unwrap(), PurgeMode::Hard),
            (r#"{"all":true}"#, Selector::All, PurgeMode::Hard),
        ] {
            assert_eq!(parse(body.as_bytes()), Ok((selector, mode)), "{body}");
        }
    }

    #[test]
    fn invalid_bodies_are_rejected_with_a_reason() {
        for (body, expected) in [
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
            let error = parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }
}
