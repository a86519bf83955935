//! Lines for people, as `tracing_subscriber` makes them, one for each event and of bounded length.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::can_wait;
use super::lines::{LONGEST_LINE, Lines};

/// Puts lines into the queue.
pub(super) struct PrettyLines(pub(super) Arc<Lines>);

/// Takes one line.
pub(super) struct Line<'a> {
    lines: &'a Lines,
    level: Level,
    can_wait: bool,
}

impl<'a> MakeWriter<'a> for PrettyLines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: &self.0, level: Level::INFO, can_wait: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line { lines: &self.0, level: *metadata.level(), can_wait: can_wait(metadata) }
    }
}

impl Write for Line<'_> {
    /// Gets the whole line at once.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.lines.push(&one_line(text), self.level, self.can_wait);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Room for saying how much was cut.
const MARK: usize = 32;

/// The text in one line, whatever an error in it quotes, and cut if it is too long. Escape sequences are
/// colours here: those of others have been made visible.
fn one_line(text: &[u8]) -> Cow<'_, [u8]> {
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let is_control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\x1b');
    if text.len() <= LONGEST_LINE && text.len() > line.len() && !line.iter().any(is_control) {
        return Cow::Borrowed(text);
    }
    let line = String::from_utf8_lossy(line);
    let (mut told, mut cut) = (String::new(), 0);
    for character in line.chars() {
        let before = told.len();
        match u8::try_from(character).ok().filter(is_control) {
            Some(_) => told.extend(character.escape_default()),
            None => told.push(character),
        }
        if cut > 0 || told.len() > LONGEST_LINE - MARK {
            told.truncate(before);
            cut += character.len_utf8();
        }
    }
    if cut > 0 {
        // Writing to memory cannot fail.
        let _ = write!(told, " cut_bytes={cut}");
    }
    told.push('\n');
    Cow::Owned(told.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_one_line_of_bounded_length() {
        let long = "x".repeat(LONGEST_LINE);
        for (text, told) in [
            ("a line\n", "a line\n".to_owned()),
            ("\u{1b}[32mINFO\u{1b}[0m a\tline\n", "\u{1b}[32mINFO\u{1b}[0m a\tline\n".to_owned()),
            ("no end", "no end\n".to_owned()),
            ("a\nb\r\n", "a\\nb\\r\n".to_owned()),
            ("bell \u{7}, \u{7f}, é\n", "bell \\u{7}, \\u{7f}, é\n".to_owned()),
            (&long, format!("{} cut_bytes=32\n", "x".repeat(LONGEST_LINE - MARK))),
            (&"\u{1}".repeat(LONGEST_LINE), {
                format!("{} cut_bytes=13114\n", "\\u{1}".repeat((LONGEST_LINE - MARK) / 5))
            }),
        ] {
            let line = one_line(text.as_bytes());
            assert!(*line == *told.as_bytes(), "{} bytes of {}", line.len(), text.len());
            assert!(line.len() <= LONGEST_LINE);
        }
    }
}
