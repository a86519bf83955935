//! Connections to Rails, over TCP, with or without TLS, or a unix socket.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::happy_eyeballs;
use super::target::{UpstreamAddress, UpstreamTarget};
use super::tls::Tls;
use crate::clock::Clock;
use crate::upstream::servers::server::UpstreamServerState;

use super::head_state::HeadState;

/// Makes connections to one address.
#[derive(Debug)]
pub(in crate::upstream) struct Connector {
    address: UpstreamAddress,
    is_tls: bool,
    tls: Option<Tls>,
    timeout: Duration,
    /// How old a connection may become; zero is without limit.
    max_age: Duration,
    /// The address that accepted while another one was silent, and until when it is preferred.
    preferred: Mutex<Option<(SocketAddr, Instant)>>,
    state: Arc<UpstreamServerState>,
}

impl Connector {
    pub(in crate::upstream) fn new(
        target: &UpstreamTarget,
        tls: Option<Tls>,
        timeout: Duration,
        state: Arc<UpstreamServerState>,
    ) -> Self {
        Self {
            address: target.address.clone(),
            is_tls: target.is_tls,
            tls,
            timeout,
            max_age: Duration::ZERO,
            preferred: Mutex::default(),
            state,
        }
    }

    /// Its connections get no new requests once they have about this age.
    pub(in crate::upstream) fn with_max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// When a connection that is made now expires, if there is a limit. The times are spread, so that connections
    /// made together do not expire together.
    pub(in crate::upstream) fn expires_at(&self) -> Option<Instant> {
        (!self.max_age.is_zero())
            .then(|| Clock::System.now() + self.max_age.mul_f32(1.0 - fastrand::f32() / 5.0))
    }

    pub(in crate::upstream) fn is_tls(&self) -> bool {
        self.is_tls
    }

    pub(in crate::upstream) async fn connect(&self) -> io::Result<UpstreamStream> {
        if self.is_tls && self.tls.is_none() {
            // A missing TLS set-up must not lead to a connection in clear.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no certificates are set up"));
        }
        let outcome = self.open().await;
        if outcome.is_err() {
            self.state.connect_failures.fetch_add(1, Ordering::Relaxed);
        }
        Ok(UpstreamStream::new(outcome?, Arc::clone(&self.state)))
    }

    async fn open(&self) -> io::Result<UpstreamSocket> {
        let (timeout, tls) = (self.timeout, self.tls.as_ref());
        match &self.address {
            // `localhost` is often ::1 first, and Puma on 127.0.0.1 only.
            UpstreamAddress::Tcp(host, port) => {
                let open = async |address| Ok((address, open_tcp(address, tls).await?));
                let first = self.preferred();
                let ((address, socket), failed) =
                    happy_eyeballs::connect(host, *port, first, timeout, open).await?;
                self.record_failed(address, &failed);
                Ok(socket)
            }
            UpstreamAddress::Unix(path) => {
                match tokio::time::timeout(timeout, UnixStream::connect(path)).await {
                    Ok(stream) => Ok(UpstreamSocket::Unix(TokioIo::new(stream?))),
                    Err(_) => Err(happy_eyeballs::timed_out(timeout)),
                }
            }
        }
    }

    /// The address to try first.
    fn preferred(&self) -> Option<SocketAddr> {
        self.preferred.lock().filter(|(_, until)| Clock::System.now() < *until).map(|(address, _)| address)
    }

    /// Records the addresses that did not answer before `address`. One that refuses costs no time, as with
    /// `localhost`; one that is silent would delay every connection.
    fn record_failed(&self, address: SocketAddr, failed: &happy_eyeballs::FailedAddresses) {
        let server = &self.state.name;
        if failed.has_silent() && self.preferred().is_none() {
            let _span = crate::request_span::current().entered();
            tracing::warn!(server, %address, %failed, "an address of Rails is silent, another one answers");
        } else if !failed.is_empty() {
            let _span = crate::request_span::current().entered();
            tracing::debug!(server, %address, %failed, "connected to another address of Rails");
        }
        if failed.has_silent() {
            *self.preferred.lock() = Some((address, Clock::System.now() + PREFERRED_TTL));
        }
    }
}

/// How long an address that accepted is tried before one that was silent.
const PREFERRED_TTL: Duration = Duration::from_secs(60);

/// Notices within 25 s that the machine of a server has vanished, as HTTP/2 does by its PING: a request would wait
/// for `response_timeout`, and a body that pauses for `body_timeout`. It also keeps a firewall on the way from
/// forgetting a connection that is silent while Rails works.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(10))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// With TLS, an address has accepted only once the handshake is done.
async fn open_tcp(address: SocketAddr, tls: Option<&Tls>) -> io::Result<UpstreamSocket> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
    Ok(match tls {
        Some(tls) => UpstreamSocket::Tls(Box::new(TokioIo::new(tls.connect(stream).await?))),
        None => UpstreamSocket::Tcp(TokioIo::new(stream)),
    })
}

#[derive(Debug)]
enum UpstreamSocket {
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
pub(in crate::upstream) struct UpstreamStream {
    socket: UpstreamSocket,
    state: Arc<UpstreamServerState>,
    head_state: Arc<HeadState>,
    /// Why writing has failed, if it has.
    write_error: Option<io::ErrorKind>,
}

impl UpstreamStream {
    fn new(socket: UpstreamSocket, state: Arc<UpstreamServerState>) -> Self {
        state.connections_opened.fetch_add(1, Ordering::Relaxed);
        state.connections_open.fetch_add(1, Ordering::Relaxed);
        Self { socket, state, head_state: Arc::default(), write_error: None }
    }

    pub(in crate::upstream) fn head_state(&self) -> &Arc<HeadState> {
        &self.head_state
    }

    /// Makes the system forget the connection as soon as it is closed. Otherwise the side that closes first keeps
    /// its port for a minute (TIME-WAIT), and a new connection for each request would use them up. By then all
    /// of the response has been read, or it is not wanted.
    pub(in crate::upstream) fn close_without_time_wait(&self) -> io::Result<()> {
        match &self.socket {
            UpstreamSocket::Tcp(io) => io.inner().set_zero_linger(),
            UpstreamSocket::Tls(io) => io.inner().get_ref().0.set_zero_linger(),
            UpstreamSocket::Unix(_) => Ok(()),
        }
    }

    /// Whether the server has reset the connection after the last write. Once the end of the stream was read, only
    /// this says so: a connection that was closed before it was written to ends in order.
    pub(in crate::upstream) fn was_reset(&self) -> bool {
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

/// A broken pipe is the error of writing to a closed unix socket.
pub(in crate::upstream) fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

impl Drop for UpstreamStream {
    fn drop(&mut self) {
        self.state.connections_open.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests;
