//! The settings of the way to Rails, and their defaults. Only `config` knows the keys.

use std::time::Duration;

use http::Uri;

use super::connection::protocol::Protocol;
use super::connection::target::{UpstreamTarget, join_root};
use super::connection::tls::Tls;
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

/// The largest number of servers: `ServerSet` has a bit for each.
pub const MAX_SERVERS: usize = 64;

/// One server in the configuration: `upstream.url`, or a `[[upstream.server]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamServerSettings {
    /// Where it listens.
    pub target: UpstreamTarget,
    /// TLS, if the target needs it.
    pub tls: Option<Tls>,
    /// Whether it gets requests only while no other server is in rotation.
    pub is_backup: bool,
}

impl UpstreamServerSettings {
    /// Its address; metrics and logs name it by that.
    pub fn name(&self) -> String {
        self.target.address.to_string()
    }
}

/// The section `[upstream.classes.…]` of the configuration, for one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassSettings {
    /// How many requests Rails gets at one time.
    pub concurrency: usize,
    /// How many it gets in the long run, if fewer: from when requests of the class were with Rails for 30 s more, over
    /// all, than so many at one time would have been, until that is made up for. At least 1.
    pub sustained_concurrency: usize,
    /// How many more may wait for a permit.
    pub queue: usize,
    /// How long they may wait for it.
    pub queue_timeout: Duration,
    /// How long Rails may take from the request to the head of its response.
    pub response_timeout: Duration,
    /// How long the whole exchange may take, from the arrival of the request to the end of the response, time
    /// in queues included; zero is without limit.
    pub total_timeout: Duration,
    /// How long a request waits for an unreachable Rails.
    pub hold: Duration,
}

/// The section `[upstream.ejection]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionSettings {
    /// After how many failures in a row a server is ejected; 0 is never.
    pub failures: u32,
    /// How long the first ejection lasts. Each further one lasts twice as long.
    pub pause: Duration,
    /// The longest ejection. A server that was in rotation for as long begins with the shortest again.
    pub longest_pause: Duration,
    /// How long a server that returns gets less than its share.
    pub slow_start: Duration,
}

impl Default for EjectionSettings {
    fn default() -> Self {
        Self {
            failures: 5,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            slow_start: Duration::from_secs(10),
        }
    }
}

impl EjectionSettings {
    pub(in crate::upstream) fn pause_after(&self, ejections_in_a_row: u32) -> Duration {
        self.pause.saturating_mul(1 << ejections_in_a_row.min(16)).min(self.longest_pause)
    }
}

/// The section `[upstream.health]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheckSettings {
    /// The path to request, below the relative URL root. Any 2xx passes.
    pub path: String,
    /// The time between two checks of a server; zero turns them off.
    pub interval: Duration,
    /// How long a response may take, connecting included.
    pub timeout: Duration,
    /// How many checks in a row an unhealthy server has to pass to be in rotation again.
    pub healthy_after: u32,
    /// How many checks in a row a server has to fail to be unhealthy.
    pub unhealthy_after: u32,
}

impl Default for HealthCheckSettings {
    fn default() -> Self {
        Self {
            // GitLab's own, for the process that responds, not for all that it depends on.
            path: "/-/readiness".to_owned(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }
}

impl HealthCheckSettings {
    /// The path as a URI.
    pub(in crate::upstream) fn uri(&self, root: &str) -> Option<Uri> {
        join_root(root, Uri::try_from(self.path.as_str()).ok()?)
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
    sustained_concurrency: 256,
    queue: 1_024,
    queue_timeout: Duration::from_secs(5),
    response_timeout: DEFAULT_RESPONSE_TIMEOUT,
    total_timeout: DEFAULT_TOTAL_TIMEOUT,
    hold: Duration::from_secs(30),
};
/// Defaults of [`UpstreamSettings::classes`].
pub const DEFAULT_CLASSES: [ClassSettings; Class::ALL.len()] = [
    // `lookup`
    ClassSettings {
        queue_timeout: Duration::from_secs(2),
        response_timeout: DEFAULT_LOOKUP_TIMEOUT,
        total_timeout: DEFAULT_LOOKUP_TIMEOUT,
        hold: Duration::from_secs(1),
        ..DEFAULT_CLASS
    },
    // `access`
    DEFAULT_CLASS,
    // `callback`
    DEFAULT_CLASS,
    // `kas`. One kas sends up to 50 requests a second, and 250 at once after a pause. 100 at a time are enough for 50 a
    // second as long as Rails takes 2 s or less for one; of 250, the others wait in the queue, 3 s at that speed.
    ClassSettings { concurrency: 100, sustained_concurrency: 100, ..DEFAULT_CLASS },
    // `other`. Any client that can connect may send these, and Rails judges them: a small share, or a flood of them
    // would take the threads of Rails from the other classes. Few may wait, so none waits for long.
    ClassSettings {
        concurrency: OTHER_CONCURRENCY,
        sustained_concurrency: 1,
        queue: 256,
        hold: Duration::from_secs(5),
        ..DEFAULT_CLASS
    },
];
/// How many requests without a credential Rails gets at one time, unless configured otherwise.
pub const OTHER_CONCURRENCY: usize = 16;
/// How many threads a server has at least, unless told: those of one process of Puma as GitLab configures it.
const MIN_THREADS: usize = 4;

/// Default of `concurrency` and `sustained_concurrency` of [`Class::Other`]: an eighth of all threads, backups aside,
/// but at least one. Where `threads`, those of each server, are not known, more may be with Rails in a burst.
pub fn default_other_concurrency(
    threads: Option<usize>,
    servers: &[UpstreamServerSettings],
) -> (usize, usize) {
    let servers = servers.iter().filter(|server| !server.is_backup).count();
    let sustained = (threads.unwrap_or(MIN_THREADS) * servers / 8).clamp(1, OTHER_CONCURRENCY);
    (threads.map_or(OTHER_CONCURRENCY, |_| sustained), sustained)
}
/// Default of [`UpstreamSettings::load_decay`].
pub const DEFAULT_LOAD_DECAY: Duration = Duration::from_secs(10);
/// Default of [`UpstreamSettings::idle_timeout`].
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Default of [`UpstreamSettings::max_connection_age`].
pub const DEFAULT_MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Default of [`UpstreamSettings::max_idle`].
pub const DEFAULT_MAX_IDLE: usize = 64;
