//! The reading side of a connection: bytes pass to hyper only once their framing is judged.
//!
//! The gate follows a connection from head to body to the next head by the strict rules of
//! [`wire`](super::wire). A head is held back until it is whole; a refused one is replaced by a
//! head that the stack answers with the refusal, so that earlier requests on the connection are
//! answered first. After that the connection delivers nothing more. A malformed chunk ends the
//! connection's reading with an error, for its request is already on its way. What is odd and has one meaning
//! all the same, hyper sees in the usual form: targets in origin-form, no empty line in front, chunks without
//! extensions. That the input has ended, it sees once nothing is left to be sent.
//!
//! Most heads come in one piece, so bytes are read straight into hyper's buffer and judged there;
//! only what must not pass yet is taken out again.

mod chunks;
mod read;
mod write;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use memchr::memchr;

use super::patience::Patience;
use super::registry::ConnectionState;
use super::wire::{self, Framing, Head, HeadLimits, HeadReader};
use crate::refusal::Refusal;
use crate::write_batch::WritePacer;

/// A socket whose reading side is guarded.
#[derive(Debug)]
pub(super) struct Gate<I> {
    io: I,
    /// What was read and may not pass yet.
    inbox: BytesMut,
    state: State,
    limits: GateLimits,
    /// For a head to begin, to end, or for more of a body. The end of it ends the connection:
    /// whoever has begun a message must go on with it.
    read: Patience,
    /// For the peer to take what it is sent.
    write: Patience,
    /// Says whether a request is being answered, and whether the server drains. A draining server
    /// does not wait for a first head. Later ones are hyper's business: to it, the end of the
    /// input while an answer is being made means that the client left.
    connection: Arc<ConnectionState>,
    has_begun: bool,
    /// The socket tells this task when there is something to read, the end included.
    is_reading: bool,
    has_unsent: bool,
    /// What its connection was last told of that.
    awaits_body: bool,
    pacer: WritePacer,
    /// The peer has sent all that it will send.
    is_done: bool,
    /// hyper does not know that yet.
    holds_end: bool,
    /// Bytes of the extensions of this body's chunks.
    extensions: usize,
}

/// The bounds that a gate holds its peer to.
#[derive(Clone, Copy, Debug)]
pub(super) struct GateLimits {
    pub(super) head: HeadLimits,
    /// For the first byte of all.
    pub(super) first_byte_timeout: Duration,
    /// From the first byte of a head to its last.
    pub(super) head_timeout: Duration,
    /// For any other wait.
    pub(super) idle_timeout: Duration,
}

/// What comes next on the wire.
#[derive(Debug)]
enum State {
    Head(HeadReader),
    /// This many bytes may pass as they are; then comes `next`.
    Pass {
        left: u64,
        next: Next,
    },
    ChunkSize,
    ChunkEnd,
    Trailer {
        seen: usize,
    },
    /// Nothing more passes: a head was refused, or the peer is done.
    End,
    Broken,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Head,
    Body(Framing),
    ChunkSize,
    ChunkEnd,
    Trailer(usize),
    End,
}

const LONGEST_CHUNK_LINE: usize = 17;

impl<I> Gate<I> {
    pub(super) fn new(io: I, limits: GateLimits, connection: Arc<ConnectionState>) -> Self {
        Self {
            io,
            inbox: BytesMut::new(),
            state: State::Head(HeadReader::default()),
            limits,
            read: Patience::default(),
            write: Patience::default(),
            connection,
            has_begun: false,
            is_reading: false,
            has_unsent: false,
            awaits_body: false,
            pacer: WritePacer::default(),
            is_done: false,
            holds_end: false,
            extensions: 0,
        }
    }

    /// Moves over everything that needs no more bytes than are there. `Ok(true)`: something may
    /// pass, or the end is reached; `Ok(false)`: more has to be read first.
    fn advance(&mut self) -> io::Result<bool> {
        loop {
            match &mut self.state {
                State::Pass { left: 0, next } => self.state = next.state(),
                State::Pass { .. } | State::End => return Ok(true),
                State::Broken => return Err(broken()),
                State::Head(reader) => {
                    self.inbox.advance(reader.skip_empty_line(&self.inbox));
                    match reader.read(&self.inbox, self.limits.head) {
                        Ok(None) => return Ok(false),
                        Ok(Some(head)) => self.take_head(head),
                        Err(refusal) => self.refuse(refusal),
                    }
                }
                State::ChunkSize => {
                    chunks::merge(&mut self.inbox).map_err(|_| self.break_off())?;
                    let is_whole = chunks::drop_extensions(&mut self.inbox, &mut self.extensions);
                    if !is_whole.map_err(|_| self.break_off())? {
                        return Ok(false);
                    }
                    match self.line(LONGEST_CHUNK_LINE)? {
                        None => return Ok(false),
                        Some(end) => match self.chunk_size(end)? {
                            0 => self.pass(end, Next::Trailer(0)),
                            size => self.pass_more(end, size, Next::ChunkEnd),
                        },
                    }
                }
                State::ChunkEnd => match self.line(3)? {
                    None => return Ok(false),
                    Some(2) => self.pass(2, Next::ChunkSize),
                    Some(_) => return Err(self.break_off()),
                },
                State::Trailer { seen } => {
                    let seen = *seen;
                    let room = self.limits.head.bytes.saturating_sub(seen);
                    match self.line(room)? {
                        None => return Ok(false),
                        Some(2) => self.pass(2, Next::Head),
                        Some(end) => {
                            self.judge_trailer(end)?;
                            self.pass(end, Next::Trailer(seen + end));
                        }
                    }
                }
            }
        }
    }

    fn pass(&mut self, bytes: usize, next: Next) {
        self.pass_more(bytes, 0, next);
    }

    fn pass_more(&mut self, line: usize, size: u64, next: Next) {
        self.state = State::Pass { left: line as u64 + size, next };
    }

    /// Lets a head pass, whose target may have to be written anew before.
    fn take_head(&mut self, head: Head) {
        if !head.is_odd {
            return self.pass_head(head.end, Next::Body(head.framing));
        }
        match wire::in_origin_form(self.inbox.get(..head.end).unwrap_or_default()) {
            Ok(rewritten) => {
                // It is shorter, so it has room in the old one's place. What is behind it may be many more.
                let length = rewritten.len();
                self.inbox.advance(head.end.saturating_sub(length));
                if let Some(place) = self.inbox.get_mut(..length) {
                    place.copy_from_slice(&rewritten);
                }
                self.pass_head(length, Next::Body(head.framing));
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn pass_head(&mut self, bytes: usize, next: Next) {
        self.read.renew();
        self.has_begun = true;
        self.extensions = 0;
        self.connection.request_begins();
        self.pass(bytes, next);
    }

    fn refuse(&mut self, refusal: Refusal) {
        let stand_in = wire::refused_head(refusal);
        self.inbox = BytesMut::from(stand_in.as_slice());
        self.pass_head(stand_in.len(), Next::End);
    }

    /// The end of the CRLF line that the inbox begins with, if it is there already.
    fn line(&mut self, longest: usize) -> io::Result<Option<usize>> {
        match memchr(b'\n', &self.inbox) {
            Some(at) if at >= 1 && at < longest && self.inbox.get(at - 1) == Some(&b'\r') => Ok(Some(at + 1)),
            None if self.inbox.len() < longest => Ok(None),
            _ => Err(self.break_off()),
        }
    }

    fn chunk_size(&mut self, end: usize) -> io::Result<u64> {
        let size = wire::chunk_size(self.inbox.get(..end.saturating_sub(2)).unwrap_or_default());
        size.map_err(|_| self.break_off())
    }

    fn judge_trailer(&mut self, end: usize) -> io::Result<()> {
        let verdict = wire::judge_trailer(self.inbox.get(..end.saturating_sub(2)).unwrap_or_default());
        verdict.map_err(|_| self.break_off())
    }

    fn set_awaits_body(&mut self, awaits_body: bool) {
        if self.awaits_body != awaits_body {
            self.awaits_body = awaits_body;
            self.connection.set_awaits_body(awaits_body);
        }
    }

    fn break_off(&mut self) -> io::Error {
        self.state = State::Broken;
        broken()
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Refusal::Chunk.message())
}

impl Next {
    fn state(self) -> State {
        match self {
            Self::Head | Self::Body(Framing::Length(0)) => State::Head(HeadReader::default()),
            Self::Body(Framing::Length(left)) => State::Pass { left, next: Self::Head },
            Self::Body(Framing::Chunked) | Self::ChunkSize => State::ChunkSize,
            Self::ChunkEnd => State::ChunkEnd,
            Self::Trailer(seen) => State::Trailer { seen },
            Self::End => State::End,
        }
    }
}

/// Passes `progress` on; a peer that has kept it pending for too long is given up.
fn or_stalled<T>(
    progress: Poll<io::Result<T>>,
    patience: &mut Patience,
    limit: Duration,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    match progress {
        Poll::Pending if patience.is_over(limit, cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        Poll::Pending => Poll::Pending,
        Poll::Ready(progress) => {
            patience.renew();
            Poll::Ready(progress)
        }
    }
}

#[cfg(test)]
mod tests;
