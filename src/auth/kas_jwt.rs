//! `Gitlab-Kas-Api-Request`: the token of the Kubernetes agent server (contract §2.6).

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::jwt::{self, Audience, TokenRules};
use super::{ClockSkew, Rejection};
use crate::secret::KasSecret;

/// Verifies tokens that are signed with the kas secret.
pub struct KasJwt {
    rules: TokenRules,
    pub(super) skew: ClockSkew,
}

impl KasJwt {
    /// Without leeway, as in Rails: a kas token lives 5 to 30 s. A token must have an audience only if one is
    /// configured, since only newer releases of Rails verify it; one that it has must be that of Rails.
    pub fn new(secret: &KasSecret, audience: Option<String>) -> Self {
        let rules = TokenRules {
            key: DecodingKey::from_secret(secret.as_hmac_key()),
            issuer: jwt::KAS_ISSUER,
            audience: audience.map_or(Audience::Optional("gitlab"), Audience::Required),
            leeway: 0,
        };
        Self { rules, skew: ClockSkew::default() }
    }

    /// Verifies a token at `now`, and returns when it expires, both in Unix seconds.
    pub fn verify(&self, token: &[u8], now: i64) -> Result<i64, Rejection> {
        jwt::verify(token, &self.rules, &self.skew, now)
    }
}

impl fmt::Debug for KasJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KasJwt([redacted])")
    }
}
