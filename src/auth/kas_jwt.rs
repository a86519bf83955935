//! `Gitlab-Kas-Api-Request`: the token of the Kubernetes agent server (contract §2.6).

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::jwt::{self, Audience, TokenRules, TokenVerifier};
use super::{ClockSkew, Rejection};
use crate::secret::KasSecret;

/// Verifies tokens that are signed with the kas secret.
pub struct KasJwt {
    verifier: TokenVerifier,
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
        Self { verifier: TokenVerifier::new(rules) }
    }

    /// That of the tokens' issuers.
    pub(super) fn skew(&self) -> &ClockSkew {
        &self.verifier.skew
    }

    /// Verifies a token at `now`, and returns when it expires, both in Unix seconds.
    pub fn verify(&self, token: &[u8], now: i64) -> Result<i64, Rejection> {
        self.verifier.verify(token, now)
    }
}

impl fmt::Debug for KasJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KasJwt([redacted])")
    }
}
