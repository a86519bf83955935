//! The way to Rails: one request in, one answer out, over a pool of kept connections.
//!
//! A request that finds Rails away waits in line ([`hold`]); one that is let through has a permit of its
//! class ([`lanes`]) until its answer has come to its end. It is sent once: a second time only if
//! nothing of it can have been done, or if asking changes nothing, and only as long as that is rare.
//!
//! Errors say which side failed; what the client is told about it is not decided here.

mod answer;
mod connect;
pub mod hold;
pub mod lanes;
mod plan;
mod pool;
mod send;
mod target;
pub mod tls;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize};
use std::time::Duration;

use http::header::HeaderValue;
use tower::retry::budget::TpsBudget;

use self::connect::Connector;
use self::hold::Hold;
use self::lanes::{Lanes, Shed};
pub use self::plan::{Course, Plan, Signer};
use self::pool::Pool;
pub use self::send::may_pass;
pub use self::target::{Address, Target, TargetError};
use self::tls::Tls;
use crate::body;
use crate::route::Class;

/// What `[upstream]` of the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Rails listens.
    pub target: Target,
    /// How connections are secured, if they are.
    pub tls: Option<Tls>,
    /// The `Host` that Rails sees; by default the authority of the URL.
    pub host: Option<String>,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long the body of an answer may pause.
    pub body_timeout: Duration,
    /// How long an answer may take in all, from the request to its end; zero is for as long as it takes.
    pub total_timeout: Duration,
    /// How many requests may wait for a Rails that is away.
    pub max_held: usize,
    /// Of a hundred reads, how many may be sent again.
    pub resend_percent: u8,
    /// Whether a request is sent again whose connection a Rails on this machine has reset.
    pub resend_unread: bool,
    /// What else differs by class of route.
    pub classes: [lanes::Settings; Class::ALL.len()],
    /// How long an unused connection is kept. Puma drops them after 20 s, so less than that.
    pub idle_timeout: Duration,
    /// How many unused connections are kept.
    pub max_idle: usize,
}

impl Settings {
    /// Rails at `target`, without TLS, and the defaults for the rest.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            tls: None,
            host: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            body_timeout: DEFAULT_BODY_TIMEOUT,
            total_timeout: Duration::ZERO,
            max_held: DEFAULT_MAX_HELD,
            resend_percent: DEFAULT_RESEND_PERCENT,
            resend_unread: true,
            classes: DEFAULT_CLASSES,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            max_idle: DEFAULT_MAX_IDLE,
        }
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
    // Whoever connects may ask for these, and Rails judges: nobody is to take the places of the others.
    lanes::Settings { concurrency: 10_000, ..DEFAULT_CLASS },
];
/// Default of [`Settings::idle_timeout`].
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Default of [`Settings::max_idle`].
pub const DEFAULT_MAX_IDLE: usize = 64;

/// Rails, as the gateway sees it.
#[derive(Debug)]
pub struct Upstream {
    pool: Pool,
    target: Target,
    host: HeaderValue,
    body_timeout: Duration,
    total_timeout: Duration,
    max_held: usize,
    /// Whether what a Rails on this machine has not read is sent again.
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
    /// How often requests may be sent again.
    budget: TpsBudget,
    /// Requests that Rails had not read, and that were sent again.
    pub unread: AtomicU64,
    /// Reads that were sent again.
    pub resent: AtomicU64,
    /// Those that were not, since too many have been.
    pub not_resent: AtomicU64,
    /// Connections that are open now, used or kept.
    pub open: AtomicI64,
    /// Connections that are kept now, without a request.
    pub kept: AtomicUsize,
    /// Connections made so far.
    pub opened: AtomicU64,
    /// Attempts to connect that failed.
    pub refused: AtomicU64,
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
            budget: TpsBudget::new(BUDGET_MEMORY, least, share),
            unread: AtomicU64::new(0),
            resent: AtomicU64::new(0),
            not_resent: AtomicU64::new(0),
            open: AtomicI64::new(0),
            kept: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
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
    /// No head of an answer before all of it should have been there.
    #[error("no answer within {0:?}, waiting included")]
    TotalTimeout(Duration),
    /// The connection ended, or what came is no HTTP.
    #[error("the connection failed before an answer came")]
    Broken(#[source] hyper::Error),
    /// The answer's body ended too early.
    #[error("the answer broke off")]
    BrokeOff(#[source] body::Error),
    /// An answer with two framings, or an upgrade that nobody asked for.
    #[error("unusable answer: {0}")]
    Unusable(&'static str),
    /// The body that the client sends did not come to its end in time.
    #[error("the request body was not complete within {0:?}")]
    BodyStalled(Duration),
    /// The body that the client sends broke off or is malformed.
    #[error("the request body broke off")]
    RequestBody(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Upstream {
    /// Prepares the pool; connects when the first request comes. What happens is counted in `state`.
    pub fn new(settings: Settings, state: Arc<State>) -> Self {
        let host = settings
            .host
            .as_deref()
            .and_then(|host| HeaderValue::from_str(host).ok())
            .unwrap_or_else(|| settings.target.host_header());
        let Settings { target, tls, connect_timeout, body_timeout, total_timeout, max_held, .. } = settings;
        let connector = Connector::new(&target, tls, connect_timeout, Arc::clone(&state));
        let pool = Pool::new(connector, settings.max_idle, settings.idle_timeout, Arc::clone(&state));
        let may_resend_unread = settings.resend_unread && target.address.is_local();
        Self { pool, target, host, body_timeout, total_timeout, max_held, may_resend_unread, state }
    }

    /// One that nobody else shares.
    pub fn alone(settings: Settings) -> Self {
        let state = Arc::new(State::new(&settings));
        Self::new(settings, state)
    }

    /// The relative URL root of this Rails: empty, or `/gitlab` and the like.
    pub fn relative_root(&self) -> &str {
        &self.target.root
    }
}
