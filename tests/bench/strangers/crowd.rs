//! Many connections that ask in a loop, and callers that ask beside them.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::client::{Outcome, Request, ask, connect};
use super::time;
use crate::Fallible;
use crate::ask::Place;
use crate::load::Answer;

/// Between two requests of a connection, if the first was refused. Gateway, Rails and crowd share the
/// machine: without a pause, the figures would show how much CPU time a loop takes.
const PAUSE: Duration = Duration::from_millis(250);

/// The connections are a process of their own with the least priority: elsewhere, they would not take
/// the CPU time of Rails and the gateway, and measured callers would not wait in one event loop with them.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    size: usize,
    #[arg(long)]
    port: u16,
    /// Of the internal API.
    #[arg(long)]
    endpoint: String,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    refused: AtomicU64,
}

/// The process itself. It ends with its standard input, and prints what the connections got.
pub(crate) fn run(options: &Options) -> Fallible<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counts = Arc::new(Counts::default());
    let begun = Instant::now();
    runtime.block_on(async {
        let bytes: Arc<[u8]> = Request::get(&options.endpoint).bytes().into();
        let place = Place::Port(options.port);
        let mut tasks = JoinSet::new();
        for _ in 0..options.size {
            let (counts, bytes, place) = (Arc::clone(&counts), Arc::clone(&bytes), place.clone());
            tasks.spawn(async move {
                loop {
                    ask_in_a_loop(&place, &bytes, &counts).await;
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

/// Ends when dropped.
pub(crate) struct Crowd {
    child: Child,
}

impl Crowd {
    pub(crate) fn start(size: usize, place: &Place, endpoint: &str) -> Fallible<Self> {
        let Place::Port(port) = place else { return Err("a crowd connects over TCP".into()) };
        let mut command = Command::new("nice");
        command
            .args(["-n", "19", "setpriv", "--pdeathsig", "KILL", "--"])
            .arg(std::env::current_exe()?)
            .args(["crowd", "--size", &size.to_string(), "--port", &port.to_string()])
            .args(["--endpoint", endpoint])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Ok(Self { child: command.spawn().map_err(|error| format!("nice: {error}"))? })
    }

    /// Ends it. How many requests a second Rails answered, and how many the gateway did.
    pub(crate) fn end(mut self) -> Fallible<String> {
        drop(self.child.stdin.take());
        let mut told = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            std::io::Read::read_to_string(&mut output, &mut told)?;
        }
        Ok(told.trim().to_owned())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until the connection ends.
async fn ask_in_a_loop(place: &Place, bytes: &[u8], counts: &Counts) {
    let Ok(mut stream) = connect(place).await else { return };
    let mut answer = Answer::new();
    let mut buffer = [0; 2048];
    while stream.write_all(bytes).await.is_ok() {
        answer.reset();
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) if answer.take(buffer.get(..count).unwrap_or_default()) => break,
                Ok(_) => {}
            }
        }
        if answer.status < 500 {
            counts.answered.fetch_add(1, Relaxed);
        } else {
            counts.refused.fetch_add(1, Relaxed);
            sleep(PAUSE).await;
        }
        if answer.closes {
            return;
        }
    }
}

/// Sends a request every so often, whether or not those before it were answered.
pub(crate) async fn callers(
    places: &[&Place],
    request: impl Fn(usize) -> Request,
    (every, count): (Duration, usize),
    limit: Duration,
) -> Vec<Outcome> {
    let mut tasks = JoinSet::new();
    let mut clock = interval(every);
    for (number, place) in places.iter().cycle().take(count).enumerate() {
        clock.tick().await;
        let (place, request) = ((*place).clone(), request(number));
        tasks.spawn(async move { ask(&place, &request, limit).await });
    }
    tasks.join_all().await
}

/// The times that half, nine in ten and ninety-nine in a hundred took at most, and the longest.
pub(crate) fn spread(outcomes: &[Outcome]) -> String {
    let mut times: Vec<Duration> = outcomes.iter().map(|outcome| outcome.took).collect();
    times.sort();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
    let told = |share| at(share).map_or_else(|| "–".to_owned(), |took| time(*took));
    format!("{} / {} / {} / {}", told(50), told(90), told(99), told(100))
}

/// How often each status, or none, was the outcome.
pub(crate) fn statuses(outcomes: &[Outcome]) -> String {
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    for outcome in outcomes {
        *counts.entry(outcome.status).or_default() += 1;
    }
    let told = |(status, count): (Option<u16>, usize)| {
        let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        format!("{count} × {status}")
    };
    counts.into_iter().map(told).collect::<Vec<_>>().join(", ")
}
