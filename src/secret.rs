//! Secrets: loaded from files, compared in constant time, wiped when dropped, never displayed.

pub mod files;
pub mod refresh;
pub mod status;

use std::fmt;
use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::file;

/// The secret that GitLab Shell and Rails share (`.gitlab_shell_secret`).
#[derive(Clone)]
pub struct ShellSecret {
    bytes: Zeroizing<Vec<u8>>,
    /// As callers send it in a header.
    base64: Zeroizing<String>,
}

impl ShellSecret {
    /// Reads the secret as Rails does: the file's text without exactly one trailing line break.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        Self::from_text(&read(path)?)
    }

    /// As [`Self::load`], from the text of the file.
    pub fn from_text(text: &[u8]) -> Result<Self, SecretError> {
        let bytes = chomp(text);
        if bytes.trim_ascii().is_empty() {
            return Err(SecretError::Empty);
        }
        if bytes.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace()) {
            return Err(SecretError::ControlCharacter);
        }
        let base64 = Zeroizing::new(STANDARD.encode(bytes));
        Ok(Self { bytes: Zeroizing::new(bytes.to_vec()), base64 })
    }

    /// Whether `presented` is this secret, less one trailing line break, as in Rails.
    ///
    /// The comparison takes the same time wherever the first difference is; the length is not
    /// hidden, as it is not in Rails.
    pub fn matches(&self, presented: &[u8]) -> bool {
        verify_slices_are_equal(chomp(presented), &self.bytes).is_ok()
    }

    /// Whether `presented` is Base64 of this secret in its usual spelling, which is cheaper to compare than to decode. If
    /// it is not, it may still decode to a text that [`matches`](Self::matches) accepts. Takes as long wherever the first difference is.
    pub fn matches_base64(&self, presented: &[u8]) -> bool {
        // One that ends with a line break never matches itself, since that is taken off what is presented.
        chomp(&self.bytes).len() == self.bytes.len()
            && verify_slices_are_equal(presented, self.base64.as_bytes()).is_ok()
    }

    /// The bytes that sign and verify `Gitlab-Shell-Api-Request` tokens.
    pub fn as_hmac_key(&self) -> &[u8] {
        &self.bytes
    }

    /// GitLab Shell trims all white space and Rails does not; with such a secret, tokens do not verify.
    pub fn has_surrounding_whitespace(&self) -> bool {
        self.bytes.trim_ascii().len() != self.bytes.len()
    }

    /// Whether it has a line break between other characters: GitLab reads all lines as one secret.
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
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        Self::from_text(&read(path)?)
    }

    /// As [`Self::load`], from the text of the file.
    pub fn from_text(text: &[u8]) -> Result<Self, SecretError> {
        let text = chomp(text);
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        let decoded = Zeroizing::new(STANDARD.decode(text).map_err(|_| SecretError::NotBase64)?);
        let bytes =
            <[u8; 32]>::try_from(decoded.as_slice()).map_err(|_| SecretError::WrongLength(decoded.len()))?;
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

/// A token of operators, for the admin listener, or of GitLab, for its System Hooks and its API.
#[derive(Clone)]
pub struct BearerToken {
    bytes: Zeroizing<Vec<u8>>,
}

impl BearerToken {
    /// Reads the token: the file's text, trimmed.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        Self::from_text(&read(path)?)
    }

    /// As [`Self::load`], from the text of the file.
    pub fn from_text(text: &[u8]) -> Result<Self, SecretError> {
        let bytes = text.trim_ascii();
        if bytes.is_empty() {
            return Err(SecretError::Empty);
        }
        if !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(SecretError::NotVisibleAscii);
        }
        Ok(Self { bytes: Zeroizing::new(bytes.to_vec()) })
    }

    /// Whether `presented` is this token. Takes the same time wherever the first difference is.
    pub fn matches(&self, presented: &[u8]) -> bool {
        verify_slices_are_equal(presented, &self.bytes).is_ok()
    }

    /// Whether an `Authorization` header has it as a bearer token (RFC 6750 §2.1).
    pub fn matches_authorization(&self, authorization: &[u8]) -> bool {
        let token =
            authorization.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        token.is_some_and(|(_, token)| self.matches(token))
    }

    /// The token itself, to be sent to GitLab.
    pub fn expose(&self) -> &str {
        // It is visible ASCII, by `from_text`.
        std::str::from_utf8(&self.bytes).unwrap_or_default()
    }

    /// An `Authorization` header with it.
    pub fn to_authorization(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", self.bytes.as_slice()].concat()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken([redacted])")
    }
}

/// The password of a user of Valkey.
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Reads the password: the file's text without one trailing line break.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let text = read(path)?;
        let password = chomp(&text);
        if password.is_empty() {
            return Err(SecretError::Empty);
        }
        Ok(Self(Zeroizing::new(password.to_vec())))
    }

    /// The password itself, to be sent to Valkey.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password([redacted])")
    }
}

/// The key by which GitLab signs its webhooks (Standard Webhooks: `whsec_` and Base64).
#[derive(Clone)]
pub struct SigningToken {
    /// Wipes itself when it is dropped.
    key: hmac::Key,
    /// As it is in the file.
    text: Zeroizing<String>,
    /// Bytes of the key.
    length: usize,
}

impl SigningToken {
    /// Reads the token: the file's text, trimmed.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        Self::from_text(&read(path)?)
    }

    /// As [`Self::load`], from the text of the file.
    pub fn from_text(text: &[u8]) -> Result<Self, SecretError> {
        let text = str::from_utf8(text.trim_ascii()).map_err(|_| SecretError::NotASigningToken)?;
        let encoded = text.strip_prefix("whsec_").ok_or(SecretError::NotASigningToken)?;
        let key = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| SecretError::NotASigningToken)?);
        if key.is_empty() {
            return Err(SecretError::Empty);
        }
        let text = Zeroizing::new(text.to_owned());
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), text, length: key.len() })
    }

    /// The token itself, to be sent to GitLab.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Bytes of the decoded key.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether one of the signatures is that of the concatenated parts. These are signed once, however many
    /// signatures there are, and all of those are compared, whichever is right.
    pub fn verifies(&self, parts: &[&[u8]], signatures: &Signatures) -> bool {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(part);
        }
        let expected = context.sign();
        let is_right = |signature: &[u8]| verify_slices_are_equal(signature, expected.as_ref()).is_ok();
        signatures.0.iter().fold(false, |any, signature| any | is_right(signature))
    }
}

/// Bytes of a signature.
const SIGNATURE_LEN: usize = 32;

/// The `v1` signatures in a `webhook-signature` header.
#[derive(Clone, Debug)]
pub struct Signatures(Vec<[u8; SIGNATURE_LEN]>);

impl Signatures {
    /// Words that the header may have. A sender has one for each of its keys: two, while they change.
    pub const MAX: usize = 8;

    /// The words that are `v1,` and 32 bytes in Base64. `None` if there is none, if there are more than
    /// [`Self::MAX`] words, or if one is not a signature of any version.
    pub fn parse(header: &str) -> Option<Self> {
        let mut signatures = Vec::new();
        for (at, word) in header.split_ascii_whitespace().enumerate() {
            let (version, encoded) = word.strip_prefix('v')?.split_once(',')?;
            let is_base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
            let is_signature = !version.is_empty()
                && version.bytes().all(|b| b.is_ascii_alphanumeric())
                && encoded.bytes().all(is_base64);
            if at >= Self::MAX || !is_signature {
                return None;
            }
            let is_v1 = version == "1" && encoded.len() == SIGNATURE_LEN.div_ceil(3) * 4;
            if is_v1 {
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

/// Why a secret file cannot be used. The error never contains any of the file's content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read as a file.
    #[error(transparent)]
    File(#[from] file::Error),
    /// No release of GitLab makes such a secret, and not all accept one.
    #[error("has a NUL or another control character: is it UTF-16, or not text at all?")]
    ControlCharacter,
    /// Nothing but white space, which every client could present.
    #[error("is empty; it must hold the secret")]
    Empty,
    /// It could not be sent in a header.
    #[error("has white space or characters that are not visible ASCII; a token is one word")]
    NotVisibleAscii,
    /// Not a signing token of GitLab.
    #[error("is not a signing token, `whsec_` and Base64 behind it")]
    NotASigningToken,
    /// The kas secret is not strict Base64.
    #[error("is not strict Base64 (standard alphabet, padded, one line)")]
    NotBase64,
    /// The kas secret has another length than the 32 bytes that HS256 wants.
    #[error("has {0} bytes once decoded; a kas secret is exactly 32 bytes in Base64")]
    WrongLength(usize),
}

/// Bytes of a secret file, which is one line.
const MAX_SECRET_FILE: usize = 64 * 1024;

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    Ok(file::read_without_bom(path, MAX_SECRET_FILE)?)
}

/// Ruby's `String#chomp`: drops one trailing `\r\n`, `\n` or `\r`.
pub fn chomp(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\r\n")
        .or_else(|| text.strip_suffix(b"\n"))
        .or_else(|| text.strip_suffix(b"\r"))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests;
