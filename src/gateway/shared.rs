//! What is in effect, where the parts of the gateway look for it.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::fleet;
use super::secrets::Secrets;
use super::traces::Tracing;
use crate::admin::AdminAccess;
use crate::auth::Authenticator;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::fleet::Fleet;
use crate::hooks::{HookCounters, Hooks};
use crate::secret::status::SecretStatuses;
use crate::server::ServerLimits;
use crate::upstream::{HealthChecker, UpstreamState};

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) auth: Arc<ArcSwap<Authenticator>>,
    pub(crate) admin: Arc<ArcSwap<AdminAccess>>,
    /// Only peers on this machine can connect to the admin listener.
    pub(crate) admin_is_local: bool,
    pub(crate) hooks: Option<Hooks>,
    pub(crate) limits: Arc<ArcSwap<ServerLimits>>,
    pub(crate) upstream: Arc<UpstreamState>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) fleet: Fleet,
    pub(crate) secret_statuses: Arc<SecretStatuses>,
    pub(crate) checks: watch::Sender<Arc<HealthChecker>>,
    pub(crate) tracing: Tracing,
}

impl Shared {
    /// As it is at the start, and where the health checker of the day is found.
    pub(crate) fn new(
        config: &GatewayConfig,
        admin_is_local: bool,
        hook_counts: &Arc<HookCounters>,
    ) -> io::Result<(Self, watch::Receiver<Arc<HealthChecker>>)> {
        let upstream = Arc::new(UpstreamState::new(&config.upstream));
        let (checks, checker) = watch::channel(Arc::new(HealthChecker::new(&config.upstream, &upstream)));
        let cache = Cache::new(&config.cache);
        let fleet = fleet::join(config, &cache)?;
        let hooks = config.hooks.clone().map(|hooks| {
            let cleaned = (Arc::clone(&cache), fleet.clone());
            Hooks::new(hooks, cleaned, Arc::clone(hook_counts), Clock::System)
        });
        let shared = Self {
            auth: Arc::new(ArcSwap::from_pointee(Authenticator::new(config.auth.clone()))),
            admin: Arc::new(ArcSwap::from_pointee(admin_access(config, admin_is_local))),
            admin_is_local,
            hooks,
            limits: Arc::new(ArcSwap::from_pointee(config.limits)),
            upstream,
            cache,
            fleet,
            secret_statuses: Arc::default(),
            checks,
            tracing: Tracing::new(config),
        };
        Ok((shared, checker))
    }

    /// Callers are authenticated by these from now on.
    pub(super) fn publish(&self, config: &GatewayConfig, secrets: &Secrets) {
        self.auth.store(Arc::new(secrets.authenticator(config)));
        self.admin.store(Arc::new(admin_access(config, self.admin_is_local)));
        if let Some((hooks, settings)) = self.hooks.as_ref().zip(secrets.hooks(config)) {
            hooks.reload(settings);
        }
    }
}

/// Who may use the admin listener.
fn admin_access(config: &GatewayConfig, is_local_only: bool) -> AdminAccess {
    AdminAccess { is_local_only, token: config.admin.token.clone(), hosts: config.admin.hosts.clone() }
}
