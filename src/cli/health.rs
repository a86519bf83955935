//! `railgate health`: whether a running gateway is well, for images without curl and for scripts.

use std::process::ExitCode;
use std::time::Duration;

use http::{Method, StatusCode};
use railgate::config;
use railgate::upstream::Upstream;

use super::client;
use super::config_file::ConfigFile;
use super::output::{print_config_error, print_error, print_line};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Ask whether it accepts requests, not only whether its threads respond
    #[arg(long)]
    ready: bool,
}

/// For the whole answer. Container engines wait for 30 s.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Prints one line. Exits 0 if the gateway is well.
pub(super) fn main(options: &Options) -> ExitCode {
    let (path, name) = if options.ready { ("/ready", "ready") } else { ("/live", "live") };
    let admin = match config::load_admin(&options.file.config) {
        Ok(admin) => admin,
        Err(error) => {
            print_config_error(&error);
            return ExitCode::FAILURE;
        }
    };
    let asked = client::block_on(async {
        let gateway = client::admin_listener(&admin.address)?;
        let response = tokio::time::timeout(TIMEOUT, ask(&gateway, path)).await;
        response.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
    });
    match asked {
        Ok((StatusCode::OK, _)) => {
            print_line(name);
            ExitCode::SUCCESS
        }
        Ok((status, said)) => {
            print_error(&format!("not {name}: {status} {said}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            print_error(&format!("not {name}: admin.address {}: {error}", admin.address));
            ExitCode::FAILURE
        }
    }
}

async fn ask(gateway: &Upstream, path: &str) -> Result<(StatusCode, String), String> {
    let (status, said) = client::send(gateway, Method::GET, path, None, "").await?;
    Ok((status, if said.is_null() { String::new() } else { said.to_string() }))
}
