//! A gateway whose upstream is itself, or a gateway in front of it.

use railgate::upstream::UpstreamTarget;

use super::client::{Address, Request};
use super::fake_rails::FakeRails;
use super::harness::{RunningGateway, Setup};
use super::log;

/// A gateway in front of `rails`, bypassing the check of the configuration.
fn gateway(setup: &Setup, rails: &Address) -> RunningGateway {
    let mut settings = setup.settings(&Address::Unix("/none".into()));
    settings.upstream.servers[0].target = UpstreamTarget::parse(&rails.url()).unwrap();
    RunningGateway::start(settings)
}

fn socket(setup: &Setup) -> Address {
    Address::Unix(setup.socket())
}

async fn failures(gateway: &RunningGateway) -> usize {
    gateway.metric("railgate_failures_total{reason=\"loop\"}").await.unwrap_or(0)
}

#[tokio::test]
async fn a_loop_is_detected_on_the_first_return() {
    let setup = Setup::new();
    let gateway = gateway(&setup, &socket(&setup));
    let id = "of-the-loop";
    for (nth, request) in [
        Request::post("allowed").with_secret().json("{}"),
        Request::get("lfs").with_secret(),
        Request::get("discover?key_id=1").with_secret(),
        Request::get("pages").header("Via", "1.0 fred"),
    ]
    .iter()
    .enumerate()
    {
        let response = gateway.tcp.send(&request.clone().header("X-Request-Id", id)).await;
        response.assert_failure(508);
        assert_eq!(failures(&gateway).await, nth + 1, "{request}");
    }
    // A line for each request, and one for its return.
    let lines = log::wait_for_lines(&format!("\"correlation_id\":\"{id}\""), 7).await;
    let of_loop: Vec<_> =
        lines.iter().filter(|line| line.contains("gateway's listeners; point it to Workhorse\"")).collect();
    assert_eq!(of_loop.len(), 4, "{lines:#?}");
    assert!(of_loop.iter().all(|line| line.contains("loop")), "{lines:#?}");
}

/// Only the first gateway reports it.
#[tokio::test]
async fn a_loop_over_two_gateways_is_detected_once() {
    let (one, two) = (Setup::new(), Setup::new());
    let (first, second) = (gateway(&one, &socket(&two)), gateway(&two, &socket(&one)));
    for request in
        [Request::post("allowed").with_secret().json("{}"), Request::get("discover?key_id=1").with_secret()]
    {
        first.tcp.send(&request).await.assert_failure(508);
    }
    assert_eq!((failures(&first).await, failures(&second).await), (2, 0));
}

#[tokio::test]
async fn chained_gateways_are_no_loop() {
    let rails = FakeRails::listen_tcp().await;
    let setups = [Setup::new(), Setup::new(), Setup::new()];
    let last = gateway(&setups[0], &rails.address);
    let middle = gateway(&setups[1], &last.tcp);
    let first = gateway(&setups[2], &middle.unix);
    for request in
        [Request::post("allowed").with_secret().json("{}"), Request::get("discover?key_id=1").with_secret()]
    {
        let response = first.tcp.send(&request.header("Via", "1.0 fred")).await;
        assert_eq!(response.status, 200, "{response}");
        let seen = rails.last_request();
        let via = seen.header_values("via");
        assert_eq!((via.len(), via[0]), (4, "1.0 fred"), "{}", seen.head);
        assert!(via[1..].iter().all(|name| name.starts_with("1.1 railgate-")), "{}", seen.head);
        assert!(via[1] != via[2] && via[2] != via[3] && via[1] != via[3], "{}", seen.head);
    }
    // Similar names in `Via` are no loop.
    let response = first.tcp.send(&Request::get("pages").header("Via", "1.1 railgate, 1.1 railgate-")).await;
    assert_eq!(response.status, 200, "{response}");
}
