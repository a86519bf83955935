//! Where log lines go, and how they look.

use std::io::IsTerminal as _;

use railgate::config::{Log, LogFormat};
use tracing_subscriber::filter::LevelFilter;

/// Writes log lines to standard output from now on.
pub(super) fn init(log: &Log) {
    let subscriber =
        tracing_subscriber::fmt().with_max_level(LevelFilter::from_level(log.level)).with_target(false);
    match log.format {
        LogFormat::Json => {
            subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
        // Colours are for people, not for files.
        LogFormat::Pretty => subscriber.compact().with_ansi(std::io::stdout().is_terminal()).init(),
    }
}
