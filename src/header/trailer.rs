//! Trailers: fields after a body, announced in the head by `Trailer` (RFC 9110 §6.5, §6.6.2).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::name::{is_end_to_end_always, is_hop_by_hop, is_spoofable, names_in};

/// Whether a field may be a trailer. Fields of framing, routing and authentication may not (RFC 9110 §6.5.1):
/// the gateway has used the headers by then, and a reader that merges trailers into the headers would decide
/// differently.
pub fn is_allowed(name: &HeaderName) -> bool {
    let text = name.as_str();
    // Rack, and others that make variables of headers, take an underscore for a dash.
    !(text.contains('_')
        || text.ends_with("-token")
        || is_hop_by_hop(text)
        || is_spoofable(text)
        || is_end_to_end_always(name)
        || ["gitlab-", "x-gitlab-", "x-forwarded-", "content-", "if-", "proxy-"]
            .iter()
            .any(|begin| text.starts_with(begin))
        || matches!(
            text,
            "age"
                | "cache-control"
                | "cache-status"
                | "cookie"
                | "date"
                | "expect"
                | "expires"
                | "location"
                | "max-forwards"
                | "range"
                | "remote-user"
                | "retry-after"
                | "set-cookie"
                | "trailer"
                | "vary"
                | "www-authenticate"
        ))
}

/// Removes the names from `Trailer` that are not allowed as trailers.
pub fn retain_allowed_names(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = names_in(headers, &header::TRAILER).filter(is_allowed).collect();
    headers.remove(header::TRAILER);
    for name in names {
        headers.append(header::TRAILER, HeaderValue::from(name));
    }
}

/// Removes the trailers that are not allowed.
pub fn retain_allowed(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers.keys().filter(|name| !is_allowed(name)).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

/// Whether the sender of these headers accepts trailers (RFC 9110 §10.1.4).
pub fn are_accepted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_the_gateway_or_rails_interpret_are_not_allowed() {
        for (name, may) in [
            ("x-checksum", true),
            ("digest", true),
            ("server-timing", true),
            ("gitlab-shared-secret", false),
            ("gitlab-kas-api-request", false),
            ("x-gitlab-token", false),
            ("gitlab_shared_secret", false),
            ("content_length", false),
            ("private-token", false),
            ("x-csrf-token", false),
            ("remote-user", false),
            ("authorization", false),
            ("x-forwarded-for", false),
            ("x-real-ip", false),
            ("x-http-method-override", false),
            ("x-request-id", false),
            ("host", false),
            ("content-length", false),
            ("transfer-encoding", false),
            ("trailer", false),
            ("connection", false),
            ("set-cookie", false),
            ("cache-control", false),
        ] {
            assert_eq!(is_allowed(&HeaderName::from_static(name)), may, "{name}");
        }
    }

    #[test]
    fn names_that_are_not_allowed_are_not_announced() {
        let mut headers = HeaderMap::new();
        for value in ["X-One, Gitlab-Shared-Secret", "x-two,,a b, host"] {
            headers.append(header::TRAILER, HeaderValue::from_static(value));
        }
        retain_allowed_names(&mut headers);
        let left: Vec<_> = headers.get_all(header::TRAILER).iter().collect();
        assert_eq!(left, ["x-one", "x-two"]);
        headers.insert(header::TRAILER, HeaderValue::from_static("host"));
        retain_allowed_names(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn te_says_whether_trailers_are_accepted() {
        for (value, are) in
            [("trailers", true), ("gzip;q=0.5, Trailers", true), ("gzip", false), ("x-trailers", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::TE, HeaderValue::from_static(value));
            assert_eq!(are_accepted(&headers), are, "{value}");
        }
    }
}
