//! Credentials of clients: the shared secret, and tokens.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Map, Value, json};

use super::client::Request;

/// The secret shared by Rails and GitLab Shell. Its file ends in a line break.
pub const SHELL_SECRET: &str = "s3cret";
/// The secret shared by Rails and kas; its file is Base64.
pub const KAS_SECRET: [u8; 32] = *b"0123456789abcdef0123456789abcdef";

pub const SECRET_HEADER: &str = "Gitlab-Shared-Secret";
pub const SHELL_HEADER: &str = "Gitlab-Shell-Api-Request";
pub const KAS_HEADER: &str = "Gitlab-Kas-Api-Request";

/// Base64 of the secret.
pub const ENCODED_SECRET: &str = "czNjcmV0";
/// Base64 of the secret's file, as the Go shell sends it.
pub const ENCODED_SECRET_WITH_LINE_FEED: &str = "czNjcmV0Cg==";

pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// A time as Rails writes it in JSON.
pub fn rfc3339(unix_seconds: i64) -> String {
    let (days, second) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
    // Days since 0000-03-01, so that a leap day ends its year.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_based + 2) / 5 + 1;
    let month = if march_based < 10 { march_based + 3 } else { march_based - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

/// A shell token. `overrides` replaces claims; `null` removes one.
pub fn shell_token(overrides: &Value) -> String {
    let usual = json!({ "iss": "gitlab-shell", "iat": now(), "exp": now() + 60 });
    token(Algorithm::HS256, SHELL_SECRET.as_bytes(), &usual, overrides)
}

/// A kas token. `overrides` replaces claims; `null` removes one.
pub fn kas_token(overrides: &Value) -> String {
    let usual =
        json!({ "iss": "gitlab-kas", "aud": "gitlab", "iat": now(), "nbf": now() - 5, "exp": now() + 600 });
    token(Algorithm::HS256, &KAS_SECRET, &usual, overrides)
}

pub fn token(algorithm: Algorithm, secret: &[u8], usual: &Value, overrides: &Value) -> String {
    let mut claims: Map<String, Value> = usual.as_object().unwrap().clone();
    claims.extend(overrides.as_object().unwrap().clone());
    claims.retain(|_, value| !value.is_null());
    encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(secret)).unwrap()
}

impl Request {
    /// Adds the shared secret.
    pub fn with_secret(self) -> Self {
        self.header(SECRET_HEADER, ENCODED_SECRET)
    }

    /// Adds a shell token.
    pub fn with_shell_token(self) -> Self {
        self.header(SHELL_HEADER, &shell_token(&json!({})))
    }

    /// Adds a kas token and an agent's token.
    pub fn with_kas_token(self) -> Self {
        self.header(KAS_HEADER, &kas_token(&json!({}))).header("Authorization", "Bearer agent-token")
    }
}
