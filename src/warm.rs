//! A warm restart: the cache is saved once nothing is served any more, and loaded before anything is.
//!
//! So nobody can drop something while it is being saved or loaded, and nothing that was dropped comes
//! back. While it is loaded, clients wait: the kernel has accepted their connections. While it is saved,
//! there is no listener any more.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cache::snapshot::{NotLoaded, Now, Snapshot};
use crate::cache::{Cache, Lifetimes};
use crate::clock::Clock;
use crate::config::Settings;
use crate::upstream::ServerSettings;

/// What is to be saved and loaded where.
#[derive(Clone, Debug)]
pub(crate) struct Warm {
    snapshot: Snapshot,
    lifetimes: Lifetimes,
    /// GitLab tells of changes, and nobody has heard while the gateway was away.
    may_have_missed_hooks: bool,
}

impl Warm {
    /// If the operator wants it at all.
    pub(crate) fn new(settings: &Settings) -> Option<Self> {
        let path: PathBuf = settings.cache.snapshot.clone()?;
        let upstream = &settings.upstream;
        // Whatever can make it another Rails.
        let host = upstream.host.as_deref().unwrap_or_default();
        let server = |server: &ServerSettings| {
            let tls = server.tls.as_ref().map(|tls| format!("{tls}"));
            format!("{}\0{}\0{host}\0{}", server.name(), server.target.root, tls.unwrap_or_default())
        };
        let identity: Vec<String> = upstream.servers.iter().map(server).collect();
        let identity = identity.join("\0\0");
        Some(Self {
            snapshot: Snapshot::new(path, &settings.auth.shell_secret, &identity),
            lifetimes: settings.cache.lifetimes.clone(),
            may_have_missed_hooks: settings.hooks.is_some(),
        })
    }

    /// Loads what was saved, on a thread of its own, since it may be much.
    pub(crate) async fn load(self, cache: Arc<Cache>) {
        on_a_thread(move || {
            let path = self.snapshot.path().display();
            match cache.load(&self.snapshot, now(), &self.lifetimes, self.may_have_missed_hooks) {
                Ok(loaded) => tracing::info!(
                    %path,
                    entries = loaded.entries,
                    left_out = loaded.left_out,
                    saved_s_ago = loaded.saved.as_secs(),
                    "cache loaded"
                ),
                Err(why @ NotLoaded::None) => tracing::info!(%path, %why, "no saved cache"),
                Err(why) => tracing::warn!(%path, %why, "the saved cache is ignored; it begins empty"),
            }
            if let Err(error) = self.snapshot.try_to_write() {
                tracing::warn!(%path, %error, "the cache will not be saved");
            }
        })
        .await;
    }

    /// Saves what is kept.
    pub(crate) async fn save(self, cache: Arc<Cache>) {
        on_a_thread(move || {
            let path = self.snapshot.path().display();
            match cache.save(&self.snapshot, now()) {
                Ok(entries) => tracing::info!(%path, entries, "cache saved"),
                Err(error) => tracing::error!(%path, %error, "the cache could not be saved"),
            }
        })
        .await;
    }
}

fn now() -> Now {
    Now { instant: Clock::System.now(), unix: Clock::System.unix() }
}

async fn on_a_thread(work: impl FnOnce() + Send + 'static) {
    if tokio::task::spawn_blocking(work).await.is_err() {
        tracing::error!("saving or loading the cache went wrong; it goes on without");
    }
}
