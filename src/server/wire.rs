//! What only the raw bytes can tell: the framing of requests, read strictly.
//!
//! hyper's parser forgives a lone LF, drops a Content-Length beside a Transfer-Encoding, and
//! takes targets in any form; once it is done, nobody can see that they were there. So the
//! [`gate`](super::gate) reads every head through these pure functions before hyper does.
//! Strictness only ever goes one way: what passes here, hyper reads in the same sense.

use memchr::memchr;

use crate::refusal::Refusal;

/// Bounds on a request head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    /// Bytes, from the first of the method to the last of the empty line.
    pub(crate) bytes: usize,
    /// Header lines.
    pub(crate) headers: usize,
}

/// How far the end of a head has been looked for.
#[derive(Debug, Default)]
pub(crate) struct HeadSearch {
    line_start: usize,
    searched: usize,
}

/// How the bytes behind a head are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// This many bytes; 0 without a body.
    Length(u64),
    /// Chunks.
    Chunked,
}

impl HeadSearch {
    /// Looks for the end of the head in `bytes`, which begin where the head does. Remembers how
    /// far it got, so that a head that comes byte by byte is still read once only.
    pub(crate) fn end(&mut self, bytes: &[u8], limits: HeadLimits) -> Result<Option<usize>, Refusal> {
        while let Some(offset) = bytes.get(self.searched..).and_then(|rest| memchr(b'\n', rest)) {
            let line_end = self.searched + offset;
            let line = bytes.get(self.line_start..line_end).unwrap_or_default();
            let Some(line) = line.strip_suffix(b"\r") else { return Err(Refusal::BareLineFeed) };
            let is_first = self.line_start == 0;
            self.searched = line_end + 1;
            self.line_start = self.searched;
            if self.searched > limits.bytes {
                return Err(Refusal::HeadTooLarge);
            }
            if line.is_empty() {
                return if is_first { Err(Refusal::RequestLine) } else { Ok(Some(self.searched)) };
            }
        }
        self.searched = bytes.len();
        if bytes.len() > limits.bytes { Err(Refusal::HeadTooLarge) } else { Ok(None) }
    }
}

/// Judges a whole head, line ends included, and says how its body is framed.
pub(crate) fn judge_head(head: &[u8], limits: HeadLimits) -> Result<Framing, Refusal> {
    let mut lines = head.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let is_http_11 = judge_request_line(lines.next().unwrap_or_default())?;
    let mut framing = Fields::default();
    for (index, line) in lines.take_while(|line| !line.is_empty()).enumerate() {
        if index >= limits.headers {
            return Err(Refusal::TooManyHeaders);
        }
        framing.read(line)?;
    }
    framing.judge(is_http_11)
}

/// `METHOD SP origin-form SP HTTP/1.x`, one space each (RFC 9112 §3). True for HTTP/1.1.
fn judge_request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::RequestLine);
    };
    if method.is_empty() || !all_in(method, &TOKEN) {
        return Err(Refusal::RequestLine);
    }
    let is_plain = method.len() <= LONGEST_METHOD && method.iter().all(u8::is_ascii_uppercase);
    if !is_plain || matches!(method, b"CONNECT" | b"TRACE" | b"PRI") {
        return Err(Refusal::Method);
    }
    if !target.starts_with(b"/") {
        return Err(Refusal::NotOriginForm);
    }
    if !all_in(target, &IN_TARGET) {
        return Err(Refusal::Target);
    }
    let path = memchr(b'?', target).unwrap_or(target.len());
    if path > LONGEST_PATH || target.len() - path > LONGEST_QUERY {
        return Err(Refusal::TargetTooLong);
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Refusal::RequestLine),
    }
}

// What Puma's parser takes. Beyond it Puma answers a bare 400 on a new connection, and nothing at
// all on one that it has used: the request would sit there until Puma drops the connection.
const LONGEST_METHOD: usize = 20;
const LONGEST_PATH: usize = 8 * 1024;
const LONGEST_QUERY: usize = 10 * 1024;
const LONGEST_HEADER_NAME: usize = 256;

/// RFC 3986: unreserved, reserved and `%`, without `#`, since a fragment is never sent.
static IN_TARGET: [bool; 256] = alphanumeric_and(b"-._~:/?[]@!$&'()*+,;=%");
/// RFC 9110 §5.6.2.
static TOKEN: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");
/// RFC 9110 §5.5: visible characters, space, tab, and bytes beyond ASCII.
static IN_VALUE: [bool; 256] = field_value();

const fn alphanumeric_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut index = 0;
    while index < others.len() {
        table[others[index] as usize] = true;
        index += 1;
    }
    table
}

const fn field_value() -> [bool; 256] {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 32 {
        table[byte] = byte == b'\t' as usize;
        byte += 1;
    }
    table[0x7f] = false;
    table
}

fn all_in(bytes: &[u8], table: &[bool; 256]) -> bool {
    bytes.iter().all(|byte| table.get(usize::from(*byte)) == Some(&true))
}

/// The header fields that frame a message.
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
        if !(1..=LONGEST_HEADER_NAME).contains(&name.len())
            || !all_in(name, &TOKEN)
            || !all_in(value, &IN_VALUE)
        {
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 400, headers: 8 };

    fn judge(bytes: &[u8]) -> Result<Option<(usize, Framing)>, Refusal> {
        match HeadSearch::default().end(bytes, LIMITS)? {
            None => Ok(None),
            Some(end) => Ok(Some((end, judge_head(&bytes[..end], LIMITS)?))),
        }
    }

    #[test]
    fn heads_that_pass() {
        for (head, framing) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.0\r\n\r\n", Framing::Length(0)),
            ("GET /a?b=[c] HTTP/1.1\r\nHost:a\r\nX-Empty:\r\nX: \u{e9}\t\r\n\r\n", Framing::Length(0)),
            ("POST /a HTTP/1.1\r\nContent-Length: 12\r\n\r\n", Framing::Length(12)),
            ("POST /a HTTP/1.1\r\ncontent-length:\t12 \r\n\r\n", Framing::Length(12)),
            ("POST /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked),
        ] {
            assert_eq!(judge(head.as_bytes()), Ok(Some((head.len(), framing))), "{head:?}");
        }
    }

    #[test]
    fn heads_that_are_refused() {
        for (head, refusal) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Refusal::BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Refusal::BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", Refusal::BareLineFeed),
            ("\r\nGET / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            ("GET /\r\n\r\n", Refusal::RequestLine),
            ("GET  / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            ("GET / HTTP/1.1 \r\n\r\n", Refusal::RequestLine),
            ("GET /a b HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            (" GET / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            ("G\tT / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            ("GET / HTTP/1.2\r\n\r\n", Refusal::RequestLine),
            ("GET / HTTP/2.0\r\n\r\n", Refusal::RequestLine),
            ("GET / http/1.1\r\n\r\n", Refusal::RequestLine),
            ("PRI * HTTP/2.0\r\n\r\n", Refusal::Method),
            ("CONNECT a:1 HTTP/1.1\r\n\r\n", Refusal::Method),
            ("TRACE / HTTP/1.1\r\n\r\n", Refusal::Method),
            ("RAILGATE-REFUSED /host HTTP/1.1\r\n\r\n", Refusal::Method),
            ("get / HTTP/1.1\r\n\r\n", Refusal::Method),
            ("G!T / HTTP/1.1\r\n\r\n", Refusal::Method),
            ("ABCDEFGHIJKLMNOPQRSTU / HTTP/1.1\r\n\r\n", Refusal::Method),
            ("GET http://a/ HTTP/1.1\r\n\r\n", Refusal::NotOriginForm),
            ("OPTIONS * HTTP/1.1\r\n\r\n", Refusal::NotOriginForm),
            ("GET /a#b HTTP/1.1\r\n\r\n", Refusal::Target),
            ("GET /a\\b HTTP/1.1\r\n\r\n", Refusal::Target),
            ("GET /\u{e9} HTTP/1.1\r\n\r\n", Refusal::Target),
            ("GET /a\0 HTTP/1.1\r\n\r\n", Refusal::Target),
            ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", Refusal::FoldedHeader),
            ("GET / HTTP/1.1\r\n\tA: b\r\n\r\n", Refusal::FoldedHeader),
            ("GET / HTTP/1.1\r\nA : b\r\n\r\n", Refusal::HeaderLine),
            ("GET / HTTP/1.1\r\nA\r\n\r\n", Refusal::HeaderLine),
            ("GET / HTTP/1.1\r\n: b\r\n\r\n", Refusal::HeaderLine),
            ("GET / HTTP/1.1\r\nA: b\0\r\n\r\n", Refusal::HeaderLine),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", Refusal::HeaderLine),
            ("GET / HTTP/1.1\r\nA: b\r\r\n\r\n", Refusal::HeaderLine),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", Refusal::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", Refusal::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n", Refusal::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", Refusal::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", Refusal::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n", Refusal::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Refusal::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Refusal::ContentLength),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Refusal::TransferEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", Refusal::TransferEncoding),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                Refusal::TransferEncoding,
            ),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", Refusal::HeaderLine),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::TransferEncoding),
            (
                "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Refusal::TwoFramings,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                Refusal::TwoFramings,
            ),
        ] {
            assert_eq!(judge(head.as_bytes()), Err(refusal), "{head:?}");
        }
    }

    #[test]
    fn what_puma_would_not_answer_is_refused() {
        let limits = HeadLimits { bytes: 32 * 1024, headers: 8 };
        let judge = |head: String| judge_head(head.as_bytes(), limits);
        let line = |path: usize, query: usize| {
            judge(format!("GET /{}?{} HTTP/1.1\r\n\r\n", "a".repeat(path - 1), "b".repeat(query - 1)))
        };
        assert_eq!(line(LONGEST_PATH, LONGEST_QUERY), Ok(Framing::Length(0)));
        assert_eq!(line(LONGEST_PATH + 1, 1), Err(Refusal::TargetTooLong));
        assert_eq!(line(1, LONGEST_QUERY + 1), Err(Refusal::TargetTooLong));
        let named = |length: usize| judge(format!("GET / HTTP/1.1\r\n{}: b\r\n\r\n", "a".repeat(length)));
        assert_eq!(named(LONGEST_HEADER_NAME), Ok(Framing::Length(0)));
        assert_eq!(named(LONGEST_HEADER_NAME + 1), Err(Refusal::HeaderLine));
    }

    #[test]
    fn heads_out_of_bounds_are_refused() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(9));
        assert_eq!(judge(many.as_bytes()), Err(Refusal::TooManyHeaders));
        let large = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(400));
        assert_eq!(judge(large.as_bytes()), Err(Refusal::HeadTooLarge));
        assert_eq!(judge("G".repeat(401).as_bytes()), Err(Refusal::HeadTooLarge));
    }

    #[test]
    fn chunk_sizes() {
        for (line, size) in [("0", 0), ("1", 1), ("a", 10), ("FF", 255), ("000010", 16)] {
            assert_eq!(chunk_size(line.as_bytes()), Ok(size), "{line}");
        }
        for bad in ["", " 1", "1 ", "0x1", "+1", "-1", "g", "1;a=b", "1\r", "1234567890abcdef"] {
            assert_eq!(chunk_size(bad.as_bytes()), Err(Refusal::Chunk), "{bad}");
        }
    }

    proptest! {
        /// However the bytes are cut, the verdict is the same, and nothing panics.
        #[test]
        fn cutting_changes_nothing(
            bytes in "(GET|POST) /[a#]{0,2} HTTP/1[.]1\r?\n((A|Content-Length|Transfer-Encoding):[ 1bchunked\0]{0,9}\r?\n){0,4}\r?\n",
            cut in 0usize..200,
        ) {
            let bytes = bytes.as_bytes();
            let mut search = HeadSearch::default();
            let first = &bytes[..cut.min(bytes.len())];
            let in_two = match search.end(first, LIMITS) {
                Ok(None) => search.end(bytes, LIMITS),
                verdict => verdict,
            };
            prop_assert_eq!(in_two, HeadSearch::default().end(bytes, LIMITS));
            let _ = judge(bytes);
        }

        /// What passes here, hyper's parser accepts.
        #[test]
        fn what_passes_is_no_news_to_a_lenient_parser(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let head = [b"GET / HTTP/1.1\r\nA:", bytes.as_slice(), b"\r\n\r\n"].concat();
            if let Ok(Some((end, _))) = judge(&head) {
                prop_assert!(head[..end].ends_with(b"\r\n\r\n"));
                prop_assert!(!head[..end].contains(&0));
            }
        }
    }
}
