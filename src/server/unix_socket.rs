//! The file of a unix socket: who may connect through it, and which one may be replaced or removed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use socket2::{Domain, Type};

use super::listen_address::SocketOwner;

/// Binds a socket with these permissions and owners, and listens.
pub(super) fn bind(path: &Path, mode: u32, owner: SocketOwner, backlog: i32) -> io::Result<socket2::Socket> {
    remove_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    // Before it listens, so that no peer connects by the permissions of the umask.
    let listening = give(path, mode, owner).and_then(|()| socket.listen(backlog));
    if listening.is_err() {
        let _ = std::fs::remove_file(path);
    }
    listening.map(|()| socket)
}

/// Gives the file of a socket these permissions and owners. The owner comes last: who has given the file away may not be
/// allowed to change its permissions.
pub(super) fn give(path: &Path, mode: u32, owner: SocketOwner) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if owner != SocketOwner::default() {
        std::os::unix::fs::chown(path, owner.user, owner.group).map_err(|error| not_given(owner, &error))?;
    }
    Ok(())
}

fn not_given(owner: SocketOwner, error: &io::Error) -> io::Error {
    let id = |what: &str, id: Option<u32>| id.map(|id| format!("{what} {id}"));
    let whom: Vec<_> = [id("user", owner.user), id("group", owner.group)].into_iter().flatten().collect();
    io::Error::other(format!(
        "the socket cannot be given to {}: {error}; only root may give it to another user, and others only to a group \
         that they are in: add the gateway's user to that group, or drop the key",
        whom.join(" and ")
    ))
}

/// Locks the folder of a socket, so that two processes that start at the same time do not both find a stale
/// socket there, and one removes that of the other. Gives up where the folder cannot be locked.
pub(super) fn lock_folder(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder).ok()?;
    for _ in 0..LOCK_TRIES {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
            Err(_) => return None,
        }
    }
    tracing::warn!(socket = %path.display(), "another program locks the folder of the socket, which is used without the lock");
    None
}

/// Ten seconds. The lock is held for the time of a few system calls, but other programs lock folders, too.
const LOCK_TRIES: u32 = 1_000;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Removes a socket that no process has: it is left over from a crash. Any other file is kept.
fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    if is_in_use(path)? { Err(io::ErrorKind::AddrInUse.into()) } else { std::fs::remove_file(path) }
}

/// Whether a process has the socket of this file. Only who may write to the file may ask for that, and a mode such as 0060
/// denies it to the owner itself, which then allows it for as long as it asks.
fn is_in_use(path: &Path) -> io::Result<bool> {
    let denied = match probe(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
        known => return known,
    };
    let mode = std::fs::symlink_metadata(path)?.permissions().mode();
    let set_mode = |mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    if mode & OWNER_MAY_WRITE != 0 || set_mode(mode | OWNER_MAY_WRITE).is_err() {
        return Err(denied);
    }
    let is_in_use = probe(path);
    set_mode(mode)?;
    is_in_use
}

const OWNER_MAY_WRITE: u32 = 0o200;

/// Asks with a socket of another type, which the system refuses in two ways: so no process gets a connection to accept, and
/// one that hangs is asked for nothing.
fn probe(path: &Path) -> io::Result<bool> {
    let probe = socket2::Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    match probe.connect(&socket2::SockAddr::unix(path)?).map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(code), _)) if code == Errno::CONNREFUSED.raw_os_error() => Ok(false),
        Err((Some(code), _)) if code == Errno::PROTOTYPE.raw_os_error() => Ok(true),
        Ok(()) => Ok(true),
        Err((_, error)) => Err(error),
    }
}

/// The file of a unix socket. It is dropped once this process has closed the socket, and removes the file if that was the
/// last process that had it: a successor to which the socket was passed may have it, or a service manager that keeps it.
/// So the file stays as long as clients can connect, however those end. A file that was put in its place is none of its
/// business.
#[derive(Debug)]
pub(super) struct SocketFile {
    pub(super) path: PathBuf,
    file_id: (u64, u64),
}

impl SocketFile {
    /// `None` if there is no socket at this path.
    pub(super) fn find(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                Ok(Some(Self { path: path.to_owned(), file_id: file_id(&found) }))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(None),
        }
    }
}

/// The device and the inode.
fn file_id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _lock = lock_folder(&self.path);
        // A file that has got the number of this one since then is a socket in use, or of no use.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| file_id(&found) == self.file_id) {
            let _ = remove_stale(&self.path);
        }
    }
}
