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

mod attacks;
mod bare_hyper;
mod check;
mod credentials;
mod environment;
mod fleet;
mod goals;
mod growth;
mod http_client;
mod interrupt;
mod keys;
mod load;
mod machine;
mod memory;
mod peers;
mod process;
mod rails;
mod report;
mod rounds;
mod scenarios;
mod serve;
mod start;

use std::error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Errors of benchmarks are texts for the person who runs them.
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
    /// Memory of a cache entry.
    Memory(memory::Options),
    /// Time from exec to the first cache hit; idle memory; size of the binary.
    Start(start::Options),
    /// What unauthenticated clients can do to the others.
    #[command(alias = "strangers")]
    Attacks(attacks::Options),
    /// What it takes gateways to hear each other and to share answers.
    Fleet(fleet::Options),
    #[command(hide = true)]
    BackgroundLoad(attacks::background_load::Options),
    #[command(hide = true)]
    Load(load::Options),
    #[command(hide = true)]
    Rails(rails::Options),
    #[command(hide = true)]
    BareHyper(bare_hyper::Options),
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
        None => interrupt::install_handler().and_then(|()| rounds::run(&cli.compare)),
        Some(Command::Growth(options)) => interrupt::install_handler().and_then(|()| growth::run(options)),
        Some(Command::Memory(options)) => interrupt::install_handler().and_then(|()| memory::run(options)),
        Some(Command::Start(options)) => interrupt::install_handler().and_then(|()| start::run(options)),
        Some(Command::Attacks(options)) => interrupt::install_handler().and_then(|()| attacks::run(options)),
        Some(Command::Fleet(options)) => interrupt::install_handler().and_then(|()| fleet::run(options)),
        Some(Command::BackgroundLoad(options)) => attacks::background_load::run(options),
        Some(Command::Load(options)) => load::run(options),
        Some(Command::Rails(options)) => rails::run(options),
        Some(Command::BareHyper(options)) => bare_hyper::run(options),
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
