//! A connection to a server, and the exchange of one request over it.
//!
//! It moves bytes only while it is polled: for the head of the response, then for its body. Until the request is
//! written, each of these also writes, so a response that comes early is noticed while the body is still sent.
//!
//! A server may respond before it has read all of a request, such as 413, and close the connection. Then writing the
//! rest fails, while the response may be there to be read. So nothing is written from then on, and reading decides. The
//! same holds if the body of the request breaks off once there is a response: its end is not written.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{Method, Request};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::body::{BodyDecoder, Decoded};
use super::error::Http1Error;
use super::head::{KnownNames, ResponseHead, take_head};
use super::request::{Persistence, RequestWriter};
use crate::body::Body;
use crate::upstream::connection::error::is_reset;
use crate::upstream::connection::stream::UpstreamStream;

/// A connection that carries one request at a time.
#[derive(Debug)]
pub(super) struct Http1Connection {
    stream: UpstreamStream,
    /// Bytes that were read and not yet understood.
    buffer: BytesMut,
    /// Bytes to read at once.
    read_size: usize,
    has_read_eof: bool,
    names: KnownNames,
    request: RequestWriter,
    is_for_head: bool,
    /// How many more reads the head of the response may take.
    reads_left: u16,
    /// Whether anything came since the request began.
    has_received: bool,
    /// Whether the head of the response is there.
    has_head: bool,
    /// Whether writing has failed, though a response may be there to be read.
    has_write_failed: bool,
    body: BodyDecoder,
    /// Whether the server takes another request after this one.
    keeps_alive: bool,
}

/// A response of Rails comes in one read; one that fills it is large, so more is read at once.
const MIN_READ: usize = 8 * 1024;
const MAX_READ: usize = 32 * 1024;

/// A head comes in one read, or a few. A server that sends interim responses without end would keep a thread busy
/// until the request times out.
const MAX_READS_OF_HEAD: u16 = 256;

impl Http1Connection {
    pub(super) fn new(stream: UpstreamStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            read_size: MIN_READ,
            has_read_eof: false,
            names: KnownNames::default(),
            request: RequestWriter::default(),
            is_for_head: false,
            reads_left: 0,
            has_received: false,
            has_head: false,
            has_write_failed: false,
            body: BodyDecoder::length(0),
            keeps_alive: true,
        }
    }

    /// Whether it can carry another request, as far as is known without reading.
    pub(super) fn seems_usable(&self) -> bool {
        self.keeps_alive
            && !self.has_read_eof
            && !self.has_write_failed
            && self.request.is_done()
            && self.body.has_ended()
            && self.buffer.is_empty()
    }

    /// Whether it can carry another request: it is open, and nothing comes over it that no request has asked for. The
    /// task of `cx` is woken when that may have changed.
    pub(super) fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.seems_usable() && {
            let mut unasked = [0];
            let is_silent =
                Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut unasked)).is_pending();
            self.keeps_alive &= is_silent;
            is_silent
        }
    }

    /// Begins with a request. It is sent while [`Self::poll_head`] is polled.
    pub(super) fn begin(&mut self, request: &mut Request<Body>, persistence: Persistence) {
        self.is_for_head = request.method() == Method::HEAD;
        self.keeps_alive = false;
        self.reads_left = MAX_READS_OF_HEAD;
        (self.has_received, self.has_head) = (false, false);
        self.stream.report_reset(true);
        self.request.begin(request, persistence);
    }

    /// The head of the response.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<http::Response<()>, Http1Error>> {
        if let Poll::Ready(outcome) = self.poll_write(cx) {
            outcome?;
        }
        loop {
            if let Some(head) = take_head(&mut self.buffer, self.is_for_head, &mut self.names)? {
                let ResponseHead { response, body, keeps_alive } = head;
                (self.body, self.keeps_alive, self.has_head) = (body, keeps_alive, true);
                self.stream.report_reset(false);
                return Poll::Ready(Ok(response));
            }
            let Some(reads_left) = self.reads_left.checked_sub(1) else {
                return Poll::Ready(Err(Http1Error::EndlessHead));
            };
            ready!(self.poll_read(cx))?;
            if self.has_read_eof {
                return Poll::Ready(Err(Http1Error::Incomplete));
            }
            self.reads_left = reads_left;
        }
    }

    /// The body of the response, if all of it has come with the head.
    pub(super) fn take_whole_body(&mut self) -> Option<Bytes> {
        self.body.take_whole(&mut self.buffer)
    }

    /// The next part of the body of the response.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Poll::Ready(Some(Err(self.broken(error))));
        }
        loop {
            match self.body.decode(&mut self.buffer, self.has_read_eof) {
                Ok(Decoded::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::Incomplete) => {}
                Err(error) => return Poll::Ready(Some(Err(self.broken(error)))),
            }
            if let Err(error) = ready!(self.poll_read(cx)) {
                return Poll::Ready(Some(Err(self.broken(error))));
            }
        }
    }

    /// Writes what is left of the request. Pending while its body has nothing to write yet, and once writing has failed.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http1Error>> {
        if self.has_write_failed {
            return Poll::Pending;
        }
        if self.request.is_done() {
            return Poll::Ready(Ok(()));
        }
        let outcome = ready!(self.request.poll_write(&mut self.stream, cx));
        self.has_write_failed = match &outcome {
            Err(Http1Error::Io(error)) => is_reset(error) && self.request.has_begun(),
            // The server must not take what it has of the body for all of it.
            Err(Http1Error::RequestBody(_) | Http1Error::RequestLength) => self.has_head,
            _ => false,
        };
        if self.has_write_failed { Poll::Pending } else { Poll::Ready(outcome) }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http1Error>> {
        self.buffer.reserve(self.read_size);
        let read = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer));
        match read.map_err(Http1Error::Io)? {
            0 => self.has_read_eof = true,
            read => {
                self.has_received = true;
                if read >= self.read_size {
                    self.read_size = (self.read_size * 2).min(MAX_READ);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn broken(&mut self, error: Http1Error) -> Http1Error {
        self.keeps_alive = false;
        match error {
            Http1Error::Io(error) => Http1Error::Body(error),
            error => error,
        }
    }

    /// Whether anything of the request was written.
    pub(super) fn has_begun_to_write(&self) -> bool {
        self.request.has_begun()
    }

    /// Whether the request has a body that has not come to its end.
    pub(super) fn awaits_request_body(&self) -> bool {
        self.request.awaits_body()
    }

    /// Closes the connection, and returns what has not been sent of the body of the request.
    pub(super) fn into_request_body(self) -> Option<Body> {
        self.request.into_body()
    }

    /// Whether all of the response was received.
    pub(super) fn has_ended(&self) -> bool {
        self.body.has_ended()
    }

    /// How much of the response is still to come.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// Whether the server has reset the connection before it answered anything, of which `error` need not tell. A server
    /// that has begun to answer has read the request.
    pub(super) fn was_reset_unanswered(&self, error: &Http1Error) -> bool {
        let is_reset = matches!(error, Http1Error::Io(error) if is_reset(error));
        !self.has_received && (is_reset || self.has_write_failed || self.stream.was_reset())
    }
}
