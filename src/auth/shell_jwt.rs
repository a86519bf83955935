//! `Gitlab-Shell-Api-Request`: the token of GitLab Shell and Gitaly (contract §2.5).

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::Rejection;
use super::jwt::{self, Audience, Rules};
use crate::secret::ShellSecret;

/// Verifies tokens that are signed with the shell secret.
#[derive(Clone)]
pub struct ShellJwt {
    rules: Rules,
}

impl ShellJwt {
    /// Rails allows 60 s on `exp` and `nbf`, and so does this. It does not look at `iat`; a token
    /// that was issued more than those 60 s ahead is still refused here, since it would live on
    /// long after its sender meant it to.
    pub fn new(secret: &ShellSecret) -> Self {
        let rules = Rules {
            key: DecodingKey::from_secret(secret.as_hmac_key()),
            issuer: "gitlab-shell",
            audience: Audience::Any,
            leeway: 60,
            iat_ahead: Some(60),
        };
        Self { rules }
    }

    /// Verifies a token at `now`, and says when it expires, both in Unix seconds.
    pub fn verify(&self, token: &[u8], now: i64) -> Result<i64, Rejection> {
        jwt::verify(token, &self.rules, now)
    }
}

impl fmt::Debug for ShellJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShellJwt([redacted])")
    }
}
