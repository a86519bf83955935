//! `[cache]`: what is kept, and for how long.

use std::time::Duration;

use super::document::{Document, Section};
use super::scalars::{DAY, GIBIBYTE, HOUR, MEBIBYTE, TEBIBYTE, ZERO, duration, size};
use crate::cache::{self, Lifetimes};

pub(super) fn cache(document: &Document<'_>, root: &mut Section<'_, '_>) -> cache::Settings {
    let defaults = cache::Settings::default();
    let Some(mut section) = root.section("cache") else { return defaults };
    let known = defaults.lifetimes;
    let of = |section: Option<Section<'_, '_>>, ttl: Duration, negative: Option<Duration>| {
        let Some(mut section) = section else { return (ttl, negative.unwrap_or_default()) };
        let ttl = duration(&mut section, "ttl", ttl, ZERO..=DAY);
        let negative = negative.map(|negative| duration(&mut section, "negative_ttl", negative, ZERO..=DAY));
        section.finish();
        (ttl, negative.unwrap_or_default())
    };
    let (authorized_keys, authorized_keys_negative) =
        of(section.section("authorized_keys"), known.authorized_keys, Some(known.authorized_keys_negative));
    let (discover, discover_negative) =
        of(section.section("discover"), known.discover, Some(known.discover_negative));
    let check_section = section.section("check");
    let check_at = check_section.as_ref().map_or(0, Section::at);
    let (check, _) = of(check_section, known.check, None);
    if check > Duration::from_secs(5) {
        document.warn(
            check_at,
            "cache.check.ttl",
            "health checks would see a state that is gone; 1s or 2s is usual",
        );
    }
    let settings = cache::Settings {
        max_entries: section
            .count("max_entries", 1..1_000_000_001)
            .map_or(defaults.max_entries, |count| count.value),
        max_negative_entries: section
            .count("max_negative_entries", 1..1_000_000_001)
            .map_or(defaults.max_negative_entries, |count| count.value),
        max_bytes: size(&mut section, "max_bytes", defaults.max_bytes, MEBIBYTE..=TEBIBYTE),
        max_body: size(&mut section, "max_body", defaults.max_body, 1..=GIBIBYTE),
        wait: duration(&mut section, "wait", defaults.wait, ZERO..=HOUR),
        lifetimes: Lifetimes {
            authorized_keys,
            authorized_keys_negative,
            discover,
            discover_negative,
            check,
        },
    };
    section.finish();
    settings
}
