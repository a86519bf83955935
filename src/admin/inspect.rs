//! `POST /inspect`: what is kept, of everything or of something.

use http::StatusCode;
use serde_json::{Value, json};

use super::purge::selector;
use crate::cache::inspect::Sight;
use crate::cache::{Cache, Phase};
use crate::clock::Clock;
use crate::route::Caching;

/// How many entries are shown.
const MOST: usize = 100;

/// How many entries there are of each endpoint.
pub(super) fn totals(cache: &Cache) -> Value {
    let of = |caching: Caching| {
        let [positive, negative] = cache.totals(caching);
        (caching.as_str().to_owned(), json!({ "positive": positive, "negative": negative }))
    };
    Value::Object(Caching::KEPT.into_iter().map(of).collect())
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

fn entry(sight: &Sight) -> Value {
    json!({
        "route": sight.caching.as_str(),
        "key": sight.key,
        "store": sight.sign.as_str(),
        "state": match sight.phase {
            Some(Phase::Fresh) => "fresh",
            Some(Phase::Revalidate) => "stale_while_revalidate",
            Some(Phase::OnError) => "stale_if_error",
            None => "gone",
        },
        "age_s": sight.age.as_secs(),
        "ttl_s": sight.fresh_for,
        "hits": sight.hits,
        "id": sight.subject,
    })
}
