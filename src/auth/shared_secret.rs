//! The shared secret of a request, in the order in which Rails looks for it (contract §2.2):
//! the parameter `secret_token`, where a body overrides the query, else the header.

use http::HeaderMap;

use super::json::{self, Member};
use super::rejection::Rejection;
use crate::header;
use crate::params::{Params, SecretToken};
use crate::secret::ShellSecret;
use crate::strict_base64;

/// The request's body, as far as it may hold the credential.
#[derive(Clone, Copy, Debug)]
pub enum AuthBody<'a> {
    /// Rails would not look for a credential in it.
    Irrelevant,
    /// Rails would look for `secret_token` in it, and it has not been read.
    Unread,
    /// A whole form.
    Form(&'a [u8]),
    /// Whole JSON.
    Json(&'a [u8]),
}

/// What is in the place where Rails would look.
#[derive(Debug)]
pub(super) enum SecretCheck {
    /// The secret.
    Right,
    /// Another text, or nothing that can be compared.
    Rejected(Rejection),
    /// Not the secret so far, and the body was not read.
    BodyNeeded,
}

/// Finds the text that Rails would compare with its secret, and compares it.
pub(super) fn check(
    headers: &HeaderMap,
    query: &Params<'_>,
    body: AuthBody<'_>,
    secret: &ShellSecret,
) -> SecretCheck {
    let from_body = match body {
        AuthBody::Form(form) => Params::parse(form).secret_token(),
        AuthBody::Json(body) => in_json(body),
        AuthBody::Irrelevant | AuthBody::Unread => SecretToken::Absent,
    };
    match (from_body, query.secret_token()) {
        (SecretToken::Ambiguous, _) | (_, SecretToken::Ambiguous) => {
            SecretCheck::Rejected(Rejection::Ambiguous)
        }
        (SecretToken::Text(text), _) | (SecretToken::Absent, SecretToken::Text(text)) => {
            if secret.matches(&text) { SecretCheck::Right } else { not_found(body, Rejection::Wrong) }
        }
        // A `null` in the body, or a bare name in a form, overrides the query, and then the header counts.
        (SecretToken::Nil, _) | (SecretToken::Absent, SecretToken::Absent | SecretToken::Nil) => {
            in_header(headers, body, secret)
        }
    }
}

/// An empty body and an array are "no parameters" to Grape; anything else that is not an object, and
/// a `secret_token` that is neither text nor `null`, ends in an error there.
fn in_json(body: &[u8]) -> SecretToken<'_> {
    if body.is_empty() {
        return SecretToken::Absent;
    }
    match json::find_member(body, "secret_token") {
        Ok(Member::Absent) => SecretToken::Absent,
        Ok(Member::Null) => SecretToken::Nil,
        Ok(Member::Text(text)) => SecretToken::Text(text),
        Ok(Member::Other) | Err(_) => SecretToken::Ambiguous,
    }
}

/// Rails decodes leniently and skips what is not Base64. No client needs that, so anything but
/// plain Base64 with white space around it is not a credential here.
fn in_header(headers: &HeaderMap, body: AuthBody<'_>, secret: &ShellSecret) -> SecretCheck {
    let encoded = headers.get(&header::SHARED_SECRET).map(|value| value.as_bytes().trim_ascii());
    let Some(encoded) = encoded.filter(|encoded| !encoded.is_empty()) else {
        return not_found(body, Rejection::Missing);
    };
    if secret.matches_base64(encoded) {
        return SecretCheck::Right;
    }
    match strict_base64::decode(encoded) {
        Some(text) if secret.matches(&text) => SecretCheck::Right,
        Some(_) => not_found(body, Rejection::Wrong),
        None => not_found(body, Rejection::Malformed),
    }
}

/// What is in the body, if that was not read, would count in place of what was found so far.
fn not_found(body: AuthBody<'_>, rejection: Rejection) -> SecretCheck {
    if matches!(body, AuthBody::Unread) { SecretCheck::BodyNeeded } else { SecretCheck::Rejected(rejection) }
}
