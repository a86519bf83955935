//! Passes bytes from the socket to hyper, with the time-outs for reading.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf as _;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::{Gate, GateState, Head, HeadReader, NextState};
use crate::framing::Framing;
use crate::refusal::Refusal;

const READ_SIZE: usize = 8 * 1024;

impl<I: AsyncRead + Unpin> AsyncRead for Gate<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let progress = gate.read(cx, out);
        gate.is_read_pending = progress.is_pending() && !gate.withholds_eof;
        progress
    }
}

enum WaitOutcome {
    Continue,
    /// Ends the reading with this result.
    Close(io::Result<()>),
    /// A head has begun and is not complete in time.
    HeadTimeout,
}

impl<I: AsyncRead + Unpin> Gate<I> {
    fn read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self;
        let before = out.filled().len();
        loop {
            if gate.advance()? {
                if matches!(gate.state, GateState::End) {
                    return gate.discard(cx);
                }
                let progress = gate.deliver(cx, out);
                gate.set_awaits_body(progress.is_pending());
                return gate.read_deadline.limit(progress, gate.limits.idle_timeout, cx);
            }
            let in_head = matches!(gate.state, GateState::Head(_));
            let is_first = gate.buffer.is_empty();
            let progress = if in_head && is_first { gate.read_heads(cx, out) } else { gate.fill_buffer(cx) };
            if !in_head {
                gate.set_awaits_body(progress.is_pending());
            }
            match progress {
                Poll::Ready(Ok(0)) => {
                    gate.has_read_eof = true;
                    gate.withholds_eof = in_head && gate.is_sending();
                    return if gate.withholds_eof { Poll::Pending } else { Poll::Ready(Ok(())) };
                }
                // A head has one deadline for all of it, or it could arrive byte by byte for ever.
                Poll::Ready(Ok(_)) if in_head && !is_first => {}
                Poll::Ready(Ok(_)) => {
                    gate.read_deadline.clear();
                    if in_head && !gate.buffer.is_empty() {
                        gate.connection.head_started();
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => match gate.check_wait(cx) {
                    WaitOutcome::Continue => return Poll::Pending,
                    WaitOutcome::Close(outcome) => return Poll::Ready(outcome),
                    WaitOutcome::HeadTimeout => gate.refuse(Refusal::HeadTimeout),
                },
            }
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Whether a response is being sent that waits only for the peer. hyper takes the end of the input for a
    /// client that has disconnected. But the client may have closed only its sending side after its request, and
    /// gets a response that is available at once. A pending response is given up: the system does not tell such a
    /// client from one that has disconnected.
    fn is_sending(&self) -> bool {
        let is_answering = self.connection.has_active_requests() || self.write_deadline.has_unsent();
        is_answering && !self.connection.is_response_pending()
    }

    /// Reads heads straight into hyper's buffer, and takes out again what may not pass: an incomplete or malformed
    /// head, and what follows the first one. Returns how many bytes were read.
    fn read_heads(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
        let fresh = out.filled().get(before..).unwrap_or_default();
        let count = fresh.len();
        let mut reader = HeadReader::default();
        let passing = match reader.read(fresh, self.limits.head) {
            Ok(Some(Head { end, framing, needs_rewrite: false })) => {
                self.pass_head(0, NextState::Body(framing));
                // The part of the body that was read passes with the head.
                match framing {
                    Framing::Length(length) => {
                        let behind = count.saturating_sub(end);
                        let body = usize::try_from(length).unwrap_or(usize::MAX).min(behind);
                        self.pass_more(0, length - body as u64, NextState::Head);
                        end + body
                    }
                    Framing::Chunked => end,
                }
            }
            // Validated again, from the buffer.
            Ok(_) | Err(_) => 0,
        };
        self.buffer.extend_from_slice(fresh.get(passing..).unwrap_or_default());
        out.set_filled(before + passing);
        Poll::Ready(Ok(count))
    }

    /// Delivers the bytes that may pass. Large bodies go from the socket straight into hyper's buffer.
    fn deliver(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let GateState::Pass { left, .. } = &mut self.state else { return Poll::Pending };
        let wanted = usize::try_from(*left).unwrap_or(usize::MAX);
        if self.buffer.is_empty() && wanted >= out.remaining() {
            let before = out.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
            *left -= (out.filled().len() - before) as u64;
            return Poll::Ready(Ok(()));
        }
        if self.buffer.is_empty() && ready!(self.fill_buffer(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        let GateState::Pass { left, .. } = &mut self.state else { return Poll::Pending };
        let count = self.buffer.len().min(wanted).min(out.remaining());
        out.put_slice(self.buffer.get(..count).unwrap_or_default());
        self.buffer.advance(count);
        *left -= count as u64;
        Poll::Ready(Ok(()))
    }

    /// Checks the deadline of a pending read. Between requests, the wait begins once the last one is answered.
    fn check_wait(&mut self, cx: &mut Context<'_>) -> WaitOutcome {
        let in_head = matches!(self.state, GateState::Head(_));
        let idle = self.limits.idle_timeout;
        if !in_head {
            let is_expired = self.read_deadline.is_expired(idle, cx);
            return if is_expired {
                WaitOutcome::Close(Err(io::ErrorKind::TimedOut.into()))
            } else {
                WaitOutcome::Continue
            };
        }
        if !self.buffer.is_empty() {
            let is_expired = self.read_deadline.is_expired(self.limits.head_timeout, cx);
            return if is_expired { WaitOutcome::HeadTimeout } else { WaitOutcome::Continue };
        }
        if !self.has_begun && self.connection.is_draining() {
            return WaitOutcome::Close(Ok(()));
        }
        if self.connection.has_active_requests() || self.write_deadline.is_armed() {
            // hyper does not read again once the response is sent, so a timer has to wake the task.
            self.read_deadline.wake_within(idle, cx);
            return WaitOutcome::Continue;
        }
        let limit = if self.has_begun { idle } else { idle.min(self.limits.first_byte_timeout) };
        let is_expired = self.read_deadline.is_expired_since(self.connection.idle_since(), limit, cx);
        if is_expired { WaitOutcome::Close(Ok(())) } else { WaitOutcome::Continue }
    }

    /// After a refusal: reads and drops what the peer still sends, so that closing the socket does not
    /// reset the connection before the response is read. Never ready: hyper would take it for a client that has
    /// disconnected, and drop the response.
    fn discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.clear();
        while ready!(self.fill_buffer(cx))? > 0 {
            self.buffer.clear();
        }
        Poll::Pending
    }

    fn fill_buffer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.buffer.reserve(READ_SIZE);
        poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buffer)
    }
}
