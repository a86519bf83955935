//! The life of the process: binds the sockets, starts the threads, and drains them at the end.

mod restart;
mod sockets;
mod worker;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::restart::WarmRestart;
use self::sockets::BoundSockets;
pub use self::sockets::file_demand;
use self::worker::{HooksThread, Worker};
use crate::admin::{Admin, OperatorPermits, Status};
use crate::auth::Authenticator;
use crate::body::unverified::UnverifiedBodies;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{AdminSettings, GatewayConfig};
use crate::header::via::Pseudonym;
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::hooks::{HookCounters, Hooks};
use crate::log::LogCounters;
use crate::metrics::{MetricSources, Metrics};
use crate::server::{
    BoundSocket, HttpServer, InheritedSockets, Listener, ServerLimits, ServerTls, watch_certificates,
};
use crate::service_manager::ServiceManager;
use crate::stack::{self, StackParts};
use crate::upstream::{HealthChecker, Upstream, UpstreamState};

/// A gateway whose sockets are bound, but that does not accept yet.
#[derive(Debug)]
pub struct Gateway {
    workers: Vec<Worker>,
    addresses: Vec<String>,
    admin: (BoundSocket, Admin),
    hooks: Option<HooksThread>,
    warm: Option<WarmRestart>,
    checks: HealthChecker,
    /// Of the listeners with TLS, with their names.
    certificates: Vec<(String, ServerTls)>,
    heartbeats: Arc<Heartbeats>,
    manager: ServiceManager,
    /// After it, a thread that does not end is taken for one that hangs.
    end_timeout: Duration,
}

fn hooks_thread(((socket, hooks), heartbeat): ((BoundSocket, Hooks), &Arc<Heartbeat>)) -> HooksThread {
    HooksThread { heartbeat: Arc::clone(heartbeat), socket, hooks }
}

impl Gateway {
    /// Binds every socket, so that an address in use is an error before anything runs. `log` is updated by the
    /// writer of the log, and exported with the metrics.
    pub fn bind(settings: GatewayConfig, log: Arc<LogCounters>) -> io::Result<Self> {
        Self::bind_with(settings, log, InheritedSockets::default())
    }

    /// As [`bind`](Self::bind), with the sockets that systemd has passed.
    pub fn bind_with(
        settings: GatewayConfig,
        log: Arc<LogCounters>,
        inherited: InheritedSockets,
    ) -> io::Result<Self> {
        let sockets = BoundSockets::bind(&settings, inherited)?;
        Self::build(settings, log, sockets)
    }

    fn build(settings: GatewayConfig, log: Arc<LogCounters>, mut sockets: BoundSockets) -> io::Result<Self> {
        let certificates = sockets.certificates(&settings);
        let (warm, hook_counts) = (WarmRestart::new(&settings), Arc::<HookCounters>::default());
        let upstream = Arc::new(UpstreamState::new(&settings.upstream));
        let checks = HealthChecker::new(&settings.upstream, &upstream);
        let cache = Cache::new(&settings.cache);
        let bodies = Arc::new(UnverifiedBodies::new(settings.auth.max_unverified));
        let (heartbeats, pseudonym) = (heartbeats(&settings), Pseudonym::random());
        let auth = Arc::new(ArcSwap::from_pointee(Authenticator::new(settings.auth)));
        let metrics = Arc::new(Metrics::new(MetricSources {
            auth: Arc::clone(&auth),
            bodies: Arc::clone(&bodies),
            cache: Arc::clone(&cache),
            upstream: Arc::clone(&upstream),
            clients: sockets.clients.clone(),
            others: sockets.others(),
            certificates: certificates.clone(),
            hooks: Arc::clone(&hook_counts),
            log,
            heartbeats: Arc::clone(&heartbeats),
        }));
        let worker = |heartbeat: &Arc<Heartbeat>| {
            let parts = StackParts {
                auth: Arc::clone(&auth),
                bodies: Arc::clone(&bodies),
                cache: Arc::clone(&cache),
                cache_settings: settings.cache.clone(),
                upstream: Arc::new(Upstream::new(&settings.upstream, Arc::clone(&upstream))),
                upstream_credential: settings.upstream_credential.clone(),
                forward_prefixes: settings.forward_prefixes.clone(),
                worker_metrics: metrics.add_worker(),
                log_requests: settings.log.requests,
                pseudonym: pseudonym.clone(),
                clock: Clock::System,
                fills: TaskTracker::new(),
            };
            let (heartbeat, sockets) = (Arc::clone(heartbeat), sockets.next_share());
            Worker { heartbeat, sockets, server: HttpServer::new(settings.limits), parts }
        };
        let workers: Vec<_> = heartbeats.0.iter().take(settings.workers).map(worker).collect();
        let addresses = workers.first().map_or(Ok(Vec::new()), Worker::addresses)?;
        let hooks =
            settings.hooks.map(|hooks| Hooks::new(hooks, Arc::clone(&cache), hook_counts, Clock::System));
        let hooks = sockets.hooks.zip(hooks).zip(heartbeats.0.last()).map(hooks_thread);
        let of_admin = (settings.admin, sockets.admin.is_local_only());
        let admin = (sockets.admin, admin(of_admin, metrics, upstream, (cache, Arc::clone(&heartbeats))));
        let (manager, end_timeout) = (ServiceManager::default(), settings.limits.drain_timeout + DRAIN_GRACE);
        Ok(Self {
            workers,
            addresses,
            admin,
            hooks,
            warm,
            checks,
            certificates,
            heartbeats,
            manager,
            end_timeout,
        })
    }

    /// Tells the service manager when it accepts requests, hangs or drains.
    #[must_use]
    pub fn supervised_by(self, manager: ServiceManager) -> Self {
        Self { manager, ..self }
    }

    /// The addresses of the listeners for clients, with the ports that the system chose.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The address of the listener for System Hooks, if there is one.
    pub fn hooks_address(&self) -> io::Result<Option<String>> {
        self.hooks.as_ref().map(|hooks| hooks.socket.address()).transpose()
    }

    /// The address of the admin listener.
    pub fn admin_address(&self) -> io::Result<String> {
        self.admin.0.address()
    }

    /// Serves until `shutdown` is cancelled, then drains: it is not ready any more, accepts no new connections,
    /// and running requests may finish within `limits.drain_timeout`. Returns true if all of them did.
    ///
    /// Requests are answered on the threads of the workers, hooks on a thread of their own. The caller's runtime
    /// answers operators, runs health checks, and has the caller's own tasks, such as signals. So no task
    /// may block it.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<bool> {
        let Self { workers, addresses, admin: (socket, admin), hooks, warm, checks, heartbeats, .. } = self;
        let (manager, certificates, end_timeout) = (self.manager, self.certificates, self.end_timeout);
        let (readiness, cache) = (Arc::clone(&admin.readiness), Arc::clone(&admin.cache));
        let status = Arc::clone(&admin.status);
        // Before operators or hooks can purge anything.
        if let Some(warm) = warm.clone() {
            warm.load(Arc::clone(&cache)).await;
        }
        log_ready(&addresses, &socket, hooks.as_ref())?;
        // The admin listener outlives the others, to say that they are draining.
        let limits = ServerLimits { drain_timeout: ADMIN_DRAIN_TIMEOUT, ..ServerLimits::default() };
        let admin_server = HttpServer::new(limits);
        admin_server.serve(Listener::new(socket)?, stack::admin::build(admin));
        // With a server of its own: a client of one listener must not be able to block the other.
        let hooks_end = CancellationToken::new();
        let hooks = hooks.map(|hooks| hooks.start(HttpServer::new(limits), hooks_end.clone())).transpose()?;
        let hooks_end = hooks_end.drop_guard();
        let mut background = JoinSet::new();
        background.spawn(run_cache_maintenance(Arc::clone(&cache)));
        background.spawn(checks.run());
        background.spawn(watch_certificates(certificates));
        background.spawn(Arc::clone(&status).run());
        let feeding = manager.clone().feed_watchdog(Arc::clone(&heartbeats));
        background.spawn(async move { match feeding.await {} });
        background.spawn(async move { match heartbeats.watch().await {} });
        let mut running = Vec::new();
        for worker in workers {
            running.push(worker.start(shutdown.clone())?);
        }
        let count = running.len();
        readiness.set(true);
        manager.ready();
        shutdown.cancelled().await;
        readiness.set(false);
        status.end_events();
        manager.stopping();
        // A thread that hangs must not keep the process alive for ever.
        let ended = tokio::time::timeout(end_timeout, join_all(running)).await.unwrap_or_default();
        let in_time = ended.len() == count && ended.into_iter().all(|in_time| in_time.unwrap_or(false));
        drop(hooks_end);
        if let Some(ended) = hooks {
            let _ = tokio::time::timeout(DRAIN_GRACE, ended).await;
        }
        admin_server.drain().await;
        background.shutdown().await;
        // Purges go on after their clients have disconnected, and purged entries must not be saved.
        cache.wait_for_blocking_tasks().await;
        if let Some(warm) = warm {
            warm.save(Arc::clone(&cache)).await;
        }
        // Freeing a million entries takes seconds; the caller does not wait for it.
        std::thread::spawn(move || drop(cache));
        Ok(in_time)
    }
}

/// What the admin listener answers from.
fn admin(
    (settings, is_local_only): (AdminSettings, bool),
    metrics: Arc<Metrics>,
    upstream: Arc<UpstreamState>,
    (cache, heartbeats): (Arc<Cache>, Arc<Heartbeats>),
) -> Admin {
    Admin {
        status: Arc::new(Status::new(Arc::clone(&metrics))),
        metrics,
        upstream,
        readiness: Arc::default(),
        cache,
        is_local_only,
        token: settings.token,
        hosts: settings.hosts.into(),
        heartbeats,
        permits: OperatorPermits::default(),
    }
}

fn log_ready(clients: &[String], admin: &BoundSocket, hooks: Option<&HooksThread>) -> io::Result<()> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = clients.join(", "),
        admin = admin.address()?,
        hooks = hooks.map(|hooks| hooks.socket.address()).transpose()?,
        "ready"
    );
    Ok(())
}

/// The heartbeats of the workers and, last, of the thread for hooks, if there is one.
fn heartbeats(settings: &GatewayConfig) -> Arc<Heartbeats> {
    let threads = (0..settings.workers).map(|number| format!("worker-{number}"));
    let threads = threads.chain(settings.hooks.is_some().then(|| "hooks".to_owned()));
    Arc::new(Heartbeats(threads.map(Heartbeat::new).collect()))
}

const ADMIN_DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

/// How much longer than `limits.drain_timeout` a thread may take to end before it is taken for one that hangs.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// moka has no thread of its own: without this, an idle gateway would keep dead entries. With many entries this
/// takes long, so it runs on a thread for blocking work.
async fn run_cache_maintenance(cache: Arc<Cache>) {
    loop {
        let _ = cache.run_blocking(Cache::run_maintenance).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
