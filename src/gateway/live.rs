//! What changes while the gateway runs: the configuration when it is read again, and secrets when their files
//! change.
//!
//! A change makes new services and puts them where the workers find them for their next request. Requests that run
//! end with what they began with. The cache, the counters and the connections of clients stay, and so do the
//! connections to servers of Rails that stay.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio_util::task::TaskTracker;

use super::restart::may_be_another_gitlab;
use super::secrets::Secrets;
use super::shared::Shared;
use crate::body::unverified::UnverifiedBodies;
use crate::cache::{CacheSettings, Lifetimes};
use crate::clock::Clock;
use crate::config::{self, GatewayConfig};
use crate::header::via::Pseudonym;
use crate::log::LogCounters;
use crate::metrics::Metrics;
use crate::reload::{Reload, ReloadError, ReloadStatus, Reloaded};
use crate::secret::files::{LoadedSecret, SecretRole};
use crate::secret::refresh::{RefreshSecrets, SecretRefresher};
use crate::service_manager::ServiceManager;
use crate::stack::reloadable::StackCell;
use crate::stack::{self, Stack, StackParts};
use crate::upstream::{HealthChecker, Upstream};

/// Exchanges what can be exchanged.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) file: OnceLock<PathBuf>,
    pub(crate) manager: OnceLock<ServiceManager>,
    pub(crate) status: Arc<ReloadStatus>,
    pub(crate) running: Mutex<Running>,
    /// Held from reading the file to its end: else one that was read earlier could take effect later.
    pub(crate) reload: Mutex<()>,
    pub(crate) shared: Shared,
    pub(crate) log: Arc<LogCounters>,
}

/// What is in effect.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) config: GatewayConfig,
    pub(crate) secrets: Secrets,
    pub(crate) workers: Vec<WorkerStack>,
    /// Another process has taken over, and is told of what is purged.
    is_replaced: bool,
}

/// The stack of one worker, and what it was made of.
#[derive(Debug)]
pub(crate) struct WorkerStack {
    pub(crate) cell: Arc<StackCell<Stack>>,
    pub(crate) parts: StackParts,
}

impl Live {
    /// With the stacks of all workers.
    pub(crate) fn new(
        config: GatewayConfig,
        (shared, bodies): (Shared, &Arc<UnverifiedBodies>),
        metrics: &Metrics,
        (status, log): (Arc<ReloadStatus>, Arc<LogCounters>),
    ) -> Arc<Self> {
        let pseudonym = Pseudonym::random();
        Arc::new_cyclic(|live: &Weak<Self>| {
            let refresher = SecretRefresher::new(Weak::<Self>::clone(live));
            let worker = |_| {
                let parts = StackParts {
                    auth: Arc::clone(&shared.auth),
                    secrets: refresher.clone(),
                    bodies: Arc::clone(bodies),
                    cache: Arc::clone(&shared.cache),
                    shared_answers: shared.fleet.shared().cloned(),
                    cache_settings: config.cache.clone(),
                    upstream: Arc::new(Upstream::new(&config.upstream, Arc::clone(&shared.upstream))),
                    upstream_credential: config.upstream_credential.clone(),
                    forward_prefixes: config.forward_prefixes.clone(),
                    worker_metrics: metrics.add_worker(),
                    log_requests: config.log.requests,
                    tracer: shared.tracing.tracer(&config),
                    pseudonym: pseudonym.clone(),
                    clock: Clock::System,
                    fills: TaskTracker::new(),
                };
                WorkerStack { cell: StackCell::new(stack::build(parts.clone())), parts }
            };
            let workers = (0..config.workers).map(worker).collect();
            let secrets = Secrets::new(&config, Arc::clone(&shared.secret_statuses));
            let running = Mutex::new(Running { config, secrets, workers, is_replaced: false });
            let (file, manager, reload) = (OnceLock::new(), OnceLock::new(), Mutex::default());
            Self { file, manager, status, running, reload, shared, log }
        })
    }

    /// The service manager, if there is one.
    pub(crate) fn manager(&self) -> ServiceManager {
        self.manager.get().cloned().unwrap_or_default()
    }

    /// What is in effect now. `None` if the files of secrets are being read just now, and their disk hangs.
    pub(crate) fn config(&self) -> Option<GatewayConfig> {
        self.try_lock().map(|running| running.config.clone())
    }

    /// For a thread with an event loop, which must not hang with a disk.
    fn try_lock(&self) -> Option<MutexGuard<'_, Running>> {
        let running = self.running.try_lock_for(MAX_LOCK_WAIT);
        if running.is_none() {
            tracing::error!("files of secrets cannot be read to their end: does their disk hang?");
        }
        running
    }

    /// Takes over a configuration, and returns the keys that need a restart for that.
    pub(super) fn apply(&self, mut new: GatewayConfig) -> Vec<&'static str> {
        let mut running = self.running.lock();
        let restart_needed = new.keep_until_restart(&running.config, self.shared.cache.max_ages());
        let Running { config, secrets, workers, is_replaced } = &mut *running;
        secrets.note_replaced(config, &new);
        let is_another_gitlab = may_be_another_gitlab(&config.upstream, &new.upstream);
        let upstream = &self.shared.upstream;
        upstream.reload(&new.upstream);
        for WorkerStack { cell, parts } in workers {
            *parts = StackParts {
                cache_settings: cache_settings(&new, *is_replaced),
                upstream: parts.upstream.reloaded(&new.upstream),
                upstream_credential: new.upstream_credential.clone(),
                forward_prefixes: new.forward_prefixes.clone(),
                log_requests: new.log.requests,
                tracer: self.shared.tracing.tracer(&new),
                ..parts.clone()
            };
            cell.replace(stack::build(parts.clone()));
        }
        if is_another_gitlab {
            self.shared.fleet.end_sharing();
            // After the stacks: what they have asked the servers before is not stored either.
            self.shared.cache.invalidate_all();
            tracing::warn!(
                "no server of Rails is as before: the cache was emptied, since it may be another GitLab"
            );
        }
        self.shared.checks.send_replace(Arc::new(HealthChecker::new(&new.upstream, upstream)));
        self.shared.limits.store(Arc::new(new.limits));
        self.log.switch.set_level(new.log.level);
        self.log.switch.set_format(new.log.format);
        self.shared.tracing.reload(&new);
        *config = new;
        secrets.watch(&config.secrets.files);
        self.shared.publish(config, secrets);
        drop(running);
        // Their files may have changed since the configuration was read.
        self.check_secrets(true);
        restart_needed
    }

    /// While it is replaced, nothing is answered from the cache: another process is told of what is purged. If that one
    /// fails, it is not replaced any more, and the cache is empty. An error if files of secrets are being read just now, and
    /// their disk hangs; then all is as before.
    pub(crate) fn set_replaced(&self, is_replaced: bool) -> io::Result<()> {
        let mut running = self.try_lock().ok_or(io::ErrorKind::TimedOut)?;
        running.is_replaced = is_replaced;
        let Running { config, workers, .. } = &mut *running;
        for WorkerStack { cell, parts } in workers {
            parts.cache_settings = cache_settings(config, is_replaced);
            cell.replace(stack::build(parts.clone()));
        }
        drop(running);
        // Those that wait for an answer that was on its way do not get it from here either.
        self.shared.cache.invalidate_all();
        Ok(())
    }

    /// Looks at the files of the secrets. Reads files and takes up to some 100 ms of CPU time, so it is not for a thread
    /// with an event loop.
    pub(crate) fn poll_secrets(&self) {
        self.check_secrets(true);
        // Without the lock, since it takes a while.
        while let Some((role, secret)) = self.secret_without_fingerprint() {
            let fingerprint = secret.fingerprint();
            self.running.lock().secrets.set_fingerprint(role, &secret, fingerprint);
        }
    }

    fn secret_without_fingerprint(&self) -> Option<(SecretRole, LoadedSecret)> {
        self.running.lock().secrets.secret_without_fingerprint()
    }

    fn check_secrets(&self, is_poll: bool) {
        let mut running = self.running.lock();
        let Running { config, secrets, .. } = &mut *running;
        if secrets.check(config, is_poll) {
            self.shared.publish(config, secrets);
        }
    }
}

impl Reload for Live {
    fn reload(&self) -> Result<Reloaded, ReloadError> {
        self.reload_within(MAX_RELOAD_WAIT)
    }
}

impl Live {
    /// Reads the configuration again, once another reload has ended, if that takes no longer than `wait`.
    pub(super) fn reload_within(&self, wait: Duration) -> Result<Reloaded, ReloadError> {
        let file = self.file.get().ok_or(ReloadError::NoFile)?;
        let Some(_one_at_a_time) = self.reload.try_lock_for(wait) else {
            tracing::error!(
                "the configuration was not read again: another reload still reads it; does its disk hang?"
            );
            return Err(ReloadError::Busy);
        };
        self.manager().reloading();
        let outcome = self.reload_from(file);
        self.manager().reloaded();
        outcome
    }

    fn reload_from(&self, file: &Path) -> Result<Reloaded, ReloadError> {
        let loaded = config::load(file).map_err(|error| {
            self.status.record_failure();
            let mistakes: Vec<_> = error.0.into_iter().map(|diagnostic| diagnostic.mistake).collect();
            let why = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            tracing::error!(why, "the configuration was not changed: the file has mistakes");
            ReloadError::Mistakes(mistakes)
        })?;
        let mut warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        let restart_needed = self.apply(loaded.config);
        warnings.extend(self.reload_certificates());
        self.status.record_success(Clock::System.unix_seconds());
        for warning in &warnings {
            tracing::warn!(warning, "configuration");
        }
        if restart_needed.is_empty() {
            tracing::info!("the configuration was read again, and is in effect");
        } else {
            let restart_needed = restart_needed.join(", ");
            tracing::warn!(restart_needed, "the configuration was read again; these keys take a restart");
        }
        Ok(Reloaded { restart_needed, warnings })
    }

    /// Reads the certificates of the listeners again, at once. Returns what is wrong with those that cannot be used: they
    /// were changed since the configuration was read, which reads them too.
    fn reload_certificates(&self) -> Vec<String> {
        let listeners = self.config().map(|config| config.listen).unwrap_or_default();
        let with_tls =
            listeners.iter().filter_map(|listen| Some((&listen.address, listen.options.tls.as_ref()?)));
        let failed = with_tls.filter_map(|(address, tls)| Some((address, tls.reload().err()?)));
        failed
            .map(|(address, error)| {
                format!("listen.tls.{} of {address}: {error}; the one before stays in use", error.key)
            })
            .collect()
    }
}

impl RefreshSecrets for Live {
    fn refresh(&self) {
        self.check_secrets(false);
    }
}

/// For files that are being read.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(1);
/// For another reload: a long file on a busy machine takes a second or two.
const MAX_RELOAD_WAIT: Duration = Duration::from_secs(10);

/// Without lifetimes, nothing is kept, nor answered from what was.
fn cache_settings(config: &GatewayConfig, is_replaced: bool) -> CacheSettings {
    let kept = config.cache.clone();
    if is_replaced { CacheSettings { lifetimes: Lifetimes::none(), ..kept } } else { kept }
}
