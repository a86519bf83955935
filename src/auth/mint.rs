//! What Rails is shown in place of what the caller has shown, where the two are of different ages.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderValue};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use crate::header::{SHARED_SECRET, SHELL_JWT};
use crate::secret::ShellSecret;

/// What the Rails behind the gateway wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A `Gitlab-Shell-Api-Request` token: GitLab 15.5 and later.
    Jwt,
    /// The secret itself, as `Gitlab-Shared-Secret`: GitLab before 15.0.
    SharedSecret,
}

/// Proves to Rails that the gateway knows the secret that Rails has. Only ever for a caller that has
/// proved the same to the gateway, and never in place of a token of kas.
#[derive(Clone)]
pub struct Mint {
    proof: Proof,
}

#[derive(Clone)]
enum Proof {
    Jwt(EncodingKey),
    SharedSecret(HeaderValue),
}

/// How long a token is good: as long as GitLab Shell's (contract §2.5).
const LIFE: i64 = 60;

impl Mint {
    /// Shows `wanted` of this secret.
    pub fn new(wanted: Wanted, secret: &ShellSecret) -> Self {
        let proof = match wanted {
            Wanted::Jwt => Proof::Jwt(EncodingKey::from_secret(secret.as_hmac_key())),
            Wanted::SharedSecret => {
                let encoded = STANDARD.encode(secret.as_hmac_key());
                let mut header = HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""));
                header.set_sensitive(true);
                Proof::SharedSecret(header)
            }
        };
        Self { proof }
    }

    /// Takes the caller's proofs away and puts ours in their place, as of `now` (Unix seconds).
    pub fn replace(&self, headers: &mut HeaderMap, now: i64) {
        headers.remove(&SHARED_SECRET);
        headers.remove(&SHELL_JWT);
        match &self.proof {
            Proof::SharedSecret(header) => {
                headers.insert(SHARED_SECRET.clone(), header.clone());
            }
            Proof::Jwt(key) => {
                let claims = json!({ "iss": "gitlab-shell", "iat": now, "exp": now.saturating_add(LIFE) });
                let token = encode(&Header::new(Algorithm::HS256), &claims, key).ok();
                if let Some(mut header) = token.and_then(|token| HeaderValue::try_from(token).ok()) {
                    header.set_sensitive(true);
                    headers.insert(SHELL_JWT.clone(), header);
                }
            }
        }
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mint([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ShellJwt;
    use crate::secret::ShellSecret;

    const NOW: i64 = 1_700_000_000;

    fn headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(SHARED_SECRET.clone(), HeaderValue::from_static("b2xk"));
        headers.insert(SHELL_JWT.clone(), HeaderValue::from_static("old"));
        headers.insert("x-other", HeaderValue::from_static("x"));
        headers
    }

    #[test]
    fn a_token_is_one_that_a_gateway_would_accept_and_no_older_proof_is_left() {
        let secret = ShellSecret::from_text(b"s3cret\n").unwrap();
        let mut headers = headers();
        Mint::new(Wanted::Jwt, &secret).replace(&mut headers, NOW);
        let token = headers[&SHELL_JWT].as_bytes().to_vec();
        assert_eq!(ShellJwt::new(&secret).verify(&token, NOW + 119), Ok(NOW + 60));
        assert!(ShellJwt::new(&secret).verify(&token, NOW + 120).is_err());
        assert!(headers[&SHELL_JWT].is_sensitive());
        assert_eq!((headers.get(&SHARED_SECRET), headers.len()), (None, 2));
    }

    #[test]
    fn the_secret_is_in_base64_without_its_line_break() {
        let secret = ShellSecret::from_text(b"s3cret\n").unwrap();
        let mut headers = headers();
        Mint::new(Wanted::SharedSecret, &secret).replace(&mut headers, NOW);
        assert_eq!(headers[&SHARED_SECRET], "czNjcmV0");
        assert!(headers[&SHARED_SECRET].is_sensitive());
        assert_eq!((headers.get(&SHELL_JWT), headers.len()), (None, 2));
    }

    #[test]
    fn debug_shows_nothing() {
        let secret = ShellSecret::from_text(b"s3cret").unwrap();
        for wanted in [Wanted::Jwt, Wanted::SharedSecret] {
            assert_eq!(format!("{:?}", Mint::new(wanted, &secret)), "Mint([redacted])");
        }
    }
}
