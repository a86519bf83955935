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
mod train;

use std::error;
use std::path::PathBuf;
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
    /// The railgate that is measured. By default the release build beside this program.
    #[arg(long, global = true, value_name = "FILE")]
    binary: Option<PathBuf>,
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
    /// Sends an instrumented railgate what callers send, and measures nothing: a profile for `deploy/build`.
    Train,
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
        None => measure(&cli, |binary| rounds::run(&cli.compare, binary)),
        Some(Command::Growth(options)) => measure(&cli, |binary| growth::run(options, binary)),
        Some(Command::Memory(options)) => measure(&cli, |binary| memory::run(options, binary)),
        Some(Command::Start(options)) => measure(&cli, |binary| start::run(options, binary)),
        Some(Command::Attacks(options)) => measure(&cli, |binary| attacks::run(options, binary)),
        Some(Command::Fleet(options)) => measure(&cli, |binary| fleet::run(options, binary)),
        Some(Command::Train) => measure(&cli, train::run),
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

/// Runs what starts the binary of railgate, and can be interrupted.
fn measure(cli: &Cli, run: impl FnOnce(PathBuf) -> Fallible<()>) -> Fallible<()> {
    let binary = match &cli.binary {
        Some(binary) => binary.canonicalize().map_err(|error| format!("{}: {error}", binary.display()))?,
        None => peers::release_build()?,
    };
    interrupt::install_handler()?;
    run(binary)
}
