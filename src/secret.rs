//! Secrets: loaded from files, compared in constant time, wiped when dropped, never shown.

use std::fmt;
use std::path::Path;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

use crate::file;

/// The text that GitLab Shell and Rails share (`.gitlab_shell_secret`).
#[derive(Clone)]
pub struct ShellSecret {
    bytes: Zeroizing<Vec<u8>>,
}

impl ShellSecret {
    /// Reads the secret as Rails does: the file's text less exactly one trailing line break.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::from_text(&read(path)?)
    }

    /// The secret in `text`, of which exactly one trailing line break is dropped.
    pub fn from_text(text: &[u8]) -> Result<Self, LoadError> {
        let bytes = chomp(text);
        if bytes.trim_ascii().is_empty() {
            return Err(LoadError::Empty);
        }
        if bytes.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace()) {
            return Err(LoadError::Control);
        }
        Ok(Self { bytes: Zeroizing::new(bytes.to_vec()) })
    }

    /// Whether a presented secret is this one. Rails chomps what it is given, and so does this.
    ///
    /// The comparison takes the same time wherever the first difference is; the length is not
    /// hidden, as it is not in Rails.
    pub fn matches(&self, presented: &[u8]) -> bool {
        chomp(presented).ct_eq(&self.bytes).into()
    }

    /// The bytes that sign and verify `Gitlab-Shell-Api-Request` tokens.
    pub fn as_hmac_key(&self) -> &[u8] {
        &self.bytes
    }

    /// GitLab Shell trims more than Rails does; when the two disagree, tokens will not verify.
    pub fn has_surrounding_whitespace(&self) -> bool {
        self.bytes.trim_ascii().len() != self.bytes.len()
    }

    /// Whether it has a line break between other characters: GitLab takes all lines as one secret.
    pub fn has_several_lines(&self) -> bool {
        self.bytes.trim_ascii().iter().any(|byte| matches!(byte, b'\n' | b'\r'))
    }
}

impl fmt::Debug for ShellSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShellSecret([redacted])")
    }
}

/// The 32 bytes that kas and Rails share (`.gitlab_kas_secret`).
#[derive(Clone)]
pub struct KasSecret {
    bytes: Zeroizing<[u8; 32]>,
}

impl KasSecret {
    /// Reads the secret as Rails does: strict Base64 of exactly 32 bytes and at most one trailing
    /// line break.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::from_text(&read(path)?)
    }

    /// The secret in `text`, strict Base64 with padding.
    pub fn from_text(text: &[u8]) -> Result<Self, LoadError> {
        let text = chomp(text);
        if text.is_empty() {
            return Err(LoadError::Empty);
        }
        let decoded = Zeroizing::new(STANDARD.decode(text).map_err(|_| LoadError::NotBase64)?);
        let bytes =
            <[u8; 32]>::try_from(decoded.as_slice()).map_err(|_| LoadError::WrongLength(decoded.len()))?;
        Ok(Self { bytes: Zeroizing::new(bytes) })
    }

    /// The bytes that sign and verify `Gitlab-Kas-Api-Request` tokens.
    pub fn as_hmac_key(&self) -> &[u8] {
        self.bytes.as_slice()
    }
}

impl fmt::Debug for KasSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KasSecret([redacted])")
    }
}

/// A word that operators or GitLab have to show before something is dropped.
#[derive(Clone)]
pub struct Token {
    bytes: Zeroizing<Vec<u8>>,
}

impl Token {
    /// Reads the token: the file's text without white space around it.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::from_text(&read(path)?)
    }

    /// The token in `text`, without white space around it.
    pub fn from_text(text: &[u8]) -> Result<Self, LoadError> {
        let bytes = text.trim_ascii();
        if bytes.is_empty() {
            return Err(LoadError::Empty);
        }
        if !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(LoadError::NotVisible);
        }
        Ok(Self { bytes: Zeroizing::new(bytes.to_vec()) })
    }

    /// Whether this is it.
    pub fn is_shown_as(&self, shown: &[u8]) -> bool {
        shown.ct_eq(&self.bytes).into()
    }

    /// Whether an `Authorization` header shows it (RFC 6750 §2.1).
    pub fn is_shown_by(&self, authorization: &[u8]) -> bool {
        let shown =
            authorization.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        shown.is_some_and(|(_, shown)| self.is_shown_as(shown))
    }

    /// The word itself, for whoever has to be told it.
    pub fn revealed(&self) -> &str {
        // It is visible ASCII.
        std::str::from_utf8(&self.bytes).unwrap_or_default()
    }

    /// The `Authorization` header that shows it.
    pub fn to_header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", self.bytes.as_slice()].concat()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

/// What GitLab signs its webhooks with (Standard Webhooks: `whsec_` and Base64).
#[derive(Clone)]
pub struct SigningToken {
    /// Prepared once; wipes itself when it is dropped.
    key: hmac::Key,
    /// As it is in the file.
    text: Zeroizing<String>,
    /// Bytes of the key.
    length: usize,
}

impl SigningToken {
    /// Reads the token: the file's text without white space around it.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::from_text(&read(path)?)
    }

    /// The token in `text`, without white space around it.
    pub fn from_text(text: &[u8]) -> Result<Self, LoadError> {
        let text = str::from_utf8(text.trim_ascii()).map_err(|_| LoadError::NotASigningToken)?;
        let encoded = text.strip_prefix("whsec_").ok_or(LoadError::NotASigningToken)?;
        let key = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| LoadError::NotASigningToken)?);
        if key.is_empty() {
            return Err(LoadError::Empty);
        }
        let text = Zeroizing::new(text.to_owned());
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), text, length: key.len() })
    }

    /// The token itself, for the GitLab that is to sign with it.
    pub fn revealed(&self) -> &str {
        &self.text
    }

    /// How many bytes its Base64 stands for.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether one of the signatures is of these parts, one behind another. They are signed once, however
    /// many signatures there are, and all of those are compared, whichever is right.
    pub fn has_signed(&self, parts: &[&[u8]], signatures: &Signatures) -> bool {
        let mut signed = hmac::Context::with_key(&self.key);
        for part in parts {
            signed.update(part);
        }
        let right = signed.sign();
        let compare = |any, shown: &[u8; SIGNATURE]| any | shown.ct_eq(right.as_ref());
        signatures.0.iter().fold(Choice::from(0), compare).into()
    }
}

/// Bytes of a signature.
const SIGNATURE: usize = 32;

/// The signatures in a `webhook-signature` header that may be right.
#[derive(Clone, Debug)]
pub struct Signatures(Vec<[u8; SIGNATURE]>);

impl Signatures {
    /// How many words the header may have. A sender has one for each of its keys: two, while they change.
    pub const MOST: usize = 8;

    /// Those of the words that are `v1,` and 32 bytes in Base64. `None` if there is none, if there are more
    /// words than [`Self::MOST`], or if one is no signature of any version.
    pub fn read(header: &str) -> Option<Self> {
        let mut signatures = Vec::new();
        for (at, word) in header.split_ascii_whitespace().enumerate() {
            let (version, encoded) = word.strip_prefix('v')?.split_once(',')?;
            let is_base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
            let is_signature = !version.is_empty()
                && version.bytes().all(|b| b.is_ascii_alphanumeric())
                && encoded.bytes().all(is_base64);
            if at >= Self::MOST || !is_signature {
                return None;
            }
            let is_ours = version == "1" && encoded.len() == SIGNATURE.div_ceil(3) * 4;
            if is_ours {
                signatures.push(STANDARD.decode(encoded).ok()?.try_into().ok()?);
            }
        }
        (!signatures.is_empty()).then_some(Self(signatures))
    }
}

impl fmt::Debug for SigningToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningToken([redacted])")
    }
}

/// Why a secret file cannot be used. The text never holds any of the file's content.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be used, whatever is in it.
    #[error(transparent)]
    File(#[from] file::Error),
    /// No release of GitLab makes such a secret, and not all take it.
    #[error("holds a NUL or another control character: is it UTF-16, or no text at all?")]
    Control,
    /// Nothing but white space: anybody could present it.
    #[error("is empty; it must hold the secret")]
    Empty,
    /// It could not be sent in a header as it is.
    #[error("holds white space or characters that are not visible ASCII; a token is one word")]
    NotVisible,
    /// Not what GitLab calls a signing token.
    #[error("does not hold `whsec_` and Base64 behind it")]
    NotASigningToken,
    /// The kas secret is not strict Base64.
    #[error("is not strict Base64 (standard alphabet, padded, one line)")]
    NotBase64,
    /// The kas secret has another length than the 32 bytes that HS256 wants.
    #[error("holds {0} bytes once decoded; a kas secret is exactly 32 bytes in Base64")]
    WrongLength(usize),
}

/// Bytes of a file with a secret, which is one line.
const MOST: usize = 64 * 1024;

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    Ok(file::read_unmarked(path, MOST)?)
}

/// Ruby's `String#chomp`: drops one trailing `\r\n`, `\n` or `\r`.
pub fn chomp(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\r\n")
        .or_else(|| text.strip_suffix(b"\n"))
        .or_else(|| text.strip_suffix(b"\r"))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chomp_drops_exactly_one_line_break() {
        for (given, kept) in [
            ("a\n\n", "a\n"),
            ("\n", ""),
            (" a \n", " a "),
            ("a\r\n", "a"),
            ("a\r", "a"),
            ("a\n\r", "a\n"),
            ("a", "a"),
            ("", ""),
        ] {
            assert_eq!(chomp(given.as_bytes()), kept.as_bytes(), "{given:?}");
        }
    }

    #[test]
    fn a_shell_secret_matches_itself_with_or_without_one_line_break() {
        let secret = ShellSecret::from_text(b"s3cret\n").unwrap();
        for good in ["s3cret", "s3cret\n", "s3cret\r\n"] {
            assert!(secret.matches(good.as_bytes()), "{good:?}");
        }
        for bad in ["", "\n", "s3cre", "s3cret2", "S3cret", "s3cret\n\n", " s3cret"] {
            assert!(!secret.matches(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn blank_secrets_are_refused() {
        for blank in ["", "\n", " \n", "\t", "\r\n"] {
            let refused = ShellSecret::from_text(blank.as_bytes());
            assert!(matches!(refused, Err(LoadError::Empty)), "{blank:?}");
        }
    }

    #[test]
    fn control_characters_are_refused_and_lines_are_seen() {
        for bad in ["s3c\0ret", "s\x003\x00\n\0", "\0", "s3cret\x7f", "\x1b[0ms3cret", "s3cret\x1a\r\n"] {
            let refused = ShellSecret::from_text(bad.as_bytes());
            assert!(matches!(refused, Err(LoadError::Control)), "{bad:?}");
        }
        for (text, has_several) in
            [("s3cret\n", false), ("s3\tcret", false), ("s3\ncret", true), ("s\r\nt\n", true)]
        {
            assert_eq!(
                ShellSecret::from_text(text.as_bytes()).unwrap().has_several_lines(),
                has_several,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_kas_secret_is_strict_base64_of_32_bytes() {
        let good = STANDARD.encode([7u8; 32]);
        assert!(KasSecret::from_text(good.as_bytes()).is_ok());
        assert!(KasSecret::from_text(format!("{good}\n").as_bytes()).is_ok());
        let short = STANDARD.encode([7u8; 31]);
        assert!(matches!(KasSecret::from_text(short.as_bytes()), Err(LoadError::WrongLength(31))));
        for bad in [format!("{good}\n\n"), format!(" {good}"), good.replace('=', ""), "?".into()] {
            let refused = KasSecret::from_text(bad.as_bytes());
            assert!(matches!(refused, Err(LoadError::NotBase64)), "{bad:?}");
        }
        assert!(matches!(KasSecret::from_text(b"\n"), Err(LoadError::Empty)));
    }

    #[test]
    fn a_token_is_one_word_shown_as_a_bearer_token() {
        let token = Token::from_text(b" t0ken\n").unwrap();
        for (shown, is_right) in [
            ("Bearer t0ken", true),
            ("bearer t0ken", true),
            ("Bearer t0ke", false),
            ("Bearer t0ken ", false),
            ("Bearer  t0ken", false),
            ("Basic t0ken", false),
            ("t0ken", false),
            ("Bearer", false),
            ("", false),
        ] {
            assert_eq!(token.is_shown_by(shown.as_bytes()), is_right, "{shown:?}");
        }
        assert!(token.is_shown_by(token.to_header().unwrap().as_bytes()));
        assert!(matches!(Token::from_text(b" \n"), Err(LoadError::Empty)));
        assert!(matches!(Token::from_text(b"a b"), Err(LoadError::NotVisible)));
        assert!(!format!("{token:?}").contains("t0ken"));
    }

    /// The vector of the specification of Standard Webhooks.
    #[test]
    fn a_signing_token_verifies_what_it_has_signed() {
        let token = SigningToken::from_text(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let (id, time) = (b"msg_p5jXN8AQM9LWM0D4loKWxJek", b"1614265330");
        let signed = |body| -> [&[u8]; 5] { [id, b".", time, b".", body] };
        let (body, right) = (br#"{"test": 2432232314}"#, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let wrong = right.replace('g', "h");
        let many = |count: usize, last: &str| vec![wrong.as_str(); count].join(" ") + " " + last;
        for good in
            [right, &format!("{wrong} {right} v1a,AAAA"), &format!("v1,AAAA  {right}"), &many(7, right)]
        {
            let signatures = Signatures::read(good).unwrap();
            assert!(token.has_signed(&signed(body), &signatures), "{good}");
            assert!(!token.has_signed(&signed(&body[1..]), &signatures), "{good}");
        }
        assert!(!token.has_signed(&signed(body), &Signatures::read(&wrong).unwrap()));
        for none in [
            "",
            " ",
            "v1,",
            "v1,g0hM",
            "v1",
            &right.replace("v1", "v2"),
            &right[3..],
            &right.replace('=', ""),
            &right.replace("v1", "w1"),
            &right.replace("OE=", "O=="),
            &format!("{right},"),
            &format!("{right} x"),
            &format!("{right} v1,\u{e9}"),
            &many(8, right),
            &"v1,AAAA ".repeat(10_000),
        ] {
            assert!(Signatures::read(none).is_none(), "{none}");
        }
        for none in ["MfKQ", "whsec_?", "", "whsec"] {
            let refused = SigningToken::from_text(none.as_bytes());
            assert!(matches!(refused, Err(LoadError::NotASigningToken)), "{none}");
        }
        assert!(matches!(SigningToken::from_text(b"whsec_"), Err(LoadError::Empty)));
        assert_eq!(format!("{token:?}"), "SigningToken([redacted])");
    }

    #[test]
    fn debug_shows_nothing() {
        let secret = ShellSecret::from_text(b"s3cret").unwrap();
        assert!(!format!("{secret:?}").contains("s3cret"));
    }
}
