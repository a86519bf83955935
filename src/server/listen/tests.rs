use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;
use crate::server::PassedSockets;
use crate::server::unix_socket::lock_folder;

fn unix(path: &Path) -> ListenAddress {
    ListenAddress::Unix { path: path.to_owned(), mode: 0o600, owner: SocketOwner::default() }
}

type Replace = fn(&Path);

#[test]
fn a_socket_removes_its_own_file_and_no_other() {
    let path = std::env::temp_dir().join(format!("railgate-socket-{}", std::process::id()));
    let address = unix(&path);
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

/// The system lets only who may write to a socket see whether it is in use.
#[test]
fn a_socket_that_even_its_owner_may_not_write_to_is_removed_or_replaced_like_others() {
    let path = std::env::temp_dir().join(format!("railgate-modes-{}", std::process::id()));
    let aside = path.with_extension("aside");
    // On a thread of its own, which is not root's any more.
    let test = || {
        let mut own = capabilities(None).unwrap();
        own.effective.remove(CapabilitySet::DAC_OVERRIDE);
        set_capabilities(None, own).unwrap();
        for mode in [0o060, 0o200, 0] {
            let address = ListenAddress::Unix { path: path.clone(), mode, owner: SocketOwner::default() };
            let bound = BoundSocket::bind(&address, 1).unwrap();
            assert_eq!(UnixStream::connect(&path).is_ok(), mode == 0o200, "{mode:o}");
            let error = BoundSocket::bind(&address, 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{mode:o}");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            // As after a crash.
            fs::rename(&path, &aside).unwrap();
            drop(bound);
            fs::rename(&aside, &path).unwrap();
            let bound = BoundSocket::bind(&address, 1).unwrap();
            drop(bound);
            assert!(!path.exists(), "{mode:o}");
        }
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
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
    let address = unix(&path);
    assert_eq!(BoundSocket::bind(&address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert!(path.exists());
    fs::remove_file(path).unwrap();
}

#[test]
fn a_successor_keeps_its_file() {
    let path = std::env::temp_dir().join(format!("railgate-successor-{}", std::process::id()));
    let address = unix(&path);
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
    let address = unix(&path);
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

/// This process, one that the socket was passed to, or a service manager.
#[test]
fn the_file_of_a_socket_goes_with_the_last_process_that_has_it() {
    let path = std::env::temp_dir().join(format!("railgate-last-{}", std::process::id()));
    let address = unix(&path);
    let pass = |bound: &[BoundSocket]| {
        let mut passed = PassedSockets::default();
        passed.add(&address, bound).unwrap();
        let copies: Vec<(String, OwnedFd)> = passed
            .iter()
            .flat_map(|(name, sockets)| {
                sockets.into_iter().map(move |socket| (name.to_owned(), socket.try_clone_to_owned().unwrap()))
            })
            .collect();
        copies
    };
    let adopt = |passed| {
        let mut inherited = InheritedSockets::default();
        inherited.extend(passed);
        BoundSocket::open(&address, (1, 2), &mut inherited).unwrap()
    };
    for is_first_to_go in [true, false] {
        let before = BoundSocket::bind_shared(&address, 1, 2).unwrap();
        let passed = pass(&before);
        // In flight, it belongs to no process, and is in use.
        let (before, after) = if is_first_to_go {
            drop(before);
            assert!(path.exists());
            (Vec::new(), adopt(passed))
        } else {
            (before, adopt(passed))
        };
        let (first, last) = if is_first_to_go { (before, after) } else { (after, before) };
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(last);
        assert!(!path.exists());
    }
    // One that is of no use any more to whom it was passed.
    let before = BoundSocket::bind(&address, 1).unwrap();
    drop(pass(std::slice::from_ref(&before)));
    assert!(path.exists());
    drop(before);
    assert!(!path.exists());
}

#[test]
fn connections_inherit_that_answers_are_sent_at_once_and_acknowledge_requests() {
    let bound = || {
        let (_, mut sockets) = bind_tcp("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let Some(BoundSocketKind::Tcp(socket)) = sockets.pop() else { unreachable!() };
        socket
    };
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (_, mut adopted) = adopt(vec![InheritedSocket::Tcp(plain)], 1, None).unwrap();
    let Some(BoundSocketKind::Tcp(adopted)) = adopted.pop() else { unreachable!() };
    for listener in [bound(), adopted] {
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (connection, _) = listener.accept().unwrap();
        assert!(connection.nodelay().unwrap());
        assert!(!rustix::net::sockopt::tcp_quickack(&connection).unwrap());
    }
}
