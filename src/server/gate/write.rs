//! How bytes go from hyper to the socket, and how long the peer may take over taking them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::super::socket::Watch;
use super::{Gate, or_stalled};

impl<I> Gate<I> {
    fn may_send(&mut self, bytes: usize, cx: &Context<'_>) -> Poll<()> {
        let progress = self.pacer.poll_ready(bytes, cx);
        if progress.is_pending() {
            self.set_unsent(true);
        }
        progress
    }

    /// The stack has answered once hyper has the answer; the peer has it once it takes it.
    fn wrote<T>(&mut self, progress: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if progress.is_ready() && self.write.is_waiting() {
            self.connection.touch();
        }
        self.set_unsent(progress.is_pending());
        or_stalled(progress, &mut self.write, self.limits.idle_timeout, cx)
    }

    fn set_unsent(&mut self, has_unsent: bool) {
        if self.has_unsent != has_unsent {
            self.has_unsent = has_unsent;
            self.connection.set_unsent(has_unsent);
        }
    }
}

impl<I: Watch> AsyncWrite for Gate<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        ready!(gate.may_send(buf.len(), cx));
        let progress = Pin::new(&mut gate.io).poll_write(cx, buf);
        gate.wrote(progress, cx)
    }

    /// hyper calls this whenever it has done what there was to do.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let is_reading = std::mem::take(&mut gate.is_reading);
        if !is_reading && gate.connection.is_waiting() {
            // hyper has bytes that are not wanted yet, and will not read on to find the end.
            if gate.holds_end || gate.io.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        if gate.holds_end && !gate.connection.is_answering() {
            // All is sent. hyper expects to be woken if there is something to read.
            gate.holds_end = false;
            cx.waker().wake_by_ref();
        }
        Pin::new(&mut gate.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that has closed its side waits for nothing more: closing ours says it all.
        if self.is_done { Poll::Ready(Ok(())) } else { Pin::new(&mut self.get_mut().io).poll_shutdown(cx) }
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
        ready!(gate.may_send(bufs.iter().map(|buf| buf.len()).sum(), cx));
        let progress = Pin::new(&mut gate.io).poll_write_vectored(cx, bufs);
        gate.wrote(progress, cx)
    }
}
