//! Lines for people, on standard output and standard error.

use std::io::Write as _;

use railgate::config::ConfigError;

/// Writes a line to standard output. Unlike `println!`, does not panic if the pipe is closed.
pub(super) fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

pub(super) fn print_error(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Every mistake of a configuration, on standard error.
pub(super) fn print_config_error(error: &ConfigError) {
    print_error(&error.to_string());
}
