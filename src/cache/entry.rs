//! One stored answer, in as little memory as it can be replayed from.
//!
//! The header map is shared with other entries ([`headers`](super::headers)); what is an entry's own, `ETag`
//! and body, lies in one piece of memory, without the texts that many answers have in common
//! ([`compact`](super::compact)).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use super::compact::CompactText;
use super::headers::{HeaderInterner, ReplayedHeaders};
use super::kind::EntryKind;
use super::lifetimes::{AgeLimits, Freshness};
use super::storable::Storable;
use crate::header::CACHE_STATUS;

/// An answer, when Rails was asked for it, and up to which age it may be used.
#[derive(Debug)]
pub struct Entry {
    /// Which store it belongs to.
    pub kind: EntryKind,
    pub(super) status: StatusCode,
    pub(super) headers: Arc<ReplayedHeaders>,
    /// `ETag` and body.
    pub(super) text: CompactText,
    /// When Rails was asked for it.
    pub(super) requested_at: Instant,
    pub(super) age_limits: AgeLimits,
    /// [`MARKED_STALE`] and [`DOUBTFUL`].
    pub(super) marks: AtomicU8,
    /// How often it was served.
    pub(super) hits: AtomicU32,
    /// The expiry date in the answer, in Unix seconds, or [`NO_EXPIRY`].
    pub(super) expires_at: u32,
    /// The id of the key row or user that the answer is about; 0 if there is none.
    pub(super) subject_id: u64,
    /// When Rails was asked, by what may take the entry's trust away: see [`trust`](super::trust).
    pub(super) generation: u64,
}

/// An entry that is usable.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The answer.
    pub entry: Arc<Entry>,
    /// How long ago Rails was asked for it, when it was looked up.
    pub age: Duration,
    /// What it may be used for.
    pub freshness: Freshness,
    /// Up to which ages.
    pub(super) age_limits: AgeLimits,
}

impl Hit {
    /// Whole seconds for which it stays fresh; below 0 once it is stale.
    pub fn remaining_ttl_s(&self) -> i64 {
        self.age_limits.remaining_ttl_s(self.age)
    }
}

/// No expiry date, or one after the year 2105. A number, so that an entry takes no more memory for it.
pub(super) const NO_EXPIRY: u32 = u32::MAX;

/// A soft purge, or a restart that may have missed one: it counts as stale, however young it is.
pub(super) const MARKED_STALE: u8 = 1;

/// It was refused in words that are not known: it may not be used if Rails fails.
const DOUBTFUL: u8 = 2;

impl Entry {
    /// Copies an answer, of which a clone would keep the connection's whole read buffer in memory.
    pub(super) fn new(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        storable: Storable,
        requested_at: Instant,
        (header_interner, generation): (&HeaderInterner, u64),
    ) -> Self {
        let etag = headers.get(header::ETAG).map(HeaderValue::as_bytes);
        let expires_at = storable.expires_at.map(|at| u32::try_from(at.max(0)).unwrap_or(NO_EXPIRY));
        Self {
            kind: storable.kind,
            status,
            headers: header_interner.intern(headers),
            text: CompactText::new(etag, body),
            requested_at,
            age_limits: storable.age_limits,
            marks: AtomicU8::new(0),
            hits: AtomicU32::new(0),
            expires_at: expires_at.unwrap_or(NO_EXPIRY),
            subject_id: storable.subject_id.unwrap_or_default(),
            generation,
        }
    }

    /// Bytes that it has outside itself.
    pub(super) fn heap_bytes(&self) -> usize {
        self.text.len() + self.headers.unshared_bytes
    }

    /// Whether the expiry date in the answer has passed by the wall clock. Its age alone does not say so: that
    /// clock may have been set ahead, or the machine been suspended, since it came. `now` (Unix seconds) is
    /// only called if need be.
    pub(super) fn has_expired(&self, now: impl FnOnce() -> i64) -> bool {
        self.expires_at != NO_EXPIRY && now() >= i64::from(self.expires_at)
    }

    /// In Unix seconds, or [`NO_EXPIRY`].
    pub(super) fn expires_at(&self) -> u32 {
        self.expires_at
    }

    /// Up to which ages it may be used, as far as it says itself.
    pub(super) fn age_limits(&self) -> AgeLimits {
        match self.marks.load(Ordering::Relaxed) {
            0 => self.age_limits,
            marks if marks & MARKED_STALE == 0 => self.lasting_age_limits(),
            _ => self.lasting_age_limits().without_fresh(),
        }
    }

    /// Those that hold whether it is marked stale or not.
    pub(super) fn lasting_age_limits(&self) -> AgeLimits {
        let is_doubtful = self.marks.load(Ordering::Relaxed) & DOUBTFUL != 0;
        if is_doubtful { self.age_limits.without_stale_if_error() } else { self.age_limits }
    }

    /// Whether there is an age at which it may be used although it is not fresh.
    pub(super) fn is_ever_usable_stale(&self) -> bool {
        self.lasting_age_limits().without_fresh().is_ever_usable()
    }

    /// From now on it is not fresh any more.
    pub(super) fn mark_stale(&self) {
        self.marks.fetch_or(MARKED_STALE, Ordering::Relaxed);
    }

    pub(super) fn is_marked_stale(&self) -> bool {
        self.marks.load(Ordering::Relaxed) & MARKED_STALE != 0
    }

    /// From now on it is not used any more if Rails fails.
    pub(super) fn mark_doubtful(&self) {
        self.marks.fetch_or(DOUBTFUL, Ordering::Relaxed);
    }

    /// How often it was served.
    pub(super) fn hits(&self) -> u32 {
        self.hits.load(Ordering::Relaxed)
    }

    pub(super) fn body(&self) -> Bytes {
        self.etag_and_body().1
    }

    /// The `ETag` is empty if there is none.
    pub(super) fn etag_and_body(&self) -> (Bytes, Bytes) {
        let mut text = Vec::with_capacity(self.text.usual_len());
        let etag_length = self.text.expand_into(&mut text);
        let mut body = Bytes::from(text);
        (body.split_to(etag_length), body)
    }

    /// The id of the key row or user that the answer is about.
    pub(super) fn subject_id(&self) -> Option<u64> {
        Some(self.subject_id).filter(|id| *id > 0)
    }

    /// The name of the user that the answer is about. Parses it.
    pub(super) fn username(&self) -> Option<String> {
        let body = serde_json::from_slice::<serde_json::Value>(&self.body()).unwrap_or_default();
        body.get("username")?.as_str().map(str::to_owned)
    }

    /// How long ago Rails was asked for the answer: what it says may have changed since (RFC 9111 §4.2.3).
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.requested_at)
    }

    /// Whether it says that the owner of an SSH key is blocked.
    pub(super) fn is_about_blocked_owner(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// The answer for one more caller, with `age` and the parts of `cache_status` in its headers.
    pub fn to_response(&self, age: Duration, cache_status: &[&[u8]]) -> Response<Bytes> {
        self.hits.fetch_add(1, Ordering::Relaxed);
        // All that is this response's own, in one piece of memory.
        let mut text = Vec::with_capacity(AGE_AND_CACHE_STATUS + self.text.usual_len());
        text.extend_from_slice(itoa::Buffer::new().format(age.as_secs()).as_bytes());
        let age_length = text.len();
        for part in cache_status {
            text.extend_from_slice(part);
        }
        let cache_status_length = text.len() - age_length;
        let etag_length = self.text.expand_into(&mut text);
        let mut body = Bytes::from(text);
        let own = [
            (&header::AGE, body.split_to(age_length)),
            (&CACHE_STATUS, body.split_to(cache_status_length)),
            (&header::ETAG, body.split_to(etag_length)),
        ];
        let mut headers = HeaderMap::clone(&self.headers.map);
        // Their slots come first, in this order, so that none has to be looked up.
        for ((name, slot), (own_name, value)) in headers.iter_mut().zip(own) {
            if name == own_name
                && let Ok(value) = HeaderValue::from_maybe_shared(value)
            {
                *slot = value;
            }
        }
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

/// Bytes for the values of both.
const AGE_AND_CACHE_STATUS: usize = 64;
