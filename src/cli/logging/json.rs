//! Events as JSON objects, one a line.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use railgate::layer::observe::ACCESS_LOG;
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::lines::Lines;

/// Writes each event, with its fields, as it comes.
pub(super) struct JsonLines<W = io::Stdout> {
    lines: Arc<Lines<W>>,
}

thread_local! {
    static DRAFT: Cell<Draft> = Cell::default();
}

/// A line in the making, in memory that the next one uses again.
#[derive(Default)]
struct Draft {
    line: Vec<u8>,
    second: u64,
    /// `{"timestamp":"2026-01-31T23:59:59.`, in that second.
    begin: Vec<u8>,
}

impl<W> JsonLines<W> {
    pub(super) fn new(lines: Arc<Lines<W>>) -> Self {
        Self { lines }
    }
}

impl<S: Subscriber, W: io::Write + Send + 'static> Layer<S> for JsonLines<W> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Taken and put back: a field that is itself logging while it is written gets another one.
        let mut draft = DRAFT.take();
        draft.write(now, *metadata.level(), |fields| event.record(fields));
        // Requests in which neither gateway nor Rails is at fault are what nobody is waiting to read.
        let can_wait = metadata.target() == ACCESS_LOG && *metadata.level() >= Level::INFO;
        self.lines.push(&draft.line, can_wait);
        DRAFT.set(draft);
    }
}

impl Draft {
    fn write(&mut self, now: Duration, level: Level, record: impl FnOnce(&mut dyn Visit)) {
        if self.begin.is_empty() || self.second != now.as_secs() {
            self.second = now.as_secs();
            self.begin_second();
        }
        self.line.clear();
        self.line.extend_from_slice(&self.begin);
        let micros = now.subsec_micros();
        self.line.extend(
            (0..6).rev().map(|place| b'0' + u8::try_from(micros / 10_u32.pow(place) % 10).unwrap_or(0)),
        );
        self.line.extend_from_slice(b"Z\",\"level\":\"");
        self.line.extend_from_slice(level.as_str().as_bytes());
        self.line.push(b'"');
        record(&mut Fields { line: &mut self.line });
        self.line.extend_from_slice(b"}\n");
    }

    fn begin_second(&mut self) {
        let unix = i64::try_from(self.second).unwrap_or_default();
        let at = OffsetDateTime::from_unix_timestamp(unix).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        self.begin.clear();
        // Writing to memory cannot fail.
        let _ = write!(
            self.begin,
            "{{\"timestamp\":\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        );
    }
}

struct Fields<'a> {
    line: &'a mut Vec<u8>,
}

impl Fields<'_> {
    fn name(&mut self, field: &Field) {
        self.line.extend_from_slice(b",\"");
        self.line.extend_from_slice(field.name().as_bytes());
        self.line.extend_from_slice(b"\":");
    }

    fn value(&mut self, field: &Field, value: impl serde::Serialize) {
        self.name(field);
        // Writing to memory cannot fail, and numbers and texts can always be told in JSON.
        let _ = serde_json::to_writer(&mut *self.line, &value);
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.value(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.value(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.value(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.value(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.value(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.value(field, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn every_kind_of_field_is_told_in_json() {
        let lines = Arc::new(Lines::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(JsonLines::new(Arc::clone(&lines)));
        let nothing: Option<u64> = None;
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(
                text = "a \"quoted\" line\n\u{1}\u{e9}",
                count = 7_u64,
                below = -7_i64,
                seconds = 0.25,
                not_finite = f64::NAN,
                yes = true,
                shown = %"[::1]",
                debug = ?Some("x"),
                nothing,
                "it happened"
            );
            tracing::info!(target: ACCESS_LOG, "request");
        });
        let written = lines.written();
        let first = written.lines().next().unwrap();
        let mut told: Value = serde_json::from_str(first).unwrap();
        let timestamp = told.as_object_mut().unwrap().remove("timestamp").unwrap();
        let timestamp = timestamp.as_str().unwrap();
        assert_eq!((timestamp.len(), timestamp.get(19..20)), (27, Some(".")), "{timestamp}");
        let expected = json!({
            "level": "WARN", "message": "it happened", "text": "a \"quoted\" line\n\u{1}\u{e9}", "count": 7,
            "below": -7, "seconds": 0.25, "not_finite": null, "yes": true, "shown": "[::1]",
            "debug": "Some(\"x\")"
        });
        assert_eq!(told, expected);
        assert_eq!(written.lines().count(), 1, "a request that went well can wait");
    }

    #[test]
    fn the_timestamp_is_rfc_3339_to_the_microsecond() {
        let mut draft = Draft::default();
        for (now, begin) in [
            (Duration::from_micros(1_795_651_199_000_042), "2026-11-25T23:59:59.000042Z"),
            (Duration::from_micros(1_795_651_200_999_999), "2026-11-26T00:00:00.999999Z"),
            (Duration::from_micros(951_782_400_100_000), "2000-02-29T00:00:00.100000Z"),
        ] {
            draft.write(now, Level::INFO, |_| {});
            let line = format!("{{\"timestamp\":\"{begin}\",\"level\":\"INFO\"}}\n");
            assert_eq!(String::from_utf8_lossy(&draft.line), line);
        }
    }
}
