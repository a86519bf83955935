use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::upstream::connection::target::UpstreamTarget;
use crate::upstream::settings::UpstreamSettings;

/// The failed addresses if the first one is silent, or refuses.
async fn failed(silent: bool) -> happy_eyeballs::FailedAddresses {
    let open = async |address: SocketAddr| {
        if address.is_ipv4() {
            return Ok(());
        }
        if silent {
            std::future::pending().await
        } else {
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into())
        }
    };
    let addresses: [SocketAddr; 2] = [(Ipv6Addr::LOCALHOST, 1).into(), (Ipv4Addr::LOCALHOST, 1).into()];
    happy_eyeballs::connect_first(&addresses, (Clock::System.now(), Duration::from_secs(1)), open).await.1
}

#[tokio::test(start_paused = true)]
async fn an_address_that_accepted_is_preferred_for_a_while_to_a_silent_one() {
    let target = UpstreamTarget::parse("http://rails").unwrap();
    let settings = UpstreamSettings::new(target);
    let connector = Connector::new(&settings.servers[0], Duration::from_secs(1), Arc::default());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    connector.record_failed(address, &failed(false).await);
    assert_eq!(connector.preferred(), None, "a refusal takes no time");
    connector.record_failed(address, &failed(true).await);
    assert_eq!(connector.preferred(), Some(address));
    tokio::time::advance(PREFERRED_TTL).await;
    assert_eq!(connector.preferred(), None);
}

#[tokio::test]
async fn a_tcp_connection_sends_small_packets_at_once_and_notices_a_dead_peer() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let UpstreamSocket::Tcp(io) = open_tcp(listener.local_addr().unwrap(), None).await.unwrap() else {
        unreachable!("it is in clear");
    };
    assert!(io.inner().nodelay().unwrap());
    let socket = SockRef::from(io.inner());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(10));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
}
