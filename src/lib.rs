//! railgate: the gateway in front of GitLab Rails' internal API.
//!
//! # Life of a request
//!
//! 1. [`server`] accepts a connection, judges the raw framing of what comes, and hands hyper
//!    nothing that two readers could understand differently.
//! 2. [`layer::observe`] gives the request an id and a timer, and sees it to its end.
//! 3. [`layer::rescue`] turns whatever fails below into a response.
//! 4. [`layer::hygiene`] refuses ambiguous hosts, paths and headers.
//! 5. [`layer::find_route`] finds the row of the [`route`] table.
//! 6. [`layer::authenticate`] demands the credential that the row names, judged by [`auth`].
//! 7. [`layer::serve_cached`] answers from the [`cache`], if need be with what is stale, or fetches once
//!    for all who ask.
//! 8. [`layer::forward`] sends what is left to Rails, through [`upstream`], where it waits while Rails is
//!    away, and for its turn.
//!
//! Beside that, [`admin`] answers operators, and [`hooks`] hears from GitLab what has changed; both only
//! ever drop what is kept. Operators also drain servers of Rails.
//!
//! # Invariants
//!
//! - No cached answer is reached by a request that was not authenticated: the cache layer takes
//!   [`exchange::Authenticated`] only, and only [`auth`] can make the caller in it.
//! - No cache key of a request is built but by [`cache::Key::new`].
//! - Only [`stack`] knows the order of the layers, only [`failure`] and
//!   [`refusal`] the status codes of our own answers to clients, only
//!   [`config`] the names of keys, only [`clock`] what time it is.
//! - A secret has no `Display`, and enters no log, label or error text.
//!
//! Modules have ranks, and import only from lower ones; `tests/house.rs` holds them to it.

pub mod admin;
pub mod auth;
pub mod authority;
pub mod body;
pub mod cache;
pub mod clock;
pub mod config;
pub mod exchange;
pub mod failure;
pub mod file;
pub mod header;
pub mod heartbeat;
pub mod hooks;
pub mod layer;
pub mod log;
pub mod metrics;
pub mod params;
pub mod progress;
pub mod refusal;
pub mod route;
pub mod secret;
pub mod server;
pub mod stack;
pub mod strict_base64;
pub mod upstream;
mod warm;
mod worker;
pub mod write_batch;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::auth::Authenticator;
use crate::body::unverified::UnverifiedBodies;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::header::via::Pseudonym;
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::hooks::Hooks;
use crate::metrics::{MetricSources, Metrics};
use crate::server::open_files::{self, Demand};
use crate::server::{Capacity, Limits, Listener, Server, Socket};
use crate::upstream::{Upstream, UpstreamState};
use crate::warm::WarmRestart;
use crate::worker::{HooksThread, Worker};

/// A gateway whose sockets are bound, and that answers nothing yet.
#[derive(Debug)]
pub struct Gateway {
    workers: Vec<Worker>,
    endpoints: Vec<String>,
    admin: (Socket, Admin),
    hooks: Option<HooksThread>,
    warm: Option<WarmRestart>,
    checks: upstream::HealthChecker,
    heartbeats: Arc<Heartbeats>,
    /// How long the threads have to end.
    end_timeout: Duration,
}

fn hooks_thread(((socket, hooks), heartbeat): ((Socket, Hooks), &Arc<Heartbeat>)) -> HooksThread {
    HooksThread { heartbeat: Arc::clone(heartbeat), socket, hooks }
}

impl Gateway {
    /// Binds every socket, so that a taken address is an error before anything runs. What is counted in
    /// `log`, by the one who writes the log, is shown among the metrics.
    pub fn bind(settings: GatewayConfig, log: Arc<log::Counts>) -> io::Result<Self> {
        let mut sockets = Sockets::bind(&settings)?;
        let (warm, hook_counts) = (WarmRestart::new(&settings), Arc::<hooks::Counts>::default());
        let upstream = Arc::new(UpstreamState::new(&settings.upstream));
        let checks = upstream::HealthChecker::new(&settings.upstream, &upstream);
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
        let name = Pseudonym::random();
        let worker = |heartbeat: &Arc<Heartbeat>| {
            let parts = stack::Parts {
                auth: Arc::clone(&auth),
                bodies: Arc::clone(&bodies),
                cache: Arc::clone(&cache),
                cache_settings: settings.cache.clone(),
                upstream: Arc::new(Upstream::new(&settings.upstream, Arc::clone(&upstream))),
                upstream_credential: settings.upstream_credential.clone(),
                forward_prefixes: settings.forward_prefixes.clone(),
                worker_metrics: metrics.add_worker(),
                log_requests: settings.log.requests,
                name: name.clone(),
                clock: Clock::System,
                fills: TaskTracker::new(),
            };
            let (heartbeat, sockets) = (Arc::clone(heartbeat), sockets.share());
            Worker { heartbeat, sockets, server: Server::new(settings.limits), parts }
        };
        let workers: Vec<_> = heartbeats.0.iter().take(settings.workers).map(worker).collect();
        let endpoints = workers.first().map_or(Ok(Vec::new()), Worker::endpoints)?;
        let hooks =
            settings.hooks.map(|hooks| Hooks::new(hooks, Arc::clone(&cache), hook_counts, Clock::System));
        let hooks = sockets.hooks.zip(hooks).zip(heartbeats.0.last()).map(hooks_thread);
        let admin = Admin {
            metrics,
            upstream,
            readiness: Arc::default(),
            cache,
            is_private: settings.admin.is_private(),
            token: settings.admin_token,
            hosts: settings.admin_hosts.into(),
            heartbeats: Arc::clone(&heartbeats),
            turns: admin::Turns::default(),
        };
        let end_timeout = settings.limits.drain_timeout + GRACE;
        let admin = (sockets.admin, admin);
        Ok(Self { workers, endpoints, admin, hooks, warm, checks, heartbeats, end_timeout })
    }

    /// Where clients connect, with the ports that the system chose.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Where GitLab sends its System Hooks, if anywhere.
    pub fn hooks_endpoint(&self) -> io::Result<Option<String>> {
        self.hooks.as_ref().map(|hooks| hooks.socket.endpoint()).transpose()
    }

    /// Where operators connect.
    pub fn admin_endpoint(&self) -> io::Result<String> {
        self.admin.0.endpoint()
    }

    /// Serves until `shutdown` is cancelled, then drains: not ready any more, no new connections,
    /// and whatever runs may finish within `limits.drain_timeout`. True if nothing had to be dropped.
    ///
    /// Requests are answered on the threads of the workers, hooks on one of their own. What is left for the
    /// runtime that this is called on: operators, health checks, and whatever the caller has there, such as
    /// signals. So nothing runs there that takes long.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<bool> {
        let Self { workers, endpoints, admin: (socket, admin), hooks, warm, checks, heartbeats, end_timeout } =
            self;
        let (readiness, cache) = (Arc::clone(&admin.readiness), Arc::clone(&admin.cache));
        // Before anybody can drop anything.
        if let Some(warm) = warm.clone() {
            warm.load(Arc::clone(&cache)).await;
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = endpoints.join(", "),
            admin = socket.endpoint()?,
            hooks = hooks.as_ref().map(|hooks| hooks.socket.endpoint()).transpose()?,
            "ready"
        );
        // The admin listener outlives the others, to say that they are draining.
        let limits = Limits { drain_timeout: ADMIN_DRAIN, ..Limits::default() };
        let admin_server = Server::new(limits);
        admin_server.serve(Listener::new(socket)?, admin);
        // With connections of its own: whoever reaches the one must not be able to block the other.
        let hooks_end = CancellationToken::new();
        let hooks = hooks.map(|hooks| hooks.start(Server::new(limits), hooks_end.clone())).transpose()?;
        let hooks_end = hooks_end.drop_guard();
        let mut upkeep = JoinSet::new();
        upkeep.spawn(keep_up(Arc::clone(&cache)));
        upkeep.spawn(checks.run());
        upkeep.spawn(async move { match heartbeats.watch().await {} });
        let mut running = Vec::new();
        for worker in workers {
            running.push(worker.start(shutdown.clone())?);
        }
        let count = running.len();
        readiness.set(true);
        shutdown.cancelled().await;
        readiness.set(false);
        // One that hangs would keep the process for ever.
        let ended = tokio::time::timeout(end_timeout, join_all(running)).await.unwrap_or_default();
        let in_time = ended.len() == count && ended.into_iter().all(|in_time| in_time.unwrap_or(false));
        drop(hooks_end);
        if let Some(ended) = hooks {
            let _ = tokio::time::timeout(GRACE, ended).await;
        }
        admin_server.drain().await;
        upkeep.shutdown().await;
        // Whoever purges may have left, but what is being purged is not to be saved.
        cache.wait_for_blocking_tasks().await;
        if let Some(warm) = warm {
            warm.save(Arc::clone(&cache)).await;
        }
        // To free a million entries takes seconds, which nobody has to wait for.
        std::thread::spawn(move || drop(cache));
        Ok(in_time)
    }
}

/// Of the workers, and last, if there is one, of the thread for hooks.
fn heartbeats(settings: &GatewayConfig) -> Arc<Heartbeats> {
    let threads = (0..settings.workers).map(|number| format!("worker-{number}"));
    let threads = threads.chain(settings.hooks.is_some().then(|| "hooks".to_owned()));
    Arc::new(Heartbeats(threads.map(Heartbeat::new).collect()))
}

const ADMIN_DRAIN: Duration = Duration::from_millis(200);

/// All sockets, bound.
struct Sockets {
    /// Of each `[[listen]]`, the shares of the workers.
    shares: Vec<std::vec::IntoIter<Socket>>,
    clients: Vec<Arc<Capacity>>,
    admin: Socket,
    hooks: Option<Socket>,
}

impl Sockets {
    fn bind(settings: &GatewayConfig) -> io::Result<Self> {
        let (mut shares, mut clients) = (Vec::new(), Vec::new());
        for (listen, connections) in settings.listen.iter().zip(connections_within_open_files(settings)) {
            let bound = Socket::bind_shares(&listen.endpoint, connections, settings.workers)?;
            clients.extend(bound.first().map(|share| Arc::clone(share.capacity())));
            shares.push(bound.into_iter());
        }
        let hooks = |hooks: &hooks::Settings| Socket::bind(&hooks.endpoint, hooks.connections);
        Ok(Self {
            shares,
            clients,
            admin: Socket::bind(&settings.admin, settings.admin_connections)?,
            hooks: settings.hooks.as_ref().map(hooks).transpose()?,
        })
    }

    /// Of the listeners for operators and hooks.
    fn others(&self) -> Vec<Arc<Capacity>> {
        self.hooks.iter().chain([&self.admin]).map(|socket| Arc::clone(socket.capacity())).collect()
    }

    /// What the next worker listens on.
    fn share(&mut self) -> Vec<Socket> {
        self.shares.iter_mut().filter_map(Iterator::next).collect()
    }
}

/// How many connections each listener for clients may have, as configured or less, so that there are
/// files enough for all of them, for Rails and for operators.
fn connections_within_open_files(settings: &GatewayConfig) -> Vec<usize> {
    let upstream = &settings.upstream;
    let demand = Demand {
        clients: settings.listen.iter().map(|listen| listen.connections).collect(),
        operators: settings.admin_connections + settings.hooks.as_ref().map_or(0, |hooks| hooks.connections),
        requests: upstream.classes.iter().map(|class| class.concurrency).sum(),
        kept: upstream.max_idle * upstream.servers.len(),
        reserve: 64 + settings.workers * (8 + 2 * settings.listen.len()),
    };
    let Some(limit) = open_files::raise_limit() else { return demand.clients };
    let clients = demand.clients_within(limit);
    if clients != demand.clients {
        tracing::warn!(
            limit,
            needed = demand.total(),
            connections = ?clients,
            "the limit of open files is too low for the connections that are configured, so there can be fewer; raise it \
             (ulimit -n, LimitNOFILE=) to what is needed, or lower limits.connections"
        );
    }
    clients
}

/// How much longer than `limits.drain_timeout` a thread may take to end until it counts as one that hangs.
const GRACE: Duration = Duration::from_secs(5);

/// moka has no thread of its own: without this, an idle gateway would keep dead entries. With many, it takes
/// its time, so it has a thread meanwhile.
async fn keep_up(cache: Arc<Cache>) {
    loop {
        let _ = cache.run_blocking(Cache::run_maintenance).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
