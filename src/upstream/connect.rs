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
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::server::ServerState;
use super::target::{Address, Target};
use super::tls::Tls;
use super::{happy_eyeballs, now};

mod reads;

pub(super) use self::reads::Reads;

/// Makes connections to one address.
#[derive(Debug)]
pub(super) struct Connector {
    address: Address,
    is_tls: bool,
    tls: Option<Tls>,
    timeout: Duration,
    /// How old a connection may become; without a limit, if it is zero.
    max_age: Duration,
    /// The address that answered when another one was silent, and until when that counts.
    preferred: Mutex<Option<(SocketAddr, Instant)>>,
    state: Arc<ServerState>,
}

impl Connector {
    pub(super) fn new(target: &Target, tls: Option<Tls>, timeout: Duration, state: Arc<ServerState>) -> Self {
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

    /// Its connections carry no new requests once they are about so old.
    pub(super) fn with_max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// When a connection that is made now is too old; never, if there is no limit. Those that were made
    /// together do not end together.
    pub(super) fn expiry(&self) -> Option<Instant> {
        (!self.max_age.is_zero()).then(|| now() + self.max_age.mul_f32(1.0 - fastrand::f32() / 5.0))
    }

    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    pub(super) async fn connect(&self) -> io::Result<Stream> {
        if self.is_tls && self.tls.is_none() {
            // Nothing goes out in clear because somebody forgot to say how to secure it.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no certificates are set up"));
        }
        let outcome = self.open().await;
        if outcome.is_err() {
            self.state.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Stream::new(outcome?, Arc::clone(&self.state)))
    }

    async fn open(&self) -> io::Result<Socket> {
        let (within, tls) = (self.timeout, self.tls.as_ref());
        match &self.address {
            // `localhost` is often ::1 first, and Puma on 127.0.0.1 only.
            Address::Tcp(host, port) => {
                let open = async |address| Ok((address, open_tcp(address, tls).await?));
                let first = self.preferred();
                let ((address, socket), failed) =
                    happy_eyeballs::connect(host, *port, first, within, open).await?;
                self.learn(address, &failed);
                Ok(socket)
            }
            Address::Unix(path) => match timeout(within, UnixStream::connect(path)).await {
                Ok(stream) => Ok(Socket::Unix(TokioIo::new(stream?))),
                Err(_) => Err(happy_eyeballs::timed_out(within)),
            },
        }
    }

    /// The address that is tried first.
    fn preferred(&self) -> Option<SocketAddr> {
        self.preferred.lock().filter(|(_, until)| now() < *until).map(|(address, _)| address)
    }

    /// Takes note of the addresses that did not answer before this one. One that refuses is as with `localhost`;
    /// one that is silent would delay every connection.
    fn learn(&self, address: SocketAddr, failed: &happy_eyeballs::Failed) {
        let server = &self.state.name;
        if failed.has_silent() && self.preferred().is_none() {
            tracing::warn!(server, %address, %failed, "an address of Rails is silent, another one answers");
        } else if !failed.is_empty() {
            tracing::debug!(server, %address, %failed, "connected to another address of Rails");
        }
        if failed.has_silent() {
            *self.preferred.lock() = Some((address, now() + PREFERENCE));
        }
    }
}

/// For how long an address that answered is tried before one that was silent.
const PREFERENCE: Duration = Duration::from_secs(60);

/// With TLS, an address has answered only once that is there.
async fn open_tcp(address: SocketAddr, tls: Option<&Tls>) -> io::Result<Socket> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(match tls {
        Some(tls) => Socket::Tls(Box::new(TokioIo::new(tls.connect(stream).await?))),
        None => Socket::Tcp(TokioIo::new(stream)),
    })
}

#[derive(Debug)]
enum Socket {
    Tcp(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
    Unix(TokioIo<UnixStream>),
}

/// An open connection; counted for as long as it lives.
///
/// A server may answer before it has read all of a request, such as 413, and close the connection. Then
/// writing the rest fails, which is all that hyper would look at, while the answer may be there to be read. So
/// writing is pending from then on, and how reading goes decides.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    state: Arc<ServerState>,
    reads: Arc<Reads>,
    /// How writing has failed.
    broken: Option<io::ErrorKind>,
}

impl Stream {
    fn new(socket: Socket, state: Arc<ServerState>) -> Self {
        state.opened.fetch_add(1, Ordering::Relaxed);
        state.open.fetch_add(1, Ordering::Relaxed);
        Self { socket, state, reads: Arc::default(), broken: None }
    }

    pub(super) fn reads(&self) -> &Arc<Reads> {
        &self.reads
    }

    /// Has the system forget the connection as soon as it is closed. One that is closed in order before the
    /// other side closes it keeps its port for a minute, and a new one for each request would use them up.
    /// By then all of the answer has been read, or it is not wanted.
    pub(super) fn forget_when_closed(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(io) => io.inner().set_zero_linger(),
            Socket::Tls(io) => io.inner().get_ref().0.set_zero_linger(),
            Socket::Unix(_) => Ok(()),
        }
    }

    /// Whether what was written last has been reset by the other side. After its end was read, nothing else
    /// says so: one that is closed before it is written to ends in order.
    pub(super) fn was_reset(&self) -> bool {
        // The system says it once.
        if self.broken.is_some() {
            return true;
        }
        let error = match &self.socket {
            Socket::Tcp(io) => io.inner().take_error(),
            Socket::Tls(io) => io.inner().get_ref().0.take_error(),
            Socket::Unix(io) => io.inner().take_error(),
        };
        matches!(error, Ok(Some(_)))
    }

    fn is_unix(&self) -> bool {
        matches!(self.socket, Socket::Unix(_))
    }

    /// What comes of writing with `write`.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut Self, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Some(kind) = self.broken {
            return if self.reads.may_be_answer() { Poll::Pending } else { Poll::Ready(Err(kind.into())) };
        }
        let progress = write(self, cx);
        if let Poll::Ready(Err(error)) = &progress
            && self.reads.may_be_answer()
            && is_reset(error)
        {
            self.broken = Some(error.kind());
            // To read before anything else.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        progress
    }

    fn written(&self, progress: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(progress, Poll::Ready(Ok(1..))) {
            self.reads.is_written();
        }
        progress
    }
}

/// A broken pipe is what writing to a unix socket meets that is closed already.
pub(super) fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Ordering::Relaxed);
    }
}

macro_rules! either {
    ($stream:expr, $io:ident => $call:expr) => {
        match &mut $stream.socket {
            Socket::Tcp(io) => {
                let $io = Pin::new(io);
                $call
            }
            Socket::Tls(io) => {
                let $io = Pin::new(io.as_mut());
                $call
            }
            Socket::Unix(io) => {
                let $io = Pin::new(io);
                $call
            }
        }
    };
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let progress = match ready!(either!(stream, io => io.poll_read(cx, buf))) {
            // A unix socket loses nothing of what was sent before that: it is the end of the answer.
            Err(error) if stream.is_unix() && !stream.reads.are_of_head() && is_reset(&error) => Ok(()),
            progress => progress,
        };
        Poll::Ready(progress.and_then(|()| stream.reads.count()))
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let progress = stream.write(cx, |stream, cx| either!(stream, io => io.poll_write(cx, buf)));
        stream.written(progress)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write(cx, |stream, cx| either!(stream, io => io.poll_flush(cx)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), io => io.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Tcp(io) => io.is_write_vectored(),
            Socket::Tls(io) => io.is_write_vectored(),
            Socket::Unix(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let progress = stream.write(cx, |stream, cx| either!(stream, io => io.poll_write_vectored(cx, bufs)));
        stream.written(progress)
    }
}

#[cfg(test)]
mod tests;
