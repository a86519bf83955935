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
pub(super) mod tests {
    use super::*;
    use crate::cli::logging::queue::QUEUE_LIMITS;
    use futures_util::FutureExt as _;
    use http::HeaderMap;
    use railgate::header::RequestId;
    use railgate::request_span::{self, RequestSpan};
    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn every_kind_of_field_is_written_as_json() {
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
        let mut parsed: Value = serde_json::from_str(first).unwrap();
        let timestamp = parsed.as_object_mut().unwrap().remove("timestamp").unwrap();
        let timestamp = timestamp.as_str().unwrap();
        assert_eq!((timestamp.len(), timestamp.get(19..20)), (27, Some(".")), "{timestamp}");
        let expected = json!({
            "level": "WARN", "message": "it happened", "text": "a \"quoted\" line\n\u{1}\u{e9}", "count": 7,
            "below": -7, "seconds": 0.25, "not_finite": null, "yes": true, "shown": "[::1]",
            "debug": "Some(\"x\")"
        });
        assert_eq!(parsed, expected);
        assert_eq!(written.lines().count(), 1);
    }

    /// The lines of the events of `act`.
    fn logged(act: impl FnOnce()) -> String {
        logged_by(JsonLayer::new, act)
    }

    /// The same as another layer formats them.
    pub(in crate::cli::logging) fn logged_by<L>(layer: fn(Arc<LogQueue>) -> L, act: impl FnOnce()) -> String
    where
        L: Layer<tracing_subscriber::Registry> + Send + Sync + 'static,
    {
        let queue = Arc::new(LogQueue::new(QUEUE_LIMITS, Arc::default()));
        let subscriber = tracing_subscriber::registry().with(layer(Arc::clone(&queue)));
        tracing::subscriber::with_default(subscriber, act);
        queue.waiting()
    }

    /// Two events of a request, the second with a field that its span has too, and one behind it.
    pub(in crate::cli::logging) fn log_events_of_a_request() {
        let headers = HeaderMap::from_iter([("x-request-id".parse().unwrap(), "abc-1".parse().unwrap())]);
        let request = RequestSpan { request_id: RequestId::from_headers(&headers), route: "allowed" };
        let logging = async {
            let _span = request_span::current().entered();
            tracing::warn!(count = 7, "it happened");
            tracing::warn!(route = "discover", "it happened");
        };
        assert_eq!(request.around(logging).now_or_never(), Some(()));
        let _span = request_span::current().entered();
        tracing::warn!(count = 7, "it happened");
    }

    #[test]
    fn an_event_about_a_request_names_it() {
        let written = logged(log_events_of_a_request);
        let lines = [
            r#""count":7,"correlation_id":"abc-1","route":"allowed"}"#,
            r#""route":"discover","correlation_id":"abc-1"}"#,
            r#""count":7}"#,
        ];
        assert_eq!(written.lines().count(), lines.len(), "{written}");
        for (line, fields) in written.lines().zip(lines) {
            let expected = format!(r#""level":"WARN","message":"it happened",{fields}"#);
            assert!(line.ends_with(&expected), "{line}");
        }
    }

    #[test]
    fn a_long_line_is_cut_and_stays_json() {
        for text in ["x", "\"", "\n", "\u{1}", "\u{7f}", "é", "\u{2028}"] {
            let text = text.repeat(70_000);
            let line =
                logged(|| tracing::warn!(text, count = 7, shown = %text, behind = "short", "it happened"));
            assert!((MAX_WITH_TEXT - 6..MAX_LINE).contains(&line.len()), "{}", line.len());
            let parsed: Value = serde_json::from_str(&line).unwrap();
            let kept = |field: &str| parsed[field].as_str().unwrap();
            assert!(text.starts_with(kept("text")) && !kept("text").is_empty());
            let all = 2 * text.len() + "short".len();
            let cut = all - kept("text").len() - kept("shown").len() - kept("behind").len();
            assert_eq!((&parsed["cut_bytes"], &parsed["count"]), (&json!(cut), &json!(7)));
            assert_eq!(kept("message"), "it happened");
        }
        // Long, but not too long.
        let line = logged(|| tracing::warn!(text = "\u{1}".repeat(2_200)));
        let parsed: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((parsed["text"].as_str().unwrap().len(), parsed.get("cut_bytes")), (2_200, None));
    }

    #[test]
    fn the_timestamp_is_rfc_3339_to_the_microsecond() {
        let mut buffer = LineBuffer::default();
        for (now, begin) in [
            (Duration::from_micros(1_795_651_199_000_042), "2026-11-25T23:59:59.000042Z"),
            (Duration::from_micros(1_795_651_200_999_999), "2026-11-26T00:00:00.999999Z"),
            (Duration::from_micros(951_782_400_100_000), "2000-02-29T00:00:00.100000Z"),
        ] {
            buffer.write(now, Level::INFO, |_| {});
            let line = format!("{{\"timestamp\":\"{begin}\",\"level\":\"INFO\"}}\n");
            assert_eq!(String::from_utf8_lossy(&buffer.line), line);
        }
    }
}
