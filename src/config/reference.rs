//! What the documents in `config/` say of each key. They are part of the program, for `check --explain`, the schema
//! and `config show`; tests compare them with the reader.

use super::key::join;

const ANNOTATED: &str = include_str!("../../config/railgate.toml");
const README: &str = include_str!("../../config/README.md");

/// A row of "Every key" in config/README.md, without its formatting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) default: String,
    /// The default, if it is one value.
    pub(super) default_value: Option<String>,
    pub(super) range: String,
    pub(super) summary: String,
}

pub(super) fn row(key: &str) -> Option<Row> {
    let begin = format!("| `{}` | ", with_generic_class(key));
    let (_, rows) = README.split_once("\n## Every key\n")?;
    let cells = rows.lines().find_map(|line| line.strip_prefix(&begin))?;
    let mut cells = cells.trim_end_matches(['|', ' ']).splitn(3, " | ");
    let (default, range, summary) = (cells.next()?, cells.next()?, cells.next()?);
    let value = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
    // The name of another key is no value.
    let is_key = |value: &&str| rows.contains(&format!("\n| `{value}` | "));
    let value = value.filter(|value| !value.contains('`') && !is_key(value)).map(str::to_owned);
    let range = match (range, key.rsplit_once('.')) {
        ("as above", Some((section, name))) if section != "listen" => row(&format!("listen.{name}"))?.range,
        _ => plain(range),
    };
    Some(Row { default: plain(default), default_value: value, range, summary: plain(summary) })
}

/// All classes of routes have the same keys.
fn with_generic_class(key: &str) -> String {
    let class = key.strip_prefix("upstream.classes.").and_then(|rest| rest.split_once('.'));
    class.map_or_else(|| key.to_owned(), |(_, name)| format!("upstream.classes.CLASS.{name}"))
}

/// Without the Markdown of links and code.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        let target = link.split_once("](").and_then(|(words, target)| Some((words, target.split_once(')')?)));
        if let Some((words, (_, after))) = target.filter(|(words, _)| !words.contains(['[', ']'])) {
            plain.extend([before, words]);
            rest = after;
        } else {
            plain.extend([before, "["]);
            rest = link;
        }
    }
    plain.push_str(rest);
    plain.replace('`', "")
}

/// The comment above a key or a section of config/railgate.toml. A key without one shares that of the key above it, or
/// has that of its section.
pub(super) fn comment(path: &str) -> Option<String> {
    // The keys of one class are described for all.
    let path = with_generic_class(path).replace(".CLASS.", ".lookup.");
    let mut section = "";
    let (mut block, mut earlier, mut of_section) = (Vec::new(), Vec::new(), Vec::new());
    let mut is_block_done = false;
    for line in ANNOTATED.lines() {
        let is_key = |rest: &&str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
        let active = line.strip_prefix('#').filter(is_key).unwrap_or(line);
        if line.is_empty() {
            earlier = std::mem::take(&mut block);
        } else if let Some(words) = active.strip_prefix('#') {
            if std::mem::take(&mut is_block_done) {
                block.clear();
            }
            block.extend(Some(words.trim()).filter(|words| !words.starts_with("---")));
        } else if active.starts_with('[') {
            section = active.trim_matches(['[', ']']);
            of_section = std::mem::take(if block.is_empty() { &mut earlier } else { &mut block });
            if section == path {
                return text(&of_section);
            }
        } else {
            let name = active.split([' ', '=']).next().unwrap_or_default();
            if join(section, name) == path {
                return text(if block.is_empty() { &of_section } else { &block });
            }
            is_block_done = true;
        }
    }
    None
}

fn text(lines: &[&str]) -> Option<String> {
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_row_without_formatting() {
        let row = row("upstream.classes.kas.queue_timeout").unwrap();
        assert_eq!((row.default.as_str(), row.default_value), ("5s; 2s for lookup", None));
        assert_eq!((row.range.as_str(), row.summary.as_str()), ("1ms to 1h", "for how long; then 503"));
        let row = super::row("listen.connections").unwrap();
        assert_eq!(row.summary, "connections open at one time on this listener");
        assert_eq!(super::row("cache.max_entries").unwrap().default_value.as_deref(), Some("1000000"));
        assert_eq!(super::row("cache.maximum"), None);
        let row = super::row("hooks.mode").unwrap();
        assert_eq!((row.range.as_str(), row.default_value.as_deref()), ("0000 to 0777", Some("0660")));
        assert_eq!(super::row("upstream.secret_file").unwrap().default_value, None);
    }

    #[test]
    fn links_lose_their_targets() {
        for (text, expected) in [
            ("see [the cache](#the-cache), `0s` never", "see the cache, 0s never"),
            ("`[\"a\"]` or [x](y)", "[\"a\"] or x"),
            ("one `[[listen]]` each [", "one [[listen]] each ["),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn a_key_has_the_comment_above_it() {
        for (key, begin) in [
            ("upstream.health.interval", "The time between checks."),
            // Two keys with one comment.
            ("upstream.health.unhealthy_after", "How many successful checks in a row"),
            ("auth.kas.secret_file", "Required in this section"),
            ("auth.kas", "The secret that the Kubernetes agent server (kas)"),
            // The comment of the section.
            ("cache.discover.negative_ttl", "Which user is this?"),
            ("upstream.server.backup", "A backup gets requests only"),
        ] {
            let comment = comment(key).unwrap_or_default();
            assert!(comment.starts_with(begin), "{key}: {comment}");
        }
        assert_eq!(comment("cache.maximum"), None);
    }
}
