//! The reference of keys in config/README.md says what the reader does.

use std::collections::BTreeMap;
use std::time::Duration;

use super::shipped::{collect_known_keys, join, uncommented, with_generic_class};
use super::*;
use crate::config::units;
use crate::refusal::Refusal;
use crate::route::Class;

const README: &str = include_str!("../../../config/README.md");

/// Keys whose value in the annotated file is an example, or whose default is another key.
const NO_DEFAULTS: [&str; 4] =
    ["listen.connections", "upstream.credential", "upstream.secret_file", "upstream.server.backup"];

/// The rows of the reference in their order: key, default, range.
fn rows() -> Vec<[&'static str; 3]> {
    let (_, tables) = README.split_once("\n## Every key\n").unwrap();
    let rows = tables.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(key, cells)| {
        let mut cells = cells.split(" | ");
        [key, cells.next().unwrap(), cells.next().unwrap()]
    })
    .collect()
}

#[test]
fn every_key_has_a_row() {
    let mut known = BTreeSet::new();
    collect_known_keys("", &mut known);
    let mut listed: Vec<_> = rows().into_iter().map(|[key, ..]| key).collect();
    listed.sort_unstable();
    assert_eq!(listed, known.iter().collect::<Vec<_>>());
}

#[test]
fn each_row_has_the_default() {
    let mut defaults = BTreeMap::new();
    collect_values("", &Value::Table(uncommented().parse().unwrap()), &mut defaults);
    let mut compared = 0;
    for [key, default, _] in rows() {
        if default.starts_with('`') && !NO_DEFAULTS.contains(&key) {
            assert!(
                default.contains(&format!("`{}`", defaults[key])),
                "{key}: {default}, not {}",
                defaults[key]
            );
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared}");
}

/// The first value of each key, as the reference writes it.
fn collect_values(path: &str, value: &Value, values: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                collect_values(&join(path, key), value, values);
            }
        }
        Value::Array(items) if items.first().is_some_and(Value::is_table) => {
            for item in items {
                collect_values(path, item, values);
            }
        }
        Value::String(text) => drop(values.entry(with_generic_class(path)).or_insert_with(|| text.clone())),
        other => drop(values.entry(with_generic_class(path)).or_insert_with(|| other.to_string())),
    }
}

#[test]
fn each_row_has_the_range() {
    let mut compared = 0;
    for [key, _, range] in rows() {
        let (path, name) = key.rsplit_once('.').unwrap_or(("", key));
        let path = path.replace("CLASS", "lookup");
        let header = match path.as_str() {
            "" => String::new(),
            "listen" | "upstream.server" => format!("[[{path}]]"),
            path => format!("[{path}]"),
        };
        // No key takes a number below zero, so the reader says what it takes.
        let ConfigError(errors) = parse("", &format!("{header}\n{name} = -0.5")).unwrap_err();
        let error = errors.iter().find(|error| error.mistake.key == join(&path, name)).unwrap();
        if let Some(taken) = bounds(error.mistake.message.split_once(" from ").map_or("", |(_, rest)| rest)) {
            assert_eq!(
                bounds(&range.replace('`', "")),
                Some(taken),
                "{key}: {range}, not {}",
                error.mistake.message
            );
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared}");
}

/// The two numbers of a text that begins with `A to B`.
fn bounds(text: &str) -> Option<[u128; 2]> {
    let mut words = text.split([' ', ',']);
    let first = number(words.next()?)?;
    let last = words.next().filter(|word| *word == "to").and_then(|_| number(words.next()?))?;
    Some([first, last])
}

/// A count, a duration in milliseconds, or a size in bytes.
fn number(text: &str) -> Option<u128> {
    let duration = units::parse_duration(text).map(|duration| duration.as_millis());
    let size = units::parse_size(text).map(|size| size as u128);
    duration.or(size).or_else(|| text.parse().ok())
}

#[test]
fn the_table_of_classes_has_the_defaults() {
    for (class, known) in Class::ALL.iter().zip(upstream::DEFAULT_CLASSES) {
        let begin = format!("| `{}` |", class.as_str());
        let row = README.lines().find(|line| line.starts_with(&begin)).unwrap();
        let cells = row.split(" | ").skip(2).map(|cell| cell.trim_matches(['`', ' ', '|']));
        let ms = |time: Duration| time.as_millis();
        let expected = [
            known.concurrency as u128,
            known.queue as u128,
            ms(known.queue_timeout),
            ms(known.hold),
            ms(known.response_timeout),
            ms(known.total_timeout),
        ];
        let said = cells.map(|cell| number(cell.split(' ').next().unwrap()).unwrap());
        assert_eq!(said.collect::<Vec<_>>(), expected, "{row}");
    }
}

#[test]
fn the_table_of_refusals_has_each_with_its_status() {
    let (_, section) = README.split_once("\n## Refused requests\n").unwrap();
    // A malformed chunk comes too late for an answer of its own.
    for refusal in Refusal::ALL.iter().filter(|refusal| **refusal != Refusal::Chunk) {
        let label = format!("`{}`", refusal.as_str());
        let row = section.lines().find(|line| line.starts_with("| `") && line.contains(&label));
        let status = format!("| {} |", refusal.status().as_u16());
        assert!(row.is_some_and(|row| row.contains(&status)), "{label} {status}: {row:?}");
    }
}
