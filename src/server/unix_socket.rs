//! The file of a unix socket: who may connect through it, and which one may be replaced or removed.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use socket2::{Domain, Type};

use super::listen_address::SocketOwner;

/// Binds a socket with these permissions and owners. It does not listen yet.
pub(super) fn bind(path: &Path, mode: u32, owner: SocketOwner) -> io::Result<(SocketFile, socket2::Socket)> {
    remove_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    let file = SocketFile { path: path.to_owned(), file_id: file_id(path)?, is_left: AtomicBool::new(false) };
    // Before it listens, so that no peer connects by the permissions of the umask. The owner first: who has given the
    // file away may not be allowed to change its permissions.
    give(path, mode, owner)?;
    Ok((file, socket))
}

/// The file of a socket that another process has bound; `None` if there is none any more, so that no client could
/// connect. It is left there until this process [owns](SocketFile::own) it.
pub(super) fn adopt(path: &Path, mode: u32, owner: SocketOwner) -> io::Result<Option<SocketFile>> {
    if !std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Ok(None);
    }
    give(path, mode, owner)?;
    Ok(Some(SocketFile { path: path.to_owned(), file_id: file_id(path)?, is_left: AtomicBool::new(true) }))
}

fn give(path: &Path, mode: u32, owner: SocketOwner) -> io::Result<()> {
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
    pub(super) path: PathBuf,
    file_id: (u64, u64),
    /// Another process serves or keeps the socket, and the file is left to it.
    is_left: AtomicBool,
}

impl SocketFile {
    /// The socket outlives this process, so its file stays.
    pub(super) fn leave(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// The file ends with this process.
    pub(super) fn own(&self) {
        self.is_left.store(false, Ordering::Relaxed);
    }
}

/// The device and the inode, which are unique as long as the socket is open.
fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_left.load(Ordering::Relaxed)
            && file_id(&self.path).is_ok_and(|found| found == self.file_id)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
