//! A socket that detects a hang-up of its peer even while received bytes are unread.
//!
//! hyper detects the end of a connection by reading on, which it does not do while it has bytes that
//! are not needed yet: a body, or the next request. The system knows the end nevertheless, and so does tokio: it
//! is a part of every event of a socket. But such an event wakes no task: tokio wakes a reader
//! only if there was nothing to read, and a writer only if it could not write. So while a response is pending
//! and there is nothing to write, tokio is told that the socket is not writable. The next event, which says
//! that it is, wakes the task: bytes have arrived, or the peer has hung up. Bytes that are written before that
//! event are written to the socket directly.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

/// A socket whose hang-up can be detected without reading.
pub(super) trait DetectHangup: AsyncRead + AsyncWrite + Unpin {
    /// Ready once the peer has closed its sending side. Else the task is woken by the next event of the socket.
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

impl DetectHangup for Box<dyn DetectHangup + Send> {
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.as_mut().poll_hangup(cx)
    }
}

/// The methods that tokio's sockets share without a trait.
pub(super) trait TokioSocket: AsyncRead + AsyncWrite + Unpin + AsFd {
    /// The readiness that tokio knows now, without waiting.
    fn readiness(&self, interest: Interest) -> Option<Ready>;
    /// Makes tokio forget that the socket is writable.
    fn clear_writable(&self);
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

macro_rules! tokio_socket {
    ($name:ident) => {
        impl TokioSocket for $name {
            fn readiness(&self, interest: Interest) -> Option<Ready> {
                self.ready(interest).now_or_never()?.ok()
            }

            fn clear_writable(&self) {
                // `WouldBlock` is what makes tokio forget.
                let _ = self
                    .try_io(Interest::WRITABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
            }

            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Self::poll_write_ready(self, cx)
            }
        }
    };
}
tokio_socket!(TcpStream);
tokio_socket!(UnixStream);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct HangupSocket<S> {
    stream: S,
    /// Tokio was made to forget that the socket is writable, so writes go around it.
    writes_directly: bool,
}

impl<S> HangupSocket<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, writes_directly: false }
    }
}

impl<S: TokioSocket> DetectHangup for HangupSocket<S> {
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Of the interests, this one is not satisfied by data but by the end. Urgent data is never requested.
        if self.stream.readiness(Interest::PRIORITY).is_some_and(Ready::is_read_closed) {
            return Poll::Ready(());
        }
        self.writes_directly = true;
        self.stream.clear_writable();
        match self.stream.poll_write_ready(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !self.is_broken() => {
                // An event has made it writable in this moment, and has to be handled.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(_) => Poll::Ready(()),
        }
    }
}

impl<S: TokioSocket> HangupSocket<S> {
    fn is_broken(&self) -> bool {
        self.stream.readiness(Interest::WRITABLE).is_some_and(Ready::is_write_closed)
    }

    /// Writes with `write` if the socket is not writable only because tokio was made to forget.
    fn or_write_directly(
        &mut self,
        progress: Poll<io::Result<usize>>,
        write: impl Fn(SockRef<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if progress.is_ready() {
            self.writes_directly = false;
        }
        if !self.writes_directly {
            return progress;
        }
        loop {
            match write(SockRef::from(&self.stream)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The socket is really not writable; tokio wakes the task when it is.
                    self.writes_directly = false;
                    return Poll::Pending;
                }
                written => return Poll::Ready(written),
            }
        }
    }
}

impl<S: TokioSocket> AsyncRead for HangupSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, out)
    }
}

impl<S: TokioSocket> AsyncWrite for HangupSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.or_write_directly(progress, |socket| socket.send(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.or_write_directly(progress, |socket| socket.send_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
impl DetectHangup for tokio::io::DuplexStream {
    fn poll_hangup(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}
