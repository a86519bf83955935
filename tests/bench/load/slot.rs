//! A slot for a connection: it has at most one request in flight, and reconnects when it has to.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, Socket, Type};

use super::response::ResponseParser;

static CHUNK: [u8; 1 << 18] = [b'u'; 1 << 18];

/// Where the requests go.
pub(super) struct Target {
    address: SockAddr,
    /// The last octet of the next source address, if they rotate.
    source: Option<u8>,
    interest: Interest,
}

impl Target {
    /// `to` is a port or a path. Connections for a single request come from 127.0.1.1 to 127.0.1.40 in turn,
    /// or the ports of one address would run out.
    pub(super) fn new(to: &str, short: bool, uploads: bool) -> io::Result<Self> {
        let address = match to.parse::<u16>() {
            Ok(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into(),
            Err(_) => SockAddr::unix(to)?,
        };
        let source = (short && address.domain() == Domain::IPV4).then_some(1);
        // A small request always fits into the socket's buffer, so it is written immediately.
        let interest = if uploads { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        Ok(Self { address, source, interest })
    }

    fn connect(&mut self) -> io::Result<Stream> {
        for _ in 0..3 {
            match self.try_connect() {
                // The port that the kernel chose was used a moment ago. The next address has others.
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
                outcome => return outcome,
            }
        }
        self.try_connect()
    }

    fn try_connect(&mut self) -> io::Result<Stream> {
        let socket = Socket::new(self.address.domain(), Type::STREAM, None)?;
        if let Some(source) = &mut self.source {
            *source = *source % 40 + 1;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 1, *source), 0)).into())?;
        }
        // Blocks, but only as long as the kernel needs: the backlogs are long.
        socket.connect(&self.address)?;
        socket.set_nonblocking(true)?;
        if self.address.domain() == Domain::IPV4 {
            socket.set_tcp_nodelay(true)?;
            Ok(Stream::Tcp(TcpStream::from_std(socket.into())))
        } else {
            Ok(Stream::Unix(UnixStream::from_std(socket.into())))
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
        }
    }
}

/// The progress of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Waiting,
    Answered(u16),
    /// The server closed the connection before it answered anything.
    Unanswered,
    Broken,
}

pub(super) struct Slot {
    stream: Option<Stream>,
    pub(super) is_busy: bool,
    /// When the request was sent, or in an open loop was due.
    pub(super) begun: Instant,
    /// The request.
    pub(super) out: Vec<u8>,
    written: usize,
    /// The length of the streamed body.
    pub(super) body: u64,
    body_left: u64,
    response: ResponseParser,
    /// How often this request was retried.
    pub(super) tries: u8,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            stream: None,
            is_busy: false,
            begun: Instant::now(),
            out: Vec::new(),
            written: 0,
            body: 0,
            body_left: 0,
            response: ResponseParser::new(),
            tries: 0,
        }
    }

    pub(super) fn connect(
        &mut self,
        target: &mut Target,
        registry: &Registry,
        token: Token,
    ) -> io::Result<()> {
        let mut stream = target.connect()?;
        registry.register(stream.source(), token, target.interest)?;
        self.stream = Some(stream);
        Ok(())
    }

    pub(super) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    pub(super) fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Sends the request from its beginning.
    pub(super) fn send(&mut self) -> Progress {
        self.is_busy = true;
        self.written = 0;
        self.body_left = self.body;
        self.response.reset();
        self.write()
    }

    /// Writes as much as possible.
    pub(super) fn write(&mut self) -> Progress {
        let Some(stream) = &mut self.stream else { return Progress::Unanswered };
        loop {
            let head = self.out.get(self.written..).unwrap_or_default();
            let in_head = !head.is_empty();
            let most = self.body_left.min(CHUNK.len() as u64) as usize;
            let bytes = if in_head { head } else { CHUNK.get(..most).unwrap_or_default() };
            if bytes.is_empty() {
                return Progress::Waiting;
            }
            match stream.write(bytes) {
                Ok(count) if in_head => self.written += count,
                Ok(count) => self.body_left -= count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(_) => return self.lost(),
            }
        }
    }

    /// Reads all available bytes.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Progress {
        loop {
            let Some(stream) = &mut self.stream else { return Progress::Waiting };
            let count = match stream.read(buffer) {
                Ok(0) => return self.lost(),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(_) => return self.lost(),
            };
            if !self.is_busy {
                // Unsolicited bytes.
                self.stream = None;
                return Progress::Broken;
            }
            if self.response.push(buffer.get(..count).unwrap_or_default()) {
                self.is_busy = false;
                if self.response.closes {
                    self.stream = None;
                }
                return Progress::Answered(self.response.status);
            }
            // A read that did not fill the buffer has emptied the socket: epoll will report more.
            if count < buffer.len() {
                return Progress::Waiting;
            }
        }
    }

    fn lost(&mut self) -> Progress {
        self.stream = None;
        match (self.is_busy, self.response.has_begun) {
            (false, _) => Progress::Waiting,
            (true, false) => Progress::Unanswered,
            (true, true) => Progress::Broken,
        }
    }
}
