//! What the two token schemes share: HS256 and nothing else, an exact issuer, a time window.
//!
//! Signature and form are jsonwebtoken's work. The window is judged here, because we must never be
//! more lenient than Ruby's library, which counts the borders differently: to it, a token is dead
//! at `exp + leeway`, not one second later.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::Value;

use super::{ClockSkew, Rejection};

/// What a token must say.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) key: DecodingKey,
    pub(super) issuer: &'static str,
    pub(super) audience: Audience,
    /// Seconds that `exp` and `nbf` may be off.
    pub(super) leeway: i64,
}

/// Who a token must be for.
#[derive(Clone)]
pub(super) enum Audience {
    /// Any, or none.
    Any,
    /// This one, if it names any.
    IfNamed(&'static str),
    /// This one, which it has to name.
    Named(String),
}

/// A map, not a struct: serde would fill a struct from an array too, which Rails refuses.
type Claims = serde_json::Map<String, Value>;

/// Verifies `token` at `now`, and says when it expires. The token is looked at as it came: no `Bearer`, no white space.
/// When it was issued decides nothing, as in Rails, and is noted in `skew`.
pub(super) fn verify(token: &[u8], rules: &Rules, skew: &ClockSkew, now: i64) -> Result<i64, Rejection> {
    if token.is_empty() {
        return Err(Rejection::Missing);
    }
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
    if !has_plain_header(token) || claims.values().any(|value| is_deeper(value, DEEPEST - 1)) {
        return Err(Rejection::Malformed);
    }
    if claims.get("iss").and_then(Value::as_str) != Some(rules.issuer) {
        return Err(Rejection::WrongIssuer);
    }
    let aud = claims.get("aud");
    let is_for_rails = match &rules.audience {
        Audience::Any => true,
        Audience::IfNamed(audience) => aud.is_none_or(Value::is_null) || names(aud, audience),
        Audience::Named(audience) => names(aud, audience),
    };
    if !is_for_rails {
        return Err(Rejection::WrongAudience);
    }
    if let Some(iat) = claims.get("iat").and_then(Value::as_i64) {
        skew.observe(iat, now);
    }
    // No client of GitLab's sends a token without an end; one that never dies is not let in.
    let exp = date(&claims, "exp")?.ok_or(Rejection::Malformed)?;
    if exp <= now.saturating_sub(rules.leeway) {
        return Err(Rejection::Expired);
    }
    let latest = now.saturating_add(rules.leeway);
    if date(&claims, "nbf")?.is_some_and(|nbf| nbf > latest) {
        return Err(Rejection::Skewed);
    }
    Ok(exp)
}

/// Ruby's JSON reads no more levels of arrays and objects than that.
const DEEPEST: usize = 100;

/// What ruby-jwt 3.3 refuses and jsonwebtoken takes: `crit` of any kind, a `b64` that is not true (RFC 7797),
/// and JSON that is nested too deeply. Only the holder of the secret can make a token with them.
fn has_plain_header(token: &[u8]) -> bool {
    let header = token.split(|b| *b == b'.').next().unwrap_or_default();
    let Some(header) = URL_SAFE_NO_PAD.decode(header).ok() else { return false };
    let Ok(header) = serde_json::from_slice::<Claims>(&header) else { return false };
    !header.contains_key("crit")
        && header.get("b64").is_none_or(|b64| *b64 == Value::Bool(true))
        && !header.values().any(|value| is_deeper(value, DEEPEST - 1))
}

/// Whether a value has more than so many levels. `serde_json` has bounded them already.
fn is_deeper(value: &Value, most: usize) -> bool {
    match value {
        Value::Array(items) => most == 0 || items.iter().any(|item| is_deeper(item, most - 1)),
        Value::Object(fields) => most == 0 || fields.values().any(|field| is_deeper(field, most - 1)),
        _ => false,
    }
}

/// A `NumericDate`. GitLab's clients write integers, and nothing else is taken for one.
fn date(claims: &Claims, name: &str) -> Result<Option<i64>, Rejection> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_i64().map(Some).ok_or(Rejection::Malformed),
    }
}

/// RFC 7519 §4.1.3: one audience as a string, several as an array.
fn names(aud: Option<&Value>, audience: &str) -> bool {
    match aud {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(audience)),
        _ => false,
    }
}
