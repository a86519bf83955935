//! Attacks of unauthenticated clients against the gateway, and their measured effect on others.
//!
//! Nothing is judged here. The tests assert what has to hold; these are the figures behind it, before and
//! after a change (`--binary`). All traffic goes to 127.0.0.1 and unix sockets, with a bounded number of
//! connections and for a bounded time.

pub(crate) mod background_load;
mod bodies;
mod client;
mod fake_rails;
mod gateway;
mod hang_up;
mod log;
mod operators;
mod overload;
pub(crate) mod puma;
mod waiting;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use self::puma::PumaSettings;
use crate::machine::Scratch;
use crate::{Fallible, interrupt};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these attacks.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Attack>,
    /// The threads of each real Rails.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..))]
    threads: u8,
    /// Configures `upstream.threads`, as an operator should.
    #[arg(long)]
    tell: bool,
    /// Disables Ruby's garbage collection: a collection takes up to 70 ms, and they become more frequent
    /// with more requests, from any client.
    #[arg(long)]
    gc_off: bool,
}

/// What all attacks use.
pub(crate) struct AttackEnvironment {
    binary: PathBuf,
    puma: PumaSettings,
    tell: bool,
    scratch: Scratch,
}

impl AttackEnvironment {
    /// The keys for `[upstream]` about a real Rails.
    fn summary(&self) -> String {
        if self.tell { format!("threads = {}", self.puma.threads) } else { String::new() }
    }
}

/// Pairs of what was measured and the figure.
pub(crate) type Figures = Vec<(String, String)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Attack {
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

impl Attack {
    fn description(self) -> &'static str {
        match self {
            Self::Flood => "1,000 connections request an unknown endpoint in a loop; two real Rails",
            Self::Revoked => "the same with 900 connections, while a cached key is deleted in Rails",
            Self::Signatures => "a hook of 1 MiB with a signature header of 7,500 words",
            Self::Operators => "64 idle connections each to the admin and the hooks listener",
            Self::Connections => "250 connections stay open, with a limit of 200",
            Self::Away => "connections send requests in a loop while Rails is away",
            Self::HangUp => "20 clients each send a request, then close the connection at once",
            Self::Json => "POST /allowed with 1 MiB of JSON",
            Self::Forms => "66 forms of 1 MiB that stop before their last byte",
            Self::UnreadBodies => "500 connections send bodies that Rails does not read",
            Self::LogLine => "a query of 10,200 `&`; a User-Agent of 20,000 bytes",
            Self::LogStalled => "5,000 requests while standard output is not read",
            Self::Files => "1,100 idle connections, with a limit of 1,024 open files",
            Self::Resets => "(a Rails that reads each request and then resets the connection)",
            Self::Interim => "(a Rails that answers with interim responses (1xx) for ever)",
            Self::Chunks => "POST of 1,000,000 chunks of one byte",
        }
    }

    async fn measure(self, environment: &AttackEnvironment) -> Fallible<Figures> {
        match self {
            Self::Flood => overload::beside_callers(environment).await,
            Self::Revoked => overload::beside_a_revoked_key(environment).await,
            Self::Signatures => operators::signatures(environment).await,
            Self::Operators => operators::idle_connections(environment).await,
            Self::Connections => waiting::open_connections(environment).await,
            Self::Away => waiting::rails_is_away(environment).await,
            Self::HangUp => hang_up::hang_up(environment).await,
            Self::Json => bodies::json(environment).await,
            Self::Forms => bodies::stalled_forms(environment).await,
            Self::UnreadBodies => bodies::unread(environment).await,
            Self::LogLine => log::length(environment).await,
            Self::LogStalled => log::stalled(environment).await,
            Self::Files => operators::files(environment).await,
            Self::Resets => waiting::resets(environment).await,
            Self::Interim => bodies::interim(environment).await,
            Self::Chunks => bodies::chunks(environment).await,
        }
    }
}

pub(crate) fn run(options: &Options, binary: PathBuf) -> Fallible<()> {
    let Options { threads, tell, gc_off, .. } = *options;
    let puma = PumaSettings { threads, gc_off };
    let environment = AttackEnvironment { binary, puma, tell, scratch: Scratch::new()? };
    let rows: &[Attack] = if options.only.is_empty() { Attack::value_variants() } else { &options.only };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("\n### What an unauthenticated client can do\n");
    println!("| attack | what was measured | figure |\n|---|---|--:|");
    let mut failed = Vec::new();
    for row in rows {
        eprintln!("{}", row.description());
        let measured = runtime.block_on(async {
            tokio::select! {
                measured = row.measure(&environment) => Ok(measured),
                error = interrupted() => Err(error),
            }
        })?;
        let figures = measured.unwrap_or_else(|error| {
            failed.push(format!("{row:?}: {error}"));
            vec![("could not be measured".to_owned(), "–".to_owned())]
        });
        let mut attack = row.description();
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

/// One such pair.
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
