//! Valid and invalid credentials. Tokens are signed by hand: a test with the gateway's own library would
//! share its mistakes.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::client::Request;

/// The secret of GitLab Shell; its file ends in a line feed, as most do.
pub const SHELL_SECRET: &str = "s3cret";

/// The secret of kas; its file holds it in Base64.
pub const KAS_SECRET: &[u8; 32] = b"these are 32 bytes for the test.";

pub const SECRET_HEADER: &str = "Gitlab-Shared-Secret";
pub const SHELL_HEADER: &str = "Gitlab-Shell-Api-Request";
pub const KAS_HEADER: &str = "Gitlab-Kas-Api-Request";

impl Request {
    /// Adds the shared secret in a header, as the documentation of the internal API has it.
    pub fn with_secret(self) -> Self {
        self.header(SECRET_HEADER, &STANDARD.encode(SHELL_SECRET))
    }

    /// Adds the token that GitLab Shell signs since GitLab 15.
    pub fn with_shell_token(self) -> Self {
        self.header(SHELL_HEADER, &shell_token(&json!({})))
    }

    /// Adds a kas token, and the token of the only agent.
    pub fn with_kas_token(self) -> Self {
        self.header(KAS_HEADER, &kas_token(&json!({}))).with_agent_token()
    }

    pub fn with_agent_token(self) -> Self {
        self.header("Authorization", "Bearer agent-token-5")
    }
}

/// A shell token with changed claims; `null` removes a claim.
pub fn shell_token(changes: &Value) -> String {
    let claims = json!({ "iss": "gitlab-shell", "iat": now(), "exp": now() + 60 });
    sign(&changed(claims, changes), SHELL_SECRET.as_bytes())
}

/// A kas token with changed claims. kas uses a few seconds; a minute keeps a slow machine from failing the
/// test.
pub fn kas_token(changes: &Value) -> String {
    let claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "nbf": now() - 5, "exp": now() + 60 });
    sign(&changed(claims, changes), KAS_SECRET)
}

/// A token with exactly these claims, signed with HS256.
pub fn sign(claims: &Value, key: &[u8]) -> String {
    sign_as(r#"{"alg":"HS256"}"#, claims, key)
}

/// A token with this header. The signature is always HS256.
pub fn sign_as(head: &str, claims: &Value, key: &[u8]) -> String {
    sign_text(head, &claims.to_string(), key)
}

/// A token with this header and payload, byte for byte.
pub fn sign_text(head: &str, payload: &str, key: &[u8]) -> String {
    let signed = [head, payload].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn changed(mut claims: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
    claims
}
