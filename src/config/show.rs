//! `railgate config show`: the configuration in effect, as a file that can be used again.

use super::gateway_config::GatewayConfig;
use super::key::{KeyKind, KeyRead, text_to_toml, without_indexes};
use super::{reference, units};
use crate::route::Class;
use crate::upstream::ClassSettings;

/// What is set has the place that sets it behind it. What is not set is commented out, with its default. `read`: the
/// keys of the sections that there are; `all`: those of every section.
pub(super) fn show(config: &GatewayConfig, read: &[KeyRead], all: &[KeyRead]) -> String {
    let mut lines = vec!["# Lines that begin with # are defaults.".to_owned()];
    let mut shown: Vec<&str> = Vec::new();
    let is_absent = |key: &&KeyRead| !read.iter().any(|other| other.section() == key.section());
    let given = read.iter().filter(|key| key.is_section_given);
    for key in given.chain(all.iter().filter(is_absent)) {
        if shown.contains(&key.scope.as_str()) {
            continue;
        }
        shown.push(&key.scope);
        let of_scope: Vec<_> = if is_absent(&key) { all } else { read }
            .iter()
            .filter(|other| other.scope == key.scope)
            .filter(|other| !matches!(other.kind, KeyKind::Section | KeyKind::SectionArray))
            .collect();
        if of_scope.is_empty() {
            continue;
        }
        lines.push(String::new());
        lines.extend(header(key));
        lines.extend(of_scope.into_iter().map(|key| line(key, config)));
    }
    lines.join("\n")
}

/// The line with the brackets.
fn header(key: &KeyRead) -> Option<String> {
    let mark = if key.is_section_given { "" } else { "#" };
    let name = without_indexes(&key.scope);
    match key.scope.as_str() {
        "" => None,
        scope if scope.ends_with(']') => Some(format!("{mark}[[{name}]]")),
        _ => Some(format!("{mark}[{name}]")),
    }
}

fn line(key: &KeyRead, config: &GatewayConfig) -> String {
    let name = key.name;
    if let Some(given) = &key.given {
        return format!("{name} = {}  # {}", given.toml, given.origin);
    }
    let row = reference::row(&key.path());
    let value = computed(key, config).or_else(|| {
        let value = row.as_ref()?.default_value.clone()?;
        Some(if is_quoted(&key.kind) { text_to_toml(&value) } else { value })
    });
    match (value, row) {
        (Some(value), _) => format!("#{name} = {value}  # default"),
        (None, Some(row)) => format!("#{name}: {}", row.default),
        (None, None) => format!("#{name}"),
    }
}

fn is_quoted(kind: &KeyKind) -> bool {
    matches!(kind, KeyKind::Text | KeyKind::Duration(_) | KeyKind::Size(_) | KeyKind::Choice(_))
}

/// A default that depends on other keys or on the machine.
fn computed(key: &KeyRead, config: &GatewayConfig) -> Option<String> {
    let path = key.path();
    if let Some((class, name)) = path.strip_prefix("upstream.classes.").and_then(|rest| rest.split_once('.'))
    {
        let class = Class::ALL.iter().find(|known| known.as_str() == class)?;
        return of_class(class.of(&config.upstream.classes), name);
    }
    match path.as_str() {
        "workers" => Some(config.workers.to_string()),
        "listen.connections" => {
            let index = key.scope.split(['[', ']']).nth(1)?.parse::<usize>().ok()?;
            config.listen.get(index).map(|listen| listen.connections.to_string())
        }
        "auth.shell.max_unverified" => Some(text_to_toml(&units::format_size(config.auth.max_unverified))),
        _ => None,
    }
}

fn of_class(class: &ClassSettings, name: &str) -> Option<String> {
    let time = |time| Some(text_to_toml(&units::format_duration(time)));
    match name {
        "concurrency" => Some(class.concurrency.to_string()),
        "queue" => Some(class.queue.to_string()),
        "queue_timeout" => time(class.queue_timeout),
        "response_timeout" => time(class.response_timeout),
        "total_timeout" => time(class.total_timeout),
        "hold" => time(class.hold),
        _ => None,
    }
}
