//! The listening sockets of this process, for one that keeps them or goes on with them.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use tokio::net::UnixStream;

use super::listen::{BoundSocket, Listener, ListenerKind, PassedShare};
use super::listen_address::ListenAddress;

/// Descriptors of listening sockets beside those that accept. As long as they are here, no client finds the sockets
/// closed.
#[derive(Debug, Default)]
pub struct PassedSockets {
    sockets: Vec<PassedSocket>,
    is_held_by_systemd: bool,
}

#[derive(Debug)]
struct PassedSocket {
    name: String,
    shares: Vec<PassedShare>,
    /// Also to a service manager: it was bound here, and is of use without a process.
    may_be_kept: bool,
}

impl Listener {
    /// Accepts a connection on a unix socket.
    pub async fn accept_unix(&self) -> io::Result<UnixStream> {
        match &self.kind {
            ListenerKind::Unix(listener, _) => Ok(listener.accept().await?.0),
            ListenerKind::Tcp(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl PassedSockets {
    /// Adds all shares of a socket.
    pub fn add(&mut self, address: &ListenAddress, shares: &[BoundSocket]) -> io::Result<()> {
        let is_of_systemd = matches!(address, ListenAddress::Systemd(_));
        self.is_held_by_systemd |= is_of_systemd;
        self.push(address, shares, !is_of_systemd)
    }

    /// Adds a socket that is of no use without a process that answers.
    pub fn add_upgrade(&mut self, address: &ListenAddress, socket: &BoundSocket) -> io::Result<()> {
        self.push(address, std::slice::from_ref(socket), false)
    }

    fn push(&mut self, address: &ListenAddress, shares: &[BoundSocket], may_be_kept: bool) -> io::Result<()> {
        let mut passed = Vec::new();
        for share in shares {
            passed.extend(share.to_be_passed()?);
        }
        self.sockets.push(PassedSocket { name: address.passed_name(), shares: passed, may_be_kept });
        Ok(())
    }

    /// Whether a `.socket` unit keeps one of them.
    pub fn is_held_by_systemd(&self) -> bool {
        self.is_held_by_systemd
    }

    /// Each name with its sockets.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Vec<BorrowedFd<'_>>)> {
        self.sockets.iter().map(PassedSocket::borrowed)
    }

    /// Those that a service manager may keep.
    pub fn to_be_kept(&self) -> impl Iterator<Item = (&str, Vec<BorrowedFd<'_>>)> {
        self.sockets.iter().filter(|passed| passed.may_be_kept).map(PassedSocket::borrowed)
    }
}

impl PassedSocket {
    fn borrowed(&self) -> (&str, Vec<BorrowedFd<'_>>) {
        (&self.name, self.shares.iter().map(|(socket, _)| socket.as_fd()).collect())
    }
}
