//! Events as JSON objects, one a line.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::events::is_deferrable;
use super::queue::{LogQueue, MAX_LINE};

/// Bytes of a line up to which texts are added. Names and numbers may follow: an event has at most 32 fields.
const MAX_WITH_TEXT: usize = MAX_LINE - 2 * 1024;

/// Formats each event with its fields.
pub(super) struct JsonLayer {
    queue: Arc<LogQueue>,
}

thread_local! {
    static BUFFER: Cell<LineBuffer> = Cell::default();
}

/// A line that is being formatted, in memory that the next one reuses.
#[derive(Default)]
struct LineBuffer {
    line: Vec<u8>,
    /// Unix time of `prefix`.
    second: u64,
    /// `{"timestamp":"2026-01-31T23:59:59.`
    prefix: Vec<u8>,
}

impl JsonLayer {
    pub(super) fn new(queue: Arc<LogQueue>) -> Self {
        Self { queue }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLayer {
    /// Keeps the fields for the events inside. Those of libraries would only repeat what is in their events.
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().target().starts_with("railgate")
            && let Some(span) = context.span(id)
        {
            let mut fields = SpanFields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Taken and put back: if a value logs while it is formatted, that event gets another buffer.
        let mut buffer = BUFFER.take();
        buffer.write(now, *metadata.level(), |fields| {
            event.record(fields);
            for span in context.event_scope(event).into_iter().flatten() {
                if let Some(of_span) = span.extensions().get::<SpanFields>() {
                    of_span.write(metadata, fields);
                }
            }
        });
        self.queue.push(&buffer.line, *metadata.level(), is_deferrable(metadata));
        BUFFER.set(buffer);
    }
}

impl LineBuffer {
    fn write(&mut self, now: Duration, level: Level, record: impl FnOnce(&mut dyn Visit)) {
        if self.prefix.is_empty() || self.second != now.as_secs() {
            self.second = now.as_secs();
            self.format_prefix();
        }
        self.line.clear();
        self.line.extend_from_slice(&self.prefix);
        let micros = now.subsec_micros();
        self.line.extend(
            (0..6).rev().map(|power| b'0' + u8::try_from(micros / 10_u32.pow(power) % 10).unwrap_or(0)),
        );
        self.line.extend_from_slice(b"Z\",\"level\":\"");
        self.line.extend_from_slice(level.as_str().as_bytes());
        self.line.push(b'"');
        let mut fields = FieldWriter { line: &mut self.line, cut_bytes: 0 };
        record(&mut fields);
        let cut_bytes = fields.cut_bytes;
        if cut_bytes > 0 {
            let _ = write!(self.line, ",\"cut_bytes\":{cut_bytes}");
        }
        self.line.extend_from_slice(b"}\n");
    }

    fn format_prefix(&mut self) {
        let unix = i64::try_from(self.second).unwrap_or_default();
        let at = OffsetDateTime::from_unix_timestamp(unix).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        self.prefix.clear();
        // Writing to memory cannot fail.
        let _ = write!(
            self.prefix,
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

/// The fields of a span, all of them as text.
#[derive(Default)]
struct SpanFields(Vec<(Field, String)>);

impl SpanFields {
    /// Leaves out those that the event has itself: a name occurs once in a line.
    fn write(&self, event: &Metadata<'_>, line: &mut dyn Visit) {
        for (field, text) in &self.0 {
            if event.fields().field(field.name()).is_none() {
                line.record_str(field, text);
            }
        }
    }
}

impl Visit for SpanFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.clone(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.clone(), format!("{value:?}")));
    }
}

struct FieldWriter<'a> {
    line: &'a mut Vec<u8>,
    /// Bytes of texts that were left out.
    cut_bytes: usize,
}

impl FieldWriter<'_> {
    fn name(&mut self, field: &Field) {
        self.line.extend_from_slice(b",\"");
        self.line.extend_from_slice(field.name().as_bytes());
        self.line.extend_from_slice(b"\":");
    }

    /// Few texts have a byte that JSON escapes. This finds that out for sixteen bytes at once, `serde_json` for each.
    #[expect(clippy::needless_bitwise_bool, reason = "a lazy operator is a branch")]
    fn text(&mut self, field: &Field, text: &str) {
        let is_escaped = |byte| (byte < b' ') | (byte == b'"') | (byte == b'\\');
        if text.bytes().fold(false, |found, byte| found | is_escaped(byte)) {
            return self.value(field, text);
        }
        self.name(field);
        self.line.push(b'"');
        self.line.extend_from_slice(text.as_bytes());
        self.line.push(b'"');
    }

    fn value(&mut self, field: &Field, value: impl serde::Serialize) {
        self.name(field);
        // Writing to memory cannot fail, and numbers and texts always have a form in JSON.
        let _ = serde_json::to_writer(&mut *self.line, &value);
    }
}

impl Visit for FieldWriter<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let room = MAX_WITH_TEXT.saturating_sub(self.line.len());
        // A byte becomes at most six.
        let kept = if value.len() <= room / 6 { value } else { fitting_prefix(value, room) };
        self.cut_bytes += value.len() - kept.len();
        self.text(field, kept);
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
        let mut text = TruncatingString::default();
        let _ = write!(text, "{value:?}");
        self.cut_bytes += text.cut_bytes;
        self.record_str(field, &text.kept);
    }
}

/// The longest prefix that takes at most `room` bytes in JSON.
fn fitting_prefix(text: &str, room: usize) -> &str {
    let mut length = 0;
    let end = text.char_indices().find(|(_, character)| {
        length += match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..='\u{1f}' => 6,
            other => other.len_utf8(),
        };
        length > room
    });
    end.and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// Keeps as much of a text as fits into a line.
#[derive(Default)]
struct TruncatingString {
    kept: String,
    cut_bytes: usize,
}

impl fmt::Write for TruncatingString {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = if self.cut_bytes > 0 { 0 } else { MAX_LINE.saturating_sub(self.kept.len()) };
        let kept = text.get(..text.floor_char_boundary(room)).unwrap_or(text);
        self.kept.push_str(kept);
        self.cut_bytes += text.len() - kept.len();
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
