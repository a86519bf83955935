//! Where Rails listens: the address and relative URL root in `upstream.url`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use http::Uri;
use http::header::HeaderValue;
use http::uri::PathAndQuery;

/// An address, and the path below which Rails is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTarget {
    /// Where to connect.
    pub address: UpstreamAddress,
    /// Whether connections use TLS.
    pub is_tls: bool,
    /// The relative URL root: empty, or `/gitlab` and the like, without a trailing slash.
    pub root: String,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamAddress {
    /// Host and port; the name is resolved at every connect, to all its addresses. An address may have a zone,
    /// as in `fe80::1%eth0`.
    Tcp(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// Bytes of the longest path of a socket: 108 with the NUL behind it.
pub const MAX_SOCKET_PATH: usize = 107;

/// What is wrong with an `upstream.url`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// An unknown scheme.
    #[error("must begin with http://, https:// or http+unix://")]
    Scheme,
    /// No host, or an invalid one.
    #[error("needs a host name or an address, as in http://127.0.0.1:8080 or http://[::1]:8080")]
    Host,
    /// An invalid port.
    #[error("needs a port from 1 to 65535, or none, as in http://127.0.0.1:8080")]
    Port,
    /// A zone of an address that can have none, or a malformed one.
    #[error("has a zone, which only link-local addresses have, as in http://[fe80::1%25eth0]:8080")]
    Zone,
    /// A link-local address without one: there is such a network behind each interface.
    #[error(
        "is a link-local address, which needs a zone: the interface that leads there, as in \
         http://[fe80::1%25eth0]:8080"
    )]
    NoZone,
    /// User and password in the URL.
    #[error("must not hold a user or a password")]
    UserInfo,
    /// The socket's path is not absolute, or not percent-encoded.
    #[error("needs the socket's absolute path, percent-encoded, as in http+unix://%2Frun%2Fgitlab.socket")]
    Socket,
    /// The socket's path is longer than the system allows.
    #[error(
        "names a socket by more than {MAX_SOCKET_PATH} bytes, which no system call takes; move it, or make a \
         symbolic link with a shorter path"
    )]
    SocketTooLong,
    /// A query, or a path below which no client could be served.
    #[error("may end in a plain path (the relative URL root), without query, fragment or dot segments")]
    Path,
}

impl UpstreamTarget {
    /// Parses `http://host:port/root`, the same with `https`, or `http+unix://%2Fpath%2Fto%2Fsocket/root`.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let (scheme, rest) = url.split_once("://").ok_or(TargetError::Scheme)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(TargetError::UserInfo);
        }
        let address = match scheme {
            "http" => tcp(authority, 80)?,
            "https" => tcp(authority, 443)?,
            "http+unix" => UpstreamAddress::Unix(socket(authority)?),
            _ => return Err(TargetError::Scheme),
        };
        Ok(Self { address, is_tls: scheme == "https", root: root(path)? })
    }

    pub(in crate::upstream) fn host_header(&self) -> HeaderValue {
        // The zone of an address means something on this machine only (RFC 6874 §4).
        let host = match &self.address {
            UpstreamAddress::Tcp(host, 80) if !self.is_tls => bracketed(without_zone(host)),
            UpstreamAddress::Tcp(host, 443) if self.is_tls => bracketed(without_zone(host)),
            UpstreamAddress::Tcp(host, port) => format!("{}:{port}", bracketed(without_zone(host))),
            UpstreamAddress::Unix(_) => "localhost".to_owned(),
        };
        HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("localhost"))
    }
}

/// The path below the relative URL root; `None` if the result is not a URI.
pub(in crate::upstream) fn join_root(root: &str, uri: Uri) -> Option<Uri> {
    if root.is_empty() {
        return Some(uri);
    }
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    Uri::try_from(format!("{root}{path}")).ok()
}

impl UpstreamAddress {
    /// A host, perhaps with a port behind a colon. An IPv6 address has brackets.
    pub fn parse_tcp(text: &str, default_port: u16) -> Result<Self, TargetError> {
        tcp(text, default_port)
    }

    /// Whether the server is on this machine.
    pub(in crate::upstream) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(host, _) => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{}:{port}", bracketed(host)),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// A host without its zone: the name or address that the certificate of the server has to match.
pub fn without_zone(host: &str) -> &str {
    host.split_once('%').map_or(host, |(address, _)| address)
}

fn tcp(text: &str, default_port: u16) -> Result<UpstreamAddress, TargetError> {
    let (host, port) = match text.rsplit_once(':') {
        // A colon within brackets begins no port.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => ipv6(address)?,
        None if is_name(host) => host.to_owned(),
        None => return Err(TargetError::Host),
    };
    let port = match port {
        None => default_port,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port > 0).ok_or(TargetError::Port)?
        }
        Some(_) => return Err(TargetError::Port),
    };
    Ok(UpstreamAddress::Tcp(host, port))
}

/// What is between the brackets (RFC 6874 for the zone).
fn ipv6(text: &str) -> Result<String, TargetError> {
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    let parsed: Ipv6Addr = address.parse().map_err(|_| TargetError::Host)?;
    let Some(zone) = zone else {
        return if parsed.is_unicast_link_local() {
            Err(TargetError::NoZone)
        } else {
            Ok(address.to_owned())
        };
    };
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    match zone.strip_prefix("25") {
        Some(zone) if parsed.is_unicast_link_local() && !zone.is_empty() && zone.bytes().all(is_plain) => {
            Ok(format!("{address}%{zone}"))
        }
        _ => Err(TargetError::Zone),
    }
}

/// Whether a name can be resolved (RFC 1123 §2.1, with the underscores that are in use), or is an IPv4 address.
fn is_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(is_plain) && !label.starts_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let is_quad = name.split('.').count() == 4 && name.split('.').all(is_number);
    name.len() <= 253 && name.split('.').all(is_label) && (!is_quad || name.parse::<Ipv4Addr>().is_ok())
}

fn socket(authority: &str) -> Result<PathBuf, TargetError> {
    let mut path = Vec::new();
    let mut bytes = authority.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            path.push(byte);
            continue;
        }
        let digits =
            [bytes.next(), bytes.next()].map(|digit| digit.map(char::from).and_then(|c| c.to_digit(16)));
        match digits {
            [Some(high), Some(low)] => path.push(u8::try_from(high * 16 + low).unwrap_or_default()),
            _ => return Err(TargetError::Socket),
        }
    }
    let path = String::from_utf8(path).map_err(|_| TargetError::Socket)?;
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        return Err(TargetError::Socket);
    }
    if path.len() > MAX_SOCKET_PATH { Err(TargetError::SocketTooLong) } else { Ok(path.into()) }
}

fn root(path: &str) -> Result<String, TargetError> {
    let root = path.trim_end_matches('/');
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    let good = root.is_empty()
        || root.strip_prefix('/').is_some_and(|segments| {
            segments.split('/').all(|s| !s.is_empty() && s != "." && s != ".." && s.bytes().all(plain))
        });
    if good { Ok(root.to_owned()) } else { Err(TargetError::Path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_urls_are_parsed() {
        let tcp = |host: &str, port| UpstreamAddress::Tcp(host.into(), port);
        for (url, address, root) in [
            ("http://127.0.0.1:8080", tcp("127.0.0.1", 8080), ""),
            ("http://localhost", tcp("localhost", 80), ""),
            ("https://gitlab.example.com/git", tcp("gitlab.example.com", 443), "/git"),
            ("http://[::1]:8080/", tcp("::1", 8080), ""),
            ("http://[::1]", tcp("::1", 80), ""),
            ("http://[fd00::1]", tcp("fd00::1", 80), ""),
            ("http://[fe80::1%25eth0]:8080", tcp("fe80::1%eth0", 8080), ""),
            ("http://[fe80::1%252]", tcp("fe80::1%2", 80), ""),
            ("http://rails_1.example.:65535", tcp("rails_1.example.", 65_535), ""),
            ("http://1.2.3.4.example", tcp("1.2.3.4.example", 80), ""),
            ("http://rails:8080/gitlab/", tcp("rails", 8080), "/gitlab"),
            (
                "http+unix://%2Fvar%2Fopt%2Fgitlab.socket",
                UpstreamAddress::Unix("/var/opt/gitlab.socket".into()),
                "",
            ),
            ("http+unix://%2Frun%2Fa%20b/git/lab", UpstreamAddress::Unix("/run/a b".into()), "/git/lab"),
        ] {
            let target = UpstreamTarget::parse(url).unwrap();
            assert_eq!((target.address, target.root.as_str()), (address, root), "{url}");
        }
    }

    #[test]
    fn invalid_urls_are_refused() {
        for (url, error) in [
            ("", TargetError::Scheme),
            ("127.0.0.1:8080", TargetError::Scheme),
            ("ftp://rails", TargetError::Scheme),
            ("https://", TargetError::Host),
            ("https+unix://%2Frun%2Fs", TargetError::Scheme),
            ("http://", TargetError::Host),
            ("http://rails:", TargetError::Port),
            ("http://rails:99999", TargetError::Port),
            ("http://rails:0", TargetError::Port),
            ("http://[::1]:65536", TargetError::Port),
            ("https://rails:+1", TargetError::Port),
            ("http://:80", TargetError::Host),
            ("http://a b", TargetError::Host),
            ("http://a..b", TargetError::Host),
            ("http://a%41", TargetError::Host),
            ("http://-a", TargetError::Host),
            ("http://256.1.1.1:80", TargetError::Host),
            ("http://::1", TargetError::Host),
            ("http://[::1", TargetError::Host),
            ("http://[::1]x", TargetError::Host),
            ("http://[]", TargetError::Host),
            ("http://[1.2.3.4]", TargetError::Host),
            ("http://[::g]:80", TargetError::Host),
            ("http://[fe80::1%eth0]", TargetError::Zone),
            ("http://[fe80::1]:8080", TargetError::NoZone),
            ("https://[FE80:0:0:0::1]", TargetError::NoZone),
            ("http://[febf::1]/gitlab", TargetError::NoZone),
            ("http://[fe80::1%25]", TargetError::Zone),
            ("http://[fe80::1%25a%20b]", TargetError::Zone),
            ("http://[2001:db8::1%25eth0]", TargetError::Zone),
            ("http://user:pass@rails", TargetError::UserInfo),
            ("http+unix://run/gitlab.socket", TargetError::Socket),
            ("http+unix://%2", TargetError::Socket),
            ("http+unix://", TargetError::Socket),
            ("http+unix://%2F", TargetError::Socket),
            ("http+unix://%2Frun%2F", TargetError::Socket),
            ("http+unix://%2Frun%2Fa%00", TargetError::Socket),
            ("http://rails/a?b=c", TargetError::Path),
            ("http://rails?b", TargetError::Path),
            ("http://rails/#x", TargetError::Path),
            ("http://rails/../x", TargetError::Path),
            ("http://rails/a//b", TargetError::Path),
        ] {
            assert_eq!(UpstreamTarget::parse(url), Err(error), "{url}");
        }
    }

    #[test]
    fn sockets_and_names_have_the_limits_of_the_system() {
        let socket = |length: usize| format!("http+unix://%2F{}/gitlab", "a".repeat(length - 1));
        assert!(UpstreamTarget::parse(&socket(107)).is_ok());
        assert_eq!(UpstreamTarget::parse(&socket(108)), Err(TargetError::SocketTooLong));
        assert_eq!(UpstreamTarget::parse(&socket(4_096)), Err(TargetError::SocketTooLong));
        // The system agrees.
        let connect = |length: usize| std::os::unix::net::UnixStream::connect("a".repeat(length));
        assert_eq!(connect(107).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert_eq!(connect(108).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        let name = |label: usize, times: usize| {
            format!("http://{}com", "a.".repeat(times) + &"b".repeat(label) + ".")
        };
        for (url, is_good) in
            [(name(63, 1), true), (name(64, 1), false), (name(9, 120), true), (name(9, 121), false)]
        {
            assert_eq!(UpstreamTarget::parse(&url).is_ok(), is_good, "{url}");
        }
    }

    #[test]
    fn local_addresses_are_recognised() {
        for (url, is_local) in [
            ("http://127.0.0.1:8080", true),
            ("http://127.1.2.3", true),
            ("http://[::1]", true),
            ("https://localhost", true),
            ("http+unix://%2Frun%2Fs", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
        ] {
            assert_eq!(UpstreamTarget::parse(url).unwrap().address.is_local(), is_local, "{url}");
        }
    }

    #[test]
    fn paths_are_joined_to_the_root() {
        let target = UpstreamTarget::parse("http+unix://%2Frun%2Fs/gitlab").unwrap();
        let path = Uri::from_static("/api/v4/internal/check?a=b");
        assert_eq!(join_root(&target.root, path.clone()).unwrap(), "/gitlab/api/v4/internal/check?a=b");
        assert_eq!(join_root("", path.clone()), Some(path));
        assert_eq!(target.host_header(), "localhost");
        for (url, host) in [
            ("http://[::1]:81", "[::1]:81"),
            ("http://[fe80::1%25eth0]:81", "[fe80::1]:81"),
            ("https://[fe80::1%25eth0]", "[fe80::1]"),
            ("http://rails:80", "rails"),
            ("http://rails:443", "rails:443"),
            ("https://rails", "rails"),
            ("https://rails:80", "rails:80"),
        ] {
            assert_eq!(UpstreamTarget::parse(url).unwrap().host_header(), host);
        }
    }
}
