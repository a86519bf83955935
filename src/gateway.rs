//! The life of the process: binds the sockets, starts the threads, and drains them at the end.

mod background;
pub mod fleet;
mod live;
mod operators;
mod restart;
mod secrets;
mod shared;
mod sockets;
mod traces;
mod upgrade;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::fleet::fleet_keys;
use self::live::{Live, WorkerStack};
use self::operators::{DRAIN_GRACE, EndOfService, Operators};
use self::restart::WarmRestart;
use self::shared::Shared;
pub use self::sockets::file_demand;
use self::sockets::{BoundSockets, keep_sockets};
use self::upgrade::{NextProcess, Predecessor};
use self::worker::{HooksThread, Worker, WorkerPhases};
use crate::admin::{Admin, OperatorPermits, Status};
use crate::body::unverified::UnverifiedBodies;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::fleet::Fleet;
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::hooks::{HookCounters, Hooks};
use crate::log::LogCounters;
use crate::metrics::{MetricSources, Metrics};
use crate::reload::{Reload, ReloadStatus};
use crate::server::{
    BoundSocket, HttpServer, InheritedSockets, PassedSockets, ServerTls, watch_certificates,
};
use crate::service_manager::ServiceManager;
use crate::upstream::HealthChecker;

/// A gateway whose sockets are bound, but that does not accept yet.
#[derive(Debug)]
pub struct Gateway {
    workers: Vec<Worker>,
    addresses: Vec<String>,
    operators: Operators,
    live: Arc<Live>,
    checks: watch::Receiver<Arc<HealthChecker>>,
    /// Of the listeners with TLS, with their names.
    certificates: Vec<(String, ServerTls)>,
    heartbeats: Arc<Heartbeats>,
    /// Where the next process asks for the sockets.
    upgrade: Option<BoundSocket>,
    passed: PassedSockets,
    predecessor: Option<Predecessor>,
    outdated: Vec<String>,
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
        let (shared, checks) = Shared::new(&settings, sockets.admin.is_local_only(), &hook_counts)?;
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
            fleet: shared.fleet.clone(),
            log: Arc::clone(&log),
            reload: Arc::clone(&status),
            secrets: Arc::clone(&shared.secret_statuses),
            spans: Arc::clone(&shared.tracing.queue),
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
            fleet: live.shared.fleet.clone(),
            access: Arc::clone(&live.shared.admin),
            reload: Arc::<Live>::clone(&live),
            log,
            heartbeats: Arc::clone(&heartbeats),
            permits: OperatorPermits::default(),
        };
        Ok(Self {
            workers,
            addresses,
            operators: Operators { socket: sockets.admin, admin, hooks },
            live,
            checks,
            certificates,
            heartbeats,
            upgrade: sockets.upgrade,
            passed: sockets.passed,
            predecessor: sockets.predecessor,
            outdated: sockets.outdated,
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
        self.operators.hooks.as_ref().map(|hooks| hooks.socket.address()).transpose()
    }

    /// The address of the admin listener.
    pub fn admin_address(&self) -> io::Result<String> {
        self.operators.socket.address()
    }

    /// Its part in its fleet.
    pub fn fleet(&self) -> Fleet {
        self.live.shared.fleet.clone()
    }

    /// Serves until `shutdown` is cancelled, or until another process has taken over; then drains: it is not ready any
    /// more, accepts no new connections, and running requests may finish within `limits.drain_timeout`. Returns true
    /// if all of them did.
    ///
    /// Requests are answered on the threads of the workers, hooks on a thread of their own. The caller's runtime
    /// answers operators, runs health checks, and has the caller's own tasks, such as signals. So no task
    /// may block it.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<bool> {
        let fleet = self.fleet();
        let in_time = Box::pin(self.serve(shutdown)).await;
        if in_time.is_err() {
            // The others would doubt what they keep, again and again, if it went without taking leave.
            fleet.end().await;
        }
        in_time
    }

    async fn serve(self, shutdown: CancellationToken) -> io::Result<bool> {
        let Self { workers, addresses, operators, live, checks, certificates, heartbeats, .. } = self;
        let manager = live.manager();
        let (readiness, cache) = (Arc::clone(&operators.admin.readiness), Arc::clone(&live.shared.cache));
        let status = Arc::clone(&operators.admin.status);
        let phases = Arc::<WorkerPhases>::default();
        let fleet = live.shared.fleet.clone();
        // Also if this is dropped.
        let end = phases.end.clone().drop_guard();
        let running = begin((workers, &phases), &live, self.predecessor, &shutdown).await?;
        log_ready(&addresses, &operators)?;
        let kept = keep_sockets(&manager, &self.passed, &self.outdated).await;
        let next = NextProcess::new(self.upgrade, self.passed)?;
        let mut background = background::start((&live, checks), &status, (&manager, &heartbeats));
        background.spawn(watch_certificates(certificates));
        let exporter = live.shared.tracing.start();
        let started = || {
            readiness.set(true);
            manager.ready();
        };
        let end_of_service = operators.serve((&live, &next), started, &shutdown).await?;
        readiness.set(false);
        status.end_events();
        manager.stopping();
        let is_replaced = matches!(end_of_service, EndOfService::Replaced);
        let grace = if is_replaced { REPLACED_GRACE } else { kept };
        // It is set once.
        let _ = phases.grace.set(grace);
        // Before the workers close theirs.
        drop(next);
        drop(end);
        let in_time = wait_for_workers(running, live.shared.limits.load().drain_timeout).await;
        exporter.flush().await;
        if let EndOfService::Stopped(operators) = end_of_service {
            operators.stop().await;
        }
        background.shutdown().await;
        end_purges(&cache, &fleet).await;
        // By the secret of now. What is in use is with the process that has taken over.
        if let Some(warm) = live.config().as_ref().and_then(WarmRestart::new).filter(|_| !is_replaced) {
            warm.save(Arc::clone(&cache)).await;
        }
        // Freeing a million entries takes seconds; the caller does not wait for it.
        std::thread::spawn(move || drop(cache));
        Ok(in_time)
    }
}

/// How long a connection without a request may have another one, if new connections go to the next process meanwhile.
const REPLACED_GRACE: Duration = Duration::from_secs(5);

/// The ends of the workers.
type RunningWorkers = Vec<oneshot::Receiver<bool>>;

/// Loads the cache and starts the workers. If there is a process before, they accept once that one has no more to say: an
/// error if it goes on.
async fn begin(
    (workers, phases): (Vec<Worker>, &Arc<WorkerPhases>),
    live: &Live,
    predecessor: Option<Predecessor>,
    shutdown: &CancellationToken,
) -> io::Result<RunningWorkers> {
    let predecessor = match predecessor {
        Some(predecessor) => predecessor.wait_until_saved(shutdown).await?,
        None => None,
    };
    // Before operators or hooks can purge anything.
    if let Some(warm) = live.config().as_ref().and_then(WarmRestart::new) {
        warm.load(Arc::clone(&live.shared.cache)).await;
    }
    // What was loaded is doubted: purges may have been missed.
    live.shared.fleet.start();
    let running = start_workers(workers, phases)?;
    if let Some(predecessor) = predecessor
        && let Err(error) = predecessor.replace(shutdown).await
    {
        phases.end.cancel();
        wait_for_workers(running, Duration::ZERO).await;
        return Err(error);
    }
    phases.accept.cancel();
    Ok(running)
}

fn start_workers(workers: Vec<Worker>, phases: &Arc<WorkerPhases>) -> io::Result<RunningWorkers> {
    let start = |worker: Worker| worker.start(Arc::clone(phases));
    let cannot =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot start the workers: {error}"));
    workers.into_iter().map(start).collect::<io::Result<_>>().map_err(cannot)
}

/// Purges go on after their clients have disconnected, and purged entries must not be saved. Operators and hooks are gone.
async fn end_purges(cache: &Cache, fleet: &Fleet) {
    cache.wait_for_blocking_tasks().await;
    // They may have told something, and what was heard goes on being dropped until here.
    fleet.end().await;
    cache.wait_for_blocking_tasks().await;
}

/// Whether all requests have ended in time.
async fn wait_for_workers(running: RunningWorkers, drain_timeout: Duration) -> bool {
    let count = running.len();
    // A thread that hangs must not keep the process alive for ever.
    let ended = tokio::time::timeout(drain_timeout + DRAIN_GRACE, join_all(running)).await;
    let ended = ended.unwrap_or_default();
    ended.len() == count && ended.into_iter().all(|in_time| in_time.unwrap_or(false))
}

fn log_ready(clients: &[String], operators: &Operators) -> io::Result<()> {
    let hooks = operators.hooks.as_ref();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = clients.join(", "),
        admin = operators.socket.address()?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reload::ReloadError;

    /// A gateway whose secret is `s3cret`, with the file of that.
    fn gateway(name: &str) -> (Gateway, GatewayConfig, PathBuf) {
        let secret = std::env::temp_dir().join(format!("railgate-{name}-{}", std::process::id()));
        std::fs::write(&secret, "s3cret").unwrap();
        let text = format!(
            "upstream.url = \"http://127.0.0.1:1\"\nauth.shell.secret_file = {secret:?}\n\
             listen = [{{ address = \"127.0.0.1:0\" }}]\nadmin.address = \"127.0.0.1:0\""
        );
        let config = crate::config::parse("test.toml", &text).unwrap().config;
        (Gateway::bind(config.clone(), Arc::default()).unwrap(), config, secret)
    }

    /// Where the secret is looked for on a disk that hangs, too.
    #[test]
    fn the_end_does_not_wait_for_files_that_are_being_read() {
        let (gateway, _, secret) = gateway("hanging");
        std::fs::remove_file(secret).unwrap();
        assert!(gateway.live.config().is_some());
        let reading = gateway.live.running.lock();
        let other = || (gateway.live.config().is_none(), gateway.live.set_replaced(true).is_err());
        let hangs = std::thread::scope(|scope| scope.spawn(other).join().unwrap());
        drop(reading);
        assert_eq!(hangs, (true, true));
        assert!(gateway.live.set_replaced(true).is_ok());
    }

    /// Each would keep one of the few that operators may have at one time.
    #[test]
    fn a_reload_does_not_wait_for_ever_for_another_one_whose_disk_hangs() {
        let (gateway, _, secret) = gateway("busy");
        std::fs::remove_file(&secret).unwrap();
        gateway.reload_from(secret);
        let reading = gateway.live.reload.lock();
        let other = std::thread::scope(|scope| {
            scope.spawn(|| gateway.live.reload_within(Duration::ZERO)).join().unwrap()
        });
        assert_eq!(other, Err(ReloadError::Busy));
        drop(reading);
        assert!(matches!(gateway.live.reload(), Err(ReloadError::Mistakes(_))));
    }

    /// Else it would be refused until the files are looked at the next time.
    #[test]
    fn a_secret_that_is_replaced_during_a_reload_is_in_use_after_it() {
        let (gateway, read_before, secret) = gateway("replaced");
        std::fs::write(secret.with_extension("new"), "an0ther").unwrap();
        std::fs::rename(secret.with_extension("new"), &secret).unwrap();
        gateway.live.apply(read_before);
        std::fs::remove_file(secret).unwrap();
        assert!(gateway.live.config().unwrap().auth.shell_secret.matches(b"an0ther"));
    }
}
