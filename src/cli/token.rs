//! `railgate token`: a token as GitLab Shell or kas would send it, to try requests with curl.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use railgate::auth::{sign_kas_token, sign_shell_token};
use railgate::config;

use super::config_file::ConfigFile;
use super::output::{print_config_error, print_error, print_line};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Whose token: for the header Gitlab-Shell-Api-Request, or Gitlab-Kas-Api-Request
    caller: Caller,
    #[command(flatten)]
    file: ConfigFile,
    /// How many seconds it is valid, 1 to 3600
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=3600))]
    ttl: u16,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Caller {
    Shell,
    Kas,
}

/// Prints the token alone, so that it can be used as `$(railgate token shell)`.
pub(super) fn main(options: &Options) -> ExitCode {
    let auth = match config::load(&options.file.config) {
        Ok(loaded) => loaded.config.auth,
        Err(error) => {
            print_config_error(&error);
            return ExitCode::FAILURE;
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).as_ref().map_or(0, Duration::as_secs);
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let lifetime = i64::from(options.ttl);
    let token = match (options.caller, &auth.kas) {
        (Caller::Shell, _) => sign_shell_token(&auth.shell_secret, now, lifetime),
        (Caller::Kas, Some(kas)) => sign_kas_token(&kas.secret, kas.audience.as_deref(), now, lifetime),
        (Caller::Kas, None) => {
            print_error("no token of kas can be signed: the configuration has no [auth.kas]");
            return ExitCode::FAILURE;
        }
    };
    if let Some(token) = token {
        print_line(&token);
        ExitCode::SUCCESS
    } else {
        print_error("the token cannot be signed with this secret");
        ExitCode::FAILURE
    }
}
