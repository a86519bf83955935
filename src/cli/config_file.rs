//! The option that names the configuration file, which most commands have.

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct ConfigFile {
    /// The configuration file, in TOML
    #[arg(short, long, value_name = "FILE", env = "RAILGATE_CONFIG", hide_env_values = true)]
    pub(super) config: PathBuf,
}
