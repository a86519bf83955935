//! What only the raw bytes can tell: the framing of requests, read strictly.
//!
//! hyper's parser forgives a lone LF, drops a Content-Length beside a Transfer-Encoding, and
//! takes targets in any form; once it is done, nobody can see that they were there. So the
//! [`gate`](super::gate) reads every head through these pure functions before hyper does.
//! Strictness only ever goes one way: what passes here, hyper reads in the same sense.

use memchr::memchr;

use super::charset::{is_target, is_token, is_value};
use crate::refusal::Refusal;

/// Bounds on a request head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    /// Bytes, from the first of the method to the last of the empty line.
    pub(crate) bytes: usize,
    /// Header lines.
    pub(crate) headers: usize,
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
    fields: Fields,
}

impl HeadReader {
    /// Reads on in `bytes`, which begin where the head does, and must be those of the last call
    /// and perhaps more. Once the head is whole: where it ends, and how its body is framed.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        limits: HeadLimits,
    ) -> Result<Option<(usize, Framing)>, Refusal> {
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
                0 => self.is_http_11 = judge_request_line(line)?,
                _ if line.is_empty() => {
                    return self.fields.judge(self.is_http_11).map(|framing| Some((self.searched, framing)));
                }
                lines if lines > limits.headers => return Err(Refusal::TooManyHeaders),
                _ => self.fields.read(line)?,
            }
            self.lines += 1;
        }
        self.searched = bytes.len();
        if bytes.len() > limits.bytes { Err(Refusal::HeadTooLarge) } else { Ok(None) }
    }
}

/// `METHOD SP origin-form SP HTTP/1.x`, one space each (RFC 9112 §3). True for HTTP/1.1.
fn judge_request_line(line: &[u8]) -> Result<bool, Refusal> {
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
    if !target.starts_with(b"/") {
        return Err(Refusal::NotOriginForm);
    }
    if !is_target(target) {
        return Err(Refusal::Target);
    }
    let path = memchr(b'?', target).unwrap_or(target.len());
    if path > LONGEST_PATH || target.len() - path > LONGEST_QUERY || target.len() > LONGEST_TARGET {
        return Err(Refusal::TargetTooLong);
    }
    Ok(version == b"HTTP/1.1")
}

fn split_at_space(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (before, after) = line.split_at_checked(memchr(b' ', line)?)?;
    Some((before, after.get(1..)?))
}

// What Puma's parser takes. Beyond it Puma answers a bare 400 on a new connection, and nothing at
// all on one that it has used: the request would sit there until Puma drops the connection.
const LONGEST_METHOD: usize = 20;
// Puma: 8 KiB of path, 10 KiB of query, 12 KiB of both. A KiB is left for the relative URL root.
const LONGEST_PATH: usize = 7 * 1024;
const LONGEST_QUERY: usize = 10 * 1024;
const LONGEST_TARGET: usize = 11 * 1024;
const LONGEST_HEADER_NAME: usize = 256;

/// The header fields that frame a message, or would end its protocol.
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
        } else if name.eq_ignore_ascii_case(b"upgrade") && !value.trim_ascii().eq_ignore_ascii_case(b"h2c") {
            // Who offers h2c speaks HTTP/1.1 as well, and is answered in it.
            return Err(Refusal::Upgrade);
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

/// The size in a chunk's first line, without the CRLF. No chunk extensions: nobody sends them,
/// and readers disagree on what they may hold.
pub(crate) fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    if !(1..=15).contains(&line.len()) {
        return Err(Refusal::Chunk);
    }
    line.iter().try_fold(0, |sum: u64, digit| {
        let digit = char::from(*digit).to_digit(16).ok_or(Refusal::Chunk)?;
        Ok(sum << 4 | u64::from(digit))
    })
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
