//! Whether a server of Rails is one of the gateway's own listeners, so that each request would come back again
//! and again. Where this cannot be known from the configuration, as with a name that resolves to this machine,
//! the gateway notices it at the first request (`Failure::Loop`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::server::ListenAddress;
use crate::upstream::UpstreamAddress;

/// The listener among `own` that accepts a connection to `address`.
pub(super) fn find_own_listener<'e>(
    address: &UpstreamAddress,
    own: &'e [ListenAddress],
) -> Option<&'e ListenAddress> {
    own.iter().find(|listener| connects_to(address, listener))
}

fn connects_to(address: &UpstreamAddress, listener: &ListenAddress) -> bool {
    match (address, listener) {
        (UpstreamAddress::Tcp(host, port), ListenAddress::Tcp(own)) => {
            *port == own.port() && known_addresses(host).iter().any(|ip| is_accepted(*ip, own.ip()))
        }
        (UpstreamAddress::Unix(path), ListenAddress::Unix { path: own, .. }) => is_same_file(path, own),
        _ => false,
    }
}

/// The addresses of `host` that are known without DNS, in any spelling.
fn known_addresses(host: &str) -> Vec<IpAddr> {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    name.parse().ok().or_else(|| inet_aton(&name).map(IpAddr::V4)).into_iter().collect()
}

/// An IPv4 address in the spellings of the C library, which resolves names for the gateway: one to four numbers,
/// decimal, octal (`0`) or hexadecimal (`0x`), of which the last one fills the remaining bytes.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let mut numbers = text.split('.').map(parse_number).collect::<Option<Vec<u64>>>()?;
    let last = numbers.pop()?;
    let bits = 32_usize.checked_sub(8 * numbers.len()).filter(|bits| *bits > 0)?;
    if last >> bits > 0 || numbers.iter().any(|byte| *byte > 255) {
        return None;
    }
    let high = numbers.iter().fold(0, |high, byte| high << 8 | byte);
    u32::try_from(high << bits | last).ok().map(Ipv4Addr::from)
}

fn parse_number(text: &str) -> Option<u64> {
    let number = match (text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(digits), _) => u32::from_str_radix(digits, 16),
        (None, Some(digits)) if !digits.is_empty() => u32::from_str_radix(digits, 8),
        _ => text.parse(),
    };
    number.ok().map(u64::from)
}

/// Whether a listener on `own` accepts connections to `ip`. A connection to the unspecified address goes to this
/// machine.
fn is_accepted(ip: IpAddr, own: IpAddr) -> bool {
    let (ip, own) = (ip.to_canonical(), own.to_canonical());
    let ip = match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    // On Linux `[::]` accepts IPv4 too, unless the socket has IPV6_V6ONLY.
    let is_wildcard = own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4());
    ip == own || is_wildcard && is_of_this_machine(ip)
}

/// Whether an interface has this address, as far as the system can tell now: it uses no other address to connect
/// to one of its own. Nothing is sent.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, 1))?;
        Ok::<_, io::Error>(socket.local_addr()?.ip())
    };
    ip.is_loopback() || source().is_ok_and(|source| source == ip)
}

/// Whether both paths are the same once resolved, or lead to the same inode now.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    resolved(one) == resolved(other) || identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// As many links as Linux follows.
const MAX_LINKS: usize = 40;

/// The path without links and dots, whether or not the file exists.
fn resolved(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
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
    use crate::server::SocketOwner;
    use crate::upstream::UpstreamTarget;

    #[test]
    fn urls_of_own_listeners_are_found() {
        for (url, own, is_own) in [
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
            // Other spellings of 127.0.0.1, of 0.0.0.0 and of 10.0.0.1.
            ("http://127.1:8181", "127.0.0.1:8181", true),
            ("http://127.0.1:8181", "0.0.0.0:8181", true),
            ("http://127.0.0.1.:8181", "127.0.0.1:8181", true),
            ("http://2130706433:8181", "127.0.0.1:8181", true),
            ("http://0x7f000001:8181", "[::]:8181", true),
            ("http://0X7F.1:8181", "127.0.0.1:8181", true),
            ("http://0x7f.0.0x0.1:8181", "127.0.0.1:8181", true),
            ("http://017700000001:8181", "127.0.0.1:8181", true),
            ("http://0:8181", "127.0.0.1:8181", true),
            ("http://10.1:8181", "10.0.0.1:8181", true),
            ("http://127.2:8181", "127.0.0.1:8181", false),
            ("http://2130706434:8181", "127.0.0.1:8181", false),
            ("http://127.1:8080", "127.0.0.1:8181", false),
            ("http://127.1.example:8181", "127.0.0.1:8181", false),
            ("http://127.0.0.0.1:8181", "127.0.0.1:8181", false),
            ("http://127.16777217:8181", "127.0.0.1:8181", false),
            ("http://256.1:8181", "127.0.0.1:8181", false),
            ("http://4294967296:8181", "0.0.0.0:8181", false),
            ("http://0x:8181", "0.0.0.0:8181", false),
            ("http://08:8181", "0.0.0.0:8181", false),
            // No machine has these.
            ("http://192.0.2.1:8181", "0.0.0.0:8181", false),
            ("http://[2001:db8::1]:8181", "[::]:8181", false),
            // These may be this machine or another.
            ("http://gitlab.example:8181", "0.0.0.0:8181", false),
            ("http://localhost.example:8181", "0.0.0.0:8181", false),
            ("http://127.0.0.1:8181", "127.0.0.1:0", false),
            ("http+unix://%2Frun%2F127.0.0.1:8181", "127.0.0.1:8181", false),
        ] {
            let address = UpstreamTarget::parse(url).unwrap().address;
            let own = [
                ListenAddress::Tcp("127.0.0.1:9".parse().unwrap()),
                ListenAddress::Tcp(own.parse().unwrap()),
            ];
            assert_eq!(find_own_listener(&address, &own), is_own.then_some(&own[1]), "{url} {own:?}");
        }
    }

    /// Beyond loopback, as far as it has any.
    #[test]
    fn addresses_of_this_machine_are_found() {
        // Where packets to other networks would come from.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let own = socket.connect("192.0.2.1:1").and_then(|()| socket.local_addr());
        if let Ok(own) = own {
            assert!(is_accepted(own.ip(), Ipv4Addr::UNSPECIFIED.into()), "{own}");
            assert!(is_accepted(own.ip(), Ipv6Addr::UNSPECIFIED.into()), "{own}");
            assert!(!is_accepted(own.ip(), Ipv4Addr::LOCALHOST.into()), "{own}");
        }
        assert!(is_of_this_machine(Ipv4Addr::new(127, 1, 2, 3).into()));
        assert!(!is_of_this_machine(Ipv4Addr::new(192, 0, 2, 1).into()));
        assert!(!is_of_this_machine("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn paths_of_own_sockets_are_found() {
        let folder = std::env::temp_dir().join(format!("railgate-own-{}", std::process::id()));
        fs::create_dir_all(folder.join("sub")).unwrap();
        let file = |name: &str| folder.join(name);
        let is_own = |path: &Path, own: &Path| {
            let own =
                ListenAddress::Unix { path: own.to_owned(), mode: 0o660, owner: SocketOwner::default() };
            connects_to(&UpstreamAddress::Unix(path.to_owned()), &own)
        };
        // Before anything listens there.
        std::os::unix::fs::symlink("gateway.sock", file("link.sock")).unwrap();
        std::os::unix::fs::symlink(&folder, file("sub/folder")).unwrap();
        let own = file("gateway.sock");
        for (path, expected) in [
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
            assert_eq!(is_own(&file(path), &own), expected, "{path}");
            assert_eq!(is_own(&own, &file(path)), expected, "{path}");
        }
        // While something listens there, under another name.
        fs::write(&own, "").unwrap();
        fs::hard_link(&own, file("sub/other.sock")).unwrap();
        assert!(is_own(&file("sub/other.sock"), &own));
        assert!(!is_own(&file("sub/none.sock"), &own));
        fs::remove_dir_all(folder).unwrap();
    }
}
