//! The reading side of a connection: bytes pass to hyper only once their framing is judged.
//!
//! The gate follows a connection from head to body to the next head by the strict rules of
//! [`wire`](super::wire). A head is held back until it is whole; a refused one is replaced by a
//! head that the stack answers with the refusal, so that earlier requests on the connection are
//! answered first. After that the connection delivers nothing more. A malformed chunk ends the
//! connection's reading with an error, for its request is already on its way.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use memchr::memchr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

use super::wire::{self, Framing, HeadLimits, HeadSearch};
use crate::refusal::Refusal;

/// A socket whose reading side is guarded.
#[derive(Debug)]
pub(super) struct Gate<I> {
    io: I,
    inbox: BytesMut,
    state: State,
    limits: HeadLimits,
    head_timeout: Duration,
    /// Runs from the first byte of a head that is not there yet.
    head_deadline: Option<Pin<Box<Sleep>>>,
    stall_timeout: Duration,
    /// Runs while a body is waited for, or while the peer does not take what it is sent. The end
    /// of it ends the connection: whoever has begun a message must go on with it.
    read_deadline: Option<Pin<Box<Sleep>>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
    /// Once cancelled, a first head is not waited for. Later ones are hyper's business: to it, the
    /// end of the input while an answer is being made means that the client left.
    drain: CancellationToken,
    has_begun: bool,
}

/// What comes next on the wire.
#[derive(Debug)]
enum State {
    Head(HeadSearch),
    /// This many bytes may pass as they are; then comes `next`.
    Pass {
        left: u64,
        next: Next,
    },
    ChunkSize,
    ChunkEnd,
    Trailer {
        seen: usize,
    },
    /// Nothing more passes: a head was refused, or the peer is done.
    End,
    Broken,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Head,
    Body(Framing),
    ChunkSize,
    ChunkEnd,
    Trailer(usize),
    End,
}

const READ: usize = 8 * 1024;
const LONGEST_CHUNK_LINE: usize = 17;

impl<I> Gate<I> {
    pub(super) fn new(
        io: I,
        limits: HeadLimits,
        head_timeout: Duration,
        stall_timeout: Duration,
        drain: CancellationToken,
    ) -> Self {
        Self {
            io,
            inbox: BytesMut::new(),
            state: State::Head(HeadSearch::default()),
            limits,
            head_timeout,
            head_deadline: None,
            stall_timeout,
            read_deadline: None,
            write_deadline: None,
            drain,
            has_begun: false,
        }
    }

    /// Moves over everything that needs no more bytes than are there. `Ok(true)`: something may
    /// pass, or the end is reached; `Ok(false)`: more has to be read first.
    fn advance(&mut self) -> io::Result<bool> {
        loop {
            match &mut self.state {
                State::Pass { left: 0, next } => self.state = next.state(),
                State::Pass { .. } | State::End => return Ok(true),
                State::Broken => return Err(broken()),
                State::Head(search) => {
                    let outcome = search.end(&self.inbox, self.limits);
                    match outcome.and_then(|end| self.judge(end)) {
                        Ok(None) => return Ok(false),
                        Ok(Some((end, framing))) => self.pass(end, Next::Body(framing)),
                        Err(refusal) => self.refuse(refusal),
                    }
                }
                State::ChunkSize => match self.line(LONGEST_CHUNK_LINE)? {
                    None => return Ok(false),
                    Some(end) => match self.chunk_size(end)? {
                        0 => self.pass(end, Next::Trailer(0)),
                        size => self.pass_more(end, size, Next::ChunkEnd),
                    },
                },
                State::ChunkEnd => match self.line(3)? {
                    None => return Ok(false),
                    Some(2) => self.pass(2, Next::ChunkSize),
                    Some(_) => return Err(self.break_off()),
                },
                State::Trailer { seen } => {
                    let seen = *seen;
                    let room = self.limits.bytes.saturating_sub(seen);
                    match self.line(room)? {
                        None => return Ok(false),
                        Some(2) => self.pass(2, Next::Head),
                        Some(end) => {
                            self.judge_trailer(end)?;
                            self.pass(end, Next::Trailer(seen + end));
                        }
                    }
                }
            }
        }
    }

    fn judge(&self, end: Option<usize>) -> Result<Option<(usize, Framing)>, Refusal> {
        let Some(end) = end else { return Ok(None) };
        let head = self.inbox.get(..end).unwrap_or_default();
        wire::judge_head(head, self.limits).map(|framing| Some((end, framing)))
    }

    fn pass(&mut self, bytes: usize, next: Next) {
        self.pass_more(bytes, 0, next);
    }

    fn pass_more(&mut self, line: usize, size: u64, next: Next) {
        self.head_deadline = None;
        self.has_begun = true;
        self.state = State::Pass { left: line as u64 + size, next };
    }

    fn refuse(&mut self, refusal: Refusal) {
        let stand_in = wire::refused_head(refusal);
        self.inbox = BytesMut::from(stand_in.as_slice());
        self.pass(stand_in.len(), Next::End);
    }

    /// The end of the CRLF line that the inbox begins with, if it is there already.
    fn line(&mut self, longest: usize) -> io::Result<Option<usize>> {
        match memchr(b'\n', &self.inbox) {
            Some(at) if at >= 1 && at < longest && self.inbox.get(at - 1) == Some(&b'\r') => Ok(Some(at + 1)),
            None if self.inbox.len() < longest => Ok(None),
            _ => Err(self.break_off()),
        }
    }

    fn chunk_size(&mut self, end: usize) -> io::Result<u64> {
        let size = wire::chunk_size(self.inbox.get(..end.saturating_sub(2)).unwrap_or_default());
        size.map_err(|_| self.break_off())
    }

    fn judge_trailer(&mut self, end: usize) -> io::Result<()> {
        let verdict = wire::judge_trailer(self.inbox.get(..end.saturating_sub(2)).unwrap_or_default());
        verdict.map_err(|_| self.break_off())
    }

    fn break_off(&mut self) -> io::Error {
        self.state = State::Broken;
        broken()
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Refusal::Chunk.message())
}

impl Next {
    fn state(self) -> State {
        match self {
            Self::Head | Self::Body(Framing::Length(0)) => State::Head(HeadSearch::default()),
            Self::Body(Framing::Length(left)) => State::Pass { left, next: Self::Head },
            Self::Body(Framing::Chunked) | Self::ChunkSize => State::ChunkSize,
            Self::ChunkEnd => State::ChunkEnd,
            Self::Trailer(seen) => State::Trailer { seen },
            Self::End => State::End,
        }
    }
}

impl<I: AsyncRead + Unpin> Gate<I> {
    /// Hands out what may pass. Large bodies go from the socket straight into hyper's buffer.
    fn deliver(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let State::Pass { left, .. } = &mut self.state else { return self.discard(cx) };
        let wanted = usize::try_from(*left).unwrap_or(usize::MAX);
        if self.inbox.is_empty() && wanted >= out.remaining() {
            let before = out.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
            *left -= (out.filled().len() - before) as u64;
            return Poll::Ready(Ok(()));
        }
        if self.inbox.is_empty() && ready!(self.fill(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        let State::Pass { left, .. } = &mut self.state else { return Poll::Pending };
        let count = self.inbox.len().min(wanted).min(out.remaining());
        out.put_slice(self.inbox.get(..count).unwrap_or_default());
        self.inbox.advance(count);
        *left -= count as u64;
        Poll::Ready(Ok(()))
    }

    /// After a refusal: takes what the peer still sends, so that closing the socket does not
    /// reset the connection before the answer is read. Never ready, or hyper would think that
    /// the client left, and drop the answer.
    fn discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inbox.clear();
        while ready!(self.fill(cx))? > 0 {
            self.inbox.clear();
        }
        Poll::Pending
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.inbox.reserve(READ);
        poll_read_buf(Pin::new(&mut self.io), cx, &mut self.inbox)
    }
}

/// Whether what is waited for is late: `deadline` begins to run with the first call.
fn is_late(deadline: &mut Option<Pin<Box<Sleep>>>, timeout: Duration, cx: &mut Context<'_>) -> bool {
    let deadline = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
    deadline.as_mut().poll(cx).is_ready()
}

/// Passes `progress` on; a peer that has kept it pending for too long is given up.
fn or_stalled<T>(
    progress: Poll<io::Result<T>>,
    deadline: &mut Option<Pin<Box<Sleep>>>,
    timeout: Duration,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    match progress {
        Poll::Pending if is_late(deadline, timeout, cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        Poll::Pending => Poll::Pending,
        Poll::Ready(progress) => {
            *deadline = None;
            Poll::Ready(progress)
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gate<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        loop {
            if gate.advance()? {
                let is_over = matches!(gate.state, State::End);
                let progress = gate.deliver(cx, out);
                let Gate { read_deadline, stall_timeout, .. } = gate;
                return if is_over {
                    progress
                } else {
                    or_stalled(progress, read_deadline, *stall_timeout, cx)
                };
            }
            let in_head = matches!(gate.state, State::Head(_));
            match gate.fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => gate.read_deadline = None,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if in_head && gate.inbox.is_empty() => {
                    return if gate.drain.is_cancelled() && !gate.has_begun {
                        Poll::Ready(Ok(()))
                    } else {
                        Poll::Pending
                    };
                }
                Poll::Pending if in_head => {
                    if !is_late(&mut gate.head_deadline, gate.head_timeout, cx) {
                        return Poll::Pending;
                    }
                    gate.refuse(Refusal::HeadTimeout);
                }
                // Between the chunks of a body.
                Poll::Pending => {
                    return or_stalled(Poll::Pending, &mut gate.read_deadline, gate.stall_timeout, cx);
                }
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gate<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let progress = Pin::new(&mut gate.io).poll_write(cx, buf);
        or_stalled(progress, &mut gate.write_deadline, gate.stall_timeout, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let progress = Pin::new(&mut gate.io).poll_write_vectored(cx, bufs);
        or_stalled(progress, &mut gate.write_deadline, gate.stall_timeout, cx)
    }
}

#[cfg(test)]
mod tests;
