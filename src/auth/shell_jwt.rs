//! `Gitlab-Shell-Api-Request`: the token of GitLab Shell and Gitaly (contract §2.5).

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::jwt::{self, Audience, TokenRules, TokenVerifier};
use super::{ClockSkew, Rejection};
use crate::secret::ShellSecret;

/// Verifies tokens that are signed with the shell secret.
pub struct ShellJwt {
    verifier: TokenVerifier,
}

impl ShellJwt {
    /// With a leeway of 60 s on `exp` and `nbf`, as in Rails.
    pub fn new(secret: &ShellSecret) -> Self {
        let rules = TokenRules {
            key: DecodingKey::from_secret(secret.as_hmac_key()),
            issuer: jwt::SHELL_ISSUER,
            audience: Audience::Any,
            leeway: 60,
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

impl fmt::Debug for ShellJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShellJwt([redacted])")
    }
}
