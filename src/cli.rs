//! The commands: what they are called, what they print, and how they exit. No logic.

mod client;
mod demo;
mod doctor;
mod hook;
mod logging;
mod operate;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The gateway in front of GitLab Rails' internal API: verifies callers, answers the hot reads
/// from memory, and forwards the rest, bodies byte for byte.
#[derive(Debug, Parser)]
#[command(name = "railgate", version, arg_required_else_help = true)]
// Also where there is no terminal to ask for its width.
#[command(max_term_width = 80)]
#[command(after_help = "First time here? `railgate demo` needs no configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a small sample GitLab, the gateway in front of it, and print what to try
    Demo(demo::Options),
    /// Run the gateway in front of a real Rails
    Run(ConfigFile),
    /// Say "ok", or everything that is wrong with a configuration file
    Check(ConfigFile),
    /// Ask each server of Rails, and say what is wrong and what to do
    Doctor(ConfigFile),
    /// Drop answers that a running gateway has in memory
    Purge(operate::Purge),
    /// Show what a running gateway has in memory: of a key, an id or a user, or how much in all
    Inspect(operate::Inspect),
    /// Show the servers of Rails as a running gateway sees them, or drain one
    Servers(operate::Servers),
    /// What GitLab has to know to tell a gateway of changes
    #[command(subcommand)]
    Hook(hook::Command),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file, in TOML
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

/// Parses the command line and runs the command.
pub(crate) fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Demo(options) => demo::main(&options),
        Command::Run(file) => run::main(&file.config),
        Command::Check(file) => check(&file.config),
        Command::Doctor(file) => doctor::main(&file.config),
        Command::Purge(options) => operate::purge(options),
        Command::Inspect(options) => operate::inspect(options),
        Command::Servers(options) => operate::servers(options),
        Command::Hook(command) => hook::main(&command),
    }
}

/// Exits 0 if the file can be used, 1 if not; warnings alone do not fail.
fn check(file: &std::path::Path) -> ExitCode {
    match railgate::config::load(file) {
        Ok(loaded) => {
            for warning in loaded.warnings {
                say_error(&format!("warning: {warning}"));
            }
            say("ok");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            say_error(&problems.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Prints a line to standard output; a closed pipe is no reason to panic.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn say_error(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
