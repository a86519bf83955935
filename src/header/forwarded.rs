//! `X-Forwarded-*`: what the gateway says of a client to Rails, and what it believes of it to a trusted proxy.

use std::io::Write as _;
use std::net::IpAddr;

use http::header::{HeaderMap, HeaderValue};

use super::name::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};

/// The scheme of the URL that a client has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientScheme {
    /// Without TLS.
    #[default]
    Http,
    /// With TLS, here or at a trusted proxy.
    Https,
}

impl ClientScheme {
    /// As in `X-Forwarded-Proto`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Sets `X-Forwarded-*`: the peer is appended to the chain, which callers such as GitLab Shell
/// begin with the SSH client's address; the host is the one that the gateway has seen.
pub(super) fn set(
    headers: &mut HeaderMap,
    peer: Option<IpAddr>,
    scheme: ClientScheme,
    host: Option<HeaderValue>,
) {
    if let Some(peer) = peer {
        let mut chain: Vec<u8> = Vec::with_capacity(64);
        for value in headers.get_all(&X_FORWARDED_FOR) {
            chain.extend_from_slice(value.as_bytes());
            chain.extend_from_slice(b", ");
        }
        // Writing to memory cannot fail.
        let _ = write!(chain, "{peer}");
        if let Ok(value) = HeaderValue::from_bytes(&chain) {
            headers.insert(&X_FORWARDED_FOR, value);
        }
    }
    headers.insert(&X_FORWARDED_PROTO, HeaderValue::from_static(scheme.as_str()));
    // A colon without a port means nothing (RFC 3986 §3.2.3), but not every reader accepts it.
    let host = host.and_then(|host| match host.as_bytes().strip_suffix(b":") {
        Some(bare) => HeaderValue::from_bytes(bare).ok(),
        None => Some(host),
    });
    match host {
        Some(host) => headers.insert(&X_FORWARDED_HOST, host),
        // HTTP/1.0: the header could only be the client's, who can set it to anything.
        None => headers.remove(&X_FORWARDED_HOST),
    };
}

/// The address of the client of a trusted proxy, which the proxy has appended to `X-Forwarded-For`; if that is
/// another trusted proxy, then the one before, and so on. `peer` is the proxy, and the answer if the header ends
/// before there is a client in it, or is malformed there.
pub fn client_behind(
    headers: &HeaderMap,
    peer: Option<IpAddr>,
    is_proxy: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let mut client = peer;
    // The last line is the youngest.
    let lines: Vec<&HeaderValue> = headers.get_all(&X_FORWARDED_FOR).iter().collect();
    for entry in lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        let text = std::str::from_utf8(entry.trim_ascii()).ok();
        let Some(address) = text.and_then(|text| text.parse::<IpAddr>().ok()) else { break };
        let address = address.to_canonical();
        client = Some(address);
        if !is_proxy(address) {
            break;
        }
    }
    client
}

/// The scheme that a trusted proxy names in `X-Forwarded-Proto`. `None` if it names none, several or another one.
pub fn scheme_behind(headers: &HeaderMap) -> Option<ClientScheme> {
    let mut values = headers.get_all(&X_FORWARDED_PROTO).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    [ClientScheme::Http, ClientScheme::Https]
        .into_iter()
        .find(|scheme| value.as_bytes().eq_ignore_ascii_case(scheme.as_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, lines: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_static(line));
        }
        headers
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy() {
        let is_proxy = |address: IpAddr| matches!(address, IpAddr::V4(ip) if ip.octets()[0] == 10);
        for (lines, client) in [
            (&["203.0.113.7"][..], "203.0.113.7"),
            (&["192.0.2.1, 203.0.113.7"], "203.0.113.7"),
            (&["192.0.2.1,203.0.113.7 , 10.0.0.2"], "203.0.113.7"),
            (&["203.0.113.7", "10.0.0.2"], "203.0.113.7"),
            (&["203.0.113.7, 10.0.0.2", "10.0.0.3"], "203.0.113.7"),
            (&["::ffff:203.0.113.7"], "203.0.113.7"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["10.0.0.9, 10.0.0.2"], "10.0.0.9"),
            (&[], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&["unknown"], "10.0.0.1"),
            (&["203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["203.0.113.7:1234"], "10.0.0.1"),
            (&["203.0.113.7,"], "10.0.0.1"),
        ] {
            let known = client_behind(
                &headers("x-forwarded-for", lines),
                Some("10.0.0.1".parse().unwrap()),
                is_proxy,
            );
            assert_eq!(known, Some(client.parse().unwrap()), "{lines:?}");
        }
        assert_eq!(client_behind(&HeaderMap::new(), None, is_proxy), None);
    }

    #[test]
    fn the_scheme_is_one_of_two_and_named_once() {
        for (lines, scheme) in [
            (&["https"][..], Some(ClientScheme::Https)),
            (&["HTTPS"], Some(ClientScheme::Https)),
            (&["http"], Some(ClientScheme::Http)),
            (&[], None),
            (&["https, http"], None),
            (&["https", "https"], None),
            (&["wss"], None),
        ] {
            assert_eq!(scheme_behind(&headers("x-forwarded-proto", lines)), scheme, "{lines:?}");
        }
    }
}
