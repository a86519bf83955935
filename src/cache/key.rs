//! Under which key an answer is stored. There is one constructor, and it is complete: everything
//! that can change the answer is in the key, or the request is not cached at all.
//!
//! Rails looks keys up by a digest of what a lenient Base64 decoder makes of `key` (contract
//! §3.1), finds users by ids that it casts leniently (§3.2), and lets odd parameters shadow each
//! other (§2.4). So only canonical spellings get a key here; the rest is forwarded.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;

use crate::params::{Param, Params};
use crate::route::Caching;
use crate::strict_base64;

/// Distinct questions have distinct keys: by variant, then by value. Snapshots store the variants by their
/// order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
pub enum Key {
    /// SHA-256 of the whole SSH public key blob. Never a part of it: sshd trusts the answer.
    SshKey([u8; 32]),
    /// The user who owns the key row with this id.
    UserOfKey(u64),
    /// The user with this id.
    UserById(u64),
    /// The user with this name, by exact bytes.
    UserByName(Box<str>),
    /// The instance.
    Instance,
}

impl Key {
    /// The key of a request to a cacheable endpoint, or `None` if it must not be cached: any
    /// parameter but the one expected (and the credential), or one that is not canonical.
    pub fn new(caching: Caching, params: &Params<'_>) -> Option<Self> {
        if caching == Caching::Never {
            return None;
        }
        let mut params = params.plain()?;
        let first = params.next();
        if params.next().is_some() {
            return None;
        }
        let value = match first {
            None => None,
            Some(param) => Some(param.value()?),
        };
        match (caching, first.map(Param::name), value.as_deref()) {
            (Caching::AuthorizedKeys, Some(b"key"), Some(value)) => ssh_key(value),
            (Caching::Discover, Some(b"key_id"), Some(value)) => parse_id(value).map(Self::UserOfKey),
            (Caching::Discover, Some(b"user_id"), Some(value)) => parse_id(value).map(Self::UserById),
            (Caching::Discover, Some(b"username"), Some(value)) => {
                parse_username(value).map(Self::UserByName)
            }
            (Caching::Check, None, None) => Some(Self::Instance),
            _ => None,
        }
    }
}

impl Key {
    /// The key of an SSH key, in strict Base64 with or without padding.
    pub fn of_ssh_key(base64: &[u8]) -> Option<Self> {
        ssh_key(base64)
    }

    /// The endpoint whose answers are stored under it.
    pub const fn caching(&self) -> Caching {
        match self {
            Self::SshKey(_) => Caching::AuthorizedKeys,
            Self::UserOfKey(_) | Self::UserById(_) | Self::UserByName(_) => Caching::Discover,
            Self::Instance => Caching::Check,
        }
    }

    /// As the parameter that asks for it; an SSH key as `ssh-keygen -l` prints it.
    pub(super) fn display_name(&self) -> String {
        match self {
            Self::SshKey(digest) => format!("SHA256:{}", STANDARD_NO_PAD.encode(digest)),
            Self::UserOfKey(id) => format!("key_id={id}"),
            Self::UserById(id) => format!("user_id={id}"),
            Self::UserByName(name) => format!("username={name}"),
            Self::Instance => "check".to_owned(),
        }
    }

    /// The id of the key row whose owner is asked for.
    pub(super) fn key_row_id(&self) -> Option<u64> {
        if let Self::UserOfKey(id) = self { Some(*id) } else { None }
    }

    /// Bytes that it has outside itself.
    pub(super) fn heap_bytes(&self) -> usize {
        if let Self::UserByName(name) = self { name.len() } else { 0 }
    }

    /// Whether a positive answer belongs to this question, as far as it says so. A connection on which
    /// answers have slipped by one would give each caller the next one's identity.
    pub fn is_answered_by(&self, body: &Value) -> bool {
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        match self {
            // `<type> <Base64> <owner> (<host>)`
            Self::SshKey(_) => {
                let blob = text("key").and_then(|line| line.split_ascii_whitespace().nth(1));
                blob.and_then(|blob| ssh_key(blob.as_bytes())).as_ref() == Some(self)
            }
            Self::UserById(id) => body.get("id").and_then(Value::as_u64) == Some(*id),
            Self::UserByName(name) => text("username").is_some_and(|is| is.eq_ignore_ascii_case(name)),
            Self::UserOfKey(_) | Self::Instance => true,
        }
    }
}

fn ssh_key(base64: &[u8]) -> Option<Key> {
    let blob = strict_base64::decode(base64).filter(|blob| !blob.is_empty())?;
    digest(&SHA256, &blob).as_ref().try_into().ok().map(Key::SshKey)
}

/// `[1-9][0-9]{0,18}`, the only spelling that Rails' integer cast does not change, within int64.
fn parse_id(text: &[u8]) -> Option<u64> {
    let is_canonical = !text.starts_with(b"0") && text.iter().all(u8::is_ascii_digit);
    let id = std::str::from_utf8(text).ok()?.parse::<u64>().ok()?;
    (is_canonical && i64::try_from(id).is_ok()).then_some(id)
}

/// The characters of a GitLab user name. Case is kept: Rails ignores it, so two spellings may be
/// two entries, which is safe; one entry for two users would not be.
fn parse_username(text: &[u8]) -> Option<Box<str>> {
    let is_allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let is_canonical = (1..=255).contains(&text.len()) && text.iter().all(is_allowed);
    std::str::from_utf8(text).ok().filter(|_| is_canonical).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    fn key(caching: Caching, query: &str) -> Option<Key> {
        Key::new(caching, &Params::parse(query.as_bytes()))
    }

    fn escape(text: &str) -> String {
        text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
    }

    #[test]
    fn the_fingerprint_is_the_one_that_ssh_keygen_prints() {
        let blob = "AAAAC3NzaC1lZDI1NTE5AAAAIGvUxsMLvN0yGZGFjpMyEIKPXpf4qFhJvZqgEf3PeFc1";
        let Some(Key::SshKey(digest)) = key(Caching::AuthorizedKeys, &format!("key={blob}")) else {
            unreachable!("a canonical key has a cache key");
        };
        let printed = STANDARD_NO_PAD.encode(digest);
        assert_eq!(printed, "BwxY5GRFfhOeYSi9JfasdLmlu/nxb4zQzc0PC/pmEXw");
    }

    #[test]
    fn queries_that_are_not_canonical_have_no_key() {
        for (caching, query) in [
            (Caching::AuthorizedKeys, ""),
            (Caching::AuthorizedKeys, "key="),
            (Caching::AuthorizedKeys, "key"),
            (Caching::AuthorizedKeys, "key=AAAA&fingerprint="),
            (Caching::AuthorizedKeys, "key=AAAA&key=BBBB"),
            (Caching::AuthorizedKeys, "key[]=AAAA"),
            (Caching::AuthorizedKeys, "key=AA+A"),
            (Caching::AuthorizedKeys, "key=AA-_"),
            (Caching::AuthorizedKeys, "key=AAAAA"),
            (Caching::AuthorizedKeys, "key=AB"),
            (Caching::AuthorizedKeys, "key=AAAA%0A"),
            (Caching::AuthorizedKeys, "key=ssh-rsa%20AAAA"),
            (Caching::AuthorizedKeys, "key=%ff"),
            (Caching::AuthorizedKeys, "key=AAAA;a=b"),
            (Caching::AuthorizedKeys, "k%65y=AAAA"),
            (Caching::AuthorizedKeys, "fingerprint=AAAA"),
            (Caching::Discover, ""),
            (Caching::Discover, "key_id=07"),
            (Caching::Discover, "key_id=0"),
            (Caching::Discover, "key_id=%207"),
            (Caching::Discover, "key_id=%2B7"),
            (Caching::Discover, "key_id=7abc"),
            (Caching::Discover, "key_id=7_0"),
            (Caching::Discover, "key_id=-7"),
            (Caching::Discover, "key_id="),
            (Caching::Discover, "key_id=9223372036854775808"),
            (Caching::Discover, "key_id=&username=root"),
            (Caching::Discover, "key_id=1&username=root"),
            (Caching::Discover, "username="),
            (Caching::Discover, "username=a%20b"),
            (Caching::Discover, "identifier=user-1"),
            (Caching::Discover, "key=1"),
            (Caching::Check, "a=1"),
            (Caching::Never, ""),
        ] {
            assert_eq!(key(caching, query), None, "{caching:?} {query}");
        }
    }

    #[test]
    fn the_credential_is_not_part_of_the_key() {
        assert_eq!(key(Caching::Check, "secret_token=x"), Some(Key::Instance));
        assert_eq!(key(Caching::Discover, "secret_token=x&key_id=7"), Some(Key::UserOfKey(7)));
    }

    #[test]
    fn an_answer_has_to_fit_its_question() {
        let key = |caching, query| key(caching, query).unwrap();
        let ssh = key(Caching::AuthorizedKeys, "key=AAAAC3Nz");
        for (key, answer, fits) in [
            (&ssh, r#"{"key":"ssh-ed25519 AAAAC3Nz R (host)"}"#, true),
            (&ssh, r#"{"key":"ssh-ed25519 AAAAC3Ny R (host)"}"#, false),
            (&ssh, r#"{"key":"AAAAC3Nz"}"#, false),
            (&ssh, r#"{"id":1}"#, false),
            (&key(Caching::Discover, "user_id=7"), r#"{"id":7}"#, true),
            (&key(Caching::Discover, "user_id=7"), r#"{"id":8}"#, false),
            (&key(Caching::Discover, "username=Root"), r#"{"username":"root"}"#, true),
            (&key(Caching::Discover, "username=root"), r#"{"username":"toor"}"#, false),
            (&key(Caching::Discover, "key_id=7"), r#"{"id":8}"#, true),
        ] {
            let answer = serde_json::from_str(answer).unwrap();
            assert_eq!(key.is_answered_by(&answer), fits, "{key:?} {answer}");
        }
    }

    #[test]
    fn kinds_do_not_mix() {
        let keys =
            ["key_id=1", "user_id=1", "username=1"].map(|query| key(Caching::Discover, query).unwrap());
        assert_ne!(keys[0], keys[1]);
        assert_ne!(keys[1], keys[2]);
        assert_ne!(keys[0], keys[2]);
    }

    proptest! {
        #[test]
        fn all_spellings_of_a_key_are_one_entry(blob in proptest::collection::vec(any::<u8>(), 1..600)) {
            let padded = STANDARD.encode(&blob);
            let bare = STANDARD_NO_PAD.encode(&blob);
            let one = key(Caching::AuthorizedKeys, &format!("key={}", escape(&padded)));
            prop_assert!(one.is_some());
            prop_assert_eq!(&one, &key(Caching::AuthorizedKeys, &format!("key={}", escape(&bare))));
            if !padded.contains('+') {
                prop_assert_eq!(&one, &key(Caching::AuthorizedKeys, &format!("key={padded}")));
            }
        }

        #[test]
        fn distinct_keys_never_share_an_entry(
            a in proptest::collection::vec(any::<u8>(), 1..80),
            b in proptest::collection::vec(any::<u8>(), 1..80),
        ) {
            let of = |blob: &[u8]| key(Caching::AuthorizedKeys, &format!("key={}", escape(&STANDARD.encode(blob))));
            prop_assert_eq!(a == b, of(&a) == of(&b));
        }

        #[test]
        fn no_query_whatever_makes_the_constructor_panic(raw in proptest::collection::vec(any::<u8>(), 0..120)) {
            for caching in [Caching::AuthorizedKeys, Caching::Discover, Caching::Check] {
                let _ = Key::new(caching, &Params::parse(&raw));
            }
        }
    }
}
