//! Background load of many connections that send requests in a loop, and callers that are measured beside
//! it.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::client::{Outcome, Request, connect, send};
use super::time;
use crate::Fallible;
use crate::http_client::Address;
use crate::load::ResponseParser;

/// The pause after a refused request. Gateway, Rails and load share the machine: without a pause, the
/// figures would show how much CPU time a loop takes.
const PAUSE: Duration = Duration::from_millis(250);

/// The background load is a separate process of the lowest priority: on another machine, it would not take
/// CPU time from Rails and the gateway, and measured callers would not share an event loop with it.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    size: usize,
    #[arg(long)]
    port: u16,
    /// An endpoint of the internal API.
    #[arg(long)]
    endpoint: String,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    refused: AtomicU64,
}

/// Runs in the separate process. Ends with its standard input, and prints the rates of responses.
pub(crate) fn run(options: &Options) -> Fallible<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counts = Arc::new(Counts::default());
    let begun = Instant::now();
    runtime.block_on(async {
        let bytes: Arc<[u8]> = Request::get(&options.endpoint).bytes().into();
        let address = Address::Port(options.port);
        let mut tasks = JoinSet::new();
        for _ in 0..options.size {
            let (counts, bytes, address) = (Arc::clone(&counts), Arc::clone(&bytes), address.clone());
            tasks.spawn(async move {
                loop {
                    send_in_a_loop(&address, &bytes, &counts).await;
                    sleep(PAUSE).await;
                }
            });
        }
        tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await
    })??;
    let per_second = |count: &AtomicU64| count.load(Relaxed) as f64 / begun.elapsed().as_secs_f64();
    println!("{:.0}/s and {:.0}/s", per_second(&counts.answered), per_second(&counts.refused));
    Ok(())
}

/// The process is killed when this is dropped.
pub(crate) struct BackgroundLoad {
    child: Child,
}

impl BackgroundLoad {
    pub(crate) fn start(size: usize, address: &Address, endpoint: &str) -> Fallible<Self> {
        let Address::Port(port) = address else { return Err("background load connects over TCP".into()) };
        let mut command = Command::new("nice");
        command
            .args(["-n", "19", "setpriv", "--pdeathsig", "KILL", "--"])
            .arg(std::env::current_exe()?)
            .args(["background-load", "--size", &size.to_string(), "--port", &port.to_string()])
            .args(["--endpoint", endpoint])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Ok(Self { child: command.spawn().map_err(|error| format!("nice: {error}"))? })
    }

    /// Ends it. Returns how many requests a second were answered by Rails and how many by the gateway.
    pub(crate) fn end(mut self) -> Fallible<String> {
        drop(self.child.stdin.take());
        let mut summary = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            std::io::Read::read_to_string(&mut output, &mut summary)?;
        }
        Ok(summary.trim().to_owned())
    }
}

impl Drop for BackgroundLoad {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until the connection ends.
async fn send_in_a_loop(address: &Address, bytes: &[u8], counts: &Counts) {
    let Ok(mut stream) = connect(address).await else { return };
    let mut response = ResponseParser::new();
    let mut buffer = [0; 2048];
    while stream.write_all(bytes).await.is_ok() {
        response.reset();
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) if response.push(buffer.get(..count).unwrap_or_default()) => break,
                Ok(_) => {}
            }
        }
        if response.status < 500 {
            counts.answered.fetch_add(1, Relaxed);
        } else {
            counts.refused.fetch_add(1, Relaxed);
            sleep(PAUSE).await;
        }
        if response.closes {
            return;
        }
    }
}

/// Sends requests at a fixed rate, whether or not earlier ones were answered.
pub(crate) async fn callers(
    addresses: &[&Address],
    request: impl Fn(usize) -> Request,
    (every, count): (Duration, usize),
    limit: Duration,
) -> Vec<Outcome> {
    let mut tasks = JoinSet::new();
    let mut clock = interval(every);
    for (number, address) in addresses.iter().cycle().take(count).enumerate() {
        clock.tick().await;
        let (address, request) = ((*address).clone(), request(number));
        tasks.spawn(async move { send(&address, &request, limit).await });
    }
    tasks.join_all().await
}

/// The percentiles 50, 90 and 99 of the times, and the longest.
pub(crate) fn spread(outcomes: &[Outcome]) -> String {
    let mut times: Vec<Duration> = outcomes.iter().map(|outcome| outcome.took).collect();
    times.sort();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
    let summary = |share| at(share).map_or_else(|| "–".to_owned(), |took| time(*took));
    format!("{} / {} / {} / {}", summary(50), summary(90), summary(99), summary(100))
}

/// How often each status, or no response, was the outcome.
pub(crate) fn statuses(outcomes: &[Outcome]) -> String {
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    for outcome in outcomes {
        *counts.entry(outcome.status).or_default() += 1;
    }
    let summary = |(status, count): (Option<u16>, usize)| {
        let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        format!("{count} × {status}")
    };
    counts.into_iter().map(summary).collect::<Vec<_>>().join(", ")
}
