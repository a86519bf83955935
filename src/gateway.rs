//! The life of the process: binds the sockets, starts the threads, and drains them at the end.

mod live;
mod restart;
mod secrets;
mod sockets;
mod worker;

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::live::{Live, Shared, WorkerStack};
use self::restart::WarmRestart;
use self::sockets::BoundSockets;
pub use self::sockets::file_demand;
use self::worker::{HooksThread, Worker};
use crate::admin::{Admin, OperatorPermits, Status};
use crate::body::unverified::UnverifiedBodies;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::hooks::{HookCounters, Hooks};
use crate::log::LogCounters;
use crate::metrics::{MetricSources, Metrics};
use crate::reload::{Reload, ReloadStatus};
use crate::server::{
    BoundSocket, HttpServer, InheritedSockets, Listener, ServerLimits, ServerTls, watch_certificates,
};
use crate::service_manager::ServiceManager;
use crate::stack;
use crate::upstream::HealthChecker;

/// A gateway whose sockets are bound, but that does not accept yet.
#[derive(Debug)]
pub struct Gateway {
    workers: Vec<Worker>,
    addresses: Vec<String>,
    admin: (BoundSocket, Admin),
    hooks: Option<HooksThread>,
    live: Arc<Live>,
    checks: watch::Receiver<Arc<HealthChecker>>,
    /// Of the listeners with TLS, with their names.
    certificates: Vec<(String, ServerTls)>,
    heartbeats: Arc<Heartbeats>,
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
        let hook_counts = Arc::<HookCounters>::default();
        let (shared, checks) = Shared::new(&settings, sockets.admin.is_local_only(), &hook_counts);
        let (upstream, cache) = (Arc::clone(&shared.upstream), Arc::clone(&shared.cache));
        let hooks = shared.hooks.clone();
        let bodies = Arc::new(UnverifiedBodies::new(settings.auth.max_unverified));
        let heartbeats = heartbeats(&settings);
        let status = Arc::new(ReloadStatus::new(Clock::System.unix_seconds()));
        let metrics = Arc::new(Metrics::new(MetricSources {
            auth: Arc::clone(&shared.auth),
            bodies: Arc::clone(&bodies),
            cache: Arc::clone(&cache),
            upstream: Arc::clone(&upstream),
            clients: sockets.clients.clone(),
            others: sockets.others(),
            certificates: certificates.clone(),
            hooks: hook_counts,
            log: Arc::clone(&log),
            reload: Arc::clone(&status),
            secrets: Arc::clone(&shared.secret_statuses),
            heartbeats: Arc::clone(&heartbeats),
        }));
        let live = Live::new(settings, (shared, &bodies), &metrics, (status, Arc::clone(&log)));
        let workers = workers(&mut sockets, &live, &heartbeats);
        let addresses = workers.first().map_or(Ok(Vec::new()), Worker::addresses)?;
        let hooks = sockets.hooks.zip(hooks).zip(heartbeats.0.last()).map(hooks_thread);
        let admin = Admin {
            status: Arc::new(Status::new(Arc::clone(&metrics))),
            metrics,
            upstream,
            readiness: Arc::default(),
            cache,
            access: Arc::clone(&live.shared.admin),
            reload: Arc::<Live>::clone(&live),
            log,
            heartbeats: Arc::clone(&heartbeats),
            permits: OperatorPermits::default(),
        };
        Ok(Self {
            workers,
            addresses,
            admin: (sockets.admin, admin),
            hooks,
            live,
            checks,
            certificates,
            heartbeats,
        })
    }

    /// Tells the service manager when it accepts requests, hangs, reloads or drains.
    #[must_use]
    pub fn supervised_by(self, manager: ServiceManager) -> Self {
        // It is named once.
        let _ = self.live.manager.set(manager);
        self
    }

    /// Names the file that the configuration was read from, so that it can be read again.
    pub fn reload_from(&self, file: PathBuf) {
        // It is named once.
        let _ = self.live.file.set(file);
    }

    /// Reads the configuration again, for signals.
    pub fn reloader(&self) -> Arc<dyn Reload> {
        Arc::<Live>::clone(&self.live)
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
        let Self {
            workers,
            addresses,
            admin: (socket, admin),
            hooks,
            live,
            checks,
            certificates,
            heartbeats,
        } = self;
        let manager = live.manager();
        let (readiness, cache) = (Arc::clone(&admin.readiness), Arc::clone(&admin.cache));
        let status = Arc::clone(&admin.status);
        // Before operators or hooks can purge anything.
        if let Some(warm) = WarmRestart::new(&live.config()) {
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
        let mut background = start_background((&live, checks), &status, (&manager, &heartbeats));
        background.spawn(watch_certificates(certificates));
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
        let end_timeout = live.shared.limits.load().drain_timeout + DRAIN_GRACE;
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
        // By the secret of now.
        if let Some(warm) = WarmRestart::new(&live.config()) {
            warm.save(Arc::clone(&cache)).await;
        }
        // Freeing a million entries takes seconds; the caller does not wait for it.
        std::thread::spawn(move || drop(cache));
        Ok(in_time)
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

/// Starts what runs beside the requests until it is shut down.
fn start_background(
    (live, checks): (&Arc<Live>, watch::Receiver<Arc<HealthChecker>>),
    status: &Arc<Status>,
    (manager, heartbeats): (&ServiceManager, &Arc<Heartbeats>),
) -> JoinSet<()> {
    let mut background = JoinSet::new();
    background.spawn(run_cache_maintenance(Arc::clone(&live.shared.cache)));
    background.spawn(run_health_checks(checks));
    background.spawn(poll_secrets(Arc::clone(live)));
    background.spawn(Arc::clone(status).run());
    let feeding = manager.clone().feed_watchdog(Arc::clone(heartbeats));
    background.spawn(async move { match feeding.await {} });
    let heartbeats = Arc::clone(heartbeats);
    background.spawn(async move { match heartbeats.watch().await {} });
    background
}

/// The heartbeats of the workers and, last, of the thread for hooks, if there is one.
fn heartbeats(settings: &GatewayConfig) -> Arc<Heartbeats> {
    let threads = (0..settings.workers).map(|number| format!("worker-{number}"));
    let threads = threads.chain(settings.hooks.is_some().then(|| "hooks".to_owned()));
    Arc::new(Heartbeats(threads.map(Heartbeat::new).collect()))
}

const ADMIN_DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

/// The workers that have a share of the sockets.
fn workers(sockets: &mut BoundSockets, live: &Live, heartbeats: &Heartbeats) -> Vec<Worker> {
    let running = live.running.lock();
    let worker = |(stack, heartbeat): (&WorkerStack, &Arc<Heartbeat>)| Worker {
        heartbeat: Arc::clone(heartbeat),
        sockets: sockets.next_share(),
        server: HttpServer::with_limits(Arc::clone(&live.shared.limits)),
        cell: Arc::clone(&stack.cell),
        fills: stack.parts.fills.clone(),
    };
    running.workers.iter().zip(&heartbeats.0).map(worker).collect()
}

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

/// Checks the servers that are configured now.
async fn run_health_checks(mut checks: watch::Receiver<Arc<HealthChecker>>) {
    loop {
        let checker = Arc::clone(&checks.borrow_and_update());
        let changed = tokio::select! {
            () = async { checker.run().await; pending().await } => return,
            changed = checks.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// How often the files of secrets are looked at.
const SECRET_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The files may be on a disk that hangs, so a thread for blocking work reads them.
async fn poll_secrets(live: Arc<Live>) {
    loop {
        let live = Arc::clone(&live);
        // It fails only by a panic.
        let _ = tokio::task::spawn_blocking(move || live.poll_secrets()).await;
        tokio::time::sleep(SECRET_POLL_INTERVAL).await;
    }
}
