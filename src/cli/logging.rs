//! The log: its lines go to standard output, as JSON or for people.
//!
//! A thread that logs only adds a line to a queue ([`queue`]); one thread writes them ([`writer`]).

mod events;
mod format;
mod json;
mod level;
mod panics;
mod pretty;
mod queue;
mod repeat_filter;
mod writer;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use railgate::config::LogSettings;
use railgate::log::{LogCounters, LogFormat};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub(super) use self::events::UNLIMITED;
use self::format::FormatLayer;
use self::json::JsonLayer;
use self::level::LevelLayer;
pub(super) use self::queue::LogQueue;
use self::queue::QUEUE_LIMITS;
use self::repeat_filter::{RepeatFilter, RepeatFilterLayer};

static RUNNING: OnceLock<Running> = OnceLock::new();

struct Running {
    queue: Arc<LogQueue>,
    filter: Arc<RepeatFilter>,
}

/// Writes the log to standard output from now on, panics included. Lines that are left out are counted.
pub(super) fn init(log: &LogSettings, counts: &Arc<LogCounters>) -> std::io::Result<()> {
    counts.switch.set_level(log.level);
    counts.switch.set_format(log.format);
    let Running { queue, filter } = run(counts)?;
    let (level, repeated) = (LevelLayer(Arc::clone(counts)), RepeatFilterLayer(Arc::clone(filter)));
    let json = FormatLayer::new(JsonLayer::new(Arc::clone(queue)), LogFormat::Json, counts);
    let pretty = pretty::layer(Arc::clone(queue), has_colours());
    let pretty = FormatLayer::new(pretty, LogFormat::Pretty, counts);
    tracing_subscriber::registry().with(level).with(repeated).with(json).with(pretty).init();
    panics::log();
    Ok(())
}

/// Whether standard output gets colours: a terminal does, unless `NO_COLOR` is set, as with `--help`.
pub(super) fn has_colours() -> bool {
    AutoStream::choice(&std::io::stdout()) != ColorChoice::Never
}

/// Starts the writer alone, for lines that are formatted elsewhere.
pub(super) fn start(counts: &Arc<LogCounters>) -> std::io::Result<Arc<LogQueue>> {
    Ok(Arc::clone(&run(counts)?.queue))
}

fn run(counts: &Arc<LogCounters>) -> std::io::Result<&'static Running> {
    let queue = Arc::new(LogQueue::new(QUEUE_LIMITS, Arc::clone(counts)));
    let filter = Arc::new(RepeatFilter::new(Arc::clone(counts)));
    writer::start(Arc::clone(&queue), Arc::clone(&filter))?;
    Ok(RUNNING.get_or_init(|| Running { queue, filter }))
}

/// How long the last lines wait for a reader that has stopped reading.
const STALL_TIMEOUT: Duration = Duration::from_millis(500);

/// Writes the waiting lines before the process ends, within `timeout`, or less if they are not read.
pub(super) fn flush(timeout: Duration) {
    if let Some(Running { queue, filter }) = RUNNING.get() {
        filter.report_all();
        queue.flush(STALL_TIMEOUT, timeout);
    }
}
