//! An open connection, as a stream of bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::error::is_reset;
use super::head_state::HeadState;
use super::stats::ConnectionStats;

#[derive(Debug)]
pub(super) enum UpstreamSocket {
    Tcp(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
    Unix(TokioIo<UnixStream>),
}

/// An open connection; counted for as long as it lives.
///
/// A server may respond before it has read all of a request, such as 413, and close the connection. Then
/// writing the rest fails, which is all that hyper would look at, while the response may be there to be read. So
/// writing is pending from then on, and reading decides.
#[derive(Debug)]
pub(super) struct UpstreamStream {
    socket: UpstreamSocket,
    stats: Arc<ConnectionStats>,
    head_state: Arc<HeadState>,
    /// Why writing has failed, if it has.
    write_error: Option<io::ErrorKind>,
}

impl UpstreamStream {
    pub(super) fn new(socket: UpstreamSocket, stats: Arc<ConnectionStats>) -> Self {
        stats.opened.fetch_add(1, Ordering::Relaxed);
        stats.open.fetch_add(1, Ordering::Relaxed);
        Self { socket, stats, head_state: Arc::default(), write_error: None }
    }

    pub(super) fn head_state(&self) -> &Arc<HeadState> {
        &self.head_state
    }

    /// Makes the system forget the connection as soon as it is closed. Otherwise the side that closes first keeps
    /// its port for a minute (TIME-WAIT), and a new connection for each request would use them up. By then all
    /// of the response has been read, or it is not wanted.
    pub(super) fn close_without_time_wait(&self) -> io::Result<()> {
        match &self.socket {
            UpstreamSocket::Tcp(io) => io.inner().set_zero_linger(),
            UpstreamSocket::Tls(io) => io.inner().get_ref().0.set_zero_linger(),
            UpstreamSocket::Unix(_) => Ok(()),
        }
    }

    /// Whether the server has reset the connection after the last write. Once the end of the stream was read, only
    /// this says so: a connection that was closed before it was written to ends in order.
    pub(super) fn was_reset(&self) -> bool {
        // The system reports it once.
        if self.write_error.is_some() {
            return true;
        }
        let error = match &self.socket {
            UpstreamSocket::Tcp(io) => io.inner().take_error(),
            UpstreamSocket::Tls(io) => io.inner().get_ref().0.take_error(),
            UpstreamSocket::Unix(io) => io.inner().take_error(),
        };
        matches!(error, Ok(Some(_)))
    }

    fn is_unix(&self) -> bool {
        matches!(self.socket, UpstreamSocket::Unix(_))
    }

    /// Writes with `write`; an error that may leave a response to be read makes writing pending instead.
    fn guard_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut Self, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Some(kind) = self.write_error {
            return if self.head_state.may_hold_response() {
                Poll::Pending
            } else {
                Poll::Ready(Err(kind.into()))
            };
        }
        let progress = write(self, cx);
        if let Poll::Ready(Err(error)) = &progress
            && self.head_state.may_hold_response()
            && is_reset(error)
        {
            self.write_error = Some(error.kind());
            // So that reading comes first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        progress
    }

    fn note_written(&self, progress: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(progress, Poll::Ready(Ok(1..))) {
            self.head_state.mark_written();
        }
        progress
    }
}

impl Drop for UpstreamStream {
    fn drop(&mut self) {
        self.stats.open.fetch_sub(1, Ordering::Relaxed);
    }
}

macro_rules! with_socket {
    ($stream:expr, $io:ident => $call:expr) => {
        match &mut $stream.socket {
            UpstreamSocket::Tcp(io) => {
                let $io = Pin::new(io);
                $call
            }
            UpstreamSocket::Tls(io) => {
                let $io = Pin::new(io.as_mut());
                $call
            }
            UpstreamSocket::Unix(io) => {
                let $io = Pin::new(io);
                $call
            }
        }
    };
}

impl Read for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let progress = match ready!(with_socket!(stream, io => io.poll_read(cx, buf))) {
            // A unix socket loses nothing of what was sent before that: it is the end of the response.
            Err(error) if stream.is_unix() && !stream.head_state.is_awaiting_head() && is_reset(&error) => {
                Ok(())
            }
            progress => progress,
        };
        Poll::Ready(progress.and_then(|()| stream.head_state.count_read()))
    }
}

impl Write for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let progress =
            stream.guard_write(cx, |stream, cx| with_socket!(stream, io => io.poll_write(cx, buf)));
        stream.note_written(progress)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().guard_write(cx, |stream, cx| with_socket!(stream, io => io.poll_flush(cx)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_socket!(self.get_mut(), io => io.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            UpstreamSocket::Tcp(io) => io.is_write_vectored(),
            UpstreamSocket::Tls(io) => io.is_write_vectored(),
            UpstreamSocket::Unix(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let progress =
            stream.guard_write(cx, |stream, cx| with_socket!(stream, io => io.poll_write_vectored(cx, bufs)));
        stream.note_written(progress)
    }
}
