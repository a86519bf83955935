//! Requests whose clients have disconnected.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::sleep;

use super::client::{Request, connect};
use super::fake_rails::{FakeRails, Script};
use super::gateway::{Gateway, Setup};
use super::{AttackEnvironment, Figures, figure};
use crate::Fallible;

const CLIENTS: u64 = 20;

/// Long enough for a close to be noticed.
const NOTICED: Duration = Duration::from_millis(1_500);

/// The bytes sent before the connection is closed. The name is part of the request's target.
fn kinds() -> [(&'static str, &'static str, Vec<u8>); 4] {
    let chunked = Request::new("POST", "/api/v4/internal/nobody/chunked")
        .header("Content-Type", "application/octet-stream")
        .header("Transfer-Encoding", "chunked");
    let pipelined = Request::get("nobody/pipelined").bytes();
    [
        ("get", "a GET", Request::get("nobody/get").bytes()),
        (
            "large",
            "a POST of 100 KiB",
            Request::post("nobody/large", "application/octet-stream", vec![0; 100 << 10]).bytes(),
        ),
        (
            "chunked",
            "a complete small chunked POST",
            [chunked.bytes(), b"1\r\nx\r\n0\r\n\r\n".to_vec()].concat(),
        ),
        ("pipelined", "two pipelined GETs", pipelined.repeat(2)),
    ]
}

pub(crate) async fn hang_up(environment: &AttackEnvironment) -> Fallible<Figures> {
    let mut figures = Figures::new();
    for (name, what, bytes) in kinds() {
        let (waiting, arrived) = while_rails_is_away(environment, name, &bytes).await?;
        figures.push(figure(format!("{what}, Rails away: still wait"), format!("{waiting} of {CLIENTS}")));
        figures.push(figure(format!("{what}, Rails away: reach Rails later"), arrived.to_string()));
        let (waiting, arrived) = while_rails_is_busy(environment, name, &bytes).await?;
        figures.push(figure(format!("{what}, class busy: still wait"), format!("{waiting} of {CLIENTS}")));
        figures.push(figure(format!("{what}, class busy: reach Rails later"), arrived.to_string()));
    }
    Ok(figures)
}

async fn while_rails_is_away(
    environment: &AttackEnvironment,
    name: &str,
    bytes: &[u8],
) -> Fallible<(u64, usize)> {
    let mut rails = FakeRails::away(Script::Answers(100))?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port).upstream("hold = \"30s\"")).await?;
    send_and_close(&gateway, bytes).await?;
    sleep(NOTICED).await;
    let waiting = gateway.metric("railgate_upstream_held ").await?;
    rails.come_back()?;
    sleep(NOTICED).await;
    Ok((waiting, rails.arrived(name)))
}

async fn while_rails_is_busy(
    environment: &AttackEnvironment,
    name: &str,
    bytes: &[u8],
) -> Fallible<(u64, usize)> {
    let rails = FakeRails::start(Script::Answers(100))?;
    rails.each_takes(Duration::from_secs(4));
    let class = "[upstream.classes.other]\nconcurrency = 1\nqueue = 100\nqueue_timeout = \"30s\"";
    let gateway = Gateway::start(environment, &Setup::new(rails.port).sections(class)).await?;
    // This request has the only permit.
    let mut busy = connect(&gateway.tcp).await?;
    busy.write_all(&Request::get("nobody").bytes()).await?;
    while rails.arrived("nobody") == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    rails.each_takes(Duration::ZERO);
    send_and_close(&gateway, bytes).await?;
    sleep(NOTICED).await;
    let waiting = gateway.metric(r#"railgate_upstream_queue{class="other"}"#).await?;
    sleep(Duration::from_secs(3)).await;
    Ok((waiting, rails.arrived(name)))
}

async fn send_and_close(gateway: &Gateway, bytes: &[u8]) -> Fallible<()> {
    for _ in 0..CLIENTS {
        let mut stream = connect(&gateway.tcp).await?;
        stream.write_all(bytes).await?;
    }
    Ok(())
}
