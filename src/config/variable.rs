//! Keys from the environment: `RAILGATE_UPSTREAM__URL` is `upstream.url`, and `RAILGATE_LISTEN__1__ADDRESS` is that of
//! the second `[[listen]]`.

use std::borrow::Cow;
use std::ffi::OsString;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::key::{self, KeyKind, KeyRead, PREFIX, join};
use super::unknown;
use crate::reload::Mistake;

/// A variable that sets a key.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    path: Vec<Step>,
    /// The value, as TOML.
    value: String,
}

/// A part of the way to a key. In this order, a list as a whole is set before a part of it, and its parts by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Name(String),
    /// One of several sections, counted from 0.
    Index(usize),
}

/// Names the file, so it is no key.
const CONFIG: &str = "RAILGATE_CONFIG";

/// The variables that set keys, and mistakes in them.
pub(super) fn read(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    all_keys: fn() -> Vec<KeyRead>,
) -> (Vec<Variable>, Vec<Diagnostic>) {
    let (mut variables, mut mistakes) = (Vec::new(), Vec::new());
    let mut keys = None;
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        if name == CONFIG || is_set_by_kubernetes(name) {
            continue;
        }
        match read_one(name, value, keys.get_or_insert_with(all_keys)) {
            Ok(variable) => variables.push(variable),
            Err((key, message)) => {
                let file = name.to_owned();
                mistakes.push(Mistake { file, line: None, key, message }.into());
            }
        }
    }
    variables.sort_by(|a, b| a.path.cmp(&b.path));
    (variables, mistakes)
}

/// The variables by which Kubernetes tells every container in a namespace of a Service named `railgate` or
/// `railgate-…`.
fn is_set_by_kubernetes(name: &str) -> bool {
    let is_port = |rest: &str| {
        let mut words = rest.split('_');
        let is_number = words.next().is_some_and(|port| port.parse::<u16>().is_ok());
        is_number && matches!(words.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| is_port(rest))
}

fn read_one(name: &str, value: OsString, keys: &[KeyRead]) -> Result<Variable, (String, String)> {
    let path: Vec<_> = name.trim_start_matches(PREFIX).split("__").map(Step::parse).collect();
    // The first of several sections stands for all of them.
    let first = path.iter().map(|step| match step {
        Step::Name(name) => name.to_ascii_uppercase(),
        Step::Index(_) => "0".to_owned(),
    });
    let first = format!("{PREFIX}{}", first.collect::<Vec<_>>().join("__"));
    let is_known = name.bytes().all(|byte| !byte.is_ascii_lowercase());
    let found = keys.iter().find(|key| is_known && key.variable().as_ref() == Some(&first));
    let Some(key) = found else { return Err((String::new(), unknown_message(&path, keys))) };
    let Ok(value) = value.into_string() else {
        return Err((key.path(), "holds bytes that are not UTF-8".to_owned()));
    };
    let value = to_toml(&value, &key.kind).map_err(|message| (key.path(), message))?;
    Ok(Variable { name: name.to_owned(), path, value })
}

fn unknown_message(path: &[Step], keys: &[KeyRead]) -> String {
    let meant = full_name(path);
    let variables: Vec<_> = keys.iter().filter_map(|key| Some((key.path(), key.variable()?))).collect();
    let similar = unknown::similar(&meant, variables.iter().map(|(path, _)| path.as_str()));
    let variable =
        |similar: &str| variables.iter().find(|(path, _)| path == similar).map(|(_, name)| &**name);
    let similar: Vec<_> = similar.into_iter().filter_map(variable).collect();
    match similar.as_slice() {
        [] => format!("sets no key; a key such as upstream.url is set by {PREFIX}UPSTREAM__URL"),
        similar => format!("sets no key; did you mean {}?", similar.join(" or ")),
    }
}

/// The full name of the key, without indexes.
fn full_name(path: &[Step]) -> String {
    let names = path.iter().filter_map(|step| match step {
        Step::Name(name) => Some(name.as_str()),
        Step::Index(_) => None,
    });
    names.fold(String::new(), |path, name| join(&path, name))
}

/// The value as TOML. Strings are taken as they are, without quotes. What is no number is left to the reader, whose
/// error says what it expects.
fn to_toml(text: &str, kind: &KeyKind) -> Result<String, String> {
    match kind {
        KeyKind::Integer(_) | KeyKind::Fraction | KeyKind::Boolean => {
            Ok(normalized(text).unwrap_or_else(|| key::text_to_toml(text)))
        }
        KeyKind::StringList | KeyKind::SectionArray => {
            let is_list = |value: &String| value.starts_with('[');
            normalized(text).or_else(|| json_to_toml(text)).filter(is_list).ok_or_else(|| {
                let example = match kind {
                    KeyKind::StringList => "[\"a\", \"b\"]",
                    _ => "[{ address = \"127.0.0.1:8181\" }]",
                };
                format!("expected a list in TOML or JSON, such as {example}, found {text:?}")
            })
        }
        KeyKind::Text | KeyKind::Duration(_) | KeyKind::Size(_) | KeyKind::Choice(_) | KeyKind::Section => {
            Ok(key::text_to_toml(text))
        }
    }
}

/// The text, if it is a value in TOML.
fn normalized(text: &str) -> Option<String> {
    let text = text.trim();
    DeValue::parse(text).ok().map(|_| text.to_owned())
}

fn json_to_toml(text: &str) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    normalized(&toml::Value::try_from(json).ok()?.to_string())
}

impl Step {
    /// A number as it is usually written is an index; no key is called like that.
    fn parse(text: &str) -> Self {
        let index = text.parse().ok().filter(|index: &usize| index.to_string() == text);
        index.map_or_else(|| Self::Name(text.to_ascii_lowercase()), Self::Index)
    }
}

impl Variable {
    /// The full name of the key that it sets, without indexes.
    pub(super) fn key(&self) -> String {
        full_name(&self.path)
    }

    /// Puts the value into the table of the file. `offset` is where errors about it are.
    pub(super) fn apply<'t>(&'t self, table: &mut DeTable<'t>, offset: usize) -> Result<(), String> {
        let Ok(value) = DeValue::parse(&self.value) else { return Ok(()) };
        set(table, "", &self.path, placed_at(offset, value.into_inner()), offset)
    }
}

/// Sets the value on this way from the table called `section`. What is in its way is no section: the reader says so.
fn set<'t>(
    table: &mut DeTable<'t>,
    section: &str,
    path: &[Step],
    value: Spanned<DeValue<'t>>,
    offset: usize,
) -> Result<(), String> {
    let [Step::Name(name), rest @ ..] = path else { return Ok(()) };
    let key = Spanned::new(offset..offset, Cow::Owned(name.clone()));
    let section = join(section, name);
    match rest {
        [] => {
            // The key with its old place would remain.
            table.remove(name.as_str());
            table.insert(key, value);
            Ok(())
        }
        [Step::Index(index), rest @ ..] => {
            let old = table.get(name.as_str()).map(Spanned::get_ref);
            let count = old.map_or(Some(0), |old| Some(old.as_array()?.len()));
            let Some(count) = count else { return Ok(()) };
            if *index > count {
                return Err(format!("leaves a gap: the next section [[{section}]] has the number {count}"));
            }
            let list =
                table.entry(key).or_insert(Spanned::new(offset..offset, DeValue::Array(DeArray::new())));
            let DeValue::Array(list) = list.get_mut() else { return Ok(()) };
            if *index == count {
                list.push(Spanned::new(offset..offset, DeValue::Table(DeTable::new())));
            }
            match list.get_mut(*index).map(Spanned::get_mut) {
                Some(DeValue::Table(table)) => set(table, &section, rest, value, offset),
                _ => Ok(()),
            }
        }
        rest => {
            let inner = Spanned::new(offset..offset, DeValue::Table(DeTable::new()));
            match table.entry(key).or_insert(inner).get_mut() {
                DeValue::Table(inner) => set(inner, &section, rest, value, offset),
                _ => Ok(()),
            }
        }
    }
}

/// The value with all its parts at this place.
fn placed_at(offset: usize, value: DeValue<'_>) -> Spanned<DeValue<'_>> {
    let value = match value {
        DeValue::Array(items) => {
            DeValue::Array(items.into_iter().map(|item| placed_at(offset, item.into_inner())).collect())
        }
        DeValue::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| {
                (Spanned::new(offset..offset, key.into_inner()), placed_at(offset, value.into_inner()))
            });
            DeValue::Table(entries.collect())
        }
        other => other,
    };
    Spanned::new(offset..offset, value)
}
