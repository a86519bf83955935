//! The commands: their options, their output and their exit codes.

mod admin;
mod client;
mod config_file;
mod configuration;
mod demo;
mod doctor;
mod fleet;
mod health;
mod hook;
mod logging;
mod manual;
mod output;
mod run;
mod supervision;
mod token;
mod top;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::config_file::ConfigFile;

/// The gateway in front of GitLab Rails' internal API: verifies callers, answers the hot reads
/// from memory, and forwards the rest, bodies byte for byte.
#[derive(Debug, Parser)]
#[command(name = "railgate", version, arg_required_else_help = true)]
// Also without a terminal, whose width would be used.
#[command(max_term_width = 80)]
#[command(after_help = "First time here? `railgate demo` needs no configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a small sample GitLab and the gateway in front of it, and print what to try
    Demo(demo::Options),
    /// Run the gateway in front of a real Rails
    Run(ConfigFile),
    /// Print "ok", or every mistake in a configuration file
    Check(configuration::CheckOptions),
    /// Print the configuration in effect, or the schema of its file
    #[command(subcommand)]
    Config(configuration::Command),
    /// Test this machine, each server of Rails and a running gateway, and print what is wrong and what to
    /// do
    Doctor(doctor::Options),
    /// Drop cached answers of a running gateway
    Purge(admin::PurgeOptions),
    /// Show the cached answers of a running gateway for a key, an id or a user, or how many there are
    Inspect(admin::InspectOptions),
    /// Show the state of each server of Rails in a running gateway, or drain one
    Servers(admin::ServersOptions),
    /// Show how a running gateway is in its fleet, and who else is there
    Fleet(fleet::Options),
    /// Set up the System Hook by which GitLab notifies a gateway of changes
    #[command(subcommand)]
    Hook(hook::Command),
    /// Print "live" if the threads of a running gateway respond, else why not
    Health(health::Options),
    /// Show the figures of a running gateway again and again, until Ctrl-C
    Top(top::Options),
    /// Print a token as GitLab Shell or kas would send it, to try requests with curl
    Token(token::Options),
    /// Print the completions of a shell
    Completions(manual::CompletionsOptions),
    /// Print the man page, or write one for each command
    Man(manual::ManOptions),
}

/// Parses the command line and runs the command.
pub(crate) fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Demo(options) => demo::main(&options),
        Command::Run(file) => run::main(&file.config),
        Command::Check(options) => configuration::check(&options),
        Command::Config(command) => configuration::main(&command),
        Command::Doctor(options) => doctor::main(&options),
        Command::Purge(options) => admin::purge(options),
        Command::Inspect(options) => admin::inspect(options),
        Command::Servers(options) => admin::servers(options),
        Command::Fleet(options) => fleet::main(&options),
        Command::Hook(command) => hook::main(&command),
        Command::Health(options) => health::main(&options),
        Command::Top(options) => top::main(&options),
        Command::Token(options) => token::main(&options),
        Command::Completions(options) => manual::completions(&options, Arguments::command()),
        Command::Man(options) => manual::man(&options, Arguments::command()),
    }
}
