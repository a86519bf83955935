//! What only the raw bytes can tell: the framing of requests, read strictly.
//!
//! hyper's parser forgives a lone LF, drops a Content-Length beside a Transfer-Encoding, and
//! takes targets in any form; once it is done, nobody can see that they were there. So the
//! [`gate`](super::gate) reads every head through these pure functions before hyper does.
//! Strictness only ever goes one way: what passes here, hyper reads in the same sense.

use memchr::memchr;

use super::charset::{is_path, is_query, is_token, is_value};
use crate::authority;
use crate::refusal::Refusal;

/// Bounds on a request head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    /// Bytes, from the first of the method to the last of the empty line.
    pub(crate) bytes: usize,
    /// Header lines.
    pub(crate) headers: usize,
    /// Bytes of the target.
    pub(crate) target: usize,
}

/// A whole head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where it ends.
    pub(crate) end: usize,
    /// How its body is framed.
    pub(crate) framing: Framing,
    /// Its target is not yet a path with one slash in front: see [`in_origin_form`].
    pub(crate) is_odd: bool,
}

/// How the bytes behind a head are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// This many bytes; 0 without a body.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Reads a head line by line, each line once, however the head is cut into pieces.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    line_start: usize,
    searched: usize,
    /// Lines that were read.
    lines: usize,
    is_http_11: bool,
    is_odd: bool,
    has_skipped_line: bool,
    fields: Fields,
}

impl HeadReader {
    /// Reads on in `bytes`, which begin where the head does, and must be those of the last call
    /// and perhaps more.
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
                0 => (self.is_http_11, self.is_odd) = judge_request_line(line, limits.target)?,
                _ if line.is_empty() => {
                    let framing = self.fields.judge(self.is_http_11)?;
                    return Ok(Some(Head { end: self.searched, framing, is_odd: self.is_odd }));
                }
                lines if lines > limits.headers => return Err(Refusal::TooManyHeaders),
                _ => self.fields.read(line)?,
            }
            self.lines += 1;
        }
        self.searched = bytes.len();
        if bytes.len() > limits.bytes { Err(Refusal::HeadTooLarge) } else { Ok(None) }
    }

    /// How many bytes to drop in front of the head: one empty line, once (RFC 9112 §2.2). Old clients send it
    /// behind a body. To be asked before [`read`](Self::read).
    pub(crate) fn skip_empty_line(&mut self, bytes: &[u8]) -> usize {
        if self.has_skipped_line || !bytes.starts_with(b"\r\n") {
            return 0;
        }
        *self = Self { has_skipped_line: true, ..Self::default() };
        2
    }
}

/// `METHOD SP target SP HTTP/1.x`, one space each (RFC 9112 §3). Whether it is HTTP/1.1, and whether the
/// target is odd.
fn judge_request_line(line: &[u8], longest: usize) -> Result<(bool, bool), Refusal> {
    let (method, rest) = split_at_space(line).ok_or(Refusal::RequestLine)?;
    // A space too many ends up in the version, which is none then.
    let (target, version) = split_at_space(rest).ok_or(Refusal::RequestLine)?;
    if method.is_empty() || !is_token(method) {
        return Err(Refusal::RequestLine);
    }
    let is_plain = method.len() <= LONGEST_METHOD && method.iter().all(u8::is_ascii_uppercase);
    if !is_plain || matches!(method, b"CONNECT" | b"TRACE" | b"PRI") {
        return Err(Refusal::Method);
    }
    if target.is_empty() || !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
        return Err(Refusal::RequestLine);
    }
    if !target.starts_with(b"/") && after_scheme(target).is_none() {
        return Err(Refusal::NotOriginForm);
    }
    let (path, query) = target.split_at(memchr(b'?', target).unwrap_or(target.len()));
    if !is_path(path) || !is_query(query) {
        return Err(Refusal::Target);
    }
    if path.len() > LONGEST_PATH || query.len() + BESIDE_QUERY > longest || target.len() > longest {
        return Err(Refusal::TargetTooLong);
    }
    let is_odd = !target.starts_with(b"/") || target.starts_with(b"//");
    Ok((version == b"HTTP/1.1", is_odd))
}

/// The rest of a target in absolute-form, from its authority on.
fn after_scheme(target: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = target.split_at_checked(b"http://".len())?;
    scheme.eq_ignore_ascii_case(b"http://").then_some(rest)
}

/// A head whose target is odd, with one in origin-form that begins with one slash: what is matched, logged
/// and sent to Rails. Clients that put a path behind a URL that ends in a slash send two (`//api/…`); to a
/// target that begins with a slash, no host belongs, whatever follows.
///
/// An absolute-form passes if it names the `Host` that the head has (RFC 9112 §3.2.2): of two that differ,
/// one reader takes the one and one the other.
pub(crate) fn in_origin_form(head: &[u8]) -> Result<Vec<u8>, Refusal> {
    let (method, rest) = split_at_space(head).ok_or(Refusal::RequestLine)?;
    let (target, behind) = split_at_space(rest).ok_or(Refusal::RequestLine)?;
    let path = match after_scheme(target) {
        None => target,
        Some(rest) => {
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            // OPTIONS without a path asks about the whole server, as `*` does (RFC 9112 §3.2.4).
            let is_of_server = method == b"OPTIONS" && !path.starts_with(b"/");
            if is_of_server || !is_host_of(behind, authority) {
                return Err(Refusal::NotOriginForm);
            }
            path
        }
    };
    let slashes = path.iter().take_while(|byte| **byte == b'/').count();
    Ok([method, b" /", path.get(slashes..).unwrap_or_default(), b" ", behind].concat())
}

/// Whether the one `Host` among the lines of `behind` means the same as `authority`.
fn is_host_of(behind: &[u8], authority: &[u8]) -> bool {
    let mut hosts = behind.split(|byte| *byte == b'\n').filter_map(|line| {
        let (name, value) = line.split_at_checked(memchr(b':', line)?)?;
        name.eq_ignore_ascii_case(b"host").then(|| value.get(1..).unwrap_or_default().trim_ascii())
    });
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let known = |text| std::str::from_utf8(text).ok().and_then(authority::of_host);
    match (known(host), known(authority)) {
        (Some((host, port)), Some((named, named_port))) => {
            host.eq_ignore_ascii_case(named) && port.unwrap_or(80) == named_port.unwrap_or(80)
        }
        _ => false,
    }
}

fn split_at_space(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (before, after) = line.split_at_checked(memchr(b' ', line)?)?;
    Some((before, after.get(1..)?))
}

// What Puma's parser takes. Beyond it Puma (seen: 5.6.5) answers a bare 400 on a new connection, and nothing at
// all on one that it has used: the request would sit there until Puma drops the connection.
const LONGEST_METHOD: usize = 20;
// Puma: 8 KiB of path, 10 KiB of query, 12 KiB of both, unless it was built with other bounds. A KiB is left for
// the relative URL root.
const LONGEST_PATH: usize = 7 * 1024;
/// What of a target a query has to leave to the path.
const BESIDE_QUERY: usize = 1024;
/// The longest target that Puma takes as it is built by default.
pub(crate) const DEFAULT_TARGET: usize = 11 * 1024;
const LONGEST_HEADER_NAME: usize = 256;

/// The header fields that frame a message. An `Upgrade` is none of them: a server may ignore the offer (RFC
/// 9110 §7.8), and this one does.
#[derive(Debug, Default)]
struct Fields {
    length: Option<u64>,
    is_chunked: bool,
}

impl Fields {
    fn read(&mut self, line: &[u8]) -> Result<(), Refusal> {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(Refusal::FoldedHeader);
        }
        let colon = memchr(b':', line).ok_or(Refusal::HeaderLine)?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default();
        if !(1..=LONGEST_HEADER_NAME).contains(&name.len()) || !is_token(name) || !is_value(value) {
            return Err(Refusal::HeaderLine);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = length_of(value.trim_ascii())?;
            if self.length.replace(length).is_some() {
                return Err(Refusal::ContentLength);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_repeated = std::mem::replace(&mut self.is_chunked, true);
            if is_repeated || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::TransferEncoding);
            }
        }
        Ok(())
    }

    fn judge(&self, is_http_11: bool) -> Result<Framing, Refusal> {
        match (self.length, self.is_chunked) {
            (Some(_), true) => Err(Refusal::TwoFramings),
            (None, true) if !is_http_11 => Err(Refusal::TransferEncoding),
            (None, true) => Ok(Framing::Chunked),
            (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// RFC 9110 §8.6: digits and nothing else; at most 18, so that no reader overflows.
fn length_of(value: &[u8]) -> Result<u64, Refusal> {
    if !(1..=18).contains(&value.len()) || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::ContentLength);
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// The size in a chunk's first line, without the CRLF and without extensions.
pub(crate) fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    if !(1..=15).contains(&line.len()) {
        return Err(Refusal::Chunk);
    }
    line.iter().try_fold(0, |sum: u64, digit| {
        let digit = char::from(*digit).to_digit(16).ok_or(Refusal::Chunk)?;
        Ok(sum << 4 | u64::from(digit))
    })
}

/// Whether these bytes are the extensions of a chunk (RFC 9112 §7.1.1): one or more, each a name and perhaps a
/// value, a token or a quoted string. None can hold the end of a line.
pub(crate) fn are_extensions(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some(name) = without_blanks(bytes).strip_prefix(b";").map(without_blanks) else { return false };
        let Some(behind) = without_token(name) else { return false };
        bytes = match without_blanks(behind).strip_prefix(b"=").map(without_blanks) {
            None => behind,
            Some(value) => match without_token(value).or_else(|| without_quoted(value)) {
                None => return false,
                Some(behind) => behind,
            },
        };
    }
    true
}

fn without_blanks(bytes: &[u8]) -> &[u8] {
    let blanks = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    bytes.get(blanks..).unwrap_or_default()
}

/// What is behind the token that `bytes` begin with.
fn without_token(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.iter().take_while(|byte| is_token(&[**byte])).count();
    if length > 0 { bytes.get(length..) } else { None }
}

/// What is behind the quoted string that `bytes` begin with (RFC 9110 §5.6.4).
fn without_quoted(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', behind @ ..] => return Some(behind),
            [b'\\', quoted, behind @ ..] if is_value(&[*quoted]) => behind,
            [b'\\', ..] | [] => return None,
            [byte, behind @ ..] if is_value(&[*byte]) => behind,
            _ => return None,
        };
    }
}

/// A trailer line, without the CRLF: a header line that does not touch the framing.
pub(crate) fn judge_trailer(line: &[u8]) -> Result<(), Refusal> {
    let mut fields = Fields::default();
    fields.read(line).map_err(|_| Refusal::Chunk)?;
    if fields.length.is_some() || fields.is_chunked { Err(Refusal::Chunk) } else { Ok(()) }
}

/// The method of the request that the gate puts in the place of one that it refused.
pub(crate) const REFUSED: &str = "RAILGATE-REFUSED";

/// A head that hyper reads as a request, and the stack as the refusal of the real one. A client
/// cannot send it: the gate refuses a method with a hyphen.
pub(crate) fn refused_head(refusal: Refusal) -> Vec<u8> {
    format!("{REFUSED} /{} HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n", refusal.as_str())
        .into_bytes()
}

#[cfg(test)]
mod tests;
