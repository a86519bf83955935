//! One kept answer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::freshness::Storable;

/// Whether an answer says that something is there or that it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Sign {
    /// A key row, a user, the instance.
    Positive = 0,
    /// The 404 of an unknown key, the `null` of an unknown user.
    Negative = 1,
}

impl Sign {
    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Positive => "positive",
            Self::Negative => "negative",
        }
    }
}

/// What is replayed of an answer's head. A list of what may pass, not of what may not: a header
/// that Rails writes for one caller must not reach another because nobody thought of it.
const REPLAYED: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::ETAG,
    header::VARY,
    header::X_CONTENT_TYPE_OPTIONS,
    header::X_FRAME_OPTIONS,
    header::X_XSS_PROTECTION,
    header::REFERRER_POLICY,
    header::STRICT_TRANSPORT_SECURITY,
];

/// An answer, when it came, and until when it is good.
#[derive(Debug)]
pub struct Entry {
    /// Positive or negative.
    pub sign: Sign,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    stored: Instant,
    good_until: Instant,
    /// The flush count when Rails was asked: a flush since then makes the entry unusable.
    generation: u64,
}

impl Entry {
    /// Copies an answer. A clone would keep the connection's whole read buffer in memory, since
    /// header values and bodies are slices of it.
    pub fn new(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        storable: Storable,
        now: Instant,
        generation: u64,
    ) -> Self {
        let mut kept = HeaderMap::new();
        for name in &REPLAYED {
            for value in headers.get_all(name) {
                if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
                    kept.append(name, copy);
                }
            }
        }
        Self {
            sign: storable.sign,
            status,
            headers: kept,
            body: Bytes::copy_from_slice(body),
            stored: now,
            good_until: now + storable.ttl,
            generation,
        }
    }

    /// Age and remaining life at `now`, or `None` if the entry must not be used any more.
    pub fn good_at(&self, now: Instant, generation: u64) -> Option<(Duration, Duration)> {
        let ttl = self.good_until.checked_duration_since(now).filter(|ttl| !ttl.is_zero())?;
        (self.generation == generation).then(|| (self.age(now), ttl))
    }

    /// How long ago Rails gave the answer.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    /// The answer, for one more caller.
    pub fn to_response(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body.clone());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}
