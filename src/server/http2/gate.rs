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
use super::super::gate::{GateLimits, or_timed_out};
use super::super::hangup::DetectHangup;
use super::super::registry::ConnectionState;
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
    write_deadline: DeadlineTimer,
    connection: Arc<ConnectionState>,
    has_unsent: bool,
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
            write_deadline: DeadlineTimer::default(),
            connection,
            has_unsent: false,
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

    fn after_write<T>(&mut self, progress: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if progress.is_ready() && self.write_deadline.is_armed() {
            self.connection.reset_idle();
        }
        if self.has_unsent != progress.is_pending() {
            self.has_unsent = progress.is_pending();
            self.connection.set_unsent(self.has_unsent);
        }
        or_timed_out(progress, &mut self.write_deadline, self.limits.idle_timeout, cx)
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
        let written = ready!(gate.after_write(progress, cx))?;
        gate.budget.earn(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let progress = Pin::new(&mut gate.io).poll_flush(cx);
        // Only TLS keeps bytes back that were written.
        if progress.is_pending() || gate.has_unsent {
            return gate.after_write(progress, cx);
        }
        progress
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let progress = Pin::new(&mut gate.io).poll_shutdown(cx);
        or_timed_out(progress, &mut gate.write_deadline, gate.limits.idle_timeout, cx)
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
        let written = ready!(gate.after_write(progress, cx))?;
        gate.budget.earn(written);
        Poll::Ready(Ok(written))
    }
}
