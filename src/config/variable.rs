//! Keys from the environment: `RAILGATE_UPSTREAM__URL` is `upstream.url`.

use std::borrow::Cow;
use std::ffi::OsString;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::key::{self, KeyKind, KeyRead, PREFIX};
use super::unknown;

/// A variable that sets a key.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    path: Vec<String>,
    /// The value, as TOML.
    value: String,
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
                mistakes.push(Diagnostic { file, line: None, key, message, excerpt: None });
            }
        }
    }
    variables.sort_by(|a, b| a.name.cmp(&b.name));
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
    let names = || keys.iter().filter_map(|key| Some((key, key.variable()?)));
    let Some((key, _)) = names().find(|(_, known)| known == name) else {
        let meant = name.trim_start_matches(PREFIX).replace("__", ".").to_ascii_lowercase();
        let known: Vec<_> = names().map(|(key, _)| key.path()).collect();
        let similar = unknown::similar(&meant, known.iter().map(String::as_str)).into_iter();
        let similar: Vec<_> = similar.map(key::variable).collect();
        let message = match similar.as_slice() {
            [] => format!("sets no key; a key such as upstream.url is set by {PREFIX}UPSTREAM__URL"),
            similar => format!("sets no key; did you mean {}?", similar.join(" or ")),
        };
        return Err((String::new(), message));
    };
    let path = key.path();
    let Ok(value) = value.into_string() else {
        return Err((path, "holds bytes that are not UTF-8".to_owned()));
    };
    let value = to_toml(&value, &key.kind).map_err(|message| (path.clone(), message))?;
    Ok(Variable { name: name.to_owned(), path: path.split('.').map(str::to_owned).collect(), value })
}

/// The value as TOML. Strings are taken as they are, without quotes. What is no number is left to the reader, whose
/// error says what it expects.
fn to_toml(text: &str, kind: &KeyKind) -> Result<String, String> {
    match kind {
        KeyKind::Integer(_) | KeyKind::Boolean => {
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

impl Variable {
    /// Puts the value into the table of the file. `offset` is where errors about it are.
    pub(super) fn apply<'t>(&'t self, table: &mut DeTable<'t>, offset: usize) {
        let (Some((last, sections)), Ok(value)) = (self.path.split_last(), DeValue::parse(&self.value))
        else {
            return;
        };
        let spanned = |name: &str| Spanned::new(offset..offset, Cow::Owned(name.to_owned()));
        let mut table = table;
        for section in sections {
            if !table.contains_key(section.as_str()) {
                let inner = DeValue::Table(DeTable::new());
                table.insert(spanned(section), Spanned::new(offset..offset, inner));
            }
            match table.get_mut(section.as_str()).map(Spanned::get_mut) {
                Some(DeValue::Table(inner)) => table = inner,
                // The reader says that this is no section.
                _ => return,
            }
        }
        // The key with its old place would remain.
        table.remove(last.as_str());
        table.insert(spanned(last), Spanned::new(offset..offset, value.into_inner()));
    }
}
