//! A client that sends any frames of HTTP/2 (RFC 9113 §4.1), well-formed or not.

use super::client::{Address, Connection, within_deadline};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered(u16, Vec<u8>),
    /// The error code.
    Reset(u32),
    /// The error code of the last GOAWAY, if there was one.
    Closed(Option<u32>),
}

impl Outcome {
    pub fn status(&self) -> Option<u16> {
        if let Self::Answered(status, _) = self { Some(*status) } else { None }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Literal fields that are not indexed, with literal names (RFC 7541 §6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn push_length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        return block.push(u8::try_from(length).unwrap());
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The pseudo-header fields of a request, in front of `more`.
pub fn request<'f>(method: &'f str, path: &'f str, more: &[(&'f str, &'f str)]) -> Vec<(&'f str, &'f str)> {
    let pseudo =
        [(":method", method), (":scheme", "http"), (":authority", "gateway.example:8181"), (":path", path)];
    [&pseudo[..], more].concat()
}

pub struct FrameClient {
    pub connection: Connection,
    unread: Vec<u8>,
    goaway: Option<u32>,
}

impl FrameClient {
    /// Sends the preface and empty settings.
    pub async fn connect(address: &Address) -> Self {
        Self::start(address.connect().await, &[]).await
    }

    /// The same with settings.
    pub async fn start(connection: Connection, settings: &[(u16, u32)]) -> Self {
        let mut client = Self::silent(connection);
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        client.connection.write(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).await;
        client
    }

    /// Sends nothing by itself.
    pub fn silent(connection: Connection) -> Self {
        Self { connection, unread: Vec::new(), goaway: None }
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.connection.write(&frame(kind, flags, stream, payload)).await;
    }

    /// A head without a body.
    pub async fn send_request(&mut self, stream: u32, fields: &[(&str, &str)]) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields)).await;
    }

    /// The next frame; `None` at the end.
    pub async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            if let [a, b, c, kind, flags, d, e, f, g, payload @ ..] = &self.unread[..] {
                let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                if let Some(payload) = payload.get(..length) {
                    let stream = u32::from_be_bytes([*d, *e, *f, *g]);
                    let frame = Frame { kind: *kind, flags: *flags, stream, payload: payload.to_vec() };
                    self.unread.drain(..9 + length);
                    if frame.kind == GOAWAY {
                        self.goaway = Some(code(&frame.payload[4..]));
                    }
                    return Some(frame);
                }
            }
            let more = self.connection.read_some_or_end().await;
            if more.is_empty() {
                return None;
            }
            self.unread.extend(more);
        }
    }

    /// Reads until a frame of this kind.
    pub async fn read_until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.read_frame().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// How the stream ends. Frames of others are lost.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        let (mut status, mut body) = (None, Vec::new());
        loop {
            let Some(frame) = within_deadline("a frame", self.read_frame()).await else {
                return Outcome::Closed(self.goaway);
            };
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                HEADERS if status.is_none() => status = Some(status_of(&frame.payload)),
                DATA => body.extend(&frame.payload),
                RST_STREAM => return Outcome::Reset(code(&frame.payload)),
                _ => {}
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                return Outcome::Answered(status.unwrap(), body);
            }
        }
    }

    /// The error code with which the connection ends.
    pub async fn end(&mut self) -> Option<u32> {
        while within_deadline("the end", self.read_frame()).await.is_some() {}
        self.goaway
    }
}

fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

/// The status that a block begins with, if it is the first one of its connection.
fn status_of(block: &[u8]) -> u16 {
    match block {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x48, length, text @ ..] if length & 0x80 != 0 => digits(&text[..usize::from(length & 0x7f)]),
        [0x48, 3, text @ ..] => std::str::from_utf8(&text[..3]).unwrap().parse().unwrap(),
        _ => panic!("{block:x?}"),
    }
}

/// Three digits in the code of RFC 7541, appendix B.
fn digits(text: &[u8]) -> u16 {
    let bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0, |sum, bit| sum << 1 | u16::from(*bit));
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let short = number(&bits[at..at + 5]);
        let (digit, length) = if short < 3 { (short, 5) } else { (number(&bits[at..at + 6]) - 0x16, 6) };
        status = status * 10 + digit;
        at += length;
    }
    status
}
