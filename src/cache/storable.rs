//! Decides whether an answer may be stored, and until when. Pure: no I/O and no clock.
//!
//! Rails' own cache headers say `max-age=0` on everything (contract §3.4), so the time to live
//! is the operator's choice. Two things are never stored: any status but 200, except the exact
//! answers that mean "no such key" (404) and "its owner is blocked" (401); and any body that is not of the
//! expected shape.

use std::time::Duration;

use http::header::{self, HeaderMap};
use http::{Response, StatusCode};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::key::Key;
use super::kind::EntryKind;
use super::lifetimes::{AgeLimits, Lifetimes};
use crate::route::Caching;

/// An answer that may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storable {
    /// Which store it belongs to.
    pub kind: EntryKind,
    /// Up to which age it may be used.
    pub age_limits: AgeLimits,
    /// The answer's own expiry date (`expires_at`), in Unix seconds by the wall clock.
    pub expires_at: Option<i64>,
    /// The id of the key row or user that the answer is about.
    pub subject_id: Option<u64>,
}

/// Why an answer is not stored; a label in metrics and in `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoStoreReason {
    /// Not a 200, nor the exact answer for an unknown key or one whose owner is blocked.
    Status,
    /// Not `application/json`, or encoded.
    Type,
    /// Larger than `cache.max_body`, or than all that `cache.max_bytes` leaves for its kind.
    TooLarge,
    /// Not the JSON that this endpoint gives.
    Shape,
    /// The instance says that Redis is down: a state to ask for anew.
    Unhealthy,
    /// The answer to another question than the one that was asked.
    Mismatch,
    /// Already expired, or with an expiry date that cannot be read.
    Expired,
    /// The time to live is configured as zero.
    Disabled,
    /// An invalidation came while Rails was answering.
    Fenced,
}

impl NoStoreReason {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Type => "type",
            Self::TooLarge => "too_large",
            Self::Shape => "shape",
            Self::Unhealthy => "unhealthy",
            Self::Mismatch => "mismatch",
            Self::Expired => "expired",
            Self::Disabled => "disabled",
            Self::Fenced => "fenced",
        }
    }
}

/// Looks at the head alone: is it worth reading the body into memory? Most answers that will
/// not be stored are recognised here and can stream.
pub fn check_head<B>(caching: Caching, response: &Response<B>, max_body: usize) -> Result<(), NoStoreReason> {
    match (response.status(), caching) {
        (StatusCode::OK, _) | (StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED, Caching::AuthorizedKeys) => {
        }
        _ => return Err(NoStoreReason::Status),
    }
    if !is_plain_json(response.headers()) {
        return Err(NoStoreReason::Type);
    }
    let declared = response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    match declared.map(str::parse::<usize>) {
        Some(Ok(length)) if length > max_body => Err(NoStoreReason::TooLarge),
        _ => Ok(()),
    }
}

/// Whether the body is JSON, and not encoded.
pub fn is_plain_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// Looks at the whole answer at `now` (Unix seconds), once [`check_head`] has let it through.
pub fn check_answer(
    caching: Caching,
    key: &Key,
    status: StatusCode,
    body: &[u8],
    lifetimes: &Lifetimes,
    now: i64,
) -> Result<Storable, NoStoreReason> {
    let body: Value = serde_json::from_slice(body).map_err(|_| NoStoreReason::Shape)?;
    let kind = entry_kind(caching, status, &body)?;
    if kind == EntryKind::Positive && !key.is_answered_by(&body) {
        return Err(NoStoreReason::Mismatch);
    }
    let age_limits = lifetimes.age_limits(caching, kind);
    if age_limits.is_disabled() {
        return Err(NoStoreReason::Disabled);
    }
    let (expires_at, age_limits) = match expiry_date(&body)? {
        Some(expires_at) => (Some(expires_at), age_limits.capped_at(time_left(expires_at, now)?)),
        None => (None, age_limits),
    };
    Ok(Storable { kind, age_limits, expires_at, subject_id: body.get("id").and_then(Value::as_u64) })
}

/// The kind of an answer that this endpoint gives; any other is an error.
fn entry_kind(caching: Caching, status: StatusCode, body: &Value) -> Result<EntryKind, NoStoreReason> {
    let has = |name: &str, is: fn(&Value) -> bool| body.get(name).is_some_and(is);
    match (caching, status) {
        (Caching::AuthorizedKeys, StatusCode::NOT_FOUND) => {
            let is_unknown = *body == serde_json::json!({"message": "404 Key Not Found"});
            if is_unknown { Ok(EntryKind::Negative) } else { Err(NoStoreReason::Shape) }
        }
        // Of a key whose owner is blocked, since 18.7.2. A caller's bad credential is `401 Unauthorized`.
        (Caching::AuthorizedKeys, StatusCode::UNAUTHORIZED) => {
            let is_blocked = *body == serde_json::json!({"message": "401 Unauthorized - Key"});
            if is_blocked { Ok(EntryKind::Negative) } else { Err(NoStoreReason::Status) }
        }
        (Caching::AuthorizedKeys, StatusCode::OK)
            if has("id", Value::is_u64) && has("key", Value::is_string) =>
        {
            Ok(EntryKind::Positive)
        }
        (Caching::Discover, StatusCode::OK) if body.is_null() => Ok(EntryKind::Negative),
        (Caching::Discover, StatusCode::OK)
            if has("id", Value::is_u64) && has("username", Value::is_string) =>
        {
            Ok(EntryKind::Positive)
        }
        (Caching::Check, StatusCode::OK)
            if has("redis", Value::is_boolean) && has("api_version", Value::is_string) =>
        {
            if body.get("redis") == Some(&Value::Bool(true)) {
                Ok(EntryKind::Positive)
            } else {
                Err(NoStoreReason::Unhealthy)
            }
        }
        _ => Err(NoStoreReason::Shape),
    }
}

/// The body's own `expires_at`, in Unix seconds, if it has one. A date that cannot be read could be any, so
/// nothing is stored then.
fn expiry_date(body: &Value) -> Result<Option<i64>, NoStoreReason> {
    let text = match body.get("expires_at") {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_str().ok_or(NoStoreReason::Expired)?,
    };
    let expires_at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| NoStoreReason::Expired)?;
    Ok(Some(expires_at.unix_timestamp()))
}

/// The time that is left at `now`, for a clock that cannot be set.
fn time_left(expires_at: i64, now: i64) -> Result<Duration, NoStoreReason> {
    // Both are cut down to whole seconds, so the last one is not to be trusted.
    match u64::try_from(expires_at.saturating_sub(now).saturating_sub(1)) {
        Ok(0) | Err(_) => Err(NoStoreReason::Expired),
        Ok(left) => Ok(Duration::from_secs(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::Caching::{AuthorizedKeys as Keys, Check, Discover};
    use super::EntryKind::{Negative, Positive};
    use super::*;

    const NOW: i64 = 1_700_000_000; // 2023-11-14T22:13:20Z

    fn verdict(caching: Caching, status: u16, body: &str) -> Result<Storable, NoStoreReason> {
        let status = StatusCode::from_u16(status).unwrap_or_default();
        // Answers for no key in particular: that they fit the question is tested with the keys.
        check_answer(caching, &Key::UserOfKey(1), status, body.as_bytes(), &Lifetimes::default(), NOW)
    }

    fn verdict_fresh(caching: Caching, status: u16, body: &str) -> Result<(EntryKind, i64), NoStoreReason> {
        verdict(caching, status, body)
            .map(|stored| (stored.kind, stored.age_limits.remaining_ttl_s(Duration::ZERO)))
    }

    const fn stored(kind: EntryKind, seconds: i64) -> Result<(EntryKind, i64), NoStoreReason> {
        Ok((kind, seconds))
    }

    #[test]
    fn only_the_expected_answers_are_stored() {
        for (caching, status, body, expected) in [
            (Keys, 200, r#"{"id":1,"key":"ssh-rsa A"}"#, stored(Positive, 60)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":null}"#, stored(Positive, 60)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"2023-11-14T22:13:30.000Z"}"#, stored(Positive, 9)),
            (
                Keys,
                200,
                r#"{"id":1,"key":"k","expires_at":"2023-11-15T00:13:30+02:00"}"#,
                stored(Positive, 9),
            ),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"2033-11-14T22:13:30Z"}"#, stored(Positive, 60)),
            (
                Keys,
                200,
                r#"{"id":1,"key":"k","expires_at":"2023-11-14T22:13:20Z"}"#,
                Err(NoStoreReason::Expired),
            ),
            (
                Keys,
                200,
                r#"{"id":1,"key":"k","expires_at":"2020-01-01T00:00:00Z"}"#,
                Err(NoStoreReason::Expired),
            ),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"tomorrow"}"#, Err(NoStoreReason::Expired)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":5}"#, Err(NoStoreReason::Expired)),
            (Keys, 404, r#"{"message":"404 Key Not Found"}"#, stored(Negative, 5)),
            (Keys, 404, r#"{"error":"404 Not Found"}"#, Err(NoStoreReason::Shape)),
            (Keys, 404, r#"{"message":"404 Key Not Found","x":1}"#, Err(NoStoreReason::Shape)),
            (Keys, 200, "null", Err(NoStoreReason::Shape)),
            (Keys, 200, r#"{"id":"1","key":"k"}"#, Err(NoStoreReason::Shape)),
            (Keys, 200, r#"{"id":1}"#, Err(NoStoreReason::Shape)),
            (Keys, 200, "", Err(NoStoreReason::Shape)),
            (Keys, 200, r#"{"id":1,"key":"#, Err(NoStoreReason::Shape)),
            (Keys, 200, r#"[{"id":1,"key":"k"}]"#, Err(NoStoreReason::Shape)),
            (Discover, 200, r#"{"id":1,"username":"root","name":"R"}"#, stored(Positive, 60)),
            (Discover, 200, "null", stored(Negative, 5)),
            (Discover, 200, "{}", Err(NoStoreReason::Shape)),
            (Check, 200, r#"{"api_version":"v4","redis":true}"#, stored(Positive, 1)),
            (Check, 200, r#"{"api_version":"v4","redis":false}"#, Err(NoStoreReason::Unhealthy)),
            (Check, 200, "null", Err(NoStoreReason::Shape)),
        ] {
            assert_eq!(verdict_fresh(caching, status, body), expected, "{caching:?} {status} {body}");
        }
    }

    #[test]
    fn a_ttl_of_zero_stores_nothing() {
        let lifetimes = Lifetimes { check: Duration::ZERO, ..Lifetimes::default() };
        let body = br#"{"api_version":"v4","redis":true}"#;
        let verdict = check_answer(Caching::Check, &Key::Instance, StatusCode::OK, body, &lifetimes, NOW);
        assert_eq!(verdict, Err(NoStoreReason::Disabled));
        assert!(!lifetimes.is_enabled(Caching::Check));
        assert!(lifetimes.is_enabled(Caching::Discover));
    }

    #[test]
    fn the_head_alone_rules_most_answers_out() {
        let head = |caching, status: u16, kind: &str, length: &str, encoding: Option<&str>| {
            let mut answer = Response::builder().status(status).header("content-type", kind);
            answer = answer.header("content-length", length);
            if let Some(encoding) = encoding {
                answer = answer.header("content-encoding", encoding);
            }
            answer.body(()).map(|answer| check_head(caching, &answer, 100)).ok()
        };
        let json = "application/json";
        assert_eq!(head(Keys, 200, json, "10", None), Some(Ok(())));
        assert_eq!(head(Keys, 200, "application/json; charset=utf-8", "10", None), Some(Ok(())));
        assert_eq!(head(Keys, 404, json, "10", None), Some(Ok(())));
        assert_eq!(head(Discover, 404, json, "10", None), Some(Err(NoStoreReason::Status)));
        assert_eq!(head(Keys, 401, json, "10", None), Some(Ok(())));
        for status in [201, 204, 300, 304, 403, 429, 500, 502, 503] {
            assert_eq!(head(Keys, status, json, "10", None), Some(Err(NoStoreReason::Status)), "{status}");
        }
        assert_eq!(head(Keys, 200, "text/html", "10", None), Some(Err(NoStoreReason::Type)));
        assert_eq!(head(Keys, 200, json, "10", Some("gzip")), Some(Err(NoStoreReason::Type)));
        assert_eq!(head(Keys, 200, json, "101", None), Some(Err(NoStoreReason::TooLarge)));
    }
}
