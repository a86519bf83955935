//! The sockets that this process has got from another one: from systemd, or another supervisor with its protocol
//! (`sd_listen_fds(3)`), or from the gateway before it. They stay open while the gateway is restarted, so that no
//! connection is refused.
//!
//! Differs from `SO_REUSEPORT` between two processes in that no queue of a socket ends with its process: connections
//! that wait in it would be reset.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use socket2::{Domain, SockRef, Type};

use super::listen_address::{ListenAddress, PASSED_PREFIX};

/// What was passed, with the names (`FileDescriptorName=`).
#[derive(Debug, Default)]
pub struct InheritedSockets(Vec<(String, Option<InheritedSocket>)>);

/// A socket that listens.
#[derive(Debug)]
pub(super) enum InheritedSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The name that systemd gives to a socket without one.
const UNNAMED: &str = "unknown";

impl InheritedSockets {
    /// Takes what was passed to this process (`LISTEN_FDS`, `LISTEN_PID`). `names` is `LISTEN_FDNAMES`. For the start
    /// of the process: it works once, and changes the environment.
    pub fn receive(names: &str) -> Self {
        let mut passed = ListenFd::from_env();
        let count = passed.len();
        let mut names = names.split(':');
        let take = |index| {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or(UNNAMED);
            let tcp = passed.take_tcp_listener(index).ok().flatten().map(InheritedSocket::Tcp);
            let socket =
                tcp.or_else(|| passed.take_unix_listener(index).ok().flatten().map(InheritedSocket::Unix));
            (name.to_owned(), socket)
        };
        Self((0..count).map(take).collect())
    }

    /// Adds what the gateway before has passed. A name that systemd has passed already is not taken twice.
    pub fn extend(&mut self, passed: impl IntoIterator<Item = (String, OwnedFd)>) {
        let known: BTreeSet<String> = self.0.iter().map(|(name, _)| name.clone()).collect();
        let passed = passed.into_iter().filter(|(name, _)| !known.contains(name));
        self.0.extend(passed.map(|(name, socket)| (name, InheritedSocket::of(socket))));
    }

    /// The sockets that a gateway has bound at this address: one, or with `SO_REUSEPORT` several.
    pub(super) fn take_bound(&mut self, address: &ListenAddress) -> Vec<InheritedSocket> {
        let name = address.passed_name();
        let mut bound_to = None;
        let mut is_wanted = |(known, socket): &mut (String, Option<InheritedSocket>)| {
            let Some(socket) = socket.as_ref().filter(|_| *known == name) else { return false };
            match (address, socket) {
                (ListenAddress::Tcp(wanted), InheritedSocket::Tcp(socket)) => {
                    let Ok(local) = socket.local_addr() else { return false };
                    is_at(local, *wanted) && *bound_to.get_or_insert(local) == local
                }
                (ListenAddress::Unix { .. }, InheritedSocket::Unix(_)) => true,
                _ => false,
            }
        };
        self.0.extract_if(.., |passed| is_wanted(passed)).filter_map(|(_, socket)| socket).collect()
    }

    /// The socket of this name.
    pub(super) fn take(&mut self, name: &str) -> io::Result<InheritedSocket> {
        let found: Vec<usize> =
            self.0.iter().enumerate().filter(|(_, (known, _))| known == name).map(|(at, _)| at).collect();
        match found[..] {
            [at] => {
                let (_, socket) = self.0.swap_remove(at);
                socket.ok_or_else(|| {
                    io::Error::other("systemd has passed something else than a stream socket by this name; use ListenStream=")
                })
            }
            [] => Err(self.not_passed()),
            _ => Err(io::Error::other(format!(
                "systemd has passed {} sockets by this name; give each a .socket unit of its own, with FileDescriptorName=",
                found.len()
            ))),
        }
    }

    fn not_passed(&self) -> io::Error {
        let names: BTreeSet<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        let known = match names.len() {
            0 => "none was passed at all; start the .socket unit, which starts the gateway".to_owned(),
            _ => format!(
                "passed were: {}; set FileDescriptorName= in the .socket unit",
                names.into_iter().collect::<Vec<_>>().join(", ")
            ),
        };
        io::Error::other(format!("systemd has passed no socket by this name ({known})"))
    }

    /// The names of sockets of systemd that nothing has taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str()).filter(|name| !name.starts_with(PASSED_PREFIX))
    }

    /// The names of sockets that a gateway has bound, and that nothing has taken: no listener has the address any more.
    pub fn outdated(&self) -> BTreeSet<String> {
        let names = self.0.iter().map(|(name, _)| name);
        names.filter(|name| name.starts_with(PASSED_PREFIX)).cloned().collect()
    }
}

/// Port 0 stands for any.
fn is_at(local: SocketAddr, wanted: SocketAddr) -> bool {
    local.ip() == wanted.ip() && (wanted.port() == 0 || local.port() == wanted.port())
}

impl InheritedSocket {
    /// `None` for anything but a stream socket that listens.
    fn of(socket: OwnedFd) -> Option<Self> {
        let known = SockRef::from(&socket);
        let is_listener =
            known.is_listener().is_ok_and(|is| is) && known.r#type().is_ok_and(|kind| kind == Type::STREAM);
        match known.domain().ok().filter(|_| is_listener)? {
            Domain::IPV4 | Domain::IPV6 => Some(Self::Tcp(socket.into())),
            Domain::UNIX => Some(Self::Unix(socket.into())),
            _ => None,
        }
    }
}
