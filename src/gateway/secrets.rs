//! The secrets in effect, and those that were until a moment ago: these are accepted for some time, since not all
//! who have a secret get a new one at the same moment.

use std::sync::Arc;
use std::time::Instant;

use crate::auth::{AuthSettings, Authenticator, KasSettings};
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::hooks::{HooksSettings, PreviousHookSecrets};
use crate::secret::files::{ChangeDetector, FileIdentity, LoadedSecret, SecretFile, SecretRole};
use crate::secret::status::SecretStatuses;

/// Secrets that were replaced not long ago, at most; the oldest go first.
const MAX_PREVIOUS: usize = 4;

/// Watches the files of the secrets.
#[derive(Debug)]
pub(crate) struct Secrets {
    files: Vec<WatchedFile>,
    previous: Vec<PreviousSecret>,
    statuses: Arc<SecretStatuses>,
}

#[derive(Debug)]
struct WatchedFile {
    file: SecretFile,
    detector: ChangeDetector,
    loaded: Option<LoadedSecret>,
}

#[derive(Debug)]
struct PreviousSecret {
    role: SecretRole,
    secret: LoadedSecret,
    accepted_until: Instant,
}

impl Secrets {
    /// The secrets of `config`, just loaded.
    pub(crate) fn new(config: &GatewayConfig, statuses: Arc<SecretStatuses>) -> Self {
        let mut secrets = Self { files: Vec::new(), previous: Vec::new(), statuses };
        secrets.watch(&config.secrets.files);
        secrets
    }

    /// Watches these files from now on. They are read once more at the first poll.
    pub(crate) fn watch(&mut self, files: &[SecretFile]) {
        let watched = |file: &SecretFile| WatchedFile {
            file: file.clone(),
            detector: ChangeDetector::new(None),
            loaded: None,
        };
        self.files = files.iter().map(watched).collect();
        self.statuses.keep(|role| files.iter().any(|file| file.role == role));
    }

    /// Goes on accepting the secrets of `old` that `new` has replaced. Those before are accepted for no longer than
    /// `new` says.
    pub(crate) fn note_replaced(&mut self, old: &GatewayConfig, new: &GatewayConfig) {
        let latest = Clock::System.now() + new.secrets.overlap;
        for previous in &mut self.previous {
            previous.accepted_until = previous.accepted_until.min(latest);
        }
        self.forget_expired();
        for role in [SecretRole::Shell, SecretRole::Kas, SecretRole::Hooks, SecretRole::HooksSigning] {
            if let (Some(old_one), Some(new_one)) = (current(old, role), current(new, role))
                && !old_one.is_same(&new_one)
            {
                self.note_previous(role, old_one, new);
                self.statuses.update(role, |status| status.replaced += 1);
            }
        }
    }

    fn note_previous(&mut self, role: SecretRole, secret: LoadedSecret, config: &GatewayConfig) {
        if role.has_overlap() && !config.secrets.overlap.is_zero() {
            let accepted_until = Clock::System.now() + config.secrets.overlap;
            self.previous.push(PreviousSecret { role, secret, accepted_until });
            let surplus = self.previous.len().saturating_sub(MAX_PREVIOUS);
            self.previous.drain(..surplus);
        }
    }

    /// Reads the files that have changed, and puts their secrets into `config`. Returns whether anything is different
    /// now. Not a poll: a caller has just shown an unknown secret.
    pub(crate) fn check(&mut self, config: &mut GatewayConfig, is_poll: bool) -> bool {
        let mut has_changed = self.forget_expired();
        for at in 0..self.files.len() {
            let replaced = self.files.get_mut(at).and_then(|watched| {
                watched.reread(is_poll, &self.statuses).map(|secret| (watched.file.role, secret))
            });
            let Some((role, secret)) = replaced else { continue };
            if let Some(old) = current(config, role) {
                if old.is_same(&secret) {
                    continue;
                }
                self.note_previous(role, old, config);
            }
            set(config, role, secret);
            has_changed = true;
        }
        has_changed
    }

    /// Returns whether there were any.
    fn forget_expired(&mut self) -> bool {
        let (now, before) = (Clock::System.now(), self.previous.len());
        self.previous.retain(|previous| now < previous.accepted_until);
        self.previous.len() != before
    }

    /// Computes fingerprints that are missing, one at a time; true if there was one. It takes a while.
    pub(crate) fn secret_without_fingerprint(&self) -> Option<(SecretRole, LoadedSecret)> {
        let known = self.statuses.all();
        let is_missing = |role| known.iter().any(|one| one.role == role && one.fingerprint.is_none());
        let missing = self.files.iter().find(|watched| is_missing(watched.file.role))?;
        Some((missing.file.role, missing.loaded.clone()?))
    }

    /// Takes note of the fingerprint of a secret, if that is still in use: another one may have come meanwhile.
    pub(crate) fn set_fingerprint(&self, role: SecretRole, of: &LoadedSecret, fingerprint: String) {
        let is_in_use = |watched: &WatchedFile| {
            watched.file.role == role && watched.loaded.as_ref().is_some_and(|loaded| loaded.is_same(of))
        };
        if self.files.iter().any(is_in_use) {
            self.statuses.update(role, |status| status.fingerprint = Some(fingerprint));
        }
    }

    /// Authenticates callers by the secrets of `config`, and by those before.
    pub(crate) fn authenticator(&self, config: &GatewayConfig) -> Authenticator {
        let mut auth = Authenticator::new(config.auth.clone());
        for previous in &self.previous {
            let settings = match &previous.secret {
                LoadedSecret::Shell(secret) => {
                    AuthSettings { shell_secret: secret.clone(), kas: None, ..config.auth.clone() }
                }
                LoadedSecret::Kas(secret) => AuthSettings {
                    accept_jwt: false,
                    accept_shared_secret: false,
                    kas: config.auth.kas.clone().map(|kas| KasSettings { secret: secret.clone(), ..kas }),
                    ..config.auth.clone()
                },
                LoadedSecret::Token(_) | LoadedSecret::Signing(_) => continue,
            };
            auth.also_accept(Authenticator::new(settings));
        }
        auth
    }

    /// The settings for hooks, with the secrets before.
    pub(crate) fn hooks(&self, config: &GatewayConfig) -> Option<HooksSettings> {
        let hooks = config.hooks.clone()?;
        let mut previous = PreviousHookSecrets::default();
        for one in &self.previous {
            // One that has no successor is not used any more.
            match (&one.secret, one.role) {
                (LoadedSecret::Token(token), SecretRole::Hooks) if hooks.token.is_some() => {
                    previous.tokens.push(token.clone());
                }
                (LoadedSecret::Signing(token), _) if hooks.signing_token.is_some() => {
                    previous.signing_tokens.push((**token).clone());
                }
                _ => {}
            }
        }
        Some(HooksSettings { previous, ..hooks })
    }
}

impl WatchedFile {
    /// The secret, if the file has changed and holds another one than before. A file that cannot be used is reported
    /// once, and the secret stays.
    fn reread(&mut self, is_poll: bool, statuses: &SecretStatuses) -> Option<LoadedSecret> {
        let SecretFile { role, path } = &self.file;
        if !is_poll && !matches!(role, SecretRole::Shell | SecretRole::Kas) {
            return None;
        }
        let found = FileIdentity::of(path);
        if !self.detector.is_due(found, is_poll) {
            return None;
        }
        match self.file.load() {
            Ok(secret) => {
                let modified = found.map_or(0, |found| found.modified());
                statuses.update(*role, |status| (status.modified, status.is_usable) = (modified, true));
                let is_first = self.loaded.is_none();
                if self.loaded.as_ref().is_some_and(|loaded| loaded.is_same(&secret)) {
                    return None;
                }
                self.loaded = Some(secret.clone());
                statuses.update(*role, |status| {
                    status.fingerprint = None;
                    status.replaced += u64::from(!is_first);
                });
                if !is_first {
                    let file = path.display();
                    tracing::info!(secret = role.as_str(), %file, "a secret was replaced by that in its file");
                }
                Some(secret)
            }
            Err(error) => {
                statuses.update(*role, |status| status.is_usable = false);
                let file = path.display();
                tracing::warn!(
                    secret = role.as_str(),
                    %file,
                    %error,
                    "the file of a secret has changed and cannot be used; the secret before stays in use"
                );
                None
            }
        }
    }
}

/// The secret that is in effect. `None` for one that only the gateway knows.
fn current(config: &GatewayConfig, role: SecretRole) -> Option<LoadedSecret> {
    let hooks = config.hooks.as_ref();
    match role {
        SecretRole::Shell => Some(LoadedSecret::Shell(config.auth.shell_secret.clone())),
        SecretRole::Kas => config.auth.kas.as_ref().map(|kas| LoadedSecret::Kas(kas.secret.clone())),
        SecretRole::Upstream => None,
        SecretRole::Admin => config.admin.token.clone().map(LoadedSecret::Token),
        SecretRole::Hooks => hooks.and_then(|hooks| hooks.token.clone()).map(LoadedSecret::Token),
        SecretRole::HooksSigning => {
            hooks.and_then(|hooks| hooks.signing_token.clone()).map(Box::new).map(LoadedSecret::Signing)
        }
    }
}

fn set(config: &mut GatewayConfig, role: SecretRole, secret: LoadedSecret) {
    let has_own = config.secrets.files.iter().any(|file| file.role == SecretRole::Upstream);
    match (role, secret) {
        (SecretRole::Shell, LoadedSecret::Shell(secret)) => {
            if !has_own && let Some(credential) = &config.upstream_credential {
                credential.replace_secret(&secret);
            }
            config.auth.shell_secret = secret;
        }
        (SecretRole::Upstream, LoadedSecret::Shell(secret)) => {
            if let Some(credential) = &config.upstream_credential {
                credential.replace_secret(&secret);
            }
        }
        (_, LoadedSecret::Kas(secret)) => {
            if let Some(kas) = &mut config.auth.kas {
                kas.secret = secret;
            }
        }
        (SecretRole::Admin, LoadedSecret::Token(token)) => config.admin.token = Some(token),
        (_, LoadedSecret::Token(token)) => {
            if let Some(hooks) = &mut config.hooks {
                hooks.token = Some(token);
            }
        }
        (_, LoadedSecret::Signing(token)) => {
            if let Some(hooks) = &mut config.hooks {
                hooks.signing_token = Some(*token);
            }
        }
        // A role has one kind of secret.
        (_, LoadedSecret::Shell(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_of_a_secret_that_was_replaced_meanwhile_is_dropped() {
        let file = std::env::temp_dir().join(format!("railgate-fingerprint-{}", std::process::id()));
        std::fs::write(&file, "one").unwrap();
        let text = format!("upstream.url = \"http://127.0.0.1:1\"\nauth.shell.secret_file = {file:?}");
        let mut config = crate::config::parse("test.toml", &text).unwrap().config;
        let statuses = Arc::<SecretStatuses>::default();
        let mut secrets = Secrets::new(&config, Arc::clone(&statuses));
        secrets.check(&mut config, true);
        let (role, one) = secrets.secret_without_fingerprint().unwrap();
        let new = file.with_extension("new");
        std::fs::write(&new, "other").unwrap();
        std::fs::rename(new, &file).unwrap();
        assert!(secrets.check(&mut config, false));
        secrets.set_fingerprint(role, &one, one.fingerprint());
        let (role, other) = secrets.secret_without_fingerprint().unwrap();
        assert!(!other.is_same(&one));
        secrets.set_fingerprint(role, &other, other.fingerprint());
        std::fs::remove_file(file).unwrap();
        assert_eq!(statuses.all()[0].fingerprint, Some(other.fingerprint()));
        assert!(secrets.secret_without_fingerprint().is_none());
    }
}
