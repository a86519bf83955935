//! `railgate check --explain KEY`.

use super::key::{KeyKind, KeyRead};
use super::{read, reference, unknown};

/// What the documentation says of a key, or of a section and its keys; else the names that resemble it.
pub fn explain(key: &str) -> Result<String, String> {
    // As the documents call the keys of all classes.
    let key = key.trim().trim_matches(['[', ']']).replace(".CLASS.", ".lookup.");
    let all = read::keys();
    match all.iter().find(|known| known.path() == key) {
        Some(known) if !matches!(known.kind, KeyKind::Section | KeyKind::SectionArray) => {
            Ok(explain_key(known))
        }
        Some(_) => Ok(explain_section(&key, &all)),
        None => {
            let paths: Vec<_> = all.iter().map(KeyRead::path).collect();
            let similar = unknown::similar(&key, paths.iter().map(String::as_str));
            Err(match similar.as_slice() {
                [] => format!("there is no key {key:?}; config/README.md has all"),
                similar => format!("there is no key {key:?}; did you mean {}?", similar.join(" or ")),
            })
        }
    }
}

fn explain_key(key: &KeyRead) -> String {
    let path = key.path();
    let mut lines = vec![path.clone(), String::new()];
    let row = reference::row(&path);
    if let Some(text) = reference::comment(&path).or_else(|| row.as_ref().map(|row| row.summary.clone())) {
        lines.extend([wrap(&text), String::new()]);
    }
    if let Some(row) = row {
        lines.push(wrap(&format!("Default: {}", row.default)));
        lines.push(wrap(&format!("Range: {}", row.range)));
    }
    if let Some(variable) = key.variable() {
        let first = if key.scope.contains('[') { " (0 is the first)" } else { "" };
        lines.push(format!("Environment: {variable}{first}"));
    }
    lines.join("\n")
}

fn explain_section(path: &str, all: &[KeyRead]) -> String {
    let mut lines = vec![format!("[{path}]")];
    if let Some(comment) = reference::comment(path) {
        lines.extend([String::new(), wrap(&comment)]);
    }
    lines.extend([String::new(), "Its keys:".to_owned()]);
    lines.extend(all.iter().filter(|key| key.section() == path).map(|key| format!("  {}", key.path())));
    lines.join("\n")
}

/// Breaks lines between words, at 80 columns. A list keeps its lines.
fn wrap(text: &str) -> String {
    let mut wrapped = String::new();
    let mut column = 0;
    for line in text.lines() {
        let is_item = line.trim_start().starts_with("- ");
        for (number, word) in line.split_whitespace().enumerate() {
            let width = word.chars().count();
            let begins_item = is_item && number == 0;
            if column > 0 && (begins_item || column + 1 + width > 80) {
                wrapped.push('\n');
                column = 0;
            } else if column > 0 {
                wrapped.push(' ');
                column += 1;
            }
            wrapped.push_str(word);
            column += width;
        }
    }
    wrapped
}
