//! The socket of a connection that speaks HTTP/2: what h2 does not bound, which is time and the number of frames.
//!
//! h2 reads the frames; here they are only followed. A frame, or the frames of one block of fields, has to arrive
//! within `limits.head_timeout`, since nothing else can arrive meanwhile.
//!
//! h2 ends a connection once all is written, while a client may still have to receive it, and to say that it has room
//! for more. If the socket were closed by then, such a frame would reset the connection, and the rest would be lost.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::deadline_timer::{DeadlineTimer, now};
use super::super::gate::GateLimits;
use super::super::hangup::DetectHangup;
use super::super::write_deadline::WriteDeadline;
use super::frames::{FrameBudget, FrameFollower};
use super::streams::Streams;

/// How long a connection without streams may go on once it was told to end, since a part of an answer was last sent or
/// its peer last said something.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A socket whose frames are counted, and have deadlines.
#[derive(Debug)]
pub(in super::super) struct FrameGate<I> {
    io: I,
    limits: GateLimits,
    received: FrameFollower,
    sent: FrameFollower,
    budget: FrameBudget,
    /// The frame that the read deadline is of.
    pending_frame: u64,
    read_deadline: DeadlineTimer,
    /// For the peer to close its side.
    end_deadline: DeadlineTimer,
    write_deadline: WriteDeadline,
    streams: Arc<Streams>,
}

impl<I> FrameGate<I> {
    pub(super) fn new(io: I, limits: GateLimits, streams: Arc<Streams>) -> Self {
        Self {
            io,
            limits,
            received: FrameFollower::of_client(),
            sent: FrameFollower::of_server(),
            budget: FrameBudget::new(now()),
            pending_frame: 0,
            read_deadline: DeadlineTimer::default(),
            end_deadline: DeadlineTimer::default(),
            write_deadline: WriteDeadline::new(limits.idle_timeout, Arc::clone(streams.connection())),
            streams,
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { received, budget, .. } = self;
        received.follow(bytes, |frame| budget.spend(frame));
        if budget.is_used_up(now) {
            return Err(io::Error::other("the client has sent too many frames"));
        }
        let is_next = std::mem::replace(&mut self.pending_frame, received.ended()) != received.ended();
        if is_next || received.is_in_data() {
            self.read_deadline.clear();
        }
        Ok(())
    }

    /// Whether what was awaited from the peer has not come in time.
    fn is_too_late(&mut self, cx: &mut Context<'_>) -> bool {
        let GateLimits { first_byte_timeout, head_timeout, idle_timeout, .. } = self.limits;
        let limit = match () {
            () if !self.received.has_begun() => first_byte_timeout.min(idle_timeout),
            () if self.received.is_in_head() => head_timeout,
            () if self.received.is_in_data() => idle_timeout,
            // Between frames, the streams have deadlines, and a connection without any.
            () => {
                self.read_deadline.clear();
                return false;
            }
        };
        self.read_deadline.is_expired(limit, cx)
    }

    fn after_write<'b>(
        &mut self,
        progress: Poll<io::Result<usize>>,
        pieces: impl Iterator<Item = &'b [u8]>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.write_deadline.after_write(progress, cx))?;
        self.budget.earn(written);
        let (mut left, mut has_answer) = (written, false);
        for piece in pieces {
            let sent = piece.get(..left).unwrap_or(piece);
            has_answer |= self.sent.follow_answers(sent);
            left -= sent.len();
        }
        if has_answer {
            self.streams.record_progress();
        }
        Poll::Ready(Ok(written))
    }
}

impl<I: AsyncRead + Unpin> FrameGate<I> {
    /// Drops what the peer still sends, until it closes its side or has had its time.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut piece = [0; 1_024];
        while !self.end_deadline.is_expired(self.limits.idle_timeout, cx) {
            let mut dropped = ReadBuf::new(&mut piece);
            match Pin::new(&mut self.io).poll_read(cx, &mut dropped) {
                Poll::Ready(Ok(())) if !dropped.filled().is_empty() => {
                    self.read_deadline.clear();
                    self.streams.record_progress();
                }
                Poll::Pending if !self.read_deadline.is_expired(CLOSE_TIMEOUT, cx) => return Poll::Pending,
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for FrameGate<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let before = out.filled().len();
        match Pin::new(&mut gate.io).poll_read(cx, out) {
            Poll::Pending if gate.is_too_late(cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => Poll::Ready(gate.receive(out.filled().get(before..).unwrap_or_default())),
        }
    }
}

impl<I: DetectHangup> AsyncWrite for FrameGate<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let progress = Pin::new(&mut gate.io).poll_write(cx, buf);
        gate.after_write(progress, std::iter::once(buf), cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let progress = Pin::new(&mut gate.io).poll_flush(cx);
        // Only TLS keeps bytes back that were written.
        if progress.is_pending() || gate.write_deadline.has_unsent() {
            return gate.write_deadline.after_write(progress, cx);
        }
        progress
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if !gate.end_deadline.is_armed() {
            let progress = Pin::new(&mut gate.io).poll_shutdown(cx);
            ready!(gate.write_deadline.after_shutdown(progress, cx))?;
            gate.read_deadline.clear();
        }
        gate.poll_end(cx)
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
        gate.after_write(progress, bufs.iter().map(|buf| &**buf), cx)
    }
}
