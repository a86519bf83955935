//! One short line for each request, for somebody who watches the demo.

use std::fmt::{self, Write as _};
use std::io;
use std::sync::Arc;

use railgate::layer::observe::ACCESS_LOG;
use railgate::log::Counts;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::logging::{self, Lines};

pub(super) fn init(counts: &Arc<Counts>) -> io::Result<()> {
    tracing_subscriber::registry().with(Narrator { lines: logging::start(counts)? }).init();
    Ok(())
}

struct Narrator {
    lines: Arc<Lines>,
}

impl<S: Subscriber> Layer<S> for Narrator {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == ACCESS_LOG {
            let mut seen = Request::default();
            event.record(&mut seen);
            self.lines.push(format!("{seen}\n").as_bytes(), Level::INFO, false);
        }
    }
}

/// The fields of a request's log line that the narration needs.
#[derive(Debug, Default)]
struct Request {
    method: String,
    uri: String,
    status: u64,
    duration_s: f64,
    cache: String,
    failure: String,
    reason: String,
}

impl Visit for Request {
    fn record_str(&mut self, field: &Field, value: &str) {
        let place = match field.name() {
            "method" => &mut self.method,
            "uri" => &mut self.uri,
            "cache" => &mut self.cache,
            "failure" => &mut self.failure,
            "reason" => &mut self.reason,
            _ => return,
        };
        value.clone_into(place);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "status" {
            self.status = value;
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "duration_s" {
            self.duration_s = value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.cache.as_str() {
            "hit" => "hit: answered from memory",
            "shared" => "miss: shared another caller's request",
            "miss_stored" => "miss: asked Rails, stored",
            "miss_unstored" => "miss: asked Rails, not stored",
            "none" => "refused here",
            _ => "forwarded to Rails",
        };
        write!(
            f,
            "  {:<4} {} -> {}  {what}, {:.2} ms",
            self.method,
            self.uri,
            self.status,
            self.duration_s * 1e3
        )?;
        if !self.failure.is_empty() {
            f.write_str(" (")?;
            f.write_str(&self.failure)?;
            if !self.reason.is_empty() {
                write!(f, ": {}", self.reason)?;
            }
            f.write_char(')')?;
        }
        Ok(())
    }
}
