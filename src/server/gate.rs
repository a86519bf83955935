//! The reading side of a connection: bytes pass to hyper only once their framing is validated.
//!
//! The gate follows a connection from head to body to the next head by the strict rules of
//! [`wire`]. A head is held back until it is complete; a refused one is replaced by a
//! head that the stack answers with the refusal, so that earlier requests on the connection are
//! answered first. After that the connection delivers nothing more. A malformed chunk fails the
//! reading with an error, since its request is already being handled. Input that is unusual but unambiguous
//! is passed to hyper in the usual form: targets in origin-form, no empty line before a head, chunks without
//! extensions. The end of the input is passed on once nothing is left to be sent.
//!
//! Most heads arrive in one piece, so bytes are read straight into hyper's buffer and validated there;
//! bytes that must not pass yet are taken out again.

mod chunks;
mod read;
mod write;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use memchr::memchr;

use super::deadline_timer::DeadlineTimer;
use super::registry::ConnectionState;
use super::wire::{self, Head, HeadLimits, HeadReader};
use super::write_deadline::WriteDeadline;
use crate::framing::Framing;
use crate::framing::chunk::{MAX_CHUNK_LINE, chunk_size};
use crate::refusal::Refusal;
use crate::write_batch::WritePacer;

/// A socket whose input is validated.
#[derive(Debug)]
pub(super) struct Gate<I> {
    io: I,
    /// Bytes that were read and may not pass yet.
    buffer: BytesMut,
    state: GateState,
    limits: GateLimits,
    /// For a head to begin, to end, or for more of a body. When it expires, the connection is closed.
    read_deadline: DeadlineTimer,
    write_deadline: WriteDeadline,
    /// Tells whether a request is being answered, and whether the server drains. A draining server
    /// does not wait for a first head. Later ones are left to hyper, which takes the end of the
    /// input during a request for a client that has disconnected.
    connection: Arc<ConnectionState>,
    has_begun: bool,
    /// The socket wakes this task when it can be read, also at its end.
    is_read_pending: bool,
    /// What was written waits in the socket's own layer, TLS.
    is_flush_pending: bool,
    /// As last set in `connection`.
    awaits_body: bool,
    pacer: WritePacer,
    /// The peer has closed its sending side.
    has_read_eof: bool,
    /// hyper has not been told of it yet.
    withholds_eof: bool,
    /// Bytes of the chunk extensions of the current body.
    extensions: usize,
}

/// The limits for the peer of a gate.
#[derive(Clone, Copy, Debug)]
pub(super) struct GateLimits {
    pub(super) head: HeadLimits,
    /// For the first byte of the connection.
    pub(super) first_byte_timeout: Duration,
    /// From the first byte of a head to its last.
    pub(super) head_timeout: Duration,
    /// For any other wait.
    pub(super) idle_timeout: Duration,
}

/// What is expected next on the wire.
#[derive(Debug)]
enum GateState {
    Head(HeadReader),
    /// This many bytes may pass unchanged; then follows `next`.
    Pass {
        left: u64,
        next: NextState,
    },
    ChunkSize,
    ChunkEnd,
    Trailer {
        seen: usize,
    },
    /// Nothing more passes: a head was refused.
    End,
    Broken,
}

#[derive(Clone, Copy, Debug)]
enum NextState {
    Head,
    Body(Framing),
    ChunkSize,
    ChunkEnd,
    Trailer(usize),
    End,
}

impl<I> Gate<I> {
    pub(super) fn new(io: I, limits: GateLimits, connection: Arc<ConnectionState>) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            state: GateState::Head(HeadReader::default()),
            limits,
            read_deadline: DeadlineTimer::default(),
            write_deadline: WriteDeadline::new(limits.idle_timeout, Arc::clone(&connection)),
            connection,
            has_begun: false,
            is_read_pending: false,
            is_flush_pending: false,
            awaits_body: false,
            pacer: WritePacer::default(),
            has_read_eof: false,
            withholds_eof: false,
            extensions: 0,
        }
    }

    /// Advances as far as the buffered bytes allow. `Ok(true)`: bytes may
    /// pass, or the end is reached; `Ok(false)`: more has to be read first.
    fn advance(&mut self) -> io::Result<bool> {
        loop {
            match &mut self.state {
                GateState::Pass { left: 0, next } => self.state = next.state(),
                GateState::Pass { .. } | GateState::End => return Ok(true),
                GateState::Broken => return Err(broken()),
                GateState::Head(reader) => {
                    self.buffer.advance(reader.skip_empty_line(&self.buffer));
                    match reader.read(&self.buffer, self.limits.head) {
                        Ok(None) => return Ok(false),
                        Ok(Some(head)) => self.accept_head(head),
                        Err(refusal) => self.refuse(refusal),
                    }
                }
                GateState::ChunkSize => {
                    chunks::merge(&mut self.buffer).map_err(|_| self.fail())?;
                    let is_whole = chunks::strip_extensions(&mut self.buffer, &mut self.extensions);
                    if !is_whole.map_err(|_| self.fail())? {
                        return Ok(false);
                    }
                    match self.line_end(MAX_CHUNK_LINE)? {
                        None => return Ok(false),
                        Some(end) => match self.chunk_size(end)? {
                            0 => self.pass(end, NextState::Trailer(0)),
                            size => self.pass_more(end, size, NextState::ChunkEnd),
                        },
                    }
                }
                GateState::ChunkEnd => match self.line_end(3)? {
                    None => return Ok(false),
                    Some(2) => self.pass(2, NextState::ChunkSize),
                    Some(_) => return Err(self.fail()),
                },
                GateState::Trailer { seen } => {
                    let seen = *seen;
                    let room = self.limits.head.bytes.saturating_sub(seen);
                    match self.line_end(room)? {
                        None => return Ok(false),
                        Some(2) => self.pass(2, NextState::Head),
                        Some(end) => {
                            self.validate_trailer(end)?;
                            self.pass(end, NextState::Trailer(seen + end));
                        }
                    }
                }
            }
        }
    }

    fn pass(&mut self, bytes: usize, next: NextState) {
        self.pass_more(bytes, 0, next);
    }

    fn pass_more(&mut self, line: usize, size: u64, next: NextState) {
        self.state = GateState::Pass { left: line as u64 + size, next };
    }

    /// Lets a head pass, after rewriting its target if it has to.
    fn accept_head(&mut self, head: Head) {
        if !head.needs_rewrite {
            return self.pass_head(head.end, NextState::Body(head.framing));
        }
        match wire::to_origin_form(self.buffer.get(..head.end).unwrap_or_default()) {
            Ok(rewritten) => {
                // It is shorter, so it fits in the place of the old one; the bytes behind it, which may be many, stay.
                let length = rewritten.len();
                self.buffer.advance(head.end.saturating_sub(length));
                if let Some(front) = self.buffer.get_mut(..length) {
                    front.copy_from_slice(&rewritten);
                }
                self.pass_head(length, NextState::Body(head.framing));
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn pass_head(&mut self, bytes: usize, next: NextState) {
        self.read_deadline.clear();
        self.has_begun = true;
        self.extensions = 0;
        self.connection.request_started();
        self.pass(bytes, next);
    }

    fn refuse(&mut self, refusal: Refusal) {
        let head = wire::refused_head(refusal);
        self.buffer = BytesMut::from(head.as_slice());
        self.pass_head(head.len(), NextState::End);
    }

    /// The end of the CRLF line that the buffer begins with, if it was received.
    fn line_end(&mut self, limit: usize) -> io::Result<Option<usize>> {
        match memchr(b'\n', &self.buffer) {
            Some(at) if at >= 1 && at < limit && self.buffer.get(at - 1) == Some(&b'\r') => Ok(Some(at + 1)),
            None if self.buffer.len() < limit => Ok(None),
            _ => Err(self.fail()),
        }
    }

    fn chunk_size(&mut self, end: usize) -> io::Result<u64> {
        let size = chunk_size(self.buffer.get(..end.saturating_sub(2)).unwrap_or_default());
        size.ok_or_else(|| self.fail())
    }

    fn validate_trailer(&mut self, end: usize) -> io::Result<()> {
        let result = wire::validate_trailer(self.buffer.get(..end.saturating_sub(2)).unwrap_or_default());
        result.map_err(|_| self.fail())
    }

    fn set_awaits_body(&mut self, awaits_body: bool) {
        if self.awaits_body != awaits_body {
            self.awaits_body = awaits_body;
            self.connection.set_awaits_peer(awaits_body);
        }
    }

    fn fail(&mut self) -> io::Error {
        self.state = GateState::Broken;
        broken()
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Refusal::Chunk.message())
}

impl NextState {
    fn state(self) -> GateState {
        match self {
            Self::Head | Self::Body(Framing::Length(0)) => GateState::Head(HeadReader::default()),
            Self::Body(Framing::Length(left)) => GateState::Pass { left, next: Self::Head },
            Self::Body(Framing::Chunked) | Self::ChunkSize => GateState::ChunkSize,
            Self::ChunkEnd => GateState::ChunkEnd,
            Self::Trailer(seen) => GateState::Trailer { seen },
            Self::End => GateState::End,
        }
    }
}

#[cfg(test)]
mod tests;
