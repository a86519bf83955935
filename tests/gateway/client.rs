//! A client that sends whatever bytes a test likes, and reads answers strictly.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

/// Only there so that a broken gateway fails a test instead of hanging it.
const PATIENCE: Duration = Duration::from_mins(2);

/// Waits for something that will come, unless something is broken.
#[track_caller]
pub fn soon<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    let timeout = tokio::time::timeout(PATIENCE, future);
    async move { timeout.await.unwrap_or_else(|_| panic!("in vain at {place}: {what}")) }
}

/// Asks again and again until the answer is something.
#[track_caller]
pub fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> impl Future<Output = T> {
    soon(what, async move {
        loop {
            if let Some(output) = ask().await {
                return output;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
}

/// A server: where it listens.
#[derive(Clone, Debug)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Peer {
    /// As `endpoints()` of the gateway writes it.
    pub fn parse(endpoint: &str) -> Self {
        match endpoint.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.into()),
            None => Self::Tcp(endpoint.parse().unwrap()),
        }
    }

    /// As `upstream.url` of the gateway's configuration has it.
    pub fn url(&self) -> String {
        match self {
            Self::Tcp(address) => format!("http://{address}"),
            Self::Unix(path) => format!("http+unix://{}", path.display().to_string().replace('/', "%2F")),
        }
    }

    pub async fn try_connect(&self) -> io::Result<Wire> {
        let stream: Box<dyn Stream> = match self {
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok(Wire { stream, unread: BytesMut::new() })
    }

    /// Connects over TCP from this address of loopback.
    pub async fn connect_from(&self, ip: &str) -> Wire {
        let Self::Tcp(address) = self else { panic!("{self:?}") };
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{ip}:0").parse().unwrap()).unwrap();
        let stream = Box::new(soon("a connection", socket.connect(*address)).await.unwrap());
        Wire { stream, unread: BytesMut::new() }
    }

    pub async fn connect(&self) -> Wire {
        soon("a connection", self.try_connect()).await.unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Sends one request over a connection of its own, as GitLab Shell does.
    pub async fn send(&self, ask: &Ask) -> Answer {
        let mut wire = self.connect().await;
        wire.write(&ask.to_bytes("close")).await;
        let answer = wire.answer_to(ask).await;
        assert_eq!(wire.rest().await, b"", "more than the answer to {ask}: {answer}");
        answer
    }
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection.
pub struct Wire {
    stream: Box<dyn Stream>,
    unread: BytesMut,
}

impl Wire {
    /// Writes, and does not mind if the peer has heard enough already: what it thinks of it is in
    /// its answer.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = soon("the peer to read", self.stream.write_all(bytes)).await;
    }

    /// Says that nothing more will come.
    pub async fn finish(&mut self) {
        let _ = soon("the end of writing", self.stream.shutdown()).await;
    }

    /// Sends a request, keeps the connection, and reads the answer.
    pub async fn exchange(&mut self, ask: &Ask) -> Answer {
        self.write(&ask.to_bytes("keep-alive")).await;
        self.answer_to(ask).await
    }

    /// Reads the answer to a request that was written.
    pub async fn answer_to(&mut self, ask: &Ask) -> Answer {
        let answer = if ask.method == "HEAD" { self.head_only().await } else { self.try_answer().await };
        answer.unwrap_or_else(|cut| panic!("{cut}, asked: {ask}"))
    }

    /// Reads an answer.
    pub async fn answer(&mut self) -> Answer {
        self.try_answer().await.unwrap_or_else(|cut| panic!("{cut}"))
    }

    /// Reads an answer that may break off.
    pub async fn try_answer(&mut self) -> Result<Answer, Cut> {
        let mut answer = self.head_only().await?;
        if matches!(answer.status, 204 | 304) {
            return Ok(answer);
        }
        let is_whole = match (answer.header("transfer-encoding"), answer.header("content-length")) {
            (Some("chunked"), None) => self.chunks(&mut answer.body).await,
            (None, Some(length)) => {
                let length = length.parse().unwrap_or_else(|_| panic!("Content-Length of {answer}"));
                self.exactly(length, &mut answer.body).await
            }
            (None, None) => {
                answer.body = self.rest().await;
                true
            }
            framing => panic!("framed as {framing:?}: {answer}"),
        };
        if is_whole { Ok(answer) } else { Err(Cut::Body(answer)) }
    }

    /// Reads the head of an answer. Interim answers on the way are written down.
    async fn head_only(&mut self) -> Result<Answer, Cut> {
        let mut interim = Vec::new();
        loop {
            let Some(head) = self.head().await else { return Err(Cut::Head(self.unread.to_vec())) };
            let answer = Answer::parse(&head, interim.clone());
            if answer.status >= 200 {
                return Ok(answer);
            }
            interim.push(answer.status);
        }
    }

    async fn head(&mut self) -> Option<String> {
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

    async fn exactly(&mut self, length: usize, into: &mut Vec<u8>) -> bool {
        while self.unread.len() < length {
            if !self.read_more().await {
                into.extend_from_slice(&self.unread.split());
                return false;
            }
        }
        into.extend_from_slice(&self.unread.split_to(length));
        true
    }

    async fn chunks(&mut self, into: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = self.line().await else { return false };
            let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
            if !self.exactly(size, into).await {
                return false;
            }
            let Some(end) = self.line().await else { return false };
            assert_eq!(end, "", "a chunk is longer than it says");
            if size == 0 {
                return true;
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
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

    /// Reads an interim answer, and nothing else.
    pub async fn interim(&mut self) {
        let head = self.head().await.expect("an interim answer");
        assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
    }

    /// Whether the peer has written something, or does so within this time.
    pub async fn has_something_within(&mut self, time: Duration) -> bool {
        !self.unread.is_empty() || tokio::time::timeout(time, self.read_more()).await.is_ok()
    }

    /// Reads so many bytes at most, and says how many came; none at the end.
    pub async fn drip(&mut self, most: usize) -> usize {
        let mut piece = vec![0; most];
        soon("the peer to write or to close", self.stream.read(&mut piece)).await.unwrap_or(0)
    }

    /// The next bytes, as they come.
    pub async fn some(&mut self) -> Vec<u8> {
        assert!(!self.unread.is_empty() || self.read_more().await, "the peer closed the connection");
        self.unread.split().to_vec()
    }

    /// Everything until the peer closes the connection, or resets it.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.read_more().await {}
        self.unread.split().to_vec()
    }

    async fn read_more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.unread);
        soon("the peer to write or to close", read).await.is_ok_and(|count| count > 0)
    }
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// What came of an answer that broke off.
#[derive(Debug)]
pub enum Cut {
    /// No whole head.
    Head(Vec<u8>),
    /// A head, and less of a body than it announced.
    Body(Answer),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(bytes) => write!(f, "no answer but {:?}", String::from_utf8_lossy(bytes)),
            Self::Body(answer) => write!(f, "broken off: {answer}"),
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The interim answers that came before.
    pub interim: Vec<u16>,
}

impl Answer {
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
        let values = self.all(name);
        assert!(values.len() <= 1, "{name} is repeated in {self}");
        values.first().copied()
    }

    /// The values of a header that may be repeated.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(is, _)| is.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Whether the answer is one of the gateway's own failures, as the clients understand them:
    /// JSON with a string for a message.
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

    /// Whether the caller was refused, byte for byte as Rails does it.
    #[track_caller]
    pub fn assert_unauthorized(&self) {
        self.assert_failure(401);
        assert_eq!(self.text(), r#"{"message":"401 Unauthorized"}"#);
        assert_eq!(self.header("cache-control"), Some("no-cache"));
        assert_eq!(self.header("age"), None, "{self}");
    }

    /// The same of a call that only kas may make.
    #[track_caller]
    pub fn assert_unauthorized_as_kas(&self) {
        self.assert_failure(401);
        assert_eq!(self.text(), r#"{"message":"KAS JWT authentication invalid"}"#);
        assert_eq!(self.header("cache-control"), Some("no-cache"));
        assert_eq!(self.header("age"), None, "{self}");
    }

    /// What the gateway says about the cache.
    pub fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or_default()
    }

    pub fn is_hit(&self) -> bool {
        self.cache_status().starts_with("railgate; hit")
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = &self.body[..self.body.len().min(300)];
        write!(f, "{} {:?} {:?}", self.status, self.headers, String::from_utf8_lossy(body))
    }
}

/// A well-formed request.
#[derive(Clone, Debug)]
pub struct Ask {
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

impl Ask {
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
    pub fn plain_body(&self) -> &[u8] {
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

impl fmt::Display for Ask {
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

/// Bytes that look like nothing in particular, the same every time.
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
