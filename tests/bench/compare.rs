//! The gateway beside nginx, `HAProxy`, Varnish and bare hyper, doing the same job on the same core.
//!
//! Run it with `tests/bench/compare`, which installs and builds what it needs. Tables go to standard
//! output as Markdown, progress to standard error. The program starts itself again as load generator,
//! as Rails and as bare hyper, each a process of its own that is pinned to a core.

#![expect(clippy::print_stdout, reason = "the tables are what this program is for")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are rounded for people anyway"
)]

mod ask;
mod check;
mod credentials;
mod floor;
mod growth;
mod interrupt;
mod keys;
mod load;
mod machine;
mod marks;
mod memory;
mod peers;
mod process;
mod rails;
mod report;
mod rounds;
mod scenarios;
mod serve;
mod stage;
mod start;
mod strangers;

use std::error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What can go wrong in a benchmark is told to the person who started it, as text.
pub(crate) type Fallible<T> = Result<T, Error>;
pub(crate) type Error = Box<dyn error::Error + Send + Sync>;

/// railgate beside its peers: CPU time per request, ratios, latency.
#[derive(Parser)]
#[command(name = "tests/bench/compare", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    compare: rounds::Options,
    #[command(subcommand)]
    command: Option<Command>,
    /// What `cargo bench` passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// What a request costs railgate as entries, connections, workers, misses and Rails' latency grow.
    Growth(growth::Options),
    /// Memory that a kept answer takes.
    Memory(memory::Options),
    /// From exec to the first answer from memory; idle memory; size of the binary.
    Start(start::Options),
    /// What clients without a credential can do to the others.
    Strangers(strangers::Options),
    #[command(hide = true)]
    Crowd(strangers::crowd::Options),
    #[command(hide = true)]
    Load(load::Options),
    #[command(hide = true)]
    Rails(rails::Options),
    #[command(hide = true)]
    Floor(floor::Options),
    #[command(hide = true)]
    Spin,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.bench {
        eprintln!("compare: run it with tests/bench/compare, which builds the gateway as it is released");
        return ExitCode::SUCCESS;
    }
    let outcome = match &cli.command {
        None => interrupt::watch().and_then(|()| rounds::run(&cli.compare)),
        Some(Command::Growth(options)) => interrupt::watch().and_then(|()| growth::run(options)),
        Some(Command::Memory(options)) => interrupt::watch().and_then(|()| memory::run(options)),
        Some(Command::Start(options)) => interrupt::watch().and_then(|()| start::run(options)),
        Some(Command::Strangers(options)) => interrupt::watch().and_then(|()| strangers::run(options)),
        Some(Command::Crowd(options)) => strangers::crowd::run(options),
        Some(Command::Load(options)) => load::run(options),
        Some(Command::Rails(options)) => rails::run(options),
        Some(Command::Floor(options)) => floor::run(options),
        Some(Command::Spin) => machine::spin(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}
