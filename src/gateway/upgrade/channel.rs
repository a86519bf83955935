//! The connection between the two processes of an upgrade: short lines, some of them with a socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, send, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::clock::Clock;

// The words of the next process, and the answers.
pub(super) const VERSION: &str = "railgate upgrade 1";
pub(super) const END: &str = "end";
pub(super) const BOUND: &str = "bound";
pub(super) const SAVED: &str = "saved";
pub(super) const SERVING: &str = "serving";
pub(super) const YOURS: &str = "yours";
/// In place of any answer.
pub(super) const ENDING: &str = "ending";

/// How long the next process may take to read its configuration and to bind, and each to save or load a cache of
/// millions of answers.
pub(super) const WORK_TIMEOUT: Duration = Duration::from_secs(60);

/// Blocks, for a bounded time.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    received: Vec<u8>,
    /// In the order of the lines that they belong to.
    sockets: VecDeque<OwnedFd>,
    /// The number of the other process, as far as is known.
    pub(super) process: i32,
    /// The other process itself (`pidfd_open(2)`), if it is watched.
    peer: Option<OwnedFd>,
}

/// Ends a connection while it is waited for, and when it is dropped.
#[derive(Debug)]
pub(super) struct Hangup(UnixStream);

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
        let (peer, own) = (getsockopt(&stream, PeerCredentials)?, rustix::process::geteuid());
        let denied = |message: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        if peer.uid() != own.as_raw() && peer.uid() != 0 {
            return denied(format!(
                "the process at upgrade.socket runs as user {}, not as {own}",
                peer.uid()
            ));
        }
        // Also before it is asked to name itself with each word, for which rustix has no value either.
        if peer.pid() == 0 {
            return denied(
                "the other process is in another PID namespace, where its end cannot be seen; run both in one".to_owned(),
            );
        }
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let process = peer.pid();
        Ok(Self { stream, received: Vec::new(), sockets: VecDeque::new(), process, peer: None })
    }

    /// Has the system name the sender of each word: the credentials of the connection may be those of a process that was at
    /// the socket earlier. A number that belongs to another process by the time that it is looked up does no harm: the
    /// sender has ended then.
    pub(super) fn watch_peer(&self) -> io::Result<()> {
        Ok(set_socket_passcred(&self.stream, true)?)
    }

    /// Whether the system says that the other process is gone, after it has closed the connection: it may be on its way.
    pub(super) fn has_peer_ended(&self, within: Duration) -> bool {
        let Some(peer) = &self.peer else { return false };
        let within = Timespec::try_from(within).ok();
        poll(&mut [PollFd::new(peer, PollFlags::IN)], within.as_ref()).is_ok_and(|ended| ended > 0)
    }

    /// Waits for the process that was last known by that number.
    pub(super) fn wait_for_exit(&mut self, within: Duration) {
        self.peer = Pid::from_raw(self.process).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        self.has_peer_ended(within);
    }

    pub(super) fn hangup(&self) -> io::Result<Hangup> {
        Ok(Hangup(self.stream.try_clone()?))
    }

    /// Does this on a thread for blocking work.
    pub(super) async fn run<T: Send + 'static>(
        mut self,
        work: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> io::Result<(Self, T)> {
        let work = move || {
            let done = work(&mut self);
            (self, done)
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
    }

    /// The same with something that fails or not; then the connection ends.
    pub(super) async fn try_run(
        self,
        work: impl FnOnce(&mut Self) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (channel, done) = self.run(work).await?;
        done.map(|()| channel)
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

    /// The next line, which should be `due`, if it comes `within` this time. After an error the other side can say nothing
    /// more: it knows that what it says was not heard.
    pub(super) fn receive_last(&mut self, due: &str, within: Duration) -> io::Result<Line> {
        tracing::debug!(process = self.process, due, "waits for a word of the other process");
        let received = self.receive(within);
        if !received.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return received;
        }
        self.stream.shutdown(Shutdown::Read)?;
        // What came just before that.
        self.receive(ANSWER_TIMEOUT).or(received)
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
            return Err(timed_out());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2), ScmCredentials(1))];
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
                return Err(timed_out());
            }
            Err(error) => return Err(error),
        };
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has closed the connection"));
        }
        for message in ancillary.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(sockets) => self.sockets.extend(sockets),
                RecvAncillaryMessage::ScmCredentials(sender) if self.peer.is_none() => {
                    self.process = sender.pid.as_raw_nonzero().get();
                    // Without it, as in kernels before 5.3, no end is ever certain.
                    self.peer = pidfd_open(sender.pid, PidfdFlags::empty()).ok();
                }
                _ => {}
            }
        }
        self.received.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Ok(())
    }

    /// Waits for this word, as [`Self::receive_last`] does.
    pub(super) fn expect(&mut self, word: &str, within: Duration) -> io::Result<()> {
        match self.receive_last(word, within)? {
            Line::Word(received) if received == word => Ok(()),
            other => Err(unexpected(&format!("{other:?} instead of {word:?}"))),
        }
    }
}

impl Hangup {
    /// Says this, if the other side has room for it, and ends the connection.
    pub(super) fn say(self, word: &str) {
        let line = format!("{word}\n");
        let _ = send(&self.0, line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

impl Drop for Hangup {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

pub(super) fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it has said {}", crate::log::truncated(what, 200)))
}
