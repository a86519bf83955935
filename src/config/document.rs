//! A TOML document that is read key by key. A mistake is recorded with its place, and reading
//! goes on, so that one run shows all mistakes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One mistake in a configuration file, or one warning about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// As it was named on the command line.
    pub file: String,
    /// Counted from 1. `None` if the whole file is concerned.
    pub line: Option<usize>,
    /// The full name, such as `cache.discover.ttl`. Empty if no key is concerned.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Diagnostic {
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
    errors: RefCell<Vec<Diagnostic>>,
    warnings: RefCell<Vec<Diagnostic>>,
}

/// A value, the full name of its key, and the offset of the key in the file.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) key: String,
    pub(super) offset: usize,
}

impl<'t> Document<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, errors: RefCell::default(), warnings: RefCell::default() }
    }

    /// The top level. Syntax errors are recorded; what could be parsed is there all the same.
    pub(super) fn root(&self) -> Section<'_, 't> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let message = match error.message() {
                "duplicate key" => {
                    "duplicate key: the same name is already used further up; put both together"
                }
                other => other,
            };
            self.error(error.span().unwrap_or_default().start, "", message);
        }
        Section::new(self, String::new(), 0, table.into_inner())
    }

    pub(super) fn error(&self, offset: usize, key: &str, message: impl Into<String>) {
        self.errors.borrow_mut().push(self.diagnostic(offset, key, message.into()));
    }

    pub(super) fn warn(&self, offset: usize, key: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(self.diagnostic(offset, key, message.into()));
    }

    fn diagnostic(&self, offset: usize, key: &str, message: String) -> Diagnostic {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        Diagnostic { file: self.file.to_owned(), line: Some(line), key: key.to_owned(), message }
    }

    /// Errors, in the order of the file, and warnings.
    pub(super) fn into_diagnostics(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.line);
        (errors, self.warnings.into_inner())
    }
}

/// A table of the file. Each key that is read is taken out of it; what is left in the end is unknown.
#[derive(Debug)]
pub(super) struct Section<'d, 't> {
    document: &'d Document<'t>,
    path: String,
    offset: usize,
    entries: BTreeMap<String, (Range<usize>, Spanned<DeValue<'t>>)>,
    known_keys: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    fn new(document: &'d Document<'t>, path: String, offset: usize, table: DeTable<'t>) -> Self {
        let entries =
            table.into_iter().map(|(key, value)| (key.get_ref().to_string(), (key.span(), value))).collect();
        Self { document, path, offset, entries, known_keys: Vec::new() }
    }

    /// The full name of a key of this section.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Whether the key is there, valid or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where the section begins in the file.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Reads a key with `read`, whose error says what it expected.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<Located<T>> {
        self.known_keys.push(key);
        let (span, value) = self.entries.remove(key)?;
        let name = self.name(key);
        match read(value.get_ref()) {
            Ok(value) => Some(Located { value, key: name, offset: span.start }),
            Err(message) => {
                self.document.error(span.start, &name, message);
                None
            }
        }
    }

    /// Reads a string with `read`; `expected` says what it should be, with an example.
    pub(super) fn string<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<Located<T>> {
        self.take(key, |value| match value.as_str() {
            Some(text) => read(text).ok_or_else(|| {
                let hint = white_space_hint(text, |compact| read(compact).is_some());
                format!("expected {expected}, found {text:?}{}", hint.unwrap_or_default())
            }),
            None => Err(format!("expected {expected}, found {}", describe(value))),
        })
    }

    /// A whole number within `range`.
    pub(super) fn integer(&mut self, key: &'static str, range: Range<u64>) -> Option<Located<u64>> {
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
                    describe(value)
                )),
            }
        })
    }

    pub(super) fn string_list(&mut self, key: &'static str) -> Option<Located<Vec<String>>> {
        self.take(key, |value| {
            let strings = value.as_array().and_then(|array| {
                array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
            });
            strings.ok_or_else(|| {
                format!("expected a list of strings, such as [\"a\", \"b\"], found {}", describe(value))
            })
        })
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<Located<bool>> {
        self.take(key, |value| {
            value.as_bool().ok_or_else(|| format!("expected true or false, found {}", describe(value)))
        })
    }

    /// The table of this name, if it is there.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Section<'d, 't>> {
        self.known_keys.push(key);
        let (span, value) = self.entries.remove(key)?;
        let (document, name) = (self.document, self.name(key));
        match value.into_inner() {
            DeValue::Table(table) => Some(Section::new(document, name, span.start, table)),
            DeValue::Array(array) if array.iter().any(|item| item.get_ref().is_table()) => {
                let message = format!(
                    "has two brackets, [[{name}]]; write one, [{name}]: there is only one such section"
                );
                document.error(span.start, &name, message);
                // Other mistakes in it are reported too.
                let table = array.into_iter().find_map(|item| match item.into_inner() {
                    DeValue::Table(table) => Some(table),
                    _ => None,
                });
                Some(Section::new(document, name, span.start, table?))
            }
            other => {
                document.error(
                    span.start,
                    &name,
                    format!("expected a section, [{name}], found {}", describe(&other)),
                );
                None
            }
        }
    }

    /// The tables of the array of this name, if there is one, and if it is empty or has a table in it.
    pub(super) fn section_array(&mut self, key: &'static str) -> Option<Located<Vec<Section<'d, 't>>>> {
        self.known_keys.push(key);
        let (span, value) = self.entries.remove(key)?;
        let (document, name) = (self.document, self.name(key));
        let mut sections = Vec::new();
        let mut is_valid = true;
        match value.into_inner() {
            DeValue::Array(array) => {
                for item in array {
                    let offset = item.span().start;
                    match item.into_inner() {
                        DeValue::Table(table) => {
                            sections.push(Section::new(document, name.clone(), offset, table));
                        }
                        _ => is_valid = false,
                    }
                }
            }
            DeValue::Table(table) => {
                let message =
                    format!("has one bracket, [{name}]; write two, [[{name}]]: there may be several");
                document.error(span.start, &name, message);
                // Other mistakes in it are reported too.
                sections.push(Section::new(document, name.clone(), span.start, table));
            }
            _ => is_valid = false,
        }
        if !is_valid {
            let message = format!("expected sections with two brackets each, [[{name}]]");
            document.error(span.start, &name, message);
            if sections.is_empty() {
                return None;
            }
        }
        Some(Located { value: sections, key: name, offset: span.start })
    }

    /// Reports the keys that were not read.
    pub(super) fn reject_unknown_keys(self) {
        for (key, (span, _)) in &self.entries {
            let distances =
                self.known_keys.iter().map(|known| (strsim::damerau_levenshtein(known, key), known));
            let hint = match distances.min_by_key(|(distance, _)| *distance) {
                Some((..=MAX_TYPOS, known)) => format!("did you mean {known:?}?"),
                _ => format!("known here: {}", self.known_keys.join(", ")),
            };
            self.document.error(span.start, &self.name(key), format!("unknown key; {hint}"));
        }
    }
}

/// Letters of a key that may be changed, added, dropped or swapped for a suggestion.
const MAX_TYPOS: usize = 2;

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) if !number.as_str().is_empty() => {
            format!("the number {}", number.as_str())
        }
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::String(text) => format!("the string {text:?}"),
        other => format!("a value of type {}", other.type_str()),
    }
}

/// What to write instead of a value that is only wrong because of white space in it.
pub(super) fn white_space_hint(text: &str, is_valid: impl Fn(&str) -> bool) -> Option<String> {
    let trimmed = text.trim();
    // White space within anything but a number is no slip of the keyboard: a part is missing there.
    let is_number = trimmed.starts_with(|first: char| first.is_ascii_digit());
    let compact = if is_number { trimmed.split_whitespace().collect() } else { trimmed.to_owned() };
    is_valid(&compact).then(|| format!("; write {compact:?}, without white space"))
}
