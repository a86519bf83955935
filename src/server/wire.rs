//! Strict validation of the raw bytes of requests: their framing and their request lines.
//!
//! hyper's parser accepts a lone LF, drops a Content-Length beside a Transfer-Encoding, and
//! takes targets in any form; the parsed request does not show them any more. So the
//! [`gate`](super::gate) passes every head through these pure functions before hyper reads it.
//! They are only ever stricter than hyper: a head that passes here means the same to hyper.

use http::Request;
use memchr::memchr;

use crate::authority;
use crate::framing::charset::{is_path, is_query, is_token};
use crate::framing::{Framing, FramingError, FramingFields, split_field, split_trailer};
use crate::refusal::Refusal;

/// Limits for a request head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    /// Bytes, from the first of the method to the last of the empty line.
    pub(crate) bytes: usize,
    pub(crate) headers: usize,
    pub(crate) target: usize,
}

/// A complete head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The offset of the first byte behind it.
    pub(crate) end: usize,
    pub(crate) framing: Framing,
    /// Its target is not a path with one leading slash: see [`to_origin_form`].
    pub(crate) needs_rewrite: bool,
}

/// Reads a head line by line, each line once, in however many pieces it arrives.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    line_start: usize,
    searched: usize,
    /// The number of lines read.
    lines: usize,
    is_http_11: bool,
    needs_rewrite: bool,
    has_skipped_line: bool,
    fields: FramingFields,
}

impl HeadReader {
    /// Continues in `bytes`, which begin with the head, and must be those of the last call
    /// and perhaps more. `None` if the head is incomplete.
    pub(crate) fn read(&mut self, bytes: &[u8], limits: HeadLimits) -> Result<Option<Head>, Refusal> {
        while let Some(offset) = bytes.get(self.searched..).and_then(|rest| memchr(b'\n', rest)) {
            let line_end = self.searched + offset;
            let line = bytes.get(self.line_start..line_end).unwrap_or_default();
            let Some(line) = line.strip_suffix(b"\r") else { return Err(Refusal::BareLineFeed) };
            self.searched = line_end + 1;
            self.line_start = self.searched;
            if self.searched > limits.bytes {
                return Err(Refusal::HeadTooLarge);
            }
            match self.lines {
                0 => (self.is_http_11, self.needs_rewrite) = validate_request_line(line, limits.target)?,
                _ if line.is_empty() => {
                    // Without one of these fields there is no body.
                    let framing = self.fields.framing(self.is_http_11)?.unwrap_or(Framing::Length(0));
                    return Ok(Some(Head { end: self.searched, framing, needs_rewrite: self.needs_rewrite }));
                }
                lines if lines > limits.headers => return Err(Refusal::TooManyHeaders),
                _ => read_field(line, &mut self.fields)?,
            }
            self.lines += 1;
        }
        self.searched = bytes.len();
        if bytes.len() > limits.bytes { Err(Refusal::HeadTooLarge) } else { Ok(None) }
    }

    /// How many bytes to drop before the head: one empty line, once (RFC 9112 §2.2). Old clients send it
    /// after a body. Must be called before [`read`](Self::read).
    pub(crate) fn skip_empty_line(&mut self, bytes: &[u8]) -> usize {
        if self.has_skipped_line || !bytes.starts_with(b"\r\n") {
            return 0;
        }
        *self = Self { has_skipped_line: true, ..Self::default() };
        2
    }
}

/// `METHOD SP target SP HTTP/1.x`, one space each (RFC 9112 §3). Returns whether it is HTTP/1.1, and whether the
/// target has to be rewritten.
fn validate_request_line(line: &[u8], max_target: usize) -> Result<(bool, bool), Refusal> {
    let (method, rest) = split_at_space(line).ok_or(Refusal::RequestLine)?;
    // An extra space ends up in the version, which is invalid then.
    let (target, version) = split_at_space(rest).ok_or(Refusal::RequestLine)?;
    if method.is_empty() || !is_token(method) {
        return Err(Refusal::RequestLine);
    }
    validate_method(method)?;
    if target.is_empty() || !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
        return Err(Refusal::RequestLine);
    }
    if !target.starts_with(b"/") && after_scheme(target).is_none() {
        return Err(Refusal::NotOriginForm);
    }
    validate_target(target, max_target)?;
    let needs_rewrite = !target.starts_with(b"/") || target.starts_with(b"//");
    Ok((version == b"HTTP/1.1", needs_rewrite))
}

pub(super) fn validate_method(method: &[u8]) -> Result<(), Refusal> {
    let is_plain = method.len() <= MAX_METHOD && method.iter().all(u8::is_ascii_uppercase);
    if !is_plain || matches!(method, b"CONNECT" | b"TRACE" | b"PRI") {
        return Err(Refusal::Method);
    }
    Ok(())
}

/// The bytes and the length of a target, in whatever form.
pub(super) fn validate_target(target: &[u8], max_target: usize) -> Result<(), Refusal> {
    let (path, query) = target.split_at(memchr(b'?', target).unwrap_or(target.len()));
    if !is_path(path) || !is_query(query) {
        return Err(Refusal::Target);
    }
    if path.len() > MAX_PATH || query.len() + MIN_PATH_ROOM > max_target || target.len() > max_target {
        return Err(Refusal::TargetTooLong);
    }
    Ok(())
}

/// The part of a target in absolute-form from its authority on.
fn after_scheme(target: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = target.split_at_checked(b"http://".len())?;
    scheme.eq_ignore_ascii_case(b"http://").then_some(rest)
}

/// The head with its target rewritten to origin-form with one leading slash, which is then matched, logged
/// and sent to Rails. Clients that append a path to a URL with a trailing slash send two (`//api/…`); a
/// target that begins with a slash has no host, whatever follows.
///
/// An absolute-form passes if it names the `Host` of the head (RFC 9112 §3.2.2): if they differed, readers
/// could pick either.
pub(crate) fn to_origin_form(head: &[u8]) -> Result<Vec<u8>, Refusal> {
    let (method, rest) = split_at_space(head).ok_or(Refusal::RequestLine)?;
    let (target, behind) = split_at_space(rest).ok_or(Refusal::RequestLine)?;
    let path = match after_scheme(target) {
        None => target,
        Some(rest) => {
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            // OPTIONS without a path is about the whole server, as `*` is (RFC 9112 §3.2.4).
            let is_of_server = method == b"OPTIONS" && !path.starts_with(b"/");
            if is_of_server || !names_host(behind, authority) {
                return Err(Refusal::NotOriginForm);
            }
            path
        }
    };
    let slashes = path.iter().take_while(|byte| **byte == b'/').count();
    Ok([method, b" /", path.get(slashes..).unwrap_or_default(), b" ", behind].concat())
}

/// Whether the one `Host` among the lines of `behind` means the same as `authority`. HTTP/1.0 needs none.
fn names_host(behind: &[u8], authority: &[u8]) -> bool {
    let mut hosts = behind.split(|byte| *byte == b'\n').filter_map(|line| {
        let (name, value) = line.split_at_checked(memchr(b':', line)?)?;
        name.eq_ignore_ascii_case(b"host").then(|| value.get(1..).unwrap_or_default().trim_ascii())
    });
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host,
        (None, _) if behind.starts_with(b"HTTP/1.0\r") => authority,
        _ => return false,
    };
    are_same_host(host, authority, 80)
}

/// Whether two authorities, of a URL or a `Host`, are valid and mean the same.
pub(super) fn are_same_host(one: &[u8], other: &[u8], default_port: u16) -> bool {
    let known = |text| std::str::from_utf8(text).ok().and_then(authority::parse_host_header);
    match (known(one), known(other)) {
        (Some((host, port)), Some((named, named_port))) => {
            host.eq_ignore_ascii_case(named)
                && port.unwrap_or(default_port) == named_port.unwrap_or(default_port)
        }
        _ => false,
    }
}

fn split_at_space(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (before, after) = line.split_at_checked(memchr(b' ', line)?)?;
    Some((before, after.get(1..)?))
}

// The limits of Puma's parser. Beyond them Puma (seen: 5.6.5) answers a bare 400 on a new connection, and nothing at
// all on a reused one: the request would wait until Puma closes the connection.
const MAX_METHOD: usize = 20;
// Puma: 8 KiB of path, 10 KiB of query, 12 KiB of both, unless it was built with other limits. A KiB is reserved
// for the relative URL root.
const MAX_PATH: usize = 7 * 1024;
/// Bytes of a target that a query leaves to the path.
const MIN_PATH_ROOM: usize = 1024;
/// The longest target that Puma accepts as it is built by default.
pub(crate) const DEFAULT_TARGET: usize = 11 * 1024;
pub(super) const MAX_HEADER_NAME: usize = 256;

impl From<FramingError> for Refusal {
    fn from(error: FramingError) -> Self {
        match error {
            FramingError::Length | FramingError::RepeatedLength => Self::ContentLength,
            FramingError::Encoding | FramingError::EncodingOfOldVersion => Self::TransferEncoding,
            FramingError::TwoFramings => Self::TwoFramings,
        }
    }
}

fn read_field(line: &[u8], fields: &mut FramingFields) -> Result<(), Refusal> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(Refusal::FoldedHeader);
    }
    let field = split_field(line).filter(|(name, _)| name.len() <= MAX_HEADER_NAME);
    let (name, value) = field.ok_or(Refusal::HeaderLine)?;
    Ok(fields.add(name, value)?)
}

/// Validates a trailer line, without the CRLF: a header line that does not change the framing.
pub(crate) fn validate_trailer(line: &[u8]) -> Result<(), Refusal> {
    let field = split_trailer(line).filter(|(name, _)| name.len() <= MAX_HEADER_NAME);
    if field.is_some() { Ok(()) } else { Err(Refusal::Chunk) }
}

/// The method of the request that the gate puts in the place of one that it refused. A client cannot send it:
/// the gate refuses a method with a hyphen.
pub(crate) const REFUSED: &str = "RAILGATE-REFUSED";

/// A head that makes hyper call the service for a request that the gate has refused.
pub(super) fn refused_head(refusal: Refusal) -> Vec<u8> {
    format!("{REFUSED} /{} HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n", refusal.as_str())
        .into_bytes()
}

/// Turns a request into one that stands for its refusal, as the head of [`refused_head`] does.
pub(super) fn to_refused(head: &mut http::request::Parts, refusal: Refusal) {
    head.method = http::Method::from_bytes(REFUSED.as_bytes()).unwrap_or_default();
    head.uri = format!("/{}", refusal.as_str()).parse().unwrap_or_default();
    head.headers.clear();
    head.headers.insert(http::header::HOST, http::HeaderValue::from_static("refused"));
}

/// The refusal that the head of a request was made for by [`refused_head`].
pub(super) fn refusal_in<B>(request: &Request<B>) -> Option<Refusal> {
    let label = || request.uri().path().trim_start_matches('/');
    let is_refused = request.method().as_str() == REFUSED;
    is_refused.then(|| Refusal::from_label(label()).unwrap_or(Refusal::RequestLine))
}

#[cfg(test)]
mod tests;
