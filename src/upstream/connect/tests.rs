use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::Settings;
use super::*;

/// What comes of connecting where the first address is silent, or refuses.
async fn failed(silent: bool) -> happy_eyeballs::Failed {
    let open = async |address: SocketAddr| {
        if address.is_ipv4() {
            return Ok(());
        }
        if silent { std::future::pending().await } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    };
    let addresses: [SocketAddr; 2] = [(Ipv6Addr::LOCALHOST, 1).into(), (Ipv4Addr::LOCALHOST, 1).into()];
    happy_eyeballs::first_of(&addresses, (now(), Duration::from_secs(1)), open).await.1
}

#[tokio::test(start_paused = true)]
async fn an_address_that_answered_is_preferred_for_a_while_to_one_that_is_silent() {
    let target = Target::parse("http://rails").unwrap();
    let settings = Settings::new(target.clone());
    let state = Arc::new(ServerState::new(&settings.servers[0], &settings));
    let connector = Connector::new(&target, None, Duration::from_secs(1), state);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    connector.learn(address, &failed(false).await);
    assert_eq!(connector.preferred(), None, "one that refuses costs nothing");
    connector.learn(address, &failed(true).await);
    assert_eq!(connector.preferred(), Some(address));
    tokio::time::advance(PREFERENCE).await;
    assert_eq!(connector.preferred(), None);
}
