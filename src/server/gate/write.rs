//! Passes bytes from hyper to the socket, with the time-out for writing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::super::hangup::DetectHangup;
use super::Gate;

impl<I> Gate<I> {
    fn poll_turn_to_write(&mut self, bytes: usize, cx: &Context<'_>) -> Poll<()> {
        let progress = self.pacer.poll_ready(bytes, cx);
        if progress.is_pending() {
            self.write_deadline.set_unsent(true);
        }
        progress
    }
}

impl<I: DetectHangup> AsyncWrite for Gate<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        ready!(gate.poll_turn_to_write(buf.len(), cx));
        let progress = Pin::new(&mut gate.io).poll_write(cx, buf);
        gate.write_deadline.after_write(progress, cx)
    }

    /// hyper calls this at the end of each of its polls.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let is_read_pending = std::mem::take(&mut gate.is_read_pending);
        if !is_read_pending && gate.connection.is_response_pending() {
            // hyper has unread bytes, and will not read on to detect the end.
            if gate.withholds_eof || gate.io.poll_hangup(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        if gate.withholds_eof && !gate.connection.has_active_requests() {
            // All is sent. hyper expects to be woken for the end of the input.
            gate.withholds_eof = false;
            cx.waker().wake_by_ref();
        }
        let progress = Pin::new(&mut gate.io).poll_flush(cx);
        // Only TLS keeps bytes back that were written.
        if progress.is_pending() || gate.is_flush_pending {
            gate.is_flush_pending = progress.is_pending();
            return gate.write_deadline.after_write(progress, cx);
        }
        progress
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        // A peer that has closed its side expects nothing more: closing the socket is enough.
        if gate.has_read_eof {
            return Poll::Ready(Ok(()));
        }
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
        ready!(gate.poll_turn_to_write(bufs.iter().map(|buf| buf.len()).sum(), cx));
        let progress = Pin::new(&mut gate.io).poll_write_vectored(cx, bufs);
        gate.write_deadline.after_write(progress, cx)
    }
}
