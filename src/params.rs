//! Query strings and form bodies, read as every Rack since 2.0 reads them, and wherever two of those releases
//! read the credential differently: said so, instead of guessed (contract §2.4). Where they differ, and where
//! not, is the table of the tests.
//!
//! One pass; what is kept are a few plain pairs and the credential, whatever the length: forms are read here
//! whose senders have shown nothing yet.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2};

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
        let has_semicolon = memchr(b';', raw).is_some();
        let mut begin = 0;
        for end in memchr_iter(b'&', raw).chain([raw.len()]) {
            let piece = raw.get(begin..end).unwrap_or_default();
            // Rack 2 splits a query at `;` too, Rack 3 does not: nothing of the credential may be near one.
            params.clear &= !has_semicolon || !is_split_credential(piece);
            params.push(piece, begin == 0);
            begin = end + 1;
        }
        params.plain &= params.clear && !has_semicolon;
        params
    }

    fn push(&mut self, piece: &'a [u8], is_first: bool) {
        if piece.is_empty() {
            self.plain = false;
            return;
        }
        // Rack 2.2.22 and 3.2.7 drop spaces behind a separator. No client sends any, and a reader that keeps
        // them would find another name.
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
        let pair = Pair { name, raw_value };
        match Name::of(name) {
            Name::Credential => {
                self.plain &= self.secret_token.is_none() && name == SECRET_TOKEN;
                self.secret_token = Some(pair);
                return;
            }
            Name::Ambiguous => self.clear = false,
            Name::Other => {}
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
    let is_other = |piece: &&[u8]| {
        !matches!(Name::of(piece.split(|byte| *byte == b'=').next().unwrap_or_default()), Name::Credential)
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

/// What a parameter's name means for the credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// It is the credential's, to every Rack: as it is, or with some of it encoded.
    Credential,
    /// It is to one of them, or the credential would be a list or a table there: `[secret_token]`,
    /// `secret_token]` and the like, which Rack 2 takes without the brackets; `secret_token[]`.
    Ambiguous,
    /// It is not to any.
    Other,
}

impl Name {
    /// Decodes as it goes. A name is long enough for the word in few cases, and seldom looked at further.
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
            Some(byte) if is_bracket(&byte) => Self::Ambiguous,
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

/// Whether a piece that is split at `;` by one reader and not by another is, or has, the credential to one of
/// them.
fn is_split_credential(piece: &[u8]) -> bool {
    if memchr(b';', piece).is_none() {
        return false;
    }
    piece.split(|byte| *byte == b';').any(|part| {
        let spaces = part.iter().take_while(|byte| **byte == b' ').count();
        let name = part.get(spaces..).unwrap_or_default().split(|byte| *byte == b'=').next();
        Name::of(name.unwrap_or_default()) != Name::Other
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
