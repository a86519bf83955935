//! The body of a response, decoded as its bytes arrive. Nothing here reads or waits.

use std::io::{self, ErrorKind};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use memchr::memchr;

use super::error::Http1Error;
use crate::framing::chunk::{ChunkLine, MAX_EXTENSION_BYTES};
use crate::framing::split_trailer;
use crate::upstream::connection::limits::{HEAD_BUFFER, MAX_RESPONSE_FIELDS};

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum BodyDecoder {
    /// This many bytes.
    Length(u64),
    /// All that comes until the connection is closed.
    UntilClose,
    Chunked(Box<Chunks>),
    /// Nothing.
    Ended,
}

/// A chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    next: ChunkPart,
    /// Bytes of the extensions so far.
    extensions: usize,
    trailers: HeaderMap,
    /// Bytes of the trailers so far.
    trailer_bytes: usize,
}

/// What is expected next of a chunked body.
#[derive(Clone, Copy, Debug, Default)]
enum ChunkPart {
    #[default]
    Line,
    /// This many bytes, at least one.
    Data(u64),
    /// The CRLF behind the data.
    DataEnd,
    Trailers,
}

/// A step of decoding.
#[derive(Debug)]
pub(super) enum Decoded {
    Frame(Frame<Bytes>),
    End,
    /// More has to be read first.
    Incomplete,
}

impl BodyDecoder {
    pub(super) fn length(length: u64) -> Self {
        if length == 0 { Self::Ended } else { Self::Length(length) }
    }

    pub(super) fn chunked() -> Self {
        Self::Chunked(Box::default())
    }

    pub(super) fn until_close() -> Self {
        Self::UntilClose
    }

    pub(super) fn is_until_close(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Ended => SizeHint::with_exact(0),
            Self::UntilClose | Self::Chunked(_) => SizeHint::default(),
        }
    }

    /// Takes the whole body, if its length is known and all of it is in `buffer`.
    pub(super) fn take_whole(&mut self, buffer: &mut BytesMut) -> Option<Bytes> {
        let length = match self {
            Self::Ended => 0,
            Self::Length(length) => usize::try_from(*length).ok().filter(|length| *length <= buffer.len())?,
            Self::UntilClose | Self::Chunked(_) => return None,
        };
        *self = Self::Ended;
        Some(buffer.split_to(length).freeze())
    }

    /// Takes what comes next from the begin of `buffer`. `is_eof` says that nothing more can be read.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut, is_eof: bool) -> Result<Decoded, Http1Error> {
        let decoded = match self {
            Self::Ended => Decoded::End,
            Self::Length(left) => match take(buffer, left) {
                Some(data) => {
                    if *left == 0 {
                        *self = Self::Ended;
                    }
                    data
                }
                None => Decoded::Incomplete,
            },
            Self::UntilClose => {
                let mut no_limit = u64::MAX;
                match take(buffer, &mut no_limit) {
                    Some(data) => data,
                    None if is_eof => Decoded::End,
                    None => Decoded::Incomplete,
                }
            }
            Self::Chunked(chunks) => chunks.decode(buffer)?,
        };
        match decoded {
            Decoded::Incomplete if is_eof => return Err(self.cut_short()),
            Decoded::End => *self = Self::Ended,
            Decoded::Frame(ref frame) if frame.is_trailers() => *self = Self::Ended,
            _ => {}
        }
        Ok(decoded)
    }

    fn cut_short(&self) -> Http1Error {
        let text = match self {
            Self::Chunked(_) => "unexpected EOF during chunk size line",
            _ => "end of file before message length reached",
        };
        Http1Error::Body(io::Error::new(ErrorKind::UnexpectedEof, text))
    }
}

impl Chunks {
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Http1Error> {
        loop {
            match &mut self.next {
                ChunkPart::Line => {
                    let Some(line) =
                        ChunkLine::read(buffer).map_err(|_| malformed("Invalid chunk size line"))?
                    else {
                        return Ok(Decoded::Incomplete);
                    };
                    buffer.advance(line.length);
                    self.extensions += line.extensions;
                    if self.extensions > MAX_EXTENSION_BYTES {
                        return Err(malformed("chunk extensions over limit"));
                    }
                    self.next = if line.size == 0 { ChunkPart::Trailers } else { ChunkPart::Data(line.size) };
                }
                ChunkPart::Data(left) => {
                    let Some(data) = take(buffer, left) else { return Ok(Decoded::Incomplete) };
                    if *left == 0 {
                        self.next = ChunkPart::DataEnd;
                    }
                    return Ok(data);
                }
                ChunkPart::DataEnd => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        self.next = ChunkPart::Line;
                    }
                    None if matches!(buffer.first(), None | Some(b'\r')) => return Ok(Decoded::Incomplete),
                    _ => return Err(malformed("Invalid chunk body CRLF")),
                },
                ChunkPart::Trailers => match self.take_trailer_line(buffer)? {
                    None => return Ok(Decoded::Incomplete),
                    Some(line) if !line.is_empty() => self.add_trailer(&line)?,
                    Some(_) if self.trailers.is_empty() => return Ok(Decoded::End),
                    Some(_) => {
                        return Ok(Decoded::Frame(Frame::trailers(std::mem::take(&mut self.trailers))));
                    }
                },
            }
        }
    }

    /// A line without its CRLF, if all of it is there.
    fn take_trailer_line(&mut self, buffer: &mut BytesMut) -> Result<Option<BytesMut>, Http1Error> {
        let room = (HEAD_BUFFER as usize).saturating_sub(self.trailer_bytes);
        match memchr(b'\n', buffer) {
            Some(at) if at < room => {
                self.trailer_bytes += at + 1;
                let mut line = buffer.split_to(at + 1);
                let length = line.strip_suffix(b"\r\n").map(<[u8]>::len);
                line.truncate(length.ok_or_else(|| malformed("Invalid trailer end LF"))?);
                Ok(Some(line))
            }
            // A CR that ends no line is refused before the line ends, which may never be.
            None if memchr(b'\r', buffer).is_some_and(|at| at + 1 < buffer.len()) => {
                Err(malformed("Invalid chunk end LF"))
            }
            None if buffer.len() < room => Ok(None),
            _ => Err(malformed("chunk trailers bytes over limit")),
        }
    }

    fn add_trailer(&mut self, line: &[u8]) -> Result<(), Http1Error> {
        let field = split_trailer(line).and_then(|(name, value)| {
            let value = HeaderValue::from_bytes(value.trim_ascii()).ok()?;
            Some((HeaderName::from_bytes(name).ok()?, value))
        });
        let (name, value) = field.ok_or_else(|| malformed("Invalid trailer"))?;
        if self.trailers.len() >= MAX_RESPONSE_FIELDS {
            return Err(malformed("chunk trailers count overflow"));
        }
        self.trailers.append(name, value);
        Ok(())
    }
}

/// Takes up to `left` bytes of data; `None` if there are none.
fn take(buffer: &mut BytesMut, left: &mut u64) -> Option<Decoded> {
    if buffer.is_empty() {
        return None;
    }
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= length as u64;
    Some(Decoded::Frame(Frame::data(buffer.split_to(length).freeze())))
}

fn malformed(text: &'static str) -> Http1Error {
    Http1Error::Body(io::Error::new(ErrorKind::InvalidInput, text))
}
