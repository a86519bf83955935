//! The first line of a chunk (RFC 9112 §7.1): its size, and extensions, for which there is no known use.

use memchr::memchr;

use super::charset::{is_token, is_value};

/// Digits of the size of a chunk, so that no reader overflows.
const MAX_DIGITS: usize = 15;
/// Bytes of the first line of a chunk, without extensions.
pub(crate) const MAX_CHUNK_LINE: usize = MAX_DIGITS + 2;
/// Bytes of the first line of a chunk with its extensions.
pub(crate) const MAX_EXTENDED_LINE: usize = 256;
/// Bytes of all extensions of a body. A sender that needs more is taken for an attacker.
pub(crate) const MAX_EXTENSION_BYTES: usize = 16 * 1024;

/// The first line of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkLine {
    /// Bytes of data behind it; 0 for the last chunk.
    pub(crate) size: u64,
    /// Bytes of the line, CRLF included.
    pub(crate) length: usize,
    /// Bytes of its extensions.
    pub(crate) extensions: usize,
}

/// The line is malformed or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MalformedChunk;

impl ChunkLine {
    /// Reads the line that `bytes` begin with; `None` if more of it has to be read first.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, MalformedChunk> {
        let begin = bytes.get(..MAX_EXTENDED_LINE).unwrap_or(bytes);
        let digits = begin.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        // What cannot become a line is refused before its end, which may never come.
        if digits > MAX_DIGITS || !matches!(begin.get(digits), None | Some(b'\r' | b';' | b' ' | b'\t')) {
            return Err(MalformedChunk);
        }
        let Some(end) = memchr(b'\n', begin) else {
            let has_odd_cr = memchr(b'\r', begin).is_some_and(|at| at + 1 < begin.len());
            return if has_odd_cr || bytes.len() >= MAX_EXTENDED_LINE {
                Err(MalformedChunk)
            } else {
                Ok(None)
            };
        };
        let line = begin.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(MalformedChunk)?;
        let (size, extensions) = line.split_at_checked(digits).ok_or(MalformedChunk)?;
        let size = chunk_size(size).ok_or(MalformedChunk)?;
        if !are_extensions(extensions) {
            return Err(MalformedChunk);
        }
        Ok(Some(Self { size, length: end + 1, extensions: extensions.len() }))
    }
}

/// The size in a chunk's first line, which is passed without CRLF and extensions.
pub(crate) fn chunk_size(line: &[u8]) -> Option<u64> {
    if !(1..=MAX_DIGITS).contains(&line.len()) {
        return None;
    }
    line.iter().try_fold(0, |sum: u64, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(sum << 4 | u64::from(digit))
    })
}

/// Whether these bytes are the extensions of a chunk (RFC 9112 §7.1.1): each a name and perhaps a value, which is a
/// token or a quoted string. They cannot contain the end of a line.
pub(crate) fn are_extensions(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some(name) = skip_blanks(bytes).strip_prefix(b";").map(skip_blanks) else { return false };
        let Some(behind) = skip_token(name) else { return false };
        bytes = match skip_blanks(behind).strip_prefix(b"=").map(skip_blanks) {
            None => behind,
            Some(value) => match skip_token(value).or_else(|| skip_quoted(value)) {
                None => return false,
                Some(behind) => behind,
            },
        };
    }
    true
}

fn skip_blanks(bytes: &[u8]) -> &[u8] {
    let blanks = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    bytes.get(blanks..).unwrap_or_default()
}

/// The rest after the token that `bytes` begin with.
fn skip_token(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.iter().take_while(|byte| is_token(&[**byte])).count();
    if length > 0 { bytes.get(length..) } else { None }
}

/// The rest after the quoted string that `bytes` begin with (RFC 9110 §5.6.4).
fn skip_quoted(bytes: &[u8]) -> Option<&[u8]> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes() {
        for (line, size) in [("0", 0), ("1", 1), ("a", 10), ("FF", 255), ("000010", 16)] {
            assert_eq!(chunk_size(line.as_bytes()), Some(size), "{line}");
        }
        for bad in ["", " 1", "1 ", "0x1", "+1", "-1", "g", "1;a=b", "1\r", "1234567890abcdef"] {
            assert_eq!(chunk_size(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_line_is_read_once_it_is_whole_and_refused_as_soon_as_it_cannot_become_one() {
        let line = |size, length, extensions| Ok(Some(ChunkLine { size, length, extensions }));
        for (bytes, expected) in [
            ("4\r\nnull", line(4, 3, 0)),
            ("0\r\n\r\n", line(0, 3, 0)),
            ("00aF ;a=b;\tc = \"\\\"d\" \r\n", Err(MalformedChunk)),
            ("00aF ;a=b;\tc = \"\\\"d\"\r\n", line(175, 22, 16)),
            ("12345678\r", Ok(None)),
            ("123456789abcdef", Ok(None)),
            ("1234567890abcdef", Err(MalformedChunk)),
            ("1;a", Ok(None)),
            ("", Ok(None)),
            ("\r\n", Err(MalformedChunk)),
            ("x", Err(MalformedChunk)),
            ("4\n", Err(MalformedChunk)),
            ("4 \r\n", Err(MalformedChunk)),
            ("4\rx\r\n", Err(MalformedChunk)),
            ("0\r\r", Err(MalformedChunk)),
            ("0;a\rb", Err(MalformedChunk)),
            ("4;a\n\r\n", Err(MalformedChunk)),
        ] {
            assert_eq!(ChunkLine::read(bytes.as_bytes()), expected, "{bytes:?}");
        }
        let long = format!("1;{}", "a".repeat(MAX_EXTENDED_LINE));
        assert_eq!(ChunkLine::read(long.as_bytes()), Err(MalformedChunk));
    }
}
