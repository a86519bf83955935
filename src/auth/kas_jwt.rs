//! `Gitlab-Kas-Api-Request`: the token of the Kubernetes agent server (contract §2.6).

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::jwt::{self, Audience, Rules};
use super::{ClockSkew, Rejection};
use crate::secret::KasSecret;

/// Verifies tokens that are signed with the kas secret.
pub struct KasJwt {
    rules: Rules,
    pub(super) skew: ClockSkew,
}

impl KasJwt {
    /// No leeway at all: a kas token lives 5 to 30 s, and Rails counts every second. That an audience is
    /// named is demanded only where configured, since Rails verifies it only in newer releases; one that
    /// is named has to be that of Rails.
    pub fn new(secret: &KasSecret, audience: Option<String>) -> Self {
        let rules = Rules {
            key: DecodingKey::from_secret(secret.as_hmac_key()),
            issuer: "gitlab-kas",
            audience: audience.map_or(Audience::IfNamed("gitlab"), Audience::Named),
            leeway: 0,
        };
        Self { rules, skew: ClockSkew::default() }
    }

    /// Verifies a token at `now`, and says when it expires, both in Unix seconds.
    pub fn verify(&self, token: &[u8], now: i64) -> Result<i64, Rejection> {
        jwt::verify(token, &self.rules, &self.skew, now)
    }
}

impl fmt::Debug for KasJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KasJwt([redacted])")
    }
}
