//! A look at the files of secrets, when a caller's secret is not known: the file may have changed a moment ago.

use std::fmt;
use std::sync::Weak;

/// Looks at the files of secrets.
pub trait RefreshSecrets: fmt::Debug + Send + Sync {
    /// Takes over what has changed. Costs a system call for each file if nothing has.
    fn refresh(&self);
}

/// Looks at the files of secrets, if there are any and the gateway still runs.
#[derive(Clone, Debug, Default)]
pub struct SecretRefresher(Option<Weak<dyn RefreshSecrets>>);

impl SecretRefresher {
    /// Asks `watcher`.
    pub fn new(watcher: Weak<dyn RefreshSecrets>) -> Self {
        Self(Some(watcher))
    }

    /// See [`RefreshSecrets::refresh`].
    pub fn refresh(&self) {
        if let Some(watcher) = self.0.as_ref().and_then(Weak::upgrade) {
            watcher.refresh();
        }
    }
}
