//! `[upstream]`: where Rails is, and how to talk to it.

use super::document::{Document, Section};
use super::scalars::{HOUR, MILLISECOND, as_usize, duration};
use crate::authority;
use crate::upstream::{self, Target};

pub(super) fn upstream(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
) -> Option<(upstream::Settings, Vec<String>)> {
    let missing = |at| {
        document.problem(
            at,
            "upstream.url",
            "is required: where Rails listens, such as \"http://127.0.0.1:8080\"",
        );
    };
    let Some(mut section) = root.section("upstream") else {
        missing(0);
        return None;
    };
    let has_url = section.has("url");
    let target = section.take("url", |value| {
        let text = value.as_str().ok_or("expected a URL in quotes, such as \"http://127.0.0.1:8080\"")?;
        Target::parse(text).map_err(|error| error.to_string())
    });
    if !has_url {
        missing(section.at());
    }
    let host = section.text("host", "a host name, perhaps with a port", |text| {
        authority::parse(text).map(|_| text.to_owned())
    });
    let connect_timeout =
        duration(&mut section, "connect_timeout", upstream::DEFAULT_CONNECT_TIMEOUT, MILLISECOND..=HOUR);
    let response_timeout =
        duration(&mut section, "response_timeout", upstream::DEFAULT_RESPONSE_TIMEOUT, MILLISECOND..=HOUR);
    let idle_timeout =
        duration(&mut section, "idle_timeout", upstream::DEFAULT_IDLE_TIMEOUT, MILLISECOND..=HOUR);
    let max_idle = section.count("max_idle", 0..100_001);
    let forward_prefixes = forward_prefixes(document, &mut section);
    section.finish();
    let settings = upstream::Settings {
        target: target?.value,
        host: host.map(|host| host.value),
        connect_timeout,
        response_timeout,
        idle_timeout,
        max_idle: max_idle.map_or(upstream::DEFAULT_MAX_IDLE, |count| as_usize(count.value)),
    };
    Some((settings, forward_prefixes))
}

fn forward_prefixes(document: &Document<'_>, section: &mut Section<'_, '_>) -> Vec<String> {
    let Some(prefixes) = section.list("forward_prefixes") else { return Vec::new() };
    for prefix in &prefixes.value {
        let is_good = prefix.starts_with('/')
            && prefix.ends_with('/')
            && !prefix.contains("//")
            && !prefix.contains("/.")
            && prefix.len() > 1;
        if !is_good {
            let message =
                format!("{prefix:?} must name a path between two slashes, such as \"/api/v4/geo/\"");
            document.problem(prefixes.at, &prefixes.key, message);
        }
    }
    prefixes.value
}
