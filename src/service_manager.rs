//! Tells the service manager (systemd) how the gateway is, by its datagrams: `sd_notify(3)`.
//!
//! Differs from the crate `sd-notify` in that no datagram can block: they are sent on the thread that also answers
//! operators and health checks, and a service manager that hangs must not take that thread along. The protocol is a
//! few words.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr};

use crate::clock;
use crate::heartbeat::{Heartbeat, Heartbeats};

/// The service manager, if there is one. Without one, all methods do nothing.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    socket: Option<Arc<Socket>>,
    /// Without a word for so long, it takes the gateway for one that hangs.
    watchdog: Option<Duration>,
    /// How many descriptors it keeps for the next process.
    store: usize,
    phase: Arc<AtomicU8>,
}

/// What it was told last, as numbers; 0 is nothing yet.
const SERVING: u8 = 1;
const STOPPING: u8 = 2;

#[derive(Debug)]
struct Socket {
    socket: UnixDatagram,
    manager: SocketAddr,
}

const RUNNING: &str = "Accepts requests";

impl ServiceManager {
    /// The service manager that listens at `notify_socket` (the variable `NOTIFY_SOCKET`): a path, or `@` and a name
    /// in the abstract name space. An error if it is neither.
    pub fn at(notify_socket: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let manager = match notify_socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(notify_socket)?,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor @ and a name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let watchdog = watchdog.filter(|watchdog| !watchdog.is_zero());
        let socket = Some(Arc::new(Socket { socket, manager }));
        Ok(Self { socket, watchdog, ..Self::default() })
    }

    /// The same, which keeps so many descriptors (`FileDescriptorStoreMax=`).
    #[must_use]
    pub fn with_store(self, store: usize) -> Self {
        Self { store, ..self }
    }

    /// Whether it keeps descriptors for the next process.
    pub fn has_store(&self) -> bool {
        self.socket.is_some() && self.store > 0
    }

    /// Gives it the sockets of one listener to keep; the next process gets them by this name. Those that it has already
    /// are not kept twice. An error if it cannot be told now ([`io::ErrorKind::WouldBlock`]); then it may be tried again. An
    /// error, too, if it would not take the name.
    pub fn keep(&self, name: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        if name.len() > MAX_NAME {
            let message = format!(
                "its name has {} bytes, and systemd takes {MAX_NAME}; choose a shorter path, or one with fewer special characters",
                name.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // The kernel passes no more than 253 at once.
        for some in sockets.chunks(MAX_PASSED) {
            self.send_with(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), some)?;
        }
        Ok(())
    }

    /// Lets it close what it keeps by this name.
    pub fn forget(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    fn send_with(&self, message: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(Socket { socket, manager }) = self.socket.as_deref() else { return Ok(()) };
        let manager = match (manager.as_pathname(), manager.as_abstract_name()) {
            (Some(path), _) => SocketAddrUnix::new(path)?,
            (None, Some(name)) => SocketAddrUnix::new_abstract_name(name)?,
            (None, None) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg_addr(
            socket,
            &manager,
            &[IoSlice::new(message.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// The gateway accepts requests.
    pub fn ready(&self) {
        self.phase.store(SERVING, Ordering::Relaxed);
        self.send(&format!("READY=1\nSTATUS={RUNNING}"));
    }

    /// The gateway has read its configuration again, or has failed to. Before it accepts requests, and once it drains,
    /// this says nothing of that.
    pub fn reloaded(&self) {
        if self.phase.load(Ordering::Relaxed) == SERVING {
            self.ready();
        }
    }

    /// The gateway reads its configuration again, until [`ServiceManager::reloaded`]. The service manager waits for that
    /// also if nothing has changed because of a mistake.
    pub fn reloading(&self) {
        if self.phase.load(Ordering::Relaxed) != SERVING {
            return;
        }
        // The time lets it tell this reload from one that it has not asked for yet.
        let now = clock::monotonic_microseconds();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=Reads its configuration again"));
    }

    /// The gateway drains, and then ends.
    pub fn stopping(&self) {
        self.phase.store(STOPPING, Ordering::Relaxed);
        self.send("STOPPING=1\nSTATUS=Drains: running requests may finish, new connections are refused");
    }

    /// Feeds the watchdog, three times within its time, while no thread hangs, and says which one does.
    pub(crate) async fn feed_watchdog(self, heartbeats: Arc<Heartbeats>) -> Infallible {
        let Some(watchdog) = self.watchdog.filter(|_| self.socket.is_some()) else {
            return std::future::pending().await;
        };
        let mut had_hung = false;
        loop {
            let hanging: Vec<&str> = heartbeats.hanging().map(|one: &Heartbeat| &*one.thread).collect();
            let hangs = !hanging.is_empty();
            if hangs && !had_hung {
                let status = "hangs: the watchdog is not fed, which ends the process";
                self.send(&format!("STATUS={} {status}", hanging.join(", ")));
            } else if !hangs && had_hung {
                self.send(&format!("STATUS={RUNNING}"));
            }
            if !hangs {
                self.send("WATCHDOG=1");
            }
            had_hung = hangs;
            tokio::time::sleep((watchdog / 3).max(MIN_INTERVAL)).await;
        }
    }

    fn send(&self, message: &str) {
        let Some(Socket { socket, manager }) = self.socket.as_deref() else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), manager) {
            let what = message.split('=').next();
            tracing::warn!(%error, what, "the service manager cannot be told; is NOTIFY_SOCKET right?");
        }
    }
}

/// Bytes of a name, for systemd (`FDNAME_MAX`). It would give the sockets another name then.
const MAX_NAME: usize = 255;

/// Descriptors in one message.
const MAX_PASSED: usize = 128;

const MIN_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_name_in_the_abstract_name_space_is_an_address_too() {
        let name = format!("railgate-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ServiceManager::at(format!("@{name}").as_ref(), None).unwrap().ready();
        let mut message = [0; 100];
        let length = socket.recv(&mut message).unwrap();
        assert_eq!(message[..length], *b"READY=1\nSTATUS=Accepts requests");
    }

    /// Else it would start what waits for the gateway too early, and show one that drains as running.
    #[test]
    fn a_reload_before_the_start_and_during_the_end_is_not_told() {
        let name = format!("railgate-test-phases-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let manager = ServiceManager::at(format!("@{name}").as_ref(), None).unwrap();
        let reload = || {
            manager.reloading();
            manager.reloaded();
        };
        reload();
        manager.ready();
        reload();
        manager.stopping();
        reload();
        socket.set_nonblocking(true).unwrap();
        let mut message = [0; 100];
        let words = std::iter::from_fn(|| {
            let length = socket.recv(&mut message).ok()?;
            Some(String::from_utf8_lossy(&message[..length]).split('=').next().unwrap().to_owned())
        });
        assert_eq!(words.collect::<Vec<_>>(), ["READY", "RELOADING", "READY", "STOPPING"]);
    }

    #[test]
    fn what_is_no_address_is_an_error() {
        for address in ["", "relative", "vsock:2:1234"] {
            assert!(ServiceManager::at(address.as_ref(), None).is_err(), "{address}");
        }
        assert!(ServiceManager::at(format!("/{}", "x".repeat(200)).as_ref(), None).is_err());
    }

    /// systemd would keep it by the name `stored`, and no process would know it by that.
    #[test]
    fn a_socket_whose_name_is_too_long_is_not_kept() {
        let name = format!("railgate-test-names-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let manager = ServiceManager::at(format!("@{name}").as_ref(), None).unwrap().with_store(1);
        let keep = |length| manager.keep(&"x".repeat(length), &[socket.as_fd()]);
        assert_eq!(keep(256).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 100]).is_err());
        keep(255).unwrap();
        let mut message = [0; 400];
        let length = socket.recv(&mut message).unwrap();
        assert!(message[..length].starts_with(b"FDSTORE=1\nFDNAME=xxx"));
    }

    /// Also one that is never read from, and one that is not there.
    #[test]
    fn no_message_waits() {
        let full = format!("railgate-test-full-{}", std::process::id());
        let _unread = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&full).unwrap()).unwrap();
        for address in [format!("@{full}"), "/nothing/listens/here".to_owned()] {
            let manager = ServiceManager::at(address.as_ref(), None).unwrap();
            for _ in 0..10_000 {
                manager.stopping();
            }
        }
        ServiceManager::default().stopping();
    }
}
