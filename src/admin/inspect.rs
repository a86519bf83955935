//! `POST /inspect`: the entries of the cache, counted or one by one.

use http::StatusCode;
use serde_json::{Value, json};

use super::purge::selector;
use crate::cache::inspect::EntryInfo;
use crate::cache::{Cache, Freshness};
use crate::clock::Clock;
use crate::route::Caching;

/// How many entries are listed.
const MAX_ENTRIES: usize = 100;

/// The number of entries of each endpoint.
pub(super) fn inspect_all(cache: &Cache) -> Value {
    let of = |caching: Caching| {
        let [positive, negative] = cache.entry_counts_of(caching);
        (caching.as_str().to_owned(), json!({ "positive": positive, "negative": negative }))
    };
    Value::Object(Caching::CACHEABLE.into_iter().map(of).collect())
}

/// The entries that `body` selects.
pub(super) fn inspect(cache: &Cache, body: &[u8]) -> (StatusCode, Value) {
    match selector(body) {
        Ok(selector) => {
            let (entries, all) = cache.inspect(&selector, Clock::System.now(), MAX_ENTRIES);
            let entries: Vec<_> = entries.iter().map(entry).collect();
            (StatusCode::OK, json!({ "entries": entries, "of": all }))
        }
        Err(message) => {
            (StatusCode::BAD_REQUEST, json!({ "message": format!("400 Bad Request: {message}") }))
        }
    }
}

fn entry(entry: &EntryInfo) -> Value {
    json!({
        "route": entry.caching.as_str(),
        "key": entry.key,
        "store": entry.kind.as_str(),
        "state": match entry.freshness {
            Some(Freshness::Fresh) => "fresh",
            Some(Freshness::StaleWhileRevalidate) => "stale_while_revalidate",
            Some(Freshness::StaleIfError) => "stale_if_error",
            Some(Freshness::Doubted) => "doubted",
            None => "gone",
        },
        "age_s": entry.age.as_secs(),
        "ttl_s": entry.remaining_ttl_s,
        "hits": entry.hits,
        "id": entry.subject_id,
    })
}
