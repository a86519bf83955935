//! The settings of a fleet, and their defaults. Only `config` knows the keys.

use std::path::PathBuf;
use std::time::Duration;

use crate::upstream::tls::Tls;
use crate::upstream::{UpstreamAddress, without_zone};

/// The section `[fleet]` of the configuration. Without it, the gateway is alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetSettings {
    /// Where Valkey is.
    pub servers: ValkeyServers,
    /// What Valkey is shown.
    pub credential: ValkeyCredential,
    /// TLS of all connections to it, Sentinels included.
    pub tls: Option<FleetTls>,
    /// Keeps apart the fleets of one GitLab that share a Valkey. Default: empty.
    pub name: String,
    /// Names the GitLab, for gateways that reach it by different addresses. Default: the addresses of its servers.
    pub identity: Option<String>,
    /// How long a poll of the stream waits for something new.
    pub poll: Duration,
    /// From when on without a complete poll the gateway counts as alone. At least [`POLL_MARGIN`] longer than `poll`.
    pub alone_after: Duration,
    /// How old a cached answer may be while the gateway is alone.
    pub alone_ttl: Duration,
    /// How many replicas of Valkey have to have a message before it counts as told.
    pub replicas: u32,
    /// How many messages the stream keeps, roughly.
    pub bus_entries: u64,
    /// The cache that the gateways share. Without it, each asks Rails for itself.
    pub shared: Option<SharedSettings>,
}

impl FleetSettings {
    /// Valkey at `address`, and the defaults for the rest.
    pub fn new(address: UpstreamAddress) -> Self {
        Self {
            servers: ValkeyServers::One(address),
            credential: ValkeyCredential::default(),
            tls: None,
            name: String::new(),
            identity: None,
            poll: DEFAULT_POLL,
            alone_after: DEFAULT_ALONE_AFTER,
            alone_ttl: DEFAULT_ALONE_TTL,
            replicas: 0,
            bus_entries: DEFAULT_BUS_ENTRIES,
            shared: None,
        }
    }
}

/// How the server is found that takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValkeyServers {
    /// It is always at this address, or that is a node of a cluster.
    One(UpstreamAddress),
    /// Sentinels know its address.
    Sentinels {
        /// Where they listen.
        sentinels: Vec<UpstreamAddress>,
        /// The name by which they know it.
        master: String,
        /// What they are shown.
        credential: ValkeyCredential,
    },
}

/// A user of Valkey, and the file with the password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValkeyCredential {
    /// Default: the user `default` of Valkey.
    pub user: Option<String>,
    /// The file with the password, which is read for each connection, so that it can be exchanged. Without it, none is
    /// sent.
    pub password_file: Option<PathBuf>,
}

/// TLS to Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetTls {
    tls: Tls,
    server_name: Option<String>,
}

impl FleetTls {
    /// The authorities and the certificate of `tls`. Each server has to prove to be `server_name`; without one, to be the
    /// host that is connected to.
    pub fn new(tls: Tls, server_name: Option<String>) -> Self {
        Self { tls: tls.without_alpn(), server_name }
    }

    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// The name that the server at `host` has to prove.
    pub(super) fn name_of<'a>(&'a self, host: &'a str) -> &'a str {
        self.server_name.as_deref().unwrap_or_else(|| without_zone(host))
    }
}

/// The section `[fleet.shared]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSettings {
    /// How long an answer is kept there, at most.
    pub ttl: Duration,
    /// How long Valkey may take for one; then Rails is asked.
    pub timeout: Duration,
    /// How long one gateway alone may ask Rails for an answer that all need.
    pub lock: Duration,
    /// How long the others wait for that answer before they ask too.
    pub wait: Duration,
}

impl Default for SharedSettings {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            timeout: Duration::from_millis(20),
            lock: Duration::from_secs(3),
            wait: Duration::from_millis(100),
        }
    }
}

/// How much later than asked for the reply to a poll may come. Valkey looks for waits that are over ten times a second
/// or less often.
pub const POLL_MARGIN: Duration = Duration::from_millis(500);
/// Default of [`FleetSettings::poll`].
pub const DEFAULT_POLL: Duration = Duration::from_millis(500);
/// Default of [`FleetSettings::alone_after`].
pub const DEFAULT_ALONE_AFTER: Duration = Duration::from_secs(2);
/// Default of [`FleetSettings::alone_ttl`].
pub const DEFAULT_ALONE_TTL: Duration = Duration::from_secs(10);
/// Default of [`FleetSettings::bus_entries`]. A message takes about 180 bytes there.
pub const DEFAULT_BUS_ENTRIES: u64 = 100_000;
