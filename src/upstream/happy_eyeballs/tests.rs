use std::future::pending;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

/// What an address does about a connection.
#[derive(Clone, Copy, Debug)]
enum Does {
    Accepts,
    /// After so many milliseconds.
    AcceptsAfter(u64),
    Says(io::ErrorKind),
    /// What the system says of this machine.
    Wants(i32),
    Nothing,
}

use Does::{Accepts, AcceptsAfter, Nothing, Says, Wants};

fn address(place: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), u16::try_from(place).unwrap()))
}

/// Which of the addresses, counted from 0, was connected to, after how many milliseconds, and what came of
/// the others.
async fn outcome(does: &[Does], within: u64) -> (Option<u16>, u128, Failed) {
    let addresses: Vec<_> = (0..does.len()).map(address).collect();
    let begun = now();
    let (connected, failed) =
        first_of(&addresses, (begun, Duration::from_millis(within)), async |address: SocketAddr| match does
            [usize::from(address.port())]
        {
            Accepts => Ok(address),
            AcceptsAfter(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(address)
            }
            Says(kind) => Err(kind.into()),
            Wants(error) => Err(io::Error::from_raw_os_error(error)),
            Nothing => pending().await,
        })
        .await;
    (connected.map(|address: SocketAddr| address.port()), now().duration_since(begun).as_millis(), failed)
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_silent_takes_no_more_than_a_moment_from_the_others() {
    let refuses = Says(io::ErrorKind::ConnectionRefused);
    let mut dozen = [Nothing; 12];
    dozen[11] = Accepts;
    for (does, within, connected, after) in [
        (&[Accepts][..], 1_000, Some(0), 0),
        (&[Accepts, Accepts], 1_000, Some(0), 0),
        (&[AcceptsAfter(240), Accepts], 1_000, Some(0), 240),
        (&[Nothing, Accepts], 1_000, Some(1), 250),
        // Not given up: the first one may still be the faster one.
        (&[AcceptsAfter(300), AcceptsAfter(100)], 1_000, Some(0), 300),
        (&[AcceptsAfter(400), AcceptsAfter(100)], 1_000, Some(1), 350),
        // One that says no costs nothing.
        (&[refuses, Accepts], 1_000, Some(1), 0),
        (&[Nothing, refuses, Accepts], 1_000, Some(2), 250),
        (&[Nothing, Nothing, Accepts], 1_000, Some(2), 500),
        // Many have to share the time, and so have a few if there is little.
        (&[Nothing, Nothing, Nothing, Nothing, Accepts], 1_000, Some(4), 800),
        (&dozen, 600, Some(11), 550),
        (&[Nothing, Accepts], 100, Some(1), 50),
        (&[Nothing, Nothing], 1_000, None, 1_000),
        (&[AcceptsAfter(1_001)], 1_000, None, 1_000),
        (&[refuses, refuses], 1_000, None, 0),
        (&[], 1_000, None, 0),
    ] {
        let (port, took, failed) = outcome(does, within).await;
        // The timer counts in milliseconds, and is late by one at most.
        assert!(took.abs_diff(after) <= 2, "{does:?}: {took} ms, {failed}");
        assert_eq!(port, connected, "{does:?}: {failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_names_each_address_and_its_cause() {
    let no = Says(io::ErrorKind::ConnectionRefused);
    let refused = "connection refused";
    for (does, kind, text) in [
        (
            &[Nothing, no][..],
            io::ErrorKind::TimedOut,
            format!("10.0.0.1:0: no connection within 1s; 10.0.0.1:1: {refused}"),
        ),
        (
            &[no, Says(io::ErrorKind::PermissionDenied)],
            io::ErrorKind::ConnectionRefused,
            format!("10.0.0.1:0: {refused}; 10.0.0.1:1: permission denied"),
        ),
        (
            &[Says(io::ErrorKind::InvalidData), no],
            io::ErrorKind::ConnectionRefused,
            format!("10.0.0.1:0: invalid data; 10.0.0.1:1: {refused}"),
        ),
        (&[Says(io::ErrorKind::InvalidData)], io::ErrorKind::InvalidData, "10.0.0.1:0: invalid data".into()),
        (&[], io::ErrorKind::NotFound, "the name has no address".into()),
    ] {
        let (connected, _, failed) = outcome(does, 1_000).await;
        assert_eq!((connected, failed.kind(), failed.to_string()), (None, kind, text), "{does:?}");
    }
    let many = outcome(&[no; 500], 1_000).await.2.to_string();
    assert!(many.len() < 400 && many.ends_with("; and 492 more addresses"), "{many}");
    let hasty = outcome(&[Nothing; 3], 15).await.2.to_string();
    assert!(hasty.ends_with("10.0.0.1:2: not tried, for want of time"), "{hasty}");
}

#[tokio::test(start_paused = true)]
async fn a_success_says_what_came_of_the_addresses_before_it() {
    let no = Says(io::ErrorKind::ConnectionRefused);
    let (refused, silent) = ("connection refused", "no connection within ");
    for (does, told, is_silent) in [
        (&[Accepts, Nothing][..], vec![], false),
        (&[Nothing, no, Accepts, no], vec![("10.0.0.1:0", silent), ("10.0.0.1:1", refused)], true),
        (&[no, Nothing, Accepts], vec![("10.0.0.1:0", refused), ("10.0.0.1:1", silent)], true),
        (&[no, Accepts], vec![("10.0.0.1:0", refused)], false),
        // One behind it was tried too, and has said so.
        (&[AcceptsAfter(300), no], vec![("10.0.0.1:1", refused)], false),
    ] {
        let (connected, _, failed) = outcome(does, 1_000).await;
        assert!(connected.is_some(), "{does:?}");
        assert_eq!((failed.0.len(), failed.has_silent()), (told.len(), is_silent), "{does:?}: {failed}");
        for ((address, error), (place, why)) in failed.0.iter().zip(told) {
            assert_eq!(address.to_string(), place, "{does:?}");
            assert!(error.to_string().starts_with(why), "{does:?}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wanting_on_this_machine_is_known_among_the_causes() {
    let wanting = rustix::io::Errno::MFILE.raw_os_error();
    let no_address = rustix::io::Errno::ADDRNOTAVAIL.raw_os_error();
    for (does, is_wanting) in [
        (&[Wants(wanting)][..], true),
        (&[Says(io::ErrorKind::ConnectionRefused), Wants(wanting)], true),
        (&[Wants(no_address), Says(io::ErrorKind::ConnectionRefused)], false),
        (&[Nothing], false),
    ] {
        let failed = outcome(does, 1_000).await.2;
        let error = io::Error::new(failed.kind(), failed);
        assert_eq!(super::super::is_for_want_of_resources(&error), is_wanting, "{does:?}");
    }
}

#[test]
fn families_take_turns() {
    let v4 = |nth| SocketAddr::from((Ipv4Addr::new(10, 0, 0, nth), 80));
    let v6 = |nth: u8| SocketAddr::from((Ipv6Addr::from(u128::from(nth)), 80));
    for (given, order) in [
        (vec![], vec![]),
        (vec![v4(1), v4(2)], vec![v4(1), v4(2)]),
        (vec![v6(1), v6(2), v6(3), v4(1)], vec![v6(1), v4(1), v6(2), v6(3)]),
        (vec![v4(1), v4(2), v6(1), v6(2)], vec![v4(1), v6(1), v4(2), v6(2)]),
        (vec![v4(1), v6(1), v6(2), v6(3)], vec![v4(1), v6(1), v6(2), v6(3)]),
    ] {
        assert_eq!(interleaved(given), order);
    }
    for (first, order) in [
        (None, [v4(1), v6(1), v4(2)]),
        (Some(v4(2)), [v4(2), v4(1), v6(1)]),
        (Some(v4(1)), [v4(1), v6(1), v4(2)]),
        // The name leads elsewhere by now.
        (Some(v4(9)), [v4(1), v6(1), v4(2)]),
    ] {
        assert_eq!(with_first(vec![v4(1), v6(1), v4(2)], first), order, "{first:?}");
    }
}

/// Neither accepts nor refuses: the queue of its listener is full.
struct Silent {
    address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<std::net::TcpStream>,
}

impl Silent {
    fn new() -> Self {
        let any = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0));
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok();
        let queued = std::iter::from_fn(connect).collect();
        Self { address, _listener: listener, _queued: queued }
    }
}

#[tokio::test]
async fn a_listener_whose_queue_is_full_does_not_hide_the_next_address() {
    let silent = Silent::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let answers = listener.local_addr().unwrap();
    let within = Duration::from_mins(1);
    let (connected, failed) =
        first_of(&[silent.address, answers], (now(), within), tokio::net::TcpStream::connect).await;
    assert_eq!(connected.expect("the second one accepts").peer_addr().unwrap(), answers);
    assert!(
        failed.to_string().starts_with(&format!("{}: no connection within ", silent.address)),
        "{failed}"
    );
    assert!(failed.has_silent());
}

#[tokio::test]
async fn an_address_is_tried_without_being_resolved_and_fails_in_the_words_of_the_system() {
    // Nothing listens there.
    let unused = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let error = connect_to("127.0.0.1", unused.port()).await.unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        tokio::net::TcpStream::connect(unused).await.unwrap_err().raw_os_error()
    );
    let error = connect_to("localhost", unused.port()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("{unused}: Connection refused")), "{error}");
    assert!(may_pass(&error));
}

async fn connect_to(host: &str, port: u16) -> io::Result<tokio::net::TcpStream> {
    let connected = connect(host, port, None, Duration::from_mins(1), tokio::net::TcpStream::connect).await;
    connected.map(|(stream, _)| stream)
}
