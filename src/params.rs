//! Query strings and form bodies, read as every Rack since 2.0 reads them. Where two of those releases read the
//! credential differently, it is reported as ambiguous (contract §2.4), and where one reads another credential than
//! Rack 2 does, the parameters are not plain, so that Rails decides. A table in the tests shows where they do.
//!
//! One pass, and bounded memory whatever the length, since forms of unauthenticated clients are read here: only
//! a few plain parameters and the credential are kept.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2};

/// The parameters of a query string or form body, in their order.
#[derive(Debug)]
pub struct Params<'a> {
    /// At most [`MAX_PARAMS`]: longer lists are not plain, and only the credential counts.
    list: Vec<Param<'a>>,
    secret_token: Option<Param<'a>>,
    is_unambiguous: bool,
    is_plain: bool,
}

/// One parameter, as it was sent.
#[derive(Debug)]
pub struct Param<'a> {
    /// Names with escapes are checked, but not kept.
    name: &'a [u8],
    raw_value: Option<&'a [u8]>,
}

impl<'a> Param<'a> {
    /// As it was sent.
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// Decoded. `None` for a bare name without `=`, which Rack reads as `nil`.
    pub fn value(&self) -> Option<Cow<'a, [u8]>> {
        self.raw_value.and_then(decode)
    }
}

/// The parameter `secret_token` as Rails would read it.
#[derive(Debug, PartialEq, Eq)]
pub enum SecretToken<'a> {
    /// There is none.
    Absent,
    /// Without a value, which hides earlier ones, and makes Rails look further.
    Nil,
    /// With a value, perhaps empty.
    Text(Cow<'a, [u8]>),
    /// Written in a way that releases of Rack read differently.
    Ambiguous,
}

impl<'a> Params<'a> {
    /// Splits `raw` into parameters.
    pub fn parse(raw: &'a [u8]) -> Self {
        let mut parsed = Self { list: Vec::new(), secret_token: None, is_unambiguous: true, is_plain: true };
        if raw.is_empty() {
            return parsed;
        }
        let has_semicolon = memchr(b';', raw).is_some();
        let mut begin = 0;
        for end in memchr_iter(b'&', raw).chain([raw.len()]) {
            let piece = raw.get(begin..end).unwrap_or_default();
            // Rack 2 splits a query at `;` too, Rack 3 does not: the credential must not be next to one.
            parsed.is_unambiguous &= !has_semicolon || !is_split_credential(piece);
            parsed.push(piece, begin == 0);
            begin = end + 1;
        }
        parsed.is_plain &= parsed.is_unambiguous && !has_semicolon;
        parsed
    }

    fn push(&mut self, piece: &'a [u8], is_first: bool) {
        if piece.is_empty() {
            self.is_plain = false;
            return;
        }
        // Every Rack drops spaces behind a separator, and still they are refused: no client sends any, and a reader
        // between here and Rails that keeps them would find another name.
        self.is_unambiguous &= is_first || !piece.starts_with(b" ");
        let (name, raw_value) = match memchr(b'=', piece) {
            Some(equals) => (piece.get(..equals).unwrap_or_default(), piece.get(equals + 1..)),
            None => (piece, None),
        };
        if !has_good_escapes(name) || !raw_value.is_none_or(has_good_escapes) {
            // An error in Rack; what would become of the parameter is unknown.
            self.is_unambiguous = false;
            return;
        }
        let param = Param { name, raw_value };
        match ParamName::of(name) {
            ParamName::Credential => {
                // Without a value, it is an empty text to Rack 3.0.0 to 3.0.6, which Rails refuses.
                let is_plain = name == SECRET_TOKEN && raw_value.is_some();
                self.is_plain &= is_plain && self.secret_token.is_none();
                self.secret_token = Some(param);
                return;
            }
            ParamName::Ambiguous => self.is_unambiguous = false,
            ParamName::Other => {}
        }
        let is_word = name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
        self.is_plain &= is_word && self.list.len() < MAX_PARAMS;
        // Once the list is not plain, it is not used any more.
        if self.is_plain {
            self.is_plain = !self.list.iter().any(|other| other.name == param.name);
            self.list.push(param);
        }
    }

    /// The credential among the parameters: the last one of that name wins, as in Rack.
    pub fn secret_token(&self) -> SecretToken<'a> {
        if !self.is_unambiguous {
            return SecretToken::Ambiguous;
        }
        match &self.secret_token {
            None => SecretToken::Absent,
            Some(last) => last.value().map_or(SecretToken::Nil, SecretToken::Text),
        }
    }

    /// The parameters without the credential, if each name is a plain word that occurs once and all
    /// releases of Rack read them alike. `None` means: do not cache.
    pub fn plain(&self) -> Option<impl Iterator<Item = &Param<'a>>> {
        self.is_plain.then(|| self.list.iter())
    }
}

/// The same parameters without the credential, byte for byte; `None` if there is none among them.
pub fn without_secret_token(raw: &[u8]) -> Option<Vec<u8>> {
    let is_other = |piece: &&[u8]| {
        !matches!(
            ParamName::of(piece.split(|byte| *byte == b'=').next().unwrap_or_default()),
            ParamName::Credential
        )
    };
    let mut kept = Vec::with_capacity(raw.len());
    for (index, piece) in raw.split(|byte| *byte == b'&').filter(is_other).enumerate() {
        if index > 0 {
            kept.push(b'&');
        }
        kept.extend_from_slice(piece);
    }
    (kept.len() < raw.len()).then_some(kept)
}

/// More than any cacheable endpoint has.
const MAX_PARAMS: usize = 8;

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

/// Whether a parameter's name is that of the credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParamName {
    /// It is, to every Rack: as it is, or percent-encoded in part.
    Credential,
    /// It is to some, or the credential would be a list or a hash there: `[secret_token]`, `secret_token]` and
    /// the like, of which Rack 2 drops the brackets; `secret_token[]`.
    Ambiguous,
    /// It is not, to any Rack. `secret_token[` is such a name: one bracket at the end is a part of it.
    Other,
}

impl ParamName {
    /// Decodes as it goes. Few names are long enough, and fewer begin with the word.
    fn of(raw_name: &[u8]) -> Self {
        if raw_name.len() < SECRET_TOKEN.len() {
            return Self::Other;
        }
        let is_bracket = |byte: &u8| matches!(byte, b'[' | b']');
        let mut decoded = Decoded(raw_name).peekable();
        let mut has_brackets = false;
        while decoded.next_if(is_bracket).is_some() {
            has_brackets = true;
        }
        if !SECRET_TOKEN.iter().all(|expected| decoded.next() == Some(*expected)) {
            return Self::Other;
        }
        match decoded.next() {
            None if !has_brackets => Self::Credential,
            None => Self::Ambiguous,
            Some(byte) if is_bracket(&byte) => {
                let mut brackets = std::iter::once(byte).chain(decoded).skip_while(|byte| *byte == b']');
                let is_unclosed = brackets.next() == Some(b'[') && brackets.next().is_none();
                if is_unclosed { Self::Other } else { Self::Ambiguous }
            }
            Some(_) => Self::Other,
        }
    }
}

/// The bytes of a name, decoded. A broken escape stands for itself.
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (byte, rest) = match self.0 {
            [] => return None,
            [b'+', rest @ ..] => (b' ', rest),
            [b'%', high, low, rest @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, rest),
                _ => (b'%', self.0.get(1..).unwrap_or_default()),
            },
            [byte, rest @ ..] => (*byte, rest),
        };
        self.0 = rest;
        Some(byte)
    }
}

/// Whether a piece that Rack 2 splits at `;` and Rack 3 does not is, or has, the credential to one of them.
fn is_split_credential(piece: &[u8]) -> bool {
    if memchr(b';', piece).is_none() {
        return false;
    }
    piece.split(|byte| *byte == b';').any(|part| {
        let spaces = part.iter().take_while(|byte| **byte == b' ').count();
        let name = part.get(spaces..).unwrap_or_default().split(|byte| *byte == b'=').next();
        ParamName::of(name.unwrap_or_default()) != ParamName::Other
    })
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
mod tests;
