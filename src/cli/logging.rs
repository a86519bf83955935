//! Where log lines go, and how they look.
//!
//! A thread that logs only adds a line to a queue ([`lines`]); one thread writes it ([`writer`]).

mod json;
mod lines;
mod panics;
mod pretty;
mod suppress;
mod writer;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use railgate::config::{Log, LogFormat};
use railgate::layer::observe::ACCESS_LOG;
use railgate::log::Counts;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::json::JsonLines;
use self::lines::BOUNDS;
pub(super) use self::lines::Lines;
use self::pretty::PrettyLines;
use self::suppress::{Suppress, SuppressLayer};

/// The target of events that may come at once in any number, since nothing from outside makes them.
pub(super) const UNLIMITED: &str = "railgate::log";

static RUNNING: OnceLock<Running> = OnceLock::new();

struct Running {
    lines: Arc<Lines>,
    suppress: Arc<Suppress>,
}

/// Writes log lines to standard output from now on, panics included. Those that are left out are counted.
pub(super) fn init(log: &Log, counts: &Arc<Counts>) -> std::io::Result<()> {
    let Running { lines, suppress } = run(counts)?;
    let (lines, suppress) = (Arc::clone(lines), Arc::clone(suppress));
    let subscriber =
        tracing_subscriber::registry().with(LevelFilter::from_level(log.level)).with(SuppressLayer(suppress));
    match log.format {
        LogFormat::Json => subscriber.with(JsonLines::new(lines)).init(),
        LogFormat::Pretty => {
            let pretty = tracing_subscriber::fmt::layer()
                .compact()
                .with_target(false)
                .with_ansi(has_colours())
                // It would write them to standard error.
                .log_internal_errors(false)
                .with_writer(PrettyLines(lines));
            subscriber.with(pretty).init();
        }
    }
    panics::log();
    Ok(())
}

/// Whether standard output takes colours: a terminal does, unless `NO_COLOR` is set. So it is with `--help`.
pub(super) fn has_colours() -> bool {
    AutoStream::choice(&std::io::stdout()) != ColorChoice::Never
}

/// Starts the thread that writes, for lines that are made elsewhere.
pub(super) fn start(counts: &Arc<Counts>) -> std::io::Result<Arc<Lines>> {
    Ok(Arc::clone(&run(counts)?.lines))
}

fn run(counts: &Arc<Counts>) -> std::io::Result<&'static Running> {
    let lines = Arc::new(Lines::new(BOUNDS, Arc::clone(counts)));
    let suppress = Arc::new(Suppress::new(Arc::clone(counts)));
    writer::start(Arc::clone(&lines), Arc::clone(&suppress))?;
    Ok(RUNNING.get_or_init(|| Running { lines, suppress }))
}

/// No reader waits for requests in which neither gateway nor Rails is at fault.
fn can_wait(metadata: &Metadata<'_>) -> bool {
    metadata.target() == ACCESS_LOG && *metadata.level() >= Level::INFO
}

/// How long the log waits at the end for a reader that has stopped.
const PAUSE: Duration = Duration::from_millis(500);

/// Writes out what waits, before the process ends; for `most` at most, and not for as long if it is not read.
pub(super) fn finish(most: Duration) {
    if let Some(Running { lines, suppress }) = RUNNING.get() {
        suppress.tell_all();
        lines.finish(PAUSE, most);
    }
}
