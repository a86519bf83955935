//! The life of the process: binds the sockets, starts the threads, and drains them at the end.

mod restart;
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
use self::worker::{HooksThread, Worker};
use crate::admin::{Admin, OperatorPermits, Status};
use crate::auth::Authenticator;
use crate::body::unverified::UnverifiedBodies;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::header::via::Pseudonym;
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::hooks::{HookCounters, Hooks, HooksSettings};
use crate::log::LogCounters;
use crate::metrics::{MetricSources, Metrics};
use crate::server::open_files::{self, FileDemand};
use crate::server::{BoundSocket, Capacity, HttpServer, Listener, ServerLimits};
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
        let mut sockets = BoundSockets::bind(&settings)?;
        let (warm, hook_counts) = (WarmRestart::new(&settings), Arc::<HookCounters>::default());
        let upstream = Arc::new(UpstreamState::new(&settings.upstream));
        let checks = HealthChecker::new(&settings.upstream, &upstream);
        let cache = Cache::new(&settings.cache);
        let bodies = Arc::new(UnverifiedBodies::new(settings.auth.max_unverified));
        let heartbeats = heartbeats(&settings);
        let auth = Arc::new(ArcSwap::from_pointee(Authenticator::new(settings.auth)));
        let metrics = Arc::new(Metrics::new(MetricSources {
            auth: Arc::clone(&auth),
            bodies: Arc::clone(&bodies),
            cache: Arc::clone(&cache),
            upstream: Arc::clone(&upstream),
            clients: sockets.clients.clone(),
            others: sockets.others(),
            hooks: Arc::clone(&hook_counts),
            log,
            heartbeats: Arc::clone(&heartbeats),
        }));
        let pseudonym = Pseudonym::random();
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
        let admin = Admin {
            status: Arc::new(Status::new(Arc::clone(&metrics))),
            metrics,
            upstream,
            readiness: Arc::default(),
            cache,
            is_local_only: settings.admin.address.is_local_only(),
            token: settings.admin.token,
            hosts: settings.admin.hosts.into(),
            heartbeats: Arc::clone(&heartbeats),
            permits: OperatorPermits::default(),
        };
        let (manager, end_timeout) = (ServiceManager::default(), settings.limits.drain_timeout + DRAIN_GRACE);
        let admin = (sockets.admin, admin);
        Ok(Self { workers, addresses, admin, hooks, warm, checks, heartbeats, manager, end_timeout })
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
        let (manager, end_timeout) = (self.manager, self.end_timeout);
        let (readiness, cache) = (Arc::clone(&admin.readiness), Arc::clone(&admin.cache));
        let status = Arc::clone(&admin.status);
        // Before operators or hooks can purge anything.
        if let Some(warm) = warm.clone() {
            warm.load(Arc::clone(&cache)).await;
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = addresses.join(", "),
            admin = socket.address()?,
            hooks = hooks.as_ref().map(|hooks| hooks.socket.address()).transpose()?,
            "ready"
        );
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

/// The heartbeats of the workers and, last, of the thread for hooks, if there is one.
fn heartbeats(settings: &GatewayConfig) -> Arc<Heartbeats> {
    let threads = (0..settings.workers).map(|number| format!("worker-{number}"));
    let threads = threads.chain(settings.hooks.is_some().then(|| "hooks".to_owned()));
    Arc::new(Heartbeats(threads.map(Heartbeat::new).collect()))
}

const ADMIN_DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

struct BoundSockets {
    /// For each `[[listen]]`, one share per worker.
    shares: Vec<std::vec::IntoIter<BoundSocket>>,
    clients: Vec<Arc<Capacity>>,
    admin: BoundSocket,
    hooks: Option<BoundSocket>,
}

impl BoundSockets {
    fn bind(settings: &GatewayConfig) -> io::Result<Self> {
        let (mut shares, mut clients) = (Vec::new(), Vec::new());
        for (listen, connections) in settings.listen.iter().zip(connections_within_open_files(settings)) {
            let bound = BoundSocket::bind_shared(&listen.address, connections, settings.workers)?;
            clients.extend(bound.first().map(|share| Arc::clone(share.capacity())));
            shares.push(bound.into_iter());
        }
        let hooks = |hooks: &HooksSettings| BoundSocket::bind(&hooks.address, hooks.connections);
        Ok(Self {
            shares,
            clients,
            admin: BoundSocket::bind(&settings.admin.address, settings.admin.connections)?,
            hooks: settings.hooks.as_ref().map(hooks).transpose()?,
        })
    }

    /// Of the listeners for hooks and operators.
    fn others(&self) -> Vec<Arc<Capacity>> {
        self.hooks.iter().chain([&self.admin]).map(|socket| Arc::clone(socket.capacity())).collect()
    }

    /// The sockets of the next worker.
    fn next_share(&mut self) -> Vec<BoundSocket> {
        self.shares.iter_mut().filter_map(Iterator::next).collect()
    }
}

/// How many connections each listener for clients may have: as configured, or fewer, so that the open files
/// suffice for all of them, for Rails and for operators.
fn connections_within_open_files(settings: &GatewayConfig) -> Vec<usize> {
    let demand = file_demand(settings);
    let Some(limit) = open_files::raise_limit() else { return demand.clients };
    let clients = demand.clients_within(limit);
    if clients != demand.clients {
        tracing::warn!(
            limit,
            needed = demand.total(),
            connections = ?clients,
            "the limit of open files is too low for the configured connections, so fewer are accepted; raise it \
             (ulimit -n, LimitNOFILE=) to what is needed, or lower limits.connections"
        );
    }
    clients
}

/// How many files a gateway with this configuration may need at one time.
pub fn file_demand(settings: &GatewayConfig) -> FileDemand {
    let upstream = &settings.upstream;
    FileDemand {
        clients: settings.listen.iter().map(|listen| listen.connections).collect(),
        operators: settings.admin.connections + settings.hooks.as_ref().map_or(0, |hooks| hooks.connections),
        requests: upstream.classes.iter().map(|class| class.concurrency).sum(),
        idle_upstream: upstream.max_idle * upstream.servers.len(),
        reserve: 64 + settings.workers * (8 + 2 * settings.listen.len()),
    }
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
