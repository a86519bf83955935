//! The cost of operations of the gateway in instructions: a figure that does not depend on how busy the
//! machine is.
//!
//! Run it with `tests/bench/instructions`. The program starts itself again under valgrind, for each
//! operation once with N and once with 2N repetitions; the difference is the cost of N repetitions without
//! the start of a process. The accepted counts are in `instructions.baseline`.
//!
//! Compare the figures only with each other: they do not include the kernel's work, a vectorised instruction
//! counts like any other, and tokio's clock is that of the tests.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]
#![expect(clippy::cast_precision_loss, reason = "figures are rounded for people anyway")]

mod baseline;
mod counting;
#[expect(dead_code, reason = "the comparison uses the rest, too")]
mod credentials;
#[expect(dead_code, reason = "the comparison uses the rest, too")]
mod keys;
mod operations;
#[path = "load/response.rs"]
#[expect(dead_code, reason = "the load generator uses the rest, too")]
mod response;
#[path = "rails/responses.rs"]
#[expect(dead_code, reason = "the stand-in for Rails uses the rest, too")]
mod responses;
mod verdict;

use std::error::Error;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use crate::baseline::Baseline;
use crate::operations::{OPERATIONS, Operation};

/// As in the gateway: the allocator is a part of what an operation costs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Errors of benchmarks are texts for the person who runs them.
pub(crate) type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Counts the instructions of operations of the gateway, and compares them with the baseline.
#[derive(Parser)]
#[command(name = "tests/bench/instructions", args_conflicts_with_subcommands = true)]
struct Cli {
    /// Make the counts the new baseline. Say in the commit why they may be higher.
    #[arg(long)]
    accept: bool,
    /// Only these operations.
    #[arg(long, value_delimiter = ',', conflicts_with = "accept")]
    #[arg(value_parser = PossibleValuesParser::new(OPERATIONS.iter().map(|operation| operation.name)))]
    operations: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Repeats an operation so many times.
    #[command(hide = true)]
    Repeat { operation: String, times: u64 },
    /// Prints what the processor can do, as far as valgrind lets a program see it.
    #[command(hide = true)]
    Processor,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        None => count(&cli),
        Some(Command::Repeat { operation, times }) => {
            Operation::named(operation).and_then(|operation| operation.run(*times)).map(|()| true)
        }
        Some(Command::Processor) => {
            println!("{}", counting::processor());
            Ok(true)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Counts and prints. False if an operation became too expensive.
fn count(cli: &Cli) -> Fallible<bool> {
    // There may be no baseline yet.
    let accepted = if cli.accept { Baseline::read().unwrap_or_default() } else { Baseline::read()? };
    let circumstances = counting::circumstances()?;
    let mut counts = Vec::new();
    for operation in Operation::all_or(&cli.operations)? {
        eprintln!("counting: {}", operation.name);
        counts.push((operation, counting::count(operation)?));
    }
    verdict::print_table(&accepted, &counts);
    if cli.accept {
        Baseline::new(circumstances, &counts).write()?;
        println!("\nThis is the baseline from now on.");
        return Ok(true);
    }
    Ok(verdict::judge(&accepted, &circumstances, &counts))
}
