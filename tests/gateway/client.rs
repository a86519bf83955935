//! A client that sends any bytes, and parses responses strictly.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

pub use super::waiting::{eventually, within_deadline};

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// Parses what the gateway's `endpoints()` returns.
    pub fn parse(endpoint: &str) -> Self {
        match endpoint.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.into()),
            None => Self::Tcp(endpoint.parse().unwrap()),
        }
    }

    /// For `upstream.url` in the gateway's configuration.
    pub fn url(&self) -> String {
        match self {
            Self::Tcp(address) => format!("http://{address}"),
            Self::Unix(path) => format!("http+unix://{}", path.display().to_string().replace('/', "%2F")),
        }
    }

    pub async fn try_connect(&self) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match self {
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok(Connection { stream, unread: BytesMut::new() })
    }

    /// Connects with TLS, and believes the certificates that `config` does, for the name `localhost`. In TLS 1.3, a
    /// client's certificate may still be refused afterwards.
    pub async fn connect_tls(&self, config: &Arc<ClientConfig>) -> io::Result<Connection> {
        self.connect().await.start_tls(config).await
    }

    /// Connects over TCP from this loopback address.
    pub async fn connect_from(&self, ip: &str) -> Connection {
        let Self::Tcp(address) = self else { panic!("{self:?}") };
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{ip}:0").parse().unwrap()).unwrap();
        let stream = Box::new(within_deadline("a connection", socket.connect(*address)).await.unwrap());
        Connection { stream, unread: BytesMut::new() }
    }

    /// Connects over TCP with a small buffer for what the peer sends.
    pub async fn connect_with_small_buffer(&self) -> Connection {
        let Self::Tcp(address) = self else { panic!("{self:?}") };
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let stream = Box::new(within_deadline("a connection", socket.connect(*address)).await.unwrap());
        Connection { stream, unread: BytesMut::new() }
    }

    pub async fn connect(&self) -> Connection {
        within_deadline("a connection", self.try_connect())
            .await
            .unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Sends one request over a connection of its own, as GitLab Shell does.
    pub async fn send(&self, request: &Request) -> Response {
        let mut connection = self.connect().await;
        connection.write(&request.to_bytes("close")).await;
        let response = connection.read_response_to(request).await;
        assert_eq!(connection.read_to_end().await, b"", "more than the answer to {request}: {response}");
        response
    }
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection to a server.
pub struct Connection {
    stream: Box<dyn Stream>,
    unread: BytesMut,
}

impl Connection {
    /// Goes on with TLS.
    pub async fn start_tls(self, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").unwrap();
        let handshake = TlsConnector::from(Arc::clone(config)).connect(name, self.stream);
        let stream = Box::new(within_deadline("a TLS handshake", handshake).await?);
        Ok(Self { stream, unread: BytesMut::new() })
    }

    /// For a client that reads by itself.
    pub fn into_stream(self) -> Box<dyn Stream> {
        assert!(self.unread.is_empty());
        self.stream
    }

    /// Writes, and ignores a peer that has stopped reading: its response tells.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = within_deadline("the peer to read", self.stream.write_all(bytes)).await;
    }

    /// Closes the sending side.
    pub async fn shutdown_write(&mut self) {
        let _ = within_deadline("the end of writing", self.stream.shutdown()).await;
    }

    /// Sends a request over the kept connection, and reads the response.
    pub async fn exchange(&mut self, request: &Request) -> Response {
        self.write(&request.to_bytes("keep-alive")).await;
        self.read_response_to(request).await
    }

    /// Reads the response to a request that was written.
    pub async fn read_response_to(&mut self, request: &Request) -> Response {
        let response = if request.method == "HEAD" {
            self.read_response_head().await
        } else {
            self.try_read_response().await
        };
        response.unwrap_or_else(|incomplete| panic!("{incomplete}, asked: {request}"))
    }

    pub async fn read_response(&mut self) -> Response {
        self.try_read_response().await.unwrap_or_else(|incomplete| panic!("{incomplete}"))
    }

    /// Reads a response that may be truncated.
    pub async fn try_read_response(&mut self) -> Result<Response, Incomplete> {
        let mut response = self.read_response_head().await?;
        if matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        let is_whole = match (response.header("transfer-encoding"), response.header("content-length")) {
            (Some("chunked"), None) => self.read_chunks(&mut response.body).await,
            (None, Some(length)) => {
                let length = length.parse().unwrap_or_else(|_| panic!("Content-Length of {response}"));
                self.read_exactly(length, &mut response.body).await
            }
            (None, None) => {
                response.body = self.read_to_end().await;
                true
            }
            framing => panic!("framed as {framing:?}: {response}"),
        };
        if is_whole { Ok(response) } else { Err(Incomplete::Body(response)) }
    }

    /// Reads the head of the final response, and records interim ones.
    async fn read_response_head(&mut self) -> Result<Response, Incomplete> {
        let mut interim = Vec::new();
        loop {
            let Some(head) = self.read_head().await else {
                return Err(Incomplete::Head(self.unread.to_vec()));
            };
            let response = Response::parse(&head, interim.clone());
            if response.status >= 200 {
                return Ok(response);
            }
            interim.push(response.status);
        }
    }

    async fn read_head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = position(&self.unread, b"\r\n\r\n") {
                let head = self.unread.split_to(end + 4).to_vec();
                return Some(String::from_utf8(head).expect("the head is text"));
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    async fn read_exactly(&mut self, length: usize, into: &mut Vec<u8>) -> bool {
        while self.unread.len() < length {
            if !self.read_more().await {
                into.extend_from_slice(&self.unread.split());
                return false;
            }
        }
        into.extend_from_slice(&self.unread.split_to(length));
        true
    }

    async fn read_chunks(&mut self, into: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = self.read_line().await else { return false };
            let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
            if !self.read_exactly(size, into).await {
                return false;
            }
            let Some(end) = self.read_line().await else { return false };
            assert_eq!(end, "", "a chunk is longer than it says");
            if size == 0 {
                return true;
            }
        }
    }

    async fn read_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = position(&self.unread, b"\r\n") {
                let line = self.unread.split_to(end + 2);
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    /// Reads a `100 Continue`.
    pub async fn read_interim(&mut self) {
        let head = self.read_head().await.expect("an interim answer");
        assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
    }

    /// Whether there is something to read, now or within this time.
    pub async fn is_readable_within(&mut self, time: Duration) -> bool {
        !self.unread.is_empty() || tokio::time::timeout(time, self.read_more()).await.is_ok()
    }

    /// Reads at most so many bytes. Returns how many came; 0 at the end.
    pub async fn read_at_most(&mut self, most: usize) -> usize {
        let mut piece = vec![0; most];
        within_deadline("the peer to write or to close", self.stream.read(&mut piece)).await.unwrap_or(0)
    }

    /// Reads the next bytes, at least one.
    pub async fn read_some(&mut self) -> Vec<u8> {
        assert!(!self.unread.is_empty() || self.read_more().await, "the peer closed the connection");
        self.unread.split().to_vec()
    }

    /// Reads what comes next; nothing at the end.
    pub async fn read_some_or_end(&mut self) -> Vec<u8> {
        if self.unread.is_empty() {
            self.read_more().await;
        }
        self.unread.split().to_vec()
    }

    /// Reads until the peer closes or resets the connection.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        while self.read_more().await {}
        self.unread.split().to_vec()
    }

    async fn read_more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.unread);
        within_deadline("the peer to write or to close", read).await.is_ok_and(|count| count > 0)
    }
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// What was read of a truncated response.
#[derive(Debug)]
pub enum Incomplete {
    /// No whole head.
    Head(Vec<u8>),
    /// A head, and less of a body than it announced.
    Body(Response),
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(bytes) => write!(f, "no answer but {:?}", String::from_utf8_lossy(bytes)),
            Self::Body(response) => write!(f, "broken off: {response}"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The statuses of the interim responses before it.
    pub interim: Vec<u16>,
}

impl Response {
    fn parse(head: &str, interim: Vec<u16>) -> Self {
        let mut lines = head.split("\r\n").take_while(|line| !line.is_empty());
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| status_line.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or_else(|| panic!("no status line: {head:?}"));
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}"));
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Self { status, headers, body: Vec::new(), interim }
    }

    /// The value of a header, if it is there once. Twice fails the test.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.header_values(name);
        assert!(values.len() <= 1, "{name} is repeated in {self}");
        values.first().copied()
    }

    /// The values of a header that may be repeated.
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        let matching = self.headers.iter().filter(|(is, _)| is.eq_ignore_ascii_case(name));
        matching.map(|(_, value)| value.as_str()).collect()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Asserts that this is a failure of the gateway itself, as clients understand it: JSON with a string
    /// for a message.
    #[track_caller]
    pub fn assert_failure(&self, status: u16) {
        assert_eq!(self.status, status, "{self}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self}");
        let message = self.json()["message"].as_str().map(str::len);
        assert!(message.is_some_and(|length| length > 0), "{self}");
        assert_eq!(self.json().as_object().map(serde_json::Map::len), Some(1), "{self}");
        assert_eq!(self.header("location"), None, "{self}");
        assert_eq!(self.header("www-authenticate"), None, "{self}");
    }

    /// Asserts that the caller was refused, byte for byte as Rails does it.
    #[track_caller]
    pub fn assert_unauthorized(&self) {
        self.assert_failure(401);
        assert_eq!(self.text(), r#"{"message":"401 Unauthorized"}"#);
        assert_eq!(self.header("cache-control"), Some("no-cache"));
        assert_eq!(self.header("age"), None, "{self}");
    }

    /// The same for an endpoint of kas.
    #[track_caller]
    pub fn assert_unauthorized_as_kas(&self) {
        self.assert_failure(401);
        assert_eq!(self.text(), r#"{"message":"KAS JWT authentication invalid"}"#);
        assert_eq!(self.header("cache-control"), Some("no-cache"));
        assert_eq!(self.header("age"), None, "{self}");
    }

    /// The header `Cache-Status`, empty without one.
    pub fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or_default()
    }

    pub fn is_hit(&self) -> bool {
        self.cache_status().starts_with("railgate; hit")
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = &self.body[..self.body.len().min(300)];
        write!(f, "{} {:?} {:?}", self.status, self.headers, String::from_utf8_lossy(body))
    }
}

/// A well-formed request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    body: Vec<u8>,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length,
    /// Chunks of at most this many bytes.
    Chunks(usize),
}

impl Request {
    /// A request to exactly this target.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            framing: if method == "POST" { Framing::Length } else { Framing::None },
        }
    }

    /// A GET of an endpoint of the internal API, named as in `check` or `discover?key_id=1`.
    pub fn get(endpoint: &str) -> Self {
        Self::new("GET", &format!("/api/v4/internal/{endpoint}"))
    }

    /// A POST to an endpoint of the internal API.
    pub fn post(endpoint: &str) -> Self {
        Self::new("POST", &format!("/api/v4/internal/{endpoint}"))
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self.framing = Framing::Length;
        self
    }

    /// The body without its framing.
    pub fn body_bytes(&self) -> &[u8] {
        &self.body
    }

    pub fn form(self, body: &str) -> Self {
        self.header("Content-Type", "application/x-www-form-urlencoded").body(body)
    }

    pub fn json(self, body: &str) -> Self {
        self.header("Content-Type", "application/json").body(body)
    }

    /// The same request with its body in chunks of at most `size` bytes.
    pub fn chunked(mut self, size: usize) -> Self {
        self.framing = Framing::Chunks(size);
        self
    }

    /// The request as it goes over the wire.
    pub fn to_bytes(&self, connection: &str) -> Vec<u8> {
        let has = |name: &str| self.headers.iter().any(|(is, _)| is.eq_ignore_ascii_case(name));
        let mut lines = vec![format!("{} {} HTTP/1.1", self.method, self.target)];
        if !has("host") {
            lines.push("Host: gateway.example:8181".to_owned());
        }
        if !has("connection") {
            lines.push(format!("Connection: {connection}"));
        }
        lines.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        match self.framing {
            Framing::None => {}
            Framing::Length => lines.push(format!("Content-Length: {}", self.body.len())),
            Framing::Chunks(_) => lines.push("Transfer-Encoding: chunked".to_owned()),
        }
        let head = lines.join("\r\n") + "\r\n\r\n";
        let mut bytes = head.into_bytes();
        match self.framing {
            Framing::None => {}
            Framing::Length => bytes.extend_from_slice(&self.body),
            Framing::Chunks(size) => bytes.extend_from_slice(&chunked(&self.body, size)),
        }
        bytes
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = &self.body[..self.body.len().min(300)];
        write!(f, "{} {} {:?} {:?}", self.method, self.target, self.headers, String::from_utf8_lossy(body))
    }
}

/// A body in chunks of at most `size` bytes.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + body.len() / size * 8 + 16);
    for chunk in body.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Pseudo-random bytes, the same every time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
