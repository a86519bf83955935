//! The connection between the two processes of an upgrade: short lines, some of them with a socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::clock::Clock;

/// Blocks, for a bounded time.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    received: Vec<u8>,
    /// In the order of the lines that they belong to.
    sockets: VecDeque<OwnedFd>,
    /// The other process.
    pub(super) process: i32,
}

/// What the other process says.
#[derive(Debug)]
pub(super) enum Line {
    Word(String),
    /// A socket, and its name.
    Socket(String, OwnedFd),
}

const SOCKET: &str = "socket ";
/// Bytes. The name of a socket has no more than 255, or three times a path.
const MAX_LINE: usize = 1024;
/// For what is sent, and for an answer that takes no work.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl Channel {
    /// Only a process of the same user, or of root, takes sockets over or passes them on.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        let (peer, own) = (socket_peercred(&stream)?, rustix::process::geteuid());
        if peer.uid != own && !peer.uid.is_root() {
            let message = format!("the process at upgrade.socket runs as user {}, not as {}", peer.uid, own);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let process = peer.pid.as_raw_nonzero().get();
        Ok(Self { stream, received: Vec::new(), sockets: VecDeque::new(), process })
    }

    pub(super) fn send(&self, word: &str) -> io::Result<()> {
        self.send_line(&format!("{word}\n"), &[])
    }

    pub(super) fn send_socket(&self, name: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.send_line(&format!("{SOCKET}{name}\n"), &[socket])
    }

    fn send_line(&self, line: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = sendmsg(
            self.stream.as_fd(),
            &[IoSlice::new(line.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        // The system takes a line whole; else the other side would see half of one, and say so.
        if sent < line.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// The next line, if it comes `within` this time.
    pub(super) fn receive(&mut self, within: Duration) -> io::Result<Line> {
        let end = Clock::System.now() + within;
        loop {
            if let Some(at) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=at).collect();
                let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
                let Some(name) = line.strip_prefix(SOCKET) else { return Ok(Line::Word(line)) };
                let socket = self.sockets.pop_front().ok_or_else(|| unexpected(&line))?;
                return Ok(Line::Socket(name.to_owned(), socket));
            }
            if self.received.len() > MAX_LINE || self.sockets.len() > 1 {
                return Err(unexpected("more than was asked for"));
            }
            self.read_until(end)?;
        }
    }

    fn read_until(&mut self, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Clock::System.now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 256];
        let received = recvmsg(
            self.stream.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received.map_err(io::Error::from) {
            Ok(received) => received.bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                self.sockets.extend(sockets);
            }
        }
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has closed the connection"));
        }
        self.received.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Ok(())
    }

    /// Waits for this word.
    pub(super) fn expect(&mut self, word: &str, within: Duration) -> io::Result<()> {
        match self.receive(within)? {
            Line::Word(received) if received == word => Ok(()),
            other => Err(unexpected(&format!("{other:?} instead of {word:?}"))),
        }
    }
}

pub(super) fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it has said {}", crate::log::truncated(what, 200)))
}
