//! Series whose values are kept elsewhere and read at each scrape.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::auth::Authenticator;
use crate::body::unverified::UnverifiedBodies;
use crate::cache::shadow::AGE_BOUNDS;
use crate::cache::{Cache, EntryKind};
use crate::clock::Clock;
use crate::fleet::Fleet;
use crate::heartbeat::Heartbeats;
use crate::hooks;
use crate::log;
use crate::metrics::encode::{encode_counters, encode_counters_of_each, encode_histogram, encode_single};
use crate::reload::ReloadStatus;
use crate::route::{Caching, Class};
use crate::secret::status::SecretStatuses;
use crate::server::{Capacity, ServerTls};
use crate::trace::SpanQueue;
use crate::upstream::{ClassAdmission, UpstreamState};

mod fleet;
mod listeners;
mod reload;
mod servers;

/// What is read at each scrape.
#[derive(Clone, Debug)]
pub struct MetricSources {
    /// For the clock skew of callers.
    pub auth: Arc<ArcSwap<Authenticator>>,
    /// Bodies that are read in search of a credential.
    pub bodies: Arc<UnverifiedBodies>,
    /// With its outages and shadow checks.
    pub cache: Arc<Cache>,
    /// What all workers share of the upstream side.
    pub upstream: Arc<UpstreamState>,
    /// The other gateways.
    pub fleet: Fleet,
    /// GitLab's System Hooks.
    pub hooks: Arc<hooks::HookCounters>,
    /// Log lines that were not written.
    pub log: Arc<log::LogCounters>,
    /// How the last reload ended.
    pub reload: Arc<ReloadStatus>,
    /// What may be told of the secrets.
    pub secrets: Arc<SecretStatuses>,
    /// Spans of traces, and what became of them.
    pub spans: Arc<SpanQueue>,
    /// When each thread last responded.
    pub heartbeats: Arc<Heartbeats>,
    /// The listeners for clients.
    pub clients: Vec<Arc<Capacity>>,
    /// The listeners for operators and hooks.
    pub others: Vec<Arc<Capacity>>,
    /// The certificates of listeners for clients, with the names of these.
    pub certificates: Vec<(String, ServerTls)>,
}

impl Collector for MetricSources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_cache(&mut encoder)?;
        self.encode_shadow(&mut encoder)?;
        self.encode_hooks(&mut encoder)?;
        fleet::encode(&self.fleet, &mut encoder)?;
        self.encode_clock_skew(&mut encoder)?;
        self.encode_unverified(&mut encoder)?;
        self.encode_log(&mut encoder)?;
        listeners::encode(&self.clients, &self.others, &mut encoder)?;
        listeners::encode_certificates(&self.certificates, &mut encoder)?;
        self.encode_queues(&mut encoder)?;
        self.encode_threads(&mut encoder)?;
        let spans = ("tracing_spans", "Spans of sampled requests, by what became of them");
        encode_counters(&mut encoder, spans, "result", self.spans.results())?;
        reload::encode(&self.reload, &self.secrets.all(), &mut encoder)?;
        servers::encode(&self.upstream.servers(), &mut encoder)
    }
}

impl MetricSources {
    fn encode_cache(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.cache.run_maintenance();
        let counters = self.cache.counters();
        let entries = self.cache.entry_counts();
        encode_by_store(encoder, "cache_entries", "Entries in memory, about", entries.map(ConstGauge::new))?;
        let bytes = EntryKind::ALL.map(|kind| ConstGauge::new(counters.bytes.get(kind)));
        encode_by_store(encoder, "cache_bytes", "Memory that entries take, about", bytes)?;
        let stored = ("cache_fills", "Answers of Rails that were stored");
        encode_counters(encoder, stored, "store", &counters.stored)?;
        let evicted = ("cache_evictions", "Entries pushed out because the store was full");
        encode_counters(encoder, evicted, "store", &counters.evicted)?;
        let expired = ("cache_expirations", "Entries whose memory was freed after their time");
        encode_counters(encoder, expired, "store", &counters.expired)?;
        let purged = ConstCounter::new(counters.purged.load(Relaxed));
        encode_single(encoder, "cache_purged", "Answers dropped, or marked stale, by a purge", &purged)?;
        let fenced = ConstCounter::new(counters.fenced.load(Relaxed));
        encode_single(
            encoder,
            "cache_fenced",
            "Answers dropped because an invalidation came first",
            &fenced,
        )?;
        let refreshes = ("cache_refreshes", "Refreshes of stale answers in the background");
        encode_counters(encoder, refreshes, "result", &counters.refreshes)?;
        let now = Clock::System.now();
        let outage = |caching| ConstGauge::new(i64::from(self.cache.outage(caching).is_active(now)));
        let mut family = encoder.encode_descriptor(
            "cache_outage",
            "Whether stale answers are given since Rails fails or has just failed",
            None,
            MetricType::Gauge,
        )?;
        for caching in [Caching::AuthorizedKeys, Caching::Discover] {
            outage(caching).encode(family.encode_family(&[("route", caching.as_str())])?)?;
        }
        let fills = ConstGauge::new(self.cache.fills_in_flight());
        encode_single(encoder, "cache_flights", "Keys that Rails is being asked for now", &fills)
    }

    fn encode_shadow(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.cache.shadow().counters();
        let checks =
            ("shadow_checks", "Answers from memory that were compared with Rails, by what that showed");
        let by_route = [(Caching::AuthorizedKeys, &counters.keys), (Caching::Discover, &counters.users)];
        let by_route = by_route.map(|(caching, counters)| (caching.as_str(), counters));
        encode_counters_of_each(encoder, checks, ["route", "result"], by_route)?;
        let ages =
            ("shadow_wrong_age_seconds", "How old answers from memory were that were not what Rails says");
        encode_histogram(encoder, ages, &counters.wrong_ages, &AGE_BOUNDS)
    }

    fn encode_hooks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let events = ("hooks", "System Hooks of GitLab, by event");
        encode_counters(encoder, events, "event", &self.hooks.events)?;
        let refused = ConstCounter::new(self.hooks.refused.load(Relaxed));
        encode_single(
            encoder,
            "hooks_refused",
            "Hooks refused for a missing or wrong token or signature",
            &refused,
        )?;
        let shed = ConstCounter::new(self.hooks.shed.load(Relaxed));
        encode_single(
            encoder,
            "hooks_shed",
            "Large signed hooks that were not read, since too many were being read",
            &shed,
        )
    }

    fn encode_threads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let threads = &self.heartbeats.0;
        let mut family = encoder.encode_descriptor(
            "thread_silent_seconds",
            "How long ago the thread last responded, about",
            None,
            MetricType::Gauge,
        )?;
        for thread in threads {
            let silent = ConstGauge::new(thread.silent_s());
            silent.encode(family.encode_family(&[("thread", thread.thread.as_str())])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "thread_stalls",
            "How often the thread has not responded for 10 seconds",
            None,
            MetricType::Counter,
        )?;
        for thread in threads {
            let stalls = ConstCounter::new(thread.stalls());
            stalls.encode(family.encode_family(&[("thread", thread.thread.as_str())])?)?;
        }
        Ok(())
    }

    fn encode_log(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Lines of the log that were lost, since it was not read fast enough or cannot be written";
        let mut family = encoder.encode_descriptor("log_dropped", help, None, MetricType::Counter)?;
        for (why, level, lines) in self.log.dropped() {
            let labels = [("level", level), ("reason", why.as_str())];
            ConstCounter::new(lines).encode(family.encode_family(&labels)?)?;
        }
        let suppressed = ConstCounter::new(self.log.suppressed.load(Relaxed));
        let help = "Diagnostics that were counted instead of written, since the same had just been written";
        encode_single(encoder, "log_suppressed", help, &suppressed)
    }
}

impl MetricSources {
    fn encode_clock_skew(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "How far the callers' clock is ahead of the gateway's, by when their tokens were issued";
        let mut family = encoder.encode_descriptor("clock_skew_seconds", help, None, MetricType::Gauge)?;
        for (kind, skew) in self.auth.load().clock_skews() {
            if let Some(seconds) = skew.seconds() {
                ConstGauge::new(seconds).encode(family.encode_family(&[("caller", kind.as_str())])?)?;
            }
        }
        Ok(())
    }

    fn encode_unverified(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let bytes = ConstGauge::new(u64::try_from(self.bodies.bytes()).unwrap_or(u64::MAX));
        encode_single(
            encoder,
            "unverified_body_bytes",
            "Memory of bodies that are being read in search of a credential",
            &bytes,
        )?;
        let evicted = ConstCounter::new(self.bodies.evicted());
        encode_single(encoder, "unverified_bodies_evicted", "Such bodies that gave way to others", &evicted)
    }

    fn encode_queues(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (up, limits) = (&self.upstream, self.upstream.limits());
        let waiting = ConstGauge::new(up.hold.waiting());
        encode_single(encoder, "upstream_held", "Requests that wait now for a Rails that is away", &waiting)?;
        // Names of their own: a gauge and a counter cannot share one.
        let total = ConstCounter::new(up.hold.total_held());
        let help = "Requests that have waited for a Rails that was away";
        encode_single(encoder, "upstream_holds", help, &total)?;
        let away = ConstGauge::new(i64::from(up.reachability.is_unreachable()));
        let describes =
            "Whether requests wait, or have waited in vain, for a Rails that is not known to be back";
        encode_single(encoder, "upstream_away", describes, &away)?;
        let unheld = ConstCounter::new(up.reachability.waits_skipped.load(Relaxed));
        let describes =
            "Look-ups that did not wait for a Rails that was away, since others had waited in vain";
        encode_single(encoder, "upstream_unheld", describes, &unheld)?;
        let spent = ConstCounter::new(up.resends_over_budget.load(Relaxed));
        let help = "Reads that were not sent again, since too many have been";
        encode_single(encoder, "upstream_not_resent", help, &spent)?;
        let of_class = |encoder: &mut DescriptorEncoder<'_>, name, help, of: fn(&ClassAdmission) -> usize| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for class in Class::ALL {
                let labels = [("class", class.as_str())];
                ConstGauge::new(of(limits.admission.of(class))).encode(family.encode_family(&labels)?)?;
            }
            Ok(())
        };
        of_class(
            encoder,
            "upstream_in_flight",
            "Requests that Rails has now, by class",
            ClassAdmission::in_flight,
        )?;
        of_class(
            encoder,
            "upstream_concurrency_limit",
            "How many requests Rails gets at one time at present, by class",
            ClassAdmission::limit,
        )?;
        of_class(
            encoder,
            "upstream_queue",
            "Requests that wait for others of their class",
            ClassAdmission::waiting,
        )?;
        let shed = ("upstream_shed", "Requests that were not sent, since Rails has enough to do");
        let by_class = Class::ALL.map(|class| (class.as_str(), limits.admission.of(class).shed_by_reason()));
        encode_counters_of_each(encoder, shed, ["class", "reason"], by_class)
    }
}

fn encode_by_store<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    [positive, negative]: [M; 2],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, positive.metric_type())?;
    positive.encode(family.encode_family(&[("store", EntryKind::Positive.as_str())])?)?;
    negative.encode(family.encode_family(&[("store", EntryKind::Negative.as_str())])?)
}
