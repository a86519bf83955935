//! `POST /inspect`: what is kept, of everything or of something.

use http::StatusCode;
use serde_json::{Value, json};

use super::purge::selector;
use crate::cache::inspect::EntryInfo;
use crate::cache::{Cache, Freshness};
use crate::clock::Clock;
use crate::route::Caching;

/// How many entries are shown.
const MOST: usize = 100;

/// How many entries there are of each endpoint.
pub(super) fn totals(cache: &Cache) -> Value {
    let of = |caching: Caching| {
        let [positive, negative] = cache.entry_counts_of(caching);
        (caching.as_str().to_owned(), json!({ "positive": positive, "negative": negative }))
    };
    Value::Object(Caching::CACHEABLE.into_iter().map(of).collect())
}

/// What is kept of what `body` means.
pub(super) fn inspect(cache: &Cache, body: &[u8]) -> (StatusCode, Value) {
    match selector(body) {
        Ok(selector) => {
            let (entries, all) = cache.inspect(&selector, Clock::System.now(), MOST);
            let entries: Vec<_> = entries.iter().map(entry).collect();
            (StatusCode::OK, json!({ "entries": entries, "of": all }))
        }
        Err(wrong) => (StatusCode::BAD_REQUEST, json!({ "message": format!("400 Bad Request: {wrong}") })),
    }
}

fn entry(info: &EntryInfo) -> Value {
    json!({
        "route": info.caching.as_str(),
        "key": info.key,
        "store": info.kind.as_str(),
        "state": match info.freshness {
            Some(Freshness::Fresh) => "fresh",
            Some(Freshness::StaleWhileRevalidate) => "stale_while_revalidate",
            Some(Freshness::StaleIfError) => "stale_if_error",
            None => "gone",
        },
        "age_s": info.age.as_secs(),
        "ttl_s": info.remaining_ttl_s,
        "hits": info.hits,
        "id": info.subject_id,
    })
}
