//! One short line for each request that reaches the gateway, for people who watch the demo.

use std::io;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use railgate::layer::observe::ACCESS_LOG;
use railgate::log::Counts;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::{API, COLUMNS};
use crate::cli::logging::{self, Lines};

pub(super) fn init(counts: &Arc<Counts>) -> io::Result<()> {
    let narrator = Narrator { lines: logging::start(counts)?, has_colours: logging::has_colours() };
    tracing_subscriber::registry().with(narrator).init();
    Ok(())
}

struct Narrator {
    lines: Arc<Lines>,
    has_colours: bool,
}

impl<S: Subscriber> Layer<S> for Narrator {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == ACCESS_LOG {
            let mut seen = Request::default();
            event.record(&mut seen);
            let line = seen.line(*event.metadata().level(), self.has_colours);
            self.lines.push(format!("{line}\n").as_bytes(), Level::INFO, false);
        }
    }
}

/// The fields of a request's log line that the narration needs.
#[derive(Clone, Debug, Default)]
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

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Request {
    /// The line, of at most [`COLUMNS`]. What the request was is cut for that, not what came of it.
    fn line(&self, level: Level, has_colours: bool) -> String {
        let (what, colour) = self.outcome(level);
        let style = if has_colours { Style::new().fg_color(Some(colour.into())) } else { Style::new() };
        let (begin, end) = (format!(" -> {}, ", self.status), format!(", {:.2} ms", self.duration_s * 1e3));
        let room = COLUMNS.saturating_sub(INDENT.len() + begin.len() + what.len() + end.len());
        let asked = cut(&format!("{} {}", self.method, shown(&self.uri)), room);
        format!("{INDENT}{asked}{begin}{style}{what}{style:#}{end}")
    }

    /// What came of the request, in ASCII, and its colour. The level says who is at fault for a failure.
    fn outcome(&self, level: Level) -> (String, AnsiColor) {
        let (what, colour) = match self.cache.as_str() {
            _ if !self.failure.is_empty() => {
                let what = if level == Level::INFO { "refused" } else { "failed" };
                let reason =
                    if self.reason.is_empty() { String::new() } else { format!(" ({})", self.reason) };
                return (format!("{what}: {}{reason}", self.failure), AnsiColor::Red);
            }
            "hit" => ("hit: answered from memory", AnsiColor::Green),
            "stale_while_revalidate" => ("hit: stale, Rails is asked anew", AnsiColor::Green),
            "stale_if_error" => ("hit: stale, since Rails fails", AnsiColor::Green),
            "shared" => ("miss: shared a request under way", AnsiColor::Yellow),
            "miss_stored" => ("miss: asked Rails, stored", AnsiColor::Yellow),
            "miss_unstored" | "alone" => ("miss: asked Rails, not stored", AnsiColor::Yellow),
            "never" | "bypass" => ("forwarded to Rails", AnsiColor::Cyan),
            _ => ("answered here", AnsiColor::Cyan),
        };
        (what.to_owned(), colour)
    }
}

const INDENT: &str = "  ";

/// A target without what is the same in all of them, and without what the log does not tell either.
fn shown(uri: &str) -> String {
    uri.strip_prefix(API).unwrap_or(uri).replace("[FILTERED]", "…")
}

/// The text in so many columns.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use railgate::cache::storable::NoStoreReason;
    use railgate::exchange::CacheOutcome;

    use super::*;

    fn request(cache: CacheOutcome) -> Request {
        Request {
            method: "GET".to_owned(),
            uri: "/api/v4/internal/authorized_keys?key=[FILTERED]".to_owned(),
            status: 200,
            duration_s: 0.000_123,
            cache: cache.as_str().to_owned(),
            ..Request::default()
        }
    }

    #[test]
    fn a_line_says_what_came_of_the_request() {
        for (cache, told) in [
            (CacheOutcome::Hit, "hit: answered from memory"),
            (CacheOutcome::StaleWhileRevalidate, "hit: stale, Rails is asked anew"),
            (CacheOutcome::StaleIfError, "hit: stale, since Rails fails"),
            (CacheOutcome::Stored, "miss: asked Rails, stored"),
            (CacheOutcome::Unstored(NoStoreReason::Status), "miss: asked Rails, not stored"),
            (CacheOutcome::Alone, "miss: asked Rails, not stored"),
            (CacheOutcome::Shared, "miss: shared a request under way"),
            (CacheOutcome::Never, "forwarded to Rails"),
            (CacheOutcome::Bypass, "forwarded to Rails"),
            (CacheOutcome::Unreached, "answered here"),
        ] {
            let line = request(cache).line(Level::INFO, false);
            assert_eq!(line, format!("  GET /authorized_keys?key=… -> 200, {told}, 0.12 ms"));
        }
        for (level, reason, told) in [
            (Level::INFO, "missing", "refused: unauthorized (missing)"),
            (Level::INFO, "", "refused: unauthorized"),
            (Level::WARN, "", "failed: unauthorized"),
            (Level::ERROR, "", "failed: unauthorized"),
        ] {
            let (failure, reason) = ("unauthorized".to_owned(), reason.to_owned());
            let failed = Request { failure, reason, ..request(CacheOutcome::Never) };
            assert!(failed.line(level, false).contains(&format!(" -> 200, {told}, 0.12 ms")), "{told}");
        }
    }

    #[test]
    fn a_line_has_eighty_columns_at_most_and_colours_where_they_are_wanted() {
        for uri in ["/", "/api/v4/internal/check", &"/check".repeat(24), &"é…".repeat(100)] {
            for method in ["GET", "ABCDEFGHIJKLMNOPQRST"] {
                for failure in ["", "not_configured", "unverified_bodies_full"] {
                    let long = Request {
                        uri: uri.to_owned(),
                        method: method.to_owned(),
                        failure: failure.to_owned(),
                        reason: "wrong_audience".to_owned(),
                        duration_s: 86_400.0,
                        ..request(CacheOutcome::Shared)
                    };
                    let plain = long.line(Level::INFO, false);
                    assert!(plain.chars().count() <= COLUMNS && !plain.contains('\x1b'), "{plain}");
                    let coloured = long.line(Level::INFO, true);
                    let colour = if failure.is_empty() { "\x1b[33m" } else { "\x1b[31m" };
                    assert!(coloured.contains(colour) && coloured.contains("\x1b[0m, "), "{coloured:?}");
                    assert_eq!(coloured.replace(colour, "").replace("\x1b[0m", ""), plain);
                }
            }
        }
    }
}
