//! The socket of a connection to Valkey: TCP, with or without TLS, or a unix socket.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::fleet::settings::FleetTls;
use crate::upstream::tls::Tls;
use crate::upstream::{ConnectError, UpstreamAddress, happy_eyeballs};

/// Bytes that one command may bring. What a poll brings is bounded by the number of entries, but not their size, which
/// is up to the writers of Valkey.
pub(super) const MAX_REPLY: usize = 64 << 20;

/// Any stream of bytes in both directions.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An open socket that brings no more than [`MAX_REPLY`] bytes, unless it is told that a new reply begins.
pub(super) struct Socket {
    stream: Box<dyn Stream>,
    allowance: ReadAllowance,
}

/// How many more bytes a socket may bring.
#[derive(Clone, Debug)]
pub(super) struct ReadAllowance(Arc<AtomicUsize>);

impl ReadAllowance {
    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(MAX_REPLY)))
    }

    /// A command was sent, whose reply may take all of it.
    pub(super) fn renew(&self) {
        self.0.store(MAX_REPLY, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed).checked_sub(bytes);
        self.0.store(left.unwrap_or(0), Ordering::Relaxed);
        let too_large = || io::Error::other(format!("the reply has more than {} MiB", MAX_REPLY >> 20));
        left.map(drop).ok_or_else(too_large)
    }

    /// Whether the reply has taken all of it.
    pub(super) fn is_used_up(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// Connects within `timeout`, names resolved and TLS included.
pub(super) async fn open(
    address: &UpstreamAddress,
    tls: Option<&FleetTls>,
    timeout: Duration,
) -> Result<(Socket, ReadAllowance), ConnectError> {
    let stream: Box<dyn Stream> = match address {
        UpstreamAddress::Tcp(host, port) => {
            let open = |address| open_tcp(address, tls.map(|tls| (tls.tls(), tls.name_of(host))));
            happy_eyeballs::connect(host, *port, None, timeout, open).await?.0
        }
        UpstreamAddress::Unix(path) => match tokio::time::timeout(timeout, UnixStream::connect(path)).await {
            Ok(stream) => Box::new(stream?),
            Err(_) => return Err(happy_eyeballs::timed_out(timeout)),
        },
    };
    let allowance = ReadAllowance::new();
    Ok((Socket { stream, allowance: allowance.clone() }, allowance))
}

/// A server that has vanished is noticed after 3 s, whether something was sent to it or is only waited for. One that
/// hangs is noticed by the deadlines of the commands alone.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(1))
    .with_interval(Duration::from_secs(1))
    .with_retries(3);
const USER_TIMEOUT: Duration = Duration::from_secs(3);

async fn open_tcp(address: SocketAddr, tls: Option<(&Tls, &str)>) -> Result<Box<dyn Stream>, ConnectError> {
    let stream = connect(address).await?;
    Ok(match tls {
        None => Box::new(stream),
        Some((tls, name)) => Box::new(tls.connect_as(name, stream).await?),
    })
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // A system that cannot do so is no reason to go without a connection.
    let socket = SockRef::from(&stream);
    let _ = socket.set_tcp_keepalive(&KEEPALIVE);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    Ok(stream)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut socket.stream).poll_read(cx, buf))?;
        Poll::Ready(socket.allowance.take(buf.filled().len().saturating_sub(before)))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn the_system_looks_whether_a_silent_server_is_still_there() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = connect(server.local_addr().unwrap()).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        let times = [socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()];
        assert_eq!((times, socket.tcp_keepalive_retries().unwrap()), ([Duration::from_secs(1); 2], 3));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
    }

    #[tokio::test]
    async fn a_reply_that_is_too_large_ends_the_socket_and_a_new_reply_may_take_all() {
        let (mut server, stream) = tokio::io::duplex(1 << 20);
        let allowance = ReadAllowance::new();
        let mut socket = Socket { stream: Box::new(stream), allowance: allowance.clone() };
        let writer = tokio::spawn(async move {
            // Ends with an error once the socket is gone.
            while server.write_all(&[b'x'; 1 << 13]).await.is_ok() {}
        });
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..2 {
            allowance.renew();
            for _ in 0..MAX_REPLY >> 20 {
                socket.read_exact(&mut buffer).await.unwrap();
            }
        }
        assert_eq!(socket.read(&mut buffer).await.unwrap_err().to_string(), "the reply has more than 64 MiB");
        assert!(allowance.is_used_up());
        drop(socket);
        writer.await.unwrap();
    }
}
