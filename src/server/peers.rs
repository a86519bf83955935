//! Which peers may connect to a listener, and which of them are proxies that speak for others.

use std::fmt;
use std::net::IpAddr;

use futures_util::future::Either;
use ipnet::IpNet;
use tokio::net::{TcpStream, UnixStream};

/// Networks, each an address with a prefix length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// These networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether the address is in one of them. An IPv4 address that was mapped to IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// `allow_peers`: who may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedPeers {
    /// Of peers over TCP.
    pub networks: Networks,
    /// Users of peers over a unix socket, as they were when these connected.
    pub users: Vec<u32>,
    /// Their groups: the primary ones, since the system tells no others.
    pub groups: Vec<u32>,
}

impl AllowedPeers {
    /// Whether the peer with this address may connect, or the one of this socket if it has none.
    pub(super) fn allow(&self, socket: &Either<TcpStream, UnixStream>, address: Option<IpAddr>) -> bool {
        match (socket, address) {
            (Either::Right(socket), _) => self.allow_process(socket),
            (Either::Left(_), Some(address)) => self.networks.contains(address),
            (Either::Left(_), None) => false,
        }
    }

    /// None may connect whose credentials the system does not tell.
    fn allow_process(&self, socket: &UnixStream) -> bool {
        socket
            .peer_cred()
            .is_ok_and(|peer| self.users.contains(&peer.uid()) || self.groups.contains(&peer.gid()))
    }
}

/// `trusted_proxies`: the peers that are believed when they say for whom they speak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Of proxies over TCP.
    pub networks: Networks,
    /// Whether all peers over a unix socket are proxies.
    pub unix: bool,
}

impl TrustedProxies {
    /// `None` is a peer over a unix socket.
    pub(super) fn trust(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |address| self.networks.contains(address))
    }
}

/// Why a connection was closed before anything of it was read as HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionRefusal {
    /// The peer is not in `allow_peers`.
    Peer,
    /// The peer has sent no valid PROXY header in time, or is no trusted proxy.
    ProxyHeader,
    /// There was no TLS handshake in time, or it failed.
    Tls,
}

impl ConnectionRefusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Peer, Self::ProxyHeader, Self::Tls];

    /// As a label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::ProxyHeader => "proxy_header",
            Self::Tls => "tls",
        }
    }
}

impl fmt::Display for ConnectionRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        Networks::new(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn addresses_are_compared_by_their_prefix() {
        let known = networks(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
        for (address, is_in) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.1.2.3", true),
            ("::ffff:11.1.2.3", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(known.contains(address.parse().unwrap()), is_in, "{address}");
        }
        assert!(networks(&["0.0.0.0/0"]).contains("::ffff:1.2.3.4".parse().unwrap()));
        assert!(!networks(&["0.0.0.0/0"]).contains("2001:db8::1".parse().unwrap()));
        assert!(!Networks::default().contains("127.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_process_is_known_by_its_user_or_group() {
        let (one, _other) = UnixStream::pair().unwrap();
        let own = one.peer_cred().unwrap();
        for (users, groups, is_allowed) in [
            (vec![own.uid()], vec![], true),
            (vec![], vec![own.gid()], true),
            (vec![own.uid() + 1], vec![own.gid() + 1], false),
            (vec![], vec![], false),
        ] {
            let allowed = AllowedPeers { users, groups, ..AllowedPeers::default() };
            assert_eq!(allowed.allow_process(&one), is_allowed, "{allowed:?}");
        }
    }

    #[test]
    fn a_unix_peer_is_a_proxy_only_if_that_was_said() {
        let tcp = TrustedProxies { networks: networks(&["10.0.0.0/8"]), unix: false };
        assert!(tcp.trust(Some("10.0.0.1".parse().unwrap())));
        assert!(!tcp.trust(Some("127.0.0.1".parse().unwrap())));
        assert!(!tcp.trust(None));
        assert!(TrustedProxies { unix: true, ..TrustedProxies::default() }.trust(None));
    }
}
