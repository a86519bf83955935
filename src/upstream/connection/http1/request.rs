//! The request as it is written: its head, and its body in the framing that suits it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::{Method, Request};
use http_body::Body as _;
use tokio::io::AsyncWrite;
use zeroize::{Zeroize as _, Zeroizing};

use super::error::Http1Error;
use crate::body::Body;

/// What is still to be written of a request.
#[derive(Debug, Default)]
pub(super) struct RequestWriter {
    /// The head, which has the credential, or the first line of a chunk.
    lines: Zeroizing<Vec<u8>>,
    /// Bytes of `lines` that were written.
    written: usize,
    data: Bytes,
    /// Behind the data.
    end: &'static [u8],
    /// Where more data comes from.
    body: Option<Body>,
    framing: RequestFraming,
    /// Whether anything was written.
    has_begun: bool,
    /// What was written may wait in the socket's own layer, TLS.
    is_flush_pending: bool,
}

/// Bytes of a head for which room is kept for the next one.
const MAX_IDLE_ROOM: usize = 4 * 1024;

#[derive(Clone, Copy, Debug)]
enum RequestFraming {
    /// This many bytes are still to come.
    Length(u64),
    Chunked,
}

impl Default for RequestFraming {
    fn default() -> Self {
        Self::Length(0)
    }
}

/// What becomes of the connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    KeepAlive,
    /// The server is asked to close it.
    Close,
}

impl RequestWriter {
    /// Begins with a request, whose target is in origin-form. A body in memory stays with the request, so that it can
    /// be sent again; a stream is taken out of it.
    pub(super) fn begin(&mut self, request: &mut Request<Body>, persistence: Persistence) {
        let in_memory = request.body().in_memory().cloned();
        // What is sent counts: what a stream announced need not be what came of it.
        let length = match &in_memory {
            Some(data) => Some(data.len() as u64),
            None => request.body().size_hint().exact(),
        };
        self.clear_lines();
        write_head(&mut self.lines, request, length, persistence);
        (self.has_begun, self.is_flush_pending, self.end) = (false, false, b"");
        self.framing = length.map_or(RequestFraming::Chunked, RequestFraming::Length);
        self.body = in_memory.is_none().then(|| std::mem::take(request.body_mut()));
        self.data = in_memory.unwrap_or_default();
    }

    /// Whether all of the request was written.
    pub(super) fn is_done(&self) -> bool {
        self.body.is_none() && self.remaining() == 0 && !self.is_flush_pending
    }

    /// Whether the request has a body that has not come to its end.
    pub(super) fn awaits_body(&self) -> bool {
        self.body.is_some()
    }

    /// The body, if it has not come to its end.
    pub(super) fn into_body(self) -> Option<Body> {
        self.body
    }

    /// Whether anything was written.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Writes until all is written, or nothing more can be.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Http1Error>> {
        loop {
            let more = if self.data.is_empty() { self.poll_body(cx)? } else { Poll::Ready(()) };
            while self.remaining() > 0 {
                ready!(self.poll_write_once(stream, cx)).map_err(Http1Error::Io)?;
            }
            if self.is_flush_pending {
                ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(Http1Error::Io)?;
                self.is_flush_pending = false;
            }
            if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
            ready!(more);
        }
    }

    /// An idle connection must not keep the credential of its last request, nor the room of a large head.
    fn clear_lines(&mut self) {
        self.lines.as_mut_slice().zeroize();
        self.lines.clear();
        self.lines.shrink_to(MAX_IDLE_ROOM);
        self.written = 0;
    }

    fn remaining(&self) -> usize {
        self.lines.len() - self.written + self.data.len() + self.end.len()
    }

    /// Takes the next part of the body, which goes out together with what is to be written before it.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Http1Error> {
        while let Some(body) = &mut self.body {
            // What ends the chunk before comes first.
            if !self.end.is_empty() {
                break;
            }
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else { return Ok(Poll::Pending) };
            match frame {
                None => return self.end_body().map(Poll::Ready),
                Some(Err(error)) => return Err(Http1Error::RequestBody(error)),
                // Trailers are not sent.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return self.add(data).map(Poll::Ready);
                    }
                }
            }
        }
        Ok(Poll::Ready(()))
    }

    fn add(&mut self, data: Bytes) -> Result<(), Http1Error> {
        match &mut self.framing {
            RequestFraming::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Http1Error::RequestLength)?;
            }
            RequestFraming::Chunked => {
                write_chunk_line(&mut self.lines, data.len());
                self.end = b"\r\n";
            }
        }
        self.data = data;
        Ok(())
    }

    fn end_body(&mut self) -> Result<(), Http1Error> {
        self.body = None;
        match self.framing {
            RequestFraming::Length(0) => {}
            RequestFraming::Length(_) => return Err(Http1Error::RequestLength),
            RequestFraming::Chunked => self.end = b"0\r\n\r\n",
        }
        Ok(())
    }

    fn poll_write_once<W: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let lines = self.lines.get(self.written..).unwrap_or_default();
        let parts = [IoSlice::new(lines), IoSlice::new(&self.data), IoSlice::new(self.end)];
        let mut count = ready!(Pin::new(stream).poll_write_vectored(cx, &parts))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        (self.has_begun, self.is_flush_pending) = (true, true);
        let of_lines = count.min(lines.len());
        self.written += of_lines;
        count -= of_lines;
        if self.written == self.lines.len() {
            self.clear_lines();
        }
        let of_data = count.min(self.data.len());
        self.data.advance(of_data);
        if self.data.is_empty() {
            // An idle connection must not keep the body of its last request in memory.
            self.data = Bytes::new();
        }
        self.end = self.end.get(count - of_data..).unwrap_or_default();
        Poll::Ready(Ok(()))
    }
}

/// Bytes of a head beside its method, target and other fields, at most.
const ROOM_FOR_FRAMING: usize = 96;

/// Fields of framing come from here alone.
fn write_head(lines: &mut Vec<u8>, request: &Request<Body>, length: Option<u64>, persistence: Persistence) {
    let method = request.method();
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    // At once: a vector that grows leaves copies of the credential behind.
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    lines.reserve(method.as_str().len() + target.len() + fields.sum::<usize>() + ROOM_FOR_FRAMING);
    for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        lines.extend_from_slice(part.as_bytes());
    }
    for (name, value) in request.headers() {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    match length {
        // RFC 9110 §8.6: a method that may have a body says so when it has none.
        Some(0) if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {}
        Some(length) => {
            lines.extend_from_slice(b"content-length: ");
            lines.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            lines.extend_from_slice(b"\r\n");
        }
        None => lines.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    if persistence == Persistence::Close {
        lines.extend_from_slice(b"connection: close\r\n");
    }
    lines.extend_from_slice(b"\r\n");
}

fn write_chunk_line(lines: &mut Vec<u8>, size: usize) {
    lines.extend_from_slice(format!("{size:x}\r\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;

    use super::*;

    #[test]
    fn what_was_written_is_forgotten() {
        for (length, room) in [(100, 1..=MAX_IDLE_ROOM), (MAX_IDLE_ROOM * 4, 0..=MAX_IDLE_ROOM)] {
            let mut request = Request::new(Body::from(Bytes::from_static(b"hello")));
            request.headers_mut().insert(AUTHORIZATION, "x".repeat(length).parse().unwrap());
            let mut writer = RequestWriter::default();
            writer.begin(&mut request, Persistence::Close);
            let head = writer.lines.clone();
            let reserved = writer.lines.capacity();
            let mut written = Vec::new();
            let progress =
                writer.poll_write(&mut written, &mut Context::from_waker(std::task::Waker::noop()));
            assert!(matches!(progress, Poll::Ready(Ok(()))));
            assert_eq!(written, [&head[..], b"hello"].concat());
            assert!(writer.is_done() && writer.lines.is_empty());
            assert!(room.contains(&writer.lines.capacity()), "{}", writer.lines.capacity());
            assert!(reserved <= head.len() + ROOM_FOR_FRAMING, "room is made once");
        }
    }
}
