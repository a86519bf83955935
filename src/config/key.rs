//! What the reader has asked for: each key, what it may be, and what the configuration gives for it. So the
//! reader itself is the list of all keys.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::de::DeValue;

/// A key that was read.
#[derive(Clone, Debug)]
pub(super) struct KeyRead {
    /// The tables around it, such as `listen[1].tls`. Empty at the top level.
    pub(super) scope: String,
    /// Its section was in the configuration.
    pub(super) is_section_given: bool,
    pub(super) name: &'static str,
    pub(super) kind: KeyKind,
    pub(super) given: Option<GivenValue>,
}

/// What a key takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    Integer(Range<u64>),
    /// A number from 0 to 1.
    Fraction,
    Boolean,
    Text,
    Duration(RangeInclusive<Duration>),
    Size(RangeInclusive<usize>),
    /// One of these words.
    Choice(Vec<&'static str>),
    StringList,
    Section,
    /// Several sections, `[[…]]`.
    SectionArray,
}

/// The value in the configuration.
#[derive(Clone, Debug)]
pub(super) struct GivenValue {
    /// As TOML.
    pub(super) toml: String,
    /// Where it comes from: `railgate.toml:3`, or a variable.
    pub(super) origin: String,
}

/// Variables of the environment begin with this.
pub(super) const PREFIX: &str = "RAILGATE_";

impl KeyRead {
    /// The tables around it, without indexes.
    pub(super) fn section(&self) -> String {
        without_indexes(&self.scope)
    }

    /// Its full name, such as `cache.discover.ttl`.
    pub(super) fn path(&self) -> String {
        join(&self.section(), self.name)
    }

    /// The variable of the environment that sets it, with the index of each section of several. `None` for sections.
    pub(super) fn variable(&self) -> Option<String> {
        let path = join(&self.scope, self.name).replace('[', ".").replace(']', "");
        let is_settable = self.kind != KeyKind::Section;
        is_settable.then(|| format!("{PREFIX}{}", path.replace('.', "__").to_ascii_uppercase()))
    }
}

pub(super) fn without_indexes(scope: &str) -> String {
    let parts = scope.split('.').map(|part| part.split('[').next().unwrap_or(part));
    parts.collect::<Vec<_>>().join(".")
}

pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// A value as TOML in one line.
pub(super) fn to_toml(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text_to_toml(text),
        DeValue::Integer(number) => match number.radix() {
            10 => number.as_str().to_owned(),
            radix => i64::from_str_radix(&number.as_str().replace('_', ""), radix)
                .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
        },
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| to_toml(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(_) => "{}".to_owned(),
    }
}

/// A string in quotes, with escapes where needed: those of JSON are also those of TOML.
pub(super) fn text_to_toml(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
