//! The secrets of the benchmark, and its credentials.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// The content of the secret file of GitLab Shell.
pub(crate) const SHELL_SECRET: &str = "f3a8c1d09b7e4e52a6d1b0c9e8f72635";
/// The key of kas tokens; its file holds it in Base64.
pub(crate) const KAS_SECRET: &str = "0123456789abcdefghijklmnopqrstuv";

pub(crate) const SHELL_HEADER: &str = "Gitlab-Shared-Secret";
pub(crate) const SHELL_TOKEN_HEADER: &str = "Gitlab-Shell-Api-Request";
pub(crate) const KAS_HEADER: &str = "Gitlab-Kas-Api-Request";

/// The value of `Gitlab-Shared-Secret`.
pub(crate) fn shared_secret() -> String {
    STANDARD.encode(SHELL_SECRET)
}

/// The content of the secret file of kas.
pub(crate) fn kas_secret_file() -> String {
    STANDARD.encode(KAS_SECRET)
}

/// A shell token that is valid for a day.
pub(crate) fn shell_token() -> String {
    let now = now();
    token(SHELL_SECRET, &json!({ "iss": "gitlab-shell", "iat": now, "exp": now + 86_400 }))
}

/// A kas token that is valid for a day.
pub(crate) fn kas_token() -> String {
    kas_token_until(now() + 86_400)
}

/// A kas token that expired an hour ago.
pub(crate) fn expired_kas_token() -> String {
    kas_token_until(now() - 3600)
}

fn kas_token_until(end: u64) -> String {
    let begin = now() - 7200;
    let claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "iat": begin, "nbf": begin, "exp": end });
    token(KAS_SECRET, &claims)
}

fn token(secret: &str, claims: &Value) -> String {
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
