//! Which fleet this gateway is in: that of all gateways with its secret, in front of the same GitLab.

use std::io;
use std::sync::Arc;

use super::restart::server_identity;
use crate::cache::Cache;
use crate::config::GatewayConfig;
use crate::fleet::Fleet;
use crate::fleet::keys::FleetKeys;
use crate::upstream::{UpstreamAddress, UpstreamSettings};

/// The fleet of the configuration, not started yet; none if there is none.
pub(super) fn join(config: &GatewayConfig, cache: &Arc<Cache>) -> io::Result<Fleet> {
    let Some(settings) = &config.fleet else { return Ok(Fleet::default()) };
    let fleet = fleet_keys(config)
        .and_then(|keys| Fleet::new(Arc::clone(settings), &keys, Arc::clone(cache)))
        .ok_or_else(|| io::Error::other("the system has no random numbers for the keys of the fleet"))?;
    Ok(fleet)
}

/// The names and keys of the fleet of the configuration; `None` without one.
pub fn fleet_keys(config: &GatewayConfig) -> Option<FleetKeys> {
    let settings = config.fleet.as_ref()?;
    let identity = settings.identity.clone().unwrap_or_else(|| identity(&config.upstream));
    FleetKeys::new(&config.auth.shell_secret, &identity, &settings.name)
}

/// The servers of Rails, whatever their order. Without unix sockets: each pod may have its own.
fn identity(upstream: &UpstreamSettings) -> String {
    let over_tcp = upstream.servers.iter().filter(|server| {
        let UpstreamAddress::Tcp(..) = server.target.address else { return false };
        true
    });
    let mut identities: Vec<String> = over_tcp.map(|server| server_identity(upstream, server)).collect();
    identities.sort();
    identities.join("\0\0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{UpstreamServerSettings, UpstreamTarget};

    fn identity_of(urls: &[&str]) -> String {
        let server = |url: &&str| UpstreamServerSettings {
            target: UpstreamTarget::parse(url).unwrap(),
            tls: None,
            is_backup: false,
        };
        let mut settings = UpstreamSettings::new(UpstreamTarget::parse("http://rails").unwrap());
        settings.servers = urls.iter().map(server).collect();
        identity(&settings)
    }

    #[test]
    fn gateways_in_front_of_the_same_servers_are_in_one_fleet() {
        let own = identity_of(&["http://a", "http://b"]);
        assert_eq!(own, identity_of(&["http://b", "http://a"]));
        assert_eq!(own, identity_of(&["http://b", "http://a", "http+unix://%2Frun%2Fpuma.sock"]));
        for other in [&["http://a"][..], &["http://a", "http://c"], &["http://a/gitlab", "http://b"], &[]] {
            assert_ne!(own, identity_of(other), "{other:?}");
        }
    }
}
