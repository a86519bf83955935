//! Where Valkey and its Sentinels listen, as the configuration says it.

use std::path::PathBuf;

use crate::upstream::{MAX_SOCKET_PATH, TargetError, UpstreamAddress};

/// A `fleet.url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValkeyUrl {
    /// Where to connect.
    pub address: UpstreamAddress,
    /// Whether by TLS.
    pub is_tls: bool,
}

/// What is wrong with a `fleet.url`. The text of the URL is in none of these: it may have a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// An unknown scheme.
    #[error("must begin with redis://, rediss:// (TLS) or unix:/, as in redis://10.0.0.5:6379")]
    Scheme,
    /// User and password in the URL.
    #[error("must not hold a user or a password; they belong into user and password_file")]
    UserInfo,
    /// No host, or an invalid one, or an invalid port.
    #[error(
        "needs a host name or an address, perhaps with a port, as in redis://10.0.0.5:6379 or redis://[fd00::1]:6379"
    )]
    Address,
    /// A database, or anything else behind the port.
    #[error("must end behind the port: the fleet uses database 0, whose keys it keeps apart by their names")]
    Path,
    /// The path of the socket is not absolute, or too long.
    #[error(
        "needs the absolute path of the socket, of at most {MAX_SOCKET_PATH} bytes, as in unix:/run/valkey/valkey.sock"
    )]
    Socket,
}

/// The port of Valkey and Redis.
const PORT: u16 = 6_379;
/// The port of a Sentinel.
const SENTINEL_PORT: u16 = 26_379;

impl ValkeyUrl {
    /// Parses `redis://host:port`, the same with `rediss`, or `unix:/path/to/socket`.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let is_valid = path.starts_with('/') && !path.ends_with('/') && !path.contains('\0');
            if !is_valid || path.len() > MAX_SOCKET_PATH {
                return Err(UrlError::Socket);
            }
            return Ok(Self { address: UpstreamAddress::Unix(PathBuf::from(path)), is_tls: false });
        }
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        let is_tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return Err(UrlError::Scheme),
        };
        if rest.contains('@') {
            return Err(UrlError::UserInfo);
        }
        let host = rest.strip_suffix('/').unwrap_or(rest);
        if host.contains(['/', '?', '#']) {
            return Err(UrlError::Path);
        }
        let address = UpstreamAddress::parse_tcp(host, PORT).map_err(|_: TargetError| UrlError::Address)?;
        Ok(Self { address, is_tls })
    }
}

/// The address of a Sentinel: a host, perhaps with a port. `None` if it is anything else.
pub fn sentinel_address(text: &str) -> Option<UpstreamAddress> {
    UpstreamAddress::parse_tcp(text, SENTINEL_PORT).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_or_refused_without_quoting_them() {
        let tcp = |host: &str, port, is_tls| {
            Ok(ValkeyUrl { address: UpstreamAddress::Tcp(host.to_owned(), port), is_tls })
        };
        let socket =
            |path: &str| Ok(ValkeyUrl { address: UpstreamAddress::Unix(path.into()), is_tls: false });
        let long = format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH));
        for (url, expected) in [
            ("redis://10.0.0.5:6379", tcp("10.0.0.5", 6_379, false)),
            ("redis://valkey.example", tcp("valkey.example", 6_379, false)),
            ("redis://valkey.example/", tcp("valkey.example", 6_379, false)),
            ("rediss://[fd00::1]:7000", tcp("fd00::1", 7_000, true)),
            ("unix:/run/valkey.sock", socket("/run/valkey.sock")),
            ("unix:///run/valkey.sock", socket("/run/valkey.sock")),
            ("redis://:s3cret@10.0.0.5:6379", Err(UrlError::UserInfo)),
            ("rediss://user:s3cret@10.0.0.5/0", Err(UrlError::UserInfo)),
            ("redis://10.0.0.5:6379/s3cret", Err(UrlError::Path)),
            ("redis://10.0.0.5?password=s3cret", Err(UrlError::Path)),
            ("redis://10.0.0.5#s3cret", Err(UrlError::Path)),
            ("redis://10.0.0.5:s3cret", Err(UrlError::Address)),
            ("redis://10.0.0.5:0", Err(UrlError::Address)),
            ("redis://", Err(UrlError::Address)),
            ("redis://fd00::1", Err(UrlError::Address)),
            ("valkey://s3cret", Err(UrlError::Scheme)),
            ("10.0.0.5:6379", Err(UrlError::Scheme)),
            ("", Err(UrlError::Scheme)),
            ("unix:run/s3cret", Err(UrlError::Socket)),
            ("unix:/", Err(UrlError::Socket)),
            ("unix:", Err(UrlError::Socket)),
            (&long, Err(UrlError::Socket)),
        ] {
            let parsed = ValkeyUrl::parse(url);
            assert_eq!(parsed, expected, "{url}");
            assert!(parsed.is_ok() || !parsed.unwrap_err().to_string().contains("s3cret"), "{url}");
        }
        for (text, expected) in [
            ("10.0.0.1", Some(26_379)),
            ("10.0.0.1:5000", Some(5_000)),
            ("[fd00::1]:5000", Some(5_000)),
            (":s3cret@10.0.0.1", None),
            ("redis://10.0.0.1", None),
            ("", None),
        ] {
            let port = sentinel_address(text).map(|address| match address {
                UpstreamAddress::Tcp(_, port) => port,
                UpstreamAddress::Unix(_) => 0,
            });
            assert_eq!(port, expected, "{text}");
        }
    }
}
