//! One request to Rails for an entry: what it says, and what becomes of the answer.

use http::header::{self, HeaderName};
use http::{HeaderMap, Request, Response, StatusCode};

use super::Shared;
use super::give::marked;
use super::rules::{ends_what_is_kept, is_failing, is_failing_status};
use crate::body::{Body, Collected};
use crate::cache::freshness::{self, judge_head};
use crate::cache::{Lease, NoStore, Trouble};
use crate::exchange::{Authenticated, CacheOutcome, Exchange, Record};
use crate::failure::Failure;
use crate::layer::Answer;
use crate::route::Caching;
use crate::upstream;

/// What a request that fills an entry may say of its caller: who it is, where it comes from, and
/// nothing that could change an answer which others will get.
const FILL_HEADERS: [HeaderName; 11] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::USER_AGENT,
    // Which gateways it has passed.
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("gitlab-shared-secret"),
    HeaderName::from_static("gitlab-shell-api-request"),
    HeaderName::from_static("x-gitlab-client-name"),
    // Where it belongs in a trace (W3C Trace Context, W3C Baggage).
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
];

/// The request that fills an entry, of up to so many bytes.
pub(super) fn canonical(call: Authenticated, most: usize) -> Authenticated {
    let Authenticated { exchange, .. } = call;
    let (parts, body) = exchange.request.into_parts();
    let mut request = Request::new(body);
    *request.uri_mut() = parts.uri;
    *request.headers_mut() = FILL_HEADERS
        .iter()
        .flat_map(|name| parts.headers.get_all(name).iter().map(move |value| (name.clone(), value.clone())))
        .collect();
    Authenticated { exchange: Exchange { request, ..exchange }, collect: Some(most), ..call }
}

/// Asks Rails, stores what may be stored, and brings whoever asked the answer.
pub(super) async fn fill(
    answer: impl Future<Output = Answer>,
    lease: Lease,
    caching: Caching,
    shared: &Shared,
    record: &Record,
) -> Answer {
    let (begun, outage) = (lease.begun(), shared.cache.outage(caching));
    let tell = |answer: &Answer| match answer {
        Ok(answer) if is_failing_status(answer.status()) => {
            outage.failed(begun, shared.clock.now(), answer.status().as_str());
        }
        Ok(_) => outage.answered(shared.clock.now()),
        Err(failure) if is_failing(answer) => outage.failed(begun, shared.clock.now(), failure.as_str()),
        Err(_) => {}
    };
    let answer = answer.await;
    let now = shared.clock.now();
    shared.cache.shadow().took(now.saturating_duration_since(begun), now);
    // Before those who wait hear that there is nothing for them.
    if is_failing(&answer) {
        tell(&answer);
    }
    let answer = take(answer, lease, caching, shared, record).await;
    tell(&answer);
    answer
}

/// What becomes of the answer and of those who wait for it.
async fn take(answer: Answer, lease: Lease, caching: Caching, shared: &Shared, record: &Record) -> Answer {
    let answer = match answer {
        Ok(answer) => answer,
        Err(failure) => {
            match &failure {
                Failure::Upstream(error) => match error {
                    upstream::Error::Connect(_, error) | upstream::Error::HoldFull(_, error)
                        if upstream::is_for_want_of_resources(error) =>
                    {
                        lease.fail(Trouble::Busy);
                    }
                    upstream::Error::Connect(..) | upstream::Error::HoldFull(..) => {
                        lease.fail(Trouble::Unreachable);
                    }
                    upstream::Error::Shed(_) => lease.fail(Trouble::Busy),
                    upstream::Error::Timeout(_) | upstream::Error::Hung(_) => lease.fail(Trouble::Timeout),
                    upstream::Error::Slow(_) | upstream::Error::TotalTimeout(_) => lease.fail(Trouble::Slow),
                    // Twice is not one caller's bad luck.
                    upstream::Error::Broken(_) | upstream::Error::BrokeOff(_) if record.notes().is_resent => {
                        lease.fail(Trouble::Broken);
                    }
                    _ => drop(lease),
                },
                _ => drop(lease),
            }
            return Err(failure);
        }
    };
    if let Err(reason) = judge_head(caching, &answer, shared.settings.max_body) {
        if ends_what_is_kept(&answer) {
            lease.reject();
        }
        return Ok(marked(answer, CacheOutcome::Unstored(reason), record));
    }
    let (head, body) = answer.into_parts();
    let body = match collect(body, shared.settings.max_body).await? {
        Collected::Whole(body) => body,
        Collected::TooLong(body) => {
            drop(lease);
            let answer = Response::from_parts(head, body);
            return Ok(marked(answer, CacheOutcome::Unstored(NoStore::TooLarge), record));
        }
    };
    let (status, headers) = (head.status, &head.headers);
    let outcome = keep(lease, caching, (status, headers, &body), shared)?;
    Ok(marked(Response::from_parts(head, Body::from(body)), outcome, record))
}

/// The body of an answer. It has been read where it could still be asked for again; what has not, is
/// too long.
pub(super) async fn collect(body: Body, most: usize) -> Result<Collected, upstream::Error> {
    body.collect_up_to(most).await.map_err(upstream::Error::BrokeOff)
}

/// Stores a whole answer if it may be. One that may not ends what was kept before.
fn keep(
    lease: Lease,
    caching: Caching,
    (status, headers, body): (StatusCode, &HeaderMap, &[u8]),
    shared: &Shared,
) -> Result<CacheOutcome, Failure> {
    let lifetimes = &shared.settings.lifetimes;
    let now_is = shared.clock.unix_seconds();
    match freshness::judge(caching, lease.key(), status, body, lifetimes, now_is) {
        Ok(mut storable) => {
            storable.ages = storable.ages.cut(lifetimes.jitter_percent, fastrand::u16(..));
            let stored = lease.store(status, headers, body, storable);
            Ok(stored.map_or_else(CacheOutcome::Unstored, |()| CacheOutcome::Stored))
        }
        // It says nothing about the key that was asked for.
        Err(NoStore::Mismatch) => Err(upstream::Error::Unusable("an answer to another question").into()),
        // Not the endpoint's own answer, whatever it is: it says nothing of what was asked for.
        Err(NoStore::Shape) if status == StatusCode::OK => Ok(CacheOutcome::Unstored(NoStore::Shape)),
        Err(reason) => {
            lease.reject();
            Ok(CacheOutcome::Unstored(reason))
        }
    }
}
