//! `Via`: the proxies that have forwarded a request (RFC 9110 §7.6.3), and how a gateway detects a loop.

use http::header::{self, HeaderMap, HeaderValue};
use memchr::memmem;

/// The name of a running gateway in the requests that it forwards; another gateway before or after it has
/// another name.
#[derive(Clone, Debug)]
pub struct Pseudonym {
    field: HeaderValue,
}

const PROTOCOL: &str = "1.1 ";

impl Pseudonym {
    /// A name that no other gateway has.
    pub fn random() -> Self {
        let field = format!("{PROTOCOL}railgate-{:016x}", fastrand::u64(..));
        // It has only letters, digits and such.
        Self { field: HeaderValue::from_str(&field).unwrap_or(HeaderValue::from_static("1.1 railgate")) }
    }

    /// Whether the gateway of this name has forwarded the request before.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let name = self.field.as_bytes().get(PROTOCOL.len()..).unwrap_or_default();
        headers.get_all(header::VIA).iter().any(|via| memmem::find(via.as_bytes(), name).is_some())
    }

    /// Appends the name to those of the proxies before.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        headers.append(header::VIA, self.field.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_knows_its_own_name_and_no_other() {
        let (one, other) = (Pseudonym::random(), Pseudonym::random());
        let mut headers = HeaderMap::new();
        assert!(!one.is_in(&headers));
        headers.insert(header::VIA, HeaderValue::from_static("1.0 fred, 1.1 railgate, 1.1 railgate-0"));
        assert!(!one.is_in(&headers));
        other.add_to(&mut headers);
        assert!(!one.is_in(&headers) && other.is_in(&headers));
        one.add_to(&mut headers);
        assert!(one.is_in(&headers) && other.is_in(&headers));
        let lines: Vec<_> = headers.get_all(header::VIA).iter().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "1.0 fred, 1.1 railgate, 1.1 railgate-0");
        // A proxy on the way may join the lines, and say more of each.
        let joined = format!("1.0 fred, HTTP/{} (comment), 1.1 nginx", one.field.to_str().unwrap());
        headers.insert(header::VIA, joined.parse().unwrap());
        assert!(one.is_in(&headers) && !other.is_in(&headers));
    }
}
