//! What all threads share about the way to Rails.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tower::retry::budget::TpsBudget;

use super::queue::admission::Admission;
use super::queue::hold::HoldQueues;
use super::queue::reachability::Reachability;
use super::request::replay::{MAX_REPLAY_MEMORY, MAX_UNADMITTED_MEMORY, ReplayMemory};
use super::servers::state::UpstreamServerState;
use super::settings::UpstreamSettings;
use crate::route::Class;

/// What all threads share about the upstream side.
#[derive(Debug)]
pub struct UpstreamState {
    /// Where requests wait while Rails is unreachable.
    pub hold: HoldQueues,
    /// Since when and why it is unreachable.
    pub reachability: Reachability,
    /// How many requests Rails gets at one time.
    pub admission: Admission,
    /// How often reads may be sent again, by class.
    pub(super) resend_budgets: [TpsBudget; Class::ALL.len()],
    /// Memory for request bodies that may be sent again.
    pub(super) replay_memory: ReplayMemory,
    /// Memory for bodies of requests of `other` that have no permit yet.
    pub(super) unadmitted_bodies: ReplayMemory,
    /// The servers, in the order of the configuration.
    pub servers: Vec<Arc<UpstreamServerState>>,
    /// Reads that were not sent again, since the budget was spent.
    pub resends_over_budget: AtomicU64,
    /// Failures in a row over all servers; 0 after a response. Requests of `other`, and those that a client or a limit
    /// has ended, do not count.
    pub consecutive_failures: AtomicU64,
    /// Responses received, those of a proxy that reports an outage aside.
    pub responses: AtomicU64,
}

impl UpstreamState {
    /// The state at start.
    pub fn new(settings: &UpstreamSettings) -> Self {
        // Even a gateway with little traffic may resend: once a second.
        let ratio = f32::from(settings.resend_percent) / 100.0;
        let min_per_second = u32::from(settings.resend_percent > 0);
        Self {
            hold: HoldQueues::default(),
            reachability: Reachability::default(),
            admission: Admission::new(&settings.classes),
            replay_memory: ReplayMemory::new(MAX_REPLAY_MEMORY),
            unadmitted_bodies: ReplayMemory::new(MAX_UNADMITTED_MEMORY),
            resend_budgets: Class::ALL.map(|_| TpsBudget::new(BUDGET_WINDOW, min_per_second, ratio)),
            servers: settings
                .servers
                .iter()
                .map(|server| Arc::new(UpstreamServerState::new(server, settings)))
                .collect(),
            resends_over_budget: AtomicU64::new(0),
            consecutive_failures: AtomicU64::new(0),
            responses: AtomicU64::new(0),
        }
    }
}

/// How long a request counts towards the resend budget.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
