//! How bytes come from the socket to hyper, and how long they are waited for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf as _;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::{Framing, Gate, Head, HeadReader, Next, State, or_stalled};
use crate::refusal::Refusal;

const READ: usize = 8 * 1024;

impl<I: AsyncRead + Unpin> AsyncRead for Gate<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let progress = gate.read(cx, out);
        gate.is_reading = progress.is_pending() && !gate.holds_end;
        progress
    }
}

/// What becomes of a wait.
enum Waited {
    /// It goes on.
    ForMore,
    /// It ends, and with it the reading.
    TooLong(io::Result<()>),
    /// A head has begun and does not end.
    ForTheHead,
}

impl<I: AsyncRead + Unpin> Gate<I> {
    fn read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self;
        let before = out.filled().len();
        loop {
            if gate.advance()? {
                if matches!(gate.state, State::End) {
                    return gate.discard(cx);
                }
                let progress = gate.deliver(cx, out);
                gate.set_awaits_body(progress.is_pending());
                return or_stalled(progress, &mut gate.read, gate.limits.idle_timeout, cx);
            }
            let in_head = matches!(gate.state, State::Head(_));
            let is_first = gate.inbox.is_empty();
            let progress = if in_head && is_first { gate.read_heads(cx, out) } else { gate.fill(cx) };
            if !in_head {
                gate.set_awaits_body(progress.is_pending());
            }
            match progress {
                Poll::Ready(Ok(0)) => {
                    gate.is_done = true;
                    gate.holds_end = in_head && gate.is_sending();
                    return if gate.holds_end { Poll::Pending } else { Poll::Ready(Ok(())) };
                }
                // A head has one bound for all of it, or byte by byte it could take for ever.
                Poll::Ready(Ok(_)) if in_head && !is_first => {}
                Poll::Ready(Ok(_)) => {
                    gate.read.renew();
                    if in_head && !gate.inbox.is_empty() {
                        gate.connection.head_begins();
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => match gate.waited(cx) {
                    Waited::ForMore => return Poll::Pending,
                    Waited::TooLong(outcome) => return Poll::Ready(outcome),
                    Waited::ForTheHead => gate.refuse(Refusal::HeadTimeout),
                },
            }
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Whether something is being sent that waits for nothing but its peer. To hyper, the end of the input means
    /// that the client left. But it may have closed its sending side behind its request, and what is there at
    /// once is for it all the same. What has to wait is given up: the system does not tell such a client from one
    /// that has left.
    fn is_sending(&self) -> bool {
        let is_answering = self.connection.is_answering() || self.has_unsent;
        is_answering && !self.connection.is_waiting()
    }

    /// Reads heads where hyper wants them, and takes out again what may not pass: all of a head
    /// that is not whole or not well framed, and what follows the first. How many bytes came.
    fn read_heads(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
        let fresh = out.filled().get(before..).unwrap_or_default();
        let count = fresh.len();
        let mut reader = HeadReader::default();
        let passing = match reader.read(fresh, self.limits.head) {
            Ok(Some(Head { end, framing, is_odd: false })) => {
                self.pass_head(0, Next::Body(framing));
                // What came of the body goes with the head, up to its end.
                match framing {
                    Framing::Length(length) => {
                        let behind = count.saturating_sub(end);
                        let body = usize::try_from(length).unwrap_or(usize::MAX).min(behind);
                        self.pass_more(0, length - body as u64, Next::Head);
                        end + body
                    }
                    Framing::Chunked => end,
                }
            }
            // Judged again, from the inbox.
            Ok(_) | Err(_) => 0,
        };
        self.inbox.extend_from_slice(fresh.get(passing..).unwrap_or_default());
        out.set_filled(before + passing);
        Poll::Ready(Ok(count))
    }

    /// Hands out what may pass. Large bodies go from the socket straight into hyper's buffer.
    fn deliver(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let State::Pass { left, .. } = &mut self.state else { return Poll::Pending };
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

    /// Nothing came: for how long already? Between requests, the wait begins once the last one is
    /// answered.
    fn waited(&mut self, cx: &mut Context<'_>) -> Waited {
        let in_head = matches!(self.state, State::Head(_));
        let idle = self.limits.idle_timeout;
        if !in_head {
            let is_over = self.read.is_over(idle, cx);
            return if is_over {
                Waited::TooLong(Err(io::ErrorKind::TimedOut.into()))
            } else {
                Waited::ForMore
            };
        }
        if !self.inbox.is_empty() {
            let is_over = self.read.is_over(self.limits.head_timeout, cx);
            return if is_over { Waited::ForTheHead } else { Waited::ForMore };
        }
        if !self.has_begun && self.connection.is_draining() {
            return Waited::TooLong(Ok(()));
        }
        if self.connection.is_answering() || self.write.is_waiting() {
            // hyper does not read again once the answer is out, so a timer has to see to it.
            self.read.look_within(idle, cx);
            return Waited::ForMore;
        }
        let limit = if self.has_begun { idle } else { idle.min(self.limits.first_byte_timeout) };
        let is_over = self.read.is_over_since(self.connection.idle_since(), limit, cx);
        if is_over { Waited::TooLong(Ok(())) } else { Waited::ForMore }
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
