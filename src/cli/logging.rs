//! Where log lines go, and how they look.

mod json;
mod lines;

use std::io::IsTerminal as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use railgate::config::{Log, LogFormat};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::json::JsonLines;
use self::lines::Lines;

static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// Writes log lines to standard output from now on.
pub(super) fn init(log: &Log) -> std::io::Result<()> {
    let level = LevelFilter::from_level(log.level);
    match log.format {
        LogFormat::Json => {
            let lines = Lines::start()?;
            let lines = LINES.get_or_init(|| lines);
            tracing_subscriber::registry().with(level).with(JsonLines::new(Arc::clone(lines))).init();
        }
        // Colours are for people, not for files.
        LogFormat::Pretty => {
            let ansi = std::io::stdout().is_terminal();
            tracing_subscriber::fmt()
                .with_max_level(level)
                .with_target(false)
                .compact()
                .with_ansi(ansi)
                .init();
        }
    }
    Ok(())
}

/// Writes out what waits, before the process ends.
pub(super) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush();
    }
}

/// The same, but a log that nobody reads cannot keep the process from ending.
pub(super) fn flush_within(most: Duration) {
    let (done, is_done) = std::sync::mpsc::channel();
    let writing = std::thread::Builder::new().spawn(move || {
        flush();
        // Nobody waits any more if it took too long.
        let _ = done.send(());
    });
    if writing.is_ok() {
        let _ = is_done.recv_timeout(most);
    }
}
