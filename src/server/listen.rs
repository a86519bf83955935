//! Where to listen, and how the sockets are made.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::{Domain, Protocol, Type};
use tokio::net::{TcpListener, UnixListener};

use super::capacity::Capacity;

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An IP address and a port; port 0 lets the system choose one.
    Tcp(SocketAddr),
    /// A socket in the file system, with the permissions it gets.
    Unix {
        /// Where.
        path: PathBuf,
        /// The permission bits.
        mode: u32,
    },
}

/// A listener for clients, as a `[[listen]]` of the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// Where.
    pub endpoint: Endpoint,
    /// Connections open at one time.
    pub connections: usize,
}

/// Default of the connections of the listeners for operators and for hooks.
pub const DEFAULT_OPERATOR_CONNECTIONS: usize = 256;

impl Endpoint {
    /// Whether the two cannot both be listened on. Port 0 stands for any free port.
    pub fn clashes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(two)) => {
                // On Linux `[::]` takes IPv4 too, unless told otherwise.
                let covers = |one: &SocketAddr, two: &SocketAddr| {
                    one.ip().is_unspecified() && (one.is_ipv6() || two.is_ipv4())
                };
                let overlap = one.ip() == two.ip() || covers(one, two) || covers(two, one);
                one.port() != 0 && one.port() == two.port() && overlap
            }
            (Self::Unix { path: one, .. }, Self::Unix { path: two, .. }) => one == two,
            _ => false,
        }
    }
}

impl Endpoint {
    /// Whether nobody can connect but from this machine.
    pub fn is_private(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix { .. } => true,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound socket, or a share of one, that is not accepted on yet.
#[derive(Debug)]
pub struct Socket {
    kind: SocketKind,
    capacity: Arc<Capacity>,
}

#[derive(Debug)]
enum SocketKind {
    Tcp(std::net::TcpListener),
    Unix(Arc<SocketFile>, std::os::unix::net::UnixListener),
}

/// A socket that a thread accepts on.
#[derive(Debug)]
pub struct Listener {
    pub(super) kind: ListenerKind,
    pub(super) capacity: Arc<Capacity>,
}

#[derive(Debug)]
pub(super) enum ListenerKind {
    Tcp(TcpListener),
    /// Its file is removed before the last share of it closes: a successor that found it unattended
    /// would replace it, and lose the new one to the removal.
    Unix(#[expect(dead_code, reason = "there to be dropped")] Arc<SocketFile>, UnixListener),
}

/// How many connections may wait to be accepted: `ssh` bursts come from CI, all at once.
const BACKLOG: i32 = 4096;

impl Socket {
    /// Binds the socket, for so many connections at one time.
    pub fn bind(endpoint: &Endpoint, connections: usize) -> io::Result<Self> {
        Self::bind_shares(endpoint, connections, 1)?.pop().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Binds the socket, for so many connections at one time, and shares it among `shares` threads. The
    /// error says which endpoint it is about, and what to do.
    pub fn bind_shares(endpoint: &Endpoint, connections: usize, shares: usize) -> io::Result<Vec<Self>> {
        let kinds = Self::bind_kinds(endpoint, shares)?;
        let name = kinds.first().map(SocketKind::endpoint).transpose()?.unwrap_or_default();
        let capacity = Capacity::new(name, connections, !endpoint.is_private());
        Ok(kinds.into_iter().map(|kind| Self { kind, capacity: Arc::clone(&capacity) }).collect())
    }

    fn bind_kinds(endpoint: &Endpoint, shares: usize) -> io::Result<Vec<SocketKind>> {
        let bound = match endpoint {
            Endpoint::Tcp(address) => bind_tcp(*address, shares),
            Endpoint::Unix { path, mode } => bind_unix(path, *mode, shares),
        };
        bound.map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another process listens there: stop it or choose another address"
                }
                io::ErrorKind::PermissionDenied => "; run as a user who may, or choose another address",
                io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
                io::ErrorKind::NotFound => "; create the socket's directory first",
                io::ErrorKind::AlreadyExists => "; move it away or choose another path",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot listen on {endpoint}: {error}{advice}"))
        })
    }

    /// Where it listens, with the port that the system chose if it was 0.
    pub fn endpoint(&self) -> io::Result<String> {
        self.kind.endpoint()
    }

    /// The bound on its connections, all shares together.
    pub fn capacity(&self) -> &Arc<Capacity> {
        &self.capacity
    }
}

impl SocketKind {
    fn endpoint(&self) -> io::Result<String> {
        match self {
            Self::Tcp(socket) => Ok(socket.local_addr()?.to_string()),
            Self::Unix(file, _) => Ok(format!("unix:{}", file.path.display())),
        }
    }
}

impl Listener {
    /// Begins to accept, on the runtime of this thread.
    pub fn new(socket: Socket) -> io::Result<Self> {
        let kind = match socket.kind {
            SocketKind::Tcp(socket) => ListenerKind::Tcp(TcpListener::from_std(socket)?),
            SocketKind::Unix(file, socket) => ListenerKind::Unix(file, UnixListener::from_std(socket)?),
        };
        Ok(Self { kind, capacity: socket.capacity })
    }
}

/// With `SO_REUSEPORT` each share has a queue of its own, and the kernel deals connections out to
/// them. The first share gets the option only once it is bound: a port that another process
/// listens on stays an error, even if that process is a gateway too.
fn bind_tcp(address: SocketAddr, shares: usize) -> io::Result<Vec<SocketKind>> {
    let open = || {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit it, which saves a system call for each.
        socket.set_tcp_nodelay(true)?;
        io::Result::Ok(socket)
    };
    let first = open()?;
    first.bind(&address.into())?;
    let bound_to = first.local_addr()?;
    if shares > 1 {
        first.set_reuse_port(true)?;
    }
    let mut sockets = vec![first];
    for _ in 1..shares {
        let share = open()?;
        share.set_reuse_port(true)?;
        share.bind(&bound_to)?;
        sockets.push(share);
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(|socket| SocketKind::Tcp(socket.into())).collect())
}

/// A path has one socket, and one queue; whoever of the threads is free takes from it.
fn bind_unix(path: &Path, mode: u32, shares: usize) -> io::Result<Vec<SocketKind>> {
    remove_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    let file = Arc::new(SocketFile { path: path.to_owned(), identity: identity(path)? });
    // Before `listen`, so that nobody connects under the permissions of the umask.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    let share = || Ok(SocketKind::Unix(Arc::clone(&file), socket.try_clone()?.into()));
    (0..shares).map(|_| share()).collect()
}

/// A socket that nobody listens on is left over from a crash, and is in the way. Anything else
/// stays where it is.
fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One whose queue is full, since what listens there hangs, would have to be waited for.
    probe.set_nonblocking(true)?;
    match probe.connect(&socket2::SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::AddrInUse.into()),
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

/// The file of a unix socket; removed when dropped, unless something else has its name by then: that of a
/// successor, who was started after the file was removed by hand.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// The device and the inode, which no other file has as long as the socket is open.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// A way to put something else in the place of a socket's file.
    type Replace = fn(&Path);

    #[test]
    fn a_socket_removes_its_own_file_and_no_other() {
        let path = std::env::temp_dir().join(format!("railgate-socket-{}", std::process::id()));
        let endpoint = Endpoint::Unix { path: path.clone(), mode: 0o600 };
        let replacements: [(&str, Replace, bool); 7] = [
            ("nothing", |_| {}, false),
            ("gone", |path| fs::remove_file(path).unwrap(), false),
            (
                "a socket",
                |path| {
                    fs::remove_file(path).unwrap();
                    drop(UnixListener::bind(path).unwrap());
                },
                true,
            ),
            (
                "a socket that is moved there",
                |path| {
                    let other = path.with_extension("other");
                    drop(UnixListener::bind(&other).unwrap());
                    fs::rename(other, path).unwrap();
                },
                true,
            ),
            (
                "a file",
                |path| {
                    fs::remove_file(path).unwrap();
                    fs::write(path, "mine").unwrap();
                },
                true,
            ),
            (
                "a link to itself elsewhere",
                |path| {
                    let other = path.with_extension("other");
                    fs::rename(path, &other).unwrap();
                    symlink(other, path).unwrap();
                },
                true,
            ),
            (
                "other permissions",
                |path| {
                    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
                },
                false,
            ),
        ];
        for (what, replace, is_left) in replacements {
            // Whichever share is dropped last.
            let shares = Socket::bind_shares(&endpoint, 1, 3).unwrap();
            assert!(UnixStream::connect(&path).is_ok(), "{what}");
            replace(&path);
            drop(shares);
            assert_eq!(fs::symlink_metadata(&path).is_ok(), is_left, "{what}");
            for left in [path.clone(), path.with_extension("other")] {
                let _ = fs::remove_file(left);
            }
        }
    }

    #[test]
    fn a_socket_on_which_nothing_accepts_is_in_use_all_the_same() {
        let path = std::env::temp_dir().join(format!("railgate-full-{}", std::process::id()));
        let address = socket2::SockAddr::unix(&path).unwrap();
        let connect = || {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&address).map(|()| socket)
        };
        let hanging = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        hanging.bind(&address).unwrap();
        hanging.listen(0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(socket) = connect() {
            waiting.push(socket);
        }
        let endpoint = Endpoint::Unix { path: path.clone(), mode: 0o600 };
        assert_eq!(Socket::bind(&endpoint, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_successor_of_the_same_kind_keeps_its_file() {
        let path = std::env::temp_dir().join(format!("railgate-successor-{}", std::process::id()));
        let endpoint = Endpoint::Unix { path: path.clone(), mode: 0o600 };
        let first = Socket::bind(&endpoint, 1).unwrap();
        assert_eq!(Socket::bind(&endpoint, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        fs::remove_file(&path).unwrap();
        let second = Socket::bind(&endpoint, 1).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }
}
