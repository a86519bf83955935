//! Which hosts the admin listener answers to.
//!
//! A page in a browser on this machine can have its own name lead here (DNS rebinding) and then reads
//! what it likes: to the browser it is still the page's own site. It cannot hide the name by which it
//! asks, so names that are not known are refused. An address or `localhost` cannot be made to lead
//! elsewhere, so a page of such a name is not a stranger's.

use std::net::IpAddr;

use http::HeaderMap;
use http::header;

use crate::authority;

/// Whether a request over TCP may be answered, by its `Host`. `known` are names in lower case without a
/// dot at their end. One without a `Host` is not of a browser.
pub(super) fn is_known(headers: &HeaderMap, known: &[String]) -> bool {
    headers.get_all(header::HOST).iter().all(|host| {
        let name = host.to_str().ok().and_then(authority::of_host).map(|(name, _)| name);
        name.is_some_and(|name| is_good(name, known))
    })
}

fn is_good(name: &str, known: &[String]) -> bool {
    if name.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || known.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_answered(hosts: &[&str]) -> bool {
        let headers = hosts.iter().map(|host| (header::HOST, host.parse().unwrap())).collect();
        is_known(&headers, &["railgate.example".to_owned(), "railgate".to_owned()])
    }

    #[test]
    fn addresses_localhost_and_the_names_that_are_configured() {
        assert!(is_answered(&[]));
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
            assert!(is_answered(&[host]), "{host}");
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
            assert!(!is_answered(&[host]), "{host}");
            assert!(!is_answered(&["localhost", host]), "{host}");
        }
    }
}
