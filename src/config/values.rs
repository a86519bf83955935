//! Strings, numbers, flags and lists of a section.

use std::ops::Range;

use toml::de::DeValue;

use super::document::{Located, Section, describe, white_space_hint};
use super::key::KeyKind;

impl Section<'_, '_> {
    /// Reads a string with `read`; `expected` says what it should be, with an example.
    pub(super) fn string<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<Located<T>> {
        self.string_kind(key, KeyKind::Text, expected, read)
    }

    /// A string of a kind that is known better.
    pub(super) fn string_kind<T>(
        &mut self,
        key: &'static str,
        kind: KeyKind,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<Located<T>> {
        self.take_kind(key, kind, |value| match value.as_str() {
            Some(text) => read(text).ok_or_else(|| {
                let hint = white_space_hint(text, |compact| read(compact).is_some());
                format!("expected {expected}, found {text:?}{}", hint.unwrap_or_default())
            }),
            None => Err(format!("expected {expected}, found {}", describe(value))),
        })
    }

    /// One of these words, with its meaning.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<Located<T>> {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
        let expected = match quoted.split_last() {
            Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            _ => quoted.concat(),
        };
        self.string_kind(key, KeyKind::Choice(words), &expected, |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning)
        })
    }

    /// A whole number within `range`.
    pub(super) fn integer(&mut self, key: &'static str, range: Range<u64>) -> Option<Located<u64>> {
        self.take_kind(key, KeyKind::Integer(range.clone()), |value| {
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

    /// A number from 0 to 1.
    pub(super) fn fraction(&mut self, key: &'static str) -> Option<Located<f64>> {
        self.take_kind(key, KeyKind::Fraction, |value| {
            let text = match value {
                DeValue::Float(number) => Some(number.as_str()),
                DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
                _ => None,
            };
            let number = text.and_then(|text| text.replace('_', "").parse().ok());
            number.filter(|number| (0.0..=1.0).contains(number)).ok_or_else(|| {
                format!("expected a number from 0 to 1, such as 0.01, found {}", describe(value))
            })
        })
    }

    pub(super) fn string_list(&mut self, key: &'static str) -> Option<Located<Vec<String>>> {
        self.take_kind(key, KeyKind::StringList, |value| {
            let strings = value.as_array().and_then(|array| {
                array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
            });
            strings.ok_or_else(|| {
                format!("expected a list of strings, such as [\"a\", \"b\"], found {}", describe(value))
            })
        })
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<Located<bool>> {
        self.take_kind(key, KeyKind::Boolean, |value| {
            value.as_bool().ok_or_else(|| format!("expected true or false, found {}", describe(value)))
        })
    }
}
