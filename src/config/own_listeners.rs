//! Whether a server of Rails is one of the gateway's own listeners: then each request would come back, over and
//! over. What cannot be seen here, such as a name that leads to this machine, the gateway notices at the first
//! request (`Failure::Loop`).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::server::Endpoint;
use crate::upstream::UpstreamAddress;

/// The listener among `own` to which a connection to `address` leads.
pub(super) fn reached_by<'e>(address: &UpstreamAddress, own: &'e [Endpoint]) -> Option<&'e Endpoint> {
    own.iter().find(|endpoint| leads_to(address, endpoint))
}

fn leads_to(address: &UpstreamAddress, endpoint: &Endpoint) -> bool {
    match (address, endpoint) {
        (UpstreamAddress::Tcp(host, port), Endpoint::Tcp(own)) => {
            *port == own.port() && addresses_of(host).iter().any(|ip| is_taken(*ip, own.ip()))
        }
        (UpstreamAddress::Unix(path), Endpoint::Unix { path: own, .. }) => is_same_file(path, own),
        _ => false,
    }
}

/// Those that are known without asking anyone.
fn addresses_of(host: &str) -> Vec<IpAddr> {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    host.parse().into_iter().collect()
}

/// Whether who listens on `own` takes connections to `ip`. To connect to the unspecified address is to connect to
/// this machine.
fn is_taken(ip: IpAddr, own: IpAddr) -> bool {
    let (ip, own) = (ip.to_canonical(), own.to_canonical());
    let ip = match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    // On Linux `[::]` takes IPv4 too, unless told otherwise.
    let takes_all = own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4());
    ip == own || takes_all && ip.is_loopback()
}

/// By name, or as what is there now: another name for it, or a link.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    resolved(one) == resolved(other) || identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// How many links lead on at most, as in the system.
const MOST_LINKS: usize = 40;

/// The path without links and dots, whether or not there is a file.
fn resolved(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { break };
        let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.components().collect());
        let file = folder.join(name);
        match fs::read_link(&file) {
            Ok(target) => path = folder.join(target),
            Err(_) => return file,
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::UpstreamTarget;

    #[test]
    fn addresses_that_lead_back() {
        for (url, own, leads_back) in [
            ("http://127.0.0.1:8181", "127.0.0.1:8181", true),
            ("https://127.0.0.1:8181/gitlab", "127.0.0.1:8181", true),
            ("http://127.0.0.1:8181", "0.0.0.0:8181", true),
            ("http://127.9.9.9:8181", "0.0.0.0:8181", true),
            ("http://127.0.0.1:8181", "[::]:8181", true),
            ("http://[::1]:8181", "[::]:8181", true),
            ("http://[::ffff:127.0.0.1]:8181", "127.0.0.1:8181", true),
            ("http://0.0.0.0:8181", "127.0.0.1:8181", true),
            ("http://[::]:8181", "[::1]:8181", true),
            ("http://localhost:8181", "127.0.0.1:8181", true),
            ("http://LocalHost.:8181", "127.0.0.1:8181", true),
            ("http://a.localhost:8181", "[::1]:8181", true),
            ("http://localhost:8181", "0.0.0.0:8181", true),
            ("http://localhost", "127.0.0.1:80", true),
            ("https://localhost", "0.0.0.0:443", true),
            ("http://10.0.0.1:8181", "10.0.0.1:8181", true),
            ("http://127.0.0.1:8080", "127.0.0.1:8181", false),
            ("http://127.0.0.2:8181", "127.0.0.1:8181", false),
            ("http://[::1]:8181", "127.0.0.1:8181", false),
            ("http://[::1]:8181", "0.0.0.0:8181", false),
            ("http://127.0.0.1:8181", "[::1]:8181", false),
            // It may be this machine, and may be another.
            ("http://10.0.0.1:8181", "0.0.0.0:8181", false),
            ("http://gitlab.example:8181", "0.0.0.0:8181", false),
            ("http://localhost.example:8181", "0.0.0.0:8181", false),
            ("http://127.0.0.1:8181", "127.0.0.1:0", false),
            ("http+unix://%2Frun%2F127.0.0.1:8181", "127.0.0.1:8181", false),
        ] {
            let address = UpstreamTarget::parse(url).unwrap().address;
            let own = [Endpoint::Tcp("127.0.0.1:9".parse().unwrap()), Endpoint::Tcp(own.parse().unwrap())];
            assert_eq!(reached_by(&address, &own), leads_back.then_some(&own[1]), "{url} {own:?}");
        }
    }

    #[test]
    fn sockets_that_lead_back() {
        let folder = std::env::temp_dir().join(format!("railgate-own-{}", std::process::id()));
        fs::create_dir_all(folder.join("sub")).unwrap();
        let file = |name: &str| folder.join(name);
        let leads_back = |path: &Path, own: &Path| {
            let own = Endpoint::Unix { path: own.to_owned(), mode: 0o660 };
            leads_to(&UpstreamAddress::Unix(path.to_owned()), &own)
        };
        // Before anything listens there.
        std::os::unix::fs::symlink("gateway.sock", file("link.sock")).unwrap();
        std::os::unix::fs::symlink(&folder, file("sub/folder")).unwrap();
        let own = file("gateway.sock");
        for (path, is_own) in [
            ("gateway.sock", true),
            ("sub/../gateway.sock", true),
            (".//gateway.sock", true),
            ("link.sock", true),
            ("sub/folder/gateway.sock", true),
            ("sub/folder/link.sock", true),
            ("sub/gateway.sock", false),
            ("gateway.sock2", false),
            ("none/gateway.sock", false),
        ] {
            assert_eq!(leads_back(&file(path), &own), is_own, "{path}");
            assert_eq!(leads_back(&own, &file(path)), is_own, "{path}");
        }
        // And while something does, under another name.
        fs::write(&own, "").unwrap();
        fs::hard_link(&own, file("sub/other.sock")).unwrap();
        assert!(leads_back(&file("sub/other.sock"), &own));
        assert!(!leads_back(&file("sub/none.sock"), &own));
        fs::remove_dir_all(folder).unwrap();
    }
}
