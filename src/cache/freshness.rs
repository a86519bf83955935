//! May this answer be kept, and until when? Pure: the answer and the time in, a verdict out.
//!
//! Rails' own cache headers say `max-age=0` on everything (contract §3.4), so the time to live
//! is the operator's choice. What is never kept is not: any status but 200, bar the exact
//! answers that mean "no such key" (404) and "its owner is blocked" (401); any body that is not of the
//! expected shape.

use std::time::Duration;

use http::header::{self, HeaderMap};
use http::{Response, StatusCode};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ages::{Ages, Lifetimes};
use super::entry::Sign;
use super::key::Key;
use crate::route::Caching;

/// An answer that may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storable {
    /// Which store it belongs to.
    pub sign: Sign,
    /// What it is good for at which age.
    pub ages: Ages,
    /// When what it tells of ends (`expires_at`), in Unix seconds by the wall clock, whatever its age.
    pub expires: Option<i64>,
    /// The id of the key row or user that it tells of.
    pub subject: Option<u64>,
}

/// Why an answer is not kept; a label in metrics and in `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoStore {
    /// Not a 200, nor the exact answer for an unknown key or one whose owner is blocked.
    Status,
    /// Not `application/json`, or encoded.
    Type,
    /// Larger than `cache.max_body`, or than all that `cache.max_bytes` leaves for its kind.
    TooLarge,
    /// Not the JSON that this endpoint gives.
    Shape,
    /// Redis is down, says the instance: a state to ask for anew.
    Unhealthy,
    /// The answer to another question than the one that was asked.
    Mismatch,
    /// Already expired, or with an expiry that cannot be read.
    Expired,
    /// The time to live is configured as zero.
    Disabled,
    /// An invalidation came while Rails was answering.
    Fenced,
}

impl NoStore {
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
/// not be kept are recognised here and can stream.
pub fn judge_head<B>(caching: Caching, answer: &Response<B>, max_body: usize) -> Result<(), NoStore> {
    match (answer.status(), caching) {
        (StatusCode::OK, _) | (StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED, Caching::AuthorizedKeys) => {
        }
        _ => return Err(NoStore::Status),
    }
    if !is_plain_json(answer.headers()) {
        return Err(NoStore::Type);
    }
    let declared = answer.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    match declared.map(str::parse::<usize>) {
        Some(Ok(length)) if length > max_body => Err(NoStore::TooLarge),
        _ => Ok(()),
    }
}

/// Whether the body is JSON, and not encoded.
pub fn is_plain_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let media_type = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// Looks at the whole answer at `now` (Unix seconds).
pub fn judge(
    caching: Caching,
    key: &Key,
    status: StatusCode,
    body: &[u8],
    lifetimes: &Lifetimes,
    now: i64,
) -> Result<Storable, NoStore> {
    let body: Value = serde_json::from_slice(body).map_err(|_| NoStore::Shape)?;
    let sign = sign_of(caching, status, &body)?;
    if sign == Sign::Positive && !key.is_answered_by(&body) {
        return Err(NoStore::Mismatch);
    }
    let ages = lifetimes.of(caching, sign);
    if ages.is_none() {
        return Err(NoStore::Disabled);
    }
    let (expires, ages) = match expiry(&body)? {
        Some(expires) => (Some(expires), ages.until(life_left(expires, now)?)),
        None => (None, ages),
    };
    Ok(Storable { sign, ages, expires, subject: body.get("id").and_then(Value::as_u64) })
}

/// What kind of answer the body is, if it is one that this endpoint gives.
fn sign_of(caching: Caching, status: StatusCode, body: &Value) -> Result<Sign, NoStore> {
    let has = |name: &str, is: fn(&Value) -> bool| body.get(name).is_some_and(is);
    match (caching, status) {
        (Caching::AuthorizedKeys, StatusCode::NOT_FOUND) => {
            let unknown = *body == serde_json::json!({"message": "404 Key Not Found"});
            if unknown { Ok(Sign::Negative) } else { Err(NoStore::Shape) }
        }
        // Of a key whose owner is blocked, since 18.7.2. A caller's bad credential is `401 Unauthorized`.
        (Caching::AuthorizedKeys, StatusCode::UNAUTHORIZED) => {
            let blocked = *body == serde_json::json!({"message": "401 Unauthorized - Key"});
            if blocked { Ok(Sign::Negative) } else { Err(NoStore::Status) }
        }
        (Caching::AuthorizedKeys, StatusCode::OK)
            if has("id", Value::is_u64) && has("key", Value::is_string) =>
        {
            Ok(Sign::Positive)
        }
        (Caching::Discover, StatusCode::OK) if body.is_null() => Ok(Sign::Negative),
        (Caching::Discover, StatusCode::OK)
            if has("id", Value::is_u64) && has("username", Value::is_string) =>
        {
            Ok(Sign::Positive)
        }
        (Caching::Check, StatusCode::OK)
            if has("redis", Value::is_boolean) && has("api_version", Value::is_string) =>
        {
            if body.get("redis") == Some(&Value::Bool(true)) {
                Ok(Sign::Positive)
            } else {
                Err(NoStore::Unhealthy)
            }
        }
        _ => Err(NoStore::Shape),
    }
}

/// The body's own `expires_at`, if it has one. A date that cannot be read could be any, so nothing is
/// kept then.
fn expiry(body: &Value) -> Result<Option<i64>, NoStore> {
    let text = match body.get("expires_at") {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_str().ok_or(NoStore::Expired)?,
    };
    let expires = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| NoStore::Expired)?;
    Ok(Some(expires.unix_timestamp()))
}

/// The time that is left at `now`, on a clock that cannot be set.
fn life_left(expires: i64, now: i64) -> Result<Duration, NoStore> {
    // Both are cut down to whole seconds, so one is not to be trusted.
    match u64::try_from(expires.saturating_sub(now).saturating_sub(1)) {
        Ok(0) | Err(_) => Err(NoStore::Expired),
        Ok(left) => Ok(Duration::from_secs(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::Caching::{AuthorizedKeys as Keys, Check, Discover};
    use super::Sign::{Negative, Positive};
    use super::*;

    const NOW: i64 = 1_700_000_000; // 2023-11-14T22:13:20Z

    fn verdict(caching: Caching, status: u16, body: &str) -> Result<Storable, NoStore> {
        let status = StatusCode::from_u16(status).unwrap_or_default();
        // Answers for no key in particular: that they fit the question is tested with the keys.
        judge(caching, &Key::UserOfKey(1), status, body.as_bytes(), &Lifetimes::default(), NOW)
    }

    fn verdict_fresh(caching: Caching, status: u16, body: &str) -> Result<(Sign, i64), NoStore> {
        verdict(caching, status, body).map(|stored| (stored.sign, stored.ages.fresh_for(Duration::ZERO)))
    }

    const fn kept(sign: Sign, seconds: i64) -> Result<(Sign, i64), NoStore> {
        Ok((sign, seconds))
    }

    #[test]
    fn only_the_expected_answers_are_kept() {
        for (caching, status, body, expected) in [
            (Keys, 200, r#"{"id":1,"key":"ssh-rsa A"}"#, kept(Positive, 60)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":null}"#, kept(Positive, 60)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"2023-11-14T22:13:30.000Z"}"#, kept(Positive, 9)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"2023-11-15T00:13:30+02:00"}"#, kept(Positive, 9)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"2033-11-14T22:13:30Z"}"#, kept(Positive, 60)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"2023-11-14T22:13:20Z"}"#, Err(NoStore::Expired)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"2020-01-01T00:00:00Z"}"#, Err(NoStore::Expired)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":"tomorrow"}"#, Err(NoStore::Expired)),
            (Keys, 200, r#"{"id":1,"key":"k","expires_at":5}"#, Err(NoStore::Expired)),
            (Keys, 404, r#"{"message":"404 Key Not Found"}"#, kept(Negative, 5)),
            (Keys, 404, r#"{"error":"404 Not Found"}"#, Err(NoStore::Shape)),
            (Keys, 404, r#"{"message":"404 Key Not Found","x":1}"#, Err(NoStore::Shape)),
            (Keys, 200, "null", Err(NoStore::Shape)),
            (Keys, 200, r#"{"id":"1","key":"k"}"#, Err(NoStore::Shape)),
            (Keys, 200, r#"{"id":1}"#, Err(NoStore::Shape)),
            (Keys, 200, "", Err(NoStore::Shape)),
            (Keys, 200, r#"{"id":1,"key":"#, Err(NoStore::Shape)),
            (Keys, 200, r#"[{"id":1,"key":"k"}]"#, Err(NoStore::Shape)),
            (Discover, 200, r#"{"id":1,"username":"root","name":"R"}"#, kept(Positive, 60)),
            (Discover, 200, "null", kept(Negative, 5)),
            (Discover, 200, "{}", Err(NoStore::Shape)),
            (Check, 200, r#"{"api_version":"v4","redis":true}"#, kept(Positive, 1)),
            (Check, 200, r#"{"api_version":"v4","redis":false}"#, Err(NoStore::Unhealthy)),
            (Check, 200, "null", Err(NoStore::Shape)),
        ] {
            assert_eq!(verdict_fresh(caching, status, body), expected, "{caching:?} {status} {body}");
        }
    }

    #[test]
    fn a_time_to_live_of_zero_keeps_nothing() {
        let lifetimes = Lifetimes { check: Duration::ZERO, ..Lifetimes::default() };
        let body = br#"{"api_version":"v4","redis":true}"#;
        let verdict = judge(Caching::Check, &Key::Instance, StatusCode::OK, body, &lifetimes, NOW);
        assert_eq!(verdict, Err(NoStore::Disabled));
        assert!(!lifetimes.keeps(Caching::Check));
        assert!(lifetimes.keeps(Caching::Discover));
    }

    #[test]
    fn the_head_alone_rules_most_answers_out() {
        let head = |caching, status: u16, kind: &str, length: &str, encoding: Option<&str>| {
            let mut answer = Response::builder().status(status).header("content-type", kind);
            answer = answer.header("content-length", length);
            if let Some(encoding) = encoding {
                answer = answer.header("content-encoding", encoding);
            }
            answer.body(()).map(|answer| judge_head(caching, &answer, 100)).ok()
        };
        let json = "application/json";
        assert_eq!(head(Keys, 200, json, "10", None), Some(Ok(())));
        assert_eq!(head(Keys, 200, "application/json; charset=utf-8", "10", None), Some(Ok(())));
        assert_eq!(head(Keys, 404, json, "10", None), Some(Ok(())));
        assert_eq!(head(Discover, 404, json, "10", None), Some(Err(NoStore::Status)));
        assert_eq!(head(Keys, 401, json, "10", None), Some(Ok(())));
        for status in [201, 204, 300, 304, 403, 429, 500, 502, 503] {
            assert_eq!(head(Keys, status, json, "10", None), Some(Err(NoStore::Status)), "{status}");
        }
        assert_eq!(head(Keys, 200, "text/html", "10", None), Some(Err(NoStore::Type)));
        assert_eq!(head(Keys, 200, json, "10", Some("gzip")), Some(Err(NoStore::Type)));
        assert_eq!(head(Keys, 200, json, "101", None), Some(Err(NoStore::TooLarge)));
    }
}
