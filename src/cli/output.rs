//! Lines for people, on standard output and standard error.

use std::io::Write as _;

use railgate::config::{ConfigError, Diagnostic};

/// Writes a line to standard output. Unlike `println!`, does not panic if the pipe is closed.
pub(super) fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

pub(super) fn print_error(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Every mistake of a configuration, on standard error, with the line of the file and a mark below the key.
pub(super) fn print_config_error(error: &ConfigError) {
    for diagnostic in &error.0 {
        print_diagnostic("", diagnostic);
    }
}

pub(super) fn print_warning(warning: &Diagnostic) {
    print_diagnostic("warning: ", warning);
}

fn print_diagnostic(kind: &str, diagnostic: &Diagnostic) {
    print_error(&format!("{kind}{diagnostic}"));
    if let Some(excerpt) = &diagnostic.excerpt {
        print_error(&excerpt.to_string());
    }
}
