//! A shared answer, as it travels, and whether one may be used. Pure: no I/O, and time comes in as an argument.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes as Raw;
use serde_json::Value;

use crate::cache::purge::Selector;
use crate::cache::storable::{Storable, check_answer};
use crate::cache::{AgeLimits, EntryKind, Freshness, Key, Lifetimes, replayed_headers};
use crate::fleet::ring::{CLOCK_SKEW, Origin, Ring};

/// What is sealed. The fields travel in this order.
#[derive(Debug, Serialize, Deserialize)]
struct SharedAnswer<'a> {
    origin: Origin,
    /// Those of the gateway that has asked, with its jitter.
    age_limits: AgeLimits,
    status: u16,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a Raw)>,
    #[serde(borrow)]
    body: &'a Raw,
}

/// An answer of Rails, to be shared.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// All of its headers: those that may be replayed are shared.
    pub headers: &'a HeaderMap,
    /// Its body.
    pub body: &'a [u8],
    /// As what it was stored here.
    pub storable: Storable,
}

/// An answer that another gateway has shared, and that may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsableAnswer {
    /// Its status.
    pub status: StatusCode,
    /// The headers that are replayed.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// As what it may be stored.
    pub storable: Storable,
    /// How long ago Rails was asked for it, at most.
    pub age: Duration,
}

/// What decides whether an answer may be used.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// For how long answers may be used here.
    pub lifetimes: &'a Lifetimes,
    /// No older answer is used, however long it may be.
    pub max_age: Duration,
    /// Since the Unix epoch.
    pub now: Duration,
}

impl Answer<'_> {
    /// As it travels, before it is sealed; `None` if it may not be shared. Only what says that a key or a user exists is:
    /// what has just been made has to be known soon.
    pub fn encode(&self, origin: Origin) -> Option<Vec<u8>> {
        if self.storable.kind != EntryKind::Positive {
            return None;
        }
        let headers = replayed_headers(self.headers);
        postcard::to_allocvec(&SharedAnswer {
            origin,
            age_limits: self.storable.age_limits,
            status: self.status.as_u16(),
            headers: headers.map(|(name, value)| (name.as_str(), Raw::new(value.as_bytes()))).collect(),
            body: Raw::new(self.body),
        })
        .ok()
    }
}

/// The selectors of the purges that mean an answer with this body.
pub fn meaning(key: &Key, storable: &Storable, body: &[u8]) -> Vec<Selector> {
    let body = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let username = body.get("username").and_then(Value::as_str);
    Selector::all_that_mean(key, storable.subject_id, username)
}

/// The answer for `key` that was shared as `plain`, if it may be used: if this gateway would store it, it is fresh, and no
/// purge forbids it.
pub fn usable(plain: &[u8], key: &Key, ring: &Ring, terms: &Terms<'_>) -> Option<UsableAnswer> {
    let answer: SharedAnswer<'_> = postcard::from_bytes(plain).ok()?;
    let asked_at = Duration::from_millis(answer.origin.asked_at_ms);
    // The other clock may be ahead by as much as this one may be behind.
    let age = (terms.now + CLOCK_SKEW).checked_sub(asked_at)?;
    let status = StatusCode::from_u16(answer.status).ok()?;
    let now = i64::try_from(terms.now.as_secs()).ok()?;
    let storable = check_answer(key.caching(), key, status, answer.body, terms.lifetimes, now).ok()?;
    let age_limits = answer.age_limits.min(storable.age_limits);
    let storable = Storable { age_limits, ..storable };
    let is_usable = storable.kind == EntryKind::Positive
        && age <= terms.max_age + CLOCK_SKEW
        && age_limits.freshness(age) == Some(Freshness::Fresh)
        && ring.allows(answer.origin, &meaning(key, &storable, answer.body));
    let headers = answer.headers.iter().map(|(name, value)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
    });
    let headers = headers.collect::<Option<HeaderMap>>()?;
    is_usable.then(|| UsableAnswer { status, headers, body: answer.body.to_vec(), storable, age })
}

#[cfg(test)]
mod tests;
