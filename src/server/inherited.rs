//! The sockets that systemd, or another supervisor with its protocol, has bound and passed to this process
//! (`sd_listen_fds(3)`). They stay open while the gateway is restarted, so that no connection is refused.

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

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

    /// The names of sockets that nothing has taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}
