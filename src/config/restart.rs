//! What only a restart can change.

use std::time::Duration;

use super::gateway_config::GatewayConfig;
use crate::cache::EntryKind;
use crate::route::Caching;
use crate::secret::files::SecretRole;
use crate::server::ListenSettings;

impl GatewayConfig {
    /// Keeps the values of `running` that only a restart can change, and returns the keys that have others now.
    /// `kept_for`: how long the cache can keep entries, by kind.
    pub fn keep_until_restart(&mut self, running: &Self, kept_for: [Duration; 2]) -> Vec<&'static str> {
        let mut keys = Vec::new();
        macro_rules! keep {
            ($($key:literal: $($field:ident).+;)*) => {
                $(if self.$($field).+ != running.$($field).+ {
                    self.$($field).+ = running.$($field).+.clone();
                    keys.push($key);
                })*
            };
        }
        keep! {
            "workers": workers;
            "upgrade.socket": upgrade_socket;
            "admin.address": admin.address;
            "admin.connections": admin.connections;
            "auth.shell.max_unverified": auth.max_unverified;
            "cache.max_entries": cache.max_entries;
            "cache.max_negative_entries": cache.max_negative_entries;
            "cache.max_bytes": cache.max_bytes;
            "cache.max_refreshes": cache.max_refreshes;
            "cache.snapshot": cache.snapshot;
            "cache.shadow": cache.shadow;
            "fleet": fleet;
        }
        keys.extend(self.keep_listeners(running));
        keys.extend(self.keep_hooks(running));
        keys.extend(self.keep_lifetimes(running, kept_for));
        keys
    }

    fn keep_listeners(&mut self, running: &Self) -> Option<&'static str> {
        let addresses = |all: &[ListenSettings]| {
            all.iter().map(|one| (one.address.clone(), one.options.clone())).collect::<Vec<_>>()
        };
        let limits = |all: &[ListenSettings]| all.iter().map(|one| one.connections).collect::<Vec<_>>();
        let key = if addresses(&self.listen) != addresses(&running.listen) {
            Some("listen")
        } else if self.limits.connections != running.limits.connections {
            Some("limits.connections")
        } else if limits(&self.listen) != limits(&running.listen) {
            Some("listen.connections")
        } else {
            None
        };
        self.limits.connections = running.limits.connections;
        self.listen.clone_from(&running.listen);
        key
    }

    fn keep_hooks(&mut self, running: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        match (&mut self.hooks, &running.hooks) {
            (Some(new), Some(old)) => {
                if new.address != old.address {
                    new.address = old.address.clone();
                    keys.push("hooks.address");
                }
                if new.connections != old.connections {
                    new.connections = old.connections;
                    keys.push("hooks.connections");
                }
            }
            (None, None) => {}
            (new, old) => {
                new.clone_from(old);
                let is_of_hooks = |role| matches!(role, SecretRole::Hooks | SecretRole::HooksSigning);
                self.secrets.files.retain(|file| !is_of_hooks(file.role));
                let kept = running.secrets.files.iter().filter(|file| is_of_hooks(file.role));
                self.secrets.files.extend(kept.cloned());
                keys.push("hooks");
            }
        }
        keys
    }

    /// Entries cannot be kept for longer than the cache was made for.
    fn keep_lifetimes(&mut self, running: &Self, kept_for: [Duration; 2]) -> Vec<&'static str> {
        let (new, old) = (&mut self.cache.lifetimes, &running.cache.lifetimes);
        let mut keys = Vec::new();
        for (caching, key) in [
            (Caching::AuthorizedKeys, "cache.authorized_keys"),
            (Caching::Discover, "cache.discover"),
            (Caching::Check, "cache.check"),
        ] {
            let kinds = EntryKind::ALL.into_iter().zip(kept_for);
            let is_longer = |(kind, longest)| new.age_limits(caching, kind).max_age() > longest;
            if !{ kinds }.any(is_longer) {
                continue;
            }
            keys.push(key);
            match caching {
                Caching::AuthorizedKeys => new.authorized_keys = old.authorized_keys,
                Caching::Discover => new.discover = old.discover,
                Caching::Check => new.check = old.check,
                Caching::Never => {}
            }
        }
        keys
    }
}
