//! The way to Rails: one request in, one response out, over a pool of kept connections.
//!
//! Rails may be several servers. A request goes to a server in rotation (`servers`) with little load
//! (`servers::balance`), to another one if no connection can be made, and if no server accepts connections, it waits in
//! the `hold` queue. An admitted request holds a permit of its class (`admission`) until its response has ended.
//! It is sent once: a second time only if nothing of it can have been done, or if it changes nothing, and only
//! as long as resends are rare.
//!
//! Errors say which side failed; what the client is told about it is not decided here.

mod connection;
mod error;
mod queue;
mod request;
mod response;
mod servers;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::Uri;
use tower::retry::budget::TpsBudget;

pub use self::connection::error::{UnreachableCause, is_resource_exhaustion};
pub use self::connection::happy_eyeballs::is_transient;
pub use self::connection::target::{
    MAX_SOCKET_PATH, TargetError, UpstreamAddress, UpstreamTarget, without_zone,
};
pub use self::connection::tls;
pub use self::error::Error;
use self::queue::admission::Admission;
pub use self::queue::admission::{ClassAdmission, ClassSettings, ShedReason};
use self::queue::hold::HoldQueues;
pub use self::queue::reachability::Reachability;
pub use self::request::options::{SendOptions, SendReport, Signer, WaitPolicy};
use self::request::replay::ReplayMemory;
pub use self::servers::balance::MAX_SERVERS;
pub use self::servers::health::{CheckResult, EjectionReason, EjectionSettings, ServerStatus};
pub use self::servers::health_check::{HealthCheckSettings, HealthChecker};
use self::servers::server::UpstreamServer;
pub use self::servers::server::{Protocol, ResendReason, UpstreamServerSettings, UpstreamServerState};
use crate::route::Class;

/// The section `[upstream]` of the configuration.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Where Rails listens: one server, or several that are alike, with the same relative URL root.
    pub servers: Vec<UpstreamServerSettings>,
    /// The version of HTTP spoken with all of them.
    pub protocol: Protocol,
    /// When a failing server is taken out of rotation, if there are several.
    pub ejection: EjectionSettings,
    /// How their health is checked, if there are several.
    pub health_checks: HealthCheckSettings,
    /// How long a slow response raises a server's load, roughly. Not a key of the configuration.
    pub load_decay: Duration,
    /// The `Host` that Rails sees; by default the authority of the URL.
    pub host: Option<String>,
    /// How long it may take to make a connection, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// How long the body of a response may pause.
    pub body_timeout: Duration,
    /// How many requests of each class may wait while Rails is unreachable; of [`Class::Other`], no more
    /// than its queue holds.
    pub max_held: usize,
    /// How many reads may be sent again, in percent.
    pub resend_percent: u8,
    /// Whether a request is sent again if a Rails on this machine has reset its connection.
    pub resend_unread: bool,
    /// Limits by class of route, in the order of [`Class::ALL`].
    pub classes: [ClassSettings; Class::ALL.len()],
    /// How long an idle connection is kept. Puma 5.6 drops them after 20 s (8.0: 65 s), so less than that.
    pub idle_timeout: Duration,
    /// How old a connection may become, to within a fifth; zero is without limit. The name is resolved anew
    /// for the next one.
    pub max_connection_age: Duration,
    /// How many idle connections to each server are kept, by all threads together.
    pub max_idle: usize,
}

impl UpstreamSettings {
    /// Rails at `target`, without TLS, and the defaults for the rest.
    pub fn new(target: UpstreamTarget) -> Self {
        Self::for_server(UpstreamServerSettings { target, tls: None, is_backup: false })
    }

    /// One server, and the defaults for the rest.
    pub fn for_server(server: UpstreamServerSettings) -> Self {
        Self {
            servers: vec![server],
            protocol: Protocol::default(),
            ejection: EjectionSettings::default(),
            health_checks: HealthCheckSettings::default(),
            load_decay: DEFAULT_LOAD_DECAY,
            host: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            body_timeout: DEFAULT_BODY_TIMEOUT,
            max_held: DEFAULT_MAX_HELD,
            resend_percent: DEFAULT_RESEND_PERCENT,
            resend_unread: true,
            classes: DEFAULT_CLASSES,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            max_connection_age: DEFAULT_MAX_CONNECTION_AGE,
            max_idle: DEFAULT_MAX_IDLE,
        }
    }

    /// Whether health checks run. A single server is not checked: there is no alternative to it.
    pub fn has_health_checks(&self) -> bool {
        self.servers.len() > 1 && !self.health_checks.interval.is_zero()
    }

    /// The relative URL root of this Rails: empty, or `/gitlab` and the like.
    pub fn relative_root(&self) -> &str {
        self.servers.first().map_or("", |server| &server.target.root)
    }
}

/// Default of [`UpstreamSettings::connect_timeout`].
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Default of [`ClassSettings::response_timeout`]: `/allowed` may take 50 s (contract §1.2).
pub const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a login may wait for Rails in all, time in queues included: gitlab-sshd gives up after 10 s, in which
/// it tries again after a failure.
pub const DEFAULT_LOOKUP_TIMEOUT: Duration = Duration::from_secs(4);
/// Default of [`UpstreamSettings::body_timeout`].
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// Default of [`ClassSettings::total_timeout`]: longer than any response takes, but bounded, however slowly a
/// client reads.
pub const DEFAULT_TOTAL_TIMEOUT: Duration = Duration::from_secs(4 * 3_600);
/// Default of [`UpstreamSettings::max_held`].
pub const DEFAULT_MAX_HELD: usize = 10_000;
/// Default of [`UpstreamSettings::resend_percent`].
pub const DEFAULT_RESEND_PERCENT: u8 = 10;
/// Defaults of most classes. They wait for as long as a Puma takes that loads GitLab: their callers have time, and
/// if a callback of Gitaly fails, so does what a user has begun long before. kas waits too, since it remembers a
/// failure for a minute; its tokens may expire earlier.
pub const DEFAULT_CLASS: ClassSettings = ClassSettings {
    concurrency: 256,
    queue: 1_024,
    queue_timeout: Duration::from_secs(5),
    response_timeout: DEFAULT_RESPONSE_TIMEOUT,
    total_timeout: DEFAULT_TOTAL_TIMEOUT,
    hold: Duration::from_secs(30),
};
/// Defaults of [`UpstreamSettings::classes`].
pub const DEFAULT_CLASSES: [ClassSettings; Class::ALL.len()] = [
    ClassSettings {
        queue_timeout: Duration::from_secs(2),
        response_timeout: DEFAULT_LOOKUP_TIMEOUT,
        total_timeout: DEFAULT_LOOKUP_TIMEOUT,
        hold: Duration::from_secs(1),
        ..DEFAULT_CLASS
    },
    DEFAULT_CLASS,
    DEFAULT_CLASS,
    // One kas sends up to 50 requests a second, and 250 at once after a pause. 100 at a time are enough for 50 a
    // second as long as Rails takes 2 s or less for one; of 250, the others wait in the queue, 3 s at that speed.
    ClassSettings { concurrency: 100, ..DEFAULT_CLASS },
    // Any client that can connect may send these, and Rails judges them: a small share, or a flood of them
    // would take the threads of Rails from the other classes. Few may wait, so none waits for long.
    ClassSettings {
        concurrency: OTHER_CONCURRENCY,
        queue: 256,
        hold: Duration::from_secs(5),
        ..DEFAULT_CLASS
    },
];
/// How many requests without a credential Rails gets at one time, unless configured otherwise.
pub const OTHER_CONCURRENCY: usize = 16;

/// The same if the number of threads of each server is known: an eighth of all threads, backups aside, but at
/// least one.
pub fn default_other_concurrency(threads: usize, servers: &[UpstreamServerSettings]) -> usize {
    let servers = servers.iter().filter(|server| !server.is_backup).count();
    (threads * servers / 8).clamp(1, OTHER_CONCURRENCY)
}
/// Default of [`UpstreamSettings::load_decay`].
pub const DEFAULT_LOAD_DECAY: Duration = Duration::from_secs(10);
/// Default of [`UpstreamSettings::idle_timeout`].
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Default of [`UpstreamSettings::max_connection_age`].
pub const DEFAULT_MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Default of [`UpstreamSettings::max_idle`].
pub const DEFAULT_MAX_IDLE: usize = 64;

/// The servers of Rails, as one worker thread sees them.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<UpstreamServer>,
    /// The relative URL root, the same on all servers.
    root: String,
    /// What the request at the head of the queue asks for, and for how long, while a proxy reports an outage.
    probe: (Option<Uri>, Duration),
    body_timeout: Duration,
    max_held: usize,
    /// Whether a server may prove that it has not read a request, so that it can be sent again.
    may_resend_unread: bool,
    state: Arc<UpstreamState>,
}

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
    resend_budgets: [TpsBudget; Class::ALL.len()],
    /// Memory for request bodies that may be sent again.
    replay_memory: ReplayMemory,
    /// The servers, in the order of the configuration.
    pub servers: Vec<Arc<UpstreamServerState>>,
    /// Reads that were not sent again, since the budget was spent.
    pub resends_over_budget: AtomicU64,
    /// Failures in a row, of any kind, over all servers; 0 after a response.
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
            replay_memory: ReplayMemory::default(),
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

impl Upstream {
    /// Prepares the pools; connects when the first request comes. Counters are in `state`, which must be made
    /// from the same settings.
    pub fn new(settings: &UpstreamSettings, state: Arc<UpstreamState>) -> Self {
        let servers = UpstreamServer::all(settings, &state);
        Self {
            may_resend_unread: settings.protocol == Protocol::Http2
                || servers.iter().any(|server| server.may_resend_unread),
            servers,
            root: settings.relative_root().to_owned(),
            probe: (settings.health_checks.uri(settings.relative_root()), settings.health_checks.timeout),
            body_timeout: settings.body_timeout,
            max_held: settings.max_held,
            state,
        }
    }

    /// Without other workers to share the state with.
    pub fn standalone(settings: UpstreamSettings) -> Self {
        let state = Arc::new(UpstreamState::new(&settings));
        Self::new(&settings, state)
    }

    /// The relative URL root of this Rails: empty, or `/gitlab` and the like.
    pub fn relative_root(&self) -> &str {
        &self.root
    }
}
