//! The addresses to listen on.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port; port 0 lets the system choose one.
    Tcp(SocketAddr),
    /// A socket in the file system, with the permissions it gets.
    Unix {
        /// As configured; need not be absolute.
        path: PathBuf,
        /// The permission bits of the socket's file.
        mode: u32,
        /// To whom the socket's file is given.
        owner: SocketOwner,
    },
    /// A socket that systemd holds and passes under this name.
    Systemd(String),
}

/// The user and the group that the file of a socket is given to; `None`: those of the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOwner {
    /// By number.
    pub user: Option<u32>,
    /// By number.
    pub group: Option<u32>,
}

impl ListenAddress {
    /// Under which a socket of this address is passed from one process to the next. Of a socket of systemd, its own
    /// name; else only characters that `FDNAME=` may have.
    pub(super) fn passed_name(&self) -> String {
        if let Self::Systemd(name) = self {
            return name.clone();
        }
        let mut name = PASSED_PREFIX.to_owned();
        for byte in self.to_string().bytes() {
            match byte {
                // Writing to memory cannot fail.
                b':' | b'%' | ..=b' ' | 0x7f.. => drop(write!(name, "%{byte:02X}")),
                _ => name.push(char::from(byte)),
            }
        }
        name
    }

    /// Whether the two cannot be listened on at the same time. Port 0 stands for any free port.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(two)) => {
                // On Linux `[::]` accepts IPv4, too, by default.
                let covers = |one: &SocketAddr, two: &SocketAddr| {
                    one.ip().is_unspecified() && (one.is_ipv6() || two.is_ipv4())
                };
                let overlap = one.ip() == two.ip() || covers(one, two) || covers(two, one);
                one.port() != 0 && one.port() == two.port() && overlap
            }
            (Self::Unix { path: one, .. }, Self::Unix { path: two, .. }) => one == two,
            (Self::Systemd(one), Self::Systemd(two)) => one == two,
            _ => false,
        }
    }
}

/// The names of sockets that a gateway has bound itself begin with this.
pub(super) const PASSED_PREFIX: &str = "railgate.";

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}
