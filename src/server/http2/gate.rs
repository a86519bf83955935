//! The socket of a connection that speaks HTTP/2: what h2 does not bound, which is time and the number of frames.
//!
//! h2 reads the frames; here they are only followed. A frame, or the frames of one block of fields, has to arrive
//! within `limits.head_timeout`, since nothing else can arrive meanwhile.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::deadline_timer::{DeadlineTimer, now};
use super::super::gate::GateLimits;
use super::super::hangup::DetectHangup;
use super::super::registry::ConnectionState;
use super::super::write_deadline::WriteDeadline;
use super::frames::{FrameBudget, FrameFollower};

/// A socket whose frames are counted, and have deadlines.
#[derive(Debug)]
pub(in super::super) struct FrameGate<I> {
    io: I,
    limits: GateLimits,
    received: FrameFollower,
    budget: FrameBudget,
    /// The frame that the read deadline is of.
    pending_frame: u64,
    read_deadline: DeadlineTimer,
    write_deadline: WriteDeadline,
}

impl<I> FrameGate<I> {
    pub(super) fn new(io: I, limits: GateLimits, connection: Arc<ConnectionState>) -> Self {
        Self {
            io,
            limits,
            received: FrameFollower::new(),
            budget: FrameBudget::new(now()),
            pending_frame: 0,
            read_deadline: DeadlineTimer::default(),
            write_deadline: WriteDeadline::new(limits.idle_timeout, connection),
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

    fn after_write(
        &mut self,
        progress: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.write_deadline.after_write(progress, cx))?;
        self.budget.earn(written);
        Poll::Ready(Ok(written))
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
        gate.after_write(progress, cx)
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
        let progress = Pin::new(&mut gate.io).poll_shutdown(cx);
        gate.write_deadline.after_shutdown(progress, cx)
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
        gate.after_write(progress, cx)
    }
}
