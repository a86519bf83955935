//! Trailers: fields behind a body, named in front of it by `Trailer` (RFC 9110 §6.5, §6.6.2).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::{is_end_to_end_always, is_hop_by_hop, is_spoofable, names_in};

/// Whether a field may come behind the body. Not those that say how a message is read, where it goes,
/// or who sends it (RFC 9110 §6.5.1): by then, all of that has been decided, and a reader that adds
/// them to the headers would decide anew.
pub fn may_trail(name: &HeaderName) -> bool {
    let text = name.as_str();
    // An underscore is a dash to Rack, and to others that make variables of headers.
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

/// Leaves those names in `Trailer` that may trail, and no others.
pub fn declare(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = names_in(headers, &header::TRAILER).filter(may_trail).collect();
    headers.remove(header::TRAILER);
    for name in names {
        headers.append(header::TRAILER, HeaderValue::from(name));
    }
}

/// Takes out of trailers what may not be there.
pub fn keep_allowed(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers.keys().filter(|name| !may_trail(name)).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

/// Whether the sender of these headers wants trailers (RFC 9110 §10.1.4).
pub fn are_wanted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_something_may_not_come_too_late() {
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
            assert_eq!(may_trail(&HeaderName::from_static(name)), may, "{name}");
        }
    }

    #[test]
    fn names_that_may_not_trail_are_not_declared() {
        let mut headers = HeaderMap::new();
        for value in ["X-One, Gitlab-Shared-Secret", "x-two,,a b, host"] {
            headers.append(header::TRAILER, HeaderValue::from_static(value));
        }
        declare(&mut headers);
        let left: Vec<_> = headers.get_all(header::TRAILER).iter().collect();
        assert_eq!(left, ["x-one", "x-two"]);
        headers.insert(header::TRAILER, HeaderValue::from_static("host"));
        declare(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn who_wants_trailers_says_so() {
        for (value, are) in
            [("trailers", true), ("gzip;q=0.5, Trailers", true), ("gzip", false), ("x-trailers", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::TE, HeaderValue::from_static(value));
            assert_eq!(are_wanted(&headers), are, "{value}");
        }
    }
}
