//! The addresses to listen on, and their sockets.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Type};
use tokio::net::{TcpListener, UnixListener};

use super::capacity::Capacity;
use super::limiter::ConnectionLimiter;

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
    },
}

/// A listener for clients: a `[[listen]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// The key `address`.
    pub address: ListenAddress,
    /// Connections open at one time.
    pub connections: usize,
}

/// The default limit of connections of the listeners for operators and for hooks.
pub const DEFAULT_OPERATOR_CONNECTIONS: usize = 256;

impl ListenAddress {
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
            _ => false,
        }
    }
}

impl ListenAddress {
    /// Whether only peers on this machine can connect.
    pub fn is_local_only(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix { .. } => true,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound socket, or a share of one, that does not accept yet.
#[derive(Debug)]
pub struct BoundSocket {
    kind: BoundSocketKind,
    limiter: Arc<ConnectionLimiter>,
}

#[derive(Debug)]
enum BoundSocketKind {
    Tcp(std::net::TcpListener),
    Unix(Arc<SocketFile>, std::os::unix::net::UnixListener),
}

/// A socket that accepts on the runtime of one thread.
#[derive(Debug)]
pub struct Listener {
    pub(super) kind: ListenerKind,
    pub(super) limiter: Arc<ConnectionLimiter>,
}

#[derive(Debug)]
pub(super) enum ListenerKind {
    Tcp(TcpListener),
    /// Its file is removed before the last share is closed: a successor that found the file without a listener
    /// would replace it, and its new file would be removed then.
    Unix(#[expect(dead_code, reason = "there to be dropped")] Arc<SocketFile>, UnixListener),
}

/// How many connections may wait to be accepted: CI starts many `ssh` connections at once.
const BACKLOG: i32 = 4096;

impl BoundSocket {
    /// Binds the socket, for up to `connections` at one time.
    pub fn bind(address: &ListenAddress, connections: usize) -> io::Result<Self> {
        Self::bind_shared(address, connections, 1)?.pop().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Binds the socket, for up to `connections` at one time, and shares it among `shares` threads. The
    /// error names the address, and how to fix it.
    pub fn bind_shared(address: &ListenAddress, connections: usize, shares: usize) -> io::Result<Vec<Self>> {
        let kinds = Self::bind_kinds(address, shares)?;
        let name = kinds.first().map(BoundSocketKind::address).transpose()?.unwrap_or_default();
        let limiter = ConnectionLimiter::new(Capacity::new(name, connections, !address.is_local_only()));
        Ok(kinds.into_iter().map(|kind| Self { kind, limiter: Arc::clone(&limiter) }).collect())
    }

    fn bind_kinds(address: &ListenAddress, shares: usize) -> io::Result<Vec<BoundSocketKind>> {
        let bound = match address {
            ListenAddress::Tcp(address) => bind_tcp(*address, shares),
            ListenAddress::Unix { path, mode } => bind_unix(path, *mode, shares),
        };
        bound.map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another process listens there: stop it or choose another address"
                }
                io::ErrorKind::PermissionDenied => {
                    "; run as a user with that permission, or choose another address"
                }
                io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
                io::ErrorKind::NotFound => "; create the socket's directory first",
                io::ErrorKind::AlreadyExists => "; move it away or choose another path",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{advice}"))
        })
    }

    /// The address, with the port that the system chose if it was 0.
    pub fn address(&self) -> io::Result<String> {
        self.kind.address()
    }

    /// The limit of its connections, all shares together.
    pub fn capacity(&self) -> &Arc<Capacity> {
        self.limiter.capacity()
    }
}

impl BoundSocketKind {
    fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(socket) => Ok(socket.local_addr()?.to_string()),
            Self::Unix(file, _) => Ok(format!("unix:{}", file.path.display())),
        }
    }
}

impl Listener {
    /// Registers the socket with the runtime of this thread.
    pub fn new(socket: BoundSocket) -> io::Result<Self> {
        let kind = match socket.kind {
            BoundSocketKind::Tcp(socket) => ListenerKind::Tcp(TcpListener::from_std(socket)?),
            BoundSocketKind::Unix(file, socket) => ListenerKind::Unix(file, UnixListener::from_std(socket)?),
        };
        Ok(Self { kind, limiter: socket.limiter })
    }
}

/// With `SO_REUSEPORT` each share has a queue of its own, and the kernel distributes connections among
/// them. The first share gets the option only once it is bound: so a port that another process
/// listens on is an error, even if that process is a gateway, too.
fn bind_tcp(address: SocketAddr, shares: usize) -> io::Result<Vec<BoundSocketKind>> {
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
    Ok(sockets.into_iter().map(|socket| BoundSocketKind::Tcp(socket.into())).collect())
}

/// A path has one socket with one queue; idle threads accept from it.
fn bind_unix(path: &Path, mode: u32, shares: usize) -> io::Result<Vec<BoundSocketKind>> {
    // Released once it listens, so that no other process takes it for a stale one before.
    let _lock = lock_folder(path);
    remove_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    let file = Arc::new(SocketFile { path: path.to_owned(), file_id: file_id(path)? });
    // Before `listen`, so that no peer connects by the permissions of the umask.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    let share = || Ok(BoundSocketKind::Unix(Arc::clone(&file), socket.try_clone()?.into()));
    (0..shares).map(|_| share()).collect()
}

/// Locks the folder of a socket, so that two processes that start at the same time do not both find a stale
/// socket there, and one removes that of the other. Gives up where the folder cannot be locked.
fn lock_folder(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder).ok()?;
    for _ in 0..LOCK_TRIES {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
            Err(_) => return None,
        }
    }
    tracing::warn!(socket = %path.display(), "another program locks the folder of the socket; bound without the lock");
    None
}

/// Ten seconds. The lock is held for the time of a few system calls, but other programs lock folders, too.
const LOCK_TRIES: u32 = 1_000;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Removes a socket that no process listens on: it is left over from a crash. Any other file is kept.
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
    // Does not block on a queue that is full because the listening process hangs.
    probe.set_nonblocking(true)?;
    match probe.connect(&socket2::SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::AddrInUse.into()),
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

/// The file of a unix socket; removed when dropped, unless another file has its path by then, such as that of
/// a successor that was started after the file was removed by hand.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    file_id: (u64, u64),
}

/// The device and the inode, which are unique as long as the socket is open.
fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|found| found == self.file_id) {
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

    type Replace = fn(&Path);

    #[test]
    fn a_socket_removes_its_own_file_and_no_other() {
        let path = std::env::temp_dir().join(format!("railgate-socket-{}", std::process::id()));
        let address = ListenAddress::Unix { path: path.clone(), mode: 0o600 };
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
            let shares = BoundSocket::bind_shared(&address, 1, 3).unwrap();
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
    fn a_socket_with_a_full_queue_is_in_use() {
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
        let address = ListenAddress::Unix { path: path.clone(), mode: 0o600 };
        assert_eq!(BoundSocket::bind(&address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_successor_keeps_its_file() {
        let path = std::env::temp_dir().join(format!("railgate-successor-{}", std::process::id()));
        let address = ListenAddress::Unix { path: path.clone(), mode: 0o600 };
        let first = BoundSocket::bind(&address, 1).unwrap();
        assert_eq!(BoundSocket::bind(&address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        fs::remove_file(&path).unwrap();
        let second = BoundSocket::bind(&address, 1).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }

    /// Else it could find the socket stale, then remove that of a process that has listened since.
    #[test]
    fn binding_waits_for_another_process_that_binds_in_the_same_folder() {
        let folder = std::env::temp_dir().join(format!("railgate-folder-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("socket");
        let address = ListenAddress::Unix { path: path.clone(), mode: 0o600 };
        drop(UnixListener::bind(&path).unwrap());
        let lock = lock_folder(&path).unwrap();
        std::thread::scope(|scope| {
            let late = scope.spawn(|| BoundSocket::bind(&address, 1));
            // Time to go wrong: nothing depends on it if all is right.
            std::thread::sleep(Duration::from_millis(100));
            fs::remove_file(&path).unwrap();
            let first = UnixListener::bind(&path).unwrap();
            drop(lock);
            assert_eq!(late.join().unwrap().unwrap_err().kind(), io::ErrorKind::AddrInUse);
            assert!(UnixStream::connect(&path).is_ok());
            drop(first);
        });
        fs::remove_dir_all(folder).unwrap();
    }
}
