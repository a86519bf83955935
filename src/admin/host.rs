//! The names in `Host` that the admin listener accepts.
//!
//! A web page in a browser on this machine can point its own name to this listener (DNS rebinding) and then read
//! every response: for the browser it is still the page's own site. It cannot hide that name, so unknown
//! names are refused. An address or `localhost` cannot be pointed elsewhere, so a page under such a name is not
//! one of an attacker.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{self, HeaderName};

use crate::authority;

/// Whether the `Host` of a request over TCP is accepted. `known` are names in lower case without a
/// dot at their end. A request without a `Host` is not from a browser.
pub(super) fn is_known(headers: &HeaderMap, known: &[String]) -> bool {
    headers.get_all(header::HOST).iter().all(|host| {
        let name = host.to_str().ok().and_then(authority::parse_host_header).map(|(name, _)| name);
        name.is_some_and(|name| is_accepted_name(name, known))
    })
}

/// Whether the page that sends a request came from the same name and port as the request asks for. A page cannot
/// choose these headers (Fetch §2.2.2, §3.2; Fetch Metadata §2.3).
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    let only = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())?.to_str().ok()
    };
    let origin = only(header::ORIGIN)
        .and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")));
    let is_same =
        origin.zip(only(header::HOST)).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host));
    let mut sites = headers.get_all(HeaderName::from_static("sec-fetch-site")).iter();
    is_same && sites.all(|site| site.as_bytes() == b"same-origin")
}

fn is_accepted_name(name: &str, known: &[String]) -> bool {
    if name.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || known.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_accepted(hosts: &[&str]) -> bool {
        let headers = hosts.iter().map(|host| (header::HOST, host.parse().unwrap())).collect();
        is_known(&headers, &["railgate.example".to_owned(), "railgate".to_owned()])
    }

    #[test]
    fn addresses_localhost_and_configured_names_are_accepted() {
        assert!(is_accepted(&[]));
        for host in [
            "127.0.0.1",
            "127.0.0.1:9181",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:9181",
            "[::ffff:10.0.0.1]",
            "localhost",
            "LocalHost:9181",
            "localhost:",
            "[::1]:",
            "railgate:",
            "localhost.",
            "localhost.:1",
            "a.b.localhost",
            "railgate",
            "railgate.example",
            "RAILGATE.example.:9181",
        ] {
            assert!(is_accepted(&[host]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "railgate.example.evil.example",
            "evil.railgate.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evillocalhost",
            "railgate.example..",
            "railgate.example:x",
            "user@railgate.example",
            "::1",
            "[::1",
            "2130706433",
            "0x7f.1",
            "127.1",
            "127.0.0.1 evil.example",
            "a b",
        ] {
            assert!(!is_accepted(&[host]), "{host}");
            assert!(!is_accepted(&["localhost", host]), "{host}");
        }
    }
}
