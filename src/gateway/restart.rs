//! A warm restart: the cache is saved after the last request was served, and loaded before the first.
//!
//! So nothing can be purged while the cache is being saved or loaded, and nothing that was purged comes
//! back. While it is loaded, clients wait: the kernel has accepted their connections. While it is saved,
//! there is no listener any more.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cache::snapshot::error::LoadError;
use crate::cache::snapshot::{SnapshotFile, SnapshotTime};
use crate::cache::{Cache, Lifetimes};
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::upstream::{UpstreamServerSettings, UpstreamSettings};

/// Saves and loads the cache.
#[derive(Clone, Debug)]
pub(crate) struct WarmRestart {
    file: SnapshotFile,
    lifetimes: Lifetimes,
    /// Hooks are configured, and those that came while the gateway was away were not received.
    may_have_missed_hooks: bool,
}

impl WarmRestart {
    /// `None` if no `cache.snapshot` is configured.
    pub(crate) fn new(settings: &GatewayConfig) -> Option<Self> {
        let path: PathBuf = settings.cache.snapshot.clone()?;
        let identity = server_identities(&settings.upstream).join("\0\0");
        Some(Self {
            file: SnapshotFile::new(path, &settings.auth.shell_secret, &identity),
            lifetimes: settings.cache.lifetimes.clone(),
            may_have_missed_hooks: settings.hooks.is_some(),
        })
    }

    /// Loads what was saved.
    pub(crate) async fn load(self, cache: Arc<Cache>) {
        run_blocking(move || {
            let path = self.file.path().display();
            match cache.load(&self.file, now(), &self.lifetimes, self.may_have_missed_hooks) {
                Ok(loaded) => tracing::info!(
                    %path,
                    entries = loaded.entries,
                    left_out = loaded.left_out,
                    saved_s_ago = loaded.saved_ago.as_secs(),
                    "cache loaded"
                ),
                Err(why @ LoadError::NotFound) => tracing::info!(%path, %why, "no saved cache"),
                Err(why) => tracing::warn!(%path, %why, "the saved cache is ignored; the cache starts empty"),
            }
            if let Err(error) = self.file.check_writable() {
                tracing::warn!(%path, %error, "the cache will not be saved");
            }
        })
        .await;
    }

    /// Removes what was saved, since this process goes on, and purges.
    pub(crate) async fn discard(self) {
        run_blocking(move || {
            let removed = std::fs::remove_file(self.file.path());
            // The other process has taken it, or this one could not write it.
            if let Err(error) = removed.or_else(ignore_not_found) {
                tracing::warn!(path = %self.file.path().display(), %error, "the saved cache could not be removed");
            }
        })
        .await;
    }

    /// Saves the cache.
    pub(crate) async fn save(self, cache: Arc<Cache>) {
        run_blocking(move || {
            let path = self.file.path().display();
            match cache.save(&self.file, now()) {
                Ok(entries) => tracing::info!(%path, entries, "cache saved"),
                Err(error) => tracing::error!(%path, %error, "the cache could not be saved"),
            }
        })
        .await;
    }
}

fn server_identities(upstream: &UpstreamSettings) -> Vec<String> {
    upstream.servers.iter().map(|server| server_identity(upstream, server)).collect()
}

/// Everything by which two Rails can differ.
pub(super) fn server_identity(upstream: &UpstreamSettings, server: &UpstreamServerSettings) -> String {
    let host = upstream.host.as_deref().unwrap_or_default();
    let tls = server.tls.as_ref().map(|tls| format!("{tls}"));
    format!("{}\0{}\0{host}\0{}", server.name(), server.target.root, tls.unwrap_or_default())
}

/// Whether these may be servers of another GitLab than those: they have none in common.
pub(crate) fn may_be_another_gitlab(one: &UpstreamSettings, other: &UpstreamSettings) -> bool {
    let known = server_identities(one);
    !server_identities(other).iter().any(|server| known.contains(server))
}

fn now() -> SnapshotTime {
    SnapshotTime { instant: Clock::System.now(), unix: Clock::System.unix_time() }
}

fn ignore_not_found(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// A million entries take seconds.
async fn run_blocking(work: impl FnOnce() + Send + 'static) {
    if tokio::task::spawn_blocking(work).await.is_err() {
        tracing::error!("saving or loading the cache went wrong; the gateway goes on without the snapshot");
    }
}
