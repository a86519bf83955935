//! An open connection, as a stream of bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::error::is_reset;
use super::stats::ConnectionStats;

#[derive(Debug)]
pub(super) enum UpstreamSocket {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
    /// What a test has at its other end.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// An open connection; counted for as long as it lives.
#[derive(Debug)]
pub(super) struct UpstreamStream {
    socket: UpstreamSocket,
    stats: Arc<ConnectionStats>,
    /// Whether a reset is an error, although a unix socket loses nothing of what was sent before it.
    reports_reset: bool,
}

impl UpstreamStream {
    pub(super) fn new(socket: UpstreamSocket, stats: Arc<ConnectionStats>) -> Self {
        stats.opened.fetch_add(1, Ordering::Relaxed);
        stats.open.fetch_add(1, Ordering::Relaxed);
        Self { socket, stats, reports_reset: false }
    }

    /// Whether a unix socket that is reset ends with an error. Before a response, that tells that its request was not
    /// read; later, it is the end of the response.
    pub(super) fn report_reset(&mut self, reports_reset: bool) {
        self.reports_reset = reports_reset;
    }

    /// Makes the system forget the connection as soon as it is closed. Otherwise the side that closes first keeps
    /// its port for a minute (TIME-WAIT), and a new connection for each request would use them up. By then all
    /// of the response has been read, or it is not wanted.
    pub(super) fn close_without_time_wait(&self) -> io::Result<()> {
        match &self.socket {
            UpstreamSocket::Tcp(socket) => socket.set_zero_linger(),
            UpstreamSocket::Tls(socket) => socket.get_ref().0.set_zero_linger(),
            UpstreamSocket::Unix(_) => Ok(()),
            #[cfg(test)]
            UpstreamSocket::Memory(_) => Ok(()),
        }
    }

    /// Whether the server has reset the connection after the last write. Once the end of the stream was read, only
    /// this says so: a connection that was closed before it was written to ends in order. The system reports it once.
    pub(super) fn was_reset(&self) -> bool {
        let error = match &self.socket {
            UpstreamSocket::Tcp(socket) => socket.take_error(),
            UpstreamSocket::Tls(socket) => socket.get_ref().0.take_error(),
            UpstreamSocket::Unix(socket) => socket.take_error(),
            #[cfg(test)]
            UpstreamSocket::Memory(_) => Ok(None),
        };
        matches!(error, Ok(Some(_)))
    }

    fn is_unix(&self) -> bool {
        matches!(self.socket, UpstreamSocket::Unix(_))
    }
}

impl Drop for UpstreamStream {
    fn drop(&mut self) {
        self.stats.open.fetch_sub(1, Ordering::Relaxed);
    }
}

macro_rules! with_socket {
    ($stream:expr, $socket:ident => $call:expr) => {
        match &mut $stream.get_mut().socket {
            UpstreamSocket::Tcp(socket) => {
                let $socket = Pin::new(socket);
                $call
            }
            UpstreamSocket::Tls(socket) => {
                let $socket = Pin::new(socket.as_mut());
                $call
            }
            UpstreamSocket::Unix(socket) => {
                let $socket = Pin::new(socket);
                $call
            }
            #[cfg(test)]
            UpstreamSocket::Memory(socket) => {
                let $socket = Pin::new(socket);
                $call
            }
        }
    };
}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let progress = ready!(with_socket!(self.as_mut(), socket => socket.poll_read(cx, buf)));
        Poll::Ready(match progress {
            Err(error) if self.is_unix() && !self.reports_reset && is_reset(&error) => Ok(()),
            progress => progress,
        })
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        with_socket!(self, socket => socket.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_socket!(self, socket => socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_socket!(self, socket => socket.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            UpstreamSocket::Tcp(socket) => socket.is_write_vectored(),
            UpstreamSocket::Tls(socket) => socket.is_write_vectored(),
            UpstreamSocket::Unix(socket) => socket.is_write_vectored(),
            #[cfg(test)]
            UpstreamSocket::Memory(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_socket!(self, socket => socket.poll_write_vectored(cx, bufs))
    }
}
