//! Tokens as GitLab Shell and kas make them.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::jwt::{KAS_ISSUER, SHELL_ISSUER};
use crate::secret::{KasSecret, ShellSecret};

/// A token of GitLab Shell, issued at `now` (Unix seconds), that is valid for `lifetime` seconds.
pub fn sign_shell_token(secret: &ShellSecret, now: i64, lifetime: i64) -> Option<String> {
    shell_token(&EncodingKey::from_secret(secret.as_hmac_key()), now, lifetime)
}

/// The same for kas. Its audience is `gitlab` by default.
pub fn sign_kas_token(secret: &KasSecret, audience: Option<&str>, now: i64, lifetime: i64) -> Option<String> {
    let audience = audience.unwrap_or("gitlab");
    let expires = now.saturating_add(lifetime);
    // kas dates the begin back, for clocks that differ (contract §2.6).
    let begin = now.saturating_sub(5);
    let claims = json!({ "iss": KAS_ISSUER, "aud": audience, "nbf": begin, "iat": now, "exp": expires });
    sign(&EncodingKey::from_secret(secret.as_hmac_key()), &claims)
}

pub(super) fn shell_token(key: &EncodingKey, now: i64, lifetime: i64) -> Option<String> {
    sign(key, &json!({ "iss": SHELL_ISSUER, "iat": now, "exp": now.saturating_add(lifetime) }))
}

fn sign(key: &EncodingKey, claims: &Value) -> Option<String> {
    encode(&Header::new(Algorithm::HS256), claims, key).ok()
}
