//! The figures as JSON: those of `/metrics`, and the last refusals.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fleet;
use super::history::{is_cacheable, is_hit, ratio};
use crate::admin::servers;
use crate::cache::EntryKind;
use crate::cache::inspect::AgeCount;
use crate::histogram::quantile;
use crate::metrics::{Buckets, FailedRequest, MetricSources, RequestTotals};
use crate::route::{Caching, Class};
use crate::upstream::UnreachableCause;

/// All figures of one moment.
pub(super) fn figures(
    sources: &MetricSources,
    totals: &RequestTotals,
    ages: &[AgeCount],
    uptime: Duration,
    now: Instant,
) -> Value {
    let of = |is: fn(&str) -> bool| {
        let counts = totals.requests.iter().filter(|(outcome, _)| is(outcome.cache));
        counts.map(|(_, count)| count).sum::<u64>()
    };
    let servers: Vec<Value> =
        sources.upstream.servers().iter().map(|server| servers::show(server, now)).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": uptime.as_secs(),
        "in_flight": totals.in_flight,
        "connections": sources.clients.iter().map(|listener| listener.open()).sum::<usize>(),
        "hit_ratio": ratio(of(is_hit), of(is_cacheable)),
        "routes": routes(totals),
        "latency": latency(totals),
        "rails": rails(sources, now),
        "servers": servers,
        "queue": queue(sources),
        "held": sources.upstream.hold.waiting(),
        "failures": totals.failures,
        "auth_refusals": totals.auth_refusals,
        "last_failed": totals.last_failed.iter().map(failed).collect::<Vec<_>>(),
        "stores": stores(sources),
        "ages": ages.iter().map(age).collect::<Vec<_>>(),
        "hooks": hooks(sources),
        "fleet": fleet::figures(&sources.fleet),
        "listeners": listeners(sources),
        "log": {
            "dropped": sources.log.dropped().map(|(_, _, lines)| lines).sum::<u64>(),
            "suppressed": sources.log.suppressed.load(Relaxed),
        },
        "threads": sources.heartbeats.0.iter()
            .map(|one| json!({ "thread": one.thread, "silent_s": one.silent_s() }))
            .collect::<Vec<_>>(),
    })
}

fn routes(totals: &RequestTotals) -> Vec<Value> {
    #[derive(Default)]
    struct Route {
        requests: u64,
        errors: u64,
        cache: BTreeMap<&'static str, u64>,
    }
    let mut routes = BTreeMap::<&str, Route>::new();
    for (outcome, count) in &totals.requests {
        let route = routes.entry(outcome.route).or_default();
        route.requests += count;
        route.errors += count * u64::from(outcome.status == "5xx");
        *route.cache.entry(outcome.cache).or_default() += count;
    }
    let show = |(name, route): (&str, Route)| json!({ "route": name, "requests": route.requests, "errors": route.errors, "cache": route.cache });
    routes.into_iter().map(show).collect()
}

fn latency(totals: &RequestTotals) -> Vec<Value> {
    let show = |(name, buckets): (&str, &Buckets)| {
        let count: u64 = buckets.iter().map(|(_, count)| count).sum();
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| quantile(buckets, q));
        (count > 0).then(|| json!({ "answers": name, "count": count, "p50": p50, "p90": p90, "p99": p99 }))
    };
    let upstream = totals.upstream.iter().map(|(route, buckets)| (*route, buckets));
    [("memory", &totals.hits)].into_iter().chain(upstream).filter_map(show).collect()
}

fn rails(sources: &MetricSources, now: Instant) -> Value {
    let reachability = &sources.upstream.reachability;
    let fails = |caching: &Caching| sources.cache.outage(*caching).is_active(now);
    let outages = [Caching::AuthorizedKeys, Caching::Discover].into_iter().filter(fails);
    json!({
        "away": reachability.is_unreachable(),
        "cause": reachability.cause().map(UnreachableCause::as_str),
        "outages": outages.map(Caching::as_str).collect::<Vec<_>>(),
    })
}

fn queue(sources: &MetricSources) -> Vec<Value> {
    let limits = sources.upstream.limits();
    let show = |class: Class| {
        let admission = limits.admission.of(class);
        json!({
            "class": class.as_str(),
            "in_flight": admission.in_flight(),
            "limit": admission.limit(),
            "waiting": admission.waiting(),
            "shed": admission.shed_by_reason().iter().map(|(_, count)| count).sum::<u64>(),
        })
    };
    Class::ALL.into_iter().map(show).collect()
}

fn failed(request: &FailedRequest) -> Value {
    json!({
        "at": request.at.as_secs(),
        "route": request.route,
        "status": request.status,
        "failure": request.failure,
        "reason": request.reason,
        "correlation_id": &*request.correlation_id,
    })
}

fn stores(sources: &MetricSources) -> Vec<Value> {
    let (counters, entries) = (sources.cache.counters(), sources.cache.entry_counts());
    let show = |(kind, entries): (EntryKind, u64)| {
        json!({
            "store": kind.as_str(),
            "entries": entries,
            "bytes": counters.bytes.get(kind),
            "kept": counters.stored.get(kind),
            "evicted": counters.evicted.get(kind),
            "expired": counters.expired.get(kind),
        })
    };
    EntryKind::ALL.into_iter().zip(entries).map(show).collect()
}

fn age(count: &AgeCount) -> Value {
    let [positive, negative] = count.entries;
    json!({ "up_to_s": count.up_to.map(|age| age.as_secs()), "positive": positive, "negative": negative })
}

fn hooks(sources: &MetricSources) -> Value {
    let hooks = &sources.hooks;
    let events: BTreeMap<_, _> = hooks.events.iter().map(|(event, count)| (event.as_str(), count)).collect();
    json!({ "events": events, "refused": hooks.refused.load(Relaxed), "shed": hooks.shed.load(Relaxed) })
}

fn listeners(sources: &MetricSources) -> Vec<Value> {
    let all = sources.clients.iter().chain(&sources.others);
    let show = |listener: &std::sync::Arc<crate::server::Capacity>| {
        json!({
            "listener": listener.name(),
            "open": listener.open(),
            "limit": listener.max_connections(),
            "evicted": listener.evicted(),
            "turned_away": listener.rejected(),
        })
    };
    all.map(show).collect()
}
