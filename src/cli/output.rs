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
    // All of them are below U+0100, and this is an escape in JSON and TOML, too.
    let escape = |character: char| {
        if is_obeyed(character) { format!("\\u{:04x}", u32::from(character)) } else { character.to_string() }
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
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn nothing_is_printed_that_a_terminal_would_obey() {
        for (text, expected) in [
            ("plain: é …\n\ttwo", "plain: é …\n\ttwo"),
            ("a\x1b[2Jb\r\x07", r"a\u001b[2Jb\u000d\u0007"),
            ("\u{9b}31m\x7f", r"\u009b31m\u007f"),
        ] {
            assert_eq!(escaped(text), expected);
        }
        // JSON escapes some of them itself, and stays JSON with the others.
        let said = json!({ "said": (0..0x100).filter_map(char::from_u32).collect::<String>() });
        let printed = format!("{said:#}");
        assert_eq!(serde_json::from_str::<Value>(&escaped(&printed)).unwrap(), said);
        assert_eq!(quoted("18.1\n  ok: all\x1b[2J"), "18.1  ok: all[2J");
        assert_eq!(quoted(&"é".repeat(1_000)).chars().count(), 500);
    }
}
