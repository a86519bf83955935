//! Durations, sizes and counts within their bounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::document::Section;
use super::key::KeyKind;
use super::units;

pub(super) const ZERO: Duration = Duration::ZERO;
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3_600);
pub(super) const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
pub(super) const MEBIBYTE: usize = 1 << 20;
pub(super) const GIBIBYTE: usize = 1 << 30;
pub(super) const TEBIBYTE: usize = 1 << 40;

pub(super) fn duration(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Duration {
    optional_duration(section, key, range).unwrap_or(default)
}

pub(super) fn optional_duration(
    section: &mut Section<'_, '_>,
    key: &'static str,
    range: RangeInclusive<Duration>,
) -> Option<Duration> {
    let expected = format!(
        "a duration from {} to {} with its unit (ms, s, m, h), such as \"60s\"",
        units::format_duration(*range.start()),
        units::format_duration(*range.end())
    );
    let within = |duration: &Duration| range.contains(duration);
    section
        .string_kind(key, KeyKind::Duration(range.clone()), &expected, |text| {
            units::parse_duration(text).filter(within)
        })
        .map(|located| located.value)
}

pub(super) fn size(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: usize,
    range: RangeInclusive<usize>,
) -> usize {
    let expected = format!(
        "a size from {} to {} bytes with its unit (B, KiB, MiB, GiB), such as \"64KiB\"",
        range.start(),
        range.end()
    );
    let within = |size: &usize| range.contains(size);
    section
        .string_kind(key, KeyKind::Size(range.clone()), &expected, |text| {
            units::parse_size(text).filter(within)
        })
        .map_or(default, |located| located.value)
}

pub(super) fn as_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

pub(super) fn as_u32(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
