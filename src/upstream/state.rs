//! What all threads share about the way to Rails.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use tower::retry::budget::TpsBudget;

use super::queue::admission::Admission;
use super::queue::hold::HoldQueues;
use super::queue::reachability::Reachability;
use super::request::replay::{MAX_REPLAY_MEMORY, MAX_UNADMITTED_MEMORY, ReplayMemory};
use super::servers::state::UpstreamServerState;
use super::settings::UpstreamSettings;
use crate::clock::Clock;
use crate::route::Class;

/// What all threads share about the upstream side.
#[derive(Debug)]
pub struct UpstreamState {
    /// Where requests wait while Rails is unreachable.
    pub hold: HoldQueues,
    /// Since when and why it is unreachable.
    pub reachability: Reachability,
    /// Exchanged when the configuration is read again.
    limits: ArcSwap<UpstreamLimits>,
    /// Memory for request bodies that may be sent again.
    pub(super) replay_memory: ReplayMemory,
    /// Memory for bodies of requests of `other` that have no permit yet.
    pub(super) unadmitted_bodies: ReplayMemory,
    /// The servers, in the order of the configuration. Exchanged as the limits are.
    servers: ArcSwap<Vec<Arc<UpstreamServerState>>>,
    /// Reads that were not sent again, since the budget was spent.
    pub resends_over_budget: AtomicU64,
    /// Failures in a row over all servers; 0 after a response. Requests of `other`, and those that a client or a limit
    /// has ended, do not count.
    pub consecutive_failures: AtomicU64,
    /// Responses received, those of a proxy that reports an outage aside.
    pub responses: AtomicU64,
}

/// The limits on what Rails gets.
#[derive(Debug)]
pub struct UpstreamLimits {
    /// How many requests Rails gets at one time.
    pub admission: Admission,
    /// How often reads may be sent again, by class.
    pub(super) resend_budgets: [TpsBudget; Class::ALL.len()],
}

impl UpstreamLimits {
    fn new(admission: Admission, resend_percent: u8) -> Self {
        // Even a gateway with little traffic may resend: once a second.
        let ratio = f32::from(resend_percent) / 100.0;
        let min_per_second = u32::from(resend_percent > 0);
        let resend_budgets = Class::ALL.map(|_| TpsBudget::new(BUDGET_WINDOW, min_per_second, ratio));
        Self { admission, resend_budgets }
    }
}

impl UpstreamState {
    /// The state at start.
    pub fn new(settings: &UpstreamSettings) -> Self {
        let servers = settings.servers.iter();
        let servers = servers.map(|server| Arc::new(UpstreamServerState::new(server, settings))).collect();
        let limits = UpstreamLimits::new(Admission::new(&settings.classes), settings.resend_percent);
        Self {
            hold: HoldQueues::default(),
            reachability: Reachability::default(),
            limits: ArcSwap::from_pointee(limits),
            replay_memory: ReplayMemory::new(MAX_REPLAY_MEMORY),
            unadmitted_bodies: ReplayMemory::new(MAX_UNADMITTED_MEMORY),
            servers: ArcSwap::from_pointee(servers),
            resends_over_budget: AtomicU64::new(0),
            consecutive_failures: AtomicU64::new(0),
            responses: AtomicU64::new(0),
        }
    }

    /// The limits on what Rails gets.
    pub fn limits(&self) -> Arc<UpstreamLimits> {
        self.limits.load_full()
    }

    /// The servers, in the order of the configuration.
    pub fn servers(&self) -> Arc<Vec<Arc<UpstreamServerState>>> {
        self.servers.load_full()
    }

    /// Takes over other settings, for the [`Upstream`](super::Upstream)s that are made from now on. A server that
    /// stays keeps its state and its counters; a new one begins with a small share of the requests.
    pub fn reload(&self, settings: &UpstreamSettings) {
        let known = self.servers();
        let now = Clock::System.now();
        let servers = settings.servers.iter().map(|server| {
            let name = server.name();
            let stays = known.iter().find(|known| known.name == name && known.is_like(settings));
            let state = stays.cloned().unwrap_or_else(|| {
                let state = UpstreamServerState::new(server, settings);
                state.health.begin_slow_start(now);
                Arc::new(state)
            });
            state.reload(server, settings);
            state
        });
        self.servers.store(Arc::new(servers.collect()));
        let admission = self.limits.load().admission.reloaded(&settings.classes);
        self.limits.store(Arc::new(UpstreamLimits::new(admission, settings.resend_percent)));
    }
}

/// How long a request counts towards the resend budget.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
