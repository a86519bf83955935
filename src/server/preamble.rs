//! What some connections begin with before HTTP: a PROXY header, a TLS handshake, or the preface of HTTP/2, which
//! tells it from HTTP/1. Each has a deadline.
//!
//! Such a connection is behind a pointer from then on, so that there is one kind of them; a plain one is not.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::hangup::DetectHangup;
use super::http2::PREFACE;
use super::listen::ListenOptions;
use super::peers::ConnectionRefusal;
use super::proxy_header;
use super::registry::Registration;
use super::tls::ALPN_HTTP2;

/// A connection that is ready for HTTP.
pub(super) struct Prepared {
    pub(super) socket: Box<dyn DetectHangup + Send>,
    /// The address of the client.
    pub(super) peer: Option<IpAddr>,
    pub(super) protocol: Protocol,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Why a connection was closed before HTTP.
#[derive(Debug)]
pub(super) struct PreambleError {
    pub(super) refusal: ConnectionRefusal,
    pub(super) error: io::Error,
}

/// Reads the header and shakes hands, each within `limit`, as far as the listener demands it. `None` if the
/// peer sends nothing at all.
pub(super) async fn prepare(
    socket: impl DetectHangup + Send + 'static,
    peer: Option<IpAddr>,
    options: &ListenOptions,
    limit: Duration,
) -> Result<Option<Prepared>, PreambleError> {
    let (mut socket, mut peer) = (WithReadAhead { socket, read_ahead: BytesMut::new() }, peer);
    if options.proxy_protocol {
        let is_proxy = options.trusted_proxies.as_ref().is_some_and(|proxies| proxies.trust(peer));
        let header = async {
            if is_proxy {
                read_proxy_header(&mut socket).await
            } else {
                Err(other("the peer is no trusted proxy"))
            }
        };
        let client = within(limit, header).await;
        let refused = |error| PreambleError { refusal: ConnectionRefusal::ProxyHeader, error };
        peer = client.map_err(refused)?.or(peer);
    }
    let Some(tls) = &options.tls else {
        let protocol = if options.http2 {
            tokio::time::timeout(limit, read_preface(&mut socket)).await.ok()
        } else {
            Some(Protocol::Http1)
        };
        return Ok(protocol.map(|protocol| Prepared { socket: Box::new(socket), peer, protocol }));
    };
    match within(limit, tls.acceptor().accept(socket)).await {
        Ok(stream) => {
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
            let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
            Ok(Some(Prepared { socket: Box::new(TlsSocket(stream)), peer, protocol }))
        }
        Err(error) => Err(PreambleError { refusal: ConnectionRefusal::Tls, error }),
    }
}

/// Reads until it is clear what the client speaks. What was read is read again as HTTP. The first byte nearly always
/// suffices: no method of GitLab's clients begins as the preface does but `POST`, `PUT` and `PATCH`.
async fn read_preface<S: DetectHangup>(socket: &mut WithReadAhead<S>) -> Protocol {
    loop {
        let length = socket.read_ahead.len().min(PREFACE.len());
        match (socket.read_ahead.get(..length), PREFACE.get(length..)) {
            (read, Some([])) if read == Some(PREFACE) => return Protocol::Http2,
            (read, Some([_, ..])) if read == PREFACE.get(..length) => {}
            _ => return Protocol::Http1,
        }
        match socket.socket.read_buf(&mut socket.read_ahead).await {
            Ok(1..) => {}
            // As HTTP/1, whose gate knows what to do with a connection that ends.
            Ok(0) | Err(_) => return Protocol::Http1,
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn other(why: &'static str) -> io::Error {
    io::Error::other(why)
}

/// The end of `work`; `None` if the connection has to close before: because the server drains, or for a new one.
pub(super) async fn until_closed<T>(registration: &Registration, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut has_task, state) = (pin!(work), false, registration.state());
    poll_fn(|cx| {
        if !has_task {
            registration.set_task(cx);
            has_task = true;
        }
        match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if state.is_draining() || state.must_close() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Returns the address of the client, if the header has one.
async fn read_proxy_header<S: DetectHangup>(socket: &mut WithReadAhead<S>) -> io::Result<Option<IpAddr>> {
    let mut bytes = BytesMut::with_capacity(proxy_header::MAX_LENGTH);
    loop {
        match proxy_header::parse(&bytes) {
            Err(error) => return Err(io::Error::other(error)),
            Ok(Some(header)) => {
                bytes.advance(header.length);
                socket.read_ahead = bytes;
                return Ok(header.client);
            }
            Ok(None) => {}
        }
        let room = proxy_header::MAX_LENGTH.saturating_sub(bytes.len());
        if (&mut socket.socket).take(room as u64).read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A socket of which bytes were read that belong to what follows.
#[derive(Debug)]
struct WithReadAhead<S> {
    socket: S,
    read_ahead: BytesMut,
}

impl<S: DetectHangup> DetectHangup for WithReadAhead<S> {
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.socket.poll_hangup(cx)
    }
}

impl<S: DetectHangup> AsyncRead for WithReadAhead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read_ahead.is_empty() {
            return Pin::new(&mut this.socket).poll_read(cx, out);
        }
        let count = this.read_ahead.len().min(out.remaining());
        out.put_slice(&this.read_ahead.split_to(count));
        if this.read_ahead.is_empty() {
            this.read_ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// HTTP in TLS. The peer has hung up once the connection below it has ended.
struct TlsSocket<S>(TlsStream<S>);

impl<S: DetectHangup> DetectHangup for TlsSocket<S> {
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.get_mut().0.poll_hangup(cx)
    }
}

impl<S: DetectHangup> AsyncRead for TlsSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, out)
    }
}

/// Everything but reading is that of a field.
macro_rules! write_to {
    ($name:ident, $field:tt) => {
        impl<S: DetectHangup> AsyncWrite for $name<S> {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.get_mut().$field).poll_write(cx, bytes)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                pieces: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.get_mut().$field).poll_write_vectored(cx, pieces)
            }

            fn is_write_vectored(&self) -> bool {
                self.$field.is_write_vectored()
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().$field).poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().$field).poll_shutdown(cx)
            }
        }
    };
}
write_to!(WithReadAhead, socket);
write_to!(TlsSocket, 0);
