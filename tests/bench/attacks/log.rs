//! The log lines about clients, and a log that cannot be written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::client::{Request, connect, send, send_on};
use super::fake_rails::{FakeRails, Script};
use super::gateway::{Gateway, Setup, end};
use super::{AttackEnvironment, Figures, figure};
use crate::Fallible;

const LIMIT: Duration = Duration::from_secs(3);

pub(crate) async fn length(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    let mut figures = Figures::new();
    let query = Request::get(&format!("nobody?{}", "&".repeat(10_200)));
    let agent = Request::get("nobody").header("User-Agent", &"a".repeat(20_000));
    let control = Request::get("nobody");
    for (what, request) in [
        ("bytes of the line for the query", query),
        ("bytes of the line for the User-Agent", agent),
        ("bytes of the line for neither", control),
    ] {
        let before = gateway.log().len();
        let outcome = send(&gateway.tcp, &request, LIMIT).await;
        // Log lines may be a little late.
        sleep(Duration::from_millis(500)).await;
        let longest =
            gateway.log().get(before..).unwrap_or_default().lines().map(str::len).max().unwrap_or(0);
        let status = outcome.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        figures.push(figure(format!("{what} (it got {status})"), longest.to_string()));
    }
    Ok(figures)
}

pub(crate) async fn stalled(environment: &AttackEnvironment) -> Fallible<Figures> {
    const CONNECTIONS: usize = 50;
    const REQUESTS_PER_CONNECTION: usize = 100;
    let rails = FakeRails::start(Script::Answers(100))?;
    let limits = "[limits]\ndrain_timeout = \"2s\"";
    let setup = Setup { log_stalls: true, ..Setup::new(rails.port).sections(limits) };
    let mut gateway = Gateway::start(environment, &setup).await?;
    let answered = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, answered) = (gateway.tcp.clone(), Arc::clone(&answered));
        tasks.spawn(async move {
            let Ok(mut stream) = connect(&address).await else { return };
            for _ in 0..REQUESTS_PER_CONNECTION {
                if !send_on(&mut stream, &Request::allowed(), LIMIT).await.is(200) {
                    return;
                }
                answered.fetch_add(1, Relaxed);
            }
        });
    }
    tasks.join_all().await;
    let answered = answered.load(Relaxed);
    let live = gateway.live(LIMIT).await;
    let (first, second) = (Duration::from_secs(6), Duration::from_secs(4));
    gateway.terminate();
    let ended = gateway.ends_within(first).await?;
    let mut figures = vec![
        figure("answered", format!("{answered} of {}", CONNECTIONS * REQUESTS_PER_CONNECTION)),
        figure("`/live`", live.summary()),
        figure("SIGTERM ends it, `drain_timeout` being 2 s", end(ended, first)),
    ];
    if ended.is_none() {
        gateway.terminate();
        figures.push(figure("a second one does", end(gateway.ends_within(second).await?, second)));
    }
    Ok(figures)
}
