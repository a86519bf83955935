//! Query strings and form bodies, read as Rack 2 reads them, and wherever Rack's leniency could
//! make Rails see something else: said so, instead of guessed (contract §2.4).
//!
//! One pass; what is kept are a few plain pairs and the credential, whatever the length: forms are read here
//! whose senders have shown nothing yet.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2, memmem};

/// The parameters of a query string or form body, in their order.
#[derive(Debug)]
pub struct Params<'a> {
    /// No more than [`MOST`]: longer lists are not plain, and only the credential counts.
    pairs: Vec<Pair<'a>>,
    secret_token: Option<Pair<'a>>,
    clear: bool,
    plain: bool,
}

/// One parameter, as it was sent.
#[derive(Debug)]
pub struct Pair<'a> {
    /// Names with escapes are looked at, but not kept.
    name: &'a [u8],
    raw_value: Option<&'a [u8]>,
}

impl<'a> Pair<'a> {
    /// The name.
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// The decoded value; `None` for a bare name without `=`, which Rack reads as `nil`.
    pub fn value(&self) -> Option<Cow<'a, [u8]>> {
        self.raw_value.and_then(decode)
    }
}

/// What Rails would take for the parameter `secret_token`.
#[derive(Debug, PartialEq, Eq)]
pub enum SecretToken<'a> {
    /// Not there.
    Absent,
    /// There without a value, which hides what came before, and makes Rails look further.
    Nil,
    /// There, perhaps empty.
    Given(Cow<'a, [u8]>),
    /// Written in a way that Rack versions read differently.
    Ambiguous,
}

impl<'a> Params<'a> {
    /// Splits `raw` into parameters.
    pub fn parse(raw: &'a [u8]) -> Self {
        let mut params = Self { pairs: Vec::new(), secret_token: None, clear: true, plain: true };
        if raw.is_empty() {
            return params;
        }
        // Rack 2 splits at `;` too and strips spaces behind a separator; Rack 3 does neither.
        params.clear = memchr(b';', raw).is_none();
        let mut begin = 0;
        for end in memchr_iter(b'&', raw).chain([raw.len()]) {
            params.push(raw.get(begin..end).unwrap_or_default(), begin == 0);
            begin = end + 1;
        }
        params.plain &= params.clear;
        params
    }

    fn push(&mut self, piece: &'a [u8], is_first: bool) {
        if piece.is_empty() {
            self.plain = false;
            return;
        }
        self.clear &= is_first || !piece.starts_with(b" ");
        let (name, raw_value) = match memchr(b'=', piece) {
            Some(equals) => (piece.get(..equals).unwrap_or_default(), piece.get(equals + 1..)),
            None => (piece, None),
        };
        if !has_good_escapes(name) || !raw_value.is_none_or(has_good_escapes) {
            // It is an error in Rack; what became of the parameter is unknown.
            self.clear = false;
            return;
        }
        // `secret_token[]`, `[secret_token]` and `secret%5ftoken` all reach Rails as one name.
        let is_secret = name == SECRET_TOKEN;
        self.clear &= is_secret || !has_secret_token(name);
        let pair = Pair { name, raw_value };
        if is_secret {
            self.plain &= self.secret_token.is_none();
            self.secret_token = Some(pair);
            return;
        }
        let is_word = name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
        self.plain &= is_word && self.pairs.len() < MOST;
        // Once the list is not plain, nobody looks at it again.
        if self.plain {
            self.plain = !self.pairs.iter().any(|other| other.name == pair.name);
            self.pairs.push(pair);
        }
    }

    /// The credential among the parameters: the last one of that name wins, as in Rack.
    pub fn secret_token(&self) -> SecretToken<'a> {
        if !self.clear {
            return SecretToken::Ambiguous;
        }
        match &self.secret_token {
            None => SecretToken::Absent,
            Some(last) => last.value().map_or(SecretToken::Nil, SecretToken::Given),
        }
    }

    /// The parameters apart from the credential, if every name is a plain word that occurs once
    /// and nothing about them is open to interpretation. `None` means: do not cache.
    pub fn plain(&self) -> Option<impl Iterator<Item = &Pair<'a>>> {
        self.plain.then(|| self.pairs.iter())
    }
}

/// The same parameters without the credential, byte for byte; `None` if there is none among them.
pub fn without_secret_token(raw: &[u8]) -> Option<Vec<u8>> {
    let is_other = |piece: &&[u8]| piece.split(|byte| *byte == b'=').next() != Some(SECRET_TOKEN);
    let mut kept = Vec::with_capacity(raw.len());
    for (index, piece) in raw.split(|byte| *byte == b'&').filter(is_other).enumerate() {
        if index > 0 {
            kept.push(b'&');
        }
        kept.extend_from_slice(piece);
    }
    (kept.len() < raw.len()).then_some(kept)
}

/// More parameters than any cacheable endpoint has.
const MOST: usize = 8;

const SECRET_TOKEN: &[u8] = b"secret_token";

/// Form decoding: `+` is a space, `%` begins two hex digits. `None` for a broken escape.
fn decode(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = memchr2(b'%', b'+', raw) else { return Some(Cow::Borrowed(raw)) };
    let mut decoded = Vec::with_capacity(raw.len());
    let (mut rest, mut next) = (raw, Some(first));
    while let Some(at) = next {
        let (before, after) = rest.split_at(at);
        decoded.extend_from_slice(before);
        rest = match after {
            [b'+', rest @ ..] => {
                decoded.push(b' ');
                rest
            }
            [b'%', high, low, rest @ ..] => {
                decoded.push(hex(*high)? << 4 | hex(*low)?);
                rest
            }
            _ => return None,
        };
        next = memchr2(b'%', b'+', rest);
    }
    decoded.extend_from_slice(rest);
    Some(Cow::Owned(decoded))
}

/// Whether the word is in the decoded name.
fn has_secret_token(raw_name: &[u8]) -> bool {
    if memchr2(b'%', b'+', raw_name).is_none() {
        return memmem::find(raw_name, SECRET_TOKEN).is_some();
    }
    let (mut rest, mut matched) = (raw_name, 0);
    while let [first, after @ ..] = rest {
        let (mut byte, mut next) = (*first, after);
        if let (b'%', [high, low, after @ ..]) = (byte, after)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            (byte, next) = (high << 4 | low, after);
        }
        // The first letter of the word comes once in it, so what does not go on can only begin anew.
        matched = match SECRET_TOKEN.get(matched) {
            Some(expected) if *expected == byte => matched + 1,
            _ => usize::from(SECRET_TOKEN.first() == Some(&byte)),
        };
        if matched == SECRET_TOKEN.len() {
            return true;
        }
        rest = next;
    }
    false
}

fn has_good_escapes(raw: &[u8]) -> bool {
    memchr_iter(b'%', raw).all(|at| {
        let digit = |offset: usize| raw.get(at + offset).and_then(|digit| hex(*digit));
        digit(1).is_some() && digit(2).is_some()
    })
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credential_is_the_last_of_its_name() {
        let given = |value: &'static str| SecretToken::Given(value.as_bytes().into());
        for (raw, expected) in [
            ("", SecretToken::Absent),
            ("key=a", SecretToken::Absent),
            ("secret_token", SecretToken::Nil),
            ("secret_token=", given("")),
            ("secret_token=s3cret", given("s3cret")),
            ("a=1&secret_token=s%33cret%0A", given("s3cret\n")),
            ("secret_token=bad&secret_token=s3cret", given("s3cret")),
            ("secret_token=s3cret&secret_token=bad", given("bad")),
            ("secret_token=s3cret&secret_token", SecretToken::Nil),
            ("secret_token=a=b", given("a=b")),
            ("scopes[]=read_user&secret_token=x", given("x")),
        ] {
            assert_eq!(Params::parse(raw.as_bytes()).secret_token(), expected, "{raw}");
        }
    }

    #[test]
    fn what_rack_versions_read_differently_is_ambiguous() {
        for raw in [
            "a=1;secret_token=x",
            "secret_token=x;b=1",
            "a=1& secret_token=x",
            "secret%5ftoken=x",
            "secret_token[]=x",
            "[secret_token]=x",
            "secret_token=x&secret_token[a]=y",
            "secret_token=%",
            "secret_token=%zz",
            "a=%f",
        ] {
            let params = Params::parse(raw.as_bytes());
            assert_eq!(params.secret_token(), SecretToken::Ambiguous, "{raw}");
            assert!(params.plain().is_none(), "{raw}");
        }
    }

    #[test]
    fn the_credential_can_be_left_out() {
        for (raw, without) in [
            ("secret_token=x", Some("")),
            ("secret_token", Some("")),
            ("a=1&secret_token=x&b=%20", Some("a=1&b=%20")),
            ("secret_token=x&secret_token=y&a", Some("a")),
            ("a=secret_token&secret_tokens=1", None),
            ("", None),
        ] {
            let found = without_secret_token(raw.as_bytes());
            assert_eq!(found.as_deref(), without.map(str::as_bytes), "{raw}");
        }
    }

    #[test]
    fn a_long_list_is_not_plain_and_not_kept() {
        let names: Vec<String> = (0..100_000).map(|number| format!("a{number}")).collect();
        let long = names.join("&") + "&secret_token=s3cret";
        let params = Params::parse(long.as_bytes());
        assert!(params.plain().is_none());
        assert_eq!(params.pairs.len(), MOST);
        assert_eq!(params.secret_token(), SecretToken::Given(b"s3cret"[..].into()));
    }

    /// The word is looked for in names without decoding them.
    #[test]
    fn the_credential_is_seen_in_any_disguise() {
        for (name, is_there) in [
            ("secret%5ftoken", true),
            ("%73ecret_token", true),
            ("secret_toke%6E", true),
            ("%73%65%63%72%65%74%5F%74%6F%6B%65%6E", true),
            ("a%5Bsecret_token%5D", true),
            ("+secret_token+", true),
            ("secret_%73ecret_token", true),
            ("%20ssecret_token", true),
            ("secresecret_token%20", true),
            ("secret%25ftoken", false),
            ("secret+token", false),
            ("secret_toke%20n", false),
            ("%", false),
            ("secret_token%", true),
        ] {
            assert_eq!(has_secret_token(name.as_bytes()), is_there, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn it_is_seen_where_a_decoded_name_has_it(name in "([secrt_okn]|secret|_token|%5[fF]|%73|%6[5e]|[+]){0,12}") {
            let decoded = decode(name.as_bytes()).unwrap();
            let is_there = memmem::find(&decoded, SECRET_TOKEN).is_some();
            proptest::prop_assert_eq!(has_secret_token(name.as_bytes()), is_there);
        }
    }

    #[test]
    fn plain_parameters_are_single_words_with_text_values() {
        let params = Params::parse(b"key=a%2Bb&secret_token=x&z");
        let plain: Vec<_> = params.plain().unwrap().map(|p| (p.name().to_vec(), p.value())).collect();
        assert_eq!(plain[0].0, b"key");
        assert_eq!(plain[0].1.as_deref(), Some(&b"a+b"[..]));
        assert_eq!((plain[1].0.as_slice(), plain[1].1.is_none()), (&b"z"[..], true));
        assert_eq!(plain.len(), 2);
        for raw in ["key=a&key=b", "key[]=a", "&", "key=a&&b=1", "k%65y=a", "k+y=a", "=a&=b"] {
            assert!(Params::parse(raw.as_bytes()).plain().is_none(), "{raw}");
        }
    }
}
