//! Connections to Rails, over TCP or a unix socket.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tower::Service;

use super::State;
use super::target::Address;

/// Makes connections to one address, whatever URI the pool asks for.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    address: Arc<Address>,
    timeout: Duration,
    state: Arc<State>,
}

impl Connector {
    pub(super) fn new(address: Address, timeout: Duration, state: Arc<State>) -> Self {
        Self { address: Arc::new(address), timeout, state }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, timeout, state } = self.clone();
        Box::pin(async move {
            let outcome = match tokio::time::timeout(timeout, open(&address)).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}")))
                }
            };
            match outcome {
                Ok(socket) => Ok(Stream::new(socket, state)),
                Err(error) => {
                    state.refused.fetch_add(1, Ordering::Relaxed);
                    Err(error)
                }
            }
        })
    }
}

async fn open(address: &Address) -> io::Result<Socket> {
    match address {
        // Tries every address that the name has: `localhost` is often ::1 first, and Puma on
        // 127.0.0.1 only.
        Address::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Socket::Tcp(TokioIo::new(stream)))
        }
        Address::Unix(path) => Ok(Socket::Unix(TokioIo::new(UnixStream::connect(path).await?))),
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TokioIo<TcpStream>),
    Unix(TokioIo<UnixStream>),
}

/// An open connection; counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    state: Arc<State>,
}

impl Stream {
    fn new(socket: Socket, state: Arc<State>) -> Self {
        state.opened.fetch_add(1, Ordering::Relaxed);
        state.open.fetch_add(1, Ordering::Relaxed);
        Self { socket, state }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

macro_rules! either {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().socket {
            Socket::Tcp(io) => {
                let $io = Pin::new(io);
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
        either!(self, io => io.poll_read(cx, buf))
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Tcp(io) => io.is_write_vectored(),
            Socket::Unix(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write_vectored(cx, bufs))
    }
}
