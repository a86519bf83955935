//! What a client that shows no credential can do to those that show one: each attack, run against the
//! gateway, and what was measured.
//!
//! Nothing is judged here. The tests say what has to hold; these are the figures behind it, before and
//! after a change (`--binary`). All of it goes to 127.0.0.1 and unix sockets, with a bounded number of
//! connections and for a bounded time.

mod bodies;
mod client;
pub(crate) mod crowd;
mod fake_rails;
mod flood;
mod gateway;
mod hang_up;
mod log;
mod operators;
mod puma;
mod waiting;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use crate::machine::Scratch;
use crate::{Fallible, interrupt, peers};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The gateway to attack. Without it, the one that was built along with this.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Only these rows.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Row>,
    /// How many requests each real Rails answers at one time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..))]
    threads: u8,
    /// Tells the gateway so (`upstream.threads`), as an operator should.
    #[arg(long)]
    tell: bool,
    /// Rails collects no garbage: a collection takes up to 70 ms, and there are more of them the more
    /// requests come, from any client.
    #[arg(long)]
    gc_off: bool,
}

/// What the attacks stand on.
pub(crate) struct Ground {
    binary: PathBuf,
    threads: u8,
    tell: bool,
    gc_off: bool,
    scratch: Scratch,
}

impl Ground {
    /// What the gateway is told of a real Rails.
    fn told(&self) -> String {
        if self.tell { format!("threads = {}", self.threads) } else { String::new() }
    }
}

/// What was measured, and the figure.
pub(crate) type Figures = Vec<(String, String)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    Flood,
    Revoked,
    Signatures,
    Operators,
    Connections,
    Away,
    HangUp,
    Json,
    Forms,
    UnreadBodies,
    LogLine,
    LogStalled,
    Files,
    Resets,
    Interim,
    Chunks,
}

impl Row {
    fn attack(self) -> &'static str {
        match self {
            Self::Flood => "1,000 connections ask for an unknown endpoint in a loop; two real Rails",
            Self::Revoked => "900 connections do, while a key that was in memory is deleted in Rails",
            Self::Signatures => "a hook of 1 MiB with a signature header of 7,500 words",
            Self::Operators => "64 idle connections each to the admin and the hooks listener",
            Self::Connections => "250 connections stay open, where 200 may",
            Self::Away => "connections ask in a loop while Rails is away",
            Self::HangUp => "20 clients each send a request, then close the connection at once",
            Self::Json => "POST /allowed with 1 MiB of JSON",
            Self::Forms => "66 forms of 1 MiB that stop before their last byte",
            Self::UnreadBodies => "500 connections send bodies that Rails does not read",
            Self::LogLine => "a query of 10,200 `&`; a User-Agent of 20,000 bytes",
            Self::LogStalled => "5,000 requests while what is written to standard output is not read",
            Self::Files => "1,100 idle connections, where 1,024 files may be open",
            Self::Resets => "(a Rails that reads each request and then resets the connection)",
            Self::Interim => "(a Rails that answers with interim responses (1xx) for ever)",
            Self::Chunks => "POST of 1,000,000 chunks of one byte",
        }
    }

    async fn measure(self, ground: &Ground) -> Fallible<Figures> {
        match self {
            Self::Flood => flood::beside_callers(ground).await,
            Self::Revoked => flood::beside_a_revoked_key(ground).await,
            Self::Signatures => operators::signatures(ground).await,
            Self::Operators => operators::idle_connections(ground).await,
            Self::Connections => waiting::open_connections(ground).await,
            Self::Away => waiting::rails_is_away(ground).await,
            Self::HangUp => hang_up::hang_up(ground).await,
            Self::Json => bodies::json(ground).await,
            Self::Forms => bodies::stalled_forms(ground).await,
            Self::UnreadBodies => bodies::unread(ground).await,
            Self::LogLine => log::length(ground).await,
            Self::LogStalled => log::stalled(ground).await,
            Self::Files => operators::files(ground).await,
            Self::Resets => waiting::resets(ground).await,
            Self::Interim => bodies::interim(ground).await,
            Self::Chunks => bodies::chunks(ground).await,
        }
    }
}

pub(crate) fn run(options: &Options) -> Fallible<()> {
    let binary = match &options.binary {
        Some(binary) => binary.canonicalize().map_err(|error| format!("{}: {error}", binary.display()))?,
        None => peers::railgate()?,
    };
    let Options { threads, tell, gc_off, .. } = *options;
    let ground = Ground { binary, threads, tell, gc_off, scratch: Scratch::new()? };
    let rows: &[Row] = if options.only.is_empty() { Row::value_variants() } else { &options.only };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("\n### What a client without a credential can do\n");
    println!("| attack | what was measured | figure |\n|---|---|--:|");
    let mut failed = Vec::new();
    for row in rows {
        eprintln!("{}", row.attack());
        let measured = runtime.block_on(async {
            tokio::select! {
                measured = row.measure(&ground) => Ok(measured),
                error = interrupted() => Err(error),
            }
        })?;
        let figures = measured.unwrap_or_else(|error| {
            failed.push(format!("{row:?}: {error}"));
            vec![("could not be measured".to_owned(), "–".to_owned())]
        });
        let mut attack = row.attack();
        for (what, figure) in figures {
            println!("| {attack} | {what} | {figure} |");
            attack = "";
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
}

async fn interrupted() -> crate::Error {
    loop {
        if let Err(error) = interrupt::pause(Duration::ZERO) {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A line of what was measured.
fn figure(what: impl Into<String>, figure: impl Into<String>) -> (String, String) {
    (what.into(), figure.into())
}

fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}
