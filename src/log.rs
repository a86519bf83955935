//! What the library knows of the log: how many lines were left out, and how long a text of a caller may be
//! in one. It writes `tracing` events; where these go and how they look is the binary's business.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Level;

/// How lines are counted: at `TRACE` like those at `DEBUG`.
pub const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

/// The place of a level in [`LEVELS`].
pub fn place(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        _ => 3,
    }
}

/// Why a line is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// As many lines as may waited already, since they are read too slowly or not at all.
    QueueFull,
    /// Standard output took no more: its reader is gone, or the disk is full.
    Unwritable,
}

impl Loss {
    /// All of them, in the order of their numbers.
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
pub struct Counts {
    /// Lost, by [`Loss`] and level.
    dropped: [[AtomicU64; LEVELS.len()]; Loss::ALL.len()],
    /// Left out on purpose: the same diagnostic had been written several times within a second.
    pub suppressed: AtomicU64,
}

impl Counts {
    /// Counts lines that are lost.
    pub fn drop_lines(&self, why: Loss, level: usize, lines: u64) {
        if let Some(count) = self.dropped.get(why as usize).and_then(|levels| levels.get(level)) {
            count.fetch_add(lines, Ordering::Relaxed);
        }
    }

    /// What was lost so far: why, the level, and how many lines.
    pub fn dropped(&self) -> impl Iterator<Item = (Loss, &'static str, u64)> {
        Loss::ALL.into_iter().zip(&self.dropped).flat_map(|(why, levels)| {
            LEVELS
                .into_iter()
                .zip(levels)
                .map(move |(level, count)| (why, level, count.load(Ordering::Relaxed)))
        })
    }
}

/// A text that callers choose, or Rails, cut to its first `most` bytes; the mark says how many more
/// there were.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let kept = text.get(..text.floor_char_boundary(most)).unwrap_or_default();
    Cow::Owned(format!("{kept}…[{} bytes cut]", text.len() - kept.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters_and_say_so() {
        for (text, most, shown) in [
            ("", 0, ""),
            ("curl/8", 6, "curl/8"),
            ("curl/8", 5, "curl/…[1 bytes cut]"),
            ("aéé", 2, "a…[4 bytes cut]"),
            ("aéé", 3, "aé…[2 bytes cut]"),
        ] {
            assert_eq!(shortened(text, most), shown, "{text:?} to {most}");
        }
    }

    #[test]
    fn losses_are_counted_by_reason_and_level() {
        let counts = Counts::default();
        counts.drop_lines(Loss::QueueFull, place(Level::INFO), 3);
        counts.drop_lines(Loss::Unwritable, place(Level::TRACE), 1);
        let dropped: Vec<_> = counts.dropped().filter(|(_, _, lines)| *lines > 0).collect();
        assert_eq!(dropped, [(Loss::QueueFull, "info", 3), (Loss::Unwritable, "debug", 1)]);
    }
}
