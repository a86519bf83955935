//! A socket that also says when its peer is gone, whatever of the peer is still unread.
//!
//! hyper finds the end of a connection by reading on, which it does not do while it has bytes that
//! are not wanted yet: a body, or the next request. The system knows nevertheless, and so does tokio: the
//! end is a part of every event of a socket. What is missing is to be woken by one. tokio wakes a reader
//! only if it is known to have nothing to read, and a writer only if it cannot write. So while a peer is
//! waited for that is to be given nothing yet, tokio is told that the socket cannot be written to. The
//! next event, which says that it can, wakes the task: something has come, or the peer is gone. What is
//! written before that goes to the socket directly.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

/// A connection whose end can be waited for without reading.
pub(super) trait Watch: AsyncRead + AsyncWrite + Unpin {
    /// Ready once the peer sends nothing more. If it is not, the task is woken when there is news.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// What tokio's sockets have in common, but not in a trait.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + AsFd {
    /// What is known now of what `interest` is about.
    fn known(&self, interest: Interest) -> Option<Ready>;
    /// From now on, it is not known that it can be written to.
    fn forget_writable(&self);
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

macro_rules! stream {
    ($name:ident) => {
        impl Stream for $name {
            fn known(&self, interest: Interest) -> Option<Ready> {
                self.ready(interest).now_or_never()?.ok()
            }

            fn forget_writable(&self) {
                // Always an error, since that is what makes it forget.
                let _ = self
                    .try_io(Interest::WRITABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
            }

            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Self::poll_write_ready(self, cx)
            }
        }
    };
}
stream!(TcpStream);
stream!(UnixStream);

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    /// It may be possible to write, although tokio does not know.
    has_forgotten: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, has_forgotten: false }
    }
}

impl<S: Stream> Watch for Watched<S> {
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Not about urgent data, which is never asked of the system: this interest is the one that data
        // do not satisfy, but the end does.
        if self.stream.known(Interest::PRIORITY).is_some_and(Ready::is_read_closed) {
            return Poll::Ready(());
        }
        self.has_forgotten = true;
        self.stream.forget_writable();
        match self.stream.poll_write_ready(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !self.is_broken() => {
                // It was said in this moment that it can be written to: by news that are to be looked at.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(_) => Poll::Ready(()),
        }
    }
}

impl<S: Stream> Watched<S> {
    fn is_broken(&self) -> bool {
        self.stream.known(Interest::WRITABLE).is_some_and(Ready::is_write_closed)
    }

    /// Writes with `write` if tokio only thinks that it cannot be done.
    fn or_directly(
        &mut self,
        progress: Poll<io::Result<usize>>,
        write: impl Fn(SockRef<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if progress.is_ready() {
            self.has_forgotten = false;
        }
        if !self.has_forgotten {
            return progress;
        }
        loop {
            match write(SockRef::from(&self.stream)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // So tokio is right, and the task is woken when it can.
                    self.has_forgotten = false;
                    return Poll::Pending;
                }
                written => return Poll::Ready(written),
            }
        }
    }
}

impl<S: Stream> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, out)
    }
}

impl<S: Stream> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.or_directly(progress, |socket| socket.send(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.or_directly(progress, |socket| socket.send_vectored(bufs))
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
impl Watch for tokio::io::DuplexStream {
    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}
