//! The credential that Rails is shown in place of the caller's, for a GitLab Shell and a Rails of different releases.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderValue};
use jsonwebtoken::EncodingKey;

use super::sign;
use crate::header::{SHARED_SECRET, SHELL_JWT};
use crate::secret::ShellSecret;

/// What the Rails behind the gateway accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamCredentialKind {
    /// A `Gitlab-Shell-Api-Request` token: GitLab 15.5 and later.
    Jwt,
    /// The secret itself, as `Gitlab-Shared-Secret`: GitLab before 15.0.
    SharedSecret,
}

/// Proves to Rails that the gateway knows its secret. Only for callers that have proved to the gateway that they
/// know the secret of GitLab Shell, and never in place of a kas token.
#[derive(Clone)]
pub struct UpstreamCredential {
    kind: UpstreamCredentialKind,
    /// Shared by all copies.
    source: Arc<ArcSwap<Source>>,
}

enum Source {
    Jwt(EncodingKey),
    SharedSecret(HeaderValue),
}

impl Source {
    fn new(kind: UpstreamCredentialKind, secret: &ShellSecret) -> Self {
        match kind {
            UpstreamCredentialKind::Jwt => Self::Jwt(EncodingKey::from_secret(secret.as_hmac_key())),
            UpstreamCredentialKind::SharedSecret => {
                let encoded = STANDARD.encode(secret.as_hmac_key());
                let mut header = HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""));
                header.set_sensitive(true);
                Self::SharedSecret(header)
            }
        }
    }
}

/// Seconds, as GitLab Shell's (contract §2.5).
const TOKEN_LIFETIME: i64 = 60;

impl UpstreamCredential {
    /// A credential made of `secret`.
    pub fn new(kind: UpstreamCredentialKind, secret: &ShellSecret) -> Self {
        Self { kind, source: Arc::new(ArcSwap::from_pointee(Source::new(kind, secret))) }
    }

    /// Makes the credential of another secret from now on, in all copies.
    pub fn replace_secret(&self, secret: &ShellSecret) {
        self.source.store(Arc::new(Source::new(self.kind, secret)));
    }

    /// Replaces the caller's credential in the headers. A token is issued at `now` (Unix seconds).
    pub fn apply(&self, headers: &mut HeaderMap, now: i64) {
        headers.remove(&SHARED_SECRET);
        headers.remove(&SHELL_JWT);
        match &**self.source.load() {
            Source::SharedSecret(header) => {
                headers.insert(SHARED_SECRET.clone(), header.clone());
            }
            Source::Jwt(key) => {
                let token = sign::shell_token(key, now, TOKEN_LIFETIME);
                if let Some(mut header) = token.and_then(|token| HeaderValue::try_from(token).ok()) {
                    header.set_sensitive(true);
                    headers.insert(SHELL_JWT.clone(), header);
                }
            }
        }
    }
}

impl fmt::Debug for UpstreamCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamCredential([redacted])")
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
    fn the_token_is_valid_and_the_callers_credential_is_removed() {
        let secret = ShellSecret::from_text(b"s3cret\n").unwrap();
        let mut headers = headers();
        UpstreamCredential::new(UpstreamCredentialKind::Jwt, &secret).apply(&mut headers, NOW);
        let token = headers[&SHELL_JWT].as_bytes().to_vec();
        assert_eq!(ShellJwt::new(&secret).verify(&token, NOW + 119), Ok(NOW + 60));
        assert!(ShellJwt::new(&secret).verify(&token, NOW + 120).is_err());
        assert!(headers[&SHELL_JWT].is_sensitive());
        assert_eq!((headers.get(&SHARED_SECRET), headers.len()), (None, 2));
    }

    #[test]
    fn the_secret_is_sent_in_base64_without_its_line_break() {
        let secret = ShellSecret::from_text(b"s3cret\n").unwrap();
        let mut headers = headers();
        UpstreamCredential::new(UpstreamCredentialKind::SharedSecret, &secret).apply(&mut headers, NOW);
        assert_eq!(headers[&SHARED_SECRET], "czNjcmV0");
        assert!(headers[&SHARED_SECRET].is_sensitive());
        assert_eq!((headers.get(&SHELL_JWT), headers.len()), (None, 2));
    }

    #[test]
    fn debug_output_has_no_secret() {
        let secret = ShellSecret::from_text(b"s3cret").unwrap();
        for kind in [UpstreamCredentialKind::Jwt, UpstreamCredentialKind::SharedSecret] {
            assert_eq!(
                format!("{:?}", UpstreamCredential::new(kind, &secret)),
                "UpstreamCredential([redacted])"
            );
        }
    }
}
