//! The JSON Schema of the configuration file, for editors: what the reader takes, and what the documents say.

use serde_json::{Map, Value, json};

use super::key::{KeyKind, KeyRead, join, without_indexes};
use super::{read, reference};

/// A JSON Schema (draft 7, which the TOML plug-ins of editors know).
pub fn schema() -> String {
    let keys = read::keys();
    let mut schema = section("", &keys);
    schema.insert("$schema".to_owned(), json!("http://json-schema.org/draft-07/schema#"));
    schema.insert("title".to_owned(), json!("railgate"));
    format!("{:#}", Value::Object(schema))
}

fn section(scope: &str, keys: &[KeyRead]) -> Map<String, Value> {
    let own = keys.iter().filter(|key| key.scope == scope);
    let properties: Map<_, _> =
        own.map(|key| (key.name.to_owned(), Value::Object(property(key, keys)))).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema.insert("properties".to_owned(), Value::Object(properties));
    if let Some(comment) = reference::comment(&without_indexes(scope)) {
        schema.insert("description".to_owned(), json!(comment));
    }
    schema
}

fn property(key: &KeyRead, keys: &[KeyRead]) -> Map<String, Value> {
    let inner = join(&key.scope, key.name);
    let schema = match &key.kind {
        KeyKind::Section => return section(&inner, keys),
        KeyKind::SectionArray => json!({ "type": "array", "items": section(&format!("{inner}[0]"), keys) }),
        KeyKind::Integer(range) => {
            json!({ "type": "integer", "minimum": range.start, "maximum": range.end.saturating_sub(1) })
        }
        KeyKind::Fraction => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        KeyKind::Boolean => json!({ "type": "boolean" }),
        KeyKind::Text => json!({ "type": "string" }),
        KeyKind::Duration(_) => json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" }),
        KeyKind::Size(_) => json!({ "type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)$" }),
        KeyKind::Choice(words) => json!({ "type": "string", "enum": words }),
        KeyKind::StringList => json!({ "type": "array", "items": { "type": "string" } }),
    };
    let Value::Object(mut schema) = schema else { return Map::new() };
    if let Some(row) = reference::row(&key.path()) {
        let description = format!("{}\nDefault: {}. Range: {}.", row.summary, row.default, row.range);
        schema.insert("description".to_owned(), json!(description));
        if let Some(default) = row.default_value.and_then(|value| default(&key.kind, &value)) {
            schema.insert("default".to_owned(), default);
        }
    }
    schema
}

fn default(kind: &KeyKind, value: &str) -> Option<Value> {
    match kind {
        KeyKind::Text | KeyKind::Duration(_) | KeyKind::Size(_) | KeyKind::Choice(_) => Some(json!(value)),
        KeyKind::Integer(_) | KeyKind::Fraction | KeyKind::Boolean | KeyKind::StringList => {
            serde_json::from_str(value).ok()
        }
        KeyKind::Section | KeyKind::SectionArray => None,
    }
}
