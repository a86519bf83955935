//! A client that measures time, and gives up after a limit.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::time;
use crate::credentials;
use crate::http_client::Address;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A request, as bytes.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self { head: format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n"), body: Vec::new() }
    }

    /// A GET of an endpoint of the internal API.
    pub(crate) fn get(endpoint: &str) -> Self {
        Self::new("GET", &format!("/api/v4/internal/{endpoint}"))
    }

    pub(crate) fn post(endpoint: &str, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", &format!("/api/v4/internal/{endpoint}")).with_body(kind, body)
    }

    /// An access check with a credential.
    pub(crate) fn allowed() -> Self {
        const FORM: &str = "key_id=1&project=gnuwget/wget2&action=git-upload-pack&changes=_any";
        Self::post("allowed", "application/x-www-form-urlencoded", FORM).with_secret()
    }

    pub(crate) fn with_body(self, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = body.len().to_string();
        let request = self.header("Content-Type", kind).header("Content-Length", &length);
        Self { body, ..request }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.head.extend([name, ": ", value, "\r\n"]);
        self
    }

    pub(crate) fn with_secret(self) -> Self {
        self.header(credentials::SHELL_HEADER, &credentials::shared_secret())
    }

    /// The bytes for a kept connection.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), b"\r\n", &self.body].concat()
    }

    fn last_bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), b"Connection: close\r\n\r\n", &self.body].concat()
    }
}

pub(crate) struct Outcome {
    /// None without a response.
    pub(crate) status: Option<u16>,
    pub(crate) body: String,
    pub(crate) took: Duration,
    pub(crate) ended: Instant,
}

impl Outcome {
    pub(crate) fn is(&self, status: u16) -> bool {
        self.status == Some(status)
    }

    /// The status and the time, for a table.
    pub(crate) fn summary(&self) -> String {
        match self.status {
            Some(status) => format!("{status} after {}", time(self.took)),
            None => format!("no answer, {}", time(self.took)),
        }
    }
}

pub(crate) async fn connect(address: &Address) -> io::Result<Box<dyn Stream>> {
    Ok(match address {
        Address::Port(port) => Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?),
        Address::Socket(path) => Box::new(UnixStream::connect(path).await?),
    })
}

/// Sends a request over a new connection.
pub(crate) async fn send(address: &Address, request: &Request, limit: Duration) -> Outcome {
    send_pieces(address, &[&request.last_bytes()], limit).await
}

/// The same with a body in two pieces, like one that is larger than a packet.
pub(crate) async fn send_in_two_pieces(address: &Address, request: &Request, limit: Duration) -> Outcome {
    let bytes = request.last_bytes();
    let (first, second) = bytes.split_at(bytes.len() - request.body.len() / 2);
    send_pieces(address, &[first, second], limit).await
}

async fn send_pieces(address: &Address, pieces: &[&[u8]], limit: Duration) -> Outcome {
    let exchange = async {
        let mut stream = connect(address).await?;
        for (number, piece) in pieces.iter().enumerate() {
            if number > 0 {
                sleep(Duration::from_millis(20)).await;
            }
            stream.write_all(piece).await?;
        }
        let mut response = Vec::new();
        // A reset after the response does not matter.
        let read = stream.read_to_end(&mut response).await;
        if response.is_empty() { read.map(|_| response) } else { Ok(response) }
    };
    outcome(exchange, limit).await
}

/// Sends a request over a kept connection. The response has to arrive in one piece.
pub(crate) async fn send_on(stream: &mut dyn Stream, request: &Request, limit: Duration) -> Outcome {
    let exchange = async {
        stream.write_all(&request.bytes()).await?;
        let mut response = vec![0; 64 * 1024];
        let count = stream.read(&mut response).await?;
        response.truncate(count);
        Ok(response)
    };
    outcome(exchange, limit).await
}

async fn outcome(exchange: impl Future<Output = io::Result<Vec<u8>>>, limit: Duration) -> Outcome {
    let begun = Instant::now();
    let response = timeout(limit, exchange).await.ok().and_then(Result::ok).unwrap_or_default();
    let ended = Instant::now();
    let response = String::from_utf8_lossy(&response);
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Outcome { status, body: body.to_owned(), took: ended - begun, ended }
}

/// Opens connections on which nothing is sent.
pub(crate) async fn idle(address: &Address, count: usize) -> Vec<Box<dyn Stream>> {
    let mut idle = Vec::new();
    for _ in 0..count {
        match timeout(Duration::from_secs(2), connect(address)).await {
            Ok(Ok(stream)) => idle.push(stream),
            // No more connections are accepted.
            _ => break,
        }
    }
    idle
}
