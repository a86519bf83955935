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
mod balance;
mod check;
mod connect;
mod copy;
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

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use http::Uri;
use tower::retry::budget::TpsBudget;

pub use self::attempt::{is_for_want_of_resources, may_pass};
pub use self::balance::MOST_SERVERS;
pub use self::check::{Settings as Checks, Watch};
use self::copy::Memory;
pub use self::health::Settings as Ejection;
use self::hold::Hold;
use self::lanes::{Lanes, Shed};
pub use self::plan::{Course, MayWait, Plan, Signer};
use self::server::Server;
pub use self::server::{Again, Protocol, ServerSettings, ServerState};
pub use self::target::{Address, LONGEST_SOCKET_PATH, Target, TargetError, without_zone};
use crate::body;
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
    /// How long an answer may take in all, from the request to its end; zero is for as long as it takes.
    pub total_timeout: Duration,
    /// How many requests of each class may wait for a Rails that is away; of [`Class::Other`], no more
    /// than its queue holds.
    pub max_held: usize,
    /// Of a hundred reads, how many may be sent again.
    pub resend_percent: u8,
    /// Whether a request is sent again whose connection a Rails on this machine has reset.
    pub resend_unread: bool,
    /// What else differs by class of route.
    pub classes: [lanes::Settings; Class::ALL.len()],
    /// How long an unused connection is kept. Puma drops them after 20 s, so less than that.
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
            total_timeout: DEFAULT_TOTAL_TIMEOUT,
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
/// How long Rails may take for what somebody waits for to log in.
pub const DEFAULT_LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Default of [`Settings::body_timeout`].
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// Default of [`Settings::total_timeout`]: longer than anything takes, but not for ever, however slowly
/// a client reads.
pub const DEFAULT_TOTAL_TIMEOUT: Duration = Duration::from_secs(4 * 3_600);
/// Default of [`Settings::max_held`].
pub const DEFAULT_MAX_HELD: usize = 10_000;
/// Default of [`Settings::resend_percent`].
pub const DEFAULT_RESEND_PERCENT: u8 = 10;
/// Defaults of most classes.
pub const DEFAULT_CLASS: lanes::Settings = lanes::Settings {
    concurrency: 256,
    queue: 1_024,
    queue_timeout: Duration::from_secs(5),
    response_timeout: DEFAULT_RESPONSE_TIMEOUT,
    hold: Duration::from_secs(5),
};
/// Defaults of all.
pub const DEFAULT_CLASSES: [lanes::Settings; Class::ALL.len()] = [
    lanes::Settings { response_timeout: DEFAULT_LOOKUP_TIMEOUT, ..DEFAULT_CLASS },
    DEFAULT_CLASS,
    DEFAULT_CLASS,
    DEFAULT_CLASS,
    // Any client that can connect may ask for these, and Rails judges: a small share, or a flood of them
    // would take the threads of Rails from the others.
    lanes::Settings { concurrency: OTHER_CONCURRENCY, queue: 256, ..DEFAULT_CLASS },
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
    total_timeout: Duration,
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

/// How a request to Rails failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: nothing was sent.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// More wait for Rails to be back than may.
    #[error("{0} is away, and as many requests as may wait for it already")]
    HoldFull(String),
    /// The credential would have been dead on arrival.
    #[error("{0} is away or busy, and the token expires before it can be sent")]
    Expires(String),
    /// Rails has as much to do as it may have.
    #[error("not sent: {}", .0.as_str())]
    Shed(Shed),
    /// No head of an answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The same from a server that answers others meanwhile.
    #[error("no answer within {0:?}, while others were answered")]
    Slow(Duration),
    /// No head of an answer before all of it should have been there.
    #[error("no answer within {0:?}, waiting included")]
    TotalTimeout(Duration),
    /// The connection ended, or what came is no HTTP.
    #[error("{}", answer::why_broken(.0))]
    Broken(#[source] hyper::Error),
    /// The answer's body ended too early.
    #[error("the answer broke off")]
    BrokeOff(#[source] body::Error),
    /// An answer with two framings, or an upgrade that nobody asked for.
    #[error("unusable answer: {0}")]
    Unusable(&'static str),
    /// An answer that only Workhorse can make something of. Its name is that of a header.
    #[error(
        "the answer has {0}, which only Workhorse can turn into what was asked for; \
         let upstream.url lead to Workhorse instead of Puma"
    )]
    NeedsWorkhorse(String),
    /// The body that the client sends did not come to its end in time.
    #[error("the request body was not complete within {0:?}")]
    BodyStalled(Duration),
    /// The body that the client sends broke off or is malformed.
    #[error("the request body broke off")]
    RequestBody(#[source] Box<dyn std::error::Error + Send + Sync>),
}

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
            total_timeout: settings.total_timeout,
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
