//! The headers that entries replay. A header map takes more room than most bodies, and all answers of one
//! endpoint have the same headers but for the `ETag`; so entries share their maps.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;

use crate::header::{CACHE_STATUS, REQUEST_ID};

/// The headers that are replayed. A list of what may pass, not of what may not: a header
/// that Rails writes for one caller must not reach another because it was forgotten here.
static REPLAYED: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::VARY,
    header::X_CONTENT_TYPE_OPTIONS,
    header::X_FRAME_OPTIONS,
    header::X_XSS_PROTECTION,
    header::REFERRER_POLICY,
    header::STRICT_TRANSPORT_SECURITY,
];

/// The headers of an answer that are replayed, the `ETag` among them.
pub fn replayed_headers(headers: &HeaderMap) -> impl Iterator<Item = (&'static HeaderName, &HeaderValue)> {
    let names = REPLAYED.iter().chain([&header::ETAG]);
    names.flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)))
}

/// The headers that an entry replays.
#[derive(Debug)]
pub(super) struct ReplayedHeaders {
    /// With a slot for what is different each time, including the request id that `observe` adds: a
    /// map that grows is copied.
    pub(super) map: HeaderMap,
    /// Bytes of `map`; 0 if other entries share it.
    pub(super) unshared_bytes: usize,
}

impl ReplayedHeaders {
    /// In the order in which a snapshot has them, slots included.
    pub(super) fn in_saved_order(&self) -> impl Iterator<Item = (&'static HeaderName, &HeaderValue)> {
        let slots = [&header::AGE, &CACHE_STATUS, &REQUEST_ID].into_iter();
        replayed_headers(&self.map).chain(slots.filter_map(|name| Some((name, self.map.get(name)?))))
    }
}

/// The header maps that entries share.
#[derive(Debug, Default)]
pub(super) struct HeaderInterner {
    shared: Mutex<Vec<Arc<ReplayedHeaders>>>,
}

impl HeaderInterner {
    /// Three endpoints, and perhaps a few releases of Rails behind one address. Beyond that, an
    /// entry has a map to itself.
    ///
    /// The values of these few live as long as the process, since each hit copies all of them: a
    /// reference count would be written to by every worker for every request.
    const MAX_SHARED: usize = 32;

    /// The replayed headers of an answer, but for the `ETag`.
    pub(super) fn intern(&self, headers: &HeaderMap) -> Arc<ReplayedHeaders> {
        let mut replayed = HeaderMap::with_capacity(REPLAYED.len() + 4);
        let placeholder = HeaderValue::from_static("");
        let etag = Some(&header::ETAG).filter(|etag| headers.contains_key(*etag));
        // First, in the order in which `Entry::to_response` fills them.
        for name in [&header::AGE, &CACHE_STATUS].into_iter().chain(etag).chain([&REQUEST_ID]) {
            replayed.insert(name, placeholder.clone());
        }
        for name in &REPLAYED {
            for value in headers.get_all(name) {
                // A clone would keep the connection's whole read buffer in memory.
                if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
                    replayed.append(name, copy);
                }
            }
        }
        let mut shared = self.shared.lock();
        if let Some(equal) = shared.iter().find(|shared| shared.map == replayed) {
            return Arc::clone(equal);
        }
        if shared.len() >= Self::MAX_SHARED {
            let sizes = replayed.iter().map(|(name, value)| HEADER_SLOT + name.as_str().len() + value.len());
            let unshared_bytes = sizes.sum();
            return Arc::new(ReplayedHeaders { map: replayed, unshared_bytes });
        }
        replayed.values_mut().for_each(leak);
        let replayed = Arc::new(ReplayedHeaders { map: replayed, unshared_bytes: 0 });
        shared.push(Arc::clone(&replayed));
        replayed
    }
}

/// Bytes that a header takes in a map, beside its name and its value.
const HEADER_SLOT: usize = 112;

fn leak(value: &mut HeaderValue) {
    let bytes = Bytes::from_static(Box::leak(value.as_bytes().into()));
    if let Ok(leaked) = HeaderValue::from_maybe_shared(bytes) {
        *value = leaked;
    }
}
