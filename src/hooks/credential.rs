//! Whether a request is GitLab's: by its token, or by a signature.
//!
//! What can be judged by the head is judged before any of the body is read. What is left then is one
//! HMAC of the body, however many signatures are shown.

use http::{HeaderMap, HeaderValue};

use super::Settings;
use crate::secret::{BearerToken, Signatures, SigningToken};

/// How old a signed event may be, in seconds, or how far ahead of this clock.
const SIGNED_FOR: u64 = 5 * 60;

/// What the head of a request shows.
#[derive(Debug)]
pub(super) enum Shown {
    /// The right token.
    Token,
    /// Signatures, of which one may be right; the body will tell.
    Signature(Signed),
    /// Nothing that could be right, whatever the body is.
    Nothing,
}

/// What a signature is over, besides the body, and those that are shown (Standard Webhooks).
#[derive(Debug)]
pub(super) struct Signed {
    id: HeaderValue,
    time: HeaderValue,
    signatures: Signatures,
}

impl Shown {
    /// What `headers` show at `now` (Unix seconds).
    pub(super) fn of(settings: &Settings, headers: &HeaderMap, now: i64) -> Self {
        let has_shown_token = |token: &BearerToken| {
            headers.get("x-gitlab-token").is_some_and(|shown| token.matches(shown.as_bytes()))
        };
        if settings.token.as_ref().is_some_and(has_shown_token) {
            return Self::Token;
        }
        let signed = settings.signing_token.is_some().then(|| Signed::read(headers, now)).flatten();
        signed.map_or(Self::Nothing, Self::Signature)
    }
}

impl Signed {
    fn read(headers: &HeaderMap, now: i64) -> Option<Self> {
        let (id, time) = (headers.get("webhook-id")?, headers.get("webhook-timestamp")?);
        let said = time.to_str().ok()?.parse::<i64>().ok()?;
        let signatures = Signatures::parse(headers.get("webhook-signature")?.to_str().ok()?)?;
        let is_now = said.abs_diff(now) <= SIGNED_FOR;
        is_now.then(|| Self { id: id.clone(), time: time.clone(), signatures })
    }

    /// Whether one of them is right for this body.
    pub(super) fn is_of(&self, body: &[u8], token: &SigningToken) -> bool {
        token.verifies(&[self.id.as_bytes(), b".", self.time.as_bytes(), b".", body], &self.signatures)
    }
}
