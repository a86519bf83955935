//! Verification of both kinds of tokens: HS256 and nothing else, an exact issuer, a time window.
//!
//! jsonwebtoken verifies signature and form. The window is checked here, because we must never be
//! more lenient than Ruby's library, which counts its ends differently: there, a token has expired
//! at `exp + leeway`, not one second later.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use memchr::memchr;
use serde_json::Value;

use super::verified_tokens::{Times, VerifiedTokens};
use super::{ClockSkew, Rejection, json};

/// The issuer (`iss`) of the tokens of GitLab Shell, Gitaly and Geo.
pub(super) const SHELL_ISSUER: &str = "gitlab-shell";
/// The issuer of the tokens of kas.
pub(super) const KAS_ISSUER: &str = "gitlab-kas";

pub(super) struct TokenRules {
    pub(super) key: DecodingKey,
    pub(super) issuer: &'static str,
    pub(super) audience: Audience,
    /// Seconds by which `exp` and `nbf` may be off.
    pub(super) leeway: i64,
}

/// The audience that a token must have.
pub(super) enum Audience {
    /// Any or none.
    Any,
    /// This one, unless the token has none.
    Optional(&'static str),
    /// This one.
    Required(String),
}

/// A map, not a struct: serde would fill a struct from an array too, which Rails refuses.
type Claims = serde_json::Map<String, Value>;

/// What verifies one kind of tokens.
pub(super) struct TokenVerifier {
    rules: TokenRules,
    verified: VerifiedTokens,
    pub(super) skew: ClockSkew,
}

impl TokenVerifier {
    pub(super) fn new(rules: TokenRules) -> Self {
        Self { rules, verified: VerifiedTokens::default(), skew: ClockSkew::default() }
    }

    /// Verifies `token` at `now`, and returns when it expires. The header's whole value is the token: no `Bearer`, no
    /// white space. When it was issued does not matter, as in Rails, and is recorded in the skew.
    pub(super) fn verify(&self, token: &[u8], now: i64) -> Result<i64, Rejection> {
        if token.is_empty() {
            return Err(Rejection::Missing);
        }
        let known = self.verified.get(token);
        let times = match known {
            Some(times) => times,
            None => read(token, &self.rules)?,
        };
        if let Some(issued) = times.issued {
            self.skew.observe(issued, now);
        }
        if times.expires <= now.saturating_sub(self.rules.leeway) {
            return Err(Rejection::Expired);
        }
        let latest = now.saturating_add(self.rules.leeway);
        if times.not_before.is_some_and(|not_before| not_before > latest) {
            return Err(Rejection::Skewed);
        }
        // Not before: an expired token that is sent again would take the place of one that is in use.
        if known.is_none() {
            self.verified.insert(token, times);
        }
        Ok(times.expires)
    }
}

/// The times of a token with a valid signature that is what the rules ask for, whenever that is.
fn read(token: &[u8], rules: &TokenRules) -> Result<Times, Rejection> {
    let mut form = Validation::new(Algorithm::HS256);
    form.required_spec_claims.clear();
    form.validate_exp = false;
    form.validate_aud = false;
    let claims = decode::<Claims>(token, &rules.key, &form)
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => Rejection::Wrong,
            _ => Rejection::Malformed,
        })?
        .claims;
    let (header, rest) = split_at_dot(token);
    if !is_plain_header(header) || is_too_deep(split_at_dot(rest).0) {
        return Err(Rejection::Malformed);
    }
    if claims.get("iss").and_then(Value::as_str) != Some(rules.issuer) {
        return Err(Rejection::WrongIssuer);
    }
    let aud = claims.get("aud");
    let is_for_rails = match &rules.audience {
        Audience::Any => true,
        Audience::Optional(audience) => aud.is_none_or(Value::is_null) || contains(aud, audience),
        Audience::Required(audience) => contains(aud, audience),
    };
    if !is_for_rails {
        return Err(Rejection::WrongAudience);
    }
    // No client of GitLab's sends a token without `exp`; one that never expires is refused.
    Ok(Times {
        issued: claims.get("iat").and_then(Value::as_i64),
        expires: numeric_date(&claims, "exp")?.ok_or(Rejection::Malformed)?,
        not_before: numeric_date(&claims, "nbf")?,
    })
}

/// What is before the first dot, and what is behind it.
fn split_at_dot(text: &[u8]) -> (&[u8], &[u8]) {
    let dot = memchr(b'.', text).unwrap_or(text.len());
    (text.get(..dot).unwrap_or_default(), text.get(dot + 1..).unwrap_or_default())
}

/// Whether the header has nothing that jsonwebtoken accepts and a Rails may refuse: `crit` of any kind (RFC 7515
/// §4.1.11), a `b64` that is not true (RFC 7797; ruby-jwt 3.3 refuses false), JSON that is nested too deeply. Only a
/// holder of the secret can sign such a token.
fn is_plain_header(encoded: &[u8]) -> bool {
    let Some(text) = URL_SAFE_NO_PAD.decode(encoded).ok() else { return false };
    let Ok(header) = serde_json::from_slice::<Claims>(&text) else { return false };
    !header.contains_key("crit")
        && header.get("b64").is_none_or(|b64| *b64 == Value::Bool(true))
        && !json::is_too_deep(&text)
}

/// Whether the payload is nested too deeply, be it in a member that a later one of its name replaces in the map.
fn is_too_deep(encoded: &[u8]) -> bool {
    // A short payload is not decoded again: Base64 is never shorter than what it encodes.
    encoded.len() >= json::MIN_TOO_DEEP
        && !URL_SAFE_NO_PAD.decode(encoded).is_ok_and(|text| !json::is_too_deep(&text))
}

/// A `NumericDate`. GitLab's clients write integers, and nothing else is accepted.
fn numeric_date(claims: &Claims, name: &str) -> Result<Option<i64>, Rejection> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_i64().map(Some).ok_or(Rejection::Malformed),
    }
}

/// RFC 7519 §4.1.3: one audience as a string, several as an array.
fn contains(aud: Option<&Value>, audience: &str) -> bool {
    match aud {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(audience)),
        _ => false,
    }
}
