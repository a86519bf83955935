//! Lines for people, as `tracing_subscriber` formats them: one for each event, of limited length.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::registry::LookupSpan;

use super::events::is_deferrable;
use super::queue::{LogQueue, MAX_LINE};

/// Formats each event with its fields, and those of its spans.
pub(super) fn layer<S>(queue: Arc<LogQueue>, has_colours: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .compact()
        .with_target(false)
        .with_ansi(has_colours)
        // These would go to standard error.
        .log_internal_errors(false)
        .with_writer(PrettyWriter(queue))
}

struct PrettyWriter(Arc<LogQueue>);

/// Adds one line to the queue.
struct LineWriter<'a> {
    queue: &'a LogQueue,
    level: Level,
    is_deferrable: bool,
}

impl<'a> MakeWriter<'a> for PrettyWriter {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { queue: &self.0, level: Level::INFO, is_deferrable: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LineWriter<'a> {
        LineWriter { queue: &self.0, level: *metadata.level(), is_deferrable: is_deferrable(metadata) }
    }
}

impl Write for LineWriter<'_> {
    /// The formatter writes the whole line at once.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.queue.push(&one_line(text), self.level, self.is_deferrable);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Room for `cut_bytes`.
const CUT_FIELD_LEN: usize = 32;

/// The text as one line, with other line breaks escaped, and cut if it is too long. Escape sequences are colours
/// here: those in values have been escaped already.
fn one_line(text: &[u8]) -> Cow<'_, [u8]> {
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let is_control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\x1b');
    if text.len() <= MAX_LINE && text.len() > line.len() && !line.iter().any(is_control) {
        return Cow::Borrowed(text);
    }
    let line = String::from_utf8_lossy(line);
    let (mut output, mut cut) = (String::new(), 0);
    for character in line.chars() {
        let before = output.len();
        match u8::try_from(character).ok().filter(is_control) {
            Some(_) => output.extend(character.escape_default()),
            None => output.push(character),
        }
        if cut > 0 || output.len() > MAX_LINE - CUT_FIELD_LEN {
            output.truncate(before);
            cut += character.len_utf8();
        }
    }
    if cut > 0 {
        // Writing to memory cannot fail.
        let _ = write!(output, " cut_bytes={cut}");
    }
    output.push('\n');
    Cow::Owned(output.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::logging::json::tests::{log_events_of_a_request, logged_by};

    #[test]
    fn an_event_about_a_request_names_it() {
        let written = logged_by(|queue| layer(queue, false), log_events_of_a_request);
        let [inside, own_route, outside] = written.lines().collect::<Vec<_>>()[..] else {
            panic!("{written}");
        };
        for line in [inside, own_route] {
            assert!(line.contains("it happened"), "{line}");
            assert!(line.ends_with("correlation_id=\"abc-1\" route=\"allowed\""), "{line}");
        }
        assert!(outside.ends_with("it happened count=7"), "{outside}");
    }

    #[test]
    fn every_event_is_one_line_of_limited_length() {
        let long = "x".repeat(MAX_LINE);
        for (text, expected) in [
            ("a line\n", "a line\n".to_owned()),
            ("\u{1b}[32mINFO\u{1b}[0m a\tline\n", "\u{1b}[32mINFO\u{1b}[0m a\tline\n".to_owned()),
            ("no end", "no end\n".to_owned()),
            ("a\nb\r\n", "a\\nb\\r\n".to_owned()),
            ("bell \u{7}, \u{7f}, é\n", "bell \\u{7}, \\u{7f}, é\n".to_owned()),
            (&long, format!("{} cut_bytes=32\n", "x".repeat(MAX_LINE - CUT_FIELD_LEN))),
            (&"\u{1}".repeat(MAX_LINE), {
                format!("{} cut_bytes=13114\n", "\\u{1}".repeat((MAX_LINE - CUT_FIELD_LEN) / 5))
            }),
        ] {
            let line = one_line(text.as_bytes());
            assert!(*line == *expected.as_bytes(), "{} bytes of {}", line.len(), text.len());
            assert!(line.len() <= MAX_LINE);
        }
    }
}
