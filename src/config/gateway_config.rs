//! The result of reading a configuration: one field for each module that has settings.

use std::sync::Arc;
use std::time::Duration;

use crate::log::LogFormat;
use crate::secret::files::SecretFile;
use crate::server;

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Threads that answer requests. Default: one for each core that the process may use.
    pub workers: usize,
    /// Where clients connect.
    pub listen: Vec<server::ListenSettings>,
    /// Where operators and their tools connect.
    pub admin: AdminSettings,
    /// The receiver of GitLab's System Hooks. Without it, cached answers end by their age alone.
    pub hooks: Option<crate::hooks::HooksSettings>,
    /// How Rails is reached.
    pub upstream: crate::upstream::UpstreamSettings,
    /// Replaces the credential of GitLab Shell on the way to Rails. Without it, Rails gets that of the caller.
    pub upstream_credential: Option<crate::auth::upstream_credential::UpstreamCredential>,
    /// Path prefixes outside the internal API that are forwarded.
    pub forward_prefixes: Vec<String>,
    /// Which credentials are accepted.
    pub auth: crate::auth::AuthSettings,
    /// What is cached, and for how long.
    pub cache: crate::cache::CacheSettings,
    /// The files of the secrets, and what happens when they change.
    pub secrets: SecretSettings,
    /// Limits on clients.
    pub limits: server::ServerLimits,
    /// What is logged.
    pub log: LogSettings,
    /// The socket by which the next process takes over. Without it, an upgrade takes a restart.
    pub upgrade_socket: Option<server::ListenAddress>,
    /// Which requests are traced. Without it, none is.
    pub tracing: Option<Arc<crate::otlp::TracingSettings>>,
    /// The other gateways of this GitLab. Without it, this one is alone.
    pub fleet: Option<Arc<crate::fleet::settings::FleetSettings>>,
}

/// Where the secrets come from.
#[derive(Clone, Debug)]
pub struct SecretSettings {
    /// All files that secrets were read from.
    pub files: Vec<SecretFile>,
    /// How long a secret of callers or of GitLab's hooks is accepted after it was replaced. Default: 5 minutes.
    pub overlap: Duration,
}

impl Default for SecretSettings {
    fn default() -> Self {
        Self { files: Vec::new(), overlap: Duration::from_secs(5 * 60) }
    }
}

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// Default: 127.0.0.1:9181.
    pub address: server::ListenAddress,
    /// Connections open at one time.
    pub connections: usize,
    /// Required to purge, inspect and drain; without it, the address decides.
    pub token: Option<crate::secret::BearerToken>,
    /// Accepted in `Host`, besides addresses and `localhost`. In lower case.
    pub hosts: Vec<String>,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Default: JSON.
    pub format: LogFormat,
    /// Less important events are not written. Default: info.
    pub level: tracing::Level,
    /// Successful requests are logged too. Default: true.
    pub requests: bool,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: tracing::Level::INFO, requests: true }
    }
}
