//! Authenticates the requests of GitLab: by a token, or by a signature.
//!
//! All that the head tells is checked before any of the body is read. What remains is one
//! HMAC of the body, however many signatures there are.

use http::{HeaderMap, HeaderValue};

use super::settings::HooksSettings;
use crate::secret::{BearerToken, Signatures, SigningToken};

/// Seconds that the timestamp of a signed event may be in the past or in the future.
const MAX_CLOCK_OFFSET_S: u64 = 5 * 60;

/// The credential in the head of a request.
#[derive(Clone, Debug)]
pub(super) enum PresentedCredential {
    /// A token, which is valid.
    Token,
    /// Signatures, of which one may be valid: that depends on the body.
    Signature(UnverifiedSignature),
}

/// Signatures, and what they cover beside the body (Standard Webhooks).
#[derive(Clone, Debug)]
pub(super) struct UnverifiedSignature {
    id: HeaderValue,
    timestamp: HeaderValue,
    signatures: Signatures,
}

impl PresentedCredential {
    /// `now` is in Unix seconds. `None` if there is none that could be valid.
    pub(super) fn from_headers(settings: &HooksSettings, headers: &HeaderMap, now: i64) -> Option<Self> {
        let is_valid = |token: &BearerToken| {
            headers.get("x-gitlab-token").is_some_and(|value| token.matches(value.as_bytes()))
        };
        if settings.tokens().any(is_valid) {
            return Some(Self::Token);
        }
        settings.signing_tokens().next()?;
        UnverifiedSignature::from_headers(headers, now).map(Self::Signature)
    }
}

impl UnverifiedSignature {
    fn from_headers(headers: &HeaderMap, now: i64) -> Option<Self> {
        let (id, timestamp) = (headers.get("webhook-id")?, headers.get("webhook-timestamp")?);
        let unix_seconds = timestamp.to_str().ok()?.parse::<i64>().ok()?;
        let signatures = Signatures::parse(headers.get("webhook-signature")?.to_str().ok()?)?;
        let is_recent = unix_seconds.abs_diff(now) <= MAX_CLOCK_OFFSET_S;
        is_recent.then(|| Self { id: id.clone(), timestamp: timestamp.clone(), signatures })
    }

    /// Whether one of them is valid for this body.
    pub(super) fn is_valid_for(&self, body: &[u8], token: &SigningToken) -> bool {
        token.verifies(&[self.id.as_bytes(), b".", self.timestamp.as_bytes(), b".", body], &self.signatures)
    }
}
