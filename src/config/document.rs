//! A TOML document that is read key by key. A mistake is recorded with its place, and reading
//! goes on, so that one run shows all mistakes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Excerpt};
use super::key::{GivenValue, KeyKind, KeyRead, join, to_toml, without_indexes};
use super::unknown;
use super::variable::Variable;
use crate::reload::Mistake;

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Document<'t> {
    file: &'t str,
    text: &'t str,
    /// Each overrides the value in the file. The offset of one is behind the text.
    variables: &'t [Variable],
    all_keys: fn() -> Vec<KeyRead>,
    /// Pretend that every section is there, without a key, so that the reader asks for every key.
    is_description: bool,
    errors: RefCell<Vec<Diagnostic>>,
    warnings: RefCell<Vec<Diagnostic>>,
    keys: RefCell<Vec<KeyRead>>,
    pub(super) secret_files: RefCell<Vec<crate::secret::files::SecretFile>>,
}

/// A value, the full name of its key, and the offset of the key in the file.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) key: String,
    pub(super) offset: usize,
}

impl<'t> Document<'t> {
    /// `all_keys` is for hints about unknown keys.
    pub(super) fn new(
        file: &'t str,
        text: &'t str,
        variables: &'t [Variable],
        all_keys: fn() -> Vec<KeyRead>,
    ) -> Self {
        Self {
            file,
            text,
            variables,
            all_keys,
            is_description: false,
            errors: RefCell::default(),
            warnings: RefCell::default(),
            keys: RefCell::default(),
            secret_files: RefCell::default(),
        }
    }

    /// A document that finds out which keys there are.
    pub(super) fn description() -> Self {
        Self { is_description: true, ..Self::new("", "", &[], Vec::new) }
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
        let mut table = table.into_inner();
        for (index, variable) in self.variables.iter().enumerate() {
            let offset = self.text.len() + 1 + index;
            if let Err(message) = variable.apply(&mut table, offset) {
                self.error(offset, &variable.key(), message);
            }
        }
        Section::new(self, String::new(), 0, table)
    }

    pub(super) fn error(&self, offset: usize, key: &str, message: impl Into<String>) {
        self.errors.borrow_mut().push(self.diagnostic(offset, key, message.into()));
    }

    pub(super) fn warn(&self, offset: usize, key: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(self.diagnostic(offset, key, message.into()));
    }

    /// The variable that has set what is at this offset.
    fn variable(&self, offset: usize) -> Option<&'t Variable> {
        self.variables.get(offset.checked_sub(self.text.len() + 1)?)
    }

    fn diagnostic(&self, offset: usize, key: &str, message: String) -> Diagnostic {
        let key = without_indexes(key);
        if let Some(variable) = self.variable(offset) {
            return Mistake { file: variable.name.clone(), line: None, key, message }.into();
        }
        let excerpt = Excerpt::new(self.text, offset, &key);
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        Diagnostic {
            mistake: Mistake { file: self.file.to_owned(), line: Some(line), key, message },
            excerpt,
        }
    }

    /// Reports the unknown keys of a table whose name is wrong, but whose meaning is known.
    fn check_inside(&self, value: &Spanned<DeValue<'t>>, written: &str, meant: &str, all: &[KeyRead]) {
        let known: Vec<_> = all.iter().filter(|key| key.section() == meant).map(|key| key.name).collect();
        match value.get_ref() {
            DeValue::Table(table) if !known.is_empty() => {
                for (key, value) in table {
                    let name = key.get_ref().as_ref();
                    let written = join(written, name);
                    if !known.contains(&name) {
                        self.error(key.span().start, &written, unknown::message(name, &known, all));
                    }
                    if let Some(name) = unknown::nearest(name, known.iter().copied()) {
                        self.check_inside(value, &written, &join(meant, name), all);
                    }
                }
            }
            DeValue::Array(items) => {
                for item in items.iter().filter(|item| item.get_ref().is_table()) {
                    self.check_inside(item, written, meant, all);
                }
            }
            _ => {}
        }
    }

    /// Errors, in the order of the file, and warnings.
    pub(super) fn into_diagnostics(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.mistake.line);
        (errors, self.warnings.into_inner())
    }

    /// Every key that was asked for, in the order of the reader.
    pub(super) fn keys(&self) -> Vec<KeyRead> {
        self.keys.borrow().clone()
    }
}

/// A table of the file. Each key that is read is taken out of it; what is left in the end is unknown.
#[derive(Debug)]
pub(super) struct Section<'d, 't> {
    document: &'d Document<'t>,
    /// The full name, with an index behind each of several sections.
    path: String,
    offset: usize,
    is_given: bool,
    entries: BTreeMap<String, (Range<usize>, Spanned<DeValue<'t>>)>,
    known_keys: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    fn new(document: &'d Document<'t>, path: String, offset: usize, table: DeTable<'t>) -> Self {
        let entries =
            table.into_iter().map(|(key, value)| (key.get_ref().to_string(), (key.span(), value))).collect();
        Self { document, path, offset, is_given: true, entries, known_keys: Vec::new() }
    }

    /// A section that is not there, for a description.
    fn absent(document: &'d Document<'t>, path: String) -> Self {
        Self { is_given: false, ..Self::new(document, path, 0, DeTable::new()) }
    }

    /// The full name of a key of this section.
    pub(super) fn name(&self, key: &str) -> String {
        join(&without_indexes(&self.path), key)
    }

    /// Removes a key, and records that it exists.
    fn remove(&mut self, key: &'static str, kind: KeyKind) -> Option<(Range<usize>, Spanned<DeValue<'t>>)> {
        self.known_keys.push(key);
        let entry = self.entries.remove(key);
        let given = entry.as_ref().map(|(span, value)| GivenValue {
            toml: to_toml(value.get_ref()),
            origin: self.document.diagnostic(span.start, "", String::new()).mistake.place(),
        });
        self.document.keys.borrow_mut().push(KeyRead {
            scope: self.path.clone(),
            is_section_given: self.is_given,
            name: key,
            kind,
            given,
        });
        entry
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
        self.take_kind(key, KeyKind::Text, read)
    }

    /// The same for a key of this kind.
    pub(super) fn take_kind<T>(
        &mut self,
        key: &'static str,
        kind: KeyKind,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let (span, value) = self.remove(key, kind)?;
        let name = self.name(key);
        match read(value.get_ref()) {
            Ok(value) => Some(Located { value, key: name, offset: span.start }),
            Err(message) => {
                self.document.error(span.start, &name, message);
                None
            }
        }
    }

    /// The table of this name, if it is there.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Section<'d, 't>> {
        let (document, name, path) = (self.document, self.name(key), join(&self.path, key));
        let Some((span, value)) = self.remove(key, KeyKind::Section) else {
            return document.is_description.then(|| Section::absent(document, path));
        };
        match value.into_inner() {
            DeValue::Table(table) => Some(Section::new(document, path, span.start, table)),
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
                Some(Section::new(document, path, span.start, table?))
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
        let (document, name, path) = (self.document, self.name(key), join(&self.path, key));
        let Some((span, value)) = self.remove(key, KeyKind::SectionArray) else {
            let sections = vec![Section::absent(document, format!("{path}[0]"))];
            return document.is_description.then_some(Located { value: sections, key: name, offset: 0 });
        };
        let mut sections = Vec::new();
        let mut is_valid = true;
        match value.into_inner() {
            DeValue::Array(array) => {
                for item in array {
                    let offset = item.span().start;
                    match item.into_inner() {
                        DeValue::Table(table) => {
                            let path = format!("{path}[{}]", sections.len());
                            sections.push(Section::new(document, path, offset, table));
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
                sections.push(Section::new(document, format!("{path}[0]"), span.start, table));
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
        if self.entries.is_empty() {
            return;
        }
        let all = (self.document.all_keys)();
        let section = without_indexes(&self.path);
        for (key, (span, value)) in &self.entries {
            let message = unknown::message(key, &self.known_keys, &all);
            self.document.error(span.start, &self.name(key), message);
            if let Some(meant) = unknown::nearest(key, self.known_keys.iter().copied()) {
                self.document.check_inside(value, &self.name(key), &join(&section, meant), &all);
            }
        }
    }
}

/// A value in an error.
pub(super) fn describe(value: &DeValue<'_>) -> String {
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
