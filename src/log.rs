//! The library's part in the log: counters of lines that were not written, and a bound on texts from outside.
//! The library emits `tracing` events; where they go and how they look is up to the binary.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Level;

/// The labels by which lines are counted; `TRACE` counts as `DEBUG`.
pub const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

/// The index of a level in [`LEVELS`].
pub fn level_index(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        _ => 3,
    }
}

/// Why a line was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue was full, since the lines are read too slowly or not at all.
    QueueFull,
    /// Standard output could not be written: its reader has exited, or the disk is full.
    Unwritable,
}

impl DropReason {
    /// In the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::QueueFull, Self::Unwritable];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Unwritable => "unwritable",
        }
    }
}

/// Lines that were not written.
#[derive(Debug, Default)]
pub struct LogCounters {
    /// By [`DropReason`] and level.
    dropped: [[AtomicU64; LEVELS.len()]; DropReason::ALL.len()],
    /// Omitted on purpose: the same diagnostic had been written several times within a second.
    pub suppressed: AtomicU64,
}

impl LogCounters {
    /// Ignores a level that is not in [`LEVELS`].
    pub fn count_dropped(&self, reason: DropReason, level: usize, lines: u64) {
        if let Some(count) = self.dropped.get(reason as usize).and_then(|levels| levels.get(level)) {
            count.fetch_add(lines, Ordering::Relaxed);
        }
    }

    /// Dropped lines so far, as reason, level, count.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, &'static str, u64)> {
        DropReason::ALL.into_iter().zip(&self.dropped).flat_map(|(reason, levels)| {
            LEVELS
                .into_iter()
                .zip(levels)
                .map(move |(level, count)| (reason, level, count.load(Ordering::Relaxed)))
        })
    }
}

/// A text of a caller or of Rails, cut to its first `max_bytes`, with a mark that says how many more
/// there were.
pub fn truncated(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    let kept = text.get(..text.floor_char_boundary(max_bytes)).unwrap_or_default();
    Cow::Owned(format!("{kept}…[{} bytes cut]", text.len() - kept.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters_and_say_so() {
        for (text, max_bytes, shown) in [
            ("", 0, ""),
            ("curl/8", 6, "curl/8"),
            ("curl/8", 5, "curl/…[1 bytes cut]"),
            ("aéé", 2, "a…[4 bytes cut]"),
            ("aéé", 3, "aé…[2 bytes cut]"),
        ] {
            assert_eq!(truncated(text, max_bytes), shown, "{text:?} to {max_bytes}");
        }
    }

    #[test]
    fn dropped_lines_are_counted_by_reason_and_level() {
        let counts = LogCounters::default();
        counts.count_dropped(DropReason::QueueFull, level_index(Level::INFO), 3);
        counts.count_dropped(DropReason::Unwritable, level_index(Level::TRACE), 1);
        let dropped: Vec<_> = counts.dropped().filter(|(_, _, lines)| *lines > 0).collect();
        assert_eq!(dropped, [(DropReason::QueueFull, "info", 3), (DropReason::Unwritable, "debug", 1)]);
    }
}
