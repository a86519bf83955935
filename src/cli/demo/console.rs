//! One short line for each request that reaches the gateway, in place of the log.

use std::io;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use railgate::layer::observe::ACCESS_LOG;
use railgate::log::LogCounters;
use railgate::route::PREFIX;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::logging::{self, LogQueue};

/// The usual width of a terminal.
pub(super) const COLUMNS: usize = 80;

pub(super) fn init(counts: &Arc<LogCounters>) -> io::Result<()> {
    let printer = RequestPrinter { queue: logging::start(counts)?, has_colours: logging::has_colours() };
    tracing_subscriber::registry().with(printer).init();
    Ok(())
}

struct RequestPrinter {
    queue: Arc<LogQueue>,
    has_colours: bool,
}

impl<S: Subscriber> Layer<S> for RequestPrinter {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == ACCESS_LOG {
            let mut request = RequestSummary::default();
            event.record(&mut request);
            let line = request.line(*event.metadata().level(), self.has_colours);
            self.queue.push(format!("{line}\n").as_bytes(), Level::INFO, false);
        }
    }
}

/// The fields of a request's log line that are shown.
#[derive(Clone, Debug, Default)]
struct RequestSummary {
    method: String,
    uri: String,
    status: u64,
    duration_s: f64,
    cache: String,
    failure: String,
    reason: String,
}

impl Visit for RequestSummary {
    fn record_str(&mut self, field: &Field, value: &str) {
        let target = match field.name() {
            "method" => &mut self.method,
            "uri" => &mut self.uri,
            "cache" => &mut self.cache,
            "failure" => &mut self.failure,
            "reason" => &mut self.reason,
            _ => return,
        };
        value.clone_into(target);
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

impl RequestSummary {
    /// The line, of at most [`COLUMNS`]. For that, the request is cut, not its outcome.
    fn line(&self, level: Level, has_colours: bool) -> String {
        let (outcome, colour) = self.outcome(level);
        let style = if has_colours { Style::new().fg_color(Some(colour.into())) } else { Style::new() };
        let (status, duration) =
            (format!(" -> {}, ", self.status), format!(", {:.2} ms", self.duration_s * 1e3));
        let room = COLUMNS.saturating_sub(INDENT.len() + status.len() + outcome.len() + duration.len());
        let request = cut(&format!("{} {}", self.method, shown(&self.uri)), room);
        format!("{INDENT}{request}{status}{style}{outcome}{style:#}{duration}")
    }

    /// The outcome in ASCII, and its colour. The level shows who is at fault for a failure.
    fn outcome(&self, level: Level) -> (String, AnsiColor) {
        let (outcome, colour) = match self.cache.as_str() {
            _ if !self.failure.is_empty() => {
                let word = if level == Level::INFO { "refused" } else { "failed" };
                let reason =
                    if self.reason.is_empty() { String::new() } else { format!(" ({})", self.reason) };
                return (format!("{word}: {}{reason}", self.failure), AnsiColor::Red);
            }
            "hit" => ("hit: answered from memory", AnsiColor::Green),
            "stale_while_revalidate" => ("hit: stale, refreshed from Rails", AnsiColor::Green),
            "stale_if_error" => ("hit: stale, since Rails fails", AnsiColor::Green),
            "fleet" => ("hit: answered by the fleet", AnsiColor::Green),
            "shared" => ("miss: shared a pending request", AnsiColor::Yellow),
            "miss_stored" => ("miss: asked Rails, stored", AnsiColor::Yellow),
            "miss_unstored" | "alone" => ("miss: asked Rails, not stored", AnsiColor::Yellow),
            "never" | "bypass" => ("forwarded to Rails", AnsiColor::Cyan),
            _ => ("answered here", AnsiColor::Cyan),
        };
        (outcome.to_owned(), colour)
    }
}

const INDENT: &str = "  ";

/// A target without the common prefix, and with `…` for values that the log hides.
fn shown(uri: &str) -> String {
    uri.strip_prefix(PREFIX).unwrap_or(uri).replace("[FILTERED]", "…")
}

/// The text in at most so many columns.
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

    fn request(cache: CacheOutcome) -> RequestSummary {
        RequestSummary {
            method: "GET".to_owned(),
            uri: "/api/v4/internal/authorized_keys?key=[FILTERED]".to_owned(),
            status: 200,
            duration_s: 0.000_123,
            cache: cache.as_str().to_owned(),
            ..RequestSummary::default()
        }
    }

    #[test]
    fn a_line_has_the_outcome_of_the_request() {
        for (cache, outcome) in [
            (CacheOutcome::Hit, "hit: answered from memory"),
            (CacheOutcome::StaleWhileRevalidate, "hit: stale, refreshed from Rails"),
            (CacheOutcome::StaleIfError, "hit: stale, since Rails fails"),
            (CacheOutcome::Stored, "miss: asked Rails, stored"),
            (CacheOutcome::Unstored(NoStoreReason::Status), "miss: asked Rails, not stored"),
            (CacheOutcome::Alone, "miss: asked Rails, not stored"),
            (CacheOutcome::Shared, "miss: shared a pending request"),
            (CacheOutcome::Never, "forwarded to Rails"),
            (CacheOutcome::Bypass, "forwarded to Rails"),
            (CacheOutcome::Unreached, "answered here"),
        ] {
            let line = request(cache).line(Level::INFO, false);
            assert_eq!(line, format!("  GET /authorized_keys?key=… -> 200, {outcome}, 0.12 ms"));
        }
        for (level, reason, outcome) in [
            (Level::INFO, "missing", "refused: unauthorized (missing)"),
            (Level::INFO, "", "refused: unauthorized"),
            (Level::WARN, "", "failed: unauthorized"),
            (Level::ERROR, "", "failed: unauthorized"),
        ] {
            let (failure, reason) = ("unauthorized".to_owned(), reason.to_owned());
            let failed = RequestSummary { failure, reason, ..request(CacheOutcome::Never) };
            assert!(failed.line(level, false).contains(&format!(" -> 200, {outcome}, 0.12 ms")), "{outcome}");
        }
    }

    #[test]
    fn a_line_has_at_most_eighty_columns_and_optional_colours() {
        for uri in ["/", "/api/v4/internal/check", &"/check".repeat(24), &"é…".repeat(100)] {
            for method in ["GET", "ABCDEFGHIJKLMNOPQRST"] {
                for failure in ["", "not_configured", "unverified_bodies_full"] {
                    let long = RequestSummary {
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
