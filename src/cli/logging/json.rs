//! Events as JSON objects, one a line.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::can_wait;
use super::lines::{LONGEST_LINE, Lines};

/// How long a line may become by its texts. Names and numbers come on top: an event has 32 fields at most.
const MOST_TEXT: usize = LONGEST_LINE - 2 * 1024;

/// Writes each event, with its fields, as it comes.
pub(super) struct JsonLines {
    lines: Arc<Lines>,
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

impl JsonLines {
    pub(super) fn new(lines: Arc<Lines>) -> Self {
        Self { lines }
    }
}

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Taken and put back: a field that is itself logging while it is written gets another one.
        let mut draft = DRAFT.take();
        draft.write(now, *metadata.level(), |fields| event.record(fields));
        self.lines.push(&draft.line, *metadata.level(), can_wait(metadata));
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
        let mut fields = Fields { line: &mut self.line, cut: 0 };
        record(&mut fields);
        let cut = fields.cut;
        if cut > 0 {
            let _ = write!(self.line, ",\"cut_bytes\":{cut}");
        }
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
    /// Bytes of texts that were left out.
    cut: usize,
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
        let room = MOST_TEXT.saturating_sub(self.line.len());
        // A byte becomes six at most.
        let kept = if value.len() <= room / 6 { value } else { fitting(value, room) };
        self.cut += value.len() - kept.len();
        self.value(field, kept);
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
        let mut text = Bounded::default();
        let _ = write!(text, "{value:?}");
        self.cut += text.cut;
        self.record_str(field, &text.kept);
    }
}

/// The beginning of a text that takes no more than `room` bytes in JSON.
fn fitting(text: &str, room: usize) -> &str {
    let mut taken = 0;
    let end = text.char_indices().find(|(_, character)| {
        taken += match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..='\u{1f}' => 6,
            other => other.len_utf8(),
        };
        taken > room
    });
    end.and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// As much of a text as a line can hold.
#[derive(Default)]
struct Bounded {
    kept: String,
    /// Bytes that were left out.
    cut: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = if self.cut > 0 { 0 } else { LONGEST_LINE.saturating_sub(self.kept.len()) };
        let kept = text.get(..text.floor_char_boundary(room)).unwrap_or(text);
        self.kept.push_str(kept);
        self.cut += text.len() - kept.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::logging::lines::BOUNDS;
    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn every_kind_of_field_is_told_in_json() {
        let nothing: Option<u64> = None;
        let written = logged(|| {
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
        });
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
        assert_eq!(written.lines().count(), 1);
    }

    /// The lines that are made of events.
    fn logged(act: impl FnOnce()) -> String {
        let lines = Arc::new(Lines::new(BOUNDS, Arc::default()));
        let subscriber = tracing_subscriber::registry().with(JsonLines::new(Arc::clone(&lines)));
        tracing::subscriber::with_default(subscriber, act);
        lines.waiting()
    }

    #[test]
    fn a_long_line_is_cut_and_stays_json() {
        for text in ["x", "\"", "\n", "\u{1}", "\u{7f}", "é", "\u{2028}"] {
            let text = text.repeat(70_000);
            let line =
                logged(|| tracing::warn!(text, count = 7, shown = %text, behind = "short", "it happened"));
            assert!((MOST_TEXT - 6..LONGEST_LINE).contains(&line.len()), "{}", line.len());
            let told: Value = serde_json::from_str(&line).unwrap();
            let kept = |field: &str| told[field].as_str().unwrap();
            assert!(text.starts_with(kept("text")) && !kept("text").is_empty());
            let all = 2 * text.len() + "short".len();
            let cut = all - kept("text").len() - kept("shown").len() - kept("behind").len();
            assert_eq!((&told["cut_bytes"], &told["count"]), (&json!(cut), &json!(7)));
            assert_eq!(kept("message"), "it happened");
        }
        // Long, but not too long.
        let line = logged(|| tracing::warn!(text = "\u{1}".repeat(2_200)));
        let told: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((told["text"].as_str().unwrap().len(), told.get("cut_bytes")), (2_200, None));
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
