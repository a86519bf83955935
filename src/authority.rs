//! `host` or `host:port`, read strictly (RFC 3986 §3.2.2 and §3.2.3, RFC 9110 §7.2).

use http::uri::Authority;

/// The host, without brackets, and the port, if there is one. `None` for anything else: no host,
/// a user, a colon without a number, a number that is no port.
pub fn parse(text: &str) -> Option<(&str, Option<u16>)> {
    // Nearly every host has only these characters, which are valid at any position.
    let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':'));
    let after_host = if is_plain { 0 } else { end_of_bracketed_host(text)? };
    let rest = text.get(after_host..)?;
    let (host, port) = match rest.bytes().position(|b| b == b':') {
        // After a bracketed address only a port may follow.
        None if after_host > 0 && !rest.is_empty() => return None,
        None => (text, None),
        Some(colon) => {
            let (host, port) = text.split_at(after_host + colon);
            let digits = port.get(1..)?;
            (host, Some(digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??))
        }
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!bare.is_empty()).then_some((bare, port))
}

/// The same for the value of a `Host`, where the port after the colon may be empty (RFC 3986 §3.2.3).
pub fn parse_host_header(text: &str) -> Option<(&str, Option<u16>)> {
    match text.strip_suffix(':') {
        Some(bare) => parse(bare).filter(|(_, port)| port.is_none()),
        None => parse(text),
    }
}

/// The end of the brackets of a host, 0 without any; `None` if the host is not valid.
fn end_of_bracketed_host(text: &str) -> Option<usize> {
    text.parse::<Authority>().ok()?;
    (!text.contains('@')).then(|| text.rfind(']').map_or(0, |bracket| bracket + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_a_port() {
        for (text, parsed) in [
            ("a", ("a", None)),
            ("a:80", ("a", Some(80))),
            ("127.0.0.1:8181", ("127.0.0.1", Some(8181))),
            ("[::1]", ("::1", None)),
            ("[::1]:80", ("::1", Some(80))),
        ] {
            assert_eq!(parse(text), Some(parsed), "{text}");
        }
        for bad in [
            "", ":80", "a:", "a:b", "a:99999", "a:+1", "a:1:2", "u@a", "a b", "a/b", "a?", "[]", "[::1]x",
            "::1",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for (text, parsed) in [
            ("a", Some(("a", None))),
            ("a:", Some(("a", None))),
            ("a:80", Some(("a", Some(80)))),
            ("[::1]:", Some(("::1", None))),
            ("127.0.0.1:", Some(("127.0.0.1", None))),
            (":", None),
            ("", None),
            ("a::", None),
            ("a:80:", None),
            ("::1", None),
            ("u@a:", None),
        ] {
            assert_eq!(parse_host_header(text), parsed, "{text}");
        }
    }
}
