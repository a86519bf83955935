//! Lines for people, on standard output and standard error.

use std::borrow::Cow;
use std::io::Write as _;

use railgate::config::{ConfigError, Diagnostic};

/// Writes a line to standard output. Unlike `println!`, does not panic if the pipe is closed. What a terminal would obey
/// is escaped: much that is printed was said by others.
pub(super) fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", escaped(line));
}

/// The same to standard error.
pub(super) fn print_error(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", escaped(line));
}

/// Moves to the first line of the terminal, and empties the screen below.
pub(super) fn clear_screen() {
    let _ = write!(std::io::stdout().lock(), "\x1b[H\x1b[J");
}

fn is_obeyed(character: char) -> bool {
    character.is_control() && !matches!(character, '\n' | '\t')
}

fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escape = |character: char| {
        if is_obeyed(character) { character.escape_default().to_string() } else { character.to_string() }
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// What another program has said, as a part of a line.
pub(super) fn quoted(text: &str) -> String {
    const MAX: usize = 500;
    text.chars().filter(|character| !character.is_control()).take(MAX).collect()
}

/// Every mistake of a configuration, on standard error, with the line of the file and a mark below the key.
pub(super) fn print_config_error(error: &ConfigError) {
    for diagnostic in &error.0 {
        print_diagnostic("", diagnostic);
    }
}

pub(super) fn print_warning(warning: &Diagnostic) {
    print_diagnostic("warning: ", warning);
}

fn print_diagnostic(kind: &str, diagnostic: &Diagnostic) {
    print_error(&format!("{kind}{diagnostic}"));
    if let Some(excerpt) = &diagnostic.excerpt {
        print_error(&excerpt.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_printed_that_a_terminal_would_obey() {
        for (text, expected) in [
            ("plain: é …\n\ttwo", "plain: é …\n\ttwo"),
            ("a\x1b[2Jb\r\x07", "a\\u{1b}[2Jb\\r\\u{7}"),
            ("\u{9b}31m\x7f", "\\u{9b}31m\\u{7f}"),
        ] {
            assert_eq!(escaped(text), expected);
        }
        assert_eq!(quoted("18.1\n  ok: all\x1b[2J"), "18.1  ok: all[2J");
        assert_eq!(quoted(&"é".repeat(1_000)).chars().count(), 500);
    }
}
