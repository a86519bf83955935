//! A gateway whose Rails is itself, or another gateway in front of it.

use railgate::upstream::Target;

use super::client::{Ask, Peer};
use super::fake::Rails;
use super::log;
use super::stage::{Running, Setup};

/// A gateway in front of `rails`, of which the reader of the configuration is not told.
fn gateway(setup: &Setup, rails: &Peer) -> Running {
    let mut settings = setup.settings(&Peer::Unix("/none".into()));
    settings.upstream.servers[0].target = Target::parse(&rails.url()).unwrap();
    Running::start(settings)
}

fn socket(setup: &Setup) -> Peer {
    Peer::Unix(setup.socket())
}

async fn failures(gateway: &Running) -> usize {
    gateway.metric("railgate_failures_total{reason=\"loop\"}").await.unwrap_or(0)
}

#[tokio::test]
async fn a_request_that_comes_back_is_noticed_at_once() {
    let setup = Setup::new();
    let gateway = gateway(&setup, &socket(&setup));
    let id = "of-the-loop";
    for (nth, ask) in [
        Ask::post("allowed").with_secret().json("{}"),
        Ask::get("lfs").with_secret(),
        Ask::get("discover?key_id=1").with_secret(),
        Ask::get("pages").header("Via", "1.0 fred"),
    ]
    .iter()
    .enumerate()
    {
        let answer = gateway.tcp.send(&ask.clone().header("X-Request-Id", id)).await;
        answer.assert_failure(508);
        assert_eq!(failures(&gateway).await, nth + 1, "{ask}");
    }
    // Each request, and the one that came back of it.
    let lines = log::mentioning(&format!("\"correlation_id\":\"{id}\""), 7).await;
    let of_loop: Vec<_> =
        lines.iter().filter(|line| line.contains("leads back to one of its listeners")).collect();
    assert_eq!(of_loop.len(), 4, "{lines:#?}");
    assert!(of_loop.iter().all(|line| line.contains("loop")), "{lines:#?}");
}

/// Over two gateways, the first one notices, and the other does not.
#[tokio::test]
async fn a_loop_of_two_is_noticed_once_around() {
    let (one, two) = (Setup::new(), Setup::new());
    let (first, second) = (gateway(&one, &socket(&two)), gateway(&two, &socket(&one)));
    for ask in [Ask::post("allowed").with_secret().json("{}"), Ask::get("discover?key_id=1").with_secret()] {
        first.tcp.send(&ask).await.assert_failure(508);
    }
    assert_eq!((failures(&first).await, failures(&second).await), (2, 0));
}

#[tokio::test]
async fn one_gateway_behind_another_is_no_loop() {
    let rails = Rails::on_tcp().await;
    let setups = [Setup::new(), Setup::new(), Setup::new()];
    let last = gateway(&setups[0], &rails.peer);
    let middle = gateway(&setups[1], &last.tcp);
    let first = gateway(&setups[2], &middle.unix);
    for ask in [Ask::post("allowed").with_secret().json("{}"), Ask::get("discover?key_id=1").with_secret()] {
        let answer = first.tcp.send(&ask.header("Via", "1.0 fred")).await;
        assert_eq!(answer.status, 200, "{answer}");
        let seen = rails.last();
        let via = seen.all("via");
        assert_eq!((via.len(), via[0]), (4, "1.0 fred"), "{}", seen.head);
        assert!(via[1..].iter().all(|name| name.starts_with("1.1 railgate-")), "{}", seen.head);
        assert!(via[1] != via[2] && via[2] != via[3] && via[1] != via[3], "{}", seen.head);
    }
    // A name that is like its own means nothing.
    let answer = first.tcp.send(&Ask::get("pages").header("Via", "1.1 railgate, 1.1 railgate-")).await;
    assert_eq!(answer.status, 200, "{answer}");
}
