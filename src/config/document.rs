//! A TOML document that is read key by key. A mistake is written down with its place, and the
//! reading goes on, so that one run shows them all.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// The line, counted from 1, if the problem has a place.
    pub line: Option<usize>,
    /// The key, such as `cache.discover.ttl`, if it is about one.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Document<'t> {
    file: &'t str,
    text: &'t str,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

/// A value, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) key: String,
    pub(super) at: usize,
}

impl<'t> Document<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, problems: RefCell::default(), warnings: RefCell::default() }
    }

    /// The top level. Syntax errors are reported, and what could be read is there all the same.
    pub(super) fn root(&self) -> Section<'_, 't> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let message = match error.message() {
                "duplicate key" => {
                    "duplicate key: what has this name is there already, further up; put both together"
                }
                other => other,
            };
            self.problem(error.span().unwrap_or_default().start, "", message);
        }
        Section::new(self, String::new(), 0, table.into_inner())
    }

    pub(super) fn problem(&self, at: usize, key: &str, message: impl Into<String>) {
        self.problems.borrow_mut().push(self.finding(at, key, message.into()));
    }

    pub(super) fn warn(&self, at: usize, key: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(self.finding(at, key, message.into()));
    }

    fn finding(&self, at: usize, key: &str, message: String) -> Problem {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        Problem { file: self.file.to_owned(), line: Some(line), key: key.to_owned(), message }
    }

    /// Problems and warnings, in the order of the file.
    pub(super) fn into_findings(self) -> (Vec<Problem>, Vec<Problem>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        (problems, self.warnings.into_inner())
    }
}

/// A table of the file, from which keys are taken until none is left.
#[derive(Debug)]
pub(super) struct Section<'d, 't> {
    document: &'d Document<'t>,
    path: String,
    at: usize,
    entries: BTreeMap<String, (Range<usize>, Spanned<DeValue<'t>>)>,
    known: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    fn new(document: &'d Document<'t>, path: String, at: usize, table: DeTable<'t>) -> Self {
        let entries =
            table.into_iter().map(|(key, value)| (key.get_ref().to_string(), (key.span(), value))).collect();
        Self { document, path, at, entries, known: Vec::new() }
    }

    /// The full name of a key of this section.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Whether the key is there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where the section begins in the file.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Reads a key with `read`, which says what it expected if the value does not do.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<Placed<T>> {
        self.known.push(key);
        let (span, value) = self.entries.remove(key)?;
        let name = self.name(key);
        match read(value.get_ref()) {
            Ok(value) => Some(Placed { value, key: name, at: span.start }),
            Err(message) => {
                self.document.problem(span.start, &name, message);
                None
            }
        }
    }

    /// Reads text with `read`; `expected` says what it should be, with an example.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<Placed<T>> {
        self.take(key, |value| match value.as_str() {
            Some(text) => read(text).ok_or_else(|| {
                let hint = white_space_hint(text, |dense| read(dense).is_some());
                format!("expected {expected}, found {text:?}{}", hint.unwrap_or_default())
            }),
            None => Err(format!("expected {expected}, found {}", kind(value))),
        })
    }

    /// A whole number within `range`.
    pub(super) fn count(&mut self, key: &'static str, range: Range<u64>) -> Option<Placed<u64>> {
        self.take(key, |value| {
            let number = value.as_integer().and_then(|integer| {
                u64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
            });
            match number {
                Some(number) if range.contains(&number) => Ok(number),
                _ => Err(format!(
                    "expected a whole number from {} to {}, found {}",
                    range.start,
                    range.end - 1,
                    kind(value)
                )),
            }
        })
    }

    /// A list of texts.
    pub(super) fn list(&mut self, key: &'static str) -> Option<Placed<Vec<String>>> {
        self.take(key, |value| {
            let texts = value.as_array().and_then(|array| {
                array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
            });
            texts.ok_or_else(|| {
                format!("expected a list of texts, such as [\"a\", \"b\"], found {}", kind(value))
            })
        })
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<Placed<bool>> {
        self.take(key, |value| {
            value.as_bool().ok_or_else(|| format!("expected true or false, found {}", kind(value)))
        })
    }

    /// The table of this name, if it is there.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Section<'d, 't>> {
        self.known.push(key);
        let (span, value) = self.entries.remove(key)?;
        let (document, name) = (self.document, self.name(key));
        match value.into_inner() {
            DeValue::Table(table) => Some(Section::new(document, name, span.start, table)),
            DeValue::Array(array) if array.iter().any(|item| item.get_ref().is_table()) => {
                let message =
                    format!("has two brackets, [[{name}]]; write one, [{name}]: there is one such section");
                document.problem(span.start, &name, message);
                // What else is wrong in it is told too.
                let table = array.into_iter().find_map(|item| match item.into_inner() {
                    DeValue::Table(table) => Some(table),
                    _ => None,
                });
                Some(Section::new(document, name, span.start, table?))
            }
            other => {
                document.problem(
                    span.start,
                    &name,
                    format!("expected a section, [{name}], found {}", kind(&other)),
                );
                None
            }
        }
    }

    /// The tables of an array of this name, if there is one, and if there is a table in it or it is empty.
    pub(super) fn sections(&mut self, key: &'static str) -> Option<Placed<Vec<Section<'d, 't>>>> {
        self.known.push(key);
        let (span, value) = self.entries.remove(key)?;
        let (document, name) = (self.document, self.name(key));
        let mut sections = Vec::new();
        let mut is_good = true;
        match value.into_inner() {
            DeValue::Array(array) => {
                for item in array {
                    let at = item.span().start;
                    match item.into_inner() {
                        DeValue::Table(table) => {
                            sections.push(Section::new(document, name.clone(), at, table));
                        }
                        _ => is_good = false,
                    }
                }
            }
            DeValue::Table(table) => {
                let message =
                    format!("has one bracket, [{name}]; write two, [[{name}]]: there may be several");
                document.problem(span.start, &name, message);
                // What else is wrong in it is told too.
                sections.push(Section::new(document, name.clone(), span.start, table));
            }
            _ => is_good = false,
        }
        if !is_good {
            let message = format!("expected sections with two brackets each, [[{name}]]");
            document.problem(span.start, &name, message);
            if sections.is_empty() {
                return None;
            }
        }
        Some(Placed { value: sections, key: name, at: span.start })
    }

    /// Reports what is left: keys that nobody knows.
    pub(super) fn finish(self) {
        for (key, (span, _)) in &self.entries {
            let near = self.known.iter().copied().min_by_key(|known| distance(known, key));
            let hint = match near {
                Some(known) if distance(known, key) <= 2 => format!("did you mean {known:?}?"),
                _ => format!("known here: {}", self.known.join(", ")),
            };
            self.document.problem(span.start, &self.name(key), format!("unknown key; {hint}"));
        }
    }
}

fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) if !number.as_str().is_empty() => {
            format!("the bare number {}", number.as_str())
        }
        DeValue::Float(number) => format!("the bare number {}", number.as_str()),
        DeValue::String(text) => format!("the text {text:?}"),
        other => format!("a value of type {}", other.type_str()),
    }
}

/// Levenshtein's: how many letters to change, add or drop to get from one name to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let above = *cell;
            *cell = (diagonal + usize::from(from != to)).min(above + 1).min(left + 1);
            diagonal = above;
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// What to write instead of a text that is only wrong for the white space in it.
pub(super) fn white_space_hint(text: &str, is_right: impl Fn(&str) -> bool) -> Option<String> {
    let trimmed = text.trim();
    // Between the words of anything else, something is missing rather than too much.
    let is_number = trimmed.starts_with(|first: char| first.is_ascii_digit());
    let dense = if is_number { trimmed.split_whitespace().collect() } else { trimmed.to_owned() };
    is_right(&dense).then(|| format!("; write {dense:?}, without white space"))
}
