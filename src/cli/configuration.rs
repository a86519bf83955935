//! `railgate check` and `railgate config`: what is in a configuration, and what can be.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use railgate::config::{self, GatewayConfig};
use railgate::fleet::acl::acl_line;
use railgate::gateway::fleet::fleet_keys;

use super::config_file::ConfigFile;
use super::output::{print_config_error, print_error, print_line, print_warning};

#[derive(Debug, clap::Args)]
pub(super) struct CheckOptions {
    /// The configuration file, in TOML
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "RAILGATE_CONFIG",
        hide_env_values = true,
        required_unless_present = "explain"
    )]
    config: Option<PathBuf>,
    /// Read no file, but print what a key does, its default and its range; or the keys of a section
    #[arg(long, value_name = "KEY")]
    explain: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the configuration in effect, and where each value comes from
    Show(ConfigFile),
    /// Print a JSON Schema of the configuration file, for editors
    Schema,
}

/// Exits 0 if the file can be used, despite warnings, and 1 if not.
pub(super) fn check(options: &CheckOptions) -> ExitCode {
    match (&options.explain, &options.config) {
        (Some(key), _) => match config::explain(key) {
            Ok(text) => print(&text),
            Err(error) => {
                print_error(&error);
                ExitCode::FAILURE
            }
        },
        (None, Some(file)) => check_file(file),
        (None, None) => ExitCode::FAILURE,
    }
}

fn check_file(file: &Path) -> ExitCode {
    match config::load(file) {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(print_warning);
            if let Some((fleet, acl)) = fleet(&loaded.config) {
                print_line(&format!("fleet {fleet}; what its user of Valkey has to be allowed:\n{acl}"));
            }
            print("ok")
        }
        Err(error) => {
            print_config_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// The name of the fleet, and the line that makes a user of Valkey for it.
fn fleet(config: &GatewayConfig) -> Option<(String, String)> {
    let user = config.fleet.as_ref()?.credential.user.as_deref().unwrap_or("railgate");
    let keys = fleet_keys(config)?;
    Some((keys.fleet().to_owned(), acl_line(user, keys.fleet())))
}

pub(super) fn main(command: &Command) -> ExitCode {
    match command {
        Command::Schema => print(&config::schema()),
        Command::Show(file) => match config::show(&file.config) {
            Ok(text) => print(&text),
            Err(error) => {
                print_config_error(&error);
                ExitCode::FAILURE
            }
        },
    }
}

fn print(text: &str) -> ExitCode {
    print_line(text);
    ExitCode::SUCCESS
}
