//! What runs beside the requests.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::live::Live;
use crate::admin::Status;
use crate::cache::Cache;
use crate::heartbeat::Heartbeats;
use crate::service_manager::ServiceManager;
use crate::upstream::HealthChecker;

/// Starts it, until it is shut down.
pub(super) fn start(
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
