//! The head of a response. Nothing here reads or waits.
//!
//! Odd spellings with a single meaning are accepted, since the client gets a head that is written anew: a blank
//! before a colon, and folded lines (RFC 9112 §5.1, §5.2). What leaves a choice is refused.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;

use super::body::BodyDecoder;
use super::error::Http1Error;
use crate::framing::charset::{has_bare_line_feed, has_folded_line, is_token};
use crate::framing::{Framing, FramingFields};
use crate::upstream::connection::limits::{HEAD_BUFFER, MAX_RESPONSE_FIELDS, UNASKED_UPGRADE};

/// The head of a response, and what follows from it.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) response: Response<()>,
    pub(super) body: BodyDecoder,
    /// Whether the server takes another request over the connection after this one.
    pub(super) keeps_alive: bool,
}

/// Fields for which there is room at first. Rails sends about 20.
const USUAL_FIELDS: usize = 32;

/// The names of the last head's fields, as they were spelled, by place. The next head of a server mostly has the same,
/// and to compare is cheaper than to make a name.
#[derive(Debug, Default)]
pub(super) struct KnownNames(Vec<(Box<[u8]>, HeaderName)>);

/// The longest name that is kept while a connection is idle.
const MAX_KNOWN_NAME: usize = 64;

impl KnownNames {
    /// The name of the field at that place. `None` if it is none.
    fn name(&mut self, place: usize, spelling: &[u8]) -> Option<HeaderName> {
        match self.0.get(place) {
            Some((known, name)) if **known == *spelling => Some(name.clone()),
            _ => self.learn(place, spelling),
        }
    }

    #[cold]
    fn learn(&mut self, place: usize, spelling: &[u8]) -> Option<HeaderName> {
        let name = HeaderName::from_bytes(spelling).ok()?;
        if spelling.len() <= MAX_KNOWN_NAME {
            let learnt = (spelling.into(), name.clone());
            match self.0.get_mut(place) {
                Some(known) => *known = learnt,
                None if place < USUAL_FIELDS => self.0.push(learnt),
                None => {}
            }
        }
        Some(name)
    }
}

/// Bytes by which a client of HTTP/2 begins (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A head as it was found at the begin of the bytes.
struct ParsedHead {
    /// Its bytes, with the empty line.
    length: usize,
    status: StatusCode,
    reason: Option<ReasonPhrase>,
    is_http_11: bool,
    /// The names, and where the values are.
    fields: Vec<(HeaderName, Range<usize>)>,
    /// Whether a value may be folded.
    is_folded: bool,
}

/// Takes the head of the response to a request from the begin of `buffer`, and the interim responses before it. `None`
/// if more has to be read first.
pub(super) fn take_head(
    buffer: &mut BytesMut,
    is_for_head: bool,
    names: &mut KnownNames,
) -> Result<Option<ResponseHead>, Http1Error> {
    while !buffer.is_empty() {
        let Some(head) = parse::<USUAL_FIELDS>(buffer, names)? else {
            return if buffer.len() < HEAD_BUFFER as usize { Ok(None) } else { Err(Http1Error::TooLarge) };
        };
        let bytes = buffer.split_to(head.length).freeze();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Http1Error::Unusable(UNASKED_UPGRADE));
        }
        if !head.status.is_informational() {
            return interpret(head, &bytes, is_for_head).map(Some);
        }
    }
    Ok(None)
}

fn parse<const N: usize>(bytes: &[u8], known: &mut KnownNames) -> Result<Option<ParsedHead>, Http1Error> {
    let mut config = httparse::ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    config.allow_obsolete_multiline_headers_in_responses(true);
    let mut fields = [httparse::EMPTY_HEADER; N];
    let mut response = httparse::Response::new(&mut fields);
    let length = match config.parse_response(&mut response, bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) if N < MAX_RESPONSE_FIELDS => {
            return parse::<MAX_RESPONSE_FIELDS>(bytes, known);
        }
        Err(_) if bytes.starts_with(HTTP2_PREFACE) || begins_with_settings(bytes) => {
            return Err(Http1Error::Http2Preface);
        }
        Err(error) => return Err(error.into()),
    };
    let head = bytes.get(..length).unwrap_or_default();
    if length > HEAD_BUFFER as usize {
        return Err(Http1Error::TooLarge);
    }
    if has_bare_line_feed(head) {
        return Err(Http1Error::BareLineFeed);
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Http1Error::Status)?;
    let reason = response.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let mut named = Vec::with_capacity(response.headers.len());
    for (place, field) in response.headers.iter().enumerate() {
        let name = known.name(place, field.name.as_bytes()).ok_or_else(|| Http1Error::Field)?;
        let begin = field.value.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
        named.push((name, begin..begin.wrapping_add(field.value.len())));
    }
    Ok(Some(ParsedHead {
        length,
        status,
        reason: reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok()),
        is_http_11: response.version == Some(1),
        fields: named,
        is_folded: has_folded_line(head),
    }))
}

/// Whether the bytes begin as those of a server of HTTP/2 do: by SETTINGS of fewer than 256 bytes (RFC 9113 §3.4, §6.5).
fn begins_with_settings(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, _, 4, 0, 0, 0, 0, 0, ..])
}

fn interpret(head: ParsedHead, bytes: &Bytes, is_for_head: bool) -> Result<ResponseHead, Http1Error> {
    let mut framing = FramingFields::default();
    let mut connection = ConnectionOptions::default();
    let mut headers = HeaderMap::with_capacity(head.fields.len());
    for (name, place) in head.fields {
        let value = field_value(bytes, place, head.is_folded).ok_or_else(|| Http1Error::Field)?;
        match name {
            header::CONTENT_LENGTH | header::TRANSFER_ENCODING => {
                framing.add(name.as_str().as_bytes(), value.as_bytes())?;
            }
            header::CONNECTION => connection.add(&value),
            _ => {}
        }
        headers.append(name, value);
    }
    let framing = framing.framing(head.is_http_11)?;
    // RFC 9112 §6.3: these have no body, whatever their fields say. A 204 may not announce one (RFC 9110 §8.6); if it
    // does, one may follow, which must not be taken for the next response.
    let has_no_body = is_for_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = match framing {
        _ if has_no_body => BodyDecoder::length(0),
        Some(Framing::Length(length)) => BodyDecoder::length(length),
        Some(Framing::Chunked) => BodyDecoder::chunked(),
        None => BodyDecoder::until_close(),
    };
    let is_contradictory = head.status == StatusCode::NO_CONTENT
        && matches!(framing, Some(Framing::Length(1..) | Framing::Chunked));
    let keeps_alive = connection.keep_alive(head.is_http_11) && !body.is_until_close() && !is_contradictory;
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.version_mut() = if head.is_http_11 { Version::HTTP_11 } else { Version::HTTP_10 };
    *response.headers_mut() = headers;
    if let Some(reason) = head.reason {
        response.extensions_mut().insert(reason);
    }
    Ok(ResponseHead { response, body, keeps_alive })
}

/// The value at `place`, without a copy unless it is folded: then each fold becomes a space.
fn field_value(bytes: &Bytes, place: Range<usize>, is_folded: bool) -> Option<HeaderValue> {
    let value = bytes.get(place.clone())?;
    if !is_folded || memchr::memchr(b'\n', value).is_none() {
        return HeaderValue::from_maybe_shared(bytes.slice(place)).ok();
    }
    let lines: Vec<&[u8]> = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).collect();
    HeaderValue::from_bytes(&lines.join(&b' ')).ok()
}

/// What `Connection` says.
#[derive(Debug, Default)]
struct ConnectionOptions {
    has_close: bool,
    has_keep_alive: bool,
}

impl ConnectionOptions {
    fn add(&mut self, value: &HeaderValue) {
        for option in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            // An option that cannot be understood might be `close`.
            self.has_close |= option.eq_ignore_ascii_case(b"close") || !is_token(option);
            self.has_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// RFC 9112 §9.3.
    fn keep_alive(&self, is_http_11: bool) -> bool {
        !self.has_close && (is_http_11 || self.has_keep_alive)
    }
}
