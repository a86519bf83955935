//! A minimal HTTP client, so that no library stands between a test and the bytes.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// So that a broken server fails a test instead of hanging it.
const DEADLINE: Duration = Duration::from_mins(2);

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body is sent in chunks.
    pub chunked: bool,
}

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// A request to exactly this target.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            chunked: false,
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

    pub fn form(self, body: &str) -> Self {
        self.body("application/x-www-form-urlencoded", body)
    }

    pub fn json(self, body: &str) -> Self {
        self.body("application/json", body)
    }

    pub fn body(mut self, content_type: &str, body: &str) -> Self {
        self.body = body.as_bytes().to_vec();
        self.header("Content-Type", content_type)
    }

    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// The request as it goes over the wire.
    fn to_bytes(&self, connection: &str) -> Vec<u8> {
        let mut lines = vec![
            format!("{} {} HTTP/1.1", self.method, self.target),
            "Host: localhost".to_owned(),
            format!("Connection: {connection}"),
        ];
        lines.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        if self.chunked {
            lines.push("Transfer-Encoding: chunked".to_owned());
        } else if !self.body.is_empty() || self.method == "POST" {
            lines.push(format!("Content-Length: {}", self.body.len()));
        }
        let mut bytes = (lines.join("\r\n") + "\r\n\r\n").into_bytes();
        if self.chunked {
            // Of 1, 2, 4, … bytes: no reader gets away with looking at the first chunk alone.
            let (mut rest, mut size) = (self.body.as_slice(), 1);
            while !rest.is_empty() {
                let (chunk, behind) = rest.split_at(size.min(rest.len()));
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
                (rest, size) = (behind, size * 2);
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// Shortened to what helps to find the case.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, target, headers, body, .. } = self;
        let all = format!("{method} {target} {headers:?} {}", String::from_utf8_lossy(body));
        all.chars().take(1_000).try_for_each(|letter| write!(f, "{letter}"))
    }
}

impl Response {
    /// The value of a header, if it is there once. Twice fails the test: no header that is looked
    /// at here may be repeated.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(is, _)| is.eq_ignore_ascii_case(name));
        let first = values.next();
        assert!(values.next().is_none(), "{name} is repeated in {self}");
        first.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self}"))
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}

impl Address {
    /// For `upstream.url` in the gateway's configuration.
    pub fn url(&self) -> String {
        match self {
            Self::Tcp(address) => format!("http://{address}"),
            Self::Unix(path) => format!("http+unix://{}", path.display().to_string().replace('/', "%2F")),
        }
    }

    /// Sends one request over a connection of its own, as GitLab Shell does.
    pub fn send(&self, request: &Request) -> Response {
        self.try_send(request).unwrap_or_else(|error| panic!("{error}: {request} to {self:?}"))
    }

    /// Sends one request to a server that may not be there.
    pub fn try_send(&self, request: &Request) -> io::Result<Response> {
        let mut connection = self.try_connect()?;
        connection.write_all(&request.to_bytes("close"))?;
        read_response(&mut BufReader::new(connection), request)
    }

    /// Sends several requests over one connection, as kas does.
    pub fn send_all(&self, requests: &[Request]) -> Vec<Response> {
        let mut connection = self.connect();
        requests.iter().map(|request| connection.send(request)).collect()
    }

    /// A connection that is kept open.
    pub fn connect(&self) -> Connection {
        Connection { stream: BufReader::new(self.try_connect().unwrap()) }
    }

    fn try_connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                Ok(Box::new(stream))
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// See [`Address::connect`].
pub struct Connection {
    stream: BufReader<Box<dyn Stream>>,
}

impl Connection {
    pub fn send(&mut self, request: &Request) -> Response {
        let sent = self.stream.get_mut().write_all(&request.to_bytes("keep-alive"));
        let response = sent.and_then(|()| read_response(&mut self.stream, request));
        response.unwrap_or_else(|error| panic!("{error}: {request}"))
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Reads the final response; interim ones are skipped.
fn read_response(from: &mut impl BufRead, request: &Request) -> io::Result<Response> {
    let mut response = read_head(from)?;
    while response.status < 200 {
        response = read_head(from)?;
    }
    if request.method != "HEAD" && !matches!(response.status, 204 | 304) {
        response.body = read_body(from, &response)?;
    }
    Ok(response)
}

fn read_head(from: &mut impl BufRead) -> io::Result<Response> {
    let status_line = read_line(from)?;
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| invalid_data(&format!("no status line: {status_line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            return Ok(Response { status, headers, body: Vec::new() });
        }
        let (name, value) =
            line.split_once(':').ok_or_else(|| invalid_data(&format!("no header: {line:?}")))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
}

fn read_body(from: &mut impl BufRead, response: &Response) -> io::Result<Vec<u8>> {
    match (response.header("Transfer-Encoding"), response.header("Content-Length")) {
        (Some("chunked"), None) => read_chunks(from),
        (None, Some(length)) => {
            read_exactly(from, length.parse().map_err(|_| invalid_data("Content-Length"))?)
        }
        (None, None) => {
            let mut body = Vec::new();
            from.read_to_end(&mut body)?;
            Ok(body)
        }
        framing => Err(invalid_data(&format!("framed as {framing:?}"))),
    }
}

fn read_chunks(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = read_line(from)?;
        let size =
            usize::from_str_radix(&size, 16).map_err(|_| invalid_data(&format!("chunk size {size:?}")))?;
        body.extend(read_exactly(from, size)?);
        if !read_line(from)?.is_empty() {
            return Err(invalid_data("a chunk is longer than it says"));
        }
        if size == 0 {
            return Ok(body);
        }
    }
}

fn read_exactly(from: &mut impl BufRead, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    line.strip_suffix("\r\n")
        .map(str::to_owned)
        .ok_or_else(|| invalid_data(&format!("broken off after {line:?}")))
}

fn invalid_data(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
