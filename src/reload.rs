//! Reading the configuration again while the gateway runs: how that is asked for, and what came of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Reads the configuration again.
pub trait Reload: fmt::Debug + Send + Sync {
    /// Reads the whole file and takes over all that needs no restart; with a mistake in the file, nothing at all.
    /// Reads files, so it is not for a thread with an event loop.
    fn reload(&self) -> Result<Reloaded, ReloadError>;
}

/// The configuration was read again, and what could be changed was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that have another value now, which only a restart takes over.
    pub restart_needed: Vec<&'static str>,
    /// What is allowed but is probably a mistake.
    pub warnings: Vec<String>,
}

/// Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadError {
    /// The configuration is not from a file.
    NoFile,
    /// The file is still being read for another reload.
    Busy,
    /// Every mistake in the file.
    Mistakes(Vec<Mistake>),
}

/// A mistake in a configuration, or what is probably one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file, as it was named on the command line, or the name of a variable of the environment.
    pub file: String,
    /// Counted from 1. `None` if the whole file is concerned, or a variable.
    pub line: Option<usize>,
    /// The full name of the key, such as `cache.discover.ttl`. Empty if none is concerned.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Mistake {
    /// The file with the line, or the variable.
    pub fn place(&self) -> String {
        self.line.map_or_else(|| self.file.clone(), |line| format!("{}:{line}", self.file))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.place())?;
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// How the last attempt ended, for the metrics. The start is the first one.
#[derive(Debug)]
pub struct ReloadStatus {
    has_failed: AtomicBool,
    /// Unix seconds.
    succeeded_at: AtomicI64,
}

impl ReloadStatus {
    /// After a start at `now`, in Unix seconds.
    pub fn new(now: i64) -> Self {
        Self { has_failed: AtomicBool::new(false), succeeded_at: AtomicI64::new(now) }
    }

    /// Records a success at `now`, in Unix seconds.
    pub fn record_success(&self, now: i64) {
        self.succeeded_at.store(now, Ordering::Relaxed);
        self.has_failed.store(false, Ordering::Relaxed);
    }

    /// Records that nothing was changed.
    pub fn record_failure(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// Whether the last attempt has changed nothing.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// When the configuration in effect was read, in Unix seconds.
    pub fn succeeded_at(&self) -> i64 {
        self.succeeded_at.load(Ordering::Relaxed)
    }
}
