//! The settings of the cache.

use std::path::PathBuf;
use std::time::Duration;

use super::lifetimes::Lifetimes;
use super::shadow::ShadowSettings;

/// Section `[cache]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// The most positive entries.
    pub max_entries: u64,
    /// The most negative entries (unknown keys, `null` users), in addition.
    pub max_negative_entries: u64,
    /// Bytes of memory for all entries, with what is needed beside their bodies. A tenth of it is for
    /// the negative ones.
    pub max_bytes: usize,
    /// Bytes of the largest body that is stored.
    pub max_body: usize,
    /// How long a caller waits for another caller's request to Rails before it sends its own. As long
    /// as Rails has for an answer, or all waiting callers would ask a slow Rails.
    pub wait: Duration,
    /// How long a caller waits for Rails when a stale answer is at hand.
    pub stale_wait: Duration,
    /// How many stale answers may be refreshed in the background at the same time.
    pub max_refreshes: usize,
    /// The file in which the cache survives a restart, if any.
    pub snapshot: Option<PathBuf>,
    /// Which cached answers are compared with Rails.
    pub shadow: ShadowSettings,
    /// How long answers stay usable.
    pub lifetimes: Lifetimes,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            max_negative_entries: 100_000,
            max_bytes: 2 << 30,
            max_body: 64 * 1024,
            wait: Duration::from_secs(60),
            stale_wait: Duration::from_secs(3),
            max_refreshes: 16,
            snapshot: None,
            shadow: ShadowSettings::default(),
            lifetimes: Lifetimes::default(),
        }
    }
}
