//! The sockets that clients connect to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::{TcpListener, UnixListener};

use super::callers::AcceptedCallers;
use super::capacity::Capacity;
use super::inherited::{InheritedSocket, InheritedSockets};
use super::limiter::ConnectionLimiter;
use super::listen_address::{ListenAddress, SocketOwner};
use super::peers::{AllowedPeers, TrustedProxies};
use super::tls::ServerTls;
use super::unix_socket::{self, SocketFile};

/// A listener for clients: a `[[listen]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// The key `address`.
    pub address: ListenAddress,
    /// Connections open at one time.
    pub connections: usize,
    /// What else is demanded of its peers, or believed to them.
    pub options: ListenOptions,
}

/// What a listener demands of its peers, and what it believes to them. By default, nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenOptions {
    /// Connections are encrypted.
    pub tls: Option<ServerTls>,
    /// Other peers are disconnected at once.
    pub allow_peers: Option<AllowedPeers>,
    /// The peers whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
    pub trusted_proxies: Option<Arc<TrustedProxies>>,
    /// Each connection begins with a PROXY header, and only trusted proxies may connect.
    pub proxy_protocol: bool,
    /// Clients may speak HTTP/2: if they choose it by ALPN in TLS, or else begin with its preface.
    pub http2: bool,
    /// Other callers are refused here, whatever their credential.
    pub accept: Option<AcceptedCallers>,
}

impl ListenOptions {
    /// Whether a connection begins with something else than HTTP/1, or may.
    pub(super) fn has_preamble(&self) -> bool {
        self.tls.is_some() || self.proxy_protocol || self.http2
    }
}

/// The default limit of connections of the listeners for operators and for hooks.
pub const DEFAULT_OPERATOR_CONNECTIONS: usize = 256;

/// A bound socket, or a share of one, that does not accept yet.
#[derive(Debug)]
pub struct BoundSocket {
    kind: BoundSocketKind,
    limiter: Arc<ConnectionLimiter>,
    options: Arc<ListenOptions>,
    /// Shares the queue of another share.
    is_copy: bool,
}

#[derive(Debug)]
enum BoundSocketKind {
    Tcp(std::net::TcpListener),
    /// Without a file if it is a socket of systemd. The file comes last, since it is dropped after the socket.
    Unix(std::os::unix::net::UnixListener, Option<Arc<SocketFile>>),
}

/// Sockets that are bound: the number of those that have a queue of their own, then all of them, these first.
type Opened = (usize, Vec<BoundSocketKind>);
/// Another descriptor of a socket, and then its file.
pub(super) type PassedShare = (OwnedFd, Option<Arc<SocketFile>>);

/// A socket that accepts on the runtime of one thread.
#[derive(Debug)]
pub struct Listener {
    pub(super) kind: ListenerKind,
    pub(super) limiter: Arc<ConnectionLimiter>,
    pub(super) options: Arc<ListenOptions>,
}

/// What holds for the connections of a listener.
#[derive(Clone, Debug)]
pub(super) struct ListenTerms {
    pub(super) limiter: Arc<ConnectionLimiter>,
    pub(super) options: Arc<ListenOptions>,
}

#[derive(Debug)]
pub(super) enum ListenerKind {
    Tcp(TcpListener),
    /// The file is dropped after the socket.
    Unix(UnixListener, #[expect(dead_code, reason = "there to be dropped")] Option<Arc<SocketFile>>),
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
        Self::open(address, (connections, shares), &mut InheritedSockets::default())
    }

    /// As [`bind_shared`](Self::bind_shared), for so many connections and shares; or takes a socket over that was
    /// bound by systemd, or by a gateway before. Of those there may be more than shares, and all have to be served.
    pub fn open(
        address: &ListenAddress,
        (connections, shares): (usize, usize),
        inherited: &mut InheritedSockets,
    ) -> io::Result<Vec<Self>> {
        let (own, kinds) = Self::open_kinds(address, shares, inherited)?;
        let Some(first) = kinds.first() else { return Ok(Vec::new()) };
        let capacity = Capacity::new(first.address()?, connections, !first.is_local_only());
        let (limiter, options) = (ConnectionLimiter::new(capacity), Arc::<ListenOptions>::default());
        let share = |(at, kind)| Self {
            kind,
            limiter: Arc::clone(&limiter),
            options: Arc::clone(&options),
            is_copy: at >= own,
        };
        Ok(kinds.into_iter().enumerate().map(share).collect())
    }

    /// Another descriptor of the socket, to be passed on, and its file. `None` if another share has the same queue.
    pub(super) fn to_be_passed(&self) -> io::Result<Option<PassedShare>> {
        if self.is_copy {
            return Ok(None);
        }
        Ok(Some(match &self.kind {
            BoundSocketKind::Tcp(socket) => (socket.try_clone()?.into(), None),
            BoundSocketKind::Unix(socket, file) => (socket.try_clone()?.into(), file.clone()),
        }))
    }

    /// The same socket again, for another listener of the same connections.
    pub fn try_clone(&self) -> io::Result<Self> {
        let (limiter, options) = (Arc::clone(&self.limiter), Arc::clone(&self.options));
        Ok(Self { kind: self.kind.try_clone()?, limiter, options, is_copy: true })
    }

    /// The same socket with these options.
    #[must_use]
    pub fn with_options(self, options: &Arc<ListenOptions>) -> Self {
        Self { options: Arc::clone(options), ..self }
    }

    fn open_kinds(
        address: &ListenAddress,
        shares: usize,
        inherited: &mut InheritedSockets,
    ) -> io::Result<Opened> {
        let passed = inherited.take_bound(address);
        let bound = match address {
            ListenAddress::Tcp(_) if !passed.is_empty() => adopt(passed, shares, None),
            ListenAddress::Tcp(address) => bind_tcp(*address, shares),
            ListenAddress::Unix { path, mode, owner } => open_unix(path, (*mode, *owner), shares, passed),
            ListenAddress::Systemd(name) => {
                inherited.take(name).and_then(|socket| adopt(vec![socket], shares, None))
            }
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

    /// Whether only peers on this machine can connect.
    pub fn is_local_only(&self) -> bool {
        self.kind.is_local_only()
    }

    /// The limit of its connections, all shares together.
    pub fn capacity(&self) -> &Arc<Capacity> {
        self.limiter.capacity()
    }
}

impl BoundSocketKind {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket, file) => Self::Unix(socket.try_clone()?, file.clone()),
        })
    }

    fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(socket) => Ok(socket.local_addr()?.to_string()),
            Self::Unix(_, Some(file)) => Ok(format!("unix:{}", file.path.display())),
            Self::Unix(socket, None) => {
                let address = socket.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new("@"));
                Ok(format!("unix:{}", path.display()))
            }
        }
    }

    fn is_local_only(&self) -> bool {
        match self {
            Self::Tcp(socket) => {
                socket.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback())
            }
            Self::Unix(..) => true,
        }
    }
}

impl Listener {
    /// Registers the socket with the runtime of this thread.
    pub fn new(socket: BoundSocket) -> io::Result<Self> {
        let kind = match socket.kind {
            BoundSocketKind::Tcp(socket) => ListenerKind::Tcp(TcpListener::from_std(socket)?),
            BoundSocketKind::Unix(socket, file) => ListenerKind::Unix(UnixListener::from_std(socket)?, file),
        };
        Ok(Self { kind, limiter: socket.limiter, options: socket.options })
    }

    pub(super) fn terms(&self) -> ListenTerms {
        ListenTerms { limiter: Arc::clone(&self.limiter), options: Arc::clone(&self.options) }
    }
}

/// With `SO_REUSEPORT` each share has a queue of its own, and the kernel distributes connections among
/// them. The first share gets the option only once it is bound: so a port that another process
/// listens on is an error, even if that process is a gateway, too.
fn bind_tcp(address: SocketAddr, shares: usize) -> io::Result<Opened> {
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
        acknowledge_with_answers(socket);
    }
    Ok((sockets.len(), sockets.into_iter().map(|socket| BoundSocketKind::Tcp(socket.into())).collect()))
}

/// The kernel acknowledges the first segments of a connection at once, in segments of their own. Here an answer follows
/// each request, which acknowledges it as well. Accepted sockets inherit this, if it is set after `listen`. Some systems
/// do not have it, and it only saves work, so an error does not matter.
fn acknowledge_with_answers(listener: &impl AsFd) {
    let _ = rustix::net::sockopt::set_tcp_quickack(listener, false);
}

/// Binds it, or takes it over if there is still a file by which clients connect. A path has one socket with one queue;
/// idle threads accept from it.
fn open_unix(
    path: &Path,
    (mode, owner): (u32, SocketOwner),
    shares: usize,
    passed: Vec<InheritedSocket>,
) -> io::Result<Opened> {
    // Until it listens, so that no other process takes it for a stale one before, nor changes the mode to find that out.
    let lock = unix_socket::lock_folder(path);
    if !passed.is_empty()
        && let Some(file) = SocketFile::find(path)?
    {
        let given = unix_socket::give(path, mode, owner);
        drop(lock);
        given?;
        return adopt(passed, shares, Some(&Arc::new(file)));
    }
    let socket = unix_socket::bind(path, mode, owner, BACKLOG)?;
    let file = SocketFile::find(path)?.map(Arc::new);
    drop(lock);
    adopt(vec![InheritedSocket::Unix(socket.into())], shares, file.as_ref())
}

/// Threads without a socket of their own accept from the queue of another: connections that wait in a queue when the
/// gateway ends are those of its successor.
fn adopt(sockets: Vec<InheritedSocket>, shares: usize, file: Option<&Arc<SocketFile>>) -> io::Result<Opened> {
    let own = sockets.len();
    let mut kinds = Vec::new();
    for socket in sockets {
        kinds.push(match socket {
            InheritedSocket::Tcp(socket) => {
                // systemd leaves it blocking.
                socket.set_nonblocking(true)?;
                SockRef::from(&socket).set_tcp_nodelay(true)?;
                acknowledge_with_answers(&socket);
                BoundSocketKind::Tcp(socket)
            }
            InheritedSocket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                BoundSocketKind::Unix(socket, file.cloned())
            }
        });
    }
    for copied in 0..shares.saturating_sub(own) {
        let copy = kinds.get(copied).map(BoundSocketKind::try_clone).transpose()?;
        kinds.extend(copy);
    }
    Ok((own, kinds))
}

#[cfg(test)]
mod tests;
