//! One kept answer, in as little memory as it can be replayed from.
//!
//! A header map takes more room than most bodies, and all answers of one endpoint have the same
//! but for the `ETag`. So the map is shared by all entries that can share it, and what is an
//! entry's own, `ETag` and body, lies in one piece of memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use parking_lot::Mutex;

use super::ages::{Ages, Phase};
use super::freshness::Storable;
use super::snapshot::file::Record;
use crate::header::{CACHE_STATUS, REQUEST_ID};

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
const REPLAYED: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::VARY,
    header::X_CONTENT_TYPE_OPTIONS,
    header::X_FRAME_OPTIONS,
    header::X_XSS_PROTECTION,
    header::REFERRER_POLICY,
    header::STRICT_TRANSPORT_SECURITY,
];

/// An answer, when it came, and what it is good for at which age.
#[derive(Debug)]
pub struct Entry {
    /// Positive or negative.
    pub sign: Sign,
    pub(super) status: StatusCode,
    /// With a place for what is different each time, the request id that `observe` adds included: a
    /// map that grows is copied.
    pub(super) headers: Arc<HeaderMap>,
    own_headers: usize,
    pub(super) etag: Option<HeaderValue>,
    body: Bytes,
    /// When Rails was asked for it.
    asked: Instant,
    pub(super) ages: Ages,
    /// Somebody said that it is not true any more: from then on it is stale.
    is_softened: AtomicBool,
    /// How often it was given.
    hits: AtomicU32,
    /// When what it tells of ends, in Unix seconds; [`NEVER`] if it does not.
    expires: u32,
    /// The id of the key row or user that it tells of; 0 if of none.
    subject: u64,
    /// The flush count when Rails was asked: a flush since then makes the entry unusable.
    generation: u64,
}

/// No end, or one after the year 2105. A number, so that an entry takes no more memory for it.
pub(super) const NEVER: u32 = u32::MAX;

/// The header maps that entries share.
#[derive(Debug, Default)]
pub(super) struct Heads {
    known: Mutex<Vec<Arc<HeaderMap>>>,
}

impl Heads {
    /// Three endpoints, and perhaps a few releases of Rails behind one address. Beyond that, an
    /// entry has a map to itself.
    ///
    /// The values of these few live as long as the process, since each hit copies all of them: a
    /// count of references would be written to by every worker for every request.
    const MOST: usize = 32;

    /// The replayed headers of an answer, but for the `ETag`, and how many bytes they take if no other
    /// entry shares them.
    pub(super) fn of(&self, headers: &HeaderMap) -> (Arc<HeaderMap>, usize) {
        let mut kept = HeaderMap::with_capacity(REPLAYED.len() + 4);
        for name in &REPLAYED {
            for value in headers.get_all(name) {
                // A clone would keep the connection's whole read buffer in memory.
                if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
                    kept.append(name, copy);
                }
            }
        }
        let unsaid = HeaderValue::from_static("");
        if headers.contains_key(header::ETAG) {
            kept.insert(header::ETAG, unsaid.clone());
        }
        for name in [&header::AGE, &CACHE_STATUS, &REQUEST_ID] {
            kept.insert(name, unsaid.clone());
        }
        let mut known = self.known.lock();
        if let Some(same) = known.iter().find(|other| ***other == kept) {
            return (Arc::clone(same), 0);
        }
        if known.len() >= Self::MOST {
            let bytes = kept.iter().map(|(name, value)| PLACE + name.as_str().len() + value.len()).sum();
            return (Arc::new(kept), bytes);
        }
        kept.values_mut().for_each(immortalize);
        let kept = Arc::new(kept);
        known.push(Arc::clone(&kept));
        (kept, 0)
    }
}

/// What a header takes in a map, beside its name and its value.
const PLACE: usize = 112;

fn immortalize(value: &mut HeaderValue) {
    let bytes = Bytes::from_static(Box::leak(value.as_bytes().into()));
    if let Ok(immortal) = HeaderValue::from_maybe_shared(bytes) {
        *value = immortal;
    }
}

fn in_one_piece(etag: Option<&[u8]>, body: &[u8]) -> (Option<HeaderValue>, Bytes) {
    let length = etag.map_or(0, <[u8]>::len);
    let own = Bytes::from([etag.unwrap_or_default(), body].concat().into_boxed_slice());
    (etag.and_then(|_| HeaderValue::from_maybe_shared(own.slice(..length)).ok()), own.slice(length..))
}

impl Entry {
    /// Copies an answer, of which a clone would keep the connection's whole read buffer in memory.
    pub(super) fn new(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        storable: Storable,
        asked: Instant,
        (heads, generation): (&Heads, u64),
    ) -> Self {
        let (kept, own_headers) = heads.of(headers);
        let (etag, body) = in_one_piece(headers.get(header::ETAG).map(HeaderValue::as_bytes), body);
        Self {
            sign: storable.sign,
            status,
            headers: kept,
            own_headers,
            etag,
            body,
            asked,
            ages: storable.ages,
            is_softened: AtomicBool::new(false),
            hits: AtomicU32::new(0),
            expires: storable.expires.map_or(NEVER, |end| u32::try_from(end.max(0)).unwrap_or(NEVER)),
            subject: storable.subject.unwrap_or_default(),
            generation,
        }
    }

    /// What was saved, for which Rails was `asked` at some time, and which is good for no more than `most`;
    /// `None` if it makes no sense.
    pub(super) fn restored(
        saved: &Record<'_>,
        (headers, own_headers): &(Arc<HeaderMap>, usize),
        (asked, most): (Instant, Ages),
        generation: u64,
    ) -> Option<Self> {
        let (etag, body) = in_one_piece(saved.etag.map(|etag| &**etag), saved.body);
        Some(Self {
            sign: Sign::Positive,
            status: StatusCode::from_u16(saved.status).ok()?,
            headers: Arc::clone(headers),
            own_headers: *own_headers,
            etag,
            body,
            asked,
            ages: saved.ages.within(most),
            is_softened: AtomicBool::new(saved.is_softened),
            hits: AtomicU32::new(saved.hits),
            expires: saved.expires,
            subject: saved.subject,
            generation,
        })
    }

    /// Bytes of the body and of what lies beside it.
    pub(super) fn length(&self) -> usize {
        self.body.len() + self.etag.as_ref().map_or(0, HeaderValue::len) + self.own_headers
    }

    /// What it is good for at `now`, or `None` if it must not be used any more.
    pub fn phase(&self, now: Instant, generation: u64) -> Option<Phase> {
        self.ages().phase(self.age(now)).filter(|_| self.generation == generation)
    }

    /// Whether what it tells of has ended by the wall clock. Its age alone does not say so: that clock may
    /// have been set ahead, or the machine been suspended, since it came. `now` is only asked if need be.
    pub(super) fn has_ended(&self, now: impl FnOnce() -> i64) -> bool {
        self.expires != NEVER && now() >= i64::from(self.expires)
    }

    /// See [`Self::has_ended`].
    pub(super) fn expires(&self) -> u32 {
        self.expires
    }

    fn ages(&self) -> Ages {
        if self.is_softened() { self.ages.softened() } else { self.ages }
    }

    /// Whether it is good for anything once it is not fresh.
    pub(super) fn is_ever_stale(&self) -> bool {
        self.ages.softened().is_good_for_anything()
    }

    /// Whole seconds for which it stays fresh; less than 0 since it is not.
    pub fn fresh_for(&self, now: Instant) -> i64 {
        self.ages().fresh_for(self.age(now))
    }

    /// From now on it is not fresh any more.
    pub(super) fn soften(&self) {
        self.is_softened.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_softened(&self) -> bool {
        self.is_softened.load(Ordering::Relaxed)
    }

    /// How often it was given.
    pub(super) fn hits(&self) -> u32 {
        self.hits.load(Ordering::Relaxed)
    }

    /// What Rails said.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// The id of the key row or user that it tells of.
    pub(super) fn subject(&self) -> Option<u64> {
        Some(self.subject).filter(|id| *id > 0)
    }

    /// Whether it tells of the user with this name, whose case does not matter.
    pub(super) fn is_of_user(&self, name: &str) -> bool {
        let body = serde_json::from_slice::<serde_json::Value>(&self.body).unwrap_or_default();
        body.get("username").and_then(|is| is.as_str()).is_some_and(|is| is.eq_ignore_ascii_case(name))
    }

    /// How long ago Rails was asked for the answer: what it says may have changed since (RFC 9111 §4.2.3).
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.asked)
    }

    /// Whether it says that the owner of an SSH key is blocked.
    pub(super) fn is_of_blocked_owner(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// The answer, for one more caller, with `age` and `cache_status` to say where it comes from.
    pub fn to_response(&self, age: Duration, cache_status: HeaderValue) -> Response<Bytes> {
        self.hits.fetch_add(1, Ordering::Relaxed);
        let mut response = Response::new(self.body.clone());
        *response.status_mut() = self.status;
        let mut headers = HeaderMap::clone(&self.headers);
        if let Some(etag) = &self.etag {
            headers.insert(header::ETAG, etag.clone());
        }
        headers.insert(header::AGE, age.as_secs().into());
        headers.insert(CACHE_STATUS.clone(), cache_status);
        *response.headers_mut() = headers;
        response
    }
}
