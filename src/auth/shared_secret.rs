//! The shared secret as callers present it, in the order in which Rails looks (contract §2.2):
//! the parameter `secret_token`, where a body overrides the query, else the header.

use std::borrow::Cow;

use http::HeaderMap;

use super::json::{self, Member};
use super::{BodyOf, Rejection};
use crate::header;
use crate::params::{Params, SecretToken};
use crate::strict_base64;

/// What was found in the place where Rails would look.
#[derive(Debug)]
pub(super) enum Presented<'a> {
    /// This text, to be compared with the secret.
    Text(Cow<'a, [u8]>),
    /// Nothing that can be compared.
    Refused(Rejection),
    /// Nothing so far, and the body was not read.
    PerhapsInBody,
}

/// Finds the text that Rails would compare with its secret.
pub(super) fn find<'a>(headers: &'a HeaderMap, query: &Params<'a>, body: BodyOf<'a>) -> Presented<'a> {
    let from_body = match body {
        BodyOf::Form(form) => in_params(&Params::parse(form)),
        BodyOf::Json(body) => in_json(body),
        BodyOf::Irrelevant | BodyOf::Unread => Given::Absent,
    };
    match (from_body, in_params(query)) {
        (Given::Ambiguous, _) | (_, Given::Ambiguous) => Presented::Refused(Rejection::Ambiguous),
        (Given::Text(text), _) | (Given::Absent, Given::Text(text)) => Presented::Text(text),
        // A `null` in the body, or a bare name in a form, overrides the query, and then the header counts.
        (Given::Null, _) | (Given::Absent, Given::Absent | Given::Null) => in_header(headers, body),
    }
}

enum Given<'a> {
    Absent,
    Null,
    Text(Cow<'a, [u8]>),
    Ambiguous,
}

fn in_params<'a>(params: &Params<'a>) -> Given<'a> {
    match params.secret_token() {
        SecretToken::Absent => Given::Absent,
        SecretToken::Nil => Given::Null,
        SecretToken::Given(text) => Given::Text(text),
        SecretToken::Ambiguous => Given::Ambiguous,
    }
}

/// An empty body and an array are "no parameters" to Grape; anything else that is no object, and
/// a `secret_token` that is neither text nor `null`, ends in an error there.
fn in_json(body: &[u8]) -> Given<'_> {
    if body.is_empty() {
        return Given::Absent;
    }
    match json::member(body, "secret_token") {
        Ok(Member::Absent) => Given::Absent,
        Ok(Member::Null) => Given::Null,
        Ok(Member::Text(text)) => Given::Text(text),
        Ok(Member::Other) | Err(_) => Given::Ambiguous,
    }
}

/// Rails decodes leniently and skips what is no Base64. No client needs that, so anything but
/// plain Base64 with white space around it is no credential here.
fn in_header<'a>(headers: &'a HeaderMap, body: BodyOf<'_>) -> Presented<'a> {
    let unread = matches!(body, BodyOf::Unread);
    let Some(value) = headers.get(&header::SHARED_SECRET) else {
        return if unread { Presented::PerhapsInBody } else { Presented::Refused(Rejection::Missing) };
    };
    let encoded = value.as_bytes().trim_ascii();
    if encoded.is_empty() {
        return if unread { Presented::PerhapsInBody } else { Presented::Refused(Rejection::Missing) };
    }
    match strict_base64::decode(encoded) {
        Some(text) => Presented::Text(text.into()),
        None if unread => Presented::PerhapsInBody,
        None => Presented::Refused(Rejection::Malformed),
    }
}
