//! Mistakes and warnings, with the place that they are about.

use std::fmt;

use crate::reload::Mistake;

/// One mistake in a configuration, or one warning about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong, and where.
    pub mistake: Mistake,
    /// The line itself.
    pub excerpt: Option<Excerpt>,
}

impl From<Mistake> for Diagnostic {
    fn from(mistake: Mistake) -> Self {
        Self { mistake, excerpt: None }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mistake.fmt(f)
    }
}

/// A line of the file, and the characters in it that a diagnostic is about. Its `Display` takes two lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    line: usize,
    text: String,
    column: usize,
    width: usize,
}

/// Characters of a line that are shown.
const MAX_WIDTH: usize = 100;

impl Excerpt {
    /// The place at `offset`, if what `key` names is written there, or anything at all if `key` is empty.
    pub(super) fn new(file: &str, offset: usize, key: &str) -> Option<Self> {
        let before = file.get(..offset)?;
        let begin = before.rfind('\n').map_or(0, |at| at + 1);
        let whole = file.get(begin..)?.lines().next()?;
        let (indent, rest) = whole.split_at_checked(offset - begin)?;
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
        let name = rest.split(|c| !is_name(c)).next().unwrap_or_default();
        if rest.is_empty() || !key.is_empty() && !key.split('.').any(|part| part == name) {
            return None;
        }
        let column = indent.chars().count();
        let text: String = without_secrets(whole).chars().take(MAX_WIDTH).collect();
        // What is hidden, or too far to the right, cannot be pointed at.
        let width = name.chars().count().max(1);
        let line = before.matches('\n').count() + 1;
        (column + width <= text.chars().count()).then_some(Self { line, text, column, width })
    }
}

/// A secret that was written into the file by mistake, or a password in a URL, is not shown, nor what is behind it.
fn without_secrets(line: &str) -> String {
    let assignments = line.match_indices('=').filter_map(|(at, _)| line.split_at_checked(at));
    let may_show = |(before, value): &(&str, &str)| {
        let name = before.trim_end().trim_end_matches(['"', '\'']);
        let name = name.rsplit(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.')).next();
        let name = name.unwrap_or_default().to_ascii_lowercase();
        let has_secret_name = ["secret", "token", "password", "key"].iter().any(|word| name.contains(word));
        let is_path = name.ends_with("_file");
        (!has_secret_name || is_path) && !value.contains('@') && !value.contains("whsec_")
    };
    let hidden = { assignments }.find(|assignment| !may_show(assignment));
    hidden.map_or_else(|| line.to_owned(), |(before, _)| format!("{before}= …"))
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A tab is as wide in both lines.
        let indent = self.text.chars().take(self.column).map(|c| if c == '\t' { '\t' } else { ' ' });
        let (indent, caret) = (indent.collect::<String>(), "^".repeat(self.width));
        write!(f, "{:>5} | {}\n      | {indent}{caret}", self.line, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(file: &str, at: &str, key: &str) -> Option<String> {
        Excerpt::new(file, file.find(at).unwrap(), key).map(|excerpt| excerpt.to_string())
    }

    #[test]
    fn the_key_is_underlined() {
        for (file, at, key, expected) in [
            ("a = 1\n  tll = 5\nb = 2", "tll", "cache.tll", "    2 |   tll = 5\n      |   ^^^"),
            ("[cache]\nx = 1", "cache", "cache.wait", "    1 | [cache]\n      |  ^^^^^"),
            ("\tä = 1\r\n", "ä", "ä", "    1 | \tä = 1\n      | \t^"),
            ("a = 'x", "'x", "", "    1 | a = 'x\n      |     ^"),
        ] {
            assert_eq!(shown(file, at, key).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_place_without_the_key_is_not_shown() {
        assert_eq!(shown("[upstream]\n", "[", "auth.shell.secret_file"), None);
        assert_eq!(Excerpt::new("a", 7, "a"), None);
        assert_eq!(Excerpt::new("", 0, ""), None);
        let far = format!("{} tll = 1", "x".repeat(200));
        assert_eq!(shown(&far, "tll", "tll"), None);
    }

    #[test]
    fn a_secret_is_not_shown() {
        for (line, key) in [
            ("secret = \"s3cret\"", "secret"),
            ("hook_token='s3cret'", "hook_token"),
            ("url = \"http://u:s3cret@h\"", "url"),
            ("upstream = { url = \"http://u:s3cret@h\" }", "upstream"),
            ("shell = { secret = \"s3cret\" }", "secret"),
            ("shell = { secret_file = \"f\", \"secret\" = \"s3cret\" }", "shell"),
            ("url = \"http://a\", auth.token=\"s3cret\"", "url"),
        ] {
            let shown = shown(line, key, key).unwrap();
            assert!(!shown.contains("s3cret") && shown.contains('^') && shown.contains('…'), "{shown}");
        }
        let path = "secret_file = \"/etc/secret\"";
        assert!(shown(path, "secret_file", "secret_file").unwrap().contains("/etc/secret"));
    }
}
