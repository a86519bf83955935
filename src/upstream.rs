//! The way to Rails: one request in, one answer out, over a pool of kept connections.
//!
//! Rails may be several servers. A request goes to one that takes part ([`health`]) and has little to do
//! (`balance`), to another if there is no connection, and if none accepts any, it waits in line ([`hold`]).
//! One that is let through has a permit of its class ([`lanes`]) until its answer has come to its end. It
//! is sent once: a second time only if nothing of it can have been done, or if asking changes nothing,
//! and only as long as that is rare.
//!
//! Errors say which side failed; what the client is told about it is not decided here.

mod answer;
mod attempt;
mod away;
mod balance;
mod cause;
mod check;
mod connect;
mod copy;
mod error;
mod happy_eyeballs;
pub mod health;
pub mod hold;
pub mod lanes;
mod line;
mod load;
mod plan;
mod pool;
mod send;
mod server;
mod streams;
mod target;
pub mod tls;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use http::Uri;
use tower::retry::budget::TpsBudget;

pub use self::away::Away;
pub use self::balance::MOST_SERVERS;
pub use self::cause::{Cause, is_for_want_of_resources};
pub use self::check::{Settings as Checks, Watch};
use self::copy::Memory;
pub use self::error::Error;
pub use self::happy_eyeballs::may_pass;
pub use self::health::Settings as Ejection;
use self::hold::Hold;
use self::lanes::Lanes;
pub use self::plan::{Course, MayWait, Plan, Signer};
use self::server::Server;
pub use self::server::{Again, Protocol, ServerSettings, ServerState};
pub use self::target::{Address, LONGEST_SOCKET_PATH, Target, TargetError, without_zone};
use crate::clock::Clock;
use crate::route::Class;

/// What `[upstream]` of the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Rails listens: one server, or several that are alike, with the same relative URL root.
    pub servers: Vec<ServerSettings>,
    /// What is spoken with them.
    pub protocol: Protocol,
    /// How those that take part are told from those that do not, if there are several.
    pub ejection: Ejection,
    /// How they are asked whether they are well.
    pub checks: Checks,
    /// How long a slow answer of one of them counts, more or less. No key of the configuration.
    pub load_memory: Duration,
    /// The `Host` that Rails sees; by default the authority of the URL.
    pub host: Option<String>,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long the body of an answer may pause.
    pub body_timeout: Duration,
    /// How many requests of each class may wait for a Rails that is away; of [`Class::Other`], no more
    /// than its queue holds.
    pub max_held: usize,
    /// Of a hundred reads, how many may be sent again.
    pub resend_percent: u8,
    /// Whether a request is sent again whose connection a Rails on this machine has reset.
    pub resend_unread: bool,
    /// What else differs by class of route.
    pub classes: [lanes::Settings; Class::ALL.len()],
    /// How long an unused connection is kept. Puma 5.6 drops them after 20 s (8.0: 65 s), so less than that.
    pub idle_timeout: Duration,
    /// How old a connection may become, to within a fifth; zero is for as old as it gets. A name is resolved
    /// anew for the next one.
    pub max_connection_age: Duration,
    /// How many unused connections are kept.
    pub max_idle: usize,
}

impl Settings {
    /// Rails at `target`, without TLS, and the defaults for the rest.
    pub fn new(target: Target) -> Self {
        Self::of(ServerSettings { target, tls: None, is_backup: false })
    }

    /// The same at one server.
    pub fn of(server: ServerSettings) -> Self {
        Self {
            servers: vec![server],
            protocol: Protocol::default(),
            ejection: Ejection::default(),
            checks: Checks::default(),
            load_memory: DEFAULT_LOAD_MEMORY,
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

    /// Whether servers are asked if they are well. One that is alone is not: there is no choice.
    pub fn has_checks(&self) -> bool {
        self.servers.len() > 1 && !self.checks.interval.is_zero()
    }

    /// The relative URL root of this Rails: empty, or `/gitlab` and the like.
    pub fn relative_root(&self) -> &str {
        self.servers.first().map_or("", |server| &server.target.root)
    }
}

/// Default of [`Settings::connect_timeout`].
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Default of [`lanes::Settings::response_timeout`]: `/allowed` may take 50 s (contract §1.2).
pub const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long all of what a login waits for may take, waiting included: gitlab-sshd gives up after 10 s, in which
/// it tries again after a failure.
pub const DEFAULT_LOOKUP_TIMEOUT: Duration = Duration::from_secs(4);
/// Default of [`Settings::body_timeout`].
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// Default of [`lanes::Settings::total_timeout`]: longer than anything takes, but not for ever, however slowly
/// a client reads.
pub const DEFAULT_TOTAL_TIMEOUT: Duration = Duration::from_secs(4 * 3_600);
/// Default of [`Settings::max_held`].
pub const DEFAULT_MAX_HELD: usize = 10_000;
/// Default of [`Settings::resend_percent`].
pub const DEFAULT_RESEND_PERCENT: u8 = 10;
/// Defaults of most classes. They wait for as long as a Puma takes that loads GitLab: their callers have time, and
/// Gitaly's fail what a user has begun long before. So does kas, which remembers for a minute what has failed; its
/// tokens end that earlier.
pub const DEFAULT_CLASS: lanes::Settings = lanes::Settings {
    concurrency: 256,
    queue: 1_024,
    queue_timeout: Duration::from_secs(5),
    response_timeout: DEFAULT_RESPONSE_TIMEOUT,
    total_timeout: DEFAULT_TOTAL_TIMEOUT,
    hold: Duration::from_secs(30),
};
/// Defaults of all.
pub const DEFAULT_CLASSES: [lanes::Settings; Class::ALL.len()] = [
    lanes::Settings {
        queue_timeout: Duration::from_secs(2),
        response_timeout: DEFAULT_LOOKUP_TIMEOUT,
        total_timeout: DEFAULT_LOOKUP_TIMEOUT,
        hold: Duration::from_secs(1),
        ..DEFAULT_CLASS
    },
    DEFAULT_CLASS,
    DEFAULT_CLASS,
    // One kas sends up to 50 requests a second, and 250 at once after a pause. 100 at a time are enough for 50 a
    // second as long as Rails takes 2 s or less for one; of 250, the others wait for their turn, 3 s at that speed.
    lanes::Settings { concurrency: 100, ..DEFAULT_CLASS },
    // Any client that can connect may ask for these, and Rails judges: a small share, or a flood of them
    // would take the threads of Rails from the others. Few may wait, so none keeps its place for long.
    lanes::Settings {
        concurrency: OTHER_CONCURRENCY,
        queue: 256,
        hold: Duration::from_secs(5),
        ..DEFAULT_CLASS
    },
];
/// How many requests without a credential Rails is given at one time, unless configured otherwise.
pub const OTHER_CONCURRENCY: usize = 16;

/// The same where it is known how many threads each server has: an eighth of them, backups aside, but one
/// at least.
pub fn other_concurrency(threads: usize, servers: &[ServerSettings]) -> usize {
    let servers = servers.iter().filter(|server| !server.is_backup).count();
    (threads * servers / 8).clamp(1, OTHER_CONCURRENCY)
}
/// Default of [`Settings::load_memory`].
pub const DEFAULT_LOAD_MEMORY: Duration = Duration::from_secs(10);
/// Default of [`Settings::idle_timeout`].
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Default of [`Settings::max_connection_age`].
pub const DEFAULT_MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Default of [`Settings::max_idle`].
pub const DEFAULT_MAX_IDLE: usize = 64;

/// Rails, as the gateway sees it.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<Server>,
    /// Where all of them live.
    root: String,
    /// What the first in line asks for, and for how long, where connections prove nothing.
    probe: (Option<Uri>, Duration),
    body_timeout: Duration,
    max_held: usize,
    /// Whether a server may prove that it has not read a request, which is sent again then.
    may_resend_unread: bool,
    state: Arc<State>,
}

/// What all threads share, and what is known of the upstream side.
#[derive(Debug)]
pub struct State {
    /// Where requests wait while Rails is away.
    pub hold: Hold,
    /// What is known while it is.
    pub away: Away,
    /// How much is asked of Rails at one time.
    pub lanes: Lanes,
    /// How often reads may be sent again, by class.
    budgets: [TpsBudget; Class::ALL.len()],
    /// Bodies that are kept for that.
    copies: Memory,
    /// The servers, in the order of the configuration.
    pub servers: Vec<Arc<ServerState>>,
    /// Reads that were not sent again, since too many have been.
    pub not_resent: AtomicU64,
    /// Failures in a row, whatever the kind; 0 after an answer.
    pub failures_in_a_row: AtomicU64,
    /// Answers received.
    pub answers: AtomicU64,
}

impl State {
    /// Nothing is known yet.
    pub fn new(settings: &Settings) -> Self {
        // Even a gateway that has little to do may send something again: once a second.
        let share = f32::from(settings.resend_percent) / 100.0;
        let least = u32::from(settings.resend_percent > 0);
        Self {
            hold: Hold::default(),
            away: Away::default(),
            lanes: Lanes::new(&settings.classes),
            copies: Memory::default(),
            budgets: Class::ALL.map(|_| TpsBudget::new(BUDGET_MEMORY, least, share)),
            servers: settings
                .servers
                .iter()
                .map(|server| Arc::new(ServerState::new(server, settings)))
                .collect(),
            not_resent: AtomicU64::new(0),
            failures_in_a_row: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        }
    }
}

/// For how long a request counts towards what may be sent again.
const BUDGET_MEMORY: Duration = Duration::from_secs(10);

impl Upstream {
    /// Prepares the pools; connects when the first request comes. What happens is counted in `state`, which
    /// has to be made of the same settings.
    pub fn new(settings: &Settings, state: Arc<State>) -> Self {
        let servers = Server::all(settings, &state);
        Self {
            may_resend_unread: settings.protocol == Protocol::Http2
                || servers.iter().any(|server| server.may_resend_unread),
            servers,
            root: settings.relative_root().to_owned(),
            probe: (settings.checks.uri(settings.relative_root()), settings.checks.timeout),
            body_timeout: settings.body_timeout,
            max_held: settings.max_held,
            state,
        }
    }

    /// One that nobody else shares.
    pub fn alone(settings: Settings) -> Self {
        let state = Arc::new(State::new(&settings));
        Self::new(&settings, state)
    }

    /// The relative URL root of this Rails: empty, or `/gitlab` and the like.
    pub fn relative_root(&self) -> &str {
        &self.root
    }
}

fn now() -> Instant {
    Clock::System.now()
}
