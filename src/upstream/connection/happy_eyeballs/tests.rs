use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::upstream::connection::cause::UnreachableCause::{Dns, Refused, Timeout, Tls};

/// What happens to a connection attempt at an address.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Accepts,
    /// After so many milliseconds.
    AcceptsAfter(u64),
    Fails(io::ErrorKind),
    /// With this error number.
    SystemError(i32),
    Silent,
}

use Behaviour::{Accepts, AcceptsAfter, Fails, Silent, SystemError};

fn address(index: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), u16::try_from(index).unwrap()))
}

/// The index of the address that was connected to, after how many milliseconds, and what became of the others.
async fn outcome(behaviours: &[Behaviour], within: u64) -> (Option<u16>, u128, FailedAddresses) {
    let addresses: Vec<_> = (0..behaviours.len()).map(address).collect();
    let begun = Clock::System.now();
    let (connected, failed) =
        connect_first(&addresses, (begun, Duration::from_millis(within)), async |address: SocketAddr| {
            match behaviours[usize::from(address.port())] {
                Accepts => Ok(address),
                AcceptsAfter(ms) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    Ok(address)
                }
                Fails(kind) => Err(io::Error::from(kind).into()),
                SystemError(error) => Err(io::Error::from_raw_os_error(error).into()),
                Silent => pending().await,
            }
        })
        .await;
    (
        connected.map(|address: SocketAddr| address.port()),
        Clock::System.now().duration_since(begun).as_millis(),
        failed,
    )
}

#[tokio::test(start_paused = true)]
async fn a_silent_address_delays_the_others_only_for_a_moment() {
    let refuses = Fails(io::ErrorKind::ConnectionRefused);
    let mut dozen = [Silent; 12];
    dozen[11] = Accepts;
    for (behaviours, within, connected, after) in [
        (&[Accepts][..], 1_000, Some(0), 0),
        (&[Accepts, Accepts], 1_000, Some(0), 0),
        (&[AcceptsAfter(240), Accepts], 1_000, Some(0), 240),
        (&[Silent, Accepts], 1_000, Some(1), 250),
        // Not given up: the first one may still be the faster one.
        (&[AcceptsAfter(300), AcceptsAfter(100)], 1_000, Some(0), 300),
        (&[AcceptsAfter(400), AcceptsAfter(100)], 1_000, Some(1), 350),
        // A refusal takes no time.
        (&[refuses, Accepts], 1_000, Some(1), 0),
        (&[Silent, refuses, Accepts], 1_000, Some(2), 250),
        (&[Silent, Silent, Accepts], 1_000, Some(2), 500),
        // Many have to share the time, and so have a few if there is little.
        (&[Silent, Silent, Silent, Silent, Accepts], 1_000, Some(4), 800),
        (&dozen, 600, Some(11), 550),
        (&[Silent, Accepts], 100, Some(1), 50),
        (&[Silent, Silent], 1_000, None, 1_000),
        (&[AcceptsAfter(1_001)], 1_000, None, 1_000),
        (&[refuses, refuses], 1_000, None, 0),
        (&[], 1_000, None, 0),
    ] {
        let (port, took, failed) = outcome(behaviours, within).await;
        // The timer counts in milliseconds, and is late by one at most.
        assert!(took.abs_diff(after) <= 2, "{behaviours:?}: {took} ms, {failed}");
        assert_eq!(port, connected, "{behaviours:?}: {failed}");
    }
}

/// Name resolution may have taken most of it.
#[tokio::test(start_paused = true)]
async fn the_addresses_share_the_time_that_is_left() {
    let begun = Clock::System.now();
    tokio::time::advance(Duration::from_millis(900)).await;
    let open = async |address: SocketAddr| if address.port() == 0 { pending().await } else { Ok(address) };
    let within = (begun, Duration::from_secs(1));
    let (connected, failed) = connect_first(&[address(0), address(1)], within, open).await;
    assert_eq!(connected, Some(address(1)), "{failed}");
    let took = Clock::System.now().duration_since(begun).as_millis();
    assert!(took.abs_diff(950) <= 2, "{took} ms");
}

#[tokio::test(start_paused = true)]
async fn a_failure_lists_each_address_and_its_cause() {
    let no = Fails(io::ErrorKind::ConnectionRefused);
    let refused = "connection refused";
    for (behaviours, cause, text) in [
        (&[Silent, no][..], Timeout, format!("10.0.0.1:0: no connection within 1s; 10.0.0.1:1: {refused}")),
        (
            &[no, Fails(io::ErrorKind::PermissionDenied)],
            Refused,
            format!("10.0.0.1:0: {refused}; 10.0.0.1:1: permission denied"),
        ),
        (
            &[Fails(io::ErrorKind::InvalidData), no],
            Tls,
            format!("10.0.0.1:0: invalid data; 10.0.0.1:1: {refused}"),
        ),
        (&[Fails(io::ErrorKind::InvalidData)], Tls, "10.0.0.1:0: invalid data".into()),
        (&[], Dns, "the name has no address".into()),
    ] {
        let (connected, _, failed) = outcome(behaviours, 1_000).await;
        let error = failed.into_error();
        assert_eq!((connected, error.cause(), error.to_string()), (None, cause, text), "{behaviours:?}");
    }
    let many = outcome(&[no; 500], 1_000).await.2.to_string();
    assert!(many.len() < 400 && many.ends_with("; and 492 more addresses"), "{many}");
    let hasty = outcome(&[Silent; 3], 15).await.2.to_string();
    assert!(hasty.ends_with("10.0.0.1:2: not tried, for want of time"), "{hasty}");
}

#[tokio::test(start_paused = true)]
async fn a_success_lists_what_became_of_the_addresses_before_it() {
    let no = Fails(io::ErrorKind::ConnectionRefused);
    let (refused, silent) = ("connection refused", "no connection within ");
    for (behaviours, expected, is_silent) in [
        (&[Accepts, Silent][..], vec![], false),
        (&[Silent, no, Accepts, no], vec![("10.0.0.1:0", silent), ("10.0.0.1:1", refused)], true),
        (&[no, Silent, Accepts], vec![("10.0.0.1:0", refused), ("10.0.0.1:1", silent)], true),
        (&[no, Accepts], vec![("10.0.0.1:0", refused)], false),
        // A later address failed meanwhile.
        (&[AcceptsAfter(300), no], vec![("10.0.0.1:1", refused)], false),
    ] {
        let (connected, _, failed) = outcome(behaviours, 1_000).await;
        assert!(connected.is_some(), "{behaviours:?}");
        assert_eq!(
            (failed.0.len(), failed.has_silent()),
            (expected.len(), is_silent),
            "{behaviours:?}: {failed}"
        );
        for ((address, error), (expected_address, text)) in failed.0.iter().zip(expected) {
            assert_eq!(address.to_string(), expected_address, "{behaviours:?}");
            assert!(error.to_string().starts_with(text), "{behaviours:?}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn resource_exhaustion_is_found_among_the_causes() {
    let no_files = rustix::io::Errno::MFILE.raw_os_error();
    let no_address = rustix::io::Errno::ADDRNOTAVAIL.raw_os_error();
    for (behaviours, is_exhausted) in [
        (&[SystemError(no_files)][..], true),
        (&[Fails(io::ErrorKind::ConnectionRefused), SystemError(no_files)], true),
        (&[SystemError(no_address), Fails(io::ErrorKind::ConnectionRefused)], false),
        (&[Silent], false),
    ] {
        let error = outcome(behaviours, 1_000).await.2.into_error();
        assert_eq!(error.is_resource_exhaustion(), is_exhausted, "{behaviours:?}");
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
        // The name resolves to other addresses by now.
        (Some(v4(9)), [v4(1), v6(1), v4(2)]),
    ] {
        assert_eq!(preferring(vec![v4(1), v6(1), v4(2)], first), order, "{first:?}");
    }
}

/// Neither accepts nor refuses: its queue is full.
struct FullListener {
    address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<std::net::TcpStream>,
}

impl FullListener {
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
    let full = FullListener::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let answers = listener.local_addr().unwrap();
    let within = Duration::from_mins(1);
    let (connected, failed) =
        connect_first(&[full.address, answers], (Clock::System.now(), within), open).await;
    assert_eq!(connected.expect("the second one accepts").peer_addr().unwrap(), answers);
    assert!(failed.to_string().starts_with(&format!("{}: no connection within ", full.address)), "{failed}");
    assert!(failed.has_silent());
}

#[tokio::test]
async fn the_error_for_an_address_is_that_of_the_system() {
    // Nothing listens there.
    let unused = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let error = connect_to("127.0.0.1", unused.port()).await.unwrap_err();
    assert_eq!(error.to_string(), tokio::net::TcpStream::connect(unused).await.unwrap_err().to_string());
    let error = connect_to("localhost", unused.port()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("{unused}: Connection refused")), "{error}");
    assert!(error.is_transient());
}

async fn connect_to(host: &str, port: u16) -> Result<tokio::net::TcpStream, ConnectError> {
    connect(host, port, None, Duration::from_mins(1), open).await.map(|(stream, _)| stream)
}

async fn open(address: SocketAddr) -> Result<tokio::net::TcpStream, ConnectError> {
    Ok(tokio::net::TcpStream::connect(address).await?)
}
