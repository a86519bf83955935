//! `[cache]`: what is cached, and for how long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{Document, Section};
use super::scalars::{
    DAY, GIBIBYTE, HOUR, MEBIBYTE, MILLISECOND, SECOND, TEBIBYTE, WEEK, ZERO, as_usize, duration, size,
};
use crate::cache::{self, Lifetime, Lifetimes, shadow};

pub(super) fn cache(document: &Document<'_>, root: &mut Section<'_, '_>) -> cache::CacheSettings {
    let defaults = cache::CacheSettings::default();
    let Some(mut section) = root.section("cache") else { return defaults };
    let lifetimes = defaults.lifetimes;
    let authorized_keys = lifetime(document, &mut section, "authorized_keys", lifetimes.authorized_keys);
    let discover = lifetime(document, &mut section, "discover", lifetimes.discover);
    let check_section = section.section("check");
    let check_offset = check_section.as_ref().map_or(0, Section::offset);
    let check = check_section.map_or(lifetimes.check, |mut section| {
        let ttl = duration(&mut section, "ttl", lifetimes.check, ZERO..=DAY);
        section.reject_unknown_keys();
        ttl
    });
    if check > Duration::from_secs(5) {
        document.warn(
            check_offset,
            "cache.check.ttl",
            "health checks would see an outdated state; 1s or 2s is usual",
        );
    }
    let shadow = shadow(&mut section, defaults.shadow);
    let settings = cache::CacheSettings {
        max_entries: section
            .integer("max_entries", 1..1_000_000_001)
            .map_or(defaults.max_entries, |count| count.value),
        max_negative_entries: section
            .integer("max_negative_entries", 1..1_000_000_001)
            .map_or(defaults.max_negative_entries, |count| count.value),
        max_bytes: size(&mut section, "max_bytes", defaults.max_bytes, MEBIBYTE..=TEBIBYTE),
        max_body: size(&mut section, "max_body", defaults.max_body, 1..=GIBIBYTE),
        wait: duration(&mut section, "wait", defaults.wait, ZERO..=HOUR),
        stale_wait: duration(&mut section, "stale_wait", defaults.stale_wait, SECOND..=HOUR),
        max_refreshes: section
            .integer("max_refreshes", 1..10_001)
            .map_or(defaults.max_refreshes, |count| as_usize(count.value)),
        snapshot: snapshot(document, &mut section),
        shadow,
        lifetimes: Lifetimes {
            authorized_keys,
            discover,
            check,
            jitter_percent: section
                .integer("jitter_percent", 0..51)
                .map_or(lifetimes.jitter_percent, |count| u8::try_from(count.value).unwrap_or(u8::MAX)),
        },
    };
    section.reject_unknown_keys();
    settings
}

/// The directory has to exist: the gateway's user is seldom allowed to make one.
fn snapshot(document: &Document<'_>, section: &mut Section<'_, '_>) -> Option<PathBuf> {
    let path = section.string("snapshot", "the absolute path of a file", |text| {
        let path = PathBuf::from(text);
        (path.is_absolute() && path.file_name().is_some() && !text.ends_with('/')).then_some(path)
    })?;
    let directory = path.value.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        let message =
            format!("{} is not a directory; create it, for the gateway's user alone", directory.display());
        document.error(path.offset, &path.key, message);
    } else if path.value.is_dir() {
        document.error(
            path.offset,
            &path.key,
            format!("{} is a directory; name a file", path.value.display()),
        );
    }
    Some(path.value)
}

fn shadow(cache: &mut Section<'_, '_>, default: shadow::ShadowSettings) -> shadow::ShadowSettings {
    let Some(mut section) = cache.section("shadow") else { return default };
    let settings = shadow::ShadowSettings {
        one_in: section.integer("one_in", 0..1_000_000_001).map_or(default.one_in, |count| count.value),
        max_per_second: section
            .integer("max_per_second", 1..10_001)
            .map_or(default.max_per_second, |count| u32::try_from(count.value).unwrap_or(u32::MAX)),
        slow_after: duration(&mut section, "slow", default.slow_after, MILLISECOND..=HOUR),
    };
    section.reject_unknown_keys();
    settings
}

fn lifetime(
    document: &Document<'_>,
    cache: &mut Section<'_, '_>,
    route: &'static str,
    default: Lifetime,
) -> Lifetime {
    let Some(mut section) = cache.section(route) else { return default };
    let offset = section.offset();
    let lifetime = Lifetime {
        ttl: duration(&mut section, "ttl", default.ttl, ZERO..=DAY),
        negative_ttl: duration(&mut section, "negative_ttl", default.negative_ttl, ZERO..=DAY),
        stale_while_revalidate: duration(
            &mut section,
            "stale_while_revalidate",
            default.stale_while_revalidate,
            ZERO..=DAY,
        ),
        stale_if_error: duration(&mut section, "stale_if_error", default.stale_if_error, ZERO..=WEEK),
    };
    if lifetime.stale_if_error < lifetime.stale_while_revalidate {
        document.warn(
            offset,
            &format!("cache.{route}.stale_if_error"),
            "is shorter than stale_while_revalidate, which applies while Rails fails too",
        );
    }
    section.reject_unknown_keys();
    lifetime
}
