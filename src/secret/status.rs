//! What the metrics tell of secrets: never the secret itself.

use parking_lot::Mutex;

use super::files::SecretRole;

/// Of all secrets that are in files.
#[derive(Debug, Default)]
pub struct SecretStatuses(Mutex<Vec<SecretStatus>>);

/// Of one secret.
#[derive(Clone, Debug)]
pub struct SecretStatus {
    /// What it is for.
    pub role: SecretRole,
    /// See [`LoadedSecret::fingerprint`](super::files::LoadedSecret::fingerprint). `None` until it is computed.
    pub fingerprint: Option<String>,
    /// When its file was written, in Unix seconds.
    pub modified: i64,
    /// Whether the file, as it is now, holds a secret. If not, the one before is still in use.
    pub is_usable: bool,
    /// How often it was replaced.
    pub replaced: u64,
}

impl SecretStatuses {
    /// All of them.
    pub fn all(&self) -> Vec<SecretStatus> {
        self.0.lock().clone()
    }

    /// Forgets those that are not configured any more.
    pub fn keep(&self, is_configured: impl Fn(SecretRole) -> bool) {
        self.0.lock().retain(|status| is_configured(status.role));
    }

    /// Updates that of one secret.
    pub fn update(&self, role: SecretRole, update: impl FnOnce(&mut SecretStatus)) {
        let mut all = self.0.lock();
        if let Some(status) = all.iter_mut().find(|status| status.role == role) {
            return update(status);
        }
        let mut status = SecretStatus { role, fingerprint: None, modified: 0, is_usable: true, replaced: 0 };
        update(&mut status);
        all.push(status);
    }
}
