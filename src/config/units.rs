//! Durations and sizes, always with their unit.

use std::time::Duration;

/// Reads `60s`, `500ms`, `5m`, `1h`, or `0s`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

/// Writes a duration as [`parse_duration`] reads it, in the largest unit without a fraction; zero is `0s`.
pub(super) fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let (unit, length) = match milliseconds {
        0 => ("s", 1_000),
        _ if milliseconds.is_multiple_of(3_600_000) => ("h", 3_600_000),
        _ if milliseconds.is_multiple_of(60_000) => ("m", 60_000),
        _ if milliseconds.is_multiple_of(1_000) => ("s", 1_000),
        _ => ("ms", 1),
    };
    format!("{}{unit}", milliseconds / length)
}

/// Writes bytes in the largest unit that divides them.
pub(super) fn format_size(bytes: usize) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.into_iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    let (name, size) = unit.unwrap_or(("B", 1));
    format!("{}{name}", bytes / size)
}

/// Reads `512B`, `64KiB`, `1MiB`, `1GiB`.
pub(super) fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = split(text)?;
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    usize::try_from(number.checked_mul(bytes)?).ok()
}

fn split(text: &str) -> Option<(u64, &str)> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [("0s", 0), ("250ms", 250), ("60s", 60_000), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "",
            "60",
            "s",
            "-1s",
            "1.5s",
            "1d",
            "1S",
            "60 s",
            " 60s",
            "60s ",
            "60\u{a0}s",
            "60\ts",
            "５s",
            "+5s",
            "5_0s",
            "60sec",
            "99999999999999999999s",
            "99999999999999999h",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_written_in_the_largest_unit() {
        for (ms, text) in
            [(0, "0s"), (1, "1ms"), (1_500, "1500ms"), (90_000, "90s"), (60_000, "1m"), (86_400_000, "24h")]
        {
            assert_eq!(format_duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0B", 0), ("512B", 512), ("64KiB", 65_536), ("1MiB", 1_048_576), ("1GiB", 1 << 30)]
        {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for bad in [
            "",
            "64",
            "64K",
            "64KB",
            "-1B",
            "1.5MiB",
            "1 MiB",
            " 1MiB",
            "1mib",
            "1Mi",
            "1TiB",
            "99999999999999999GiB",
        ] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
