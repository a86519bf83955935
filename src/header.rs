//! Header names of GitLab's components, and the rules for headers that pass through the gateway.

pub mod forwarded;
mod name;
pub mod trailer;
pub mod via;

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

pub use self::forwarded::ClientScheme;
pub use self::name::{CACHE_STATUS, KAS_JWT, REQUEST_ID, SHARED_SECRET, SHELL_JWT, is_spoofable};
use self::name::{is_end_to_end_always, is_hop_by_hop, names_in};

/// Prepares a request's headers for Rails: removes those of the client's connection, then adds what the
/// gateway knows of the client. In this order, so that no `Connection` header can remove a header of the
/// gateway.
pub fn prepare_for_upstream(headers: &mut HeaderMap, peer: Option<IpAddr>, scheme: ClientScheme) {
    let host = headers.get(header::HOST).cloned();
    // No client of GitLab sends trailers, and Puma refuses those that come in a packet of their own: the upstream drops
    // them from the body.
    let to_remove =
        |name: &str| is_hop_by_hop(name) || matches!(name, "expect" | "content-length" | "trailer");
    let are_trailers_wanted = strip(headers, to_remove);
    if are_trailers_wanted {
        // The gateway asks for them on its own connection (RFC 9110 §10.1.4).
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("TE"));
    }
    forwarded::set(headers, peer, scheme, host);
}

/// Removes the headers that must not pass the gateway: hop-by-hop headers, those that `Connection` names, and
/// names in `Trailer` that are not allowed there. `Connection` cannot name framing and credentials: a
/// `Connection: gitlab-shared-secret` must not make Rails see a request without its credential.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip(headers, is_hop_by_hop);
}

/// Removes the headers that `Connection` names and those that are `to_remove`. One pass over the names is
/// cheaper than a look-up of each possible one. Returns whether the sender accepts trailers.
fn strip(headers: &mut HeaderMap, to_remove: impl Fn(&str) -> bool) -> bool {
    let named = names_in(headers, &header::CONNECTION).filter(|name| !is_end_to_end_always(name));
    let named: Vec<HeaderName> = named.collect();
    let mut are_trailers_wanted = false;
    // `TE` has to be named in `Connection` (RFC 9110 §10.1.4).
    for name in &named {
        are_trailers_wanted |= *name == header::TE && trailer::are_accepted(headers);
        headers.remove(name);
    }
    let rest: Vec<HeaderName> =
        headers.keys().filter(|name| *name == header::TRAILER || to_remove(name.as_str())).cloned().collect();
    for name in &rest {
        if *name == header::TRAILER && !to_remove(name.as_str()) {
            trailer::retain_allowed_names(headers);
            continue;
        }
        are_trailers_wanted |= *name == header::TE && trailer::are_accepted(headers);
        headers.remove(name);
    }
    are_trailers_wanted
}

/// Marks the values of all credentials as sensitive, so that neither HTTP/2 here nor a proxy behind it puts them into
/// the table of a connection, where a client that can send guesses over the same connection could find them by the
/// length of what is sent (RFC 7541 §7.1). A `secret_token` in the query is not marked, since the codec has no mark
/// for a path; but it does not put paths into the table either.
///
/// tower-http's `SetSensitiveRequestHeaders` does it for each request on its way in, at 900 instructions, where a hit
/// has 32,000: for nothing, if it is a hit or goes to Rails over HTTP/1.1.
pub fn mark_credentials(headers: &mut HeaderMap) {
    for (name, value) in headers.iter_mut() {
        if is_credential(name.as_str()) {
            value.set_sensitive(true);
        }
    }
}

/// Those that the gateway looks at, that Rails would look at itself, or a proxy in front of it.
fn is_credential(name: &str) -> bool {
    // Shell, kas, agents, Workhorse, Pages, mailroom: each signs a token of its own.
    let is_token_of_gitlab = || name.starts_with("gitlab-") && name.ends_with("-api-request");
    matches!(
        name,
        "authorization" | "cookie" | "gitlab-shared-secret" | "private-token" | "job-token" | "deploy-token"
    ) || is_token_of_gitlab()
}

/// Whether a caller's `X-Request-Id` can be kept: 1 to 255 characters that Rails keeps too
/// (its `RequestId` middleware drops all others, and the two logs would not meet).
pub fn is_request_id(value: &[u8]) -> bool {
    (1..=255).contains(&value.len())
        && value.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'@'))
}

/// The correlation id of one request.
///
/// tower-http's `SetRequestId` and `PropagateRequestId` would keep an id that Rails drops, and cost 3,500
/// instructions a request, this 1,200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// The caller's.
    Received(HeaderValue),
    /// As text, since not every request needs a header value of it.
    Generated([u8; 32]),
}

impl RequestId {
    /// The caller's id, if Rails would keep it, too; else a random one.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        match headers.get(&REQUEST_ID) {
            Some(id) if is_request_id(id.as_bytes()) => Self::Received(id.clone()),
            _ => Self::random(),
        }
    }

    fn random() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut random = fastrand::u128(..);
        Self::Generated(std::array::from_fn(|_| {
            let digit = DIGITS.get((random & 0xf) as usize).copied().unwrap_or(b'0');
            random >>= 4;
            digit
        }))
    }

    /// As the value of `X-Request-Id`.
    pub fn to_value(&self) -> HeaderValue {
        match self {
            Self::Received(id) => id.clone(),
            Self::Generated(id) => HeaderValue::from_bytes(id).unwrap_or(HeaderValue::from_static("-")),
        }
    }

    /// `-` in place of an id that is not text, which [`is_request_id`] excludes.
    pub fn as_str(&self) -> &str {
        let bytes = match self {
            Self::Received(id) => id.as_bytes(),
            Self::Generated(id) => id.as_slice(),
        };
        std::str::from_utf8(bytes).unwrap_or("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Mine"),
            ("connection", "x-other"),
            ("x-mine", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("content-type", "application/json"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("content-type", "application/json")]));
    }

    #[test]
    fn connection_cannot_remove_headers_of_the_gateway() {
        let pairs =
            [("connection", "x-forwarded-for, x-forwarded-proto"), ("x-forwarded-for", "203.0.113.7")];
        let mut headers = map(&pairs);
        prepare_for_upstream(&mut headers, Some("127.0.0.1".parse().unwrap()), ClientScheme::Http);
        assert_eq!(headers.get("x-forwarded-for").unwrap(), "203.0.113.7, 127.0.0.1");
        assert_eq!(headers.get("x-forwarded-proto").unwrap(), "http");
    }

    #[test]
    fn trailers_are_requested_if_the_client_accepts_them() {
        for (connection, te, is_accepted) in [
            ("TE", "trailers", true),
            ("close, te", "trailers", true),
            ("close", "gzip, trailers", true),
            ("TE", "gzip", false),
        ] {
            let mut headers = map(&[("connection", connection), ("te", te)]);
            prepare_for_upstream(&mut headers, None, ClientScheme::Http);
            let sent = [header::TE, header::CONNECTION].map(|name| headers.get(name).cloned());
            let wanted = ["trailers", "TE"].map(|value| Some(HeaderValue::from_static(value)));
            assert_eq!(sent == wanted, is_accepted, "{connection} {te}: {headers:?}");
            assert_eq!(sent == [None, None], !is_accepted, "{connection} {te}: {headers:?}");
        }
    }

    #[test]
    fn connection_cannot_remove_a_credential() {
        let mut headers = map(&[("connection", "gitlab-shared-secret"), ("gitlab-shared-secret", "x")]);
        strip_hop_by_hop(&mut headers);
        assert!(headers.contains_key(&SHARED_SECRET));
    }

    #[test]
    fn the_peer_is_appended_to_the_chain() {
        let mut headers = map(&[("host", "gw:8181"), ("x-forwarded-for", "203.0.113.7")]);
        prepare_for_upstream(&mut headers, Some("127.0.0.1".parse().unwrap()), ClientScheme::Http);
        assert_eq!(headers.get("x-forwarded-for").unwrap(), "203.0.113.7, 127.0.0.1");
        assert_eq!(headers.get("x-forwarded-proto").unwrap(), "http");
        assert_eq!(headers.get("x-forwarded-host").unwrap(), "gw:8181");
    }

    #[test]
    fn the_forwarded_host_is_the_one_of_the_request_or_none() {
        for (host, forwarded) in [
            (Some("gw"), Some("gw")),
            (Some("gw:"), Some("gw")),
            (Some("[::1]:"), Some("[::1]")),
            (None, None),
        ] {
            let mut headers = map(&[("x-forwarded-host", "evil.example")]);
            headers.extend(host.map(|host| (header::HOST, HeaderValue::from_static(host))));
            prepare_for_upstream(&mut headers, None, ClientScheme::Http);
            assert_eq!(headers.get("x-forwarded-host").map(|host| host.to_str().unwrap()), forwarded);
        }
    }

    #[test]
    fn a_unix_peer_has_no_address_and_is_not_appended_to_the_chain() {
        let mut headers = map(&[("x-forwarded-for", "203.0.113.7")]);
        prepare_for_upstream(&mut headers, None, ClientScheme::Http);
        assert_eq!(headers.get("x-forwarded-for").unwrap(), "203.0.113.7");
    }

    #[test]
    fn a_callers_request_id_is_kept_only_if_rails_would_keep_it() {
        let received = map(&[("x-request-id", "01ARZ3NDEKTSV4RRFFQ69G5FAV")]);
        assert_eq!(RequestId::from_headers(&received).as_str(), "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        assert_eq!(RequestId::from_headers(&received).to_value(), "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        for bad in ["", "a b", "{\"x\":1}"] {
            let generated = RequestId::from_headers(&map(&[("x-request-id", bad)]));
            assert!(is_request_id(generated.as_str().as_bytes()));
            assert_eq!(generated.to_value(), generated.as_str());
            assert_ne!(generated.as_str(), bad);
        }
        let none = HeaderMap::new();
        assert_ne!(RequestId::from_headers(&none), RequestId::from_headers(&none));
    }

    #[test]
    fn request_ids_that_rails_would_change_are_not_kept() {
        assert!(is_request_id(b"01ARZ3NDEKTSV4RRFFQ69G5FAV"));
        for bad in [&b""[..], b"a b", b"a\"b", b"a.b", &[b'a'; 256]] {
            assert!(!is_request_id(bad));
        }
    }
}
